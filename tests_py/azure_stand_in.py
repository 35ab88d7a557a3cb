"""A stand-in for Microsoft Entra ID, Azure Key Vault and the managed-identity endpoints.

Five real servers on loopback, on free ports: Entra and Key Vault over TLS with a private CA, and
the App Service, Azure ML and VM metadata (IMDS) endpoints over plain http, as in Azure. They check
what the real services check, so a client that is accepted here has done its part of the protocol.
Microsoft's own Python SDK is the judge of that: see `test_azure_stand_in.py`.

    with AzureStandIn() as azure:
        app = azure.entra.register_client(secret="s3cret")
        azure.vault.set_secret("mlflow-auth", '{"token": "t"}')
        azure.vault.fail_next(status=429, retry_after=1, times=2)
        ...  # point a client at azure.authority_host, azure.vault_url, azure.ca_file
        assert azure.vault.count("get_secret", status=200) == 1

Run as a script it serves until stdin closes: see `main`. Needs `cryptography` and `PyJWT`.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hmac
import json
import re
import ssl
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from azure_stand_in_server import (
    Answer,
    Authority,
    Refused,
    Request,
    Service,
    certificate_pem,
    key_pem,
    key_usage,
    sign_certificate,
)

VAULT_RESOURCE = "https://vault.azure.net"
FEDERATION_AUDIENCE = "api://AzureADTokenExchange"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
API_VERSIONS = frozenset({"2016-10-01", "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "2025-07-01", "2026-04-01"})
HOST_NAMES = (
    "localhost",
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.chinacloudapi.cn",
    "*.vault.azure.net",
    "*.vault.usgovcloudapi.net",
    "*.vault.azure.cn",
)

Denial = Literal["rbac", "access_policy", "firewall"]


@dataclass(frozen=True)
class ClientCertificate:
    """A certificate for signing in, with its key; `chain` holds issuers, nearest first."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()

    @classmethod
    def create(cls, name: str = "mlflow", *, starts_in: float = -3600, ends_in: float = 86400) -> ClientCertificate:
        """Make one that an own CA signed, valid for the given seconds around now."""
        now = datetime.now(timezone.utc)
        valid = (now + timedelta(seconds=starts_in), now + timedelta(seconds=ends_in))
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca_constraint = (x509.BasicConstraints(ca=True, path_length=0), True)
        ca = sign_certificate(f"{name} issuer", ca_key, None, [ca_constraint], valid)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        usage = (key_usage("digital_signature"), True)
        leaf = sign_certificate(name, key, (ca.subject, ca_key), [usage], valid)
        return cls(key, leaf, (ca,))

    def pem(
        self,
        *,
        key_first: bool = True,
        chain: bool = False,
        pkcs1: bool = False,
        password: str | None = None,
    ) -> bytes:
        """Key and certificate as one PEM file, in any of the shapes that users have."""
        key = key_pem(self.key, pkcs1=pkcs1, password=password.encode() if password else None)
        certificates = b"".join(map(certificate_pem, (self.certificate, *(self.chain if chain else ()))))
        return key + certificates if key_first else certificates + key

    def public_pem(self) -> str:
        return certificate_pem(self.certificate).decode()


class FederatedIssuer:
    """An outside token issuer, such as a Kubernetes cluster, that an app may trust."""

    def __init__(self, url: str = "https://oidc.example.com/cluster") -> None:
        self.url = url
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, subject: str, *, audience: str = FEDERATION_AUDIENCE, lifetime: float = 3600) -> str:
        now = time.time()
        claims = {"iss": self.url, "sub": subject, "aud": [audience], "jti": str(uuid.uuid4())}
        times = {"iat": int(now), "nbf": int(now) - 60, "exp": int(now + lifetime)}
        return jwt.encode(claims | times, self.key, "RS256", headers={"kid": "issuer"})


# --- Microsoft Entra ID ---------------------------------------------------------------------------

ENTRA_ERRORS: dict[int, tuple[int, str, str]] = {
    50027: (400, "invalid_request", "Invalid JWT token. {}"),
    500011: (400, "invalid_resource", "The resource principal named {} was not found in tenant."),
    70003: (400, "unsupported_grant_type", "The app requested an unsupported grant type '{}'."),
    70025: (401, "invalid_client", "App '{}' has no federated identity credentials."),
    700016: (
        400,
        "unauthorized_client",
        "Application with identifier '{}' was not found in the directory '{}'.\r\n"
        'It may be missing, or the request may have gone to the "wrong" tenant.',
    ),
    700021: (401, "invalid_client", "Issuer or subject '{}' of the assertion is not '{}'."),
    700023: (401, "invalid_client", "Client assertion audience '{}' is not this endpoint."),
    700024: (401, "invalid_client", "Client assertion is not within its valid time range. {}"),
    700027: (
        401,
        "invalid_client",
        "The certificate used to sign the client assertion is not usable."
        " [Reason - {}, Thumbprint of key used by client: '{}']",
    ),
    700211: (401, "invalid_client", "No matching federated identity record: issuer '{}'."),
    700212: (401, "invalid_client", "No matching federated identity record: audience '{}'."),
    700213: (401, "invalid_client", "No matching federated identity record: subject '{}'."),
    7000215: (401, "invalid_client", "Invalid client secret provided for app '{}'."),
    7000218: (401, "invalid_client", "Neither 'client_assertion' nor 'client_secret' was sent."),
    7000222: (401, "invalid_client", "The provided client secret keys for app '{}' are expired."),
    90002: (400, "invalid_tenant", "Tenant '{}' not found. Check the tenant ID and the cloud."),
    90033: (503, "temporarily_unavailable", "A transient error has occurred. Please try again."),
    90055: (429, "temporarily_unavailable", "Server is terminating requests. Please try again."),
    900144: (400, "invalid_request", "The request body must contain the parameter: '{}'."),
    1000502: (401, "invalid_client", "The certificate is not within its validity window. {}"),
    1002012: (400, "invalid_scope", "Scope '{}' is not valid: it must end in '/.default'."),
}
"""AADSTS number to HTTP status, OAuth error and text."""


