"""The Azure Key Vault provider against the stand-in, with Microsoft's own client as the referee.

The tests that take `target` run against another vault, a real one for example, where
`REAL_MLFLOW_AZURE_KEY_VAULT_URL` is set: then every variable `REAL_X` gives the value of `X`. Needed are
`REAL_MLFLOW_AZURE_SECRET_NAME` (a plain token), `REAL_AZURE_TENANT_ID`, `REAL_AZURE_CLIENT_ID` and
`REAL_AZURE_CLIENT_SECRET` of an identity that may read it.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import re
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from azure.identity import DefaultAzureCredential
from azure.keyvault.secrets import SecretClient
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from azure_fixtures import CANARIES, azure, azure_servers, silence
from azure_referee import URL, Verdict, failure, official, ours
from azure_stand_in import App, AzureStandIn, ClientCertificate, FederatedIssuer
from azure_stand_in_server import key_pem
from conftest import Configure
from mlflow_secrets_auth import (
    ConfigurationError,
    SecretsAuthError,
    _core,
    cache_info,
    clear_cache,
    headers_for,
    refresh,
)
from proxies import Proxy

__all__ = ["azure", "azure_servers", "silence"]

SECRET = "canary-s3cr%t+~/&="
TOKEN = "canary-mlflow-token"
SUBJECT = "system:serviceaccount:ns:mlflow"
RAW = {"MLFLOW_AZURE_AUTH_MODE": "raw"}
NUMBERS = itertools.count(1)

REAL = {name.removeprefix("REAL_"): value for name, value in os.environ.items() if name.startswith("REAL_")}


# --- tools ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate() -> ClientCertificate:
    return ClientCertificate.create()


@pytest.fixture(scope="module")
def issuer() -> FederatedIssuer:
    return FederatedIssuer()


@pytest.fixture
def use(azure: AzureStandIn, configure: Configure) -> Callable[..., None]:
    """Settings for the secret `mlflow-auth` in the stand-in, one attempt per fetch; the caller adds who signs in."""
    azure.vault.set_secret("mlflow-auth", TOKEN)
    number = next(NUMBERS)

    def apply(settings: dict[str, str] | None = None, /, **more: str | None) -> None:
        configure(
            {
                **azure.environment(),
                "MLFLOW_SECRETS_AUTH_ENABLE": "azure-key-vault",
                "MLFLOW_AZURE_SECRET_NAME": "mlflow-auth",
                "MLFLOW_AZURE_AUTH_MODE": "raw",
                "MLFLOW_AZURE_TTL_SEC": "0",
                "MLFLOW_SECRETS_MAX_RETRIES": "0",
                # Equal settings share one login, for the life of the process; no test may live off another one's.
                "MLFLOW_SECRETS_STALE_IF_ERROR_SEC": str(number),
            }
        )
        configure(settings, **more)

    return apply


@pytest.fixture
def signed_up(azure: AzureStandIn, use: Callable[..., None]) -> App:
    """A service principal with a secret, already in the environment."""
    app = azure.entra.register_client(SECRET)
    use(as_principal(app))
    return app


@pytest.fixture
def target(request: pytest.FixtureRequest, configure: Configure) -> None:
    """The real vault where one is named, else the stand-in, and a service principal that may read there."""
    if "MLFLOW_AZURE_KEY_VAULT_URL" not in REAL:
        request.getfixturevalue("signed_up")
        return
    enabled = {"MLFLOW_SECRETS_AUTH_ENABLE": "azure-key-vault", "MLFLOW_AZURE_TTL_SEC": "0"}
    configure({**enabled, "MLFLOW_AZURE_AUTH_MODE": "raw", **REAL})


def as_principal(app: App, secret: str | None = SECRET) -> dict[str, str]:
    principal = {"AZURE_TENANT_ID": app.tenant, "AZURE_CLIENT_ID": app.client_id}
    return principal | ({"AZURE_CLIENT_SECRET": secret} if secret else {})


def agree_on_success() -> None:
    """Both clients read the same value."""
    theirs = official()
    assert theirs.value, theirs.said
    assert ours() == Verdict(theirs.value, "")


def agree_on_failure(code: str, *words: str) -> SecretsAuthError:
    """Neither client reads anything, and ours names code, these words, and every AADSTS number that the other names."""
    theirs = official()
    assert theirs.value is None
    clear_cache()
    error = failure()
    assert error.code == code, str(error)
    numbers = re.findall(r"AADSTS\d+", theirs.said)
    for word in (*words, *numbers[:1]):
        assert word in str(error), str(error)
    shows_no_secret(str(error))
    return error


def shows_no_secret(text: str) -> None:
    for canary in CANARIES:
        assert canary not in text


def write(path: Path, content: bytes | str) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# --- a service principal with a secret --------------------------------------------------------------------------------


def test_a_client_secret_reads_the_secret(target: None) -> None:
    agree_on_success()


def test_a_wrong_client_secret(target: None, configure: Configure) -> None:
    configure(AZURE_CLIENT_SECRET="wrong")
    agree_on_failure("azure.client_secret_invalid", "AADSTS7000215", "not its id")


def test_an_unknown_client(target: None, configure: Configure) -> None:
    client = str(uuid.uuid4())
    configure(AZURE_CLIENT_ID=client)
    agree_on_failure("azure.client_unknown", "AADSTS700016", client)


def test_an_unknown_tenant(target: None, configure: Configure) -> None:
    tenant = str(uuid.uuid4())
    configure(AZURE_TENANT_ID=tenant)
    agree_on_failure("azure.tenant_unknown", "AADSTS90002", tenant)


def test_a_secret_that_is_not_there(target: None, configure: Configure) -> None:
    name = f"no-{uuid.uuid4()}"
    configure(MLFLOW_AZURE_SECRET_NAME=name)
    agree_on_failure("azure.not_found", name)


def test_an_expired_client_secret(azure: AzureStandIn, use: Callable[..., None]) -> None:
    use(as_principal(azure.entra.register_client(SECRET, expires=time.time() - 1)))
    agree_on_failure("azure.client_secret_expired", "AADSTS7000222")


def test_the_client_of_another_tenant(azure: AzureStandIn, use: Callable[..., None]) -> None:
    app = azure.entra.register_client(SECRET, tenant=azure.entra.register_tenant())
    use(as_principal(app), AZURE_TENANT_ID=azure.entra.tenant)
    agree_on_failure("azure.client_unknown", "AADSTS700016")


def test_a_vault_of_another_tenant(azure: AzureStandIn, signed_up: App) -> None:
    azure.vault.tenant = azure.entra.register_tenant()
    theirs = azure.vault.tenant
    error = failure()
    assert error.code == "azure.token_refused"
    assert theirs in error.message
    assert signed_up.tenant in error.message
    assert "AKV10032" in error.message


def test_half_a_service_principal_is_told(azure: AzureStandIn, use: Callable[..., None]) -> None:
    use(AZURE_CLIENT_ID="x", AZURE_CLIENT_SECRET=SECRET, AZURE_TOKEN_CREDENTIALS="EnvironmentCredential")
    agree_on_failure("azure.no_identity", "AZURE_CLIENT_SECRET is set, but AZURE_TENANT_ID is not")
    assert azure.entra.requests == []


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_for_its_life(azure: AzureStandIn, signed_up: App) -> None:
    for _ in range(5):
        headers_for(URL)
    assert azure.entra.count("token.secret") == 1
    assert azure.vault.count("challenge") == 1
    assert azure.vault.count("get_secret", status=200) == 5


def test_a_token_refused_in_mid_life_is_replaced_once(azure: AzureStandIn, signed_up: App) -> None:
    headers_for(URL)
    azure.vault.fail_next(status=401)
    assert headers_for(URL)
    # The SDK's own second attempt may carry the same token; ours signs in anew.
    azure.vault.fail_next(status=401, times=2)
    assert headers_for(URL)
    assert azure.entra.count("token.secret") == 2


def test_a_token_that_is_refused_for_good(azure: AzureStandIn, signed_up: App) -> None:
    azure.vault.fail_next(status=401, times=20)
    agree_on_failure("azure.token_refused", "HTTP 401")


@pytest.mark.parametrize("retries", [0, 2])
def test_only_our_own_retries_happen(azure: AzureStandIn, signed_up: App, configure: Configure, retries: int) -> None:
    configure(MLFLOW_SECRETS_MAX_RETRIES=str(retries))
    azure.vault.fail_next(status=503, times=20)
    assert failure().code == "azure.unavailable"
    assert azure.vault.count("authenticated", status=503) == retries + 1


def test_entra_is_not_asked_more_often_than_we_say(azure: AzureStandIn, signed_up: App, configure: Configure) -> None:
    configure(MLFLOW_SECRETS_MAX_RETRIES="1")
    azure.entra.fail_next(status=503, times=20)
    assert failure().code == "azure.unavailable"
    assert azure.entra.count(status=503) == 2


def test_retry_after_is_honoured(azure: AzureStandIn, signed_up: App, configure: Configure) -> None:
    configure(MLFLOW_SECRETS_MAX_RETRIES="3")
    azure.vault.fail_next(status=429, retry_after=1)
    started = time.monotonic()
    assert headers_for(URL)
    assert 1 <= time.monotonic() - started < 2.5


def test_a_retry_after_beyond_the_deadline_ends_at_once(
    azure: AzureStandIn, signed_up: App, configure: Configure
) -> None:
    configure(MLFLOW_SECRETS_MAX_RETRIES="3", MLFLOW_SECRETS_TIMEOUT_SEC="5")
    azure.vault.fail_next(status=429, retry_after=60, times=20)
    started = time.monotonic()
    agree_on_failure("azure.throttled", "HTTP 429")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("service", "fault", "code"),
    [
        ("vault", {"status": 500}, "azure.unavailable"),
        ("vault", {"status": 504}, "azure.unavailable"),
        ("vault", {"status": 429}, "azure.throttled"),
        ("vault", {"kind": "html", "status": 502}, "azure.unavailable"),
        ("vault", {"kind": "html", "status": 200}, "azure.unexpected_answer"),
        ("vault", {"kind": "html", "status": 403, "before_auth": True}, "azure.permission_denied"),
        ("vault", {"kind": "malformed"}, "azure.unexpected_answer"),
        ("vault", {"kind": "close"}, "azure.unreachable"),
        ("entra", {"status": 503}, "azure.unavailable"),
        ("entra", {"status": 429}, "azure.throttled"),
        ("entra", {"kind": "html", "status": 502}, "azure.unavailable"),
        ("entra", {"kind": "html", "status": 200}, "azure.unexpected_answer"),
        ("entra", {"kind": "malformed"}, "azure.unexpected_answer"),
        ("entra", {"kind": "close"}, "azure.sign_in_unreachable"),
    ],
)
def test_servers_that_answer_badly(
    azure: AzureStandIn, signed_up: App, service: str, fault: dict[str, Any], code: str
) -> None:
    # The other client asks Entra several times for one sign-in, and the vault once unauthenticated.
    getattr(azure, service).fail_next(**fault, times=20)
    agree_on_failure(code, "Key Vault" if service == "vault" else "Microsoft Entra ID")


@pytest.mark.parametrize("service", ["vault", "entra"])
def test_an_answer_without_end(azure: AzureStandIn, signed_up: App, service: str) -> None:
    getattr(azure, service).fail_next("flood")
    started = time.monotonic()
    assert failure().code == "azure.unexpected_answer"
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(("service", "name"), [("vault", "Key Vault"), ("entra", "Microsoft Entra ID")])
@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_a_server_that_does_not_end_its_answer(
    azure: AzureStandIn, signed_up: App, configure: Configure, service: str, name: str, kind: Any
) -> None:
    configure(MLFLOW_SECRETS_TIMEOUT_SEC="1")
    getattr(azure, service).fail_next(kind)
    started = time.monotonic()
    error = failure()
    assert time.monotonic() - started < 1.5
    assert error.code == "fetch.timeout"
    assert f"waiting for {name} at https://localhost" in error.message


def test_a_refused_port_is_told_at_once(azure: AzureStandIn, signed_up: App, configure: Configure) -> None:
    configure(MLFLOW_AZURE_KEY_VAULT_URL="https://localhost:1", MLFLOW_SECRETS_MAX_RETRIES="3")
    started = time.monotonic()
    agree_on_failure("azure.unreachable", "connection refused")
    clear_cache()
    configure(MLFLOW_AZURE_KEY_VAULT_URL=azure.vault_url, AZURE_AUTHORITY_HOST="https://localhost:1")
    agree_on_failure("azure.sign_in_unreachable", "connection refused")
    assert time.monotonic() - started < 4


def test_a_ca_that_is_not_trusted(signed_up: App, configure: Configure) -> None:
    configure(SSL_CERT_FILE=None, REQUESTS_CA_BUNDLE=None)
    agree_on_failure("azure.tls", "signed by a CA that is not trusted here")


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_first", [True, False])
@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("form", ["pkcs8", "pkcs1", "encrypted"])
def test_a_certificate_in_any_of_its_forms(
    azure: AzureStandIn,
    use: Callable[..., None],
    certificate: ClientCertificate,
    tmp_path: Path,
    key_first: bool,
    chain: bool,
    form: str,
) -> None:
    app = azure.entra.register_certificate(certificate.public_pem())
    password = "canary pass" if form == "encrypted" else None
    pem = certificate.pem(key_first=key_first, chain=chain, pkcs1=form == "pkcs1", password=password)
    use(as_principal(app, None), AZURE_CLIENT_CERTIFICATE_PATH=write(tmp_path / "c.pem", pem))
    use(as_principal(app, None), AZURE_CLIENT_CERTIFICATE_PASSWORD=password)
    agree_on_success()


def test_the_leaf_is_the_certificate_of_the_key(
    azure: AzureStandIn, use: Callable[..., None], certificate: ClientCertificate, tmp_path: Path
) -> None:
    app = azure.entra.register_certificate(certificate.public_pem())
    issuer_first = certificate.pem(chain=True).split(b"-----BEGIN CERTIFICATE-----")
    key, leaf, issuer = (issuer_first[0], *[b"-----BEGIN CERTIFICATE-----" + part for part in issuer_first[1:]])
    use(as_principal(app, None), AZURE_CLIENT_CERTIFICATE_PATH=write(tmp_path / "c.pem", key + issuer + leaf))
    assert headers_for(URL) == {"Authorization": TOKEN}


@pytest.mark.parametrize("chain", ["true", "1", None])
def test_the_assertion_is_as_documented(
    azure: AzureStandIn,
    use: Callable[..., None],
    certificate: ClientCertificate,
    tmp_path: Path,
    chain: str | None,
) -> None:
    azure.entra.reject_reused_jti = True
    azure.entra.token_lifetime_sec = 60  # less than the SDK's margin, so that each read signs in
    app = azure.entra.register_certificate(certificate.public_pem())
    use(
        as_principal(app, None),
        AZURE_CLIENT_CERTIFICATE_PATH=write(tmp_path / "c.pem", certificate.pem(chain=True)),
        AZURE_CLIENT_SEND_CERTIFICATE_CHAIN=chain,
    )
    headers_for(URL)
    headers_for(URL)
    assertions = [request.form["client_assertion"] for request in azure.entra.requests]
    assert len(set(assertions)) == len(assertions) >= 2
    header = jwt.get_unverified_header(assertions[0])
    claims = jwt.decode(assertions[0], options={"verify_signature": False})
    assert header["alg"] == "PS256"
    assert set(header) == {"alg", "typ", "x5t#S256", *(["x5c"] if chain else [])}
    assert "=" not in header["x5t#S256"]
    assert len(header.get("x5c", [])) == (2 if chain else 0)
    assert claims["iss"] == claims["sub"] == app.client_id
    assert claims["aud"] == f"{azure.authority_host}/{app.tenant}/oauth2/v2.0/token"
    assert claims["nbf"] <= time.time() < claims["exp"] <= time.time() + 600


def test_a_certificate_that_is_not_registered(
    azure: AzureStandIn, use: Callable[..., None], certificate: ClientCertificate, tmp_path: Path
) -> None:
    app = azure.entra.register_client()
    use(as_principal(app, None), AZURE_CLIENT_CERTIFICATE_PATH=write(tmp_path / "c.pem", certificate.pem()))
    agree_on_failure("azure.certificate_refused", "AADSTS700027")


def test_a_renewed_certificate_is_used_without_a_restart(
    azure: AzureStandIn, use: Callable[..., None], certificate: ClientCertificate, tmp_path: Path
) -> None:
    azure.entra.token_lifetime_sec = 60
    app = azure.entra.register_certificate(certificate.public_pem())
    path = tmp_path / "c.pem"
    use(as_principal(app, None), AZURE_CLIENT_CERTIFICATE_PATH=write(path, certificate.pem()))
    headers_for(URL)
    renewed = ClientCertificate.create("renewed")
    app.certificates.clear()
    azure.entra.register_certificate(renewed.public_pem(), app)
    write(path, renewed.pem())
    assert headers_for(URL)


def no_key(certificate: ClientCertificate) -> bytes:
    return certificate.public_pem().encode()


def other_key(certificate: ClientCertificate) -> bytes:
    return ClientCertificate.create().pem().partition(b"-----BEGIN CERT")[0] + no_key(certificate)


def only_key(certificate: ClientCertificate) -> bytes:
    return certificate.pem().partition(b"-----BEGIN CERT")[0]


def elliptic(certificate: ClientCertificate) -> bytes:
    return key_pem(ec.generate_private_key(ec.SECP256R1())) + no_key(certificate)


def elliptic_sec1(certificate: ClientCertificate) -> bytes:
    return key_pem(ec.generate_private_key(ec.SECP256R1()), pkcs1=True) + no_key(certificate)


def pfx(certificate: ClientCertificate) -> bytes:
    encryption = BestAvailableEncryption(b"password")
    return pkcs12.serialize_key_and_certificates(b"n", certificate.key, certificate.certificate, None, encryption)


def older_encryption(certificate: ClientCertificate) -> bytes:
    return key_pem(certificate.key, pkcs1=True, password=b"password") + no_key(certificate)


def encrypted(certificate: ClientCertificate) -> bytes:
    return certificate.pem(password="password")


def expired(_: ClientCertificate) -> bytes:
    return ClientCertificate.create(starts_in=-7200, ends_in=-3600).pem()


def future(_: ClientCertificate) -> bytes:
    return ClientCertificate.create(starts_in=3600).pem()


def nonsense(_: ClientCertificate) -> bytes:
    return b"no certificate at all"


@pytest.mark.parametrize(
    ("content", "more", "code", "words"),
    [
        (no_key, {}, "certificate_invalid", "holds no private key"),
        (only_key, {}, "certificate_invalid", "holds no certificate"),
        (other_key, {}, "certificate_invalid", "belongs to none of its certificates"),
        (elliptic, {}, "certificate_invalid", "not an RSA key"),
        (elliptic_sec1, {}, "certificate_invalid", "not an RSA key"),
        (pfx, {}, "certificate_invalid", "openssl pkcs12 -in c.pem -out client.pem -nodes"),
        (older_encryption, {}, "certificate_invalid", "openssl pkcs8 -topk8 -v2 aes-256-cbc"),
        (encrypted, {}, "certificate_invalid", "set AZURE_CLIENT_CERTIFICATE_PASSWORD"),
        (encrypted, {"AZURE_CLIENT_CERTIFICATE_PASSWORD": "wr"}, "certificate_invalid", "with another password"),
        (nonsense, {}, "certificate_invalid", "not a PEM file"),
        (expired, {}, "certificate_expired", "has expired"),
        (future, {}, "certificate_expired", "not valid yet"),
        (None, {}, "certificate_invalid", "no such file"),
    ],
)
def test_a_bad_certificate_is_told_before_anything_is_sent(
    azure: AzureStandIn,
    use: Callable[..., None],
    certificate: ClientCertificate,
    tmp_path: Path,
    content: Callable[[ClientCertificate], bytes] | None,
    more: dict[str, str],
    code: str,
    words: str,
) -> None:
    path = tmp_path / "c.pem"
    if content:
        write(path, content(certificate))
    use(as_principal(azure.entra.register_client(), None), AZURE_CLIENT_CERTIFICATE_PATH=str(path))
    use(as_principal(azure.entra.register_client(), None), **more)
    error = failure()
    assert error.code == f"azure.{code}"
    assert words in str(error)
    shows_no_secret(str(error))
    assert azure.entra.requests == azure.vault.requests == []


# --- workload identity ------------------------------------------------------------------------------------------------


def as_workload(app: App, token: str, tmp_path: Path) -> dict[str, str]:
    return as_principal(app, None) | {"AZURE_FEDERATED_TOKEN_FILE": write(tmp_path / "token", token)}


def test_a_workload_identity(
    azure: AzureStandIn, use: Callable[..., None], issuer: FederatedIssuer, tmp_path: Path
) -> None:
    app = azure.entra.register_federated(issuer, SUBJECT)
    use(as_workload(app, issuer.token(SUBJECT), tmp_path))
    agree_on_success()


def test_the_workloads_token_is_read_again_at_each_sign_in(
    azure: AzureStandIn, use: Callable[..., None], issuer: FederatedIssuer, tmp_path: Path
) -> None:
    azure.entra.token_lifetime_sec = 60
    app = azure.entra.register_federated(issuer, SUBJECT)
    use(as_workload(app, issuer.token(SUBJECT), tmp_path))
    headers_for(URL)
    fresh = issuer.token(SUBJECT)
    write(tmp_path / "token", f"{fresh}\n")
    headers_for(URL)
    assert azure.entra.requests[-1].form["client_assertion"] == fresh


@pytest.mark.parametrize(
    ("subject", "options", "code", "word"),
    [
        ("system:serviceaccount:ns:other", {}, "AADSTS700213", "subject"),
        (SUBJECT, {"audience": "https://else"}, "AADSTS700212", "audience"),
        (SUBJECT, {"lifetime": -3600}, "AADSTS700024", "out of its time"),
    ],
)
def test_a_workloads_token_that_does_not_match(
    azure: AzureStandIn,
    use: Callable[..., None],
    issuer: FederatedIssuer,
    tmp_path: Path,
    subject: str,
    options: dict[str, Any],
    code: str,
    word: str,
) -> None:
    app = azure.entra.register_federated(issuer, SUBJECT)
    use(as_workload(app, issuer.token(subject, **options), tmp_path))
    agree_on_failure("azure.federated_token_refused", code, word)


def test_a_workloads_token_of_another_issuer(
    azure: AzureStandIn, use: Callable[..., None], issuer: FederatedIssuer, tmp_path: Path
) -> None:
    app = azure.entra.register_federated(issuer, SUBJECT)
    token = FederatedIssuer("https://oidc.example.com/other").token(SUBJECT)
    use(as_workload(app, token, tmp_path))
    agree_on_failure("azure.federated_token_refused", "AADSTS700211", "issuer")


def test_an_identity_without_federated_credentials(
    azure: AzureStandIn, use: Callable[..., None], issuer: FederatedIssuer, tmp_path: Path
) -> None:
    use(as_workload(azure.entra.register_client(), issuer.token(SUBJECT), tmp_path))
    error = agree_on_failure("azure.federated_token_refused", "AADSTS")
    assert "federated credential" in error.message


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), ("\n", "is empty")])
def test_a_workloads_token_file_that_is_not_usable(
    azure: AzureStandIn, use: Callable[..., None], tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        write(path, content)
    use(as_principal(azure.entra.register_client(), None), AZURE_FEDERATED_TOKEN_FILE=str(path))
    error = failure()
    assert error.code == "azure.federated_token_invalid"
    assert words in error.message
    assert azure.entra.requests == azure.vault.requests == []


# --- managed identity on App Service and Azure Machine Learning -------------------------------------------------------


MACHINES = ["app_service", "azure_ml"]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_system_assigned_identity(azure: AzureStandIn, use: Callable[..., None], machine: str) -> None:
    use(getattr(azure, machine).environment())
    agree_on_success()


@pytest.mark.parametrize("machine", MACHINES)
def test_a_user_assigned_identity_by_its_client_id_alone(
    azure: AzureStandIn, use: Callable[..., None], machine: str
) -> None:
    azure.identities.system = None
    wanted = [azure.identities.assign(), azure.identities.assign()][1]
    use(getattr(azure, machine).environment(), AZURE_CLIENT_ID=wanted.client_id)
    agree_on_success()
    sent = getattr(azure, machine).requests[-1].query
    assert wanted.client_id in sent.values()
    assert sent["resource"] == "https://vault.azure.net"


@pytest.mark.parametrize("machine", MACHINES)
def test_an_identity_that_is_not_assigned(azure: AzureStandIn, use: Callable[..., None], machine: str) -> None:
    client = str(uuid.uuid4())
    use(getattr(azure, machine).environment(), AZURE_CLIENT_ID=client, AZURE_TOKEN_CREDENTIALS="prod")
    agree_on_failure("azure.identity_not_assigned", client, "not its object id")


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_without_an_identity(azure: AzureStandIn, use: Callable[..., None], machine: str) -> None:
    azure.identities.unassign_all()
    use(getattr(azure, machine).environment())
    error = agree_on_failure("azure.identity_not_assigned", "switch on the system-assigned identity")
    assert "AzureCliCredential" in error.message


@pytest.mark.parametrize(("machine", "name"), [("app_service", "IDENTITY_HEADER"), ("azure_ml", "MSI_SECRET")])
def test_a_wrong_identity_header(azure: AzureStandIn, use: Callable[..., None], machine: str, name: str) -> None:
    use(getattr(azure, machine).environment(), **{name: "wrong"})
    agree_on_failure("azure.sign_in_refused", "HTTP 401", name)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"status": 500}, "azure.unavailable"),
        ({"status": 429}, "azure.throttled"),
        ({"kind": "html", "status": 200}, "azure.unexpected_answer"),
        ({"kind": "close"}, "azure.sign_in_unreachable"),
    ],
)
def test_an_identity_endpoint_that_fails(
    azure: AzureStandIn, use: Callable[..., None], machine: str, fault: dict[str, Any], code: str
) -> None:
    use(getattr(azure, machine).environment(), AZURE_TOKEN_CREDENTIALS="ManagedIdentityCredential")
    getattr(azure, machine).fail_next(**fault, times=20)
    agree_on_failure(code)


def test_the_platforms_variables_count_only_in_the_process(azure: AzureStandIn, use: Callable[..., None]) -> None:
    """The SDK reads them from there; settings that say otherwise are told so, and no other identity is taken."""
    use()
    given = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "AZURE_", "SSL_"))}
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(URL, settings={**given, **azure.app_service.environment()})
    assert caught.value.code == "azure.no_identity"
    assert "must be set in the environment of the process" in caught.value.message
    assert headers_for(URL, settings={**given, **azure.azure_ml.environment()}) == {"Authorization": TOKEN}


def test_azure_ml_names_its_default_identity(azure: AzureStandIn, use: Callable[..., None]) -> None:
    azure.azure_ml.require_client_id = True
    identity = azure.identities.assign()
    use(azure.azure_ml.environment(), DEFAULT_IDENTITY_CLIENT_ID=identity.client_id)
    assert headers_for(URL) == {"Authorization": TOKEN}


def test_azure_ml_may_send_the_end_as_text(azure: AzureStandIn, use: Callable[..., None]) -> None:
    azure.azure_ml.expires_on_as_text = True
    use(azure.azure_ml.environment())
    agree_on_success()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"IDENTITY_ENDPOINT": "http://localhost:1", "IMDS_ENDPOINT": "http://localhost:2"}, "Azure Arc"),
        ({"MSI_ENDPOINT": "http://localhost:1"}, "Cloud Shell"),
        (
            {
                "IDENTITY_ENDPOINT": "https://localhost:1",
                "IDENTITY_HEADER": "h",
                "IDENTITY_SERVER_THUMBPRINT": "t",
            },
            "Service Fabric",
        ),
    ],
)
def test_machines_that_are_not_supported_are_named(
    use: Callable[..., None], variables: dict[str, str], name: str
) -> None:
    use(variables)
    error = failure()
    assert error.code == "azure.identity_unsupported"
    assert name in error.message


# --- developer tools --------------------------------------------------------------------------------------------------


@pytest.fixture
def tool(azure: AzureStandIn, tmp_path: Path, configure: Configure) -> Callable[..., Path]:
    """Puts a command on the PATH that runs this shell script; gives the file in which it notes its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    configure(PATH=f"{folder}:/usr/bin:/bin")

    def install(name: str, script: str) -> Path:
        notes = tmp_path / f"{name}.notes"
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {notes}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return notes

    return install


