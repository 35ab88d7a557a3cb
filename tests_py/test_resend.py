"""The resend after 401 and 403, as users of requests see it: R6 and R8 of the promises."""

from __future__ import annotations

import datetime
import io
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from requests.adapters import BaseAdapter

from conftest import Configure
from loopback import Answer, Loopback, Request, Rerouted, Rule, VaultLike
from mlflow_secrets_auth import SecretsAuth, clear_cache, headers_for

OLD, NEW = "Bearer old", "Bearer new"
DENIALS = [401, 403]


@pytest.fixture
def rotated(vault_like: VaultLike, configure: Configure) -> VaultLike:
    """The process holds the token "old", and the backend has "new"."""
    configure(vault_like.settings())
    vault_like.fields = {"token": "old"}
    assert headers_for("https://mlflow.example.com/") == {"Authorization": OLD}
    vault_like.fields = {"token": "new"}
    return vault_like


def refusing_the_old(status: int = 401, then: Answer | None = None, **headers: str) -> Rule:
    """A server that has switched to the new token."""
    return lambda request: Answer(status, headers) if request.headers.get("authorization") == OLD else then or Answer()


# R6: what is rejected, and how often it is sent


@pytest.mark.parametrize("status", DENIALS)
def test_r6_a_rotation_is_survived(rotated: VaultLike, loopback: Loopback, status: int) -> None:
    """R6: one refetch, one resend; the next request uses the new credential at once."""
    loopback.rule = refusing_the_old(status)
    for _ in range(3):
        assert requests.get(loopback.url, auth=SecretsAuth()).status_code == 200
    assert loopback.header("Authorization") == [OLD, NEW, NEW, NEW]
    assert rotated.reads == 2


def test_r6_many_threads_cost_one_read(rotated: VaultLike, loopback: Loopback) -> None:
    """R6: one thread refetches, the rest reuse."""
    barrier = threading.Barrier(16)

    def refuse(request: Request) -> Answer:
        if request.headers["authorization"] == OLD:
            return Answer(401, before=lambda: barrier.wait(30) and None)
        return Answer()

    loopback.rule = refuse
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(requests.get(loopback.url, auth=SecretsAuth()).status_code))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 16
    assert len(loopback.requests) == 32
    assert rotated.reads == 2


@pytest.mark.parametrize("status", DENIALS)
def test_r6_only_once_and_the_answer_is_the_servers(
    vault_like: VaultLike, loopback: Loopback, configure: Configure, status: int
) -> None:
    """R6: where every read gives another credential, one request still is two at most."""
    configure(vault_like.settings())
    vault_like.mint()
    loopback.rule = lambda _: Answer(status, body=b"no")
    answer = requests.get(loopback.url, auth=SecretsAuth())
    assert (answer.status_code, answer.content) == (status, b"no")
    assert loopback.header("Authorization") == ["Bearer token-1", "Bearer token-2"]


@pytest.mark.parametrize("status", DENIALS)
def test_r7_denied_for_good(vault_like: VaultLike, loopback: Loopback, configure: Configure, status: int) -> None:
    """R7: the denial of the resend is remembered, so that minted secrets do not become a stream of reads."""
    configure(vault_like.settings())
    vault_like.mint()
    loopback.rule = lambda _: Answer(status)
    for _ in range(100):
        assert requests.get(loopback.url, auth=SecretsAuth()).status_code == status
    assert vault_like.reads == 2
    assert len(loopback.requests) == 101


@pytest.mark.parametrize("status", DENIALS)
def test_r6_only_with_a_different_credential(
    vault_like: VaultLike, loopback: Loopback, configure: Configure, status: int
) -> None:
    """R6: a credential that the backend still has is not sent again."""
    configure(vault_like.settings())
    loopback.rule = lambda _: Answer(status)
    assert requests.get(loopback.url, auth=SecretsAuth()).status_code == status
    assert len(loopback.requests) == 1


