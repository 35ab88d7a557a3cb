"""Cache and refresh: R1-R3, R7, R9-R11 and R13, as programs with threads, ``requests`` and MLflow meet them.

What is about time alone has its tests in ``tests/cache.rs``, with a clock that stands still.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import mlflow
import pytest
import requests

from conftest import Configure
from loopback import Answer, Loopback, Request, VaultLike
from mlflow_secrets_auth import (
    SecretFetchError,
    SecretsAuth,
    SecretsAuthError,
    cache_info,
    clear_cache,
    headers_for,
    refresh,
)
from mlflow_secrets_auth.testing import SecretsBackend
from servers import free_port

URL = "https://mlflow.example.com/api"
FIRST = {"Authorization": "Bearer first"}
SECOND = {"Authorization": "Bearer second"}
THREADS = 64
# A good answer with a secret that is none.
ENVELOPE = {
    "request_id": "r",
    "lease_id": "",
    "renewable": False,
    "lease_duration": 0,
    "data": {"data": {"wrong": "field"}, "metadata": {"version": 2}},
}


@pytest.fixture
def use(configure: Configure, vault_like: VaultLike) -> Callable[..., None]:
    """Settings that read from ``vault_like``, once per fetch."""

    def apply(**more: str) -> None:
        configure({**vault_like.settings(), "MLFLOW_SECRETS_MAX_RETRIES": "0", **more})

    return apply


def herd(ask: Callable[[], Any]) -> list[Any]:
    """What 64 threads get that ask at the same time; an error counts as an answer."""
    start = threading.Barrier(THREADS)

    def asked(_: int) -> Any:
        start.wait()
        try:
            return ask()
        except SecretsAuthError as error:
            return error.code

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(asked, range(THREADS)))


def code_of(ask: Callable[[], Any]) -> str:
    with pytest.raises(SecretsAuthError) as caught:
        ask()
    return caught.value.code


def accepting(*tokens: str, otherwise: int = 401) -> Callable[[Request], Answer]:
    """A server that knows these bearer tokens."""
    known = {f"Bearer {token}" for token in tokens}
    return lambda request: Answer(200 if request.headers.get("authorization") in known else otherwise)


# R1


def test_r1_a_cold_herd_costs_one_read(use: Any, vault_like: VaultLike) -> None:
    """R1: 64 threads without a credential cost one read."""
    use()
    vault_like.before_read = lambda: time.sleep(0.1)
    assert herd(lambda: headers_for(URL)) == [FIRST] * THREADS
    assert vault_like.reads == 1


def test_r1_a_herd_at_expiry_costs_one_read(secrets_backend: SecretsBackend) -> None:
    """R1: 64 threads whose credential has just expired cost one read."""
    first = headers_for(URL)
    token = secrets_backend.rotate()
    secrets_backend.advance(300)
    assert first != {"Authorization": f"Bearer {token}"}
    assert herd(lambda: headers_for(URL)) == [{"Authorization": f"Bearer {token}"}] * THREADS
    assert secrets_backend.fetches == 2


def test_r1_a_herd_after_a_401_costs_one_read(use: Any, vault_like: VaultLike, loopback: Loopback) -> None:
    """R1, R6: 64 requests that are answered with 401 cost one read, and all succeed with what it brought."""
    use()
    assert headers_for(URL) == FIRST
    vault_like.fields = {"token": "second"}
    loopback.rule = accepting("second")
    answers = herd(lambda: requests.get(loopback.url, auth=SecretsAuth(), timeout=30).status_code)
    assert answers == [200] * THREADS
    assert vault_like.reads == 2


def test_r1_a_herd_shares_the_failure(use: Any, vault_like: VaultLike) -> None:
    """R1: when the one read fails, that is everybody's answer."""
    use()
    vault_like.failure = Answer.json({"errors": []}, 500)
    vault_like.before_read = lambda: time.sleep(0.1)
    failures = cache_info().failures
    assert herd(lambda: headers_for(URL)) == ["vault.unavailable"] * THREADS
    assert vault_like.reads == 1
    assert cache_info().failures == failures + 1


