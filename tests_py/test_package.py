"""The package as Python sees it: imports, exceptions, config helpers."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import mlflow_secrets_auth
from conftest import Configure
from mlflow_secrets_auth import config


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


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
