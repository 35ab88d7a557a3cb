"""A small HTTP server on loopback that records what it is asked and answers as the test says."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter


@dataclass
class Request:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What the server says. ``before`` runs first, in the connection's thread."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    before: Callable[[], None] | None = None

    @classmethod
    def json(cls, document: Any, status: int = 200) -> Answer:
        return cls(status, {"Content-Type": "application/json"}, json.dumps(document).encode())

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Answer:
        return cls(status, {"Location": location}, b"")


Rule = Callable[[Request], Answer]


class Loopback(AbstractContextManager["Loopback"]):
    """Serves ``rule`` on ``http://127.0.0.1:<port>``. Header names in the record are lower case."""

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule: Rule = rule or (lambda request: Answer())
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are written separately; without this the second waits 40 ms for the client's word.
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                request = Request(
                    self.command,
                    self.path,
                    {name.lower(): value for name, value in self.headers.items()},
                    self._body(),
                )
                outer.requests.append(request)
                answer = outer.rule(request)
                if answer.before:
                    answer.before()
                if "Date" in answer.headers:
                    self.send_response_only(answer.status)
                else:
                    self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().strip(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is part of many tests."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # The same server under another host name is another origin.
        self.other_url = f"http://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def secure(self, context: ssl.SSLContext) -> None:
        """Speaks TLS from now on. For use before the server starts."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.port}"

    def header(self, name: str) -> list[str | None]:
        """The values of one header, request by request."""
        return [request.headers.get(name.lower()) for request in self.requests]

    def __enter__(self) -> Loopback:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


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
