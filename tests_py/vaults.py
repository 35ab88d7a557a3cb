"""What the tests of the Vault provider need beside OpenBao: roles, tokens, certificates, and the servers around it."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import socketserver
import ssl
import tempfile
import threading
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from loopback import Answer, Loopback, Request, Rule
from mlflow_secrets_auth import SecretsAuthError, headers_for
from servers import OpenBao, Server, clean_environment, free_port, script

URL = "https://mlflow.example.com/api"


def failure(url: str = URL) -> SecretsAuthError:
    """The error of a fetch that must fail."""
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(url)
    text = str(caught.value)
    assert text.startswith(f"{caught.value.code}: ")
    assert "\nhint: " in text
    return caught.value


def read_policy(path: str) -> str:
    """A policy that permits reading the secret ``path`` below ``secret/``, and nothing else."""
    return f'path "secret/data/{path}" {{ capabilities = ["read"] }}'


def new_policy(bao: OpenBao, rules: str, prefix: str = "") -> str:
    """A policy with these rules; its name. ``prefix`` is a namespace, as in ``team-a/``."""
    name = f"policy-{uuid.uuid4().hex}"
    bao.api("PUT", f"{prefix}sys/policies/acl/{name}", {"policy": rules})
    return name


def limited_token(bao: OpenBao, rules: str, **options: Any) -> str:
    """A token that may do only what these rules say."""
    return bao.new_token(new_policy(bao, rules), **options)


def enable_auth(bao: OpenBao, kind: str, mount: str | None = None, prefix: str = "") -> str:
    """Mounts a login method, at a place of its own unless one is given; its mount."""
    mount = mount or f"{kind}-{uuid.uuid4().hex}"
    if f"{mount}/" not in bao.api("GET", f"{prefix}sys/auth")["data"]:
        bao.api("POST", f"{prefix}sys/auth/{mount}", {"type": kind})
    return mount


def enable_approle(bao: OpenBao, mount: str, rules: str, prefix: str = "", **options: Any) -> dict[str, str]:
    """A role with this policy; the settings that log in with it."""
    name, role_id = new_role(bao, mount, rules, prefix, **options)
    secret_id = bao.api("POST", f"{prefix}auth/{mount}/role/{name}/secret-id", {})["data"]["secret_id"]
    return {"VAULT_ROLE_ID": role_id, "VAULT_SECRET_ID": secret_id}


def new_role(bao: OpenBao, mount: str, rules: str, prefix: str = "", **options: Any) -> tuple[str, str]:
    """The name and the id of a new AppRole with this policy."""
    enable_auth(bao, "approle", mount, prefix)
    policies = [new_policy(bao, rules, prefix)] if rules else []
    name = f"role-{uuid.uuid4().hex}"
    bao.api("POST", f"{prefix}auth/{mount}/role/{name}", {"token_policies": policies, "token_ttl": "10m", **options})
    return name, bao.api("GET", f"{prefix}auth/{mount}/role/{name}/role-id")["data"]["role_id"]


def tokens_of(bao: OpenBao, role_id: str) -> int:
    """How many living tokens the AppRole of this id, at ``auth/approle``, was given."""
    count = 0
    for accessor in bao.api("LIST", "auth/token/accessors")["data"]["keys"]:
        data = bao.api("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        if data["path"] == "auth/approle/login" and not data.get("namespace_path"):
            name = data["meta"]["role_name"]
            count += bao.api("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"] == role_id
    return count


class Signer:
    """A key that signs tokens, as an identity provider does."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def public_pem(self) -> str:
        """The key that verifies them."""
        public = self._key.public_key()
        return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()

    def token(self, life: float = 300, **claims: Any) -> str:
        """A signed token with these claims, good for ``life`` seconds."""
        now = int(time.time())
        claims = {"iat": now, "nbf": now, "exp": now + int(life), **claims}
        parts = [_encode(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
        signature = self._key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
        return ".".join([*parts, _encode(signature)])


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Kubernetes(Loopback):
    """The part of a Kubernetes API server that Vault asks: is this token good, and whose is it?"""

    def __init__(self) -> None:
        super().__init__(self._review)
        self.good: dict[str, tuple[str, str]] = {}

    def service_account(self, signer: Signer, name: str, namespace: str = "default", **claims: Any) -> str:
        """The token of a pod's service account."""
        account = {"name": name, "uid": f"uid-of-{name}"}
        token = signer.token(
            iss="https://kubernetes.default.svc.cluster.local",
            sub=f"system:serviceaccount:{namespace}:{name}",
            **{"kubernetes.io": {"namespace": namespace, "serviceaccount": account}},
            **claims,
        )
        self.good[token] = namespace, name
        return token

    def _review(self, request: Request) -> Answer:
        spec = json.loads(request.body)["spec"]
        namespace, name = self.good.get(spec["token"], ("", ""))
        user = {
            "username": f"system:serviceaccount:{namespace}:{name}",
            "uid": f"uid-of-{name}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"],
        }
        status: dict[str, Any] = {"authenticated": False}
        if name:
            status = {"authenticated": True, "user": user, "audiences": spec.get("audiences", [])}
        return Answer.json({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status}, 201)


class TlsBao(OpenBao):
    """OpenBao with two more listeners: TLS for ``vault.internal``, and one that insists on a client certificate."""

    NAME = "vault.internal"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder / f"tls-{self.port}"
        self.folder.mkdir()
        self.ca = trustme.CA()
        self.ca_file = self._write("ca.pem", self.ca.cert_pem.bytes())
        self.tls_url = f"https://127.0.0.1:{free_port()}"
        self.mutual_url = f"https://127.0.0.1:{free_port()}"
        server = self.ca.issue_cert(self.NAME)
        pem = self._write("server.pem", server.private_key_and_cert_chain_pem.bytes())
        self._config = self.folder / "listeners.hcl"
        self._config.write_text(_listener(self.tls_url, pem) + _listener(self.mutual_url, pem, self.ca_file))

    def client_certificate(self, common_name: str) -> dict[str, str]:
        """The settings that show the server a certificate with this name."""
        issued = self.ca.issue_cert(f"{common_name}.clients", common_name=common_name)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return {
            "VAULT_CLIENT_CERT": self._write(f"{common_name}.pem", chain),
            "VAULT_CLIENT_KEY": self._write(f"{common_name}.key", issued.private_key_pem.bytes()),
        }

    def command(self) -> list[str]:
        return [*super().command(), f"-config={self._config}"]

    def _write(self, name: str, data: bytes) -> str:
        file = self.folder / name
        file.write_bytes(data)
        return str(file)


def _listener(url: str, pem: str, client_ca: str | None = None) -> str:
    lines = [f'address = "{url.removeprefix("https://")}"', f'tls_cert_file = "{pem}"', f'tls_key_file = "{pem}"']
    if client_ca:
        lines += ["tls_require_and_verify_client_cert = true", f'tls_client_ca_file = "{client_ca}"']
    return 'listener "tcp" {\n  ' + "\n  ".join(lines) + "\n}\n"


class TlsLoopback(Loopback):
    """The recording server behind TLS, for the host name ``vault.internal`` and the address 127.0.0.1."""

    def __init__(self, ca: trustme.CA, rule: Rule | None = None) -> None:
        super().__init__(rule)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(TlsBao.NAME, "127.0.0.1").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.port}"


