"""S5 and S6: roots and proxies hold for every backend, and whoever weakens TLS is warned once."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aws_servers import ACCOUNT, REGION, ROLE, AwsLike, call_of, in_seconds, sts_credentials
from azure_like import AzureLike
from azure_stand_in_server import Authority
from conftest import Configure
from loopback import Answer, Loopback, Request, VaultLike
from mlflow_secrets_auth import ConfigurationError, SecretsAuthError, headers_for
from proxies import Proxy

URL = "https://mlflow.example.com/api"
FIRST = {"Authorization": "Bearer first"}
# Names that no resolver knows: whoever reaches them went through the proxy.
DOMAIN = "example.test"
NAMES = ("localhost", f"*.{DOMAIN}")


@dataclasses.dataclass
class Place:
    """A backend behind TLS: on loopback, and by names that only a proxy knows."""

    prefix: str
    ca_file: str
    on_loopback: dict[str, str]
    by_name: dict[str, str]
    ports: dict[str, int]

    @property
    def asked(self) -> set[str]:
        """What a proxy must be asked for."""
        return {f"{name}:443" for name in self.ports}


def vault(authority: Authority, stack: ExitStack) -> Place:
    server = VaultLike()
    server.secure(authority.server_context())
    stack.enter_context(server)
    name = f"vault.{DOMAIN}"
    by_name = server.settings(VAULT_ADDR=f"https://{name}")
    return Place("vault", str(authority.ca_file), server.settings(), by_name, {name: server.port})


def aws(authority: Authority, stack: ExitStack) -> Place:
    """Secrets Manager, and STS for a role to assume."""
    server = AwsLike()
    secrets = server.rule

    def rule(request: Request) -> Answer:
        call = call_of(request)
        return sts_credentials(call.action, "ASIAROLE") if call.action == "AssumeRole" else secrets(request)

    server.rule = rule
    server.secure(authority.server_context())
    stack.enter_context(server)
    sm, sts = f"secrets.{DOMAIN}", f"sts.{DOMAIN}"
    by_name = server.settings(
        AWS_ENDPOINT_URL_SECRETS_MANAGER=f"https://{sm}", AWS_ENDPOINT_URL_STS=f"https://{sts}", AWS_ROLE_ARN=ROLE
    )
    ports = {sm: server.port, sts: server.port}
    return Place("aws", str(authority.ca_file), server.settings(AWS_ROLE_ARN=ROLE), by_name, ports)


def aws_sso(authority: Authority, stack: ExitStack) -> Place:
    """Secrets Manager, signed in through IAM Identity Center."""
    expiration = int((time.time() + 3600) * 1000)
    keys = {"accessKeyId": "ASIASSO", "secretAccessKey": "s", "sessionToken": "t", "expiration": expiration}
    portal = Loopback(lambda request: Answer.json({"roleCredentials": keys}))
    portal.secure(authority.server_context())
    stack.enter_context(portal)
    place = aws(authority, stack)
    folder = Path(os.environ["HOME"]) / ".aws"
    (folder / "sso" / "cache").mkdir(parents=True)
    start = "https://team.awsapps.com/start"
    account = f"sso_account_id = {ACCOUNT}\nsso_role_name = reader\n"
    where = f"sso_region = {REGION}\nsso_start_url = {start}\n"
    (folder / "config").write_text(f"[profile team]\nsso_session = s\n{account}\n[sso-session s]\n{where}")
    token = {"startUrl": start, "region": REGION, "accessToken": "t", "expiresAt": in_seconds(3600)}
    (folder / "sso" / "cache" / f"{hashlib.sha1(b's').hexdigest()}.json").write_text(json.dumps(token))
    sm, sso = f"secrets.{DOMAIN}", f"sso.{DOMAIN}"
    for settings, url in ((place.on_loopback, portal.url), (place.by_name, f"https://{sso}")):
        settings.update(AWS_PROFILE="team", AWS_ENDPOINT_URL_SSO=url)
        del settings["AWS_ROLE_ARN"]
    place.ports = {sm: place.ports[sm], sso: portal.port}
    return place


def azure(authority: Authority, stack: ExitStack) -> Place:
    """Key Vault and Entra."""
    server = stack.enter_context(AzureLike(NAMES))
    key_vault, entra = f"keyvault.{DOMAIN}", f"login.{DOMAIN}"
    on_loopback = server.settings()
    ca_file = on_loopback.pop("SSL_CERT_FILE")
    del on_loopback["REQUESTS_CA_BUNDLE"]
    ports = {
        name: int(on_loopback[variable].rpartition(":")[2].rstrip("/"))
        for name, variable in ((key_vault, "MLFLOW_AZURE_KEY_VAULT_URL"), (entra, "AZURE_AUTHORITY_HOST"))
    }
    by_name = {
        **on_loopback,
        "MLFLOW_AZURE_KEY_VAULT_URL": f"https://{key_vault}",
        "AZURE_AUTHORITY_HOST": f"https://{entra}",
    }
    return Place("azure", ca_file, on_loopback, by_name, ports)


PLACES: dict[str, Callable[[Authority, ExitStack], Place]] = {
    "vault": vault,
    "aws": aws,
    "aws-sso": aws_sso,
    "azure": azure,
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), NAMES)


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CA that signed nothing here."""
    return str(Authority(tmp_path_factory.mktemp("other"), NAMES).ca_file)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, authority: Authority, clean_slate: None) -> Iterator[Place]:
    with ExitStack() as stack:
        yield PLACES[request.param](authority, stack)


