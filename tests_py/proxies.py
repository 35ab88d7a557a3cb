"""A proxy for TLS, so that tests can use any host name without DNS or privileges."""

from __future__ import annotations

import contextlib
import email.parser
import selectors
import socket
import threading
from contextlib import AbstractContextManager
from socketserver import StreamRequestHandler, ThreadingTCPServer


class Proxy(AbstractContextManager["Proxy"]):
    """A CONNECT proxy that leads hosts by their suffix to ports of this machine, and records what it is asked.

    ``asked`` is the targets, ``authorization`` what came along for the proxy itself.
    """

    def __init__(self, ports: dict[str, int]) -> None:
        self.asked: list[str] = []
        self.authorization: list[str | None] = []
        outer = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                method, target, _ = self.rfile.readline().decode().split(" ", 2)
                head = b""
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    head += line
                headers = email.parser.BytesParser().parsebytes(head)
                outer.authorization.append(headers["Proxy-Authorization"])
                outer.asked.append(target if method == "CONNECT" else f"{method} {target}")
                host = target.rpartition(":")[0]
                port = next((port for suffix, port in ports.items() if host.endswith(suffix)), None)
                if method != "CONNECT" or port is None:
                    self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                    return
                with socket.create_connection(("127.0.0.1", port)) as peer:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    _splice(self.connection, peer)

        class Server(ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _splice(one: socket.socket, other: socket.socket) -> None:
    with selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in selector.select():
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)
