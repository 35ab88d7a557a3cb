"""The main job: an MLflow client, a protected MLflow server, and the credential from OpenBao. Nothing is mocked."""

from __future__ import annotations

import secrets

import mlflow
import pytest

from conftest import Configure
from mlflow_secrets_auth import cache_info
from servers import MlflowServer, OpenBao

PATH = "end-to-end/mlflow"


@pytest.fixture
def tracking(bao: OpenBao, mlflow_server: MlflowServer, configure: Configure) -> MlflowServer:
    """The settings of a user whose credential is in OpenBao."""
    bao.put_secret(PATH, username=mlflow_server.user, password=mlflow_server.password)
    configure(
        MLFLOW_TRACKING_URI=mlflow_server.url,
        MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=bao.url,
        VAULT_TOKEN=bao.root_token,
        MLFLOW_VAULT_SECRET_PATH=f"secret/{PATH}",
        MLFLOW_VAULT_AUTH_MODE="basic",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    mlflow.set_tracking_uri(mlflow_server.url)
    return mlflow_server


def log_a_run() -> str:
    with mlflow.start_run() as run:
        mlflow.log_param("p", "1")
        mlflow.log_metric("m", 0.5)
        mlflow.log_text("text", "notes.txt")
    return str(run.info.run_id)


def test_a_run_with_params_metrics_and_an_artifact(tracking: MlflowServer) -> None:
    before = cache_info()
    run_id = log_a_run()
    stored = mlflow.get_run(run_id)
    assert stored.data.params == {"p": "1"}
    assert stored.data.metrics == {"m": 0.5}
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/notes.txt") == "text"
    assert cache_info().refreshes - before.refreshes == 1


def test_without_the_plugin_the_server_refuses(tracking: MlflowServer, configure: Configure) -> None:
    configure(MLFLOW_TRACKING_AUTH=None)
    with pytest.raises(mlflow.MlflowException, match="401"):
        log_a_run()


def test_a_rotation_in_the_middle_of_a_run(tracking: MlflowServer, bao: OpenBao) -> None:
    with mlflow.start_run() as run:
        mlflow.log_metric("m", 1, step=0)
        password = secrets.token_urlsafe()
        tracking.change_password(password)
        bao.put_secret(PATH, username=tracking.user, password=password)
        mlflow.log_metric("m", 2, step=1)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "m")
    assert [metric.value for metric in history] == [1, 2]


def test_what_mlflow_shows_of_our_error(tracking: MlflowServer, configure: Configure) -> None:
    configure(MLFLOW_VAULT_SECRET_PATH="secret/nothing/here", MLFLOW_SECRETS_MAX_RETRIES="0")
    with pytest.raises(mlflow.MlflowException) as caught:
        mlflow.search_experiments()
    assert "vault.not_found" in str(caught.value)
    assert "hint: check MLFLOW_VAULT_SECRET_PATH" in str(caught.value)
