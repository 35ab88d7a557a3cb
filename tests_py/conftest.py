"""Fixtures: real servers, a clean environment, and an empty cache for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mlflow_secrets_auth
from loopback import Loopback, VaultLike
from servers import MlflowServer, OpenBao

Configure = Callable[..., None]

PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
NETWORK = PROXIES | {"REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"}

pytest_plugins = ["aws_fixtures", "mlflow_secrets_auth.testing", "vault_fixtures"]


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def bao(server_folder: Path) -> Iterator[OpenBao]:
    """A real OpenBao server, shared by all tests: use a path or a mount of your own."""
    with OpenBao(server_folder) as server:
        yield server


class OpenMinded(MlflowServer):
    """Lets experiments keep their artifacts on other http servers, as older MLflow does by itself."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES": "http"}


@pytest.fixture(scope="session")
def mlflow_server(server_folder: Path) -> Iterator[MlflowServer]:
    """A real MLflow server that enforces authentication."""
    with OpenMinded(server_folder) as server:
        yield server


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variable that counts, no tracking server, no ~/.netrc, no ~/.vault-token, nothing cached."""
    if mlflow := sys.modules.get("mlflow"):
        # What a test before this one has set goes before the variable.
        mlflow.set_tracking_uri(None)
    for name in list(os.environ):
        azure_machine = ("IDENTITY_", "IMDS_", "MSI_", "DEFAULT_IDENTITY_")
        ours = ("MLFLOW_", "VAULT_", "BAO_", "AWS_", "AZURE_", *azure_machine)
        if name.startswith(ours) or name.upper() in NETWORK:
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    mlflow_secrets_auth.clear_cache()
    yield
    mlflow_secrets_auth.clear_cache()


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Configure:
    """``configure(NAME=value, ...)`` sets variables; ``None`` unsets one."""

    def apply(settings: dict[str, str] | None = None, /, **more: str | None) -> None:
        for name, value in {**(settings or {}), **more}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return apply


@pytest.fixture
def signed_in(bao: OpenBao, mlflow_server: MlflowServer, configure: Configure) -> MlflowServer:
    """The real MLflow server, and the settings of a user whose credential for it is in OpenBao."""
    import mlflow

    bao.put_secret("signed-in/mlflow", username=mlflow_server.user, password=mlflow_server.password)
    configure(
        MLFLOW_TRACKING_URI=mlflow_server.url,
        MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=bao.url,
        VAULT_TOKEN=bao.root_token,
        MLFLOW_VAULT_SECRET_PATH="secret/signed-in/mlflow",
        MLFLOW_VAULT_AUTH_MODE="basic",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    mlflow.set_tracking_uri(mlflow_server.url)
    return mlflow_server


@pytest.fixture
def vault_like() -> Iterator[VaultLike]:
    """A look-alike of Vault that fails on demand and counts reads."""
    with VaultLike() as server:
        yield server


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    """A server that records what it is asked."""
    with Loopback() as server:
        yield server


@pytest.fixture
def second_loopback() -> Iterator[Loopback]:
    """Another one: another origin."""
    with Loopback() as server:
        yield server


@pytest.fixture
def to_loopback(vault_like: VaultLike, loopback: Loopback, configure: Configure) -> Loopback:
    """MLflow's client with us as its auth provider; the tracking server is a recorder that answers {}."""
    import mlflow

    configure(vault_like.settings(MLFLOW_TRACKING_AUTH="mlflow_secrets_auth", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"))
    mlflow.set_tracking_uri(loopback.url)
    return loopback
