"""The referee: Microsoft's own Python SDK runs against the stand-in, in good and bad cases.

Where the SDK disagrees with the stand-in, the stand-in is wrong. Nothing is patched: the SDK talks
to real servers over TLS and is told only their addresses and their CA.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import msal  # type: ignore[import-untyped]
import pytest
import requests
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import (
    CertificateCredential,
    ClientAssertionCredential,
    ClientSecretCredential,
    CredentialUnavailableError,
    DefaultAzureCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)
from azure.keyvault.secrets import KeyVaultSecret, SecretClient
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import BasicConstraints, load_der_x509_certificate

import azure_stand_in
from azure_fixtures import azure, azure_servers
from azure_stand_in import (
    App,
    AzureStandIn,
    ClientCertificate,
    Denial,
    FederatedIssuer,
    IdentityEndpoint,
)

__all__ = ["azure", "azure_servers"]

SCOPE = "https://vault.azure.net/.default"
SECRET = "s3cr%t+~/&="
SUBJECT = "system:serviceaccount:ns:mlflow"
VALUE = '{"token": "öäü-t0ken"}'


# --- tools ----------------------------------------------------------------------------------------


class FixedToken:
    """A credential that has one token, good or bad."""

    def __init__(self, token: str) -> None:
        self.token = token

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(self.token, int(time.time()) + 3600)


def identity_options(azure: AzureStandIn, **options: Any) -> dict[str, Any]:
    trust = {"connection_verify": azure.ca_file, "retry_total": 0}
    address = {"authority": azure.authority_host, "disable_instance_discovery": True}
    return trust | address | options


def by_secret(azure: AzureStandIn, app: App, secret: str = SECRET) -> ClientSecretCredential:
    return ClientSecretCredential(app.tenant, app.client_id, secret, **identity_options(azure))


def signed_in(azure: AzureStandIn) -> ClientSecretCredential:
    return by_secret(azure, azure.entra.register_client(SECRET))


def vault_client(azure: AzureStandIn, credential: Any, **options: Any) -> SecretClient:
    defaults = {
        "connection_verify": azure.ca_file,
        "verify_challenge_resource": False,
        "retry_total": 0,
    }
    return SecretClient(azure.vault_url, credential, **(defaults | options))


def read(azure: AzureStandIn, credential: Any, **options: Any) -> KeyVaultSecret:
    return vault_client(azure, credential, **options).get_secret("mlflow-auth")


def rejected(credential: Any, number: int) -> str:
    """Sign in, be refused with this AADSTS number, and give the message."""
    with pytest.raises(ClientAuthenticationError, match=f"AADSTS{number}: ") as caught:
        credential.get_token(SCOPE)
    return str(caught.value)


def inner_code(error: HttpResponseError) -> str:
    assert error.error
    return str(error.error.innererror["code"])


def assertion(
    azure: AzureStandIn,
    app: App,
    certificate: ClientCertificate,
    *,
    algorithm: str = "PS256",
    header: dict[str, Any] | None = None,
    key: Any = None,
    **claims: Any,
) -> str:
    """A client assertion as Entra's documentation describes it, with any part replaced."""
    name, digest = {"PS256": ("x5t#S256", SHA256()), "RS256": ("x5t", SHA1())}[algorithm]
    thumbprint = certificate.certificate.fingerprint(digest)
    encoded = base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
    now = int(time.time())
    standard = {
        "aud": f"{azure.authority_host}/{app.tenant}/oauth2/v2.0/token",
        "iss": app.client_id,
        "sub": app.client_id,
        "jti": str(uuid.uuid4()),
        "nbf": now,
        "exp": now + 300,
    }
    merged_header = {name: encoded} | (header or {})
    return jwt.encode(standard | claims, key or certificate.key, algorithm, headers=merged_header)


def by_assertion(azure: AzureStandIn, app: App, make: Callable[[], str]) -> ClientAssertionCredential:
    return ClientAssertionCredential(app.tenant, app.client_id, make, **identity_options(azure))


@pytest.fixture(scope="module")
def certificate() -> ClientCertificate:
    return ClientCertificate.create()


@pytest.fixture(scope="module")
def other_certificate() -> ClientCertificate:
    return ClientCertificate.create("other")


@pytest.fixture(scope="module")
def issuer() -> FederatedIssuer:
    return FederatedIssuer()


