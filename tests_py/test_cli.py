"""The command line: ``info`` says what is configured, ``doctor`` tries it, and both tell programs the same."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trustme

from conftest import Configure
from loopback import Answer, Loopback, VaultLike
from servers import MlflowServer, OpenBao
from vaults import enable_approle, read_policy

SCHEMAS = Path(__file__).parent.parent / "docs" / "schemas"
COMMAND = [sys.executable, "-m", "mlflow_secrets_auth"]

Finding = dict[str, Any]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def as_documented(name: str, text: str) -> dict[str, Any]:
    """The document, which has to be as its schema says."""
    document = json.loads(text)
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    return document


def info() -> dict[str, Any]:
    done = command("info", "--json")
    assert done.returncode == 0, done.stderr
    return as_documented("info", done.stdout)


def doctor(*arguments: str) -> list[Finding]:
    """The findings. The exit status says whether one failed."""
    done = command("doctor", "--json", *arguments)
    report = as_documented("doctor", done.stdout)
    failed = any(finding["status"] == "fail" for finding in report["findings"])
    assert (done.returncode, report["ok"]) == ((1, False) if failed else (0, True)), done.stderr
    return report["findings"]


def only(findings: list[Finding], code: str) -> Finding:
    [found] = [finding for finding in findings if finding["code"] == code]
    return found


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding["code"]: finding["status"] for finding in findings}


# info


def test_info_reports_broken_settings_and_exits_0(configure: Configure) -> None:
    configure(MLFLOW_SECRETS_AUTH_ENABLE="vault", VAULT_TOKEN="canary-token", MLFLOW_VAULT_TTL_SEC="x")
    result = command("info")
    assert result.returncode == 0
    assert "config.invalid_value" in result.stdout
    assert "canary-token" not in result.stdout
    facts = info()
    assert {error["code"] for error in facts["errors"]} == {"config.invalid_value", "config.missing"}
    assert facts["build"]["features"] == ["vault", "aws", "azure", "python"]


def test_info_tells_where_each_setting_comes_from(configure: Configure) -> None:
    configure(
        MLFLOW_SECRETS_AUTH_ENABLE="azure-key-vault",
        AZURE_KEY_VAULT_URL="https://v.vault.azure.net",
        MLFLOW_AZURE_SECRET_NAME="mlflow",
        AZURE_CLIENT_SECRET="canary-secret",
    )
    settings = {setting.pop("name"): setting for setting in info()["settings"]}
    assert settings["MLFLOW_AZURE_KEY_VAULT_URL"] == {
        "value": "https://v.vault.azure.net",
        "source": "alias",
        "alias": "AZURE_KEY_VAULT_URL",
    }
    assert "AZURE_KEY_VAULT_URL" not in settings
    assert settings["MLFLOW_AZURE_SECRET_NAME"] == {"value": "mlflow", "source": "variable", "alias": None}
    assert settings["MLFLOW_AZURE_TTL_SEC"] == {"value": "300", "source": "default", "alias": None}
    assert settings["AZURE_CLIENT_SECRET"] == {"value": "set", "source": "variable", "alias": None}
    assert "https://v.vault.azure.net  (from AZURE_KEY_VAULT_URL)" in command("info").stdout


def test_s1_info_shows_no_password_of_an_alias(configure: Configure) -> None:
    """S1: a URL that brings a password along, under the variable's other name."""
    configure(
        MLFLOW_SECRETS_AUTH_ENABLE="azure-key-vault",
        AZURE_KEY_VAULT_URL="https://jim:canary@v.vault.azure.net",
        MLFLOW_AZURE_SECRET_NAME="mlflow",
    )
    for arguments in (["info"], ["info", "--json"], ["doctor"]):
        done = command(*arguments)
        assert "v.vault.azure.net" in done.stdout
        assert "canary" not in done.stdout + done.stderr