@pytest.mark.parametrize("status", DENIALS)
def test_r6_only_where_our_header_was_on(rotated: VaultLike, loopback: Loopback, status: int) -> None:
    """R6: the denial of a request that never carried ours (its host is not allowed) is no rejection."""
    loopback.rule = lambda _: Answer(status)
    requests.get(loopback.url, auth=SecretsAuth(settings=rotated.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="x.com")))
    assert loopback.header("Authorization") == [None]
    assert rotated.reads == 1


# R6: 401, resend, redirect


def test_r6_resend_then_redirect_at_home(rotated: VaultLike, loopback: Loopback) -> None:
    """R6: the next hop is built from the original request; it carries the new credential."""
    loopback.rule = lambda request: (
        Answer.redirect("/next", 307)
        if request.path == "/" and request.headers["authorization"] == NEW
        else refusing_the_old()(request)
    )
    answer = requests.post(loopback.url, data=b"body", auth=SecretsAuth())
    assert answer.status_code == 200
    assert [(r.path, r.headers["authorization"], r.body) for r in loopback.requests] == [
        ("/", OLD, b"body"),
        ("/", NEW, b"body"),
        ("/next", NEW, b"body"),
    ]


def test_r6_redirect_at_home_then_401(rotated: VaultLike, loopback: Loopback) -> None:
    """R6: the hook survives the redirect and takes care of the hop that is refused."""
    loopback.rule = lambda request: Answer.redirect("/next") if request.path == "/" else refusing_the_old()(request)
    assert requests.get(loopback.url, auth=SecretsAuth()).status_code == 200
    assert [(r.path, r.headers["authorization"]) for r in loopback.requests] == [
        ("/", OLD),
        ("/next", OLD),
        ("/next", NEW),
    ]


def test_r6_a_second_rotation_in_the_middle_of_a_redirect(rotated: VaultLike, loopback: Loopback) -> None:
    """R6: what the second hop refuses is the credential of the resend, not the first one again."""

    def rule(request: Request) -> Answer:
        credential = request.headers["authorization"]
        if request.path == "/":
            return Answer(401) if credential == OLD else Answer.redirect("/next")
        if credential == NEW:
            rotated.fields = {"token": "newest"}
            return Answer(401)
        return Answer()

    loopback.rule = rule
    assert requests.get(loopback.url, auth=SecretsAuth()).status_code == 200
    assert loopback.header("Authorization") == [OLD, NEW, NEW, "Bearer newest"]
    assert rotated.reads == 3


def test_r6_resend_then_redirect_to_another_origin(
    rotated: VaultLike, loopback: Loopback, second_loopback: Loopback
) -> None:
    """R6, H2: nothing goes along, and the 401 over there changes nothing here."""
    loopback.rule = refusing_the_old(then=Answer.redirect(second_loopback.url))
    second_loopback.rule = lambda _: Answer(401)
    assert requests.get(loopback.url, auth=SecretsAuth()).status_code == 401
    assert loopback.header("Authorization") == [OLD, NEW]
    assert second_loopback.header("Authorization") == [None]
    assert headers_for(loopback.url) == {"Authorization": NEW}
    assert rotated.reads == 2


# R8: what the resend keeps


def test_r8_timeout(rotated: VaultLike, loopback: Loopback) -> None:
    """R8: a server that hangs at the second attempt is left after the caller's timeout."""
    end = threading.Event()
    loopback.rule = lambda request: (
        Answer(401) if request.headers["authorization"] == OLD else Answer(before=lambda: end.wait(60) and None)
    )
    try:
        with pytest.raises(requests.ReadTimeout):
            requests.get(loopback.url, auth=SecretsAuth(), timeout=0.3)
    finally:
        end.set()
    assert len(loopback.requests) == 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.fixture
def secured(certificate: tuple[Path, Path]) -> Iterator[Loopback]:
    """A server that speaks TLS, and asks its clients for the certificate too."""
    server = Loopback()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.load_verify_locations(certificate[0])
    context.verify_mode = ssl.CERT_REQUIRED
    server.secure(context)
    with server:
        yield server