class SealableBao(OpenBao):
    """An OpenBao server of its own, to be sealed and unsealed."""

    def seal(self) -> None:
        """Nothing can be read from here on."""
        self.api("PUT", "sys/seal")

    def unseal(self) -> None:
        """With the key that the development server wrote into its log."""
        key = re.search(r"Unseal Key: (\S+)", self.log.read_text())
        assert key
        self.api("PUT", "sys/unseal", {"key": key[1]})


class BaoProxy(Server):
    """OpenBao's own proxy, which logs in by AppRole and insists on ``X-Vault-Request``, on TCP and on a unix socket."""

    def __init__(self, folder: Path, bao: OpenBao, role: dict[str, str]) -> None:
        super().__init__(folder)
        # A socket's path may not be longer than about a hundred characters.
        self.folder = Path(tempfile.mkdtemp(prefix="bao-proxy-"))
        self.socket = self.folder / "socket"
        files = []
        for name, value in role.items():
            files.append(self.folder / name)
            files[-1].write_text(value)
        self._config = self.folder / "proxy.hcl"
        self._config.write_text(f"""
            vault {{ address = "{bao.url}" }}
            auto_auth {{ method "approle" {{ config = {{
                role_id_file_path = "{files[0]}"
                secret_id_file_path = "{files[1]}"
                remove_secret_id_file_after_reading = false
            }} }} }}
            api_proxy {{ use_auto_auth_token = true }}
            listener "tcp" {{
                address = "127.0.0.1:{self.port}"
                tls_disable = true
                require_request_header = true
            }}
            listener "unix" {{
                address = "{self.socket}"
                tls_disable = true
                require_request_header = true
            }}
        """)

    def command(self) -> list[str]:
        return [script("bao"), "proxy", f"-config={self._config}"]

    def environment(self) -> dict[str, str]:
        return clean_environment()

    def ready_path(self) -> str:
        # Only answered once the proxy has logged in.
        return "/v1/auth/token/lookup-self"

    def ready_headers(self) -> dict[str, str]:
        return {"X-Vault-Request": "true"}

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class FakeRedis(AbstractContextManager["FakeRedis"]):
    """A Redis that agrees to everything, so that OpenBao's database engine can lease users of it."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while line := self.rfile.readline():
                    words = []
                    for _ in range(int(line[1:])):
                        size = int(self.rfile.readline()[1:])
                        words.append(self.rfile.read(size + 2)[:-2].decode())
                    outer.commands.append(words)
                    name = words[0].upper()
                    reply = {"HELLO": "-ERR unknown command", "PING": "+PONG"}.get(name, "+OK")
                    if words[:2] == ["ACL", "DELUSER"]:
                        reply = ":1"
                    self.wfile.write(f"{reply}\r\n".encode())

        class Quiet(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is not news."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FakeRedis:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def passed_on(bao: OpenBao) -> Rule:
    """Answers as ``bao`` does, whichever host the request is for, so that a test sees what is asked."""

    def rule(request: Request) -> Answer:
        path = request.path
        if path.startswith("http://"):
            path = "/" + path.split("/", 3)[3]
        upstream = http.client.HTTPConnection("127.0.0.1", bao.port, timeout=10)
        upstream.request(request.method, path, request.body, {**request.headers, "connection": "close"})
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        return Answer(answer.status, {"Content-Type": "application/json"}, body)

    return rule
