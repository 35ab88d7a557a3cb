"""Servers of the tests: the package's own on loopback, and what stands on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from mlflow_secrets_auth._loopback import Answer, Loopback, Request, Rule

__all__ = ["Answer", "Loopback", "Request", "Rerouted", "Rule", "VaultLike"]


class VaultLike(Loopback):
    """A look-alike of Vault's KV version 2 for tests that need failures on demand.

    ``reads`` counts reads of the secret. Tests of Vault itself use OpenBao.
    """

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.fields: dict[str, Any] = {"token": "first"}
        self.failure: Answer | None = None
        self.lease = 0
        self.before_read: Callable[[], None] | None = None
        self._minting: tuple[str, int] | None = None

    @property
    def reads(self) -> int:
        return sum(request.path.startswith("/v1/secret/data/") for request in self.requests)

    def mint(self, name: str = "token") -> None:
        """From now on every read gives another token: ``<name>-1``, ``<name>-2``, …"""
        self._minting = (name, self.reads)

    def settings(self, **more: str) -> dict[str, str]:
        """The settings that read from here, without any other request than the read."""
        return {
            "MLFLOW_SECRETS_AUTH_ENABLE": "vault",
            "VAULT_ADDR": self.url,
            "VAULT_TOKEN": "vault-token",
            "MLFLOW_VAULT_SECRET_PATH": "secret/mlflow/auth",
            "MLFLOW_VAULT_KV_MOUNT": "secret",
            "MLFLOW_VAULT_KV_VERSION": "2",
            **more,
        }

    def _answer(self, request: Request) -> Answer:
        fields = dict(self.fields)
        if self._minting:
            name, before = self._minting
            fields = {"token": f"{name}-{self.reads - before}"}
        if self.before_read:
            self.before_read()
        if self.failure:
            return self.failure
        envelope = {
            "request_id": "r",
            "lease_id": "",
            "renewable": False,
            "lease_duration": self.lease,
            "warnings": None,
            "wrap_info": None,
            "auth": None,
            "data": {"data": fields, "metadata": {"version": 1}},
        }
        return Answer.json(envelope)


class Rerouted(HTTPAdapter):
    """Sends requests for any host to loopback servers: by ``host[:port]`` as it stands in the URL, else to ``default``.

    So tests can use any name, port and scheme without DNS, certificates or privileges.
    """

    def __init__(self, default: Loopback, by_authority: dict[str, Loopback] | None = None) -> None:
        super().__init__()
        self._default = default
        self._by_authority = by_authority or {}

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        return self.get_connection(request.url)

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """The way of requests before 2.32."""
        server = self._by_authority.get(urlsplit(url).netloc, self._default)
        return self.poolmanager.connection_from_url(server.url)

    def session(self) -> requests.Session:
        """A session that uses this adapter for everything."""
        session = requests.Session()
        session.mount("http://", self)
        session.mount("https://", self)
        return session
