"""S1-S5: no output holds a secret. Each place where a secret can live gets a canary of its own.

The servers here are the worst that there can be: where they fail, they send back what they were sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from aws_servers import ACCOUNT, REGION, ROLE, call_of, in_seconds
from azure_fixtures import azure, azure_servers
from azure_stand_in import AzureStandIn, ClientCertificate, FederatedIssuer
from canaries import URL, assert_clean, canary, everything_about, outcome, outputs, pickled, records_of, watch
from conftest import Configure
from loopback import Answer, Loopback, Request, VaultLike
from mlflow_secrets_auth import (
    SecretsAuth,
    SecretsAuthError,
    SecretsAuthProvider,
    _core,
    cache_info,
    clear_cache,
    headers_for,
    refresh,
)
from mlflow_secrets_auth.config import get_allowed_hosts, is_host_allowed
from servers import free_port

__all__ = ["azure", "azure_servers"]

CREDENTIAL = canary("credential")
PASSWORD = canary("stored-password", "@/+ ")
IN_HEADERS = canary("in-headers")
ANSWER = canary("answer")


@pytest.fixture(autouse=True)
def nothing_shows(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """S1: whatever a test here does, the log at DEBUG, of everybody, the warnings, stdout and stderr are clean."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
    assert_clean(
        records_of(caplog.get_records("call")), *(str(warning.message) for warning in warned), *capfd.readouterr()
    )


# Servers that fail


def echoed(request: Request) -> str:
    return f"{ANSWER} {request.path} {request.headers} {request.body.decode(errors='replace')}"


def json_echo(status: int, **headers: str) -> Callable[[Request], Answer]:
    def answer(request: Request) -> Answer:
        text = echoed(request)
        document = {
            "errors": [text],
            "message": text,
            "__type": text,
            "error": {"code": text, "message": text},
            "data": text,
        }
        return Answer(status, {"Content-Type": "application/json", **headers}, json.dumps(document).encode())

    return answer


def leading_away(request: Request) -> Answer:
    return Answer(307, {"Location": f"http://user:{ANSWER}@elsewhere.test/?{ANSWER}"}, echoed(request).encode())


def hanging_up(request: Request) -> Answer:
    def stop() -> None:
        raise ConnectionAbortedError

    return Answer(before=stop)


BAD: dict[str, Callable[[Request], Answer]] = {
    **{str(status): json_echo(status) for status in (400, 401, 403, 404, 408, 412, 429, 500, 503)},
    "challenge": json_echo(401, **{"WWW-Authenticate": f'Bearer realm="{ANSWER}"'}),
    "not the JSON expected": json_echo(200),
    "a page": lambda request: Answer(200, {"Content-Type": "text/html"}, echoed(request).encode()),
    "cut off": lambda request: Answer(200, {}, json.dumps({"data": echoed(request)})[:-9].encode()),
    "empty": lambda request: Answer(200, {}, b""),
    "redirect": leading_away,
    "hang up": hanging_up,
}


Fault = tuple[str, Callable[[Request], Answer]]


def faults(*places: str) -> list[Fault | None]:
    """No fault, and each one in each place."""
    return [None, *((place, answer) for place in places for answer in BAD.values())]


def fetches() -> bool:
    """Whether the fetch succeeds, so that a test knows which way it looks at."""
    try:
        return headers_for(URL) == {"Authorization": f"Bearer {CREDENTIAL}"}
    except SecretsAuthError:
        return False


# Vault


