"""The log: a library's manners, levels, and what each record tells."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aws_servers import AwsLike
from azure_like import AzureLike
from conftest import Configure
from loopback import Answer, VaultLike
from mlflow_secrets_auth import SecretsAuthError, headers_for, refresh
from servers import free_port

ROOT = Path(__file__).parent.parent
URL = "https://mlflow.example.com/api"
CALL = re.compile(r'log::(debug|info|warn|error)!\(target: "([\w.]+)",\s*(.*?);\s*"', re.DOTALL)
FIELD = re.compile(r"(?:^|,)\s*(\w+)\s*(?==|,|$)")
IN_PYTHON = re.compile(r'getLogger\(f"\{_ROOT\}\.(\w+)"\)\.(\w+)\([^{}]*?extra=\{"event": "(\w+)"\}', re.DOTALL)
LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "warning": "WARNING", "error": "ERROR"}


def in_source() -> set[tuple[str, str, str, str]]:
    """Event, level, logger and fields of every record that the code makes."""
    found = set()
    for path in (ROOT / "src").rglob("*.rs"):
        text = path.read_text()
        calls = CALL.findall(text)
        assert len(calls) == len(re.findall(r"log::\w+!\(", text)), f"{path} logs in another way"
        for level, logger, rest in calls:
            event = re.search(r'event = "(\w+)"', rest)
            assert event, rest
            fields = sorted(set(FIELD.findall(rest)) - {"event"})
            found.add((event[1], LEVELS[level], logger.rpartition(".")[2], " ".join(fields)))
    for path in (ROOT / "python").rglob("*.py"):
        for logger, level, event in IN_PYTHON.findall(path.read_text()):
            found.add((event, LEVELS[level], logger, ""))
    return found


def in_documentation() -> set[tuple[str, str, str, str]]:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| `(\w+)` \|([^|]*)\|", (ROOT / "docs" / "logging.md").read_text(), re.MULTILINE
    )
    return {
        (event, level, logger, " ".join(sorted(re.findall(r"`(\w+)`", fields))))
        for event, level, logger, fields in rows
    }


def test_every_event_is_documented_and_every_documented_event_exists() -> None:
    assert in_documentation() == in_source()


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, object]]]:
    caplog.set_level(logging.DEBUG)
    return lambda: [vars(record) for record in caplog.records if record.name.startswith("mlflow_secrets_auth")]


@pytest.mark.parametrize("make", [VaultLike, AwsLike, AzureLike])
def test_what_debug_tells_of_a_fetch(
    make: Callable[[], VaultLike | AwsLike | AzureLike],
    configure: Configure,
    events: Callable[[], list[dict[str, object]]],
) -> None:
    """The identities tried, the client, each request with its status and milliseconds, the fields; as attributes."""
    with make() as server:
        server.fields = {"token": "abc", "note": "x"}
        configure(server.settings())
        headers_for(URL)
        first = events()
        by_event = {str(record["event"]): record for record in first}
        provider = by_event["fetched"]["provider"]
        assert {"identity_found", "client", "request", "fetched", "secret_read", "stored"} <= set(by_event)
        assert by_event["identity_found"]["provider"] == provider
        assert by_event["secret_read"]["fields"] == "note, token"
        requests = [record for record in first if record["event"] == "request"]
        assert requests[-1]["status"] == 200
        assert isinstance(requests[-1]["duration_ms"], int)
        assert requests[-1]["provider"] == provider
        assert str(requests[-1]["host"]).startswith("http")
        assert "?" not in str(requests[-1]["path"])
        server.failure = Answer(500)
        configure(MLFLOW_SECRETS_MAX_RETRIES="1")
        with pytest.raises(SecretsAuthError):
            headers_for(URL)
        failed = events()[len(first) :]
        assert [record["status"] for record in failed if record["event"] == "request"][-2:] == [500, 500]
        [retry] = [record for record in failed if record["event"] == "retry"]
        assert retry["attempt"] == 1 and isinstance(retry["wait_ms"], int)
        [error] = [record for record in failed if record["levelname"] == "ERROR"]
        assert error["event"] == "fetch_failed"
    for record in first + failed:
        json.dumps({name: value for name, value in record.items() if name not in ("args", "exc_info")})


def test_no_query_is_logged(configure: Configure, events: Callable[[], list[dict[str, object]]]) -> None:
    """What stands behind the question mark of a backend's URL may be secret, or just noise."""
    with VaultLike() as server:
        configure(server.settings(MLFLOW_VAULT_SECRET_VERSION="7"))
        headers_for(URL)
        assert server.requests[-1].path.endswith("?version=7")
    assert {record["path"] for record in events() if record["event"] == "request"} == {"/v1/secret/data/mlflow/auth"}


