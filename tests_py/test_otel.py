"""Spans that OpenTelemetry's real exporter sends carry the credential, also after a rotation."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from conftest import Configure
from loopback import Answer, Loopback, Request, VaultLike


@pytest.fixture
def settings(vault_like: VaultLike, configure: Configure, loopback: Loopback) -> None:
    configure(
        vault_like.settings(
            OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER="mlflow_secrets_auth",
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{loopback.url}/v1/traces",
            MLFLOW_SECRETS_ALLOWED_HOSTS="127.0.0.1",
        )
    )


def export_a_span() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    provider.get_tracer("test").start_span("span").end()
    provider.shutdown()


def test_spans_carry_the_credential_across_a_rotation(
    settings: None, vault_like: VaultLike, loopback: Loopback
) -> None:
    accepted = ["Bearer first"]

    def rule(request: Request) -> Answer:
        return Answer(200 if request.headers.get("authorization") in accepted else 401, body=b"")

    loopback.rule = rule
    export_a_span()
    accepted[0] = "Bearer second"
    vault_like.fields = {"token": "second"}
    export_a_span()
    assert loopback.header("Authorization") == ["Bearer first", "Bearer first", "Bearer second"]
    first, again = loopback.requests[1].body, loopback.requests[2].body
    assert first == again != b""
    assert vault_like.reads == 2


def test_spans_for_an_endpoint_that_is_not_allowed_carry_nothing(
    settings: None, vault_like: VaultLike, loopback: Loopback, configure: Configure
) -> None:
    configure(MLFLOW_SECRETS_ALLOWED_HOSTS=None, MLFLOW_TRACKING_URI="https://mlflow.example.com")
    export_a_span()
    assert loopback.header("Authorization") == [None]
    assert vault_like.reads == 0