class WorstVault(VaultLike):
    """Every login, and a fault in one place: ``login`` or ``read``."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Fault | None = None
        self.given = {name: canary(name) for name in ("login-token", "unwrapped-secret-id", "accessor")}
        self.fields = {"token": CREDENTIAL}

    def _answer(self, request: Request) -> Answer:
        place = "read" if request.path.startswith("/v1/secret/") else "login"
        if self.fault and self.fault[0] == place:
            return self.fault[1](request)
        envelope: dict[str, Any] = {"request_id": "r", "lease_id": "", "lease_duration": 0, "renewable": False}
        if "/auth/token/" in request.path:
            return Answer.json({**envelope, "data": {"ttl": 3600, "renewable": True}})
        if request.path.startswith("/v1/auth/"):
            auth = {"client_token": self.given["login-token"], "accessor": self.given["accessor"]}
            return Answer.json({**envelope, "auth": {**auth, "lease_duration": 3600, "renewable": True}})
        if request.path == "/v1/sys/wrapping/lookup":
            path = "auth/approle/role/r/secret-id"
            return Answer.json(
                {**envelope, "data": {"creation_path": path, "creation_ttl": 60, "creation_time": "2026"}}
            )
        if request.path == "/v1/sys/wrapping/unwrap":
            secret_id = {"secret_id": self.given["unwrapped-secret-id"], "secret_id_accessor": "a"}
            return Answer.json({**envelope, "data": secret_id})
        return super()._answer(request)


VAULT_TOKEN = canary("vault-token")
JWT = canary("jwt")
LOGINS: dict[str, dict[str, str]] = {
    "token": {"VAULT_TOKEN": VAULT_TOKEN},
    "token with a line break": {"VAULT_TOKEN": VAULT_TOKEN + "\n" + VAULT_TOKEN},
    "approle": {"VAULT_ROLE_ID": "role", "VAULT_SECRET_ID": canary("secret-id")},
    "wrapped": {"VAULT_ROLE_ID": "role", "MLFLOW_VAULT_WRAPPED_SECRET_ID": canary("wrapping-token")},
    "userpass": {"MLFLOW_VAULT_USERNAME": "jim", "MLFLOW_VAULT_PASSWORD": canary("vault-password", "@/+ ")},
    "ldap": {
        "MLFLOW_VAULT_AUTH_METHOD": "ldap",
        "MLFLOW_VAULT_USERNAME": "jim",
        "MLFLOW_VAULT_PASSWORD": canary("ldap-password", "%"),
    },
    "jwt": {"MLFLOW_VAULT_AUTH_METHOD": "jwt", "MLFLOW_VAULT_ROLE": "r", "MLFLOW_VAULT_JWT_PATH": "{jwt}"},
    "kubernetes": {
        "MLFLOW_VAULT_AUTH_METHOD": "kubernetes",
        "MLFLOW_VAULT_ROLE": "r",
        "MLFLOW_VAULT_JWT_PATH": "{jwt}",
    },
    "token file": {"MLFLOW_VAULT_AUTH_METHOD": "token"},
    "agent": {"MLFLOW_VAULT_AUTH_METHOD": "agent", "VAULT_AGENT_ADDR": "{url}"},
    "userinfo": {"VAULT_TOKEN": VAULT_TOKEN, "VAULT_ADDR": f"http://jim:{canary('vault-addr')}@127.0.0.1:1"},
    "cert": {
        "MLFLOW_VAULT_AUTH_METHOD": "cert",
        "VAULT_ADDR": "https://localhost:1",
        "VAULT_CLIENT_CERT": "{key}",
        "VAULT_CLIENT_KEY": "{key}",
    },
    "no TLS there": {"VAULT_TOKEN": VAULT_TOKEN, "VAULT_ADDR": "https://127.0.0.1:{port}"},
    "nobody there": {"VAULT_TOKEN": VAULT_TOKEN, "VAULT_ADDR": "http://127.0.0.1:1"},
}


NO_LOGINS = {"token with a line break", "userinfo", "cert", "no TLS there", "nobody there"}
WITHOUT_LOGIN = {"token", "token file", "agent"}


@pytest.fixture(scope="module")
def worst_vault() -> Iterator[WorstVault]:
    with WorstVault() as server:
        yield server


@pytest.fixture
def use_vault_login(worst_vault: WorstVault, configure: Configure, tmp_path: Path) -> Callable[..., None]:
    """Settings for one login, with its files in place; a number of its own keeps logins of other tests away."""
    home = Path(os.environ["HOME"])
    (home / ".vault-token").write_text(VAULT_FILE_TOKEN)
    (tmp_path / "jwt").write_text(JWT)
    key = "".join(f"{line}\n" for line in ("-----BEGIN PRIVATE KEY-----", CLIENT_KEY, "-----END PRIVATE KEY-----"))
    (tmp_path / "key").write_text(key)
    worst_vault.fault = None

    def apply(login: dict[str, str], number: int = 0, **more: str) -> None:
        places = {"jwt": tmp_path / "jwt", "key": tmp_path / "key", "url": worst_vault.url, "port": worst_vault.port}
        base = worst_vault.settings(VAULT_CLIENT_TIMEOUT="5s", MLFLOW_VAULT_TTL_SEC=str(300 + number))
        del base["VAULT_TOKEN"]
        configure({**base, **{name: value.format(**places) for name, value in login.items()}})
        configure(MLFLOW_SECRETS_MAX_RETRIES="0", MLFLOW_SECRETS_LOG_LEVEL="DEBUG", **more)

    return apply


VAULT_FILE_TOKEN = canary("file-token")
CLIENT_KEY = canary("client-key")


@pytest.mark.parametrize("login", LOGINS)
def test_s1_vault(worst_vault: WorstVault, use_vault_login: Callable[..., None], login: str) -> None:
    """S1: every login, with every failure of the login and of the read, and without any."""
    for number, fault in enumerate(faults("login", "read")):
        worst_vault.fault = fault
        use_vault_login(LOGINS[login], number)
        works = login not in NO_LOGINS and (fault is None or (fault[0] == "login" and login in WITHOUT_LOGIN))
        assert fetches() is works, fault
        assert_clean(outputs())


def test_s1_vault_that_hangs(use_vault_login: Callable[..., None], worst_vault: WorstVault) -> None:
    gate = threading.Event()
    worst_vault.fault = ("read", lambda _: Answer(before=lambda: gate.wait(5) and None))
    use_vault_login(LOGINS["token"], 999, VAULT_CLIENT_TIMEOUT="100ms")
    assert_clean(outputs())
    gate.set()


# AWS

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTKEY",
    "AWS_SECRET_ACCESS_KEY": canary("secret-key", "/+"),
    "AWS_SESSION_TOKEN": canary("session-token", "/+="),
}
FILES = {
    "web-token": canary("web-identity-token"),
    "container-token": canary("container-token-file"),
    "agent-token": canary("agent-token-file"),
}
AWS_GIVES = {name: canary(name) for name in ("given-key", "given-session-token")}
SSO_TOKEN = canary("sso-token")
PROFILE_KEY, PROFILE_TOKEN = canary("profile-key"), canary("profile-token")
SOURCES: dict[str, dict[str, str]] = {
    "keys": KEYS,
    "role": {**KEYS, "AWS_ROLE_ARN": ROLE, "AWS_EXTERNAL_ID": canary("external-id", "/+")},
    "profile": {"AWS_PROFILE": "keys"},
    "sso": {"AWS_PROFILE": "sso", "AWS_ENDPOINT_URL_SSO": "{url}"},
    "web identity": {"AWS_WEB_IDENTITY_TOKEN_FILE": "{web-token}", "AWS_ROLE_ARN": ROLE},
    "container": {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "{url}/creds",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": canary("container-token"),
    },
    "container with a file": {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "{url}/creds",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "{container-token}",
    },
    "metadata": {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": "{url}"},
    "agent": {"MLFLOW_AWS_AGENT_URL": "{url}", "MLFLOW_AWS_AGENT_TOKEN": canary("agent-token")},
    "agent with a file": {"MLFLOW_AWS_AGENT_URL": "{url}", "MLFLOW_AWS_AGENT_TOKEN": "file://{agent-token}"},
    "userinfo": {**KEYS, "AWS_ENDPOINT_URL": f"http://jim:{canary('endpoint')}@localhost:1"},
    "agent with userinfo": {
        "MLFLOW_AWS_AGENT_URL": f"http://jim:{canary('agent-url')}@localhost:1",
        "MLFLOW_AWS_AGENT_TOKEN": canary("agent-token-2"),
    },
    "container with userinfo": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://jim:{canary('full-uri')}@localhost:1"},
    "broken keys": {**KEYS, "AWS_SESSION_TOKEN": canary("broken-session-token") + "\n" + canary("its-second-line")},
    "no TLS there": {**KEYS, "AWS_ENDPOINT_URL": "https://127.0.0.1:{port}"},
    "nobody there": {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
}


NO_SOURCES = {
    "userinfo",
    "agent with userinfo",
    "container with userinfo",
    "broken keys",
    "no TLS there",
    "nobody there",
}
WITHOUT_SIGN_IN = {"keys", "profile", "agent", "agent with a file"}


class WorstAws(Loopback):
    """All of AWS, with a fault in one place: ``identity`` or ``secret``."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.fault: Fault | None = None

    def _answer(self, request: Request) -> Answer:
        action = call_of(request).action
        place = "secret" if action == "GetSecretValue" or request.path.startswith("/secretsmanager/") else "identity"
        if self.fault and self.fault[0] == place:
            return self.fault[1](request)
        key, token = AWS_GIVES.values()
        if place == "secret":
            return Answer.json({"Name": "n", "SecretString": json.dumps({"token": CREDENTIAL}), "VersionId": "v"})
        if request.path == "/latest/api/token":
            return Answer(
                200, {"x-aws-ec2-metadata-token-ttl-seconds": "60"}, AWS_GIVES["given-session-token"].encode()
            )
        if request.path.endswith("/security-credentials/"):
            return Answer(200, {}, b"role")
        if request.path.startswith(("/latest/", "/creds")):
            lasts = {"Expiration": in_seconds(3600), "LastUpdated": in_seconds(-60)}
            keys = {"AccessKeyId": "ASIA", "SecretAccessKey": key, "Token": token}
            return Answer.json({"Code": "Success", "Type": "AWS-HMAC", **keys, **lasts})
        if request.path.startswith("/federation/"):
            keys = {
                "accessKeyId": "ASIA",
                "secretAccessKey": key,
                "sessionToken": token,
                "expiration": 2_000_000_000_000,
            }
            return Answer.json({"roleCredentials": keys})
        body = f"""<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>
            <AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>{key}</SecretAccessKey><SessionToken>{token}</SessionToken>
            <Expiration>{in_seconds(3600)}</Expiration></Credentials></{action}Result></{action}Response>"""
        return Answer(200, {"Content-Type": "text/xml"}, body.encode())


