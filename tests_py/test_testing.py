"""The fixtures that users get, ``mlflow_secrets_auth.testing``: each of their promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests

from conftest import Configure
from forks import child_gets
from loopback import Answer, VaultLike
from mlflow_secrets_auth import SecretsAuth, SecretsAuthError, SecretsAuthProvider, cache_info, headers_for, refresh
from mlflow_secrets_auth._core import error_codes
from mlflow_secrets_auth.testing import FIRST_TOKEN, ProtectedMlflow, SecretsBackend

URL = "https://mlflow.example.com/api"
FIRST = {"Authorization": f"Bearer {FIRST_TOKEN}"}
REAL = {"Authorization": "Bearer real"}
ROOT = Path(__file__).parent.parent
# What a backend, or its secret, can't be at fault for.
NOT_A_BACKENDS = {"url.refused", "tracking.login_page", "fetch.interrupted", "fetch.all_failed"}
UNREACHABLE = {
    "fetch.timeout",
    "vault.sealed",
    "aws.agent_unreachable",
    "aws.identity_unreachable",
    "azure.sign_in_unreachable",
    *(f"{who}.{what}" for who in ("vault", "aws", "azure") for what in ("unreachable", "throttled", "unavailable")),
}
FAILURES = [
    code for code, _, _ in error_codes() if not code.startswith(("config.", "host.")) and code not in NOT_A_BACKENDS
]


def code_of(ask: Callable[[], Any]) -> str:
    with pytest.raises(SecretsAuthError) as caught:
        ask()
    return caught.value.code


def herd(ask: Callable[[], Any], threads: int = 64) -> list[Any]:
    start = threading.Barrier(threads)

    def asked(_: int) -> Any:
        start.wait()
        return ask()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(asked, range(threads)))


# The secret


def test_works_without_any_configuration(secrets_backend: SecretsBackend) -> None:
    assert headers_for(URL) == FIRST
    assert secrets_backend.fetches == 1


@pytest.mark.parametrize(
    ("settings", "secret", "headers"),
    [
        ({}, {"text": "plain"}, {"Authorization": "Bearer plain"}),
        ({}, {"token": "t"}, {"Authorization": "Bearer t"}),
        ({}, {"headers": {"X-Key": "k"}}, {"X-Key": "k"}),
        ({"MLFLOW_VAULT_AUTH_MODE": "basic"}, {"username": "u", "password": "p"}, {"Authorization": "Basic dTpw"}),
        ({"MLFLOW_VAULT_AUTH_MODE": "raw"}, {"token": "t"}, {"Authorization": "t"}),
        ({"MLFLOW_AUTH_HEADER_NAME": "X-Auth"}, {"token": "t"}, {"X-Auth": "t"}),
    ],
)
def test_the_settings_hold(
    configure: Configure,
    secrets_backend: SecretsBackend,
    settings: dict[str, str],
    secret: dict[str, Any],
    headers: dict[str, str],
) -> None:
    configure(settings)
    secrets_backend.put(**secret)
    assert headers_for(URL) == headers


@pytest.mark.parametrize("mode", ["bearer", "basic", "raw"])
def test_the_first_secrets_suit_every_mode(configure: Configure, secrets_backend: SecretsBackend, mode: str) -> None:
    configure(MLFLOW_VAULT_AUTH_MODE=mode)
    first = headers_for(URL)
    secrets_backend.rotate()
    assert headers_for(URL) == first, "what is cached stays so"
    refresh()
    assert headers_for(URL) != first


@pytest.mark.parametrize(
    "secret",
    [{}, {"text": "t", "token": "t"}, {"username": "u"}, {"token": "t", "username": "u", "password": "p"}],
)
def test_a_secret_has_one_form(secrets_backend: SecretsBackend, secret: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give a text, or a token"):
        secrets_backend.put(**secret)


# Failures


@pytest.mark.parametrize("code", FAILURES)
def test_every_failure_is_raised_as_itself(secrets_backend: SecretsBackend, code: str) -> None:
    """R9, R11: exactly the code; retried where it may pass; the stale credential only where the backend is out of
    reach."""
    good = headers_for(URL)
    secrets_backend.fail(code)
    assert code_of(refresh) == code
    attempts = {"fetch.timeout": 1, "aws.clock_skew": 4}.get(code, 4 if code in UNREACHABLE else 1)
    assert secrets_backend.fetches == 1 + attempts
    secrets_backend.advance(300)
    if code in UNREACHABLE:
        assert headers_for(URL) == good
    else:
        assert code_of(lambda: headers_for(URL)) == code


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer.json({"errors": []}, 503), "vault.sealed"),
        (Answer.json({"errors": []}, 429), "vault.throttled"),
        (Answer.json({"errors": []}, 500), "vault.unavailable"),
        (Answer.json({"errors": ["permission denied"]}, 403), "vault.token_refused"),
        (Answer.json({"errors": []}, 418), "vault.unexpected_answer"),
        (Answer.json({"errors": ["what?"]}, 400), "vault.rejected"),
    ],
)
def test_failures_are_those_of_a_real_backend(
    configure: Configure, vault_like: VaultLike, answer: Answer, code: str
) -> None:
    """The fake and a server that answers in Vault's words: the same code, number of attempts, and use of the stale
    credential."""
    configure({**vault_like.settings(), "MLFLOW_VAULT_TTL_SEC": "1", "MLFLOW_SECRETS_MAX_RETRIES": "1"})

    def observe(count: Callable[[], int], fail: Callable[[], None], age: Callable[[float], None]) -> list[Any]:
        headers_for(URL)
        fail()
        age(1)
        before = count()
        try:
            headers_for(URL)
            outcome = "stale"
        except SecretsAuthError as error:
            outcome = error.code
        return [outcome, code_of(refresh), count() - before]

    def vault_fails() -> None:
        vault_like.rule = lambda request: answer

    real = observe(lambda: vault_like.reads, vault_fails, lambda seconds: threading.Event().wait(seconds))
    with SecretsBackend() as backend:
        fake = observe(lambda: backend.fetches, lambda: backend.fail(code), backend.advance)
    assert real[1] == code
    assert fake == real


@pytest.mark.parametrize("code", ["vault.permision_denied", "permission_denied", "config.missing", "url.refused", ""])
def test_what_is_no_failure_is_refused(secrets_backend: SecretsBackend, code: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(json.dumps(code))} is not the name of a failure of a backend; "):
        secrets_backend.fail(code)
    assert headers_for(URL) == FIRST


def test_similar_codes_are_listed(secrets_backend: SecretsBackend) -> None:
    with pytest.raises(ValueError, match=r"did you mean vault\.permission_denied, azure\.permission_denied"):
        secrets_backend.fail("vault.permision_denied")
    with pytest.raises(ValueError, match="known: vault, aws-secrets-manager, azure-key-vault"):
        secrets_backend.fail("vault.sealed", provider="gcp")


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_recovers_after_n_attempts(secrets_backend: SecretsBackend, times: int) -> None:
    secrets_backend.fail("vault.sealed", times=times)
    assert headers_for(URL) == FIRST
    assert secrets_backend.fetches == times + 1


def test_a_backend_that_never_answers(configure: Configure, secrets_backend: SecretsBackend) -> None:
    """R10: on the fake clock, the fetch takes its whole time limit; with a stale credential in hand, 2 s."""
    configure(MLFLOW_SECRETS_TIMEOUT_SEC="7")
    secrets_backend.fail("fetch.timeout")
    assert code_of(lambda: headers_for(URL)) == "fetch.timeout"
    assert (secrets_backend.elapsed, secrets_backend.fetches) == (7, 1)
    secrets_backend.recover()
    secrets_backend.advance(30)
    headers_for(URL)
    secrets_backend.fail("fetch.timeout")
    secrets_backend.advance(300)
    assert headers_for(URL) == FIRST
    assert secrets_backend.elapsed == 7 + 30 + 300 + 2


def test_providers_one_by_one(configure: Configure, secrets_backend: SecretsBackend) -> None:
    configure(
        MLFLOW_SECRETS_AUTH_ENABLE="vault,aws-secrets-manager",
        AWS_REGION="us-east-1",
        MLFLOW_AWS_SECRET_NAME="mlflow",
        MLFLOW_SECRETS_MAX_RETRIES="0",
    )
    secrets_backend.put(token="from-aws", provider="aws-secrets-manager")
    secrets_backend.fail("fetch.timeout", provider="vault")
    assert headers_for(URL) == {"Authorization": "Bearer from-aws"}
    assert [secrets_backend.fetches_from(name) for name in ("vault", "aws-secrets-manager")] == [1, 1]
    assert secrets_backend.elapsed == 15, "half of the time limit is the second provider's"
    secrets_backend.fail("aws.throttled", provider="aws-secrets-manager")
    assert code_of(refresh) == "fetch.all_failed"
    secrets_backend.recover(provider="vault")
    refresh()
    assert headers_for(URL) == FIRST


# Time


def test_back_off(secrets_backend: SecretsBackend) -> None:
    """R11: with chance at its highest, the waits are 100 ms doubling; the backend's own wish goes first."""
    secrets_backend.set_chance(1.0)
    secrets_backend.fail("vault.unavailable", times=2)
    headers_for(URL)
    assert secrets_backend.take_waits() == [0.1, 0.2]
    secrets_backend.fail("vault.unavailable", times=2, retry_after=3)
    refresh()
    assert secrets_backend.take_waits() == [3, 3]
    assert secrets_backend.take_waits() == []
    assert secrets_backend.elapsed == pytest.approx(6.3)