def test_r8_verify_and_cert(rotated: VaultLike, secured: Loopback, certificate: tuple[Path, Path]) -> None:
    """R8: the resend trusts what the caller trusts, and shows the caller's certificate: on a connection of its own."""
    secured.rule = refusing_the_old(Connection="close")
    files = [str(path) for path in certificate]
    answer = requests.get(secured.url, auth=SecretsAuth(), verify=files[0], cert=(files[0], files[1]))
    assert answer.status_code == 200
    assert secured.header("Authorization") == [OLD, NEW]


def test_r8_proxies(rotated: VaultLike, loopback: Loopback, configure: Configure) -> None:
    """R8: both attempts go to the caller's proxy."""
    configure(MLFLOW_SECRETS_ALLOW_HTTP="true", NO_PROXY="")
    loopback.rule = refusing_the_old()
    proxies = {"http": loopback.url}
    assert requests.get("http://mlflow.example.com/x", auth=SecretsAuth(), proxies=proxies).status_code == 200
    assert [r.path for r in loopback.requests] == ["http://mlflow.example.com/x"] * 2


@pytest.mark.parametrize("stream", [True, False])
def test_r8_stream(rotated: VaultLike, loopback: Loopback, stream: bool) -> None:
    """R8: a streamed answer is still to be read, another one is there."""
    loopback.rule = refusing_the_old(then=Answer(body=b"x" * 100_000))
    with requests.get(loopback.url, auth=SecretsAuth(), stream=stream) as answer:
        assert (answer.raw.tell() < 100_000) is stream
        assert len(answer.content) == 100_000
    assert len(loopback.requests) == 2


def test_r8_adapter(rotated: VaultLike, loopback: Loopback) -> None:
    """R8: the adapter that the caller mounted sends both; nobody else could reach this name."""
    loopback.rule = refusing_the_old()
    assert Rerouted(loopback).session().get("https://no.such.name.example/", auth=SecretsAuth()).status_code == 200
    assert len(loopback.requests) == 2


def test_r8_history_and_request(rotated: VaultLike, loopback: Loopback) -> None:
    """R8: as with requests' own digest authentication, the refused answer is in the history."""
    loopback.rule = refusing_the_old(403)
    answer = requests.get(loopback.url, auth=SecretsAuth())
    assert [r.status_code for r in answer.history] == [403]
    assert answer.request.headers["Authorization"] == NEW


def test_r8_cookies_of_the_refusal(rotated: VaultLike, loopback: Loopback) -> None:
    """R8: a session cookie that comes with the 401 goes along, and stays in the session."""
    loopback.rule = refusing_the_old(**{"Set-Cookie": "affinity=a"})
    session = requests.Session()
    session.get(loopback.url, auth=SecretsAuth())
    session.get(loopback.url, auth=SecretsAuth())
    assert loopback.header("Cookie") == [None, "affinity=a", "affinity=a"]


def test_r8_hooks_of_the_caller_see_the_final_answer(rotated: VaultLike, loopback: Loopback) -> None:
    """R8: a hook that comes after ours is called once, with the answer to the resend."""
    loopback.rule = refusing_the_old()
    seen: list[int] = []
    hooks = {"response": lambda answer, **_: seen.append(answer.status_code)}
    requests.get(loopback.url, auth=SecretsAuth(), hooks=hooks)
    assert seen == [200]


# R8: bodies


def bytes_from_the_middle() -> io.BytesIO:
    stream = io.BytesIO(b"0123456789")
    stream.seek(4)
    return stream


REPEATABLE: dict[str, Callable[[], dict[str, Any]]] = {
    "none": lambda: {},
    "bytes": lambda: {"data": b"body"},
    "text": lambda: {"data": "bödy".encode()},
    "str": lambda: {"data": "body"},
    "form": lambda: {"data": {"a": "1"}},
    "json": lambda: {"json": {"a": 1}},
    "multipart": lambda: {"files": {"f": ("name", io.BytesIO(b"content"))}},
    "file-like": lambda: {"data": io.BytesIO(b"0123456789")},
    "file-like-from-the-middle": lambda: {"data": bytes_from_the_middle()},
    "file": lambda: {"data": Path(__file__).open("rb")},  # noqa: SIM115
}


