"""A small HTTP server on loopback that records what it is asked and answers as it is told. For tests."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar


@dataclass
class Request:
    """A request as it arrived. Its ``repr`` shows neither headers nor body.

    Attributes:
        method: ``GET``, ``POST`` and so on.
        path: The path with the query.
        headers: The headers; their names are in lower case.
        body: The body.
    """

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


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
Self = TypeVar("Self", bound="Loopback")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are written separately; without this the second waits 40 ms for the client's word.
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self._body())
        assert isinstance(self.server, _Server)
        answer = self.server.answer(request)
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

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, answer: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of many tests."""


class Loopback:
    """Serves ``rule`` on ``http://127.0.0.1:<port>``. Header names in the record are lower case."""

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule: Rule = rule or (lambda request: Answer())
        self.requests: list[Request] = []
        self._server = _Server(self._record_and_answer)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # The same server under another host name is another origin.
        self.other_url = f"http://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def _record_and_answer(self, request: Request) -> Answer:
        self.requests.append(request)
        return self.rule(request)

    def secure(self, context: ssl.SSLContext) -> None:
        """Speaks TLS from now on. For use before the server starts."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.port}"

    def header(self, name: str) -> list[str | None]:
        """The values of one header, request by request."""
        return [request.headers.get(name.lower()) for request in self.requests]

    def __enter__(self: Self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