def test_r1_an_interrupted_leader_hands_over(use: Any, vault_like: VaultLike) -> None:
    """R1: Ctrl-C ends the leader's fetch; one of the waiting threads makes its own, and all of them get that."""
    use()
    first = iter([True])
    release = threading.Event()
    vault_like.before_read = lambda: next(first, False) and release.wait(30)
    with ThreadPoolExecutor(8) as pool:
        waiting: list[Any] = []

        def others() -> None:
            until(lambda: vault_like.reads == 1)
            waiting.extend(pool.submit(headers_for, URL) for _ in range(8))
            until(lambda: cache_info().misses == misses + 9)
            os.kill(os.getpid(), signal.SIGINT)

        misses = cache_info().misses
        helper = threading.Thread(target=others)
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            headers_for(URL)
        helper.join()
        assert [future.result(timeout=10) for future in waiting] == [FIRST] * 8
    release.set()
    assert vault_like.reads == 2


# R2


def test_r2_requests_never_wait_at_expiry(use: Any, vault_like: VaultLike) -> None:
    """R2: while requests go on, credentials are renewed behind them: over two TTLs no request waits for the slow
    backend."""
    use(MLFLOW_VAULT_TTL_SEC="3")
    assert headers_for(URL) == FIRST
    vault_like.before_read = lambda: time.sleep(0.2)
    misses = cache_info().misses
    end = time.monotonic() + 6.5
    while time.monotonic() < end:
        assert headers_for(URL) == FIRST
        time.sleep(0.001)
    assert cache_info().misses == misses, "a request had to wait for a fetch"
    assert 3 <= vault_like.reads <= 4


# R3


class Tracking:
    """As much of a tracking server as the calls below need; it knows some bearer tokens, and counts what it refuses.

    (MLflow's own server answers three calls a second here, which is too few to meet every rotation.)
    """

    def __init__(self, front: Loopback) -> None:
        self.known: set[str] = set()
        self.refused = 0
        experiment = {"experiment_id": "0", "name": "Default", "lifecycle_stage": "active"}

        def answer(request: Request) -> Answer:
            if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.known:
                self.refused += 1
                return Answer(401)
            return Answer.json({"experiment": experiment})

        front.rule = answer