@pytest.fixture(scope="module")
def worst_aws() -> Iterator[WorstAws]:
    with WorstAws() as server:
        yield server


@pytest.fixture
def use_aws_source(worst_aws: WorstAws, configure: Configure, tmp_path: Path) -> Callable[..., None]:
    folder = Path(os.environ["HOME"]) / ".aws"
    (folder / "sso" / "cache").mkdir(parents=True)
    (folder / "credentials").write_text(
        "[keys]\naws_access_key_id = AKIA\n"
        f"aws_secret_access_key = {PROFILE_KEY}\naws_session_token = {PROFILE_TOKEN}\n"
    )
    account = f"sso_account_id = {ACCOUNT}\nsso_role_name = reader\n"
    where = f"sso_region = {REGION}\nsso_start_url = https://team.awsapps.com/start\n"
    (folder / "config").write_text(f"[profile sso]\nsso_session = s\n{account}\n[sso-session s]\n{where}")
    token = {"startUrl": "s", "region": REGION, "accessToken": SSO_TOKEN, "expiresAt": in_seconds(3600)}
    (folder / "sso" / "cache" / f"{hashlib.sha1(b's').hexdigest()}.json").write_text(json.dumps(token))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    worst_aws.fault = None

    def apply(source: dict[str, str], number: int = 0, **more: str) -> None:
        base = {
            "MLFLOW_SECRETS_AUTH_ENABLE": "aws-secrets-manager",
            "AWS_ENDPOINT_URL": worst_aws.url,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_AWS_SECRET_NAME": "mlflow/auth",
            "MLFLOW_AWS_RETRY_MODE": "standard",
            "MLFLOW_AWS_TTL_SEC": str(300 + number),
        }
        places = {"url": worst_aws.url, "port": worst_aws.port, **{name: tmp_path / name for name in FILES}}
        configure({**base, **{name: value.format(**places) for name, value in source.items()}})
        configure(MLFLOW_SECRETS_MAX_RETRIES="0", MLFLOW_SECRETS_LOG_LEVEL="DEBUG", **more)

    return apply


