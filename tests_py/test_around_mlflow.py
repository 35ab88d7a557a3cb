"""What docs/mlflow.md says of MLflow's own behaviour, where no other test needs it to be so."""

from __future__ import annotations

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracing.utils.otlp import get_otlp_exporter

from conftest import Configure
from loopback import Answer, Loopback, VaultLike


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_its_retries_replay_the_same_header(
    vault_like: VaultLike, to_loopback: Loopback, configure: Configure, status: int
) -> None:
    """A rotation in the meantime is noticed when they end, by the 401 that is their last answer."""
    configure(MLFLOW_HTTP_REQUEST_MAX_RETRIES="2", MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0")
    answers = [Answer(status), Answer(status), Answer(401), Answer()]

    def rotate() -> None:
        vault_like.fields = {"token": "second"}

    answers[0].before = rotate
    to_loopback.rule = lambda request: answers.pop(0)
    mlflow.search_experiments()
    assert to_loopback.header("Authorization") == ["Bearer first"] * 3 + ["Bearer second"]


def test_an_error_of_ours_is_not_repeated(vault_like: VaultLike, to_loopback: Loopback, configure: Configure) -> None:
    configure(MLFLOW_HTTP_REQUEST_MAX_RETRIES="5")
    vault_like.fields = {"password": "canary"}
    with pytest.raises(MlflowException, match=r"secret\.missing_field: .*\nhint: "):
        mlflow.search_experiments()
    assert vault_like.reads == 1
    assert to_loopback.requests == []


def test_a_provider_that_does_not_exist_is_only_warned_about(
    vault_like: VaultLike, to_loopback: Loopback, configure: Configure
) -> None:
    configure(MLFLOW_TRACKING_AUTH="mlflow_secret_auth")
    with pytest.warns(UserWarning, match="Could not find any registered plugin"):
        mlflow.search_experiments()
    assert to_loopback.header("Authorization") == [None]
    assert vault_like.reads == 0


def test_with_sigv4_it_does_not_ask_us(vault_like: VaultLike, to_loopback: Loopback, configure: Configure) -> None:
    """Its signing needs a package that is not installed here, so that is where it ends."""
    configure(MLFLOW_TRACKING_AWS_SIGV4="true")
    with pytest.raises((ImportError, MlflowException), match="requests_auth_aws_sigv4"):
        mlflow.search_experiments()
    assert vault_like.requests == []


def test_its_default_protocol_for_spans_is_grpc(configure: Configure) -> None:
    """Whether or not the exporter for it is installed."""
    configure(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:4317")
    try:
        exporter = get_otlp_exporter()
    except MlflowException as error:
        assert "gRPC OTLP exporter is not available" in str(error)
    else:
        assert ".grpc." in type(exporter).__module__