def test_info_tells_every_provider_s_state_in_order(configure: Configure, vault_like: VaultLike) -> None:
    configure(
        vault_like.settings(
            MLFLOW_SECRETS_AUTH_ENABLE="vault, azure-key-vault, aws-secrets-manager",
            MLFLOW_SECRETS_AUTH_ENABLE_AZURE_KEY_VAULT="false",
        )
    )
    facts = info()
    assert [(one["name"], one["in_use"], one["enabled"], one["state"]) for one in facts["providers"]] == [
        ("vault", True, True, "in use"),
        ("aws-secrets-manager", False, True, "enabled, but not usable: see below"),
        ("azure-key-vault", False, False, "disabled by MLFLOW_SECRETS_AUTH_ENABLE_AZURE_KEY_VAULT"),
    ]
    assert any("aws-secrets-manager needs" in notice for notice in facts["notices"])
    assert vault_like.requests == []


@pytest.mark.parametrize(
    ("settings", "problem", "hint"),
    [
        ({}, "MLFLOW_TRACKING_AUTH is not set", "export MLFLOW_TRACKING_AUTH=mlflow_secrets_auth"),
        (
            {"MLFLOW_TRACKING_AUTH": "mlflow-secrets-auth"},
            "'mlflow-secrets-auth', and no such provider is installed",
            "export MLFLOW_TRACKING_AUTH=mlflow_secrets_auth",
        ),
        (
            {"MLFLOW_TRACKING_AUTH": "kubernetes"},
            "chooses another provider, kubernetes",
            "export MLFLOW_TRACKING_AUTH=mlflow_secrets_auth",
        ),
        (
            {"MLFLOW_TRACKING_AUTH": "mlflow_secrets_auth", "MLFLOW_TRACKING_AWS_SIGV4": "true"},
            "MLFLOW_TRACKING_AWS_SIGV4 is on",
            "unset MLFLOW_TRACKING_AWS_SIGV4",
        ),
    ],
)
def test_both_tell_why_mlflow_would_not_use_us(configure: Configure, settings, problem, hint) -> None:
    configure(settings)
    usage = info()["mlflow"]
    assert not usage["uses_us"]
    assert problem in usage["problem"]
    assert usage["hint"] == hint
    found = only(doctor(), "mlflow.not_used")
    assert found["status"] == "warn"
    assert problem in found["message"]
    assert found["hint"] == hint


@pytest.mark.parametrize(
    ("version", "problem"),
    [(None, "MLflow is not installed"), ("2.7.1", "MLflow 2.7.1 knows no providers yet"), ("2.8.0", None)],
)
def test_an_mlflow_without_providers_does_not_use_us(configure: Configure, tmp_path: Path, version, problem) -> None:
    """As `info` sees it from an environment that has only the package, and another MLflow or none."""
    package = Path(sys.modules["mlflow_secrets_auth"].__file__ or "").parent
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mlflow_secrets_auth").symlink_to(package)
    for name in ("click", "requests"):
        (tmp_path / "lib" / name).symlink_to(Path(sys.modules[name].__file__ or "").parent)
    if version:
        (tmp_path / "lib" / "mlflow").mkdir()
        (tmp_path / "lib" / "mlflow" / "__init__.py").write_text("raise SystemExit('info does not import MLflow')")
        (tmp_path / "lib" / "mlflow" / "version.py").write_text(f'import re\n\nVERSION = "{version}"\n')
    configure(MLFLOW_TRACKING_AUTH="mlflow_secrets_auth", PYTHONPATH=str(tmp_path / "lib"))
    # -S leaves out site-packages, and so the MLflow that is there.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "mlflow_secrets_auth", "info", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    usage = as_documented("info", done.stdout)["mlflow"]
    assert usage["version"] == version
    assert (usage["problem"] is None) if problem is None else problem in usage["problem"]


def test_a_script_that_is_called_mlflow_is_not_mlflow(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "mlflow.py").write_text("raise SystemExit('not to be imported')")
    configure(MLFLOW_TRACKING_AUTH="mlflow_secrets_auth", PYTHONPATH=str(tmp_path))
    usage = info()["mlflow"]
    assert (usage["version"], usage["problem"]) == (None, "MLflow is not installed in this environment")


# doctor: from the settings to the header