@dataclass(frozen=True)
class ManagedIdentity:
    """An identity that a machine may have."""

    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    object_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    resource_id: str = field(
        default_factory=lambda: (
            "/subscriptions/s/resourcegroups/g/providers/"
            f"Microsoft.ManagedIdentity/userAssignedIdentities/{uuid.uuid4()}"
        )
    )


@dataclass
class App:
    """An app registration (service principal) with its credentials."""

    tenant: str
    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    object_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    secrets: dict[str, float | None] = field(default_factory=dict)
    """Secret to the time it expires."""
    certificates: list[x509.Certificate] = field(default_factory=list)
    federated: list[tuple[str, str, str, Any]] = field(default_factory=list)
    """Issuer, subject, audience, public key."""


class Entra(Service):
    """The token endpoint, and the discovery documents that the Python SDK reads first."""

    name = "entra"
    _TENANT_PATHS: ClassVar = {
        "v2.0/.well-known/openid-configuration": ("GET", "openid_configuration"),
        "oauth2/v2.0/token": ("POST", "token"),
    }

    def __init__(self, tls: ssl.SSLContext, vault_resource: str) -> None:
        super().__init__(tls)
        self.signing_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.vault_resource = vault_resource
        self.tenant = str(uuid.uuid4())
        self._clean()

    def _clean(self) -> None:
        self.tenants = {self.tenant}
        self.resources = {self.vault_resource, "https://management.azure.com"}
        self.token_lifetime_sec = 3599
        self.reject_reused_jti = False
        """Off, because Microsoft's MSAL itself sends one assertion more than once."""
        self._apps: dict[tuple[str, str], App] = {}
        self._used_jti: set[str] = set()

    def reset(self) -> None:
        super().reset()
        self._clean()

    def register_tenant(self) -> str:
        tenant = str(uuid.uuid4())
        self.tenants.add(tenant)
        return tenant

    def register_client(
        self, secret: str | None = None, *, expires: float | None = None, tenant: str | None = None
    ) -> App:
        """Register an app, by default without any credential. `expires` is an epoch time."""
        app = App(tenant or self.tenant)
        if secret is not None:
            app.secrets[secret] = expires
        self._apps[app.tenant, app.client_id] = app
        return app

    def register_certificate(self, certificate_pem: str | bytes, app: App | None = None) -> App:
        """Let an app (a new one by default) sign in with this certificate's key."""
        app = app or self.register_client()
        pem = certificate_pem.encode() if isinstance(certificate_pem, str) else certificate_pem
        app.certificates.append(x509.load_pem_x509_certificate(pem))
        return app

    def register_federated(
        self,
        issuer: FederatedIssuer,
        subject: str,
        app: App | None = None,
        *,
        audience: str = FEDERATION_AUDIENCE,
    ) -> App:
        """Let an app (a new one by default) sign in with this issuer's tokens for `subject`."""
        app = app or self.register_client()
        app.federated.append((issuer.url, subject, audience, issuer.key.public_key()))
        return app

    def access_token(
        self,
        client_id: str,
        object_id: str,
        resource: str,
        *,
        tenant: str | None = None,
        lifetime: float | None = None,
        key: rsa.RSAPrivateKey | None = None,
    ) -> str:
        """A signed v1 access token. Tests may mint odd ones: past lifetime, another key."""
        tenant = tenant or self.tenant
        now = int(time.time())
        lifetime = self.token_lifetime_sec if lifetime is None else lifetime
        claims = {
            "aud": resource,
            "iss": f"https://sts.windows.net/{tenant}/",
            "iat": now - 300,
            "nbf": now - 300,
            "exp": int(now + lifetime),
            "appid": client_id,
            "appidacr": "1",
            "idtyp": "app",
            "oid": object_id,
            "sub": object_id,
            "tid": tenant,
            "uti": uuid.uuid4().hex[:22],
            "ver": "1.0",
        }
        return jwt.encode(claims, key or self.signing_key, "RS256", headers={"kid": "stand-in"})

    def error(self, status: int, code: str | None) -> Answer:
        number = int(code) if code else 90055 if status == 429 else 90033
        answer = self._problem(number, "?", "?")
        answer.status = status
        return answer

    def handle(self, request: Request) -> Answer:
        tenant, _, rest = request.path.lstrip("/").partition("/")
        method, handler = self._TENANT_PATHS.get(rest, ("", ""))
        if method != request.method:
            return Answer(404, b"", {"Content-Type": "text/html"})
        request.handler = handler
        if tenant not in self.tenants:
            self._refuse(90002, tenant, request=request)
        if handler == "openid_configuration":
            return self._openid_configuration(request, tenant)
        return self._token(request, tenant)

    def _problem(self, number: int, *parts: str, request: Request | None = None) -> Answer:
        status, error, text = ENTRA_ERRORS[number]
        trace = str(uuid.uuid4())
        sent = request.headers.get("client-request-id") if request else None
        correlation = sent or str(uuid.uuid4())
        moment = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
        description = (
            f"AADSTS{number}: {text.format(*parts)}\r\nTrace ID: {trace}\r\n"
            f"Correlation ID: {correlation}\r\nTimestamp: {moment}"
        )
        body = {
            "error": error,
            "error_description": description,
            "error_codes": [number],
            "timestamp": moment,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": f"{self.url}/error?code={number}",
        }
        return Answer(status, body, {"x-ms-request-id": trace})

    def _refuse(self, number: int, *parts: str, request: Request | None = None) -> NoReturn:
        raise Refused(self._problem(number, *parts, request=request))

    def _openid_configuration(self, request: Request, tenant: str) -> Answer:
        base = f"{request.host_url}/{tenant}"
        return Answer(
            200,
            {
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
            },
        )

    def _token(self, request: Request, tenant: str) -> Answer:
        refuse = functools.partial(self._refuse, request=request)
        form = request.form
        for name in ("grant_type", "client_id", "scope"):
            if not form.get(name):
                refuse(900144, name)
        if form["grant_type"] != "client_credentials":
            refuse(70003, form["grant_type"])
        app = self._apps.get((tenant, form["client_id"].lower()))
        if app is None:
            refuse(700016, form["client_id"], tenant)
        if form.get("client_assertion"):
            if form.get("client_assertion_type") != ASSERTION_TYPE:
                refuse(900144, "client_assertion_type")
            self._check_assertion(request, app, form["client_assertion"])
        elif form.get("client_secret"):
            request.handler = "token.secret"
            self._check_secret(app, form["client_secret"], refuse)
        else:
            refuse(7000218)
        resource, dot, _ = form["scope"].partition("/.default")
        if not dot:
            refuse(1002012, form["scope"])
        if resource.rstrip("/") not in self.resources:
            refuse(500011, resource)
        token = self.access_token(app.client_id, app.object_id, resource, tenant=tenant)
        lifetime = self.token_lifetime_sec
        times = {"expires_in": lifetime, "ext_expires_in": lifetime}
        return Answer(200, {"token_type": "Bearer", **times, "access_token": token})

    @staticmethod
    def _check_secret(app: App, presented: str, refuse: Callable[..., NoReturn]) -> None:
        for secret, expires in app.secrets.items():
            if hmac.compare_digest(secret.encode(), presented.encode()):
                if expires is not None and expires <= time.time():
                    refuse(7000222, app.client_id)
                return
        refuse(7000215, app.client_id)

    def _check_assertion(self, request: Request, app: App, assertion: str) -> None:
        """Tell a certificate's assertion from a federated one by its issuer, and check it."""
        refuse = functools.partial(self._refuse, request=request)
        try:
            header = jwt.get_unverified_header(assertion)
            claims = jwt.decode(assertion, options={"verify_signature": False})
        except jwt.PyJWTError as error:
            refuse(50027, str(error))
        issued_by = claims.get("iss")
        thumbprinted = "x5t" in header or "x5t#S256" in header
        trusted = any(issued_by == record[0] for record in app.federated)
        certified = issued_by == app.client_id or (thumbprinted and not trusted)
        request.handler = "token.certificate" if certified else "token.federated"
        if certified:
            self._check_certified(request, app, assertion, header, claims)
        else:
            self._check_federated(app, assertion, claims, refuse)

    def _check_certified(self, request: Request, app: App, assertion: str, header: dict[str, Any], claims: Any) -> None:
        refuse = functools.partial(self._refuse, request=request)
        pair = {"RS256": ("x5t", hashes.SHA1()), "PS256": ("x5t#S256", hashes.SHA256())}
        field_name, digest = pair.get(header["alg"], ("", None))
        if digest is None or not isinstance(header.get(field_name), str):
            refuse(50027, f"Algorithm '{header['alg']}' without its certificate thumbprint.")
        try:
            # MSAL for Python pads its thumbprints, which RFC 7515 forbids; Entra takes both.
            thumbprint = base64.urlsafe_b64decode(header[field_name].rstrip("=") + "==")
        except ValueError:
            refuse(50027, f"'{field_name}' is not base64url.")
        shown = thumbprint.hex().upper()
        for certificate in app.certificates:
            if certificate.fingerprint(digest) == thumbprint:
                break
        else:
            refuse(700027, "The key was not found.", shown)
        if "x5c" in header:
            self._check_chain(header["x5c"], certificate, refuse)
        now = datetime.now(timezone.utc)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            refuse(1000502, f"It ends at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}.")
        for name in ("iss", "sub"):
            if claims.get(name) != app.client_id:
                refuse(700021, str(claims.get(name)), app.client_id)
        self._verify(
            assertion,
            certificate.public_key(),
            [f"{base}{request.path}" for base in (request.host_url, self.url)],
            refuse,
            signature=(700027, "The provided signature value did not match.", shown),
            audience=700023,
        )
        if claims["jti"] in self._used_jti and self.reject_reused_jti:
            refuse(50027, "The 'jti' was used before.")
        self._used_jti.add(claims["jti"])

    @staticmethod
    def _check_chain(chain: Any, certificate: x509.Certificate, refuse: Callable[..., NoReturn]) -> None:
        """`x5c` must be DER in plain base64, the signing certificate first."""
        try:
            # MSAL for Python leaves PEM's line breaks in, so whitespace has to pass.
            ders = [base64.b64decode("".join(item.split()), validate=True) for item in chain]
            parsed = [x509.load_der_x509_certificate(der) for der in ders]
        except (AttributeError, TypeError, ValueError) as error:
            refuse(50027, f"'x5c' is not a list of base64 DER certificates: {error}")
        if not parsed or parsed[0] != certificate:
            refuse(50027, "'x5c' does not begin with the signing certificate.")

    def _check_federated(
        self, app: App, assertion: str, claims: dict[str, Any], refuse: Callable[..., NoReturn]
    ) -> None:
        if not app.federated:
            refuse(70025, app.client_id)
        by_issuer = [record for record in app.federated if record[0] == claims.get("iss")]
        if not by_issuer:
            refuse(700211, str(claims.get("iss")))
        by_subject = [record for record in by_issuer if record[1] == claims.get("sub")]
        if not by_subject:
            refuse(700213, str(claims.get("sub")))
        _, _, audience, key = by_subject[0]
        bad_signature = (700027, "The provided signature value did not match.", "")
        self._verify(assertion, key, [audience], refuse, signature=bad_signature, audience=700212)

    @staticmethod
    def _verify(
        assertion: str,
        key: Any,
        audiences: list[str],
        refuse: Callable[..., NoReturn],
        *,
        signature: tuple[int, str, str],
        audience: int,
    ) -> None:
        """Check signature, times and audience; the issuer was checked before."""
        required: Any = {"require": ["exp", "aud", "iss", "sub", "jti"]}
        algorithms = ["RS256", "PS256"]
        try:
            jwt.decode(assertion, key, algorithms, required, audience=audiences, leeway=300)
        except jwt.InvalidSignatureError:
            refuse(*signature)
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError) as error:
            refuse(700024, str(error))
        except jwt.InvalidAudienceError:
            refuse(audience, str(jwt.decode(assertion, options={"verify_signature": False})["aud"]))
        except jwt.PyJWTError as error:
            refuse(50027, str(error))


