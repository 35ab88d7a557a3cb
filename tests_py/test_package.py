"""The package as Python sees it: imports, exceptions, config helpers, command line."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

import mlflow_secrets_auth
from conftest import Configure
from loopback import VaultLike
from mlflow_secrets_auth import config
from servers import MlflowServer, OpenBao


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlflow_secrets_auth", *arguments], capture_output=True, text=True, check=False
    )


def test_c3_importing_brings_neither_mlflow_nor_requests_nor_a_vendor_sdk() -> None:
    """C3: the core brings every client."""
    found = python(
        "import sys, mlflow_secrets_auth, mlflow_secrets_auth.config; mlflow_secrets_auth.headers_for;"
        "print([m for m in ('mlflow', 'requests', 'hvac', 'boto3', 'azure') if m in sys.modules])"
    )
    assert found == "[]"


def test_every_public_name_is_there() -> None:
    for name in mlflow_secrets_auth.__all__:
        assert getattr(mlflow_secrets_auth, name) is not None
    assert mlflow_secrets_auth.SecretsAuthProviderFactory is mlflow_secrets_auth.SecretsAuthProvider
    assert mlflow_secrets_auth.__version__ == importlib.metadata.version("mlflow-secrets-auth")
    with pytest.raises(AttributeError):
        mlflow_secrets_auth.no_such_name  # noqa: B018


def test_the_entry_point_gives_mlflow_a_provider() -> None:
    [entry] = importlib.metadata.entry_points(group="mlflow.request_auth_provider", name="mlflow_secrets_auth")
    provider = entry.load()()
    assert provider.get_name() == "mlflow_secrets_auth"
    assert provider.get_auth() is provider.get_auth()


def test_the_exception_tree() -> None:
    base = mlflow_secrets_auth.SecretsAuthError
    kinds = ("ConfigurationError", "CredentialRejectedError", "HostNotAllowedError")
    for name in (*kinds, "SecretFetchError", "SecretFormatError"):
        error = getattr(mlflow_secrets_auth, name)("a.code", "it happened", "do this")
        assert isinstance(error, base)
        assert str(error) == "a.code: it happened\nhint: do this"
        assert (error.code, error.hint) == ("a.code", "do this")


def test_config_helpers(configure: Configure) -> None:
    assert config.enabled_providers() == []
    assert config.get_allowed_hosts() is None
    assert config.get_auth_header_name() == "Authorization"
    configure(
        MLFLOW_SECRETS_AUTH_ENABLE="azure-key-vault, vault",
        MLFLOW_SECRETS_AUTH_ENABLE_AZURE_KEY_VAULT="off",
        MLFLOW_SECRETS_AUTH_ENABLE_AWS_SECRETS_MANAGER="on",
        MLFLOW_SECRETS_ALLOWED_HOSTS="a.com, *.b.com",
        MLFLOW_AUTH_HEADER_NAME="X-MLflow-Auth",
    )
    assert config.enabled_providers() == ["vault", "aws-secrets-manager"]
    assert config.is_provider_enabled("vault")
    assert not config.is_provider_enabled("azure-key-vault")
    assert config.get_allowed_hosts() == ["a.com", "*.b.com"]
    assert config.get_auth_header_name() == "X-MLflow-Auth"


@pytest.mark.parametrize(
    ("url", "patterns", "allowed"),
    [
        ("https://a.b.com/x", ["*.b.com"], True),
        ("https://b.com/x", ["*.b.com"], False),
        ("https://evilb.com/x", ["*.b.com"], False),
        ("https://A.B.com./x", ["a.b.com"], True),
        ("https://a.b.com/x", None, True),
        ("https://u:p@a.b.com/x", ["*.b.com"], False),
        ("https://bücher.example/", ["xn--bcher-kva.example"], True),
        ("https://xn--bcher-kva.example/", ["bücher.example"], True),
        ("https://[0:0::1]:8080/", ["[::1]:8080"], True),
        ("https://[::1]/", ["::1"], True),
        ("http://a.b.com/", ["https://a.b.com"], False),
        ("https://a.b.com:8443/", ["a.b.com:443"], False),
    ],
)
def test_is_host_allowed(url, patterns, allowed) -> None:
    assert config.is_host_allowed(url, patterns) is allowed


def test_info_reports_broken_settings_and_exits_0(configure: Configure) -> None:
    configure(MLFLOW_SECRETS_AUTH_ENABLE="vault", VAULT_TOKEN="canary-token", MLFLOW_VAULT_TTL_SEC="x")
    result = command("info")
    assert result.returncode == 0
    assert "config.invalid_value" in result.stdout
    assert "canary-token" not in result.stdout
    facts = json.loads(command("info", "--json").stdout)
    settings = {setting["name"]: setting for setting in facts["settings"]}
    assert settings["VAULT_TOKEN"] == {"name": "VAULT_TOKEN", "value": "set", "source": "variable"}
    assert facts["schema"] == 1
    assert [provider["name"] for provider in facts["providers"]] == [
        "vault",
        "aws-secrets-manager",
        "azure-key-vault",
    ]


def test_doctor_passes_when_all_is_well(vault_like: VaultLike, configure: Configure) -> None:
    vault_like.fields = {"token": "canary-token"}
    configure(vault_like.settings(MLFLOW_TRACKING_AUTH="mlflow_secrets_auth"))
    result = command("doctor")
    assert result.returncode == 0, result.stdout
    assert "pass  header.built" in result.stdout
    assert "Authorization: Bearer <token>" in result.stdout
    assert "canary-token" not in result.stdout + result.stderr


def test_doctor_fails_with_code_and_hint(configure: Configure, vault_like: VaultLike) -> None:
    configure(vault_like.settings(VAULT_ADDR="http://127.0.0.1:9"))
    result = command("doctor", "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    unreachable, failed = [finding for finding in report["findings"] if finding["status"] == "fail"]
    assert unreachable["code"] == "backend.unreachable"
    assert unreachable["facts"]["server"] == "http://127.0.0.1:9"
    assert failed["code"] == "vault.unreachable"
    assert "VAULT_ADDR" in failed["hint"]
    assert {"mlflow.not_used"} == {f["code"] for f in report["findings"] if f["status"] == "warn"}


def test_doctor_asks_the_server(bao: OpenBao, mlflow_server: MlflowServer, configure: Configure) -> None:
    bao.put_secret("doctor/mlflow", username=mlflow_server.user, password=mlflow_server.password)
    configure(
        MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=bao.url,
        VAULT_TOKEN=bao.root_token,
        MLFLOW_VAULT_SECRET_PATH="secret/doctor/mlflow",
        MLFLOW_VAULT_AUTH_MODE="basic",
    )
    good = command("doctor", "--dry-run", mlflow_server.url)
    assert good.returncode == 0, good.stdout
    assert "server.protected" in good.stdout and "server.accepts" in good.stdout
    bao.put_secret("doctor/mlflow", username="nobody", password="wrong")
    bad = command("doctor", "--dry-run", mlflow_server.url)
    assert bad.returncode == 1
    assert "FAIL  server.denied" in bad.stdout


def test_doctor_sends_nothing_to_a_host_that_is_not_allowed(
    vault_like: VaultLike, configure: Configure, loopback
) -> None:
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.example.com"))
    result = command("doctor", "--dry-run", loopback.url)
    assert result.returncode == 1
    assert "host.not_allowed" in result.stdout
    assert loopback.requests == []


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("info", "--help"), ("doctor", "--help")])
def test_help_and_version(arguments) -> None:
    assert command(*arguments).returncode == 0


@pytest.mark.parametrize("arguments", [("dokter",), ("doctor", "--dryrun"), ("info", "extra")])
def test_wrong_usage_exits_2(arguments) -> None:
    assert command(*arguments).returncode == 2