def test_fail_fast(secrets_backend: SecretsBackend) -> None:
    """R9: within the window after a failure nobody asks again."""
    secrets_backend.fail("vault.not_found")
    codes = [code_of(lambda: headers_for(URL)) for _ in range(10)]
    assert (set(codes), secrets_backend.fetches) == ({"vault.not_found"}, 1)
    secrets_backend.recover()
    secrets_backend.advance(0.999)
    assert code_of(lambda: headers_for(URL)) == "vault.not_found"
    secrets_backend.advance(0.001)
    assert headers_for(URL) == FIRST


def test_ttl_and_renewal_ahead(secrets_backend: SecretsBackend) -> None:
    """R2: in the last fifth of the TTL a request starts the renewal, and goes on with the credential at hand."""
    assert headers_for(URL) == FIRST
    token = secrets_backend.rotate()
    secrets_backend.advance(239)
    assert headers_for(URL) == FIRST
    secrets_backend.settle()
    assert secrets_backend.fetches == 1
    secrets_backend.advance(1)
    assert headers_for(URL) == FIRST
    secrets_backend.settle()
    assert secrets_backend.fetches == 2
    assert headers_for(URL) == {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "secret", [{"token": "t", "expires_in": 100}, {"token": "t", "lease": 100}, {"text": "expires_at"}]
)
def test_expiries_shorten_the_ttl(secrets_backend: SecretsBackend, secret: dict[str, Any]) -> None:
    """R4: a backend's date, a lease, and a date in the secret, less the skew of a tenth."""
    if "text" in secret:
        secret = {"text": json.dumps({"token": "t", "expires_at": secrets_backend.time + 100})}
    secrets_backend.put(**secret)
    headers_for(URL)
    assert cache_info().entries[0].expires_in == pytest.approx(90, abs=0.01)
    secrets_backend.advance(90.1)
    headers_for(URL)
    assert secrets_backend.fetches == 2


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_time_does_not_go_back(secrets_backend: SecretsBackend, seconds: float) -> None:
    with pytest.raises(ValueError, match="not negative"):
        secrets_backend.advance(seconds)
    with pytest.raises(ValueError, match="0 to 1"):
        secrets_backend.set_chance(seconds)