def code() -> str:
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(URL)
    return caught.value.code


# Proxies


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_s6_every_backend_is_asked_through_the_proxy(place: Place, configure: Configure, variable: str) -> None:
    """S6: by whichever name it is set, everything that a fetch asks goes through the proxy."""
    with Proxy(place.ports) as proxy:
        configure(place.by_name, **{variable: proxy.url, "SSL_CERT_FILE": place.ca_file})
        assert headers_for(URL) == FIRST
        assert set(proxy.asked) == place.asked


def test_s6_so_it_is_with_settings_given_in_code(place: Place, configure: Configure) -> None:
    """S6: settings in code take the place of the environment, the proxy and the roots included."""
    with Proxy(place.ports) as proxy, Proxy({}) as wrong:
        # The SDK reads the portal's endpoint from the process itself.
        configure(HTTPS_PROXY=wrong.url, AWS_ENDPOINT_URL_SSO=place.by_name.get("AWS_ENDPOINT_URL_SSO"))
        settings = {**place.by_name, "HTTPS_PROXY": proxy.url, "REQUESTS_CA_BUNDLE": place.ca_file}
        assert headers_for(URL, settings=settings) == FIRST
        assert set(proxy.asked) == place.asked
        assert wrong.asked == []


def test_s6_another_proxy_counts_from_the_next_request_on(place: Place, configure: Configure) -> None:
    """S6: a change of the variable, in either case, is a change of the settings; lower case comes first."""
    with Proxy(place.ports) as one, Proxy(place.ports) as two, Proxy(place.ports) as three:
        configure(place.by_name, HTTPS_PROXY=one.url, SSL_CERT_FILE=place.ca_file)
        assert headers_for(URL) == FIRST
        configure(HTTPS_PROXY=two.url)
        assert headers_for(URL) == FIRST
        configure(https_proxy=three.url)
        assert headers_for(URL) == FIRST
        assert set(one.asked) == set(two.asked) == set(three.asked) == place.asked


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("exceptions", ["{names}", DOMAIN.upper(), f"other.test, .{DOMAIN}", "*"])
def test_s6_no_proxy(place: Place, configure: Configure, variable: str, exceptions: str) -> None:
    """S6: what NO_PROXY names is not asked through a proxy, and so can't be reached here."""
    with Proxy(place.ports) as proxy:
        names = ",".join(place.ports)
        more = {variable: exceptions.format(names=names), "MLFLOW_SECRETS_MAX_RETRIES": "0"}
        configure(place.by_name, HTTPS_PROXY=proxy.url, SSL_CERT_FILE=place.ca_file, **more)
        assert code().endswith("unreachable")
        assert proxy.asked == []


def test_s6_loopback_is_never_asked_through_a_proxy(place: Place, configure: Configure) -> None:
    with Proxy(place.ports) as proxy:
        configure(place.on_loopback, HTTPS_PROXY=proxy.url, ALL_PROXY=proxy.url, SSL_CERT_FILE=place.ca_file)
        assert headers_for(URL) == FIRST
        assert proxy.asked == []


