"""S1-S5: no output holds a secret. Each place where a secret can live gets a canary of its own."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import traceback

import pytest
import requests

from conftest import Configure
from loopback import Answer, Loopback, VaultLike
from mlflow_secrets_auth import SecretsAuth, SecretsAuthError, SecretsAuthProvider, cache_info, clear_cache, headers_for
from servers import free_port

URL = "https://mlflow.example.com/api"
TOKEN = "canary-vault-token-7c1f"
ROLE_SECRET = "canary-secret-id-9a02"
CREDENTIAL = "canary-credential-e55b"
PASSWORD = "canary-password-31d8"
BODY = "canary-in-an-answer-44aa"
CANARIES = (TOKEN, ROLE_SECRET, CREDENTIAL, PASSWORD, BODY)


def assert_clean(*texts: str) -> None:
    for text in texts:
        for canary in CANARIES:
            assert canary not in text, f"{canary} shows in {text[:500]}"


def everything_about(error: BaseException) -> str:
    """What a reader of logs could ever see of an exception: also its context, and the local variables of every frame
    that is ours. (The frames of the caller and of requests hold the request itself.)"""
    shown = [str(error), repr(error), repr(getattr(error, "args", ())), repr(vars(error))]
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    while report is not None:
        shown += report.format_exception_only()
        for frame in report.stack:
            if "mlflow_secrets_auth" in frame.filename:
                shown += [f"{name}={value}" for name, value in (frame.locals or {}).items()]
        report = report.__cause__ or report.__context__
    return "\n".join(shown)


@pytest.fixture
def debug_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def shown_by(log: pytest.LogCaptureFixture) -> str:
    """Every record with all of its attributes."""
    return log.text + "\n".join(repr(vars(record)) for record in log.records)


FAILURES: dict[str, tuple[Answer, str]] = {
    "sealed": (Answer(503, body=f'{{"errors": ["{BODY}"]}}'.encode()), "vault.sealed"),
    "denied": (Answer(403, body=f'{{"errors": ["{BODY}"]}}'.encode()), "vault.token_refused"),
    "missing": (Answer(404, body=f'{{"errors": [], "x": "{BODY}"}}'.encode()), "vault.not_found"),
    "throttled": (Answer(429, body=BODY.encode()), "vault.throttled"),
    "broken": (Answer(500, body=BODY.encode()), "vault.unavailable"),
    "a page": (Answer(200, {"Content-Type": "text/html"}, f"<p>{BODY}".encode()), "vault.unexpected_answer"),
    "cut off": (Answer(200, body=f'{{"data": {{"data": {{"token": "{BODY}"'.encode()), "vault.unexpected_answer"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_s1_failures_of_the_backend(
    vault_like: VaultLike, configure: Configure, debug_log: pytest.LogCaptureFixture, name: str
) -> None:
    """S1: whatever the backend answers, neither its body nor our token shows."""
    vault_like.failure, code = FAILURES[name]
    configure(vault_like.settings(VAULT_TOKEN=TOKEN, MLFLOW_SECRETS_MAX_RETRIES="0"))
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(URL)
    assert caught.value.code == code
    assert_clean(everything_about(caught.value), shown_by(debug_log))


@pytest.mark.parametrize(
    "fields",
    [
        {"token": f"{CREDENTIAL}\nX: 1"},
        {"token": {"a": CREDENTIAL}},
        {"token": [CREDENTIAL]},
        {"user": CREDENTIAL},
        {"headers": {"Host": CREDENTIAL}},
        {"headers": CREDENTIAL},
        {"token": CREDENTIAL, "expires_at": CREDENTIAL},
    ],
)
def test_s1_failures_of_the_payload(
    vault_like: VaultLike, configure: Configure, debug_log: pytest.LogCaptureFixture, fields: object
) -> None:
    """S1: an error about the payload shows none of its values."""
    vault_like.fields = fields  # type: ignore[assignment]
    configure(vault_like.settings(VAULT_TOKEN=TOKEN))
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(URL)
    assert_clean(everything_about(caught.value), shown_by(debug_log))


def test_s1_success_resend_and_refusal(
    vault_like: VaultLike, loopback: Loopback, configure: Configure, debug_log: pytest.LogCaptureFixture
) -> None:
    """S1: a request that works, one that is sent again, and one that stays denied leave no secret in the log."""
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    vault_like.fields = {"username": "u", "password": PASSWORD}
    configure(vault_like.settings(VAULT_TOKEN=TOKEN, MLFLOW_VAULT_AUTH_MODE="basic"))
    auth = SecretsAuth()
    assert requests.get(loopback.url, auth=auth, timeout=10).status_code == 200
    loopback.rule = lambda request: Answer(403)
    vault_like.fields = {"username": "u", "password": PASSWORD + "-new"}
    assert requests.get(loopback.url, auth=auth, timeout=10).status_code == 403
    entry = cache_info().entries[0]
    assert entry.fingerprint in shown_by(debug_log)
    assert_clean(shown_by(debug_log), repr(auth), repr(entry), repr(vars(auth)))


def test_s1_a_connection_that_breaks_in_the_resend(
    vault_like: VaultLike, loopback: Loopback, configure: Configure
) -> None:
    """S1: the traceback of a failing resend goes through our frames, and their variables hold no secret."""
    vault_like.fields = {"token": CREDENTIAL}
    configure(vault_like.settings(VAULT_TOKEN=TOKEN))

    def rotate_and_close() -> None:
        vault_like.fields = {"token": CREDENTIAL + "-new"}
        loopback.rule = lambda request: Answer(before=hang_up)

    def hang_up() -> None:
        raise ConnectionAbortedError

    loopback.rule = lambda request: Answer(401, before=rotate_and_close)
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get(loopback.url, auth=SecretsAuth(), timeout=10)
    assert_clean(everything_about(caught.value))


def test_s1_the_command_line(vault_like: VaultLike, configure: Configure) -> None:
    """S1: info and doctor, as text and as JSON, at DEBUG, when all is well and when it is not."""
    vault_like.fields = {"token": CREDENTIAL}
    configure(
        vault_like.settings(
            VAULT_TOKEN=TOKEN,
            VAULT_ROLE_ID="role",
            VAULT_SECRET_ID=ROLE_SECRET,
            MLFLOW_SECRETS_LOG_LEVEL="DEBUG",
            MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
        )
    )
    for failure in (None, Answer(403, body=BODY.encode())):
        vault_like.failure = failure
        for arguments in (["info"], ["info", "--json"], ["doctor"], ["doctor", "--json"]):
            command = [sys.executable, "-m", "mlflow_secrets_auth", *arguments]
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
            assert "Traceback" not in result.stderr
            assert_clean(result.stdout, result.stderr)


def test_s1_pickles(vault_like: VaultLike, configure: Configure) -> None:
    """S1: pickles carry neither the credential nor settings given in code."""
    settings = vault_like.settings(VAULT_TOKEN=TOKEN)
    vault_like.fields = {"token": CREDENTIAL}
    for thing in (SecretsAuth(settings=settings), SecretsAuthProvider(settings=settings).get_auth()):
        requests.Request("GET", URL, auth=thing).prepare()
        assert_clean(pickle.dumps(thing).decode("latin1"))


def test_s2_a_credential_is_named_by_a_fingerprint_that_lasts_one_process(
    vault_like: VaultLike, configure: Configure
) -> None:
    """S2: the same credential has one name in a process, and another one in the next."""
    configure(vault_like.settings())
    code = (
        "from mlflow_secrets_auth import *;"
        f"headers_for({URL!r}); first = cache_info().entries[0].fingerprint; clear_cache();"
        f"headers_for({URL!r}); assert cache_info().entries[0].fingerprint == first; print(first)"
    )
    run = [sys.executable, "-c", code]
    names = {subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in "ab"}
    assert len(names) == 2


def test_s4_one_error_per_episode(
    vault_like: VaultLike, configure: Configure, debug_log: pytest.LogCaptureFixture
) -> None:
    """S4: a backend that stays down is logged once, with cause and next try; the next episode is logged again."""
    configure(vault_like.settings(VAULT_ADDR=f"http://127.0.0.1:{free_port()}", MLFLOW_SECRETS_MAX_RETRIES="0"))
    for _ in range(5):
        with pytest.raises(SecretsAuthError):
            headers_for(URL)
    errors = [record for record in debug_log.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "vault.unreachable" in errors[0].getMessage()
    assert "next try in" in errors[0].getMessage()
    assert errors[0].event == "fetch_failed"  # type: ignore[attr-defined]
    clear_cache()
    with pytest.raises(SecretsAuthError):
        headers_for(URL)
    assert len([record for record in debug_log.records if record.levelno == logging.ERROR]) == 2


def test_log_records_carry_their_fields(
    vault_like: VaultLike, configure: Configure, debug_log: pytest.LogCaptureFixture
) -> None:
    """Structured fields are attributes of the record, so that JSON formatters pick them up."""
    configure(vault_like.settings())
    headers_for(URL)
    [fetched] = [record for record in debug_log.records if getattr(record, "event", "") == "fetched"]
    assert fetched.name == "mlflow_secrets_auth.fetch"
    assert fetched.provider == "vault"  # type: ignore[attr-defined]
    assert isinstance(fetched.duration_ms, int)  # type: ignore[attr-defined]
    json.dumps({name: value for name, value in vars(fetched).items() if isinstance(value, (str, int, float, bool))})