# Install and uninstall


@pytest.mark.parametrize("number", [1, 2])
def test_tests_do_not_see_each_others_cache(secrets_backend: SecretsBackend, number: int) -> None:
    assert cache_info().entries == ()
    assert headers_for(URL) == FIRST
    assert secrets_backend.fetches == 1
    assert len(cache_info().entries) == 1


def test_objects_made_before_use_the_fake_and_then_the_real_backend(
    configure: Configure, vault_like: VaultLike
) -> None:
    """The real credential is back afterwards, without a read, and nothing of the fake stays."""
    configure(vault_like.settings())
    vault_like.fields = {"token": "real"}
    given_in_code = SecretsAuth(settings=vault_like.settings(MLFLOW_VAULT_TTL_SEC="77"))
    provider = SecretsAuthProvider()
    configure(MLFLOW_TRACKING_URI=URL)
    objects = [SecretsAuth(), given_in_code, provider.get_auth()]

    def headers() -> list[str | None]:
        return [requests.Request("GET", URL, auth=auth).prepare().headers.get("Authorization") for auth in objects]

    assert headers() == ["Bearer real"] * 3
    for _ in range(2):
        with SecretsBackend() as backend:
            assert headers() == [f"Bearer {FIRST_TOKEN}"] * 3
            assert backend.fetches == 2, "two configurations"
        assert headers() == ["Bearer real"] * 3
    assert vault_like.reads == 2
    assert len(cache_info().entries) == 2