def printing(azure: AzureStandIn, name: str) -> str:
    """A script that prints a token as the tool does."""
    token = azure.entra.access_token("cli", "oid", "https://vault.azure.net")
    if name == "azd":
        answer: dict[str, Any] = {"token": token, "expiresOn": "2099-01-01T00:00:00Z"}
    else:
        answer = {"accessToken": token, "expires_on": int(time.time()) + 3600, "tokenType": "Bearer"}
        answer["expiresOn"] = "2099-01-01 00:00:00.000000"
    return f"cat <<'END'\n{json.dumps(answer)}\nEND"


@pytest.mark.parametrize("name", ["az", "azd"])
def test_a_developers_login(
    azure: AzureStandIn, use: Callable[..., None], tool: Callable[..., Path], name: str
) -> None:
    notes = tool(name, printing(azure, name))
    use(AZURE_TOKEN_CREDENTIALS="dev")
    agree_on_success()
    # Both take the tenant from the vault's challenge.
    assert all(azure.entra.tenant in line for line in notes.read_text().splitlines() if "token" in line)


def test_az_comes_before_azd_and_a_failure_goes_on(
    azure: AzureStandIn, use: Callable[..., None], tool: Callable[..., Path]
) -> None:
    tool("az", "echo \"ERROR: Please run 'az login' to setup account.\" >&2; exit 1")
    tool("azd", printing(azure, "azd"))
    use(AZURE_TOKEN_CREDENTIALS="dev")
    agree_on_success()