@pytest.mark.parametrize("source", SOURCES)
def test_s1_aws(worst_aws: WorstAws, use_aws_source: Callable[..., None], source: str) -> None:
    """S1: every source of an identity, with every failure of it and of Secrets Manager, and without any."""
    for number, fault in enumerate(faults("identity", "secret")):
        worst_aws.fault = fault
        use_aws_source(SOURCES[source], number)
        works = source not in NO_SOURCES and (fault is None or (fault[0] == "identity" and source in WITHOUT_SIGN_IN))
        assert fetches() is works, fault
        assert_clean(outputs())


def test_s1_aws_that_hangs(use_aws_source: Callable[..., None], worst_aws: WorstAws) -> None:
    gate = threading.Event()
    worst_aws.fault = ("secret", lambda _: Answer(before=lambda: gate.wait(5) and None))
    use_aws_source(SOURCES["keys"], 999, MLFLOW_SECRETS_TIMEOUT_SEC="1")
    assert_clean(outcome(lambda: headers_for(URL)))
    gate.set()


# Azure

CLIENT_SECRET = canary("client-secret", "%+~/&=")
KEY_PASSWORD = canary("key-password", " ")
# What begins like this is one of Entra's tokens, or a private key.
TOKENS = ("eyJ", "PRIVATE KEY")