def test_one_at_a_time(configure: Configure, vault_like: VaultLike, secrets_backend: SecretsBackend) -> None:
    second = SecretsBackend()
    second.put(token="second")
    with pytest.raises(RuntimeError, match="another fake backend"), second:
        pass
    second.__exit__()
    assert headers_for(URL) == FIRST
    secrets_backend.__exit__()
    configure(vault_like.settings())
    assert headers_for(URL) == {"Authorization": "Bearer first"}


def test_threads_meet_the_fake_or_the_real_backend(configure: Configure, vault_like: VaultLike) -> None:
    """The fake comes and goes while 8 threads ask: every answer is one of the two, and the last ones are right."""
    configure(vault_like.settings())
    vault_like.fields = {"token": "real"}
    auth = SecretsAuth()
    stop = threading.Event()

    def ask() -> set[str]:
        seen = set()
        while not stop.is_set():
            seen.add(requests.Request("GET", URL, auth=auth).prepare().headers["Authorization"])
        return seen

    with ThreadPoolExecutor(8) as pool:
        threads = [pool.submit(ask) for _ in range(8)]
        for _ in range(200):
            with SecretsBackend():
                assert headers_for(URL) == FIRST
            assert headers_for(URL) == REAL
        stop.set()
        seen = set().union(*(thread.result(timeout=10) for thread in threads))
    assert seen == {FIRST["Authorization"], REAL["Authorization"]}


def test_r1_a_herd_costs_one_fetch(secrets_backend: SecretsBackend) -> None:
    """R1: the single flight is the real one."""
    assert herd(lambda: headers_for(URL)) == [FIRST] * 64
    assert secrets_backend.fetches == 1
    secrets_backend.advance(300)
    assert herd(lambda: headers_for(URL)) == [FIRST] * 64
    assert secrets_backend.fetches == 2


def test_p1_a_child_has_the_fake(secrets_backend: SecretsBackend) -> None:
    """P1: a forked child goes on with a copy: warm, cold, and while other threads put, fail and fetch."""
    assert child_gets(URL, FIRST)
    headers_for(URL)
    assert child_gets(URL, FIRST)
    stop = threading.Event()

    def stir() -> None:
        while not stop.is_set():
            secrets_backend.put(token="stirred")
            secrets_backend.fail("vault.sealed", times=1)
            refresh()
            secrets_backend.advance(1)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(stir)
        pool.submit(stir)
        try:
            refresh()
            assert all(child_gets(URL, {"Authorization": "Bearer stirred"}) for _ in range(50))
        finally:
            stop.set()


