"""The command line: ``info`` says what is configured, ``doctor`` tries it."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from typing import TYPE_CHECKING, Any

import click

from mlflow_secrets_auth import _core
from mlflow_secrets_auth._findings import Finding, passed, warn

if TYPE_CHECKING:
    from types import TracebackType

#: The version of both ``--json`` documents. A field is never removed or changed within a version; new ones may appear.
_SCHEMA = 1
_NAME = "mlflow_secrets_auth"
#: The providers that MLflow itself brings.
_MLFLOW_OWN = ("kubernetes", "kubernetes-namespaced")
_MARKS = {"pass": ("pass", "green"), "warn": ("WARN", "yellow"), "fail": ("FAIL", "red"), "skip": ("skip", "cyan")}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_core.__version__, prog_name="mlflow-secrets-auth")
def main() -> None:
    """Why does MLflow authenticate, or why not?"""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def info(as_json: bool) -> None:
    """Show version, providers and settings in effect. No network; exits 0 even when settings are broken."""
    facts: dict[str, Any] = {"schema": _SCHEMA, **json.loads(_core.info())}
    facts["python"] = platform.python_version()
    facts["platform"] = f"{sys.platform} {platform.machine()}"
    facts["mlflow"] = _usage()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_info(facts)


@main.command()
@click.option("--dry-run", metavar="URL", help="Also ask the MLflow server at URL whether it accepts the credential.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def doctor(dry_run: str | None, as_json: bool) -> None:
    """Check everything up to the header, and with --dry-run up to the server. Exits 1 when a check fails."""
    findings = [_usage_finding()]
    with _Waiting("asking the backends"):
        findings += json.loads(_core.examine())
    if dry_run is not None:
        # Imported only here: without it, doctor needs neither requests nor MLflow.
        from mlflow_secrets_auth import _server

        # Asking with the credential means fetching it, which doctor does not do where that can be done only once.
        may_fetch = not any(finding["code"] == "login.single_use" for finding in findings)
        with _Waiting(f"asking {dry_run}"):
            findings += _server.examine(dry_run, may_fetch)
    ok = not any(finding["status"] == "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps({"schema": _SCHEMA, "ok": ok, "findings": findings}, indent=2))
    else:
        _print_findings(findings)
    sys.exit(0 if ok else 1)


def _usage() -> dict[str, Any]:
    """Whether MLflow will ask us for the credential, and if not, why."""
    chosen = os.environ.get("MLFLOW_TRACKING_AUTH") or None
    if chosen is None:
        problem = "MLFLOW_TRACKING_AUTH is not set"
    elif os.environ.get("MLFLOW_TRACKING_AWS_SIGV4", "").lower() in ("true", "1"):
        problem = "MLFLOW_TRACKING_AWS_SIGV4 is on, which goes before MLFLOW_TRACKING_AUTH"
    elif chosen == _NAME:
        problem = None
    elif chosen in _registered():
        problem = f"MLFLOW_TRACKING_AUTH chooses another provider, {chosen}"
    else:
        # MLflow only warns of this, and sends requests without any credential.
        problem = f"MLFLOW_TRACKING_AUTH is {chosen!r}, and no such provider is installed"
    return {"tracking_auth": chosen, "uses_us": problem is None, "problem": problem}


def _registered() -> set[str]:
    """The names of all providers that MLflow could find."""
    from importlib.metadata import entry_points

    return {*_MLFLOW_OWN, *(entry.name for entry in entry_points(group="mlflow.request_auth_provider"))}


def _usage_finding() -> Finding:
    problem = _usage()["problem"]
    if problem is None:
        return passed("mlflow.uses_us", f"MLFLOW_TRACKING_AUTH={_NAME}")
    sigv4 = "SIGV4" in problem
    hint = "unset MLFLOW_TRACKING_AWS_SIGV4" if sigv4 else f"export MLFLOW_TRACKING_AUTH={_NAME}"
    return warn("mlflow.not_used", f"MLflow does not use this package: {problem}", hint)


def _print_findings(findings: list[Finding]) -> None:
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
    click.echo(mlflow["problem"] or f"MLflow uses this package (MLFLOW_TRACKING_AUTH={_NAME})")
    click.echo("\nproviders, in the order in which they are asked")
    for provider in facts["providers"]:
        state = "in use" if provider["in_use"] else "not in use" if provider["built_in"] else "not in this build"
        click.echo(f"  {provider['name']:<22}{state}")
    click.echo("\nsettings")
    width = max(len(setting["name"]) for setting in facts["settings"]) + 2
    for setting in facts["settings"]:
        source = "" if setting["source"] == "variable" else f"  ({setting['source']})"
        click.echo(f"  {setting['name']:<{width}}{setting['value']}{source}")
    for error in facts["errors"]:
        click.echo(f"\n{error['code']}: {error['message']}\nhint: {error['hint']}")
    for notice in facts["notices"]:
        click.echo(f"\nnote: {notice}")


def _coloured(text: str, colour: str) -> str:
    # click itself leaves colours out where the output is not a terminal.
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


class _Waiting:
    """Says on a terminal's stderr what is being waited for, once it takes longer than a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            self._thread.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _tell(self) -> None:
        seconds = 0
        while not self._done.wait(1):
            seconds += 1
            click.echo(f"\r{self._what} … {seconds} s", err=True, nl=False)
        if seconds:
            click.echo("\r" + " " * (len(self._what) + 12) + "\r", err=True, nl=False)