# --- managed identity -----------------------------------------------------------------------------


class Identities:
    """What identities this "machine" has; the three endpoints share it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Back to a system-assigned identity alone."""
        self.system: ManagedIdentity | None = ManagedIdentity()
        self.user: list[ManagedIdentity] = []

    def assign(self) -> ManagedIdentity:
        """Add a user-assigned identity."""
        self.user.append(ManagedIdentity())
        return self.user[-1]

    def unassign_all(self) -> None:
        self.system = None
        self.user.clear()

    def find(self, **wanted: str | None) -> ManagedIdentity | None:
        """By `client_id`, `object_id` or `resource_id`; with none of them, the machine's own.

        A machine without a system-assigned identity answers for its only user-assigned one.
        """
        given = {name: value.lower() for name, value in wanted.items() if value}
        if not given:
            return self.system or (self.user[0] if len(self.user) == 1 else None)
        for identity in (self.system, *self.user):
            values = {name: str(getattr(identity, name, "")).lower() for name in given}
            if identity and values == given:
                return identity
        return None


class IdentityEndpoint(Service):
    """What the three managed-identity endpoints have in common."""

    path = ""
    api_versions: tuple[str, ...] = ()
    lifetime_sec = 86399

    def __init__(
        self,
        entra: Entra,
        identities: Identities,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        super().__init__(address=address)
        self._entra = entra
        self.identities = identities
        self.header_secret = uuid.uuid4().hex.upper()
        self.endpoint = self.url + self.path

    def handle(self, request: Request) -> Answer:
        if request.path != self.path or request.method != "GET":
            return self.problem(404, "Not found")
        request.handler = "identity"
        self.check_caller(request)
        if request.query.get("api-version") not in self.api_versions:
            self.refuse(400, f"Query 'api-version' must be one of {self.api_versions}")
        resource = request.query.get("resource", "")
        if resource.rstrip("/") not in self._entra.resources:
            self.refuse(400, f"AADSTS500011: The resource principal named {resource} was not found")
        identity = self.find(request.query)
        if identity is None:
            self.refuse(400, "Identity not found")
        token = self._entra.access_token(identity.client_id, identity.object_id, resource, lifetime=self.lifetime_sec)
        now = int(time.time())
        times = self.times(now, now + self.lifetime_sec)
        common = {"access_token": token, "resource": resource, "token_type": "Bearer"}
        return Answer(200, common | {"client_id": identity.client_id} | times)

    def check_caller(self, request: Request) -> None:
        """Refuse a request without the header that shows it isn't forged by a web page."""
        raise NotImplementedError

    def find(self, query: dict[str, str]) -> ManagedIdentity | None:
        return self.identities.find(
            client_id=query.get("client_id"),
            object_id=query.get("object_id") or query.get("principal_id"),
            resource_id=query.get("mi_res_id") or query.get("msi_res_id"),
        )

    def times(self, now: int, end: int) -> dict[str, Any]:
        return {"expires_on": str(end)}

    def environment(self) -> dict[str, str]:
        """The variables by which a client finds this endpoint."""
        raise NotImplementedError

    def problem(self, status: int, text: str) -> Answer:
        """An error in App Service's shape; Azure ML is taken to use the same."""
        body = {"statusCode": status, "message": text, "correlationId": str(uuid.uuid4())}
        return Answer(status, body)

    def refuse(self, status: int, text: str) -> NoReturn:
        raise Refused(self.problem(status, text))

    def error(self, status: int, code: str | None) -> Answer:
        return self.problem(status, code or "An unexpected error occurred while fetching the token")


class AppService(IdentityEndpoint):
    """`IDENTITY_ENDPOINT` of App Service, Functions and Container Apps."""

    name = "app_service"
    path = "/msi/token"
    api_versions = ("2019-08-01",)

    def check_caller(self, request: Request) -> None:
        if request.headers.get("x-identity-header") != self.header_secret:
            self.refuse(401, "Header 'X-IDENTITY-HEADER' is missing or wrong")

    def environment(self) -> dict[str, str]:
        return {"IDENTITY_ENDPOINT": self.endpoint, "IDENTITY_HEADER": self.header_secret}


class AzureMl(IdentityEndpoint):
    """`MSI_ENDPOINT` of Azure ML compute: like App Service's of 2017, but not the same."""

    name = "azure_ml"
    path = "/v1/msi/token"
    api_versions = ("2017-09-01",)

    def __init__(self, entra: Entra, identities: Identities) -> None:
        super().__init__(entra, identities)
        self.require_client_id = False
        """Newer Azure ML machines want one always, and name it in DEFAULT_IDENTITY_CLIENT_ID."""
        self.expires_on_as_text = False
        """A number is what Azure ML sends; App Service of 2017, its model, sent text."""

    def reset(self) -> None:
        super().reset()
        self.require_client_id = False
        self.expires_on_as_text = False

    def check_caller(self, request: Request) -> None:
        if request.headers.get("secret") != self.header_secret:
            self.refuse(401, "Header 'secret' is missing or wrong")

    def find(self, query: dict[str, str]) -> ManagedIdentity | None:
        client_id = query.get("clientid")
        if self.require_client_id and not client_id:
            self.refuse(400, "Query 'clientid' is missing")
        return self.identities.find(client_id=client_id)

    def times(self, now: int, end: int) -> dict[str, Any]:
        return {"expires_on": str(end) if self.expires_on_as_text else end}

    def environment(self) -> dict[str, str]:
        return {"MSI_ENDPOINT": self.endpoint, "MSI_SECRET": self.header_secret}


class Imds(IdentityEndpoint):
    """The VM metadata service, which lives at http://169.254.169.254 on a real machine."""

    name = "imds"
    path = "/metadata/identity/oauth2/token"
    api_versions = ("2018-02-01", "2019-08-01")
    """The Python SDK's and the Rust SDK's."""

    def check_caller(self, request: Request) -> None:
        if request.headers.get("metadata", "").lower() != "true":
            self.refuse(400, "Required metadata header not specified")
        if "x-forwarded-for" in request.headers:
            self.refuse(400, "Proxied requests are not allowed")

    def times(self, now: int, end: int) -> dict[str, Any]:
        lifetime = str(self.lifetime_sec)
        ends = {"expires_in": lifetime, "ext_expires_in": lifetime, "expires_on": str(end)}
        return ends | {"not_before": str(now - 300)}

    def problem(self, status: int, text: str) -> Answer:
        errors = {400: "invalid_request", 404: "not_found", 429: "too_many_requests"}
        error = errors.get(status, "unknown")
        return Answer(status, {"error": error, "error_description": text}, {"Server": "IMDS/1"})

    def environment(self) -> dict[str, str]:
        """Where the Python SDK looks instead of the link-local address."""
        return {"AZURE_POD_IDENTITY_AUTHORITY_HOST": self.url}


# --- Key Vault ------------------------------------------------------------------------------------


@dataclass
class SecretVersion:
    value: str
    version: str
    created: int
    updated: int
    enabled: bool = True
    not_before: float | None = None
    expires: float | None = None
    content_type: str | None = None
    tags: dict[str, str] | None = None


@dataclass
class StoredSecret:
    name: str
    versions: list[SecretVersion] = field(default_factory=list)
    """Oldest first."""
    state: Literal["live", "deleting", "deleted"] = "live"


class Vault(Service):
    """Key Vault's secrets, read-only over HTTP and writable from the test."""

    name = "vault"
    authenticates = True

    def __init__(self, tls: ssl.SSLContext, entra: Entra) -> None:
        super().__init__(tls)
        self._entra = entra
        self.resource = entra.vault_resource
        self._clean()

    def _clean(self) -> None:
        self.tenant = self._entra.tenant
        self.challenge_authority = self._entra.url
        self.api_versions = API_VERSIONS
        self._secrets: dict[str, StoredSecret] = {}
        self._denials: dict[str | None, Denial] = {}

    def reset(self) -> None:
        super().reset()
        self._clean()

    def set_secret(self, name: str, value: str, **attributes: Any) -> str:
        """Add a version and return its id. `attributes` are fields of `SecretVersion`."""
        now = int(time.time())
        version = SecretVersion(value, uuid.uuid4().hex, now, now)
        self._secrets.setdefault(name.lower(), StoredSecret(name)).versions.append(version)
        self.update(name, version.version, **attributes)
        return version.version

    def rotate(self, name: str, value: str) -> str:
        """Add a version with the current one's attributes to a secret that exists."""
        current = self._secrets[name.lower()].versions[-1]
        kept = ("enabled", "not_before", "expires", "content_type", "tags")
        return self.set_secret(name, value, **{field: getattr(current, field) for field in kept})

    def update(self, name: str, version: str | None = None, **attributes: Any) -> None:
        """Change attributes of a version (the current one by default)."""
        versions = self._secrets[name.lower()].versions
        found = next(v for v in reversed(versions) if version in (None, v.version))
        for attribute, setting in attributes.items():
            if attribute not in SecretVersion.__dataclass_fields__:
                raise TypeError(f"no secret attribute named {attribute}")
            setattr(found, attribute, setting)

    def delete(self, name: str, *, done: bool = True) -> None:
        """Soft-delete; with `done=False` it stays in the state of being deleted."""
        self._secrets[name.lower()].state = "deleted" if done else "deleting"

    def recover(self, name: str) -> None:
        self._secrets[name.lower()].state = "live"

    def purge(self, name: str) -> None:
        del self._secrets[name.lower()]

    def deny(self, reason: Denial, client_id: str | None = None) -> None:
        """Refuse one caller, or all."""
        self._denials[client_id] = reason

    def allow_all(self) -> None:
        self._denials.clear()

    def handle(self, request: Request) -> Answer:
        claims = self._authenticate(request)
        self.trip(before_auth=False)
        self._check_version_and_caller(request, claims)
        parts = request.path.strip("/").split("/")
        if request.method != "GET":
            return _vault_problem(405, "MethodNotAllowed", "The method is not allowed.")
        if parts[0] == "secrets" and len(parts) in (2, 3):
            request.handler = "get_secret"
            return self._get_secret(request, *parts[1:])
        if parts[0] == "deletedsecrets" and len(parts) == 2:
            request.handler = "get_deleted_secret"
            return self._get_deleted_secret(request, parts[1])
        return _vault_problem(404, "NotFound", "No such resource.")

    def error(self, status: int, code: str | None) -> Answer:
        if status == 401:
            return self._challenge("AKV10046: The token was revoked.", bad_token=True)
        texts = {
            429: ("Throttled", "Too many requests. Reason: VaultRequestTypeLimitReached"),
            503: ("ServiceUnavailable", "The service is temporarily unavailable."),
        }
        default, text = texts.get(status, ("InternalServerError", "An internal error occurred."))
        return _vault_problem(status, code or default, text)

    def _authenticate(self, request: Request) -> dict[str, Any]:
        """The token's claims, or 401 with the challenge that tells where to get a token."""
        request.handler = "challenge"
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused(self._challenge("AKV10000: Request is missing a Bearer or PoP token."))
        request.handler = "rejected_token"
        key = self._entra.signing_key.public_key()
        issuer = f"https://sts.windows.net/{self.tenant}/"
        try:
            claims = jwt.decode(token, key, ["RS256"], audience=self.resource, issuer=issuer)
        except jwt.PyJWTError as error:
            raise Refused(self._challenge(self._flaw(token, error), bad_token=True)) from error
        request.handler = "authenticated"
        return claims

    def _flaw(self, token: str, error: jwt.PyJWTError) -> str:
        """What is wrong with the token, in Key Vault's words where clients may look for them."""
        if isinstance(error, jwt.InvalidAudienceError):
            found = jwt.decode(token, options={"verify_signature": False})["aud"]
            return f"AKV10022: Invalid audience. Expected {self.resource}, found: {found}."
        if isinstance(error, jwt.InvalidIssuerError):
            found = jwt.decode(token, options={"verify_signature": False})["iss"]
            expected = f"https://sts.windows.net/{self.tenant}/"
            return f"AKV10032: Invalid issuer. Expected one of {expected}, found {found}."
        return f"AKV10046: Unable to validate the token: {error}"

    def _challenge(self, text: str, *, bad_token: bool = False) -> Answer:
        authorization = f"{self.challenge_authority}/{self.tenant}"
        header = f'Bearer authorization="{authorization}", resource="{self.resource}"'
        if bad_token:
            header += ', error="invalid_token"'
        answer = _vault_problem(401, "Unauthorized", text)
        answer.headers["WWW-Authenticate"] = header
        return answer

    def _check_version_and_caller(self, request: Request, claims: dict[str, Any]) -> None:
        version = request.query.get("api-version")
        if not version:
            raise Refused(_vault_problem(400, "BadParameter", "api-version must be specified"))
        if version not in self.api_versions:
            text = f"The specified version ({version}) is not recognized."
            raise Refused(_vault_problem(400, "BadParameter", text))
        denial = self._denials.get(claims["appid"], self._denials.get(None))
        if denial:
            request.handler = "denied"
            raise Refused(_denied(denial, request, claims))

    def _get_secret(self, request: Request, name: str, version: str = "") -> Answer:
        if not re.fullmatch("[0-9A-Za-z-]{1,127}", name):
            return _vault_problem(400, "BadParameter", f"'{name}' is not a secret name.")
        stored = self._secrets.get(name.lower())
        if stored and stored.state == "deleting":
            text = f"Secret {name} is currently being deleted."
            return _vault_problem(409, "Conflict", text, "ObjectIsBeingDeleted")
        versions = stored.versions if stored and stored.state == "live" else []
        found = next((v for v in reversed(versions) if version in ("", v.version)), None)
        if stored is None or found is None:
            # The same words, whether it never was or was deleted and can be recovered.
            label = f"{name}/{version}" if version else name
            text = (
                f"A secret with (name/id) {label} was not found in this key vault. If you recently "
                "deleted this secret you may be able to recover it."
            )
            return _vault_problem(404, "SecretNotFound", text)
        if not found.enabled:
            text = "Operation get is not allowed on a disabled secret."
            return _vault_problem(403, "Forbidden", text, "SecretDisabled")
        return Answer(200, self._bundle(request, stored, found) | {"value": found.value})

    def _get_deleted_secret(self, request: Request, name: str) -> Answer:
        stored = self._secrets.get(name.lower())
        if stored is None or stored.state != "deleted":
            return _vault_problem(404, "SecretNotFound", f"Deleted Secret not found: {name}")
        now = int(time.time())
        deleted = {
            "recoveryId": f"{request.host_url}/deletedsecrets/{stored.name}",
            "deletedDate": now,
            "scheduledPurgeDate": now + 90 * 86400,
        }
        return Answer(200, self._bundle(request, stored, stored.versions[-1]) | deleted)

    @staticmethod
    def _bundle(request: Request, stored: StoredSecret, found: SecretVersion) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "enabled": found.enabled,
            "nbf": found.not_before and int(found.not_before),
            "exp": found.expires and int(found.expires),
            "created": found.created,
            "updated": found.updated,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": 90,
        }
        bundle = {
            "contentType": found.content_type,
            "id": f"{request.host_url}/secrets/{stored.name}/{found.version}",
            "attributes": {name: value for name, value in attributes.items() if value is not None},
            "tags": found.tags or {},
        }
        return {name: value for name, value in bundle.items() if value is not None}