def test_nobody_is_logged_in(use: Callable[..., None], tool: Callable[..., Path]) -> None:
    tool("az", "echo \"ERROR: Please run 'az login' to setup account.\" >&2; exit 1")
    use(AZURE_TOKEN_CREDENTIALS="AzureCliCredential")
    agree_on_failure("azure.tool_failed", "Please run 'az login'", "run `az login`")


def test_a_tool_with_entras_number(use: Callable[..., None], tool: Callable[..., Path]) -> None:
    tool("az", "echo 'ERROR: AADSTS70043: The refresh token has expired' >&2; exit 1")
    use(AZURE_TOKEN_CREDENTIALS="AzureCliCredential")
    agree_on_failure("azure.tool_failed", "AADSTS70043")


@pytest.mark.parametrize("printed", ["not json", '{"accessToken": "canary"}', ""])
def test_a_tool_that_prints_something_else(use: Callable[..., None], tool: Callable[..., Path], printed: str) -> None:
    tool("az", f"printf '%s' '{printed}'")
    use(AZURE_TOKEN_CREDENTIALS="AzureCliCredential")
    error = agree_on_failure("azure.tool_failed", "is no token")
    assert "canary" not in str(error)


def test_a_tool_is_not_installed(use: Callable[..., None], tool: Callable[..., Path]) -> None:
    use(AZURE_TOKEN_CREDENTIALS="dev")
    error = agree_on_failure("azure.no_identity", "az is not on the PATH", "azd is not on the PATH")
    assert re.search(r"AzureCliCredential \(\d+ ms\)", error.message)


