"""What users get wrong: each case has a code and a hint, and shows no secret."""

from __future__ import annotations

import logging

import pytest

from conftest import Configure
from loopback import Loopback, VaultLike
from mlflow_secrets_auth import SecretsAuthError, cache_info, headers_for
from servers import free_port

URL = "https://mlflow.example.com/api"
CANARY = "canary-5e884898da"


def failure(url: str = URL) -> SecretsAuthError:
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(url)
    assert CANARY not in str(caught.value) + repr(caught.value) + str(caught.value.args)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("change", "code", "shown"),
    [
        ({"VAULT_ADDR": None}, "config.missing", "VAULT_ADDR"),
        ({"MLFLOW_VAULT_SECRET_PATH": None}, "config.missing", "MLFLOW_VAULT_SECRET_PATH"),
        ({"VAULT_TOKEN": None}, "config.missing", "VAULT_TOKEN"),
        ({"VAULT_ADDR": "vault.example.com"}, "config.invalid_value", "vault.example.com"),
        ({"VAULT_ADDR": "ftp://vault.example.com"}, "config.invalid_value", "VAULT_ADDR"),
        ({"VAULT_ADDR": f"https://user:{CANARY}@vault.example.com"}, "config.invalid_value", "VAULT_ADDR"),
        ({"MLFLOW_VAULT_SECRET_PATH": "secret/../sys/seal"}, "config.invalid_value", "secret/../sys/seal"),
        ({"MLFLOW_VAULT_AUTH_MODE": "beerer"}, "config.invalid_value", "did you mean bearer?"),
        ({"MLFLOW_VAULT_TTL_SEC": "5 minutes"}, "config.invalid_value", "5 minutes"),
        ({"MLFLOW_VAULT_TTL_SEC": "-1"}, "config.invalid_value", "0 to 86400"),
        ({"MLFLOW_VAULT_TTL_SEC": "nan"}, "config.invalid_value", "0 to 86400"),
        ({"VAULT_TOKEN": f"{CANARY}\r\nX-Evil: 1"}, "config.invalid_value", "VAULT_TOKEN"),
        ({"VAULT_SKIP_VERIFY": "perhaps"}, "config.invalid_value", "VAULT_SKIP_VERIFY"),
        ({"MLFLOW_SECRETS_AUTH_ENABLE": "valt"}, "config.unknown_provider", "did you mean vault?"),
        ({"MLFLOW_SECRETS_AUTH_ENABLE": None}, "config.no_provider", "MLFLOW_SECRETS_AUTH_ENABLE"),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": " , "}, "config.allowlist_empty", "MLFLOW_SECRETS_ALLOWED_HOSTS"),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": ""}, "config.allowlist_empty", "MLFLOW_SECRETS_ALLOWED_HOSTS"),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "a.com/x"}, "config.invalid_value", "path"),
        ({"MLFLOW_AUTH_HEADER_NAME": "Bad Header"}, "config.invalid_value", "Bad Header"),
        ({"MLFLOW_AUTH_HEADER_NAME": "Host"}, "config.invalid_value", "Host"),
        ({"MLFLOW_SECRETS_MAX_RETRIES": "11"}, "config.invalid_value", "0 to 10"),
        ({"VAULT_CACERT": "/nowhere/ca.pem", "VAULT_ADDR": "https://127.0.0.1:1"}, "config.file", "VAULT_CACERT"),
    ],
)
def test_a_setting_is_wrong(vault_like: VaultLike, configure: Configure, change, code, shown) -> None:
    configure(vault_like.settings())
    configure(**change)
    error = failure()
    assert error.code == code
    assert shown in str(error)
    assert vault_like.requests == []


def test_all_errors_come_at_once(configure: Configure) -> None:
    configure(
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR="no-url",
        MLFLOW_VAULT_TTL_SEC="soon",
        MLFLOW_SECRETS_ON_ERROR="explode",
    )
    error = failure()
    assert error.code == "config.invalid"
    # What is missing beside what is malformed, too.
    for part in ("VAULT_ADDR", "MLFLOW_VAULT_TTL_SEC", "MLFLOW_SECRETS_ON_ERROR", "MLFLOW_VAULT_SECRET_PATH"):
        assert part in error.message


def test_a_name_that_is_nearly_ours(vault_like: VaultLike, configure: Configure) -> None:
    configure(vault_like.settings(MLFLOW_VAULT_SECRET_PATH=None, MLFLOW_VAULT_SECRETS_PATH="secret/x"))
    error = failure()
    assert error.code == "config.missing"
    assert error.hint == "MLFLOW_VAULT_SECRETS_PATH is set: did you mean MLFLOW_VAULT_SECRET_PATH?"


