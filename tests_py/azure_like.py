"""Entra ID and a key vault with one secret, for the conformance suite: made to fail on demand, and counting reads."""

from __future__ import annotations

import json
import ssl
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from azure_stand_in import HOST_NAMES, VAULT_RESOURCE, Entra, Vault
from azure_stand_in_server import Answer as RawAnswer
from azure_stand_in_server import Authority, Request
from loopback import Answer


class AzureLike(AbstractContextManager["AzureLike"]):
    """What `VaultLike` is for Vault. Signing in is as in the stand-in."""

    def __init__(self, host_names: tuple[str, ...] = HOST_NAMES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="azure-like-")
        authority = Authority(Path(self._folder.name), host_names)
        self._ca_file = str(authority.ca_file)
        tls = authority.server_context()
        self._entra = Entra(tls, VAULT_RESOURCE)
        self._vault = _Vault(tls, self._entra, self)
        self._app = self._entra.register_client("client-secret")
        self.fields: dict[str, Any] = {"token": "first"}
        self.failure: Answer | None = None
        self.before_read: Callable[[], None] | None = None

    @property
    def reads(self) -> int:
        return self._vault.count("read")

    def settings(self, **more: str) -> dict[str, str]:
        return {
            "MLFLOW_SECRETS_AUTH_ENABLE": "azure-key-vault",
            "MLFLOW_AZURE_KEY_VAULT_URL": self._vault.url,
            "MLFLOW_AZURE_SECRET_NAME": "mlflow-auth",
            "MLFLOW_AZURE_VERIFY_CHALLENGE": "false",
            "AZURE_AUTHORITY_HOST": self._entra.url,
            "AZURE_TENANT_ID": self._app.tenant,
            "AZURE_CLIENT_ID": self._app.client_id,
            "AZURE_CLIENT_SECRET": "client-secret",
            "SSL_CERT_FILE": self._ca_file,
            "REQUESTS_CA_BUNDLE": self._ca_file,
            **more,
        }

    def __enter__(self) -> AzureLike:
        self._entra.start()
        self._vault.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._vault.stop()
        self._entra.stop()
        self._folder.cleanup()


class _Vault(Vault):
    """Answers as its owner says, once the token is checked."""

    def __init__(self, tls: ssl.SSLContext, entra: Entra, owner: AzureLike) -> None:
        super().__init__(tls, entra)
        self._owner = owner

    def handle(self, request: Request) -> RawAnswer:
        self._authenticate(request)
        request.handler = "read"
        # What is stored counts at the moment when the request comes.
        value, failure = json.dumps(self._owner.fields), self._owner.failure
        if self._owner.before_read:
            self._owner.before_read()
        if failure:
            return RawAnswer(failure.status, failure.body, dict(failure.headers))
        return RawAnswer(
            200, {"value": value, "id": f"{self.url}/secrets/mlflow-auth/1", "attributes": {"enabled": True}}
        )
