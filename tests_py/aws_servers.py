"""Servers for the AWS tests: moto behind a front that counts and fails on demand, and small stand-ins."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
from moto.server import ThreadedMotoServer

from loopback import Answer, Loopback, Request

REGION = "us-east-1"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/team/mlflow-reader"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTKEY", "AWS_SECRET_ACCESS_KEY": "canary-secret-access-key"}


class Moto(AbstractContextManager["Moto"]):
    """moto's HTTP server."""

    def __enter__(self) -> Moto:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()
        self.url = f"http://{self.host}:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def boto(self, service: str = "secretsmanager", region: str = REGION):
        """boto3's client, the referee: it writes secrets and reads them back."""
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id="referee",
            aws_secret_access_key="referee",
        )


@dataclass
class Call:
    """A request to AWS, in AWS's terms."""

    action: str
    key: str
    region: str
    token: str | None
    form: dict[str, str]
    request: Request


class Front(Loopback):
    """AWS as the provider sees it: answers of the test where there are any, else moto's."""

    def __init__(self, moto: Moto) -> None:
        super().__init__(self._answer)
        self._moto = moto
        self._queues: dict[str, list[Answer]] = {}
        self._always: dict[str, Answer | Callable[[Call], Answer]] = {}

    @property
    def calls(self) -> list[Call]:
        return [call_of(request) for request in self.requests]

    def count(self, action: str) -> int:
        return sum(call.action == action for call in self.calls)

    def last(self, action: str) -> Call:
        return [call for call in self.calls if call.action == action][-1]

    def once(self, action: str, *answers: Answer) -> None:
        """The next calls of ``action`` get these answers."""
        self._queues.setdefault(action, []).extend(answers)

    def always(self, action: str, answer: Answer | Callable[[Call], Answer]) -> None:
        self._always[action] = answer

    def heal(self) -> None:
        self._queues.clear()
        self._always.clear()

    def settings(self, **more: str) -> dict[str, str]:
        """The settings that read through here with static keys, once per fetch."""
        return {
            "MLFLOW_SECRETS_AUTH_ENABLE": "aws-secrets-manager",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_SECRETS_MAX_RETRIES": "0",
            "MLFLOW_AWS_RETRY_MODE": "standard",
            **KEYS,
            **more,
        }

    def _answer(self, request: Request) -> Answer:
        call = call_of(request)
        if queue := self._queues.get(call.action):
            return queue.pop(0)
        fixed = self._always.get(call.action)
        if fixed is not None:
            return fixed(call) if callable(fixed) else fixed
        connection = http.client.HTTPConnection(self._moto.host, self._moto.port)
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        connection.request(request.method, request.path, request.body, headers)
        answer = connection.getresponse()
        kept = {name: value for name, value in answer.getheaders() if name.lower() == "content-type"}
        return Answer(answer.status, kept, answer.read())


