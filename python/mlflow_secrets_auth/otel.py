"""Traces: the same credential for OpenTelemetry's OTLP exporter over http/protobuf.

OpenTelemetry finds :func:`traces_session` through the entry point ``opentelemetry_otlp_credential_provider`` when
``OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER=mlflow_secrets_auth`` is set. The exporter over grpc, which
is MLflow's default protocol there, has no such seam: set ``OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf``.
"""

from __future__ import annotations

import requests

from mlflow_secrets_auth.auth import MlflowAuth


def traces_session() -> requests.Session:
    """A session that carries the credential to origins that are allowed.

    Without an allowlist these are MLflow's tracking and registry servers: an OTLP endpoint elsewhere has to be named in
    ``MLFLOW_SECRETS_ALLOWED_HOSTS``.
    """
    session = requests.Session()
    session.auth = MlflowAuth()
    return session