def test_a_tool_that_hangs_is_ended_with_the_fetch(
    use: Callable[..., None], tool: Callable[..., Path], tmp_path: Path
) -> None:
    numbers = tmp_path / "pids"
    tool("az", f"sleep 60 & echo $$ $! > {numbers}; wait")
    use(AZURE_TOKEN_CREDENTIALS="dev", MLFLOW_SECRETS_TIMEOUT_SEC="1")
    started = time.monotonic()
    error = failure()
    assert time.monotonic() - started < 1.5
    assert error.code == "fetch.timeout"
    assert "waiting for the Azure CLI" in error.message
    for number in map(int, numbers.read_text().split()):
        ended_within(1, number)


def ended_within(seconds: float, number: int) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        state = ""
        with suppress(FileNotFoundError):
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        if state in ("", "Z"):
            return
        time.sleep(0.01)
    pytest.fail(f"process {number} is still there")


# --- the chain --------------------------------------------------------------------------------------------------------


def test_what_is_configured_and_refused_is_not_covered_up(azure: AzureStandIn, use: Callable[..., None]) -> None:
    use(as_principal(azure.entra.register_client(SECRET), "wrong") | azure.app_service.environment())
    agree_on_failure("azure.client_secret_invalid", "AADSTS7000215")
    assert azure.app_service.requests == []