@pytest.mark.parametrize("status", DENIALS)
@pytest.mark.parametrize("kind", REPEATABLE)
def test_r8_a_body_that_can_be_sent_again(rotated: VaultLike, loopback: Loopback, kind: str, status: int) -> None:
    """R8: the second body is the first, from where it began."""
    loopback.rule = refusing_the_old(status)
    assert requests.put(loopback.url, auth=SecretsAuth(), **REPEATABLE[kind]()).status_code == 200
    first, second = loopback.requests
    assert second.body == first.body
    assert bool(first.body) is (kind != "none")
    assert second.headers.get("content-length") == first.headers.get("content-length")


class Unseekable(io.BytesIO):
    """Tells where it is, and can't go back: like a pipe behind a wrapper."""

    def seek(self, *_: Any) -> int:
        raise OSError("not seekable")


class Peculiar(io.BytesIO):
    """Measures well, and once it was read fails in a way that nobody expects."""

    was_read = False

    def read(self, *arguments: Any) -> bytes:
        self.was_read = True
        return super().read(*arguments)

    def seek(self, *arguments: Any) -> int:
        if self.was_read:
            raise TypeError("seek() takes no arguments")
        return super().seek(*arguments)


class Untold:
    """A file-like object without `tell`: requests does not know where it began. It seeks anywhere, without a word."""

    def __init__(self) -> None:
        self._stream = io.BytesIO(b"0123456789")
        self.read = self._stream.read

    def seek(self, *_: Any) -> int:
        return 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)


UNREPEATABLE: dict[str, Callable[[], Any]] = {
    "generator": lambda: (part for part in (b"01234", b"56789")),
    "unseekable": lambda: Unseekable(b"0123456789"),
    "peculiar": lambda: Peculiar(b"0123456789"),
    "untold": Untold,
}


@pytest.mark.parametrize("status", DENIALS)
@pytest.mark.parametrize("kind", UNREPEATABLE)
def test_r8_a_body_that_can_not_be_sent_again(rotated: VaultLike, loopback: Loopback, kind: str, status: int) -> None:
    """R8: then the answer is returned as it is, never after half a body; the next request has the new credential."""
    loopback.rule = refusing_the_old(status)
    body = UNREPEATABLE[kind]()
    answer = requests.put(loopback.url, auth=SecretsAuth(), data=body)
    assert answer.status_code == status
    assert [r.body for r in loopback.requests] == [b"0123456789"]
    assert requests.put(loopback.url, auth=SecretsAuth()).status_code == 200
    assert len(loopback.requests) == 2


class Bare(BaseAdapter):
    """An adapter that leaves no mark on its answers, as some test doubles do."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def send(self, request: Any, **_: Any) -> requests.Response:
        self.sent += 1
        response = requests.Response()
        response.status_code, response.url, response.request = 401, request.url, request
        response.raw = io.BytesIO()
        return response

    def close(self) -> None:
        """Nothing is open."""


def test_r8_without_an_adapter(rotated: VaultLike) -> None:
    """R8: an answer that does not tell its adapter is returned as it is."""
    adapter = Bare()
    session = requests.Session()
    session.mount("https://", adapter)
    assert session.get("https://mlflow.example.com/", auth=SecretsAuth()).status_code == 401
    assert adapter.sent == 1


def test_r8_the_caller_may_send_the_request_again(rotated: VaultLike, loopback: Loopback) -> None:
    """R8: a prepared request that was resent is left with the new credential, and works on."""
    loopback.rule = refusing_the_old()
    session = requests.Session()
    request = session.prepare_request(requests.Request("GET", loopback.url, auth=SecretsAuth()))
    for _ in range(2):
        assert session.send(request).status_code == 200
    assert loopback.header("Authorization") == [OLD, NEW, NEW]


def test_r6_the_same_credential_under_a_new_generation_is_not_sent_again(
    vault_like: VaultLike, loopback: Loopback, configure: Configure
) -> None:
    """R6: after `clear_cache()` the unchanged credential counts as new; a request with it is still not repeated."""
    configure(vault_like.settings())
    auth = SecretsAuth()
    loopback.rule = lambda request: Answer(403, before=clear_cache)
    assert requests.get(loopback.url, auth=auth, timeout=10).status_code == 403
    assert len(loopback.requests) == 1