def _vault_problem(status: int, code: str, text: str, inner: str | None = None) -> Answer:
    error: dict[str, Any] = {"code": code, "message": text}
    if inner:
        error["innererror"] = {"code": inner}
    headers = {"x-ms-keyvault-region": "westeurope", "x-ms-request-id": str(uuid.uuid4())}
    return Answer(status, {"error": error}, headers)


def _denied(denial: Denial, request: Request, claims: dict[str, Any]) -> Answer:
    """The three ways in which Key Vault says no to a caller that it knows."""
    caller = f"appid={claims['appid']};oid={claims['oid']};iss={claims['iss']}"
    if denial == "rbac":
        text = (
            "Caller is not authorized to perform action on resource.\r\n"
            f"Caller: {caller}\r\n"
            "Action: 'Microsoft.KeyVault/vaults/secrets/getSecret/action'\r\n"
            f"Resource: '/subscriptions/s/providers/microsoft.keyvault/vaults/v{request.path}'\r\n"
            "Assignment: (not found)\r\nDenyAssignmentId: null\r\n"
            "DecisionReason: 'DeniedWithNoValidRBAC'\r\nVault: v;location=westeurope\r\n"
        )
        return _vault_problem(403, "Forbidden", text, "ForbiddenByRbac")
    if denial == "access_policy":
        text = (
            f"The user, group or application '{caller}' does not have secrets get permission on "
            "key vault 'v;location=westeurope'."
        )
        return _vault_problem(403, "Forbidden", text, "AccessDenied")
    text = (
        "Client address is not authorized and caller is not a trusted service.\r\n"
        f"Client address: 127.0.0.1\r\nCaller: {caller}\r\nVault: v;location=westeurope"
    )
    return _vault_problem(403, "Forbidden", text, "ForbiddenByFirewall")