@pytest.mark.parametrize(("make", "address"), [(VaultLike, "VAULT_ADDR"), (AwsLike, "AWS_ENDPOINT_URL")])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_s6_plain_http_through_its_own_proxy(
    configure: Configure, make: Callable[[], VaultLike | AwsLike], address: str, variable: str
) -> None:
    """S6: HTTP_PROXY is for plain http, HTTPS_PROXY is not; in a CGI script only the owner's spelling counts."""
    with make() as proxy, Proxy({}) as other:
        origin = proxy.rule
        # A proxy is asked for the complete URL.
        proxy.rule = lambda request: origin(dataclasses.replace(request, path="/" + request.path.split("/", 3)[3]))
        configure(proxy.settings(), MLFLOW_SECRETS_MAX_RETRIES="0", HTTPS_PROXY=other.url)
        configure({address: f"http://backend.{DOMAIN}", variable: proxy.url})
        assert headers_for(URL) == FIRST
        assert {request.path.partition("test/")[0] for request in proxy.requests} == {"http://backend.example."}
        heard = len(proxy.requests)
        configure(REQUEST_METHOD="GET", MLFLOW_VAULT_TTL_SEC="0", MLFLOW_AWS_TTL_SEC="0")
        if variable == "HTTP_PROXY":
            assert code().endswith("unreachable")
            assert len(proxy.requests) == heard
        else:
            assert headers_for(URL) == FIRST
        assert other.asked == []