@pytest.fixture(scope="module")
def certificate() -> ClientCertificate:
    made = ClientCertificate.create()
    for line in made.pem().decode().splitlines()[1:6]:
        watch(line)
    return made


@pytest.fixture(scope="module")
def issuer() -> FederatedIssuer:
    return FederatedIssuer()


WAYS = ["secret", "certificate", "federated", "app_service", "azure_ml", "az", "userinfo", "identity userinfo"]


@pytest.fixture
def use_azure_way(
    azure: AzureStandIn,
    configure: Configure,
    certificate: ClientCertificate,
    issuer: FederatedIssuer,
    tmp_path: Path,
) -> Callable[..., None]:
    azure.vault.set_secret("mlflow-auth", json.dumps({"token": CREDENTIAL}))

    def way_of(name: str) -> dict[str, str]:
        if name == "secret":
            app = azure.entra.register_client(CLIENT_SECRET)
            return azure.environment(app, CLIENT_SECRET)
        if name == "certificate":
            (tmp_path / "c.pem").write_bytes(certificate.pem(password=KEY_PASSWORD))
            files = {"AZURE_CLIENT_CERTIFICATE_PATH": str(tmp_path / "c.pem")}
            app = azure.entra.register_certificate(certificate.public_pem())
            return azure.environment(app) | files | {"AZURE_CLIENT_CERTIFICATE_PASSWORD": KEY_PASSWORD}
        if name == "federated":
            subject = "system:serviceaccount:ns:mlflow"
            (tmp_path / "token").write_text(watch(issuer.token(subject)))
            app = azure.entra.register_federated(issuer, subject)
            return azure.environment(app) | {"AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token")}
        if name == "az":
            token = azure.entra.access_token("cli", "oid", "https://vault.azure.net")
            answer = {"accessToken": token, "expires_on": 4_000_000_000, "expiresOn": "2099-01-01 00:00:00.000000"}
            (tmp_path / "az").write_text(
                f"#!/bin/sh\ncat <<'END'\n{json.dumps({**answer, 'tokenType': 'Bearer'})}\nEND\n"
            )
            (tmp_path / "az").chmod(0o700)
            dev = {"AZURE_TOKEN_CREDENTIALS": "AzureCliCredential", "PATH": f"{tmp_path}:/usr/bin:/bin"}
            return azure.environment() | dev
        if name == "userinfo":
            address = f"https://jim:{canary('key-vault-url')}@localhost"
            return {**azure.environment(), "MLFLOW_AZURE_KEY_VAULT_URL": address, "AZURE_AUTHORITY_HOST": address}
        if name == "identity userinfo":
            endpoint = f"http://jim:{canary('identity-endpoint')}@localhost:1"
            return {**azure.environment(), "IDENTITY_ENDPOINT": endpoint, "IDENTITY_HEADER": canary("identity-header")}
        machine = getattr(azure, name).environment()
        watch(next(value for variable, value in machine.items() if variable in {"IDENTITY_HEADER", "MSI_SECRET"}))
        return azure.environment() | machine

    def apply(name: str, number: int = 0) -> None:
        configure(way_of(name), MLFLOW_SECRETS_AUTH_ENABLE="azure-key-vault", MLFLOW_AZURE_SECRET_NAME="mlflow-auth")
        configure(MLFLOW_AZURE_TTL_SEC=str(300 + number), MLFLOW_SECRETS_MAX_RETRIES="0")

    return apply