def test_doctor_passes_when_all_is_well(vault_like: VaultLike, configure: Configure) -> None:
    vault_like.fields = {"token": "canary-token", "owner": "canary-owner"}
    configure(vault_like.settings(MLFLOW_TRACKING_AUTH="mlflow_secrets_auth"))
    result = command("doctor")
    assert result.returncode == 0, result.stdout
    assert "Authorization: Bearer <token>" in result.stdout
    assert "canary" not in result.stdout + result.stderr
    findings = doctor()
    assert list(statuses(findings).items()) == [
        ("mlflow.uses_us", "pass"),
        ("config.loaded", "pass"),
        ("backend.reachable", "pass"),
        ("identity.found", "pass"),
        ("secret.readable", "pass"),
        ("header.built", "pass"),
    ]
    assert only(findings, "backend.reachable")["facts"]["server"] == vault_like.url
    secret = only(findings, "secret.readable")["facts"]
    assert (secret["location"], secret["version"]) == ("secret/data/mlflow/auth", "1")
    assert secret["fields"] == ["owner", "token"]
    assert (secret["ttl_s"], secret["expires_in_s"]) == (300, None)
    assert only(findings, "header.built")["facts"]["headers"] == ["Authorization"]


def test_doctor_tells_a_secret_s_age_and_end(bao: OpenBao, configure: Configure) -> None:
    ends = time.time() + 1000
    bao.put_secret("doctor/ends", token="t", expires_at=int(ends))
    configure(
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=bao.url,
        VAULT_TOKEN=bao.root_token,
        MLFLOW_VAULT_SECRET_PATH="secret/doctor/ends",
    )
    secret = only(doctor(), "secret.readable")
    assert 0 <= secret["facts"]["age_s"] < 60
    assert 900 < secret["facts"]["expires_in_s"] <= 1000
    assert re.search(r"written \d+ s ago, fields expires_at, token, expires in 16 min", secret["message"])


def test_doctor_tells_the_login_that_won_and_those_before_it(bao: OpenBao, use_vault, path: str) -> None:
    bao.put_secret(path, token="t")
    login = enable_approle(bao, "approle", read_policy(path))
    use_vault(VAULT_TOKEN=None, **login)
    found = only(doctor(), "identity.found")
    assert [(one["way"], one["succeeded"]) for one in found["facts"]["tried"]] == [("token", False), ("approle", True)]
    assert found["facts"]["tried"][0]["result"] == "not configured (VAULT_TOKEN)"
    assert "AppRole at auth/approle, because VAULT_ROLE_ID is set" in found["message"]
    assert login["VAULT_SECRET_ID"] not in json.dumps(found)


def test_doctor_fails_with_code_and_hint(configure: Configure, vault_like: VaultLike) -> None:
    configure(vault_like.settings(VAULT_ADDR="http://127.0.0.1:9"))
    findings = doctor()
    unreachable = only(findings, "backend.unreachable")
    assert unreachable["facts"]["server"] == "http://127.0.0.1:9"
    assert "connection refused" in unreachable["message"]
    failed = only(findings, "vault.unreachable")
    assert (failed["status"], failed["facts"]) == ("fail", {"provider": "vault", "backup": False})
    assert "VAULT_ADDR" in failed["hint"]
    assert statuses(findings)["header.built"] == "skip"


def test_doctor_tells_a_name_that_has_no_address(configure: Configure, vault_like: VaultLike) -> None:
    configure(vault_like.settings(VAULT_ADDR="https://vault.invalid"))
    unreachable = only(doctor(), "backend.unreachable")
    assert "the name can't be resolved" in unreachable["message"]
    assert unreachable["facts"]["lookup_ms"] is not None
    assert unreachable["facts"]["connection_ms"] is None