def test_a_rotation_is_told_at_info(
    vault_like: VaultLike, configure: Configure, events: Callable[[], list[dict[str, object]]]
) -> None:
    configure(vault_like.settings())
    headers_for(URL)
    refresh()
    assert not [record for record in events() if record["event"] == "rotated"]
    vault_like.fields = {"token": "second"}
    refresh()
    [rotated] = [record for record in events() if record["event"] == "rotated"]
    assert rotated["levelname"] == "INFO"


# A library's manners, each in a process of its own

PROGRAM = """
import logging, os
{before}
from mlflow_secrets_auth import SecretsAuthError, headers_for
def fetch():
    try:
        headers_for("https://mlflow.example.com/api")
    except SecretsAuthError:
        pass
fetch()
{after}
logger = logging.getLogger("mlflow_secrets_auth")
print(logging.getLevelName(logger.level), len(logger.handlers), logger.propagate)
"""


@pytest.fixture(scope="module")
def nowhere() -> dict[str, str]:
    """Settings for a fetch that fails at once, which is an ERROR, after some DEBUG."""
    settings = VaultLike().settings(VAULT_ADDR=f"http://127.0.0.1:{free_port()}", MLFLOW_SECRETS_MAX_RETRIES="0")
    return {"PATH": os.environ["PATH"], **settings}


@pytest.fixture
def run(nowhere: dict[str, str]) -> Iterator[Callable[..., tuple[str, str]]]:
    def run(before: str = "", after: str = "", **more: str) -> tuple[str, str]:
        program = PROGRAM.format(before=before, after=after)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**nowhere, **more}, timeout=30)
        return done.stdout.strip(), done.stderr

    yield run


def test_unset_leaves_the_logger_alone(run: Callable[..., tuple[str, str]]) -> None:
    """Without the variable no level and no handler is set; an ERROR shows as Python shows any that nobody handles."""
    state, shown = run()
    assert state == "NOTSET 0 True"
    assert "vault.unreachable" in shown
    assert "mlflow_secrets_auth.http" not in shown


def test_set_and_unhandled_shows_on_stderr(run: Callable[..., tuple[str, str]]) -> None:
    state, shown = run(MLFLOW_SECRETS_LOG_LEVEL="debug")
    assert state == "DEBUG 1 True"
    assert re.search(r"^[\d-]+ [\d:,]+ DEBUG mlflow_secrets_auth\.http: vault: GET http://127", shown, re.MULTILINE)
    assert shown.count("no credential can be fetched") == 1


def test_set_and_handled_adds_no_handler(run: Callable[..., tuple[str, str]]) -> None:
    before = "logging.basicConfig(format='app %(message)s')"
    state, shown = run(before, MLFLOW_SECRETS_LOG_LEVEL="INFO")
    assert state == "INFO 0 True"
    assert shown.count("no credential can be fetched") == shown.count("app no credential can be fetched") == 1
    assert "GET http" not in shown


def test_an_application_that_comes_later_takes_over(run: Callable[..., tuple[str, str]]) -> None:
    """Nothing is shown twice once the application handles our records itself."""
    after = "logging.basicConfig(format='app %(message)s'); os.environ['VAULT_TOKEN'] = 'other'; fetch()"
    _, shown = run(after=after, MLFLOW_SECRETS_LOG_LEVEL="WARNING")
    assert shown.count("no credential can be fetched") == 2
    assert shown.count("app no credential can be fetched") == 1


def test_an_unknown_level_warns_once_and_changes_nothing(run: Callable[..., tuple[str, str]]) -> None:
    state, shown = run(after="fetch()", MLFLOW_SECRETS_LOG_LEVEL="LOUD")
    assert state == "NOTSET 0 True"
    assert shown.count("MLFLOW_SECRETS_LOG_LEVEL is set to 'LOUD'") == 1


def test_an_unknown_level_fails_doctor(nowhere: dict[str, str]) -> None:
    command = [sys.executable, "-m", "mlflow_secrets_auth", "doctor", "--json"]
    settings = {**nowhere, "MLFLOW_SECRETS_LOG_LEVEL": "LOUD"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings, timeout=30)
    assert done.returncode == 1
    findings = json.loads(done.stdout)["findings"]
    assert [f for f in findings if f["status"] == "fail" and "MLFLOW_SECRETS_LOG_LEVEL" in f["message"]]
