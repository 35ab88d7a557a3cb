"""One http server for a stand-in: real TLS, a record of requests, a queue of faults.

`Service` is the base of the servers in `azure_stand_in.py`; it knows nothing about Azure. Needs
`cryptography`.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import sys
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HANG_LIMIT_SEC = 600
FLOOD_BYTES = 1 << 30

FaultKind = Literal["status", "html", "malformed", "hang", "drip", "flood", "close"]


def sign_certificate(
    name: str,
    key: Any,
    issuer: tuple[x509.Name, Any] | None,
    extensions: list[tuple[x509.ExtensionType, bool]],
    valid: tuple[datetime, datetime],
) -> x509.Certificate:
    """Build a certificate; without `issuer` it signs itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_name, issuer_key = issuer or (subject, key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def key_usage(*granted: str) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digital_signature" in granted,
        key_cert_sign="key_cert_sign" in granted,
        crl_sign="crl_sign" in granted,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """A private CA with one leaf for all the names that the servers go by.

    The leaf is a true end-entity certificate: rustls refuses one that says CA:TRUE.
    """

    def __init__(self, folder: Path, host_names: tuple[str, ...]) -> None:
        now = datetime.now(timezone.utc)
        valid = (now - timedelta(hours=1), now + timedelta(days=2))
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = sign_certificate(
            "Stand-in CA",
            self._key,
            None,
            [
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (key_usage("key_cert_sign", "crl_sign"), True),
            ],
            valid,
        )
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        addresses = [ipaddress.ip_address(text) for text in ("127.0.0.1", "::1")]
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in host_names]
        names += [x509.IPAddress(address) for address in addresses]
        leaf = sign_certificate(
            "localhost",
            leaf_key,
            (self.certificate.subject, self._key),
            [
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (key_usage("digital_signature"), True),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
                (x509.SubjectAlternativeName(names), False),
            ],
            valid,
        )
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(certificate_pem(self.certificate))
        self._leaf_file = folder / "leaf.pem"
        self._leaf_file.write_bytes(key_pem(leaf_key) + certificate_pem(leaf))

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._leaf_file)
        return context


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Any, *, pkcs1: bool = False, password: bytes | None = None) -> bytes:
    formats = serialization.PrivateFormat
    shape = formats.TraditionalOpenSSL if pkcs1 else formats.PKCS8
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, shape, encryption)
    return pem


@dataclass
class Request:
    """A request as it came, and what became of it; kept in `Service.requests`."""

    service: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    form: dict[str, str]
    peer_port: int
    """The client's port: two requests with the same one shared a connection."""
    handler: str = "unrouted"
    """What the request was understood as."""
    status: int = 0
    """The answer's status; 0 when there was none."""

    @property
    def host_url(self) -> str:
        """The https origin that the client believes to talk to."""
        return f"https://{self.headers.get('host', '')}"


@dataclass
class Fault:
    """A scripted failure for the next `times` requests."""

    kind: FaultKind
    status: int
    code: str | None
    retry_after: float | None
    interval: float
    times: int
    before_auth: bool


