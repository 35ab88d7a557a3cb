"""A provider of a user's own package, as the page about the Python API shows it."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import requests

from doc_pages import example
from loopback import Answer, Loopback, Request, VaultLike
from mlflow_secrets_auth import SecretsAuthProvider
from servers import clean_environment

PAGE, HEADING = "docs/python.md", "A provider of your own"

LOGIN = {
    "request_id": "r",
    "lease_id": "",
    "renewable": False,
    "lease_duration": 0,
    "data": None,
    "wrap_info": None,
    "warnings": None,
    "auth": {
        "client_token": "of-the-login",
        "accessor": "a",
        "policies": [],
        "token_policies": [],
        "metadata": None,
        "lease_duration": 3600,
        "renewable": False,
        "entity_id": "",
        "token_type": "service",
        "orphan": True,
    },
}

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import mlflow
print(mlflow.MlflowClient(sys.argv[2]).get_experiment("0").name)
"""


def install(folder: Path, module: str) -> None:
    """What ``pip install`` leaves behind of the page's package."""
    (folder / "acme_mlflow.py").write_text(module)
    # A table of plain strings reads the same as the format of entry points, but for quotes.
    table = configparser.ConfigParser()
    table.read_string(example(PAGE, HEADING, "toml").text)
    (section,) = table.sections()
    group = section.removeprefix("project.entry-points.").strip('"')
    lines = [f"{name} = {target.strip(chr(34))}" for name, target in table[section].items()]
    dist_info = folder / "acme_mlflow-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-mlflow\nVersion: 1.0\n")
    (dist_info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]) + "\n")


def run(folder: Path, tracking_uri: str, auth: str) -> subprocess.CompletedProcess[str]:
    """MLflow in a process of its own, whose environment says nothing but which provider to take."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), tracking_uri],
        env=clean_environment(MLFLOW_TRACKING_AUTH=auth, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_mlflow_uses_a_provider_of_another_package(tmp_path: Path, vault_like: VaultLike, loopback: Loopback) -> None:
    """MLflow finds the subclass by its own name, and it works by the settings in its code: the login, the path and the
    allowlist are those of the example."""
    vault_like.fields = {"token": "of-acme"}
    jwt = tmp_path / "jwt"
    jwt.write_text("service-account-token")
    logins = []
    read = vault_like.rule

    def rule(request: Request) -> Answer:
        if request.path == "/v1/auth/kubernetes/login":
            logins.append(request.body)
            return Answer.json(LOGIN)
        return read(request)

    vault_like.rule = rule
    experiment = {"experiment": {"experiment_id": "0", "name": "Default", "lifecycle_stage": "active"}}
    loopback.rule = lambda request: Answer.json(experiment)
    module = example(PAGE, HEADING, "python").text
    module = module.replace("https://vault.example.com:8200", vault_like.url)
    module = module.replace('"mlflow.example.com"', f'"127.0.0.1:{loopback.port}"')
    pinned = f'"MLFLOW_VAULT_KV_MOUNT": "secret", "MLFLOW_VAULT_KV_VERSION": "2", "MLFLOW_VAULT_JWT_PATH": "{jwt}",'
    install(tmp_path, module.replace("settings={", "settings={" + pinned))
    result = run(tmp_path, loopback.url, "acme")
    assert (result.returncode, result.stdout.strip()) == (0, "Default"), result.stderr
    assert loopback.header("Authorization") == ["Bearer of-acme"]
    assert vault_like.reads == 1
    assert len(logins) == 1 and b"mlflow" in logins[0] and b"service-account-token" in logins[0]
    # The subclass has a name of its own: by the other one it is our own provider, which finds no settings.
    result = run(tmp_path, loopback.url, "mlflow_secrets_auth")
    assert result.returncode == 1 and "config.no_provider" in result.stderr
    assert len(loopback.requests) == 1


def test_several_servers_side_by_side(loopback: Loopback, second_loopback: Loopback) -> None:
    """Each with settings of its own, in one process, while the environment says nothing: each server gets its own
    credential, and one that is refused does not touch the other."""
    with VaultLike() as first, VaultLike() as second:
        second.fields = {"token": "two"}
        providers = [
            SecretsAuthProvider(settings=vault.settings(MLFLOW_SECRETS_ALLOWED_HOSTS=server.url))
            for vault, server in ((first, loopback), (second, second_loopback))
        ]
        servers = (loopback, second_loopback)
        for token in ("one", "newer", "newest"):
            # The server takes this one only, so every change is a rejection.
            first.fields = {"token": token}
            right = f"Bearer {token}"
            loopback.rule = lambda request, right=right: Answer(
                200 if request.headers["authorization"] == right else 401
            )
            answers = [
                requests.get(server.url, auth=provider.get_auth(), timeout=5)
                for server, provider in zip(servers, providers, strict=True)
            ]
            assert [answer.status_code for answer in answers] == [200, 200]
        assert loopback.header("Authorization")[-1] == "Bearer newest"
        assert set(second_loopback.header("Authorization")) == {"Bearer two"}
        assert second.reads == 1
        requests.get(second_loopback.url, auth=providers[0].get_auth(), timeout=5)
        assert second_loopback.header("Authorization")[-1] is None