@pytest.fixture(autouse=True)
def _no_azure_environment(monkeypatch: pytest.MonkeyPatch, azure: AzureStandIn) -> None:
    """Variables of the machine must not decide; every test has the same secret to read."""
    prefixes = ("AZURE_", "IDENTITY_", "MSI_", "IMDS_")
    names = {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    for name in list(os.environ):
        if name in names or name.startswith(prefixes) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    azure.vault.set_secret("mlflow-auth", VALUE)


# --- client secret --------------------------------------------------------------------------------


def test_client_secret_reads_a_secret_in_four_requests() -> None:
    """Discovery, challenge, token, read; with a warm client only the read."""
    with AzureStandIn() as fresh:
        fresh.vault.set_secret("mlflow-auth", VALUE)
        client = vault_client(fresh, signed_in(fresh))
        assert client.get_secret("mlflow-auth").value == VALUE
        handled = [(r.handler, r.status) for r in fresh.entra.requests]
        assert handled == [("openid_configuration", 200), ("token.secret", 200)]
        handled = [(r.handler, r.status) for r in fresh.vault.requests]
        assert handled == [("challenge", 401), ("get_secret", 200)]
        assert fresh.vault.requests[1].path == "/secrets/mlflow-auth/"
        client.get_secret("mlflow-auth")
        assert len(fresh.entra.requests) == 2
        assert len(fresh.vault.requests) == 3
        assert len({request.peer_port for request in fresh.vault.requests}) == 1


def test_access_token_is_what_entra_issues(azure: AzureStandIn) -> None:
    app = azure.entra.register_client(SECRET)
    token = by_secret(azure, app).get_token(SCOPE)
    claims = jwt.decode(token.token, options={"verify_signature": False})
    assert claims["aud"] == "https://vault.azure.net"
    assert claims["iss"] == f"https://sts.windows.net/{app.tenant}/"
    assert (claims["appid"], claims["oid"]) == (app.client_id, app.object_id)
    assert abs(claims["exp"] - token.expires_on) <= 2


def test_wrong_client_secret(azure: AzureStandIn) -> None:
    app = azure.entra.register_client(SECRET)
    message = rejected(by_secret(azure, app, "wrong"), 7000215)
    assert "\r\nTrace ID: " in message
    assert azure.entra.count("token.secret", status=401) == 1
    with pytest.raises(ClientAuthenticationError):
        read(azure, by_secret(azure, app, "wrong"))
    assert azure.vault.count("get_secret") == 0


def test_expired_client_secret(azure: AzureStandIn) -> None:
    app = azure.entra.register_client(SECRET, expires=time.time() - 1)
    rejected(by_secret(azure, app), 7000222)


def test_second_client_secret_counts_too(azure: AzureStandIn) -> None:
    app = azure.entra.register_client("old", expires=time.time() - 1)
    app.secrets[SECRET] = None
    assert read(azure, by_secret(azure, app)).value == VALUE


def test_unknown_client(azure: AzureStandIn) -> None:
    rejected(by_secret(azure, App(azure.entra.tenant)), 700016)


def test_client_of_another_tenant(azure: AzureStandIn) -> None:
    app = azure.entra.register_client(SECRET)
    app.tenant = azure.entra.register_tenant()
    rejected(by_secret(azure, app), 700016)


def test_unknown_tenant(azure: AzureStandIn) -> None:
    """The SDK stops at discovery and hides the number; the token endpoint tells it."""
    app = App(str(uuid.uuid4()))
    with pytest.raises(ClientAuthenticationError, match="Unable to get authority configuration"):
        by_secret(azure, app).get_token(SCOPE)
    assert azure.entra.count("openid_configuration", status=400) == 1
    url = f"{azure.authority_host}/{app.tenant}/oauth2/v2.0/token"
    answer = requests.post(url, data={"client_id": "x"}, verify=azure.ca_file, timeout=5)
    body = answer.json()
    assert (answer.status_code, body["error"]) == (400, "invalid_tenant")
    assert body["error_codes"] == [90002]
    assert body["error_description"].startswith(f"AADSTS90002: Tenant '{app.tenant}' not found.")
    assert {"timestamp", "trace_id", "correlation_id"} <= body.keys()


@pytest.mark.parametrize(
    ("scope", "number"),
    [("https://nowhere.example.com/.default", 500011), ("https://vault.azure.net/read", 1002012)],
)
def test_wrong_scope(azure: AzureStandIn, scope: str, number: int) -> None:
    with pytest.raises(ClientAuthenticationError, match=f"AADSTS{number}"):
        signed_in(azure).get_token(scope)


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"grant_type": "password"}, 70003),
        ({"grant_type": ""}, 900144),
        ({"scope": ""}, 900144),
        ({"client_secret": ""}, 7000218),
        ({"client_assertion": "e30.e30.e30"}, 900144),
    ],
)
def test_malformed_token_request(azure: AzureStandIn, changed: dict[str, str], number: int) -> None:
    """What no SDK sends, but a hand-written client might."""
    app = azure.entra.register_client(SECRET)
    form = {"grant_type": "client_credentials", "client_id": app.client_id, "scope": SCOPE}
    url = f"{azure.authority_host}/{app.tenant}/oauth2/v2.0/token"
    data = form | {"client_secret": SECRET} | changed
    answer = requests.post(url, data=data, verify=azure.ca_file, timeout=5)
    assert answer.json()["error_codes"] == [number]