def test_s6_metadata_addresses_are_never_asked_through_a_proxy(loopback: Loopback, configure: Configure) -> None:
    """S6: wherever the endpoint was put. (Those at their own addresses: test_azure_metadata.py.)"""
    with AwsLike() as server:
        configure(server.settings(), AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, HTTP_PROXY=loopback.url)
        configure(ALL_PROXY=loopback.url, MLFLOW_SECRETS_MAX_RETRIES="0", MLFLOW_SECRETS_TIMEOUT_SEC="5")
        configure(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://metadata.{DOMAIN}")
        assert code() == "aws.no_credentials"
        configure(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"https://metadata.{DOMAIN}/credentials")
        assert code() == "aws.identity_unreachable"
        assert loopback.requests == []


def test_s6_the_proxys_password_goes_to_the_proxy_and_nowhere_else(
    place: Place, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Proxy(place.ports) as proxy:
        url = proxy.url.replace("//", "//jim:can%40ary@")
        configure(place.by_name, HTTPS_PROXY=url, SSL_CERT_FILE=place.ca_file)
        assert headers_for(URL) == FIRST
        expected = "Basic " + base64.b64encode(b"jim:can@ary").decode()
        assert set(proxy.authorization) == {expected}
        clients = [vars(record) for record in caplog.records if getattr(record, "event", "") == "client"]
        shown = {(client["proxy"], client["roots"]) for client in clients if client["tls"]}
        assert shown == {(proxy.url.replace("//", "//***@"), f"SSL_CERT_FILE names {place.ca_file}")}
        for record in caplog.records:
            assert not any(part in repr(vars(record)) for part in ("can%40ary", "can@ary", expected[6:], "jim"))


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "url",
    [
        "socks5://u:canary@proxy:1080",
        "ftp://proxy",
        "http://u:canary@",
        "http://u:canary@proxy:99999",
        "http://u:can/ary@proxy:3128",
        "http://u:1/canary@proxy:3128",
        "http://u:can#ary@proxy:3128",
        "u:1/canary@proxy:3128",
        "http://proxy:3128/path",
        "http://pro xy",
    ],
)
def test_s6_a_proxy_that_is_none(vault_like: VaultLike, configure: Configure, variable: str, url: str) -> None:
    """S6: a proxy that can't be used is an error, not a fetch without it; the error shows no password."""
    configure(vault_like.settings(), **{variable: url})
    with pytest.raises(ConfigurationError) as caught:
        headers_for(URL)
    assert caught.value.code == "config.invalid_value"
    assert variable.upper() in str(caught.value)
    assert "ary" not in str(caught.value)
    assert vault_like.requests == []


def test_s6_a_proxy_that_is_not_used_need_not_be_one(vault_like: VaultLike, configure: Configure) -> None:
    """ALL_PROXY is often one for other programs."""
    configure(vault_like.settings(), ALL_PROXY="socks5://proxy", HTTPS_PROXY="proxy:3128", HTTP_PROXY="http://proxy/")
    assert headers_for(URL) == FIRST


# Roots

NO_ROOTS = dict.fromkeys(["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"])


def test_s6_roots(place: Place, configure: Configure, other_ca: str, tmp_path: Path) -> None:
    """S6: each variable brings trust; REQUESTS_CA_BUNDLE replaces the others, which count together."""
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder, ca in ((right, place.ca_file), (wrong, other_ca)):
        folder.mkdir()
        (folder / "company-ca").write_text(Path(ca).read_text())
        (folder / "README").write_text("not a certificate")
    both = f"{wrong}{os.pathsep}{right}"
    good: list[dict[str, str]] = [
        {"REQUESTS_CA_BUNDLE": place.ca_file},
        {"REQUESTS_CA_BUNDLE": str(right), "SSL_CERT_FILE": other_ca, "SSL_CERT_DIR": str(wrong)},
        {"SSL_CERT_FILE": place.ca_file},
        {"SSL_CERT_DIR": str(right)},
        {"SSL_CERT_DIR": both},
        {"SSL_CERT_FILE": other_ca, "SSL_CERT_DIR": str(right)},
        {"SSL_CERT_FILE": place.ca_file, "SSL_CERT_DIR": str(wrong)},
    ]
    bad: list[dict[str, str]] = [
        {},
        {"REQUESTS_CA_BUNDLE": other_ca, "SSL_CERT_FILE": place.ca_file, "SSL_CERT_DIR": str(right)},
        {"SSL_CERT_FILE": other_ca, "SSL_CERT_DIR": str(wrong)},
    ]
    configure(place.on_loopback, MLFLOW_SECRETS_MAX_RETRIES="0")
    for variables in good:
        configure(NO_ROOTS)  # type: ignore[arg-type]
        configure(variables)
        assert headers_for(URL) == FIRST, variables
    for variables in bad:
        configure(NO_ROOTS)  # type: ignore[arg-type]
        configure(variables)
        assert code() == f"{place.prefix}.tls", variables


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("content", [None, "nothing", "folder"])
def test_s6_roots_that_are_none(
    place: Place, configure: Configure, tmp_path: Path, variable: str, content: str | None
) -> None:
    """S6: the error names the variable and the path, and nobody is asked without roots."""
    path = tmp_path / "roots"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_text(content)
    configure(place.on_loopback, **{variable: str(path)})
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(URL)
    assert caught.value.code == "config.file"
    assert f"{variable} names {path}" in caught.value.message


# Downgrades


@pytest.mark.parametrize(
    ("make", "variable", "value", "more"),
    [
        (VaultLike, "VAULT_ADDR", f"http://vault.{DOMAIN}", {}),
        (VaultLike, "VAULT_AGENT_ADDR", f"http://agent.{DOMAIN}", {"VAULT_ADDR": None}),
        (VaultLike, "VAULT_SKIP_VERIFY", "true", {"VAULT_ADDR": "https://localhost:1"}),
        (AwsLike, "AWS_ENDPOINT_URL", f"http://aws.{DOMAIN}", {}),
        (AwsLike, "AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://aws.{DOMAIN}", {}),
        (AwsLike, "AWS_ENDPOINT_URL_STS", f"http://aws.{DOMAIN}", {"AWS_ROLE_ARN": ROLE}),
        (AwsLike, "AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://aws.{DOMAIN}", {"AWS_ENDPOINT_URL": "http://[::1]:1"}),
        (AwsLike, "MLFLOW_AWS_AGENT_URL", f"http://aws.{DOMAIN}", {"MLFLOW_AWS_AGENT_TOKEN": "t"}),
        (AzureLike, "IDENTITY_ENDPOINT", f"http://identity.{DOMAIN}", {"IDENTITY_HEADER": "h"}),
        (AzureLike, "MSI_ENDPOINT", f"http://identity.{DOMAIN}", {"MSI_SECRET": "s"}),
    ],
)
def test_s5_a_downgrade_warns_once(
    configure: Configure,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[], VaultLike | AwsLike | AzureLike],
    variable: str,
    value: str,
    more: dict[str, str | None],
) -> None:
    """S5: turning verification off, and plain http beyond this machine, is warned about once, naming the variable."""
    with make() as server:
        if isinstance(server, AzureLike):
            more = {**more, "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential"}
        configure(server.settings(), MLFLOW_SECRETS_MAX_RETRIES="0", MLFLOW_SECRETS_TIMEOUT_SEC="2")
        configure(more, **{variable: value})
        for _ in range(3):
            with pytest.raises(SecretsAuthError):
                headers_for(URL)
    warnings = [record for record in caplog.records if getattr(record, "event", "") == "notice"]
    assert [record.levelno for record in warnings] == [logging.WARNING]
    assert warnings[0].getMessage().startswith(f"{variable} is ")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://x.test"])
def test_s5_what_is_no_downgrade(configure: Configure, caplog: pytest.LogCaptureFixture, address: str) -> None:
    """S5: loopback and https are not warned about, nor is the address of a metadata service."""
    with AwsLike() as server:
        configure(server.settings(), MLFLOW_SECRETS_MAX_RETRIES="0", AWS_ENDPOINT_URL=address)
        configure(AWS_EC2_METADATA_SERVICE_ENDPOINT="http://169.254.169.254")
        with pytest.raises(SecretsAuthError):
            headers_for(URL)
    assert not [record for record in caplog.records if getattr(record, "event", "") == "notice"]