@pytest.fixture
def of_a_stranger() -> ssl.SSLContext:
    """TLS with a certificate that nobody here trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca = trustme.CA(organization_name="Stranger Ltd", organization_unit_name="unit")
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_doctor_tells_who_signed_a_certificate_that_is_refused(
    configure: Configure, of_a_stranger: ssl.SSLContext
) -> None:
    with VaultLikeOver(of_a_stranger) as server:
        configure(server.settings())
        findings = doctor()
        assert server.requests == []
    refused = only(findings, "backend.tls")
    assert "Stranger Ltd" in refused["facts"]["issuer"]
    assert "signed by a CA that is not trusted here" in refused["message"]
    assert "VAULT_CACERT" in refused["hint"]
    assert statuses(findings)["vault.tls"] == "fail"


def test_doctor_does_not_ask_to_trust_the_signer_of_another_server(configure: Configure, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("another.example").configure_cert(context)
    with VaultLikeOver(context) as server:
        configure(server.settings(VAULT_CACERT=str(tmp_path / "ca.pem")))
        refused = only(doctor(), "backend.tls")
    assert "the certificate is for another name" in refused["message"]
    assert "VAULT_CACERT" not in refused["hint"] and "names" in refused["hint"]


class VaultLikeOver(VaultLike):
    """:class:`VaultLike` that speaks TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.secure(context)


def test_doctor_knows_a_server_that_speaks_no_tls(configure: Configure, vault_like: VaultLike) -> None:
    configure(vault_like.settings(VAULT_ADDR=vault_like.url.replace("http://", "https://")))
    findings = doctor()
    refused = only(findings, "backend.tls")
    assert "does not speak TLS on this port; its address may have to begin with http://" in refused["message"]
    assert refused["facts"]["issuer"] is None
    assert "scheme" in refused["hint"]
    assert "plain http" in only(findings, "vault.tls")["hint"]


def test_doctor_finds_a_typing_error_in_the_first_setting(configure: Configure) -> None:
    configure(MLFLOW_SECRETS_AUTH_ENABLED="vault")
    findings = doctor()
    hint = only(findings, "config.no_provider")["hint"]
    assert hint == "MLFLOW_SECRETS_AUTH_ENABLED is set: did you mean MLFLOW_SECRETS_AUTH_ENABLE?"
    assert "MLFLOW_SECRETS_AUTH_ENABLED" in only(findings, "config.notice")["message"]


def test_doctor_shows_every_error_of_the_settings_at_once(configure: Configure) -> None:
    configure(
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        MLFLOW_SECRETS_ALLOWED_HOSTS=",",
        MLFLOW_SECRETS_TIMEOUT_SEC="soon",
        MLFLOW_SECRETS_LOG_LEVEL="LOUD",
    )
    findings = doctor()
    codes = sorted(finding["code"] for finding in findings if finding["status"] == "fail")
    assert codes == ["config.allowlist_empty", "config.invalid_value", "config.invalid_value", "config.missing"]
    assert statuses(findings)["secret.readable"] == "skip"


def test_doctor_examines_each_provider_and_says_which_is_the_backup(
    configure: Configure, vault_like: VaultLike, tmp_path: Path
) -> None:
    configure(
        vault_like.settings(
            MLFLOW_SECRETS_AUTH_ENABLE="vault,aws-secrets-manager",
            AWS_REGION="us-east-1",
            AWS_ACCESS_KEY_ID="AKIAEXAMPLE",
            AWS_SECRET_ACCESS_KEY="canary-key",
            AWS_ENDPOINT_URL_SECRETS_MANAGER="http://127.0.0.1:9",
            MLFLOW_AWS_SECRET_NAME="mlflow",
        )
    )
    findings = doctor()
    assert only(findings, "config.loaded")["facts"]["providers"] == ["vault", "aws-secrets-manager"]
    failed = only(findings, "aws.unreachable")
    assert failed["facts"] == {"provider": "aws-secrets-manager", "backup": True}
    assert failed["message"].startswith("aws-secrets-manager (backup): ")
    built = [finding for finding in findings if finding["code"] == "header.built"]
    assert [(one["status"], one["facts"]["provider"]) for one in built] == [
        ("pass", "vault"),
        ("skip", "aws-secrets-manager"),
    ]