AZURE_FAULTS: list[dict[str, Any]] = [
    *({"kind": "status", "status": status} for status in (400, 401, 403, 404, 409, 429, 500)),
    *({"kind": kind} for kind in ("html", "malformed", "close")),
]


@pytest.mark.parametrize("way", WAYS)
def test_s1_azure(
    azure: AzureStandIn, use_azure_way: Callable[..., None], caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """S1: every way to sign in, with failures of Entra, of the machine's endpoint and of the vault, and without any."""
    endpoint = getattr(azure, way) if way in {"app_service", "azure_ml"} else azure.entra
    for number, fault in enumerate([None, *AZURE_FAULTS]):
        for service in (azure.vault, endpoint) if fault else (azure.vault,):
            azure.reset()
            azure.vault.set_secret("mlflow-auth", json.dumps({"token": CREDENTIAL}))
            use_azure_way(way, 2 * number + (service is endpoint))
            if fault:
                service.fail_next(**fault, times=3, code=ANSWER if fault["kind"] == "status" else None)
            if fault is None:
                assert fetches() is ("userinfo" not in way)
            shown = outputs()
            assert_clean(shown)
            assert not any(token in shown + records_of(caplog.records) for token in TOKENS)


# What is stored, and what MLflow says to it

STORED: dict[str, Any] = {
    "token": {"token": CREDENTIAL},
    "user and password": {"username": "u", "password": PASSWORD},
    "headers": {"headers": {"X-A": IN_HEADERS, "X-B": "b"}},
    "bearer": {"token": f"Bearer {CREDENTIAL}"},
    "user:password": {"token": f"user:{PASSWORD}"},
    "line break": {"token": f"{CREDENTIAL}\nX: 1"},
    "line break in a header": {"headers": {"X-A": f"{IN_HEADERS}\r\nX: 1"}},
    "NUL": {"token": f"{CREDENTIAL}\0"},
    "beyond Latin-1": {"username": "u", "password": f"{PASSWORD}\u20ac"},
    "colon in the user": {"username": f"u:{PASSWORD}", "password": PASSWORD},
    "object": {"token": {"a": CREDENTIAL}},
    "list": {"token": [CREDENTIAL]},
    "no field": {"user": CREDENTIAL},
    "secret as a name": {"headers": {f"X {IN_HEADERS}": IN_HEADERS}},
    "host": {"headers": {"Host": IN_HEADERS}},
    "headers as text": {"headers": CREDENTIAL},
    "header as a number": {"headers": {"X-A": [IN_HEADERS]}},
    "expiry": {"token": CREDENTIAL, "expires_at": CREDENTIAL},
}


@pytest.mark.parametrize("mode", ["bearer", "basic", "raw"])
def test_s1_what_is_stored(worst_vault: WorstVault, use_vault_login: Callable[..., None], mode: str) -> None:
    """S1: every form of a credential, usable or not, in every mode: an error about it shows none of its values."""
    watch(base64.b64encode(f"u:{PASSWORD}".encode()).decode())
    watch(base64.b64encode(f"user:{PASSWORD}".encode()).decode())
    for number, fields in enumerate(STORED.values()):
        worst_vault.fields = fields
        use_vault_login(LOGINS["token"], 100 + number, MLFLOW_VAULT_AUTH_MODE=mode)
        assert_clean(outputs())
    worst_vault.fields = {"token": CREDENTIAL}


@pytest.mark.parametrize(
    "text", [f'{{"token": "{CREDENTIAL}"', f'["{CREDENTIAL}"]', f'"{CREDENTIAL}"', CREDENTIAL + "\r\nX: 1"]
)
def test_s1_plain_text(configure: Configure, text: str) -> None:
    """S1: text that is no credential is not shown either."""
    secret = Loopback(lambda _: Answer.json({"Name": "n", "SecretString": text}))
    with secret:
        configure(KEYS, MLFLOW_SECRETS_AUTH_ENABLE="aws-secrets-manager", MLFLOW_AWS_SECRET_NAME="n", AWS_REGION=REGION)
        configure(AWS_ENDPOINT_URL=secret.url, AWS_EC2_METADATA_DISABLED="true")
        shown = outcome(lambda: headers_for(URL))
        assert "secret." in shown
        assert_clean(shown, outputs())


MLFLOW_ANSWERS: dict[str, Callable[[Request], Answer]] = {
    **BAD,
    "redirect to elsewhere": lambda request: Answer.redirect("http://localhost:1/login"),
    "redirect to login": lambda request: Answer.redirect("/login"),
}


@pytest.mark.parametrize("stored", ["token", "user and password", "headers"])
def test_s1_what_mlflow_answers(
    worst_vault: WorstVault, use_vault_login: Callable[..., None], loopback: Loopback, stored: str
) -> None:
    """S1: denials, login pages, broken connections and redirects, in the first answer and in that to a resend."""
    proxy_password = canary("requests-proxy")
    for number, answer in enumerate(MLFLOW_ANSWERS.values()):
        for rotated in (True, False):
            replies = [answer] if rotated else [json_echo(401), answer]
            loopback.rule = lambda request, replies=replies: (replies.pop(0) if replies else json_echo(200))(request)
            worst_vault.fields = STORED[stored]
            mode = "basic" if stored == "user and password" else "bearer"
            use_vault_login(LOGINS["token"], 200 + 2 * number + rotated, MLFLOW_VAULT_AUTH_MODE=mode)
            auth = SecretsAuth()
            headers_for(loopback.url)
            worst_vault.fields = (
                {"token": canary("rotated")}
                if stored != "user and password"
                else {
                    "username": "u",
                    "password": canary("rotated-password"),
                }
            )

            def ask(auth: SecretsAuth = auth) -> None:
                # The proxy is for another scheme: its password is there, and not needed.
                proxies = {"https": f"http://jim:{proxy_password}@127.0.0.1:1"}
                requests.post(f"{loopback.url}/api/2.0/x", auth=auth, timeout=5, proxies=proxies, allow_redirects=False)

            assert_clean(outcome(ask), repr(auth), repr(vars(auth)), pickled(auth), repr(cache_info()))
    worst_vault.fields = {"token": CREDENTIAL}


def test_s1_a_url_with_a_password(
    worst_vault: WorstVault, use_vault_login: Callable[..., None], configure: Configure
) -> None:
    """S1: a tracking URL or a pattern that brings a password along."""
    secret = canary("tracking-url", "@/+")
    quoted = f"https://jim:{quote(secret, safe='')}@mlflow.example.com/api"
    plain = f"https://jim:{secret}@mlflow.example.com"
    for number, url in enumerate((quoted, plain, plain.removeprefix("https://"))):
        use_vault_login(LOGINS["token"], 300 + number)
        configure(MLFLOW_TRACKING_URI=url, MLFLOW_SECRETS_ALLOWED_HOSTS=f"good.com,{url}")
        tries: list[Callable[[], object]] = [
            lambda url=url: headers_for(url),  # type: ignore[misc]
            lambda: requests.get(quoted, auth=SecretsAuthProvider().get_auth(), timeout=5),  # type: ignore[misc]
            lambda url=url: is_host_allowed(url, [url]),  # type: ignore[misc]
            lambda url=url: get_allowed_hosts(),  # type: ignore[misc]
        ]
        assert_clean(outputs(), *map(outcome, tries), _core.examine_url(url, [url]))
        configure(MLFLOW_SECRETS_ALLOWED_HOSTS=None)
        assert_clean(outputs(), *map(outcome, tries), _core.examine_url(url, [url]))


# The command line


def run(*arguments: str, **more: str) -> str:
    command = [sys.executable, "-m", "mlflow_secrets_auth", *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **more}, timeout=60
    )
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("fault", [None, "403", "a page"])
def test_s1_the_command_line(
    worst_vault: WorstVault, use_vault_login: Callable[..., None], loopback: Loopback, fault: str | None
) -> None:
    """S1: info and doctor, as text and as JSON, at DEBUG with Rust's own log asked for, well or not."""
    worst_vault.fault = ("read", BAD[fault]) if fault else None
    loopback.rule = BAD["401"]
    use_vault_login(LOGINS["userpass"], 400, MLFLOW_TRACKING_AUTH="mlflow_secrets_auth")
    trace = {"RUST_LOG": "trace", "RUST_BACKTRACE": "full"}
    shown = [run("info", **trace), run("info", "--json", **trace), run("doctor", **trace)]
    shown.append(run("doctor", "--json", "--dry-run", loopback.url, **trace))
    # The log at DEBUG is part of what came out.
    assert "mlflow_secrets_auth.http" in shown[2]
    # Whatever is trusted as a library's own words would be found by this.
    assert not any(word in text for text in shown for word in ("rustify", "vaultrs", "hyper", "reqwest"))
    assert_clean(*shown, run("doctor", "--dry-run", f"https://jim:{canary('dry-run')}@localhost:1"))