@pytest.mark.parametrize(
    ("fields", "mode", "code"),
    [
        ({"user": CANARY}, "bearer", "secret.missing_field"),
        ({"username": "u", "password": CANARY}, "bearer", "secret.missing_field"),
        ({"token": CANARY}, "basic", "secret.not_basic"),
        ({"username": "u"}, "basic", "secret.missing_field"),
        ({"username": f"a:{CANARY}", "password": "p"}, "basic", "secret.not_basic"),
        ({"token": {"nested": CANARY}}, "bearer", "secret.wrong_type"),
        ({"token": 12345}, "bearer", "secret.wrong_type"),
        ({"token": ""}, "bearer", "secret.empty"),
        ({"token": "   "}, "bearer", "secret.empty"),
        ({"token": f"{CANARY}\r\nX-Evil: 1"}, "bearer", "secret.invalid_header"),
        ({"token": f"{CANARY}\x00"}, "bearer", "secret.invalid_header"),
        ({"token": f"{CANARY}\u20ac"}, "bearer", "secret.invalid_header"),
        ({"headers": {"Host": CANARY}}, "bearer", "secret.reserved_header"),
        ({"headers": {"X-A": 1}}, "bearer", "secret.wrong_type"),
        ({"headers": {"X A": CANARY}}, "bearer", "secret.invalid_header"),
        ({"headers": {"X-A": f"{CANARY}\n"}}, "bearer", "secret.invalid_header"),
        ({"token": CANARY, "expires_at": "tomorrow"}, "bearer", "secret.invalid_expiry"),
    ],
)
def test_the_secret_is_wrong(
    vault_like: VaultLike, configure: Configure, caplog: pytest.LogCaptureFixture, fields, mode, code
) -> None:
    caplog.set_level(logging.DEBUG)
    vault_like.fields = fields
    configure(vault_like.settings(MLFLOW_VAULT_AUTH_MODE=mode))
    assert failure().code == code
    assert CANARY not in caplog.text
    assert vault_like.reads == 1


@pytest.mark.parametrize(
    ("fields", "settings", "headers"),
    [
        ({"token": " abc\n"}, {}, {"Authorization": "Bearer abc"}),
        ({"token": "Bearer abc"}, {}, {"Authorization": "Bearer abc"}),
        ({"token": "u:p"}, {"MLFLOW_VAULT_AUTH_MODE": "basic"}, {"Authorization": "Basic dTpw"}),
        (
            {"username": "u", "password": " p "},
            {"MLFLOW_VAULT_AUTH_MODE": "basic"},
            {"Authorization": "Basic dTogcCA="},
        ),
        ({"token": "abc"}, {"MLFLOW_VAULT_AUTH_MODE": "raw"}, {"Authorization": "abc"}),
        (
            {"token": "custom-scheme abc"},
            {"MLFLOW_AUTH_HEADER_NAME": "X-MLflow-Auth"},
            {"X-MLflow-Auth": "custom-scheme abc"},
        ),
        (
            {"username": "u", "password": "p"},
            {"MLFLOW_AUTH_HEADER_NAME": "X-MLflow-Auth", "MLFLOW_VAULT_AUTH_MODE": "basic"},
            {"X-MLflow-Auth": "Basic dTpw"},
        ),
        ({"headers": {"A": "1", "B": "2"}, "token": "t"}, {}, {"A": "1", "B": "2"}),
    ],
)
def test_the_payload_table(vault_like: VaultLike, configure: Configure, fields, settings, headers) -> None:
    vault_like.fields = fields
    configure(vault_like.settings(**settings))
    assert headers_for(URL) == headers


@pytest.mark.parametrize(
    "url", ["https://u:pw@host/", "https://host\\@evil/", "ftp://host/", "https:///x", "https://1.2.3/"]
)
def test_an_odd_url(vault_like: VaultLike, configure: Configure, url) -> None:
    configure(vault_like.settings())
    error = failure(url)
    assert error.code == "url.refused"
    assert "pw" not in str(error)
    assert vault_like.requests == []


def test_plain_http_needs_a_permission(vault_like: VaultLike, configure: Configure) -> None:
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="*.example.com"))
    error = failure("http://mlflow.example.com/")
    assert error.code == "host.plain_http"
    assert "MLFLOW_SECRETS_ALLOW_HTTP" in error.hint
    assert vault_like.requests == []
    configure(MLFLOW_SECRETS_ALLOWED_HOSTS="*.example.com,http://mlflow.example.com")
    assert headers_for("http://mlflow.example.com/")


def test_a_failed_fetch_may_be_skipped(configure: Configure, vault_like: VaultLike, caplog) -> None:
    configure(
        vault_like.settings(
            VAULT_ADDR=f"http://127.0.0.1:{free_port()}",
            MLFLOW_SECRETS_ON_ERROR="skip",
            MLFLOW_SECRETS_MAX_RETRIES="0",
        )
    )
    assert headers_for(URL) == {}
    assert "vault.unreachable" in caplog.text


def test_a_host_that_is_not_allowed_costs_nothing(
    vault_like: VaultLike, configure: Configure, loopback: Loopback, caplog
) -> None:
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.example.com"))
    before = cache_info().misses
    for _ in range(3):
        assert headers_for(loopback.url) == {}
    assert vault_like.requests == []
    assert cache_info().misses == before
    assert "127.0.0.1" in caplog.text