@pytest.mark.parametrize(
    ("mode", "header", "fields", "shape"),
    [
        ("bearer", "Authorization", {"token": "t"}, "Authorization: Bearer <token>"),
        ("basic", "Authorization", {"username": "u", "password": "p"}, "Authorization: Basic <token>"),
        ("bearer", "X-MLflow-Auth", {"token": "t"}, "X-MLflow-Auth: <token>, no scheme"),
        ("raw", "Authorization", {"token": "t"}, "Authorization: <token>, no scheme"),
        ("bearer", "Authorization", {"headers": {"A": "1", "B": "2"}}, "A: <token>, no scheme; B: <token>, no scheme"),
    ],
)
def test_doctor_tells_the_header_s_shape_in_words(
    configure: Configure, vault_like: VaultLike, mode, header, fields, shape
) -> None:
    vault_like.fields = fields
    configure(vault_like.settings(MLFLOW_VAULT_AUTH_MODE=mode, MLFLOW_AUTH_HEADER_NAME=header))
    built = only(doctor(), "header.built")
    assert built["facts"]["shape"] == shape
    assert built["message"].startswith(f"vault: {shape} (fingerprint ")


def test_doctor_suspects_a_forgotten_basic_mode(configure: Configure, vault_like: VaultLike) -> None:
    vault_like.fields = {"token": "user:canary-password"}
    configure(vault_like.settings())
    found = only(doctor(), "header.looks_basic")
    assert found["status"] == "warn"
    assert "MLFLOW_VAULT_AUTH_MODE=basic" in found["hint"]
    assert "canary" not in json.dumps(found)


def test_doctor_warns_of_patterns_that_permit_too_much(configure: Configure, vault_like: VaultLike) -> None:
    patterns = (
        "mlflow.example.com, mlflow-*, *, *example.com, *.example.com, http://mlflow.example.com, http://localhost"
    )
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS=patterns, MLFLOW_SECRETS_ALLOW_HTTP="true"))
    warnings = [one for one in doctor() if one["status"] == "warn" and one["code"].startswith("allowlist.")]
    assert [(one["code"], one["message"]) for one in warnings] == [
        ("allowlist.open_ended", "the pattern mlflow-* also matches mlflow-x.attacker.com"),
        ("allowlist.open_ended", "the pattern * permits every host"),
        ("allowlist.open_ended", "the pattern *example.com also matches evilexample.com"),
        (
            "allowlist.plain_http",
            "the pattern http://mlflow.example.com permits plain http, for everybody on the way to read",
        ),
        ("allowlist.plain_http", "plain http is permitted to every host that may get the credential"),
    ]


# doctor --dry-run: up to the server


def test_doctor_asks_the_server(bao: OpenBao, mlflow_server: MlflowServer, configure: Configure) -> None:
    bao.put_secret("doctor/mlflow", username=mlflow_server.user, password=mlflow_server.password)
    configure(
        MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=bao.url,
        VAULT_TOKEN=bao.root_token,
        MLFLOW_VAULT_SECRET_PATH="secret/doctor/mlflow",
        MLFLOW_VAULT_AUTH_MODE="basic",
    )
    good = doctor("--dry-run", mlflow_server.url)
    assert only(good, "server.protected")["facts"]["status"] == 401
    assert only(good, "server.accepts")["facts"]["server"] == mlflow_server.url
    bao.put_secret("doctor/mlflow", username="nobody", password="wrong")
    bad = doctor("--dry-run", mlflow_server.url)
    assert only(bad, "server.denied")["facts"]["status"] == 401


def test_doctor_sends_nothing_to_a_host_that_is_not_allowed(
    vault_like: VaultLike, configure: Configure, loopback: Loopback
) -> None:
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.example.com,127.0.0.2"))
    findings = doctor("--dry-run", loopback.url)
    refused = only(findings, "host.not_allowed")
    assert "the nearest is 127.0.0.2" in refused["message"]
    assert statuses(findings)["server.accepts"] == "skip"
    assert loopback.requests == []


def says(answer: Answer, with_credential: Answer | None = None) -> Callable[[Any], Answer]:
    return lambda request: with_credential if with_credential and "authorization" in request.headers else answer


HTML = Answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<form>")


