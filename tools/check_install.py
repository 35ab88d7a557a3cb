"""Installs a wheel or an sdist into an empty environment and looks whether it works there, without MLflow.

``python tools/check_install.py FILE``. Needs nothing but Python and pip, so that it runs in any container; an sdist
needs Rust too. The package is tried in processes of its own, without variables that configure it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

NAME = "mlflow-secrets-auth"
EXTRAS = ("vault", "aws", "azure", "all")
#: What no extra may bring: the core has its own clients.
VENDOR_SDKS = ("hvac", "boto", "azure", "msal", "mlflow-skinny", "mlflow-tracing")
OURS = ("MLFLOW_", "VAULT_", "BAO_", "AWS_", "AZURE_", "IDENTITY_", "MSI_")

IMPORTS = """
import mlflow_secrets_auth, mlflow_secrets_auth.auth, mlflow_secrets_auth.config, mlflow_secrets_auth.otel
from importlib.metadata import version
assert mlflow_secrets_auth.__version__ == version("mlflow-secrets-auth")
try:
    mlflow_secrets_auth.headers_for("https://mlflow.example.com/")
except mlflow_secrets_auth.ConfigurationError as error:
    assert error.code == "config.no_provider", error
else:
    raise AssertionError("no provider is enabled, and nobody minds")
"""

#: A Vault that nobody is: the core gets as far as it can without one, to a TLS client with the machine's roots.
UNREACHABLE = {
    "MLFLOW_SECRETS_AUTH_ENABLE": "vault",
    "VAULT_ADDR": "https://127.0.0.1:9",
    "VAULT_TOKEN": "none",
    "MLFLOW_VAULT_SECRET_PATH": "secret/mlflow",
    "MLFLOW_SECRETS_MAX_RETRIES": "0",
}


class Environment:
    """A virtual environment of its own."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")

    def run(self, program: str, *arguments: str, status: int = 0, **settings: str) -> str:
        """What the program prints; anything but ``status`` at its end is an error."""
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(OURS)}
        command = [str(self.scripts / program), *arguments]
        result = subprocess.run(
            command, env={**kept, "NO_PROXY": "*", **settings}, capture_output=True, text=True, check=False
        )
        if result.returncode != status:
            raise SystemExit(f"{command} ended with {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout

    def pip(self, *arguments: str) -> str:
        """What pip prints. It needs the proxy that the machine may have."""
        return self.run(
            "python", "-m", "pip", "--disable-pip-version-check", *arguments, NO_PROXY=os.environ.get("NO_PROXY", "")
        )


def names(environment: Environment) -> set[str]:
    """What is installed."""
    return {entry["name"].lower() for entry in json.loads(environment.pip("list", "--format=json"))}


def check(file: Path, environment: Environment) -> None:
    environment.pip("install", "--quiet", str(file))
    installed = names(environment)
    assert NAME in installed, installed
    assert not [name for name in installed - {NAME} if name.startswith(VENDOR_SDKS)], installed

    environment.run("python", "-c", IMPORTS)
    info = json.loads(environment.run(NAME, "info", "--json"))
    assert all(provider["built_in"] for provider in info["providers"]), info["providers"]
    assert info["version"] in environment.run(NAME, "--version")
    report = json.loads(environment.run(NAME, "doctor", "--json", status=1, **UNREACHABLE))
    assert "vault.unreachable" in {finding["code"] for finding in report["findings"]}, report["findings"]

    for extra in EXTRAS:
        wanted = f"{NAME}[{extra}]=={info['version']}"
        plan = environment.pip("install", "--quiet", "--dry-run", "--report", "-", wanted)
        assert json.loads(plan)["install"] == [], f"the extra {extra} installs something"
    print(f"{file.name}: works in an empty environment (Python {info['python']}, {info['platform']})")


def main() -> None:
    [file] = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        check(Path(file).resolve(), Environment(Path(folder)))


if __name__ == "__main__":
    main()