def test_s1_no_repr_shows_a_secret(secrets_backend: SecretsBackend, protected_mlflow: ProtectedMlflow) -> None:
    """S1: neither the backend's nor the server's objects show a secret."""
    secrets_backend.put(token="canary")
    protected_mlflow.accept(token="canary")
    # Named, because MLflow remembers another test's set_experiment().
    with mlflow.start_run(experiment_id=mlflow.create_experiment("shown")) as run:
        pass
    shown = [secrets_backend, protected_mlflow, protected_mlflow.requests, protected_mlflow.runs]
    shown += [vars(secrets_backend), run]
    assert protected_mlflow.header("Authorization")[0] == "Bearer canary"
    assert "canary" not in "".join(f"{thing!r}{thing}" for thing in shown)


# The look-alike of MLflow


def test_mlflow_works_with_the_look_alike(
    secrets_backend: SecretsBackend, protected_mlflow: ProtectedMlflow, tmp_path: Path
) -> None:
    """C4: MLflow's fluent and client functions, across a rotation, with one fetch per secret."""
    client = mlflow.MlflowClient()
    experiment_id = client.create_experiment("demo")
    file = tmp_path / "notes.txt"
    file.write_text("text")
    with mlflow.start_run(experiment_id=experiment_id, run_name="first") as run:
        mlflow.log_param("p", 1)
        mlflow.log_params({"q": 2, "r": 3})
        mlflow.log_metric("m", 0.5, step=0)
        mlflow.log_metric("m", 0.25, step=1)
        mlflow.log_artifact(str(file), "folder")
        protected_mlflow.accept(token=secrets_backend.rotate())
        mlflow.log_metrics({"n": 1.0})
        mlflow.set_tag("t", "v")
    run_id = run.info.run_id
    known = client.get_run(run_id)
    assert (known.info.status, known.info.run_name) == ("FINISHED", "first")
    assert (known.data.params, known.data.metrics) == ({"p": "1", "q": "2", "r": "3"}, {"m": 0.25, "n": 1.0})
    assert known.data.tags["t"] == "v"
    assert [metric.value for metric in client.get_metric_history(run_id, "m")] == [0.5, 0.25]
    assert [entry.path for entry in client.list_artifacts(run_id)] == ["folder"]
    assert Path(client.download_artifacts(run_id, "folder/notes.txt", str(tmp_path))).read_text() == "text"
    assert [found.info.run_id for found in client.search_runs([experiment_id])] == [run_id]
    assert {entry.name for entry in client.search_experiments()} == {"Default", "demo"}
    assert client.get_experiment_by_name("demo").experiment_id == experiment_id
    assert client.get_experiment_by_name("none") is None
    assert (protected_mlflow.refused, secrets_backend.fetches) == (1, 2)
    logged = protected_mlflow.runs[run_id]
    assert (logged.metrics, logged.params) == (known.data.metrics, known.data.params)
    assert list(protected_mlflow.artifacts.values()) == [b"text"]


def test_the_look_alike_wants_its_credential(protected_mlflow: ProtectedMlflow) -> None:
    def status(path: str, **headers: str) -> int:
        return requests.get(f"{protected_mlflow.url}{path}", headers=headers, timeout=5).status_code

    assert (status("/health"), status("/version"), status("/nothing")) == (200, 401, 401)
    assert status("/version", **FIRST) == 200
    assert status("/nothing", **FIRST) == 404
    protected_mlflow.accept(username="u", password="p")
    assert status("/version", **FIRST) == 401
    assert status("/version", Authorization="Basic dTpw") == 200
    protected_mlflow.also_accept(headers={"X-Key": "k", "X-Team": "t"})
    assert status("/version", Authorization="Basic dTpw") == 200
    assert status("/version", **{"X-Key": "k"}) == 401
    assert status("/version", **{"X-Key": "k", "X-Team": "t"}) == 200
    assert protected_mlflow.refused == 4
    assert [request.path for request in protected_mlflow.requests].count("/version") == 7
    with pytest.raises(ValueError, match="give a token"):
        protected_mlflow.accept(username="u")