@pytest.mark.parametrize(
    ("rule", "code", "status"),
    [
        (says(Answer.json({})), "server.open", "warn"),
        (says(Answer(401), Answer.json({})), "server.accepts", "pass"),
        (says(Answer(401)), "server.denied", "fail"),
        (says(Answer(403)), "server.denied", "fail"),
        (says(HTML), "tracking.login_page", "fail"),
        (says(Answer.redirect("/oauth2/authorize")), "tracking.login_page", "fail"),
        (says(Answer(401), Answer.redirect("/elsewhere/")), "server.redirects", "fail"),
        (says(Answer(401), Answer(404)), "server.unexpected", "fail"),
        (says(Answer(401), Answer(503)), "server.unexpected", "fail"),
    ],
)
def test_doctor_tells_what_kind_of_server_it_is(
    configure: Configure, vault_like: VaultLike, loopback: Loopback, rule, code, status
) -> None:
    loopback.rule = rule
    configure(vault_like.settings())
    findings = doctor("--dry-run", loopback.url)
    assert statuses(findings)[code] == status, findings


def test_doctor_tells_a_failure_once(configure: Configure, vault_like: VaultLike, loopback: Loopback) -> None:
    loopback.rule = says(Answer(401))
    vault_like.failure = Answer(403)
    configure(vault_like.settings())
    done = command("doctor", "--json", "--dry-run", loopback.url)
    findings = as_documented("doctor", done.stdout)["findings"]
    assert [one["code"] for one in findings if one["status"] == "fail"] == ["vault.token_refused"]
    assert only(findings, "server.accepts")["message"] == "needs the credential"
    assert only(findings, "server.protected")["status"] == "pass"
    assert done.stderr == ""


@pytest.mark.parametrize("url", ["databricks", "databricks://canary:canary@profile", "databricks-uc"])
def test_doctor_knows_what_is_never_ours(configure: Configure, vault_like: VaultLike, url: str) -> None:
    configure(vault_like.settings())
    findings = doctor("--dry-run", url)
    assert statuses(findings)["server.databricks"] == "fail"
    assert "canary" not in json.dumps(findings)


def test_doctor_fails_for_a_server_that_is_not_there(configure: Configure, vault_like: VaultLike) -> None:
    configure(vault_like.settings())
    findings = doctor("--dry-run", "http://127.0.0.1:9")
    assert statuses(findings)["server.unreachable"] == "fail"
    assert statuses(findings)["server.accepts"] == "skip"


def test_doctor_tells_who_signed_the_server_s_certificate(
    configure: Configure, vault_like: VaultLike, loopback: Loopback, of_a_stranger: ssl.SSLContext
) -> None:
    configure(vault_like.settings())
    with VaultLikeOver(of_a_stranger) as server:
        refused = only(doctor("--dry-run", server.url), "server.tls")
    assert "Stranger Ltd" in refused["facts"]["issuer"]
    assert "REQUESTS_CA_BUNDLE" in refused["hint"]


@pytest.mark.parametrize(
    "url", ["mlflow.example.com", "ftp://mlflow.example.com", "https://u:canary@mlflow.example.com"]
)
def test_doctor_refuses_an_odd_url_without_showing_its_password(
    configure: Configure, vault_like: VaultLike, url
) -> None:
    configure(vault_like.settings())
    done = command("doctor", "--dry-run", url)
    assert done.returncode == 1
    assert "url.refused" in done.stdout
    assert "canary" not in done.stdout + done.stderr


# usage, terminals, signals


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("info", "--help"), ("doctor", "--help")])
def test_help_and_version(arguments) -> None:
    assert command(*arguments).returncode == 0


@pytest.mark.parametrize("arguments", [("dokter",), ("doctor", "--dryrun"), ("info", "extra")])
def test_wrong_usage_exits_2(arguments) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr


def on_a_terminal(*arguments: str, **variables: str) -> tuple[str, str]:
    """What a command writes to stdout and stderr when each is a terminal."""
    readers, writers = zip(*(pty.openpty() for _ in range(2)), strict=True)
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=writers[0], stderr=writers[1], env={**environment, "TERM": "xterm", **variables}
    )
    for writer in writers:
        os.close(writer)
    texts = {reader: b"" for reader in readers}
    pending = set(readers)
    while pending:
        for reader in select.select(list(pending), [], [])[0]:
            try:
                part = os.read(reader, 65536)
            except OSError:  # On Linux, the end of a terminal whose other side is closed.
                part = b""
            texts[reader] += part
            if not part:
                pending.discard(reader)
                os.close(reader)
    process.wait()
    out, err = (texts[reader].decode() for reader in readers)
    return out, err