# --- all together ---------------------------------------------------------------------------------


class AzureStandIn:
    """The five servers, started by `with`.

    `vault_resource` is what the challenge names: another one for a sovereign cloud. `imds_address` is
    where the metadata service listens: its own address, in a network where that is free.
    """

    def __init__(
        self,
        vault_resource: str = VAULT_RESOURCE,
        imds_address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="azure-stand-in-")
        authority = Authority(Path(self._folder.name), HOST_NAMES)
        tls = authority.server_context()
        self.ca_file = str(authority.ca_file)
        self.entra = Entra(tls, vault_resource)
        self.vault = Vault(tls, self.entra)
        self.identities = Identities()
        self.app_service = AppService(self.entra, self.identities)
        self.azure_ml = AzureMl(self.entra, self.identities)
        self.imds = Imds(self.entra, self.identities, imds_address)
        self.services: tuple[Service, ...] = (
            self.entra,
            self.vault,
            self.app_service,
            self.azure_ml,
            self.imds,
        )
        self.authority_host = self.entra.url
        self.vault_url = self.vault.url

    def __enter__(self) -> AzureStandIn:
        for service in self.services:
            service.start()
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services:
            service.stop()
        self._folder.cleanup()

    def reset(self) -> None:
        """Back to the state after the start, with the same ports and certificates."""
        self.identities.reset()
        for service in self.services:
            service.reset()

    def environment(self, app: App | None = None, secret: str | None = None) -> dict[str, str]:
        """Variables for a client in another process: addresses and trust, and who it is."""
        variables = {
            "AZURE_AUTHORITY_HOST": self.authority_host,
            "MLFLOW_AZURE_KEY_VAULT_URL": self.vault_url,
            "MLFLOW_AZURE_VERIFY_CHALLENGE": "false",
            "SSL_CERT_FILE": self.ca_file,
            "REQUESTS_CA_BUNDLE": self.ca_file,
        }
        if app:
            variables |= {"AZURE_TENANT_ID": app.tenant, "AZURE_CLIENT_ID": app.client_id}
        if secret is not None:
            variables["AZURE_CLIENT_SECRET"] = secret
        return variables