@pytest.mark.parametrize("order", ["backend first", "server first"])
def test_r3_no_mlflow_call_fails_while_tokens_rotate(
    configure: Configure, vault_like: VaultLike, loopback: Loopback, order: str
) -> None:
    """R3: calls of the real MLflow client on four threads. With the new token in the backend before the server
    refuses the old one, and a rotation every half second, none fails; nor where the server switches first and the
    backend follows 1.2 s later."""
    server = Tracking(loopback)
    server.known = {"t0"}
    vault_like.fields = {"token": "t0"}
    configure(
        {**vault_like.settings(), "MLFLOW_TRACKING_AUTH": "mlflow_secrets_auth"},
        MLFLOW_TRACKING_URI=loopback.url,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    client = mlflow.MlflowClient(loopback.url)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(loopback.url)
    stop = threading.Event()

    def work(_: int) -> tuple[int, list[str]]:
        done, failures = 0, []
        while not stop.is_set():
            try:
                assert client.get_experiment("0").name == "Default"
                done += 1
                time.sleep(0.005)
            except Exception as error:
                failures.append(str(error))
        return done, failures

    try:
        with ThreadPoolExecutor(4) as pool:
            results = [pool.submit(work, number) for number in range(4)]
            if order == "backend first":
                for number in range(1, 11):
                    server.known = {f"t{number - 1}", f"t{number}"}
                    vault_like.fields = {"token": f"t{number}"}
                    time.sleep(0.25)
                    server.known = {f"t{number}"}
                    time.sleep(0.25)
            else:
                for number in range(1, 3):
                    server.known = {f"t{number}"}
                    time.sleep(1.2)
                    vault_like.fields = {"token": f"t{number}"}
                    time.sleep(1.3)
            stop.set()
            outcomes = [result.result(timeout=30) for result in results]
    finally:
        mlflow.set_tracking_uri(previous)
    assert [failure for _, failures in outcomes for failure in failures] == []
    assert sum(done for done, _ in outcomes) > 100
    rotations = 10 if order == "backend first" else 2
    assert server.refused >= rotations, "a rotation passed unnoticed: nothing was proved"


# R7


@pytest.mark.parametrize(
    ("status", "minted", "reads", "sent"),
    [(403, False, 2, 1000), (403, True, 2, 1001), (401, True, 2, 1001), (401, False, 4, 1000)],
)
def test_r7_a_thousand_denied_requests(
    use: Any,
    vault_like: VaultLike,
    loopback: Loopback,
    status: int,
    minted: bool,
    reads: int,
    sent: int,
) -> None:
    """R7: 1,000 requests that are denied for good cost the first read and one more, also where every read mints a new
    secret.

    The one exception is in the contract: a credential that the backend still returns unchanged after a 401 is read
    again 0.5 s and 1.5 s later, by the same flight, because the server may have switched before the backend. So that
    flight has three reads instead of one; the other 999 requests have none. (This takes 1.5 s; the next read would
    come 5 s later.)"""
    use()
    numbers = iter(range(10**6))
    if minted:
        vault_like.before_read = lambda: vault_like.fields.update(token=f"minted-{next(numbers)}")
    loopback.rule = lambda request: Answer(status)
    with requests.Session() as session:
        session.auth = SecretsAuth()
        answers = [session.get(loopback.url, timeout=30).status_code for _ in range(1000)]
    assert answers == [status] * 1000
    assert vault_like.reads == reads
    assert len(loopback.requests) == sent


# R9


def test_r9_the_stale_credential_while_the_backend_is_down(
    configure: Configure, secrets_backend: SecretsBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """R9: with the backend down, requests go on with the old credential, its age goes on, and one WARNING is logged;
    beyond the limit they fail with one ERROR (S4), and at once, without asking again, within the fail-fast window."""
    configure(MLFLOW_SECRETS_MAX_RETRIES="0", MLFLOW_SECRETS_STALE_IF_ERROR_SEC="600")
    good = headers_for(URL)
    secrets_backend.fail("vault.sealed")
    secrets_backend.advance(300)
    with caplog.at_level(logging.INFO, "mlflow_secrets_auth"):
        assert [headers_for(URL) for _ in range(100)] == [good] * 100
        assert secrets_backend.fetches == 2
        (entry,) = cache_info().entries
        assert entry.stale and entry.age == 300
        secrets_backend.advance(599.9)
        assert headers_for(URL) == good
        secrets_backend.advance(0.1)
        codes = {code_of(lambda: headers_for(URL)) for _ in range(100)}
    assert codes == {"vault.sealed"}
    assert secrets_backend.fetches == 3, "the last two reads are 0.1 s apart: within the window"
    levels = [record.levelname for record in caplog.records]
    assert sorted(levels) == ["ERROR", "WARNING"], caplog.text


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer.json({"errors": ["permission denied"]}, 403), "vault.token_refused"),
        (Answer.json({"errors": []}, 404), "vault.not_found"),
        (Answer.json({"data": {"data": None, "metadata": {}}}, 404), "vault.secret_deleted"),
        (Answer.json(ENVELOPE), "secret.missing_field"),
    ],
)
def test_r9_never_stale_when_the_backend_answered(use: Any, vault_like: VaultLike, answer: Answer, code: str) -> None:
    """R9: refused, not found, deleted, malformed: the backend's answer counts, and keeps counting when it is down
    later."""
    use(MLFLOW_VAULT_TTL_SEC="1")
    assert headers_for(URL) == FIRST
    vault_like.failure = answer
    vault_like.rule = lambda request: answer
    time.sleep(1)
    assert code_of(lambda: headers_for(URL)) == code
    vault_like.rule = lambda request: Answer.json({"errors": []}, 500)
    time.sleep(1)
    assert code_of(lambda: headers_for(URL)) == "vault.unavailable"