def test_colour_is_for_terminals_only(configure: Configure, vault_like: VaultLike) -> None:
    configure(vault_like.settings())
    coloured, quick = on_a_terminal("doctor")
    assert "\x1b[32mpass" in coloured and "\x1b[33mWARN" in coloured
    assert quick == "", "nothing to wait for"
    plain, _ = on_a_terminal("doctor", NO_COLOR="1")
    assert "\x1b" not in plain and "pass" in plain
    assert "\x1b" not in command("doctor").stdout
    assert "\x1b" not in on_a_terminal("doctor", "--json")[0]


def test_a_long_wait_is_told_on_a_terminal_only(configure: Configure, vault_like: VaultLike) -> None:
    vault_like.before_read = lambda: time.sleep(1.3)
    configure(vault_like.settings())
    out, err = on_a_terminal("doctor")
    assert "asking the backends … 1 s" in err
    assert "…" not in out
    assert "…" not in command("doctor").stderr


@pytest.mark.parametrize("arguments", [("doctor",), ("doctor", "--json")])
def test_ctrl_c_ends_it_cleanly(configure: Configure, vault_like: VaultLike, arguments) -> None:
    """P3: within 200 ms, without a traceback and without half a document."""
    vault_like.before_read = lambda: time.sleep(20)
    configure(vault_like.settings())
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while vault_like.reads == 0:
        assert process.poll() is None
        time.sleep(0.01)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert time.monotonic() - pressed < 1
    assert process.returncode == 1
    assert (out, err.strip()) == ("", "Aborted!")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_as_click_gives_it(shell: str) -> None:
    program = Path(sys.executable).parent / "mlflow-secrets-auth"
    variable = "_MLFLOW_SECRETS_AUTH_COMPLETE"

    def run(**variables: str) -> str:
        environment = {**os.environ, **variables}
        return subprocess.run([program], env=environment, capture_output=True, text=True, check=True).stdout

    assert variable in run(**{variable: f"{shell}_source"})
    asked = {"COMP_WORDS": "mlflow-secrets-auth doc", "COMP_CWORD": "doc" if shell == "fish" else "1"}
    assert "doctor" in run(**{variable: f"{shell}_complete"}, **asked)


# what it costs


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def test_c3_neither_command_imports_mlflow_or_requests(configure: Configure, vault_like: VaultLike) -> None:
    """C3: without --dry-run there is no need for either."""
    configure(vault_like.settings(MLFLOW_TRACKING_AUTH="mlflow_secrets_auth"))
    for arguments in (["info"], ["info", "--json"], ["doctor"], ["doctor", "--json"]):
        loaded = loaded_by(*arguments)
        assert "click" in loaded
        assert not loaded & {"mlflow", "requests", "urllib3"}


def test_they_are_quick_enough_for_a_health_check(configure: Configure, bao: OpenBao) -> None:
    """`info` takes 100 ms and `doctor` 300 ms at most, here with fivefold slack; `make bench` has the figures."""
    bao.put_secret("doctor/quick", token="t")
    configure(
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=bao.url,
        VAULT_TOKEN=bao.root_token,
        MLFLOW_VAULT_SECRET_PATH="secret/doctor/quick",
    )
    for name, limit in (("info", 0.1), ("doctor", 0.3)):
        took = []
        for _ in range(3):
            began = time.perf_counter()
            assert command(name).returncode == 0
            took.append(time.perf_counter() - began)
        assert min(took) < 5 * limit, f"{name}: {took}"


# the documentation


def test_every_code_of_a_finding_is_documented() -> None:
    root = Path(__file__).parent.parent
    sources = ["src/doctor.rs", "python/mlflow_secrets_auth/cli.py", "python/mlflow_secrets_auth/_server.py"]
    areas = "mlflow|config|allowlist|backend|login|identity|secret|header|host|server"
    made = rf'\b(?:pass|passed|warn|fail|skip)\(\s*"((?:{areas})\.[a-z_]+)"'
    codes = {code for source in sources for code in re.findall(made, (root / source).read_text())}
    section = (root / "docs" / "cli.md").read_text().split("| code | what is checked |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert codes == {code for row in rows for code in re.findall(r"`(.*?)`", row)}