def _serve_commands(stand_in: AzureStandIn, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Run each line's call on a public member, such as `vault.set_secret`, and give its result."""
    for line in lines:
        try:
            command = json.loads(line)
            path = command["call"].split(".")
            if any(part.startswith("_") for part in path):
                raise AttributeError(f"{command['call']} is not public")
            target: Any = stand_in
            for part in path:
                target = getattr(target, part)
            if "set" in command:
                owner: Any = functools.reduce(getattr, path[:-1], stand_in)
                setattr(owner, path[-1], command["set"])
                target = command["set"]
            yield {"result": target(**command.get("args", {})) if callable(target) else target}
        except Exception as error:  # whatever it was, the other process should read it
            yield {"error": f"{type(error).__name__}: {error}"}


def _plain(value: Any) -> Any:
    """What JSON can't say by itself."""
    if isinstance(value, App):
        return {"tenant": value.tenant, "client_id": value.client_id, "object_id": value.object_id}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def main() -> None:
    """Serve for tests in other languages, until stdin closes.

    The first line on stdout is JSON with the endpoints and ready-made credentials. After that each
    line on stdin is a command, answered by one line: `{"call": "vault.fail_next", "args":
    {"status": 429}}`, `{"call": "vault.requests"}`, `{"call": "imds.delay", "set": 1.5}`.
    """
    with AzureStandIn() as stand_in, tempfile.TemporaryDirectory() as folder:
        secret = "client-secret-" + uuid.uuid4().hex
        app = stand_in.entra.register_client(secret)
        certificate = ClientCertificate.create()
        stand_in.entra.register_certificate(certificate.public_pem(), app)
        issuer = FederatedIssuer()
        stand_in.entra.register_federated(issuer, "system:serviceaccount:ns:mlflow", app)
        files = {"certificate": Path(folder, "client.pem"), "token": Path(folder, "token")}
        files["certificate"].write_bytes(certificate.pem(chain=True))
        files["token"].write_text(issuer.token("system:serviceaccount:ns:mlflow"))
        stand_in.vault.set_secret("mlflow-auth", '{"token": "stand-in-token"}')
        hello = {
            "authority_host": stand_in.authority_host,
            "vault_url": stand_in.vault_url,
            "ca_file": stand_in.ca_file,
            "tenant_id": app.tenant,
            "client_id": app.client_id,
            "client_secret": secret,
            "certificate_file": files["certificate"],
            "federated_token_file": files["token"],
            "secret_name": "mlflow-auth",
            "environment": stand_in.environment(app, secret),
            "app_service": stand_in.app_service.environment(),
            "azure_ml": stand_in.azure_ml.environment(),
            "imds": stand_in.imds.environment(),
        }
        print(json.dumps(hello, default=_plain), flush=True)
        for result in _serve_commands(stand_in, sys.stdin):
            print(json.dumps(result, default=_plain), flush=True)


if __name__ == "__main__":
    main()