def test_r9_never_stale_after_a_401(secrets_backend: SecretsBackend, loopback: Loopback) -> None:
    """R9: a credential that the server rejected is not used past its TTL, also when nothing better can be had."""
    headers_for(URL)
    loopback.rule = accepting("another")
    secrets_backend.fail("vault.unavailable")
    assert requests.get(loopback.url, auth=SecretsAuth(), timeout=30).status_code == 401
    secrets_backend.advance(300)
    assert code_of(lambda: requests.get(loopback.url, auth=SecretsAuth(), timeout=30)) == "vault.unavailable"
    assert len(loopback.requests) == 1


# R10


@contextmanager
def backend(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that takes every connection and behaves badly in a thread of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        threads: list[threading.Thread] = []

        def talk(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(65536)
                    behave(connection)
                except OSError:
                    pass  # The client has had enough.

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                threads.append(threading.Thread(target=talk, args=(connection,), daemon=True))
                threads[-1].start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def hangs(connection: socket.socket) -> None:
    connection.recv(1)


def drips(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def drips_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def hangs_up(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("behave", "code"),
    [
        (hangs, "fetch.timeout"),
        (drips, "fetch.timeout"),
        (drips_headers, "fetch.timeout"),
        (hangs_up, "vault.unreachable"),
        (None, "vault.unreachable"),
    ],
)
def test_r10_a_fetch_ends_in_time(use: Any, behave: Callable[[socket.socket], None] | None, code: str) -> None:
    """R10: a backend that hangs, drips bytes, hangs up or refuses: the fetch ends within a deadline of 1 s (here:
    five), and so do the 63 threads that wait for it, with its error."""
    with backend(behave or hangs_up) as url:
        address = url if behave else f"http://127.0.0.1:{free_port()}"
        use(VAULT_ADDR=address, MLFLOW_SECRETS_TIMEOUT_SEC="1", MLFLOW_SECRETS_MAX_RETRIES="10")
        start = time.monotonic()
        assert herd(lambda: headers_for(URL)) == [code] * THREADS
        assert time.monotonic() - start < 5


def test_r10_a_gigabyte_is_not_read(use: Any) -> None:
    """R10: of an answer of 1 GiB only the first piece is read, and that ends the fetch."""
    sent = 0

    def pours(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        while sent < 1 << 30:
            sent += connection.send(b" " * 65536)

    with backend(pours) as url:
        use(VAULT_ADDR=url)
        assert code_of(lambda: headers_for(URL)) == "vault.unexpected_answer"
        assert sent < 64 << 20


# R11


@pytest.mark.parametrize("status", [408, 412, 429, 472, 500, 502, 503, 504])
def test_r11_what_may_pass_is_tried_again(use: Any, vault_like: VaultLike, status: int) -> None:
    """R11: two failures that may pass, then success: one request of the user's."""
    use(MLFLOW_SECRETS_MAX_RETRIES="2")
    vault_like.failure = Answer.json({"errors": []}, status)

    def recover() -> None:
        if vault_like.reads == 3:
            vault_like.failure = None

    vault_like.before_read = recover
    assert headers_for(URL) == FIRST
    assert vault_like.reads == 3


@pytest.mark.parametrize("status", [400, 404, 405, 301])
def test_r11_what_will_not_pass_is_asked_once(use: Any, vault_like: VaultLike, status: int) -> None:
    """R11: an answer that will not change is not asked for again."""
    use(MLFLOW_SECRETS_MAX_RETRIES="5")
    vault_like.failure = Answer.json({"errors": []}, status)
    code_of(lambda: headers_for(URL))
    assert vault_like.reads == 1


def test_r11_retry_after_is_honoured(use: Any, vault_like: VaultLike) -> None:
    """R11: a backend that asks for a second gets it; one that asks for more than the deadline has left gets no second
    request."""
    use(MLFLOW_SECRETS_MAX_RETRIES="1")
    asked: list[float] = []

    def throttle() -> None:
        asked.append(time.monotonic())
        later = Answer(429, {"Retry-After": "1", "Content-Type": "application/json"}, b'{"errors": []}')
        vault_like.failure = later if len(asked) == 1 else None

    vault_like.before_read = throttle
    assert headers_for(URL) == FIRST
    assert len(asked) == 2 and asked[1] - asked[0] >= 0.95

    clear_cache()
    vault_like.before_read = None
    vault_like.failure = Answer(429, {"Retry-After": "3600"}, b'{"errors": []}')
    assert code_of(lambda: headers_for(URL)) == "vault.throttled"
    assert vault_like.reads == 3


# R4, R12, R13


def test_r4_a_token_that_seems_expired_is_used_and_does_not_spin(
    use: Any, vault_like: VaultLike, loopback: Loopback
) -> None:
    """R4: our clock is ten minutes fast, so every token seems to have ended. Requests succeed, and reads stay few."""
    use()
    vault_like.fields = {"token": "first", "expires_at": time.time() - 600}
    loopback.rule = accepting("first")
    with requests.Session() as session:
        session.auth = SecretsAuth()
        start = time.monotonic()
        answers = [session.get(loopback.url, timeout=30).status_code for _ in range(200)]
        seconds = time.monotonic() - start
    assert answers == [200] * 200
    assert vault_like.reads <= 2 + seconds / 0.7, "such a token is kept for a second, less jitter and renewal ahead"


def test_r13_refresh_passes_every_cache(use: Any, vault_like: VaultLike) -> None:
    """R13: ``refresh()`` reads although the credential is fresh, and although the backend failed a moment ago."""
    use()
    assert headers_for(URL) == FIRST
    vault_like.fields = {"token": "second"}
    assert headers_for(URL) == FIRST
    refresh()
    assert headers_for(URL) == SECOND
    vault_like.failure = Answer.json({"errors": []}, 500)
    for _ in range(2):
        with pytest.raises(SecretFetchError):
            refresh()
    assert vault_like.reads == 4
    vault_like.failure = None
    refresh()
    assert vault_like.reads == 5


def test_r13_cache_info_tells_what_happened(configure: Configure, secrets_backend: SecretsBackend) -> None:
    """R13: hits, misses, refreshes, failures; and of each credential its source, age and end, and a fingerprint."""
    configure(MLFLOW_VAULT_TTL_SEC="1000", MLFLOW_SECRETS_MAX_RETRIES="0")
    before = cache_info()
    assert before.entries == ()
    for _ in range(5):
        headers_for(URL)
    refresh()
    secrets_backend.fail("vault.unavailable")
    with pytest.raises(SecretFetchError):
        refresh()
    after = cache_info()
    counts = [
        now - then
        for now, then in zip(
            (after.hits, after.misses, after.refreshes, after.failures),
            (before.hits, before.misses, before.refreshes, before.failures),
            strict=True,
        )
    ]
    assert counts == [4, 1, 2, 1]
    secrets_backend.advance(10)
    (entry,) = cache_info().entries
    assert (entry.provider, entry.stale, entry.age, entry.expires_in) == ("vault", False, 10, 990)
    secrets_backend.recover()
    refresh()
    assert cache_info().entries[0].fingerprint == entry.fingerprint, "the same credential"
    secrets_backend.put(token="second")
    refresh()
    assert cache_info().entries[0].fingerprint != entry.fingerprint
    assert "second" not in repr(cache_info())


def test_r13_clear_cache_forgets_denials_and_failures(secrets_backend: SecretsBackend, loopback: Loopback) -> None:
    """R13: after ``clear_cache()`` a denied credential is read again at once, and so is a backend that has just
    failed."""
    loopback.rule = lambda request: Answer(403)
    assert requests.get(loopback.url, auth=SecretsAuth(), timeout=30).status_code == 403
    assert secrets_backend.fetches == 2
    clear_cache()
    assert cache_info().entries == ()
    secrets_backend.fail("vault.not_found")
    assert code_of(lambda: headers_for(URL)) == "vault.not_found"
    clear_cache()
    secrets_backend.recover()
    headers_for(URL)
    assert secrets_backend.fetches == 4


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