class AwsLike(Loopback):
    """A look-alike of Secrets Manager with the handles of ``VaultLike``. Tests of AWS itself use moto."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.fields: dict[str, Any] = {"token": "first"}
        self.failure: Answer | None = None
        self.before_read: Callable[[], None] | None = None

    @property
    def reads(self) -> int:
        return sum(call_of(request).action == "GetSecretValue" for request in self.requests)

    def settings(self, **more: str) -> dict[str, str]:
        """The settings that read from here, without any other request than the read."""
        return {
            "MLFLOW_SECRETS_AUTH_ENABLE": "aws-secrets-manager",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "MLFLOW_AWS_SECRET_NAME": "mlflow/auth",
            "MLFLOW_AWS_RETRY_MODE": "standard",
            **KEYS,
            **more,
        }

    def _answer(self, request: Request) -> Answer:
        fields = dict(self.fields)
        if self.before_read:
            self.before_read()
        return self.failure or Answer.json({"Name": "mlflow/auth", "SecretString": json.dumps(fields)})


def call_of(request: Request) -> Call:
    credential = re.search(r"Credential=([^/]+)/\d+/([^/]+)/", request.headers.get("authorization", ""))
    form = {name: values[0] for name, values in parse_qs(request.body.decode(errors="replace")).items()}
    target = request.headers.get("x-amz-target", "")
    return Call(
        action=target.rpartition(".")[2] or form.get("Action", ""),
        key=credential[1] if credential else "",
        region=credential[2] if credential else "",
        token=request.headers.get("x-amz-security-token"),
        form=form,
        request=request,
    )


def refusal(code: str, message: str = "", status: int = 400, **headers: str) -> Answer:
    """A refusal of Secrets Manager."""
    answer = Answer.json({"__type": code, "message": message}, status)
    answer.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return answer


def sts_refusal(code: str, status: int = 403, message: str = "no", **headers: str) -> Answer:
    """A refusal of STS."""
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
    return Answer(status, {"Content-Type": "text/xml", **headers}, body.encode())


def in_seconds(seconds: float) -> str:
    time = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def sts_credentials(action: str, key: str, lasts: float = 3600) -> Answer:
    body = f"""<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>
        <Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>
        <SessionToken>t</SessionToken><Expiration>{in_seconds(lasts)}</Expiration></Credentials>
        <AssumedRoleUser><AssumedRoleId>i:s</AssumedRoleId>
        <Arn>arn:aws:sts::{ACCOUNT}:assumed-role/r/s</Arn></AssumedRoleUser>
        </{action}Result></{action}Response>"""
    return Answer(200, {"Content-Type": "text/xml"}, body.encode())


def caller_identity(arn: str) -> Answer:
    body = f"""<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
        <GetCallerIdentityResult><Arn>{arn}</Arn><UserId>u</UserId><Account>{ACCOUNT}</Account>
        </GetCallerIdentityResult></GetCallerIdentityResponse>"""
    return Answer(200, {"Content-Type": "text/xml"}, body.encode())


def endpoint_credentials(key: str, lasts: float = 3600) -> dict[str, str]:
    """What the endpoints of EC2, ECS and EKS give."""
    return {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": key,
        "SecretAccessKey": "canary-endpoint-secret",
        "Token": "canary-endpoint-token",
        "Expiration": in_seconds(lasts),
        "LastUpdated": in_seconds(-60),
    }


def metadata_service(request: Request, key: str = "ASIAMETADATA") -> Answer:
    """The EC2 metadata service, version 2."""
    role = "/latest/meta-data/iam/security-credentials/"
    if request.method == "PUT" and request.path == "/latest/api/token":
        seconds = request.headers["x-aws-ec2-metadata-token-ttl-seconds"]
        return Answer(200, {"x-aws-ec2-metadata-token-ttl-seconds": seconds}, b"metadata-token")
    if request.headers.get("x-aws-ec2-metadata-token") != "metadata-token":
        return Answer(401)
    if request.path == role:
        return Answer(200, {}, b"instance-role")
    if request.path == f"{role}instance-role":
        return Answer.json(endpoint_credentials(key))
    return Answer(404)


class Hanging(AbstractContextManager["Hanging"]):
    """Accepts connections, and never says anything. ``heard`` is what came in, connection by connection."""

    def __enter__(self) -> Hanging:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.heard: list[bytes] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: socket.socket) -> None:
        try:
            self.heard.append(connection.recv(65536))
        except OSError:
            return

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for connection in self._open:
            connection.close()


class Proxy(Hanging):
    """Refuses to connect anywhere, and remembers where it was asked to."""

    def _listen(self, connection: socket.socket) -> None:
        super()._listen(connection)
        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()

    @property
    def hosts(self) -> list[str]:
        return [heard.split(b" ")[1].decode() for heard in self.heard if heard.startswith(b"CONNECT ")]


class TlsFront(Front):
    """The front behind a certificate for ``localhost`` that a CA of its own signs."""

    def __init__(self, moto: Moto, folder: Path) -> None:
        super().__init__(moto)
        self.ca = folder / "ca.pem"
        leaf, key = folder / "leaf.pem", folder / "leaf.key"
        make_certificates(self.ca, leaf, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self.port}"


def make_certificates(ca: Path, leaf: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]

    def builder(subject: str, public_key) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("test CA"))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    authority = builder("test CA", keys[0].public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = (
        builder("localhost", keys[1].public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    pem = serialization.Encoding.PEM
    ca.write_bytes(authority.sign(keys[0], hashes.SHA256()).public_bytes(pem))
    leaf.write_bytes(server.sign(keys[0], hashes.SHA256()).public_bytes(pem))
    key.write_bytes(keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def json_of(request: Request) -> dict[str, str]:
    return json.loads(request.body)