def test_a_client_secret_comes_before_a_certificate_and_a_workload(
    azure: AzureStandIn, use: Callable[..., None], tmp_path: Path
) -> None:
    app = azure.entra.register_client(SECRET)
    missing = str(tmp_path / "missing")
    use(as_principal(app), AZURE_CLIENT_CERTIFICATE_PATH=missing, AZURE_FEDERATED_TOKEN_FILE=missing)
    agree_on_success()


@pytest.mark.parametrize(
    ("wanted", "succeeds"),
    [
        ("prod", True),
        ("PROD", True),
        ("dev", False),
        ("EnvironmentCredential", False),
        ("WorkloadIdentityCredential", False),
        ("ManagedIdentityCredential", True),
        ("managedidentitycredential", True),
        ("AzureCliCredential", False),
        ("AzureDeveloperCliCredential", False),
    ],
)
def test_token_credentials_narrows_the_chain(
    azure: AzureStandIn, use: Callable[..., None], tool: Callable[..., Path], wanted: str, succeeds: bool
) -> None:
    use(azure.app_service.environment(), AZURE_TOKEN_CREDENTIALS=wanted)
    if succeeds:
        agree_on_success()
    else:
        agree_on_failure("azure.no_identity")
        assert azure.app_service.requests == []


def test_the_winner_is_logged_once_and_shown_by_doctor(
    azure: AzureStandIn, use: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    azure.entra.token_lifetime_sec = 60
    use(as_principal(azure.entra.register_client(SECRET)))
    for _ in range(3):
        headers_for(URL)
    signed_in = [record for record in caplog.records if "signed in to Azure" in record.getMessage()]
    assert len(signed_in) == 1
    assert signed_in[0].name == "mlflow_secrets_auth.azure"
    assert "EnvironmentCredential" in signed_in[0].getMessage()
    shows_no_secret(caplog.text)


def test_doctor_shows_the_winner_and_what_was_tried_before(azure: AzureStandIn, use: Callable[..., None]) -> None:
    use(azure.app_service.environment())
    command = [str(Path(sys.executable).parent / "mlflow-secrets-auth"), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shows_no_secret(done.stdout + done.stderr)
    (found,) = [one for one in json.loads(done.stdout)["findings"] if one["code"] == "identity.found"]
    assert [(one["way"], one["succeeded"]) for one in found["facts"]["tried"]] == [
        ("EnvironmentCredential", False),
        ("WorkloadIdentityCredential", False),
        ("ManagedIdentityCredential", True),
    ]
    assert "managed identity" in found["message"]


# --- the vault --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "code", "words"),
    [
        ("rbac", "azure.rbac_denied", "Key Vault Secrets User"),
        ("access_policy", "azure.access_policy_denied", "secret permission Get"),
        ("firewall", "azure.firewall_denied", "firewall"),
    ],
)
def test_denied(azure: AzureStandIn, signed_up: App, reason: Any, code: str, words: str) -> None:
    azure.vault.deny(reason, signed_up.client_id)
    agree_on_failure(code, "HTTP 403", words)


def test_a_disabled_secret(azure: AzureStandIn, signed_up: App) -> None:
    azure.vault.update("mlflow-auth", enabled=False)
    agree_on_failure("azure.secret_disabled", "mlflow-auth")


def test_a_deleted_secret_can_be_recovered(azure: AzureStandIn, signed_up: App) -> None:
    azure.vault.delete("mlflow-auth")
    agree_on_failure("azure.secret_deleted", "az keyvault secret recover --name mlflow-auth")
    azure.vault.recover("mlflow-auth")
    clear_cache()
    agree_on_success()


def test_a_secret_that_is_being_deleted(azure: AzureStandIn, signed_up: App) -> None:
    azure.vault.delete("mlflow-auth", done=False)
    agree_on_failure("azure.secret_deleted", "is being deleted")


@pytest.mark.parametrize(
    ("attribute", "offset", "code"),
    [("expires", -10, "azure.secret_expired"), ("not_before", 3600, "azure.secret_not_yet_valid")],
)
def test_the_vault_gives_secrets_out_of_their_time_and_we_do_not(
    azure: AzureStandIn, signed_up: App, attribute: str, offset: int, code: str
) -> None:
    azure.vault.update("mlflow-auth", **{attribute: time.time() + offset})
    assert official().value == TOKEN
    error = failure()
    assert error.code == code
    assert "UTC" in error.message


def test_the_secrets_expiry_shortens_the_ttl(azure: AzureStandIn, signed_up: App, configure: Configure) -> None:
    configure(MLFLOW_AZURE_TTL_SEC="300")
    azure.vault.update("mlflow-auth", expires=time.time() + 40)
    headers_for(URL)
    (entry,) = cache_info().entries
    assert entry.expires_in <= 40


def test_versions(azure: AzureStandIn, signed_up: App, configure: Configure) -> None:
    first = azure.vault.set_secret("versioned", "first")
    azure.vault.rotate("versioned", "second")
    configure(MLFLOW_AZURE_SECRET_NAME="versioned")
    assert headers_for(URL) == {"Authorization": "second"}
    configure(MLFLOW_AZURE_SECRET_VERSION="LATEST")
    assert headers_for(URL) == {"Authorization": "second"}
    configure(MLFLOW_AZURE_SECRET_VERSION=first)
    agree_on_success()
    assert headers_for(URL) == {"Authorization": "first"}
    configure(MLFLOW_AZURE_SECRET_VERSION="0" * 32)
    agree_on_failure("azure.not_found", "0" * 32)


def test_a_vault_that_does_not_know_the_interface(azure: AzureStandIn, signed_up: App) -> None:
    azure.vault.api_versions = frozenset({"7.0"})
    agree_on_failure("azure.unexpected_answer", "version of the interface")


def test_a_rotated_secret_is_read(azure: AzureStandIn, signed_up: App, configure: Configure) -> None:
    configure(MLFLOW_AZURE_TTL_SEC="300")
    assert headers_for(URL) == {"Authorization": TOKEN}
    azure.vault.rotate("mlflow-auth", "rotated")
    assert headers_for(URL) == {"Authorization": TOKEN}
    refresh()
    assert headers_for(URL) == {"Authorization": "rotated"}


@pytest.mark.parametrize(
    ("value", "mode", "header"),
    [
        ('{"token": "t"}', "bearer", "Bearer t"),
        ("plain", "bearer", "Bearer plain"),
        ('{"username": "u", "password": "p"}', "basic", f"Basic {base64.b64encode(b'u:p').decode()}"),
    ],
)
def test_secret_formats(
    azure: AzureStandIn, signed_up: App, configure: Configure, value: str, mode: str, header: str
) -> None:
    azure.vault.set_secret("mlflow-auth", value)
    configure(MLFLOW_AZURE_AUTH_MODE=mode)
    assert headers_for(URL) == {"Authorization": header}


def test_a_stale_credential_outlives_the_vault(azure: AzureStandIn, signed_up: App, configure: Configure) -> None:
    configure(MLFLOW_AZURE_TTL_SEC="0.2", MLFLOW_SECRETS_STALE_IF_ERROR_SEC="60")
    assert headers_for(URL)
    azure.vault.fail_next(status=503, times=100)
    time.sleep(0.25)
    assert headers_for(URL) == {"Authorization": TOKEN}
    azure.vault.reset()
    azure.vault.set_secret("mlflow-auth", TOKEN)
    azure.vault.deny("rbac")
    clear_cache()
    assert failure().code == "azure.rbac_denied"


# --- a forked child ---------------------------------------------------------------------------------------------------


def test_a_forked_child_signs_in_for_itself(azure: AzureStandIn, signed_up: App) -> None:
    headers_for(URL)
    before = {request.peer_port for request in azure.vault.requests}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.write(writer, headers_for(URL)["Authorization"].encode())
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 100).decode() == TOKEN
    os.close(reader)
    os.waitpid(child, 0)
    assert azure.vault.requests[-1].peer_port not in before