# --- certificate ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        ({"key_first": False}, {}),
        ({"pkcs1": True}, {}),
        ({"password": "pässword"}, {"password": "pässword"}),
        ({"chain": True}, {"send_certificate_chain": True}),
    ],
)
def test_certificate_rs256(
    azure: AzureStandIn,
    certificate: ClientCertificate,
    tmp_path: Path,
    shape: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """azure-identity signs RS256 with `x5t`, and sends `x5c` when asked to."""
    app = azure.entra.register_certificate(certificate.public_pem())
    file = tmp_path / "client.pem"
    file.write_bytes(certificate.pem(**shape))
    options = identity_options(azure, **options)
    credential = CertificateCredential(app.tenant, app.client_id, str(file), **options)
    assert read(azure, credential).value == VALUE
    header = jwt.get_unverified_header(azure.entra.requests[-1].form["client_assertion"])
    assert header["alg"] == "RS256"
    assert "x5t" in header
    assert len(header.get("x5c", [])) == (2 if "chain" in shape else 0)


def test_certificate_ps256(azure: AzureStandIn, certificate: ClientCertificate) -> None:
    """MSAL, under azure-identity, signs PS256 with `x5t#S256` and `x5c` by its newer option."""
    app = azure.entra.register_certificate(certificate.public_pem())
    session = requests.Session()
    session.verify = azure.ca_file
    application = msal.ConfidentialClientApplication(
        app.client_id,
        authority=f"{azure.authority_host}/{app.tenant}",
        client_credential={
            "private_key": certificate.pem().decode(),
            "public_certificate": certificate.public_pem(),
        },
        http_client=session,
        instance_discovery=False,
    )
    result = application.acquire_token_for_client([SCOPE])
    header = jwt.get_unverified_header(azure.entra.requests[-1].form["client_assertion"])
    assert (header["alg"], len(header["x5c"])) == ("PS256", 1)
    assert "x5t#S256" in header
    assert read(azure, FixedToken(result["access_token"])).value == VALUE


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
def test_documented_assertion(azure: AzureStandIn, certificate: ClientCertificate, algorithm: str) -> None:
    """As a client without MSAL would write it, with `nbf` and an unpadded thumbprint."""
    app = azure.entra.register_certificate(certificate.public_pem())
    der = [c.public_bytes(Encoding.DER) for c in (certificate.certificate, *certificate.chain)]
    header = {"x5c": [base64.b64encode(one).decode() for one in der]}
    make = lambda: assertion(azure, app, certificate, algorithm=algorithm, header=header)  # noqa: E731
    assert read(azure, by_assertion(azure, app, make)).value == VALUE
    assert azure.entra.count("token.certificate", status=200) == 1


def test_certificate_not_registered(
    azure: AzureStandIn, certificate: ClientCertificate, other_certificate: ClientCertificate
) -> None:
    app = azure.entra.register_certificate(other_certificate.public_pem())
    options = identity_options(azure, certificate_data=certificate.pem())
    message = rejected(CertificateCredential(app.tenant, app.client_id, **options), 700027)
    assert "The key was not found" in message


def test_expired_certificate(azure: AzureStandIn) -> None:
    expired = ClientCertificate.create(starts_in=-7200, ends_in=-3600)
    app = azure.entra.register_certificate(expired.public_pem())
    options = identity_options(azure, certificate_data=expired.pem())
    rejected(CertificateCredential(app.tenant, app.client_id, **options), 1000502)


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"aud": "https://login.microsoftonline.com/t/oauth2/v2.0/token"}, 700023),
        ({"iss": "someone"}, 700021),
        ({"sub": "someone"}, 700021),
        ({"exp": 1_000_000_000}, 700024),
        ({"nbf": 4_000_000_000}, 700024),
        ({"jti": None}, 50027),
        ({"header": {"x5t#S256": "AAAA"}}, 700027),
        ({"header": {"x5t#S256": None, "x5t": "AAAA"}}, 50027),
        ({"header": {"x5c": "no list"}}, 50027),
        ({"header": {"x5c": ["-----BEGIN CERTIFICATE-----"]}}, 50027),
    ],
)
def test_bad_certificate_assertion(
    azure: AzureStandIn, certificate: ClientCertificate, changed: dict[str, Any], number: int
) -> None:
    app = azure.entra.register_certificate(certificate.public_pem())
    rejected(by_assertion(azure, app, lambda: assertion(azure, app, certificate, **changed)), number)
    assert azure.entra.requests[-1].handler == "token.certificate"


def test_assertion_signed_with_another_key(
    azure: AzureStandIn, certificate: ClientCertificate, other_certificate: ClientCertificate
) -> None:
    app = azure.entra.register_certificate(certificate.public_pem())
    make = lambda: assertion(azure, app, certificate, key=other_certificate.key)  # noqa: E731
    assert "signature" in rejected(by_assertion(azure, app, make), 700027)


def test_chain_must_begin_with_the_signing_certificate(
    azure: AzureStandIn, certificate: ClientCertificate, other_certificate: ClientCertificate
) -> None:
    app = azure.entra.register_certificate(certificate.public_pem())
    der = other_certificate.certificate.public_bytes(Encoding.DER)
    header = {"x5c": [base64.b64encode(der).decode()]}
    make = lambda: assertion(azure, app, certificate, header=header)  # noqa: E731
    rejected(by_assertion(azure, app, make), 50027)


def test_reused_jti(azure: AzureStandIn, certificate: ClientCertificate) -> None:
    """MSAL sends an assertion again while it is valid, so only the strict mode refuses that."""
    app = azure.entra.register_certificate(certificate.public_pem())
    options = identity_options(azure, certificate_data=certificate.pem())
    credential = CertificateCredential(app.tenant, app.client_id, **options)
    credential.get_token(SCOPE)
    credential.get_token("https://management.azure.com/.default")
    sent = [r.form["client_assertion"] for r in azure.entra.requests if r.form]
    assert sent[0] == sent[1]
    azure.entra.reject_reused_jti = True
    once = assertion(azure, app, certificate)
    by_assertion(azure, app, lambda: once).get_token(SCOPE)
    rejected(by_assertion(azure, app, lambda: once), 50027)


# --- workload identity ----------------------------------------------------------------------------


def by_workload(azure: AzureStandIn, app: App, folder: Path, token: str) -> WorkloadIdentityCredential:
    file = folder / "token"
    file.write_text(token)
    return WorkloadIdentityCredential(
        tenant_id=app.tenant,
        client_id=app.client_id,
        token_file_path=str(file),
        **identity_options(azure),
    )


