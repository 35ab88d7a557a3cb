"""The way to Vault: TLS, proxies, redirects, and a server that can't answer now."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from loopback import Answer, Loopback, Request
from mlflow_secrets_auth import headers_for, refresh
from proxies import Proxy
from vaults import URL, SealableBao, TlsBao, TlsLoopback, enable_approle, failure, passed_on, read_policy

ABC = {"Authorization": "Bearer abc"}

# TLS


@pytest.fixture(scope="module")
def tls_bao(server_folder: Path) -> Iterator[TlsBao]:
    with TlsBao(server_folder) as server:
        yield server


@pytest.fixture
def use_tls(tls_bao: TlsBao, use_vault, path):
    """Settings that read a secret over TLS, with the right CA and name."""

    def apply(**more: str | None) -> None:
        right = {
            "VAULT_ADDR": tls_bao.tls_url,
            "VAULT_TOKEN": tls_bao.root_token,
            "VAULT_CACERT": tls_bao.ca_file,
            "VAULT_TLS_SERVER_NAME": TlsBao.NAME,
        }
        use_vault(**{**right, **more})

    tls_bao.put_secret(path, token="abc")
    return apply


def test_the_ca_file_and_the_name_in_the_certificate(use_tls) -> None:
    use_tls()
    assert headers_for(URL) == ABC


def test_a_ca_that_is_not_trusted(use_tls) -> None:
    use_tls(VAULT_CACERT=None)
    error = failure()
    assert error.code == "vault.tls"
    assert "signed by a CA that is not trusted here" in error.message
    assert "VAULT_CACERT" in error.hint


def test_another_name_in_the_certificate(use_tls) -> None:
    use_tls(VAULT_TLS_SERVER_NAME=None)
    error = failure()
    assert error.code == "vault.tls"
    assert "for another name" in error.message
    assert "VAULT_TLS_SERVER_NAME" in error.hint


def test_a_directory_of_ca_files(use_tls, tls_bao, tmp_path) -> None:
    folder = tmp_path / "cas"
    folder.mkdir()
    (folder / "README").write_text("not a certificate")
    trustme.CA().cert_pem.write_to_path(str(folder / "other.pem"))
    use_tls(VAULT_CACERT=None, VAULT_CAPATH=str(folder))
    assert failure().code == "vault.tls"
    tls_bao.ca.cert_pem.write_to_path(str(folder / "right.pem"))
    use_tls(VAULT_CACERT=None, VAULT_CAPATH=str(folder), MLFLOW_VAULT_TTL_SEC="100")
    assert headers_for(URL) == ABC
    # The file comes before the directory.
    use_tls(VAULT_CACERT=str(folder / "other.pem"), VAULT_CAPATH=str(folder))
    assert failure().code == "vault.tls"


@pytest.mark.parametrize("variable", ["VAULT_CACERT", "VAULT_CAPATH", "VAULT_CLIENT_CERT"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_without_certificates(use_tls, tmp_path, variable, content) -> None:
    file = tmp_path / "bad.pem"
    if content:
        file.write_text(content)
    key = {"VAULT_CLIENT_KEY": str(file)} if variable == "VAULT_CLIENT_CERT" else {"VAULT_CACERT": None}
    use_tls(**{**key, variable: str(file)})
    error = failure()
    assert error.code == "config.file"
    assert variable in error.message and str(file) in error.message


def test_verification_can_be_turned_off_and_that_is_said(use_tls, caplog) -> None:
    use_tls(VAULT_CACERT=None, VAULT_TLS_SERVER_NAME=None, VAULT_SKIP_VERIFY="true")
    assert headers_for(URL) == ABC
    assert [r for r in caplog.records if r.levelno == logging.WARNING and "VAULT_SKIP_VERIFY" in r.getMessage()]


@pytest.mark.parametrize("value", ["tru", "2", "t", "verify"])
def test_an_unknown_word_does_not_turn_it_off(use_tls, value) -> None:
    use_tls(VAULT_CACERT=None, VAULT_SKIP_VERIFY=value)
    error = failure()
    assert error.code == "config.invalid_value"
    assert "VAULT_SKIP_VERIFY" in error.message


def test_a_listener_that_wants_our_certificate(use_tls, tls_bao) -> None:
    use_tls(VAULT_ADDR=tls_bao.mutual_url)
    error = failure()
    assert error.code == "vault.tls"
    assert "VAULT_CLIENT_CERT" in error.hint
    use_tls(VAULT_ADDR=tls_bao.mutual_url, **tls_bao.client_certificate("reader"))
    assert headers_for(URL) == ABC


def test_certificates_that_are_rotated_on_disk(use_tls, tls_bao, tmp_path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    use_tls(VAULT_CACERT=str(file))
    assert failure().code == "vault.tls"
    tls_bao.ca.cert_pem.write_to_path(str(file))
    os.utime(file, (time.time() + 5, time.time() + 5))
    refresh()


@pytest.mark.parametrize("name", ["https://vault.internal", "vault.internal:8200", "a b", "user@vault"])
def test_a_server_name_that_is_none(use_tls, name) -> None:
    use_tls(VAULT_TLS_SERVER_NAME=name)
    assert failure().code == "config.invalid_value"


def test_the_server_name_is_for_tls_alone(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    ca = trustme.CA()
    with TlsLoopback(ca, passed_on(bao)) as server, ca.cert_pem.tempfile() as ca_file:
        use_vault(VAULT_ADDR=server.url, VAULT_CACERT=ca_file, VAULT_TLS_SERVER_NAME=TlsBao.NAME)
        assert headers_for(URL) == ABC
        assert server.header("Host") == [f"127.0.0.1:{server.port}"] * 2


# Proxies and time


def test_an_http_proxy_and_its_exceptions(bao, use_vault, path, loopback, monkeypatch, caplog) -> None:
    bao.put_secret(path, token="abc")
    loopback.rule = passed_on(bao)
    monkeypatch.setenv("HTTP_PROXY", loopback.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    use_vault(VAULT_ADDR="http://vault.invalid:8200")
    assert headers_for(URL) == ABC
    assert loopback.requests[-1].path == f"http://vault.invalid:8200/v1/secret/data/{path}"
    assert [r for r in caplog.records if r.levelno == logging.WARNING and "VAULT_ADDR is plain http" in r.getMessage()]
    loopback.requests.clear()
    monkeypatch.setenv("NO_PROXY", "vault.invalid")
    use_vault(VAULT_ADDR="http://vault.invalid:8200", MLFLOW_VAULT_TTL_SEC="100")
    assert failure().code == "vault.unreachable"
    # Loopback never goes through a proxy.
    use_vault(MLFLOW_VAULT_TTL_SEC="100")
    assert headers_for(URL) == ABC
    assert loopback.requests == []


def test_tls_through_a_proxy(use_tls, tls_bao, monkeypatch) -> None:
    port = tls_bao.tls_url.rsplit(":", 1)[1]
    with Proxy({"": int(port)}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        use_tls(VAULT_ADDR=f"https://{TlsBao.NAME}:{port}", VAULT_TLS_SERVER_NAME=None)
        assert headers_for(URL) == ABC
        assert proxy.asked == [f"{TlsBao.NAME}:{port}"]


@pytest.mark.parametrize("timeout", ["0.2", "0.2s", "200ms"])
def test_a_request_that_takes_too_long(use_vault, loopback: Loopback, timeout) -> None:
    gate = threading.Event()
    loopback.rule = lambda _: Answer(before=lambda: gate.wait(5) and None)
    use_vault(VAULT_ADDR=loopback.url, VAULT_CLIENT_TIMEOUT=timeout)
    started = time.monotonic()
    error = failure()
    gate.set()
    assert error.code == "vault.unreachable"
    assert "timed out" in error.message
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "5h"])
def test_a_timeout_that_is_none(use_vault, timeout) -> None:
    use_vault(VAULT_CLIENT_TIMEOUT=timeout)
    assert failure().code == "config.invalid_value"


# Redirects


def to(url: str, status: int = 307):
    """Sends every request to the same path of another server."""
    return lambda request: Answer.redirect(url + request.path, status)


def test_a_standby_sends_us_to_the_active_node(bao, use_vault, path, loopback, second_loopback) -> None:
    bao.put_secret(path, token="abc")
    loopback.rule = to(second_loopback.url)
    second_loopback.rule = passed_on(bao)
    use_vault(VAULT_ADDR=loopback.url, VAULT_TOKEN=None, **enable_approle(bao, "approle", read_policy(path)))
    assert headers_for(URL) == ABC
    paths = ["/v1/auth/approle/login", f"/v1/sys/internal/ui/mounts/secret/{path}", f"/v1/secret/data/{path}"]
    assert [r.path for r in loopback.requests] == paths
    assert [r.path for r in second_loopback.requests] == paths
    assert b"secret_id" in second_loopback.requests[0].body


def test_a_redirect_beyond_the_rules_is_not_followed(use_vault, loopback: Loopback, second_loopback: Loopback) -> None:
    beyond = {
        "another host": to(second_loopback.other_url),
        "another status": to(second_loopback.url, 302),
        "permanent": to(second_loopback.url, 308),
        "another path": lambda _: Answer.redirect(second_loopback.url + "/v1/secret/data/other", 307),
        "no path of the API": lambda _: Answer.redirect(second_loopback.url + "/login", 307),
        "no URL": lambda _: Answer.redirect("/v1/elsewhere", 307),
        "user in it": lambda r: Answer.redirect(second_loopback.url.replace("//", "//u@") + r.path, 307),
    }
    for number, (what, rule) in enumerate(beyond.items()):
        loopback.rule = rule
        use_vault(VAULT_ADDR=loopback.url, MLFLOW_VAULT_TTL_SEC=str(100 + number))
        error = failure()
        assert error.code == "vault.redirected", what
        assert "VAULT_ADDR" in error.hint
        assert second_loopback.requests == [], what


def test_only_one_redirect(use_vault, loopback: Loopback) -> None:
    loopback.rule = to(loopback.url)
    use_vault(VAULT_ADDR=loopback.url)
    assert failure().code == "vault.redirected"
    assert len(loopback.requests) == 2


def test_no_redirect_from_https_to_http(use_vault, loopback: Loopback) -> None:
    ca = trustme.CA()
    with TlsLoopback(ca, to(loopback.url)) as server, ca.cert_pem.tempfile() as ca_file:
        use_vault(VAULT_ADDR=server.url, VAULT_CACERT=ca_file)
        assert failure().code == "vault.redirected"
        assert len(server.requests) == 1
    assert loopback.requests == []


# Servers that can't answer now


def test_a_sealed_server_is_waited_for(server_folder, use_vault, path) -> None:
    with SealableBao(server_folder) as server:
        server.put_secret(path, token="abc")
        use_vault(VAULT_ADDR=server.url, VAULT_TOKEN=server.root_token)
        server.seal()
        error = failure()
        assert error.code == "vault.sealed"
        assert "unseal" in error.hint
        use_vault(VAULT_ADDR=server.url, VAULT_TOKEN=server.root_token, MLFLOW_SECRETS_MAX_RETRIES="10")
        timer = threading.Timer(0.3, server.unseal)
        timer.start()
        assert headers_for(URL) == ABC
        timer.join()


READ_ONLY = b'{"errors": ["1 error occurred:\\n\\t* cannot write to readonly storage\\n\\n"]}'


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(429), "vault.throttled"),
        (Answer(472), "vault.unavailable"),
        (Answer(473), "vault.unavailable"),
        (Answer(412), "vault.unavailable"),
        (Answer(500), "vault.unavailable"),
        (Answer(502, body=b"<html>"), "vault.unavailable"),
        (Answer(503), "vault.sealed"),
        (Answer(400, body=READ_ONLY), "vault.unavailable"),
    ],
)
def test_what_may_pass_is_tried_again(bao, use_vault, path, loopback, answer, code) -> None:
    bao.put_secret(path, token="abc")
    passing = passed_on(bao)
    failing = [True]

    def rule(request: Request) -> Answer:
        if request.path.startswith("/v1/secret/") and failing[0]:
            return answer
        return passing(request)

    loopback.rule = rule
    use_vault(VAULT_ADDR=loopback.url)
    assert failure().code == code

    def once(request: Request) -> Answer:
        answered = rule(request)
        failing[0] = failing[0] and answered is not answer
        return answered

    loopback.rule = once
    loopback.requests.clear()
    use_vault(VAULT_ADDR=loopback.url, MLFLOW_SECRETS_MAX_RETRIES="1")
    assert headers_for(URL) == ABC
    assert [r.path for r in loopback.requests].count(f"/v1/secret/data/{path}") == 2


@pytest.mark.parametrize("answer", [Answer(503), Answer(400, body=READ_ONLY)])
def test_so_is_a_login(bao, use_vault, path, loopback, answer) -> None:
    bao.put_secret(path, token="abc")
    passing = passed_on(bao)
    answers = [answer]
    loopback.rule = lambda request: answers.pop() if answers else passing(request)
    role = enable_approle(bao, "approle", read_policy(path))
    use_vault(VAULT_TOKEN=None, VAULT_ADDR=loopback.url, **role, MLFLOW_SECRETS_MAX_RETRIES="1")
    assert headers_for(URL) == ABC
    assert [r.path for r in loopback.requests].count("/v1/auth/approle/login") == 2


def test_the_server_may_say_when(bao, use_vault, path, loopback) -> None:
    bao.put_secret(path, token="abc")
    passing = passed_on(bao)
    times: list[float] = []

    def rule(request: Request) -> Answer:
        times.append(time.monotonic())
        return Answer(503, {"Retry-After": "1"}) if len(times) == 1 else passing(request)

    loopback.rule = rule
    use_vault(VAULT_ADDR=loopback.url, MLFLOW_SECRETS_MAX_RETRIES="1")
    assert headers_for(URL) == ABC
    assert 0.9 <= times[1] - times[0] <= 3


@pytest.mark.parametrize(("status", "code"), [(403, "vault.permission_denied"), (404, "vault.not_found")])
def test_what_will_not_pass_is_not_tried_again(use_vault, loopback: Loopback, status, code) -> None:
    errors = ["1 error occurred:\n\t* permission denied\n\n"] if status == 403 else []
    loopback.rule = lambda _: Answer.json({"errors": errors}, status)
    use_vault(
        VAULT_ADDR=loopback.url,
        MLFLOW_SECRETS_MAX_RETRIES="3",
        MLFLOW_VAULT_KV_MOUNT="secret",
        MLFLOW_VAULT_KV_VERSION="2",
    )
    assert failure().code == code
    assert len(loopback.requests) == 1