# --- clouds and the real names, through a proxy -----------------------------------------------------------------------


CLOUDS = {
    "AzurePublicCloud": ("vault.azure.net", "login.microsoftonline.com"),
    "AzureUSGovernment": ("vault.usgovcloudapi.net", "login.microsoftonline.us"),
    "AzureChinaCloud": ("vault.azure.cn", "login.chinacloudapi.cn"),
}


@pytest.fixture(scope="module", params=list(CLOUDS))
def cloud(request: pytest.FixtureRequest) -> Iterator[tuple[str, AzureStandIn]]:
    suffix, _ = CLOUDS[request.param]
    with AzureStandIn(f"https://{suffix}") as stand_in:
        yield request.param, stand_in


@pytest.mark.parametrize("told_by", ["url", "url_and_cloud", "name_and_cloud"])
def test_a_vault_by_its_real_name_with_the_challenge_check_on(
    cloud: tuple[str, AzureStandIn], configure: Configure, told_by: str
) -> None:
    name, azure = cloud
    suffix, authority = CLOUDS[name]
    azure.reset()
    azure.vault.challenge_authority = f"https://{authority}"
    azure.vault.set_secret("mlflow-auth", TOKEN)
    app = azure.entra.register_client(SECRET)
    with Proxy({suffix: azure.vault.port, authority: azure.entra.port}) as proxy:
        configure(
            as_principal(app) | RAW,
            MLFLOW_SECRETS_AUTH_ENABLE="azure-key-vault",
            MLFLOW_AZURE_SECRET_NAME="mlflow-auth",
            MLFLOW_AZURE_KEY_VAULT_URL=f"https://team-ml.{suffix}/" if "url" in told_by else None,
            AZURE_KEY_VAULT_NAME="Team-ML" if "name" in told_by else None,
            AZURE_CLOUD_ENVIRONMENT=name.lower() if "cloud" in told_by else None,
            REQUESTS_CA_BUNDLE=azure.ca_file,
            SSL_CERT_FILE=azure.ca_file,
            HTTPS_PROXY=proxy.url,
        )
        assert headers_for(URL) == {"Authorization": TOKEN}
        assert set(proxy.asked) == {f"team-ml.{suffix}:443", f"{authority}:443"}
        if "url" in told_by:
            configure(AZURE_AUTHORITY_HOST=authority)
            agree_on_success()