def test_workload_identity(azure: AzureStandIn, issuer: FederatedIssuer, tmp_path: Path) -> None:
    app = azure.entra.register_federated(issuer, SUBJECT)
    assert read(azure, by_workload(azure, app, tmp_path, issuer.token(SUBJECT))).value == VALUE
    assert azure.entra.count("token.federated", status=200) == 1


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda issuer: issuer.token("system:serviceaccount:ns:other"), 700213),
        (lambda issuer: issuer.token(SUBJECT, audience="sts.amazonaws.com"), 700212),
        (lambda issuer: issuer.token(SUBJECT, lifetime=-600), 700024),
        (lambda issuer: FederatedIssuer(issuer.url).token(SUBJECT), 700027),
        (lambda issuer: FederatedIssuer("https://other.example.com").token(SUBJECT), 700211),
        (lambda issuer: "not a token", 50027),
    ],
)
def test_workload_identity_mismatch(
    azure: AzureStandIn,
    issuer: FederatedIssuer,
    tmp_path: Path,
    make: Callable[[FederatedIssuer], str],
    number: int,
) -> None:
    app = azure.entra.register_federated(issuer, SUBJECT)
    rejected(by_workload(azure, app, tmp_path, make(issuer)), number)


def test_workload_identity_not_configured(azure: AzureStandIn, issuer: FederatedIssuer, tmp_path: Path) -> None:
    app = azure.entra.register_client(SECRET)
    rejected(by_workload(azure, app, tmp_path, issuer.token(SUBJECT)), 70025)


# --- managed identity -----------------------------------------------------------------------------

ENDPOINTS = ["app_service", "azure_ml", "imds"]


def endpoint_of(azure: AzureStandIn, name: str, monkeypatch: pytest.MonkeyPatch) -> IdentityEndpoint:
    endpoint: IdentityEndpoint = getattr(azure, name)
    for variable, value in endpoint.environment().items():
        monkeypatch.setenv(variable, value)
    return endpoint


def unavailable(text: str, **options: Any) -> str:
    credential = ManagedIdentityCredential(retry_total=0, **options)
    with pytest.raises(CredentialUnavailableError, match=text) as caught:
        credential.get_token(SCOPE)
    return str(caught.value)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_system_assigned_identity(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    endpoint = endpoint_of(azure, name, monkeypatch)
    azure.identities.assign()
    assert read(azure, ManagedIdentityCredential(retry_total=0)).value == VALUE
    request = endpoint.requests[-1]
    assert request.query == {
        "api-version": endpoint.api_versions[0],
        "resource": "https://vault.azure.net",
    }
    assert azure.identities.system
    token = azure.vault.requests[-1].headers["authorization"].removeprefix("Bearer ")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["oid"] == azure.identities.system.object_id


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("app_service", "client_id"), ("azure_ml", "clientid"), ("imds", "client_id")],
)
def test_user_assigned_identity(
    azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch, name: str, parameter: str
) -> None:
    endpoint = endpoint_of(azure, name, monkeypatch)
    identity = azure.identities.assign()
    credential = ManagedIdentityCredential(client_id=identity.client_id, retry_total=0)
    claims = jwt.decode(credential.get_token(SCOPE).token, options={"verify_signature": False})
    assert claims["oid"] == identity.object_id
    assert endpoint.requests[-1].query[parameter] == identity.client_id


@pytest.mark.parametrize("name", ["app_service", "imds"])
@pytest.mark.parametrize("by", ["object_id", "resource_id"])
def test_user_assigned_identity_by_other_names(
    azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch, name: str, by: str
) -> None:
    endpoint_of(azure, name, monkeypatch)
    identity = azure.identities.assign()
    config = {by: getattr(identity, by)}
    token = ManagedIdentityCredential(identity_config=config, retry_total=0).get_token(SCOPE).token
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["oid"] == identity.object_id


