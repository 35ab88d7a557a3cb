"""The command line: ``info`` says what is configured, ``doctor`` tries it."""

from __future__ import annotations

import json
import os
import platform
import re
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
_FIRST_MLFLOW = (2, 8, 0)
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

        with _Waiting("asking the server"):
            findings += _server.examine(dry_run, _why_without_credential(findings))
    ok = not any(finding["status"] == "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps({"schema": _SCHEMA, "ok": ok, "findings": findings}, indent=2))
    else:
        _print_findings(findings)
    sys.exit(0 if ok else 1)


def _why_without_credential(findings: list[Finding]) -> str | None:
    """Why the server can't be asked with the credential, which means fetching it once more; ``None`` where it can."""
    if any(finding["code"] == "login.single_use" for finding in findings):
        return "would use up what can be used only once"
    built = any(finding["code"].startswith("header.") and finding["status"] in ("pass", "warn") for finding in findings)
    return None if built else "needs the credential"


def _usage() -> dict[str, Any]:
    """Whether MLflow will ask us for the credential, and if not, why and what to do."""
    chosen = os.environ.get("MLFLOW_TRACKING_AUTH") or None
    version = _mlflow_version()
    problem, hint = _obstacle(version, chosen) or (None, None)
    return {
        "version": version and _dotted(version),
        "tracking_auth": chosen,
        "uses_us": problem is None,
        "problem": problem,
        "hint": hint,
    }


def _obstacle(version: tuple[int, ...] | None, chosen: str | None) -> tuple[str, str] | None:
    """Why MLflow does not use us, and what to do."""
    install = f'pip install "mlflow-skinny>={_dotted(_FIRST_MLFLOW)}"'
    choose = f"export MLFLOW_TRACKING_AUTH={_NAME}"
    if version is None:
        return "MLflow is not installed in this environment", install
    if version < _FIRST_MLFLOW:
        return f"MLflow {_dotted(version)} knows no providers yet", install
    if chosen is None:
        return "MLFLOW_TRACKING_AUTH is not set", choose
    if os.environ.get("MLFLOW_TRACKING_AWS_SIGV4", "").lower() in ("true", "1"):
        sigv4 = "MLFLOW_TRACKING_AWS_SIGV4"
        return f"{sigv4} is on, which goes before MLFLOW_TRACKING_AUTH", f"unset {sigv4}"
    if chosen == _NAME:
        return None
    if chosen in _registered():
        return f"MLFLOW_TRACKING_AUTH chooses another provider, {chosen}", choose
    # MLflow only warns of this, and sends requests without any credential.
    return f"MLFLOW_TRACKING_AUTH is {chosen!r}, and no such provider is installed", choose


def _mlflow_version() -> tuple[int, ...] | None:
    """MLflow's version, from its file: importing MLflow takes a second, and reading its metadata as long as we do."""
    from importlib.util import find_spec

    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        return None
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "version.py"), encoding="utf-8") as file:
            text = file.read()
    except OSError:
        # Something else of that name, such as a script in this directory.
        return None
    found = re.search(r"^VERSION *= *[\"'](\d+)\.(\d+)\.?(\d*)", text, re.MULTILINE)
    return tuple(int(number or 0) for number in found.groups()) if found else None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _registered() -> set[str]:
    """The names of all providers that MLflow could find."""
    from importlib.metadata import entry_points

    return {*_MLFLOW_OWN, *(entry.name for entry in entry_points(group="mlflow.request_auth_provider"))}


def _usage_finding() -> Finding:
    facts = _usage()
    problem, hint = facts["problem"], facts["hint"]
    if problem is None:
        return passed("mlflow.uses_us", f"MLflow {facts['version']}, MLFLOW_TRACKING_AUTH={_NAME}", **facts)
    return warn("mlflow.not_used", f"MLflow does not use this package: {problem}", hint, **facts)


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
    features = ", ".join(facts["build"]["features"])
    click.echo(f"built with {features}" + ("" if facts["build"]["optimised"] else ", not optimised"))
    mlflow = facts["mlflow"]
    uses_us = f"MLflow {mlflow['version']} uses this package (MLFLOW_TRACKING_AUTH={_NAME})"
    click.echo(f"MLflow does not use this package: {mlflow['problem']}" if mlflow["problem"] else uses_us)
    click.echo("\nproviders, in the order in which they are asked")
    for number, provider in enumerate(facts["providers"], 1):
        click.echo(f"  {number}. {provider['name']:<22}{provider['state']}")
    click.echo("\nsettings")
    width = max(len(setting["name"]) for setting in facts["settings"]) + 2
    for setting in facts["settings"]:
        source = {"variable": "", "default": "  (default)", "alias": f"  (from {setting['alias']})"}[setting["source"]]
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
