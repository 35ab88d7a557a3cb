"""The command line: ``info`` says what is configured, ``doctor`` tries it."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

import click

from mlflow_secrets_auth import _core

_NAME = "mlflow_secrets_auth"
_MARKS = {"pass": ("pass", "green"), "warn": ("WARN", "yellow"), "fail": ("FAIL", "red"), "skip": ("skip", "cyan")}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_core.__version__, prog_name="mlflow-secrets-auth")
def main() -> None:
    """Why does MLflow authenticate, or why not?"""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def info(as_json: bool) -> None:
    """Show version, providers and settings in effect. No network; exits 0 even when settings are broken."""
    facts: dict[str, Any] = json.loads(_core.info())
    facts["python"] = platform.python_version()
    facts["platform"] = f"{sys.platform} {platform.machine()}"
    facts["mlflow"] = _mlflow_usage()
    if as_json:
        click.echo(json.dumps({"schema": 1, **facts}, indent=2))
        return
    _print_info(facts)


@main.command()
@click.option("--dry-run", metavar="URL", help="Also ask the MLflow server at URL whether it accepts the credential.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def doctor(dry_run: str | None, as_json: bool) -> None:
    """Check everything up to the header, and with --dry-run up to the server. Exits 1 when a check fails."""
    findings = [_usage_finding()]
    findings += json.loads(_core.examine())
    if dry_run is not None:
        findings += _examine_server(dry_run)
    failed = any(finding["status"] == "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps({"schema": 1, "ok": not failed, "findings": findings}, indent=2))
    else:
        _print_findings(findings)
    sys.exit(1 if failed else 0)


def _mlflow_usage() -> dict[str, Any]:
    chosen = os.environ.get("MLFLOW_TRACKING_AUTH") or None
    return {"tracking_auth": chosen, "uses_us": chosen == _NAME}


def _usage_finding() -> dict[str, Any]:
    chosen = _mlflow_usage()["tracking_auth"]
    if chosen == _NAME:
        return _finding("pass", "mlflow.uses_us", f"MLFLOW_TRACKING_AUTH={_NAME}")
    what = "MLFLOW_TRACKING_AUTH is not set" if chosen is None else f"MLFLOW_TRACKING_AUTH is {chosen!r}"
    hint = f"export MLFLOW_TRACKING_AUTH={_NAME}"
    return _finding("warn", "mlflow.not_used", f"{what}, so MLflow does not use this package", hint)


def _examine_server(url: str) -> list[dict[str, Any]]:
    decision = json.loads(_core.examine_url(url, _own_urls(url)))
    findings = [decision]
    if decision["status"] != "pass":
        skipped = "needs a URL that may get the credential"
        return [*findings, _finding("skip", "server.accepts", skipped)]
    # Imported only here: doctor is quick without it.
    import requests

    from mlflow_secrets_auth.auth import SecretsAuth
    from mlflow_secrets_auth.errors import SecretsAuthError

    endpoint = url.rstrip("/") + "/api/2.0/mlflow/experiments/search"
    question = {"max_results": 1}
    try:
        # Without `auth`, requests would look into ~/.netrc.
        without = requests.post(endpoint, json=question, auth=lambda r: r, timeout=10, allow_redirects=False)
    except requests.RequestException as error:
        problem = f"{url} can't be reached: {type(error).__name__}"
        hint = "check the URL, and that the server is running"
        return [*findings, _finding("fail", "server.unreachable", problem, hint)]
    findings.append(_openness(url, without.status_code))
    try:
        answer = requests.post(endpoint, json=question, auth=SecretsAuth(), timeout=10, allow_redirects=False)
    except SecretsAuthError as error:
        findings.append(_finding("fail", error.code, error.message, error.hint))
    except requests.RequestException as error:
        findings.append(_finding("fail", "server.unreachable", f"{url} can't be reached: {type(error).__name__}"))
    else:
        findings.append(_acceptance(url, answer))
    return findings


def _own_urls(url: str) -> list[str]:
    uris = [os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")]
    named = [uri for uri in uris if uri]
    # With neither set, the URL on the command line is the only server there is.
    return named or [url]


def _openness(url: str, status: int) -> dict[str, Any]:
    if status in (401, 403) or 300 <= status < 400:
        return _finding("pass", "server.protected", f"{url} refuses requests without a credential (HTTP {status})")
    hint = "if it should be protected, check the server's authentication"
    return _finding("warn", "server.open", f"{url} answers without a credential (HTTP {status})", hint)


def _acceptance(url: str, answer: Any) -> dict[str, Any]:
    status = answer.status_code
    is_page = "text/html" in answer.headers.get("content-type", "")
    if status == 200 and not is_page:
        return _finding("pass", "server.accepts", f"{url} accepts the credential")
    if status in (401, 403):
        hint = "check that the stored credential is the server's, and the auth mode (bearer or basic)"
        return _finding("fail", "server.denied", f"{url} refuses the credential (HTTP {status})", hint)
    if is_page or 300 <= status < 400:
        hint = "the server sends browsers to log in; ask for a token or a user that its API accepts"
        return _finding("fail", "server.login_page", f"{url} answers with a login page (HTTP {status})", hint)
    hint = "check that the URL is that of an MLflow tracking server"
    return _finding("fail", "server.unexpected", f"{url} answers HTTP {status}", hint)


def _finding(status: str, code: str, message: str, hint: str | None = None) -> dict[str, Any]:
    return {"status": status, "code": code, "message": message, "hint": hint}


def _print_findings(findings: list[dict[str, Any]]) -> None:
    width = max(len(finding["code"]) for finding in findings) + 2
    for finding in findings:
        mark, colour = _MARKS[finding["status"]]
        first, *rest = finding["message"].split("\n")
        click.echo(f"{_coloured(mark, colour)}  {finding['code']:<{width}}{first}")
        for line in rest:
            click.echo(f"      {line}")
        if finding["hint"] and finding["status"] != "pass":
            click.echo(f"      hint: {finding['hint']}")


def _print_info(facts: dict[str, Any]) -> None:
    click.echo(f"mlflow-secrets-auth {facts['version']} (Python {facts['python']}, {facts['platform']})")
    mlflow = facts["mlflow"]
    state = "MLflow uses this package" if mlflow["uses_us"] else "MLflow does not use this package"
    click.echo(f"MLFLOW_TRACKING_AUTH: {mlflow['tracking_auth'] or 'not set'} ({state})")
    click.echo("\nproviders")
    for provider in facts["providers"]:
        state = "in use" if provider["in_use"] else "not in use" if provider["built_in"] else "not in this build"
        click.echo(f"  {provider['name']:<22}{state}")
    click.echo("\nsettings")
    for setting in facts["settings"]:
        source = "" if setting["source"] == "variable" else "  (default)"
        click.echo(f"  {setting['name']:<46}{setting['value']}{source}")
    for error in facts["errors"]:
        click.echo(f"\n{error['code']}: {error['message']}\nhint: {error['hint']}")
    for notice in facts["notices"]:
        click.echo(f"\nnote: {notice}")


def _coloured(text: str, colour: str) -> str:
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)