@pytest.mark.parametrize("name", ENDPOINTS)
def test_identity_that_is_not_assigned(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    endpoint = endpoint_of(azure, name, monkeypatch)
    unavailable("Identity not found", client_id=str(uuid.uuid4()))
    assert endpoint.count("identity", status=400) == 1
    azure.identities.unassign_all()
    unavailable("Identity not found")


def test_only_user_assigned_identity_stands_in_for_the_system_one(
    azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint_of(azure, "imds", monkeypatch)
    azure.identities.unassign_all()
    identity = azure.identities.assign()
    token = ManagedIdentityCredential(retry_total=0).get_token(SCOPE).token
    assert jwt.decode(token, options={"verify_signature": False})["oid"] == identity.object_id
    azure.identities.assign()
    unavailable("Identity not found")


@pytest.mark.parametrize(("name", "variable"), [("app_service", "IDENTITY_HEADER"), ("azure_ml", "MSI_SECRET")])
def test_wrong_identity_header(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch, name: str, variable: str) -> None:
    endpoint = endpoint_of(azure, name, monkeypatch)
    monkeypatch.setenv(variable, "wrong")
    unavailable("missing or wrong")
    assert endpoint.count("identity", status=401) == 1


def test_azure_ml_that_wants_a_client_id(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python SDK doesn't look at DEFAULT_IDENTITY_CLIENT_ID; a user has to name the client."""
    endpoint_of(azure, "azure_ml", monkeypatch)
    azure.azure_ml.require_client_id = True
    assert azure.identities.system
    unavailable("'clientid' is missing")
    named = ManagedIdentityCredential(client_id=azure.identities.system.client_id, retry_total=0)
    assert read(azure, named).value == VALUE


def test_expiry_formats(azure: AzureStandIn) -> None:
    """A string everywhere but on Azure ML, where it is a number; only IMDS has `expires_in`."""
    query = {"resource": "https://vault.azure.net"}
    headers = {
        "app_service": {"X-IDENTITY-HEADER": azure.app_service.header_secret},
        "azure_ml": {"secret": azure.azure_ml.header_secret},
        "imds": {"Metadata": "true"},
    }
    kinds = {}
    for name in ENDPOINTS:
        endpoint: IdentityEndpoint = getattr(azure, name)
        params = query | {"api-version": endpoint.api_versions[0]}
        answer = requests.get(endpoint.endpoint, params, headers=headers[name], timeout=5).json()
        kinds[name] = (type(answer["expires_on"]), "expires_in" in answer)
        assert {"access_token", "resource", "token_type"} <= answer.keys()
    assert kinds == {"app_service": (str, False), "azure_ml": (int, False), "imds": (str, True)}


def test_azure_ml_with_expiry_as_text(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint_of(azure, "azure_ml", monkeypatch)
    azure.azure_ml.expires_on_as_text = True
    assert read(azure, ManagedIdentityCredential(retry_total=0)).value == VALUE


@pytest.mark.parametrize("headers", [{}, {"Metadata": "false"}, {"Metadata": "true", "X-Forwarded-For": "10.0.0.1"}])
def test_imds_refuses_requests_that_a_web_page_could_forge(azure: AzureStandIn, headers: dict[str, str]) -> None:
    params = {"api-version": "2018-02-01", "resource": "https://vault.azure.net"}
    answer = requests.get(azure.imds.endpoint, params, headers=headers, timeout=5)
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_request"


@pytest.mark.parametrize("status", [404, 410, 429, 500, 503])
def test_imds_failure_that_passes(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    endpoint_of(azure, "imds", monkeypatch)
    azure.imds.fail_next(status=status, times=1)
    credential = ManagedIdentityCredential()  # its first retry comes at once
    assert read(azure, credential).value == VALUE
    assert [request.status for request in azure.imds.requests] == [status, 200]


@pytest.mark.parametrize("status", [404, 429, 500])
def test_imds_failure_that_stays(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    endpoint_of(azure, "imds", monkeypatch)
    azure.imds.fail_next(status=status)
    unavailable("no response from the IMDS endpoint")


def test_slow_imds(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer after the client's patience is no answer."""
    endpoint_of(azure, "imds", monkeypatch)
    azure.imds.delay = 0.6
    unavailable("no response from the IMDS endpoint", read_timeout=0.2)
    azure.imds.delay = 0.1
    assert ManagedIdentityCredential(retry_total=0, read_timeout=2).get_token(SCOPE).token


# --- the default chain ----------------------------------------------------------------------------


def test_default_chain_from_the_environment(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust by REQUESTS_CA_BUNDLE, authority by AZURE_AUTHORITY_HOST: nothing by argument."""
    app = azure.entra.register_client(SECRET)
    for name, value in azure.environment(app, SECRET).items():
        monkeypatch.setenv(name, value)
    credential = DefaultAzureCredential(disable_instance_discovery=True)
    client = SecretClient(azure.vault_url, credential, verify_challenge_resource=False)
    assert client.get_secret("mlflow-auth").value == VALUE


def test_default_chain_on_a_machine_with_an_identity(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint_of(azure, "app_service", monkeypatch)
    assert read(azure, DefaultAzureCredential()).value == VALUE


# --- the vault's answers --------------------------------------------------------------------------


def test_versions(azure: AzureStandIn) -> None:
    client = vault_client(azure, signed_in(azure))
    first = client.get_secret("mlflow-auth").properties.version
    second = azure.vault.rotate("mlflow-auth", "new")
    assert client.get_secret("mlflow-auth").value == "new"
    assert client.get_secret("mlflow-auth", second).value == "new"
    assert client.get_secret("mlflow-auth", first).value == VALUE
    with pytest.raises(ResourceNotFoundError, match="SecretNotFound"):
        client.get_secret("mlflow-auth", "0" * 32)


def test_names_have_no_case(azure: AzureStandIn) -> None:
    assert vault_client(azure, signed_in(azure)).get_secret("MLflow-AUTH").value == VALUE


def test_attributes(azure: AzureStandIn) -> None:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    azure.vault.update(
        "mlflow-auth",
        not_before=(now - timedelta(days=1)).timestamp(),
        expires=(now + timedelta(days=1)).timestamp(),
        content_type="application/json",
        tags={"team": "ml"},
    )
    properties = read(azure, signed_in(azure)).properties
    assert properties.enabled
    assert properties.not_before == now - timedelta(days=1)
    assert properties.expires_on == now + timedelta(days=1)
    assert properties.created_on
    assert properties.updated_on
    assert (properties.content_type, properties.tags) == ("application/json", {"team": "ml"})
    assert (properties.name, properties.vault_url) == ("mlflow-auth", azure.vault_url)


@pytest.mark.parametrize("attribute", ["expires", "not_before"])
def test_expired_and_future_secrets_are_served(azure: AzureStandIn, attribute: str) -> None:
    """Key Vault leaves it to the client to look at the dates."""
    offset = -3600 if attribute == "expires" else 3600
    dates: dict[str, Any] = {attribute: time.time() + offset}
    azure.vault.update("mlflow-auth", **dates)
    assert read(azure, signed_in(azure)).value == VALUE


def test_disabled_secret(azure: AzureStandIn) -> None:
    first = azure.vault.set_secret("two", "old")
    azure.vault.set_secret("two", "new", enabled=False)
    client = vault_client(azure, signed_in(azure))
    with pytest.raises(HttpResponseError, match="not allowed on a disabled secret") as caught:
        client.get_secret("two")
    assert (caught.value.status_code, inner_code(caught.value)) == (403, "SecretDisabled")
    assert client.get_secret("two", first).value == "old"


def test_missing_and_deleted_secrets_look_the_same(azure: AzureStandIn) -> None:
    """Only the deleted-secrets resource tells them apart."""
    client = vault_client(azure, signed_in(azure))
    azure.vault.delete("mlflow-auth")
    messages = []
    for name in ("mlflow-auth", "never-there"):
        with pytest.raises(ResourceNotFoundError, match="SecretNotFound") as caught:
            client.get_secret(name)
        messages.append(str(caught.value).replace(name, "NAME"))
    assert messages[0] == messages[1]
    assert client.get_deleted_secret("mlflow-auth").deleted_date
    with pytest.raises(ResourceNotFoundError, match="Deleted Secret not found"):
        client.get_deleted_secret("never-there")
    azure.vault.recover("mlflow-auth")
    assert client.get_secret("mlflow-auth").value == VALUE
    azure.vault.delete("mlflow-auth")
    azure.vault.purge("mlflow-auth")
    with pytest.raises(ResourceNotFoundError):
        client.get_deleted_secret("mlflow-auth")


def test_secret_that_is_being_deleted(azure: AzureStandIn) -> None:
    azure.vault.delete("mlflow-auth", done=False)
    with pytest.raises(ResourceExistsError) as caught:
        read(azure, signed_in(azure))
    assert (caught.value.status_code, inner_code(caught.value)) == (409, "ObjectIsBeingDeleted")


@pytest.mark.parametrize(
    ("reason", "code", "text"),
    [
        ("rbac", "ForbiddenByRbac", "Caller is not authorized to perform action on resource"),
        ("access_policy", "AccessDenied", "does not have secrets get permission"),
        ("firewall", "ForbiddenByFirewall", "Client address is not authorized"),
    ],
)
def test_denied(azure: AzureStandIn, reason: Denial, code: str, text: str) -> None:
    app = azure.entra.register_client(SECRET)
    azure.vault.deny(reason, app.client_id)
    with pytest.raises(HttpResponseError, match=text) as caught:
        read(azure, by_secret(azure, app))
    assert (caught.value.status_code, inner_code(caught.value)) == (403, code)
    assert caught.value.error
    assert caught.value.error.code == "Forbidden"
    assert read(azure, signed_in(azure)).value == VALUE
    azure.vault.allow_all()
    assert read(azure, by_secret(azure, app)).value == VALUE


def test_api_version(azure: AzureStandIn) -> None:
    """An older vault, as in a sovereign cloud, refuses a newer version than it knows."""
    azure.vault.api_versions = frozenset({"7.4"})
    credential = signed_in(azure)
    with pytest.raises(HttpResponseError, match="BadParameter") as caught:
        read(azure, credential)
    assert caught.value.status_code == 400
    assert read(azure, credential, api_version="7.4").value == VALUE
    headers = {"Authorization": f"Bearer {credential.get_token(SCOPE).token}"}
    url = f"{azure.vault_url}/secrets/mlflow-auth"
    answer = requests.get(url, headers=headers, verify=azure.ca_file, timeout=5)
    assert answer.status_code == 400
    assert "api-version" in answer.json()["error"]["message"]


# --- the vault and tokens -------------------------------------------------------------------------


def test_challenge(azure: AzureStandIn) -> None:
    url = f"{azure.vault_url}/secrets/mlflow-auth?api-version=7.4"
    answer = requests.get(url, verify=azure.ca_file, timeout=5)
    authorization = f"{azure.authority_host}/{azure.entra.tenant}"
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == (
        f'Bearer authorization="{authorization}", resource="https://vault.azure.net"'
    )
    assert answer.json()["error"]["code"] == "Unauthorized"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"lifetime": -10}, "expired"),
        ({"resource": "https://management.azure.com"}, "AKV10022"),
        ({"resource": "https://vault.azure.net/"}, "AKV10022"),
        ({"tenant": str(uuid.uuid4())}, "AKV10032"),
        ({"key": FederatedIssuer().key}, "AKV10046"),
    ],
)
def test_bad_token(azure: AzureStandIn, changed: dict[str, Any], text: str) -> None:
    claims = {"resource": "https://vault.azure.net"} | changed
    token = azure.entra.access_token("client", "object", **claims)
    with pytest.raises(ClientAuthenticationError, match=text) as caught:
        read(azure, FixedToken(token))
    assert caught.value.status_code == 401
    assert azure.vault.count("rejected_token") >= 1
    assert azure.vault.count("get_secret") == 0


def test_token_that_is_no_jwt(azure: AzureStandIn) -> None:
    with pytest.raises(ClientAuthenticationError, match="Unauthorized"):
        read(azure, FixedToken("opaque"))


def test_vault_of_another_tenant() -> None:
    """The challenge names the vault's tenant; the SDK goes there only if it may.

    On servers of its own, because the SDK remembers challenges by address for good.
    """
    with AzureStandIn() as fresh:
        fresh.vault.tenant = fresh.entra.register_tenant()
        with pytest.raises(ClientAuthenticationError, match="additionally_allowed_tenants"):
            read(fresh, signed_in(fresh))


def test_token_revoked_under_a_warm_client(azure: AzureStandIn) -> None:
    """A 401 in the middle makes the SDK fetch a token again, once."""
    client = vault_client(azure, signed_in(azure))
    client.get_secret("mlflow-auth")
    azure.vault.fail_next(status=401)
    assert client.get_secret("mlflow-auth").value == VALUE
    assert azure.vault.count("authenticated", status=401) == 1
    azure.vault.fail_next(status=401, times=3)
    with pytest.raises(ClientAuthenticationError, match="revoked"):
        client.get_secret("mlflow-auth")


def test_sovereign_cloud() -> None:
    resource = "https://vault.usgovcloudapi.net"
    with AzureStandIn(vault_resource=resource) as gov:
        gov.vault.set_secret("mlflow-auth", VALUE)
        assert read(gov, signed_in(gov)).value == VALUE
        assert gov.entra.requests[-1].form["scope"] == resource + "/.default"


class NamedHosts(requests.adapters.HTTPAdapter):
    """Dials the stand-in for names, as a resolver's entries and port 443 would do."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports
        super().__init__()

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        name = host["host"]
        dialed = host | {"host": "127.0.0.1", "port": self.ports[name]}
        return dialed, pool | {"server_hostname": name, "assert_hostname": name}

    def add_headers(self, request: requests.PreparedRequest, **_: Any) -> None:
        request.headers["Host"] = urlsplit(str(request.url)).netloc


def test_real_names_pass_with_the_challenge_check_on(azure: AzureStandIn) -> None:
    """The SDK's check includes the port, so only a vault on 443 can pass it."""
    app = azure.entra.register_client(SECRET)
    vault, login = "my-vault.vault.azure.net", "login.microsoftonline.us"
    session = requests.Session()
    session.mount("https://", NamedHosts({vault: azure.vault.port, login: azure.entra.port}))
    trust = {"connection_verify": azure.ca_file}
    transport = RequestsTransport(session=session, session_owner=False, **trust)
    azure.vault.challenge_authority = f"https://{login}"
    options = identity_options(azure, authority=login, transport=transport)
    credential = ClientSecretCredential(app.tenant, app.client_id, SECRET, **options)
    client = SecretClient(f"https://{vault}", credential, transport=transport, retry_total=0)
    secret = client.get_secret("mlflow-auth")
    assert (secret.value, secret.properties.vault_url) == (VALUE, f"https://{vault}")
    assert azure.entra.requests[-1].headers["host"] == login


# --- failures in between --------------------------------------------------------------------------


def test_throttled_vault(azure: AzureStandIn) -> None:
    """The SDK waits for as long as Retry-After says, then succeeds; without retries it tells."""
    client = vault_client(azure, signed_in(azure), retry_total=2)
    client.get_secret("mlflow-auth")
    azure.vault.fail_next(status=429, retry_after=1)
    began = time.monotonic()
    assert client.get_secret("mlflow-auth").value == VALUE
    assert time.monotonic() - began >= 1
    azure.vault.fail_next(status=429, retry_after=30)
    with pytest.raises(HttpResponseError, match="Throttled") as caught:
        read(azure, signed_in(azure))
    assert caught.value.status_code == 429
    response: Any = caught.value.response
    assert response.headers["Retry-After"] == "30"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_broken_vault(azure: AzureStandIn, status: int) -> None:
    azure.vault.fail_next(status=status, times=2)
    with pytest.raises(HttpResponseError) as caught:
        read(azure, signed_in(azure))
    assert caught.value.status_code == status
    assert read(azure, signed_in(azure), retry_total=2, retry_backoff_factor=0.01).value == VALUE


def test_fault_before_authentication(azure: AzureStandIn) -> None:
    azure.vault.fail_next(status=503, before_auth=True)
    with pytest.raises(HttpResponseError, match="ServiceUnavailable"):
        read(azure, signed_in(azure))
    assert azure.vault.count("unrouted", status=503) == 1


def test_vault_behind_a_proxy_that_answers_html(azure: AzureStandIn) -> None:
    azure.vault.fail_next("html", status=502)
    with pytest.raises(HttpResponseError) as caught:
        read(azure, signed_in(azure))
    assert caught.value.status_code == 502
    azure.vault.fail_next("html", status=200)
    with pytest.raises((DecodeError, HttpResponseError, json.JSONDecodeError)):
        read(azure, signed_in(azure))


def test_vault_with_broken_json(azure: AzureStandIn) -> None:
    azure.vault.fail_next("malformed")
    with pytest.raises(DecodeError):
        read(azure, signed_in(azure))


@pytest.mark.parametrize("kind", ["hang", "drip", "close"])
def test_vault_that_does_not_answer(azure: AzureStandIn, kind: Any) -> None:
    azure.vault.fail_next(kind, interval=1)
    with pytest.raises((ServiceRequestError, ServiceResponseError, HttpResponseError)):
        read(azure, signed_in(azure), read_timeout=0.2)
    assert azure.vault.requests[-1].status == 0
    assert read(azure, signed_in(azure)).value == VALUE


def test_vault_that_answers_without_end(azure: AzureStandIn) -> None:
    """A client can stop reading; the server notices and goes on serving."""
    token = signed_in(azure).get_token(SCOPE).token
    azure.vault.fail_next("flood")
    url = f"{azure.vault_url}/secrets/mlflow-auth?api-version=7.4"
    headers = {"Authorization": f"Bearer {token}"}
    with requests.get(url, headers=headers, verify=azure.ca_file, stream=True, timeout=5) as answer:
        assert len(next(answer.iter_content(1 << 20))) == 1 << 20
    assert read(azure, FixedToken(token)).value == VALUE


def test_slow_vault(azure: AzureStandIn) -> None:
    azure.vault.delay = 0.2
    began = time.monotonic()
    assert read(azure, FixedToken(signed_in(azure).get_token(SCOPE).token)).value == VALUE
    assert time.monotonic() - began >= 0.2


def past_discovery(azure: AzureStandIn, **options: Any) -> ClientSecretCredential:
    """A credential whose next request goes to the token endpoint."""
    app = azure.entra.register_client(SECRET)
    options = identity_options(azure, **options)
    credential = ClientSecretCredential(app.tenant, app.client_id, SECRET, **options)
    credential.get_token("https://management.azure.com/.default")
    return credential


@pytest.mark.parametrize("status", [429, 500, 503])
def test_throttled_entra(azure: AzureStandIn, status: int) -> None:
    credential = past_discovery(azure)
    azure.entra.fail_next(status=status, retry_after=0)
    with pytest.raises(ClientAuthenticationError, match="Authentication failed"):
        credential.get_token(SCOPE)
    last = azure.entra.requests[-1]
    assert (last.path.endswith("/oauth2/v2.0/token"), last.status) == (True, status)
    patient = past_discovery(azure, retry_total=2, retry_backoff_factor=0.01)
    azure.entra.fail_next(status=status, retry_after=0)
    assert patient.get_token(SCOPE).token


@pytest.mark.parametrize(
    ("kind", "status"),
    [("html", 502), ("html", 200), ("malformed", 200), ("hang", 0), ("close", 0)],
)
def test_broken_entra(azure: AzureStandIn, kind: Any, status: int) -> None:
    credential = past_discovery(azure, read_timeout=0.2)
    azure.entra.fail_next(kind, status=status)
    with pytest.raises(ClientAuthenticationError):
        credential.get_token(SCOPE)
    assert azure.entra.requests[-1].status == status
    assert past_discovery(azure).get_token(SCOPE).token


# --- TLS and the servers themselves ---------------------------------------------------------------


def test_nobody_trusts_the_private_ca_unasked(azure: AzureStandIn) -> None:
    app = azure.entra.register_client(SECRET)
    options = identity_options(azure, connection_verify=True)
    with pytest.raises(ClientAuthenticationError, match="CERTIFICATE_VERIFY_FAILED"):
        ClientSecretCredential(app.tenant, app.client_id, SECRET, **options).get_token(SCOPE)
    assert azure.entra.requests == []


def test_leaf_is_an_end_entity_certificate(azure: AzureStandIn) -> None:
    context = ssl.create_default_context(cafile=azure.ca_file)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    address = urlsplit(azure.vault_url)
    with (
        socket.create_connection(("127.0.0.1", address.port or 0), 5) as plain,
        context.wrap_socket(plain, server_hostname="any.vault.azure.net") as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    assert der
    leaf = load_der_x509_certificate(der)
    assert not leaf.extensions.get_extension_for_class(BasicConstraints).value.ca


def test_many_threads_at_once(azure: AzureStandIn) -> None:
    client = vault_client(azure, FixedToken(signed_in(azure).get_token(SCOPE).token))
    with ThreadPoolExecutor(32) as pool:
        values = list(pool.map(lambda _: client.get_secret("mlflow-auth").value, range(128)))
    assert values == [VALUE] * 128
    assert azure.vault.count("get_secret", status=200) == 128


def test_stopping_cuts_open_connections() -> None:
    with AzureStandIn() as fresh:
        fresh.vault.set_secret("mlflow-auth", VALUE)
        client = vault_client(fresh, signed_in(fresh))
        client.get_secret("mlflow-auth")
        fresh.vault.stop()
        with pytest.raises((ServiceRequestError, ServiceResponseError)):
            client.get_secret("mlflow-auth")


def test_script_serves_until_stdin_closes() -> None:
    """For tests in other languages: endpoints on stdout, commands on stdin."""
    command = [sys.executable, azure_stand_in.__file__]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdin
    assert process.stdout

    def call(name: str, /, **args: Any) -> Any:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps({"call": name, "args": args}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    with process:
        hello = json.loads(process.stdout.readline())
        options = {"connection_verify": hello["ca_file"], "retry_total": 0}
        credential = ClientSecretCredential(
            hello["tenant_id"],
            hello["client_id"],
            hello["client_secret"],
            authority=hello["authority_host"],
            disable_instance_discovery=True,
            **options,
        )
        client = SecretClient(hello["vault_url"], credential, verify_challenge_resource=False, **options)
        assert client.get_secret(hello["secret_name"]).value == '{"token": "stand-in-token"}'
        assert call("vault.rotate", name="mlflow-auth", value="next")["result"]
        assert client.get_secret("mlflow-auth").value == "next"
        call("vault.fail_next", status=429)
        with pytest.raises(HttpResponseError):
            client.get_secret("mlflow-auth")
        assert call("vault.count", handler="authenticated", status=429) == {"result": 1}
        assert call("vault.requests")["result"][-1]["status"] == 429
        assert "error" in call("vault.no_such_thing")
        process.stdin.close()
        assert process.wait(10) == 0