# Suites of users


def run_suite(folder: Path, files: dict[str, str], **environment: str) -> str:
    """Runs a suite of its own in a process of its own, and returns what pytest prints."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


CONFTEST = 'pytest_plugins = ["mlflow_secrets_auth.testing"]\n'


@pytest.mark.parametrize("configured", [False, True])
def test_the_example_of_the_documentation(tmp_path: Path, configured: bool) -> None:
    """The suite that the page shows runs as it is, without any configuration and with one of the user's own."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)
    settings = {
        "MLFLOW_SECRETS_AUTH_ENABLE": "vault",
        "VAULT_ADDR": "http://127.0.0.1:1",
        "VAULT_TOKEN": "mine",
        "MLFLOW_VAULT_SECRET_PATH": "secret/mine",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
    }
    printed = run_suite(
        tmp_path / "suite",
        {"conftest.py": blocks[0], "test_example.py": blocks[1]},
        **(settings if configured else {}),
    )
    assert "6 passed" in printed


def test_everything_is_as_it_was_after_a_test(tmp_path: Path) -> None:
    """Variables and MLflow's tracking URI are restored, the backends are the real ones, nothing is cached."""
    suite = """
import os
import sys
import pytest
from mlflow_secrets_auth import cache_info, headers_for, ConfigurationError

before = dict(os.environ)

def check():
    others = ("PYTEST_", "_MLFLOW_TELEMETRY")
    changed = {name for name, _ in dict(os.environ).items() ^ before.items() if not name.startswith(others)}
    assert changed == set()
    with pytest.raises(ConfigurationError):
        headers_for("https://mlflow.example.com")
    assert cache_info().entries == ()

def test_1(secrets_backend, protected_mlflow):
    assert "mlflow" not in sys.modules
    import mlflow
    mlflow.MlflowClient().search_experiments()
    assert secrets_backend.fetches == 1

def test_2():
    check()
    import mlflow
    assert not mlflow.is_tracking_uri_set()

def test_3(secrets_backend, protected_mlflow):
    import mlflow
    assert mlflow.get_tracking_uri() == protected_mlflow.url

def test_4():
    check()
    import mlflow
    assert not mlflow.is_tracking_uri_set()
    mlflow.set_tracking_uri("http://127.0.0.1:1")

def test_5(secrets_backend, protected_mlflow):
    import mlflow
    mlflow.MlflowClient().search_experiments()
    assert len(protected_mlflow.requests) == 1

def test_6():
    import mlflow
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:1"
"""
    assert "6 passed" in run_suite(tmp_path / "suite", {"conftest.py": CONFTEST, "test_all.py": suite})


def test_nothing_is_loaded_unasked(tmp_path: Path) -> None:
    """Without the line in ``conftest.py`` a suite has no fixture of ours; nobody but that module imports pytest."""
    suite = """
import sys, pytest

def test_no_fixture(request):
    with pytest.raises(pytest.FixtureLookupError):
        request.getfixturevalue("secrets_backend")
    assert "mlflow_secrets_auth" not in sys.modules
"""
    run_suite(tmp_path / "suite", {"test_all.py": suite})
    code = (
        "import pkgutil, sys, importlib, mlflow_secrets_auth as p\n"
        "names = {m.name for m in pkgutil.iter_modules(p.__path__)} - {'testing', '__main__'}\n"
        "[importlib.import_module(f'mlflow_secrets_auth.{n}') for n in names]\n"
        "print('pytest' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