def test_a_vault_whose_challenge_names_another_domain_gets_nothing(
    azure: AzureStandIn, signed_up: App, configure: Configure
) -> None:
    configure(MLFLOW_AZURE_VERIFY_CHALLENGE="true")
    error = agree_on_failure("azure.challenge_refused", "vault.azure.net", "MLFLOW_AZURE_VERIFY_CHALLENGE=false")
    assert "localhost" in error.message
    assert azure.entra.count("token.secret") == 0
    assert azure.vault.count("get_secret") == 0


def test_a_vault_of_another_cloud_than_the_named_one(use: Callable[..., None]) -> None:
    use(
        MLFLOW_AZURE_KEY_VAULT_URL="https://team-ml.vault.azure.cn",
        AZURE_CLOUD_ENVIRONMENT="AzureUSGovernment",
    )
    with pytest.raises(ConfigurationError) as caught:
        headers_for(URL)
    assert caught.value.code == "config.conflict"
    assert "AzureChinaCloud" in str(caught.value)


def test_the_referee_is_asked_for_the_same_secret(signed_up: App) -> None:
    """The referee's own settings come from the variables that ours reads, and nothing else."""
    with DefaultAzureCredential(disable_instance_discovery=True) as credential:
        client = SecretClient(os.environ["MLFLOW_AZURE_KEY_VAULT_URL"], credential, verify_challenge_resource=False)
        assert client.get_secret("mlflow-auth").value == TOKEN


def test_the_guide_names_every_code() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "azure.md").read_text()
    named = set(re.findall(r"`(azure\.\w+)`", guide))
    assert named == {code for code, *_ in _core.error_codes() if code.startswith("azure.")}