@dataclass
class Answer:
    status: int
    body: Any
    """JSON, or bytes to send as they are."""
    headers: dict[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    """Set when the delivery itself misbehaves."""

    def raw(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body, separators=(",", ":")).encode()


class Refused(Exception):
    """Ends a handler early with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Service:
    """A server with a record of its requests and a queue of faults. Subclasses route and answer."""

    name = "service"
    authenticates = False
    """Whether `handle` itself calls `trip` once it knows the caller."""

    def __init__(self, tls: ssl.SSLContext | None = None, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._lock = threading.RLock()
        self._faults: list[Fault] = []
        self.requests: list[Request] = []
        self.connection_errors: list[str] = []
        """Failures below HTTP, such as a handshake that the client broke off."""
        self.delay = 0.0
        """Seconds to wait before each answer."""
        self.released = threading.Event()
        self._server = _Server(self, tls, address)
        self.port = self._server.server_address[1]
        self.url = f"https://localhost:{self.port}" if tls else f"http://{address[0]}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True, name=self.name)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut open connections, so that pooled ones fail as well."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_connections()
        self._thread.join()

    def reset(self) -> None:
        """Forget requests, faults and delay, and let go of clients that hang."""
        with self._lock:
            self.requests.clear()
            self.connection_errors.clear()
            self._faults.clear()
            self.delay = 0.0
            self.released.set()
            self.released = threading.Event()

    def fail_next(
        self,
        kind: FaultKind = "status",
        *,
        status: int = 503,
        code: str | None = None,
        retry_after: float | None = None,
        interval: float = 0.2,
        times: int = 1,
        before_auth: bool = False,
    ) -> None:
        """Queue a failure.

        `status` answers in the service's own error shape, with `code` in it if given; `html` is a
        proxy's page; `malformed` is JSON that breaks off; `hang` never answers; `drip` sends a byte
        each `interval` seconds; `flood` sends 1 GiB; `close` drops the connection. A service that
        authenticates fails requests that passed, unless `before_auth`.
        """
        fault = Fault(kind, status, code, retry_after, interval, times, before_auth)
        with self._lock:
            self._faults.append(fault)

    def count(self, handler: str | None = None, *, status: int | None = None) -> int:
        """How many requests were understood as `handler` and answered with `status`."""
        with self._lock:
            return sum(
                handler in (None, request.handler) and status in (None, request.status) for request in self.requests
            )

    def answer(self, request: Request) -> Answer:
        """Decide on an answer, and record the request before the client can see it."""
        try:
            self.trip(before_auth=True)
            if not self.authenticates:
                self.trip(before_auth=False)
            answer = self.handle(request)
        except Refused as refused:
            answer = refused.answer
        request.status = 0 if answer.fault else answer.status
        with self._lock:
            self.requests.append(request)
        if self.delay:
            self.released.wait(self.delay)
        return answer

    def handle(self, request: Request) -> Answer:
        """Answer a request that no early fault caught."""
        raise NotImplementedError

    def error(self, status: int, code: str | None) -> Answer:
        """An error of the given status in the service's own shape."""
        raise NotImplementedError

    def trip(self, *, before_auth: bool) -> None:
        """Raise the next fault of this stage, if one is queued."""
        fault = self._take_fault(before_auth)
        if fault is None:
            return
        if fault.kind == "status":
            answer = self.error(fault.status, fault.code)
            if fault.retry_after is not None:
                answer.headers["Retry-After"] = f"{fault.retry_after:g}"
            raise Refused(answer)
        if fault.kind == "html":
            page = b'<!DOCTYPE html>\r\n<html><body><h1>Proxy "gate" says no</h1></body></html>'
            raise Refused(Answer(fault.status, page, {"Content-Type": "text/html"}))
        if fault.kind == "malformed":
            raise Refused(Answer(200, b'{"value": "cut off', {"Content-Type": "application/json"}))
        raise Refused(Answer(200, b" " * 4096, fault=fault))

    def _take_fault(self, before_auth: bool) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.before_auth == before_auth:
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    """Handshakes in the connection's own thread, so that a slow client blocks only itself."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, service: Service, tls: ssl.SSLContext | None, address: tuple[str, int]) -> None:
        self.service = service
        self._tls = tls
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        for connection in list(self._open):
            try:
                # The TLS layer's own shutdown isn't safe while another thread reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue  # the client was faster

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.service.connection_errors.append(repr(sys.exc_info()[1]))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "StandIn"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: requests are recorded, and stdout is for data."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        service = self.server.service
        request = Request(
            service=service.name,
            method=self.command,
            path=url.path,
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            form=dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)),
            peer_port=self.client_address[1],
        )
        answer = service.answer(request)
        if answer.fault:
            self._misbehave(answer, service.released)
        else:
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        raw = answer.raw()
        self._send_head(answer, len(raw))
        self.wfile.write(raw)
        self.wfile.flush()

    def _send_head(self, answer: Answer, length: int) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-cache"}
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _misbehave(self, answer: Answer, released: threading.Event) -> None:
        assert answer.fault
        self.close_connection = True
        if answer.fault.kind == "hang":
            released.wait(HANG_LIMIT_SEC)
        if answer.fault.kind == "drip":
            self._send_head(answer, len(answer.body))
            for position in range(len(answer.body)):
                self.wfile.write(answer.body[position : position + 1])
                self.wfile.flush()
                if released.wait(answer.fault.interval):
                    return
        if answer.fault.kind == "flood":
            self._send_head(answer, FLOOD_BYTES)
            for _ in range(FLOOD_BYTES >> 16):
                self.wfile.write(b" " * 65536)
                if released.is_set():
                    return