@pytest.mark.parametrize("source", ["keys", "web identity", "sso"])
def test_s1_the_sdks_own_log_is_not_ours(
    worst_aws: WorstAws, use_aws_source: Callable[..., None], caplog: pytest.LogCaptureFixture, source: str
) -> None:
    """S1: what the SDKs write for themselves reaches no logger, whatever its name and level."""
    use_aws_source(SOURCES[source], 500)
    headers_for(URL)
    ours = [record for record in caplog.records if record.pathname.endswith(("api.py", "auth.py", "canaries.py"))]
    assert ours
    assert {record.name.partition(".")[0] for record in caplog.records} == {"mlflow_secrets_auth"}


# S2 and S4


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


def test_s2_logs_and_cache_info_tell_credentials_apart(
    vault_like: VaultLike, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    """S2: the record of a stored credential, and cache_info, carry its fingerprint; another credential has another."""
    configure(vault_like.settings())
    seen = []
    for token in (CREDENTIAL, canary("second"), CREDENTIAL):
        vault_like.fields = {"token": token}
        refresh()
        [entry] = cache_info().entries
        stored = [vars(record) for record in caplog.records if getattr(record, "event", "") == "stored"]
        assert stored[-1]["fingerprint"] == entry.fingerprint
        seen.append(entry.fingerprint)
    assert seen[0] == seen[2] != seen[1]


def errors_in(log: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in log.records if record.levelno == logging.ERROR]


def test_s4_one_error_per_episode(
    vault_like: VaultLike, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    """S4: a backend that stays down is logged once, with cause and next try; the next episode is logged again."""
    configure(vault_like.settings(VAULT_ADDR=f"http://127.0.0.1:{free_port()}", MLFLOW_SECRETS_MAX_RETRIES="0"))
    for _ in range(5):
        with pytest.raises(SecretsAuthError):
            headers_for(URL)
    [error] = errors_in(caplog)
    assert "vault.unreachable" in error.getMessage()
    assert "next try in" in error.getMessage()
    fields = vars(error)
    assert (fields["event"], fields["code"]) == ("fetch_failed", "vault.unreachable")
    assert 0 < fields["next_attempt_ms"] <= 30_000
    clear_cache()
    with pytest.raises(SecretsAuthError):
        headers_for(URL)
    assert len(errors_in(caplog)) == 2


def test_s4_from_whichever_thread(
    vault_like: VaultLike, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    """S4: threads that fail together, none of them the main one, log one ERROR."""
    vault_like.failure = Answer(403)
    configure(vault_like.settings())
    with ThreadPoolExecutor(16) as pool:
        assert all("vault." in shown for shown in pool.map(lambda _: outcome(lambda: headers_for(URL)), range(64)))
    assert len(errors_in(caplog)) == 1
    assert errors_in(caplog)[0].threadName != "MainThread"


def test_a_leak_would_be_found(caplog: pytest.LogCaptureFixture) -> None:
    """The search finds what it looks for: itself, its beginning, its end, and other forms; also in a frame of ours."""
    secret = canary("planted", "@ ")
    basic = base64.b64encode(f"u:{secret}".encode()).decode()
    quoted = quote(secret, safe="")
    for leak in (secret, f"{secret[:4]}…", f"…{secret[-4:]}", secret[::-1], basic, quoted, json.dumps({"a": secret})):
        with pytest.raises(AssertionError, match="shows as"):
            assert_clean(f"before {leak} after")
    source = compile("def fail(held):\n    raise ValueError('no')", "mlflow_secrets_auth/planted.py", "exec")
    frame: dict[str, Any] = {}
    exec(source, frame)
    with pytest.raises(ValueError, match="no") as caught:
        frame["fail"](secret)
    with pytest.raises(AssertionError, match="shows as"):
        assert_clean(everything_about(caught.value))
