"""Process: P1-P4 and P6. Each program below runs in an interpreter of its own, without MLflow, against a look-alike
of Vault."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from conftest import Configure
from loopback import Answer, Loopback, VaultLike
from mlflow_secrets_auth import (
    ConfigurationError,
    HostNotAllowedError,
    SecretFetchError,
    SecretFormatError,
    SecretsAuth,
    SecretsAuthError,
    SecretsAuthProvider,
)
from programs import PRELUDE, program, run, wait_until
from servers import free_port

URL = "https://mlflow.example.com/api"


def test_p1_a_warm_fork_costs_no_read(vault_like: VaultLike) -> None:
    """P1: children of a warm parent have the credential, and nobody reads the backend again."""
    code = """
assert works()
print(json.dumps([status_of(in_child(works)) for _ in range(10)]))
"""
    assert run(code, vault_like) == [0] * 10
    assert vault_like.reads == 1


def test_p1_a_cold_fork_fetches_for_itself(vault_like: VaultLike) -> None:
    """P1: forked before the first fetch, parent and child both fetch; each one's own way to the backend works."""
    code = """
child = in_child(works)
print(json.dumps([works(), status_of(child)]))
"""
    assert run(code, vault_like) == [True, 0]
    assert vault_like.reads == 2


def test_p1_parent_and_child_share_no_connection(vault_like: VaultLike) -> None:
    """P1: with a connection open in the parent, parent and children fetch in turn and at once, over sockets of their
    own."""
    code = """
def fetch():
    ours.refresh()
    return works()

results = []
assert fetch()
for _ in range(10):
    children = [in_child(lambda: fetch() and fetch()) for _ in range(3)]
    assert fetch()
    results += map(status_of, children)
    assert fetch()
print(json.dumps(results))
"""
    assert run(code, vault_like) == [0] * 30
    assert vault_like.reads == 1 + 10 * (1 + 3 * 2 + 1)


def test_p1_a_fork_in_the_middle_of_a_fetch(vault_like: VaultLike) -> None:
    """P1: the parent's fetch hangs; the child does not wait for it, but fetches for itself. The parent's goes on,
    too."""
    parent_may_go_on = threading.Event()
    first = iter([True])
    vault_like.before_read = lambda: next(first, False) and parent_may_go_on.wait(30)
    code = """
results = []
thread = threading.Thread(target=lambda: results.append(works()))
thread.start()
sys.stdin.readline()
print(json.dumps(status_of(in_child(works))), flush=True)
thread.join()
print(json.dumps(results), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code],
        env={**os.environ, **vault_like.settings()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin and process.stdout
        wait_until(lambda: vault_like.reads == 1)
        process.stdin.write("fork\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == 0
        parent_may_go_on.set()
        assert json.loads(process.stdout.readline()) == [True]
    assert vault_like.reads == 2


def test_p1_forks_at_any_moment_of_a_fetch(vault_like: VaultLike) -> None:
    """P1: 200 forks, each at another moment of the parent's fetch (making the client, connecting, reading, storing): no
    child meets a lock that nobody will ever give back."""
    code = """
results = []
for number in range(200):
    ours.clear_cache()
    settings = {**os.environ, "VAULT_NAMESPACE": f"n{number}"} if number % 4 == 0 else None
    ask = lambda: ours.headers_for(URL, settings=settings)
    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(random.uniform(0, 0.004))
    results.append(status_of(in_child(ask)))
    thread.join()
print(json.dumps(results))
"""
    assert run(code, vault_like) == [0] * 200


def test_p1_no_request_imports_anything(vault_like: VaultLike) -> None:
    """P1: a child that is forked while another thread imports would wait for that import, which nobody ends. So neither
    a fetch nor a failure, at any level of the log, brings a module in."""
    code = """
ours.headers_for, ours.SecretsAuthError, ours._core
before = set(sys.modules)
assert works()
os.environ["VAULT_ADDR"] = "http://127.0.0.1:9"
try:
    works()
except ours.SecretsAuthError as error:
    assert error.code == "vault.unreachable"
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    process = program(code, vault_like, MLFLOW_SECRETS_LOG_LEVEL="DEBUG", MLFLOW_SECRETS_MAX_RETRIES="0")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "DEBUG mlflow_secrets_auth" in err
    assert json.loads(out) == []


def test_p1_multiprocessing_with_fork(vault_like: VaultLike) -> None:
    """P1: a ``multiprocessing`` pool of a warm parent: every worker answers, and no one reads again."""
    code = """
import multiprocessing
assert works()
with multiprocessing.get_context("fork").Pool(4) as pool:
    print(json.dumps(pool.map_async(ours.headers_for, [URL] * 20).get(5)))
"""
    assert run(code, vault_like) == [{"Authorization": "Bearer first"}] * 20
    assert vault_like.reads == 1


def test_p1_a_preforking_server(vault_like: VaultLike, tmp_path: Path) -> None:
    """P1: gunicorn loads a program that has fetched already, and forks its workers: each has the credential, without
    a read, and each can fetch anew."""
    (tmp_path / "app.py").write_text(
        "import json, os\n"
        "import mlflow_secrets_auth as ours\n"
        f"ours.headers_for({URL!r})\n"
        "def app(environ, start_response):\n"
        "    if environ['PATH_INFO'] == '/refresh':\n"
        "        ours.refresh()\n"
        f"    body = json.dumps([os.getpid(), ours.headers_for({URL!r})]).encode()\n"
        "    start_response('200 OK', [('Content-Length', str(len(body)))])\n"
        "    return [body]\n"
    )
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "3", "-b", f"127.0.0.1:{port}", "app:app"]
    environment = {**os.environ, **vault_like.settings()}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port))
        workers = {}
        for _ in range(500):
            pid, headers = requests.get(f"http://127.0.0.1:{port}/", timeout=5).json()
            workers[pid] = headers
            if len(workers) == 3:
                break
        assert list(workers.values()) == [{"Authorization": "Bearer first"}] * len(workers)
        assert len(workers) > 1, "the requests met one worker only"
        assert vault_like.reads == 1
        vault_like.fields = {"token": "second"}
        headers = requests.get(f"http://127.0.0.1:{port}/refresh", timeout=5).json()[1]
        assert headers == {"Authorization": "Bearer second"}
    finally:
        server.terminate()
        server.wait(10)


def test_p1_a_child_keeps_rejections(vault_like: VaultLike, loopback: Loopback) -> None:
    """P1, R7: what the parent learned about a denial holds in the child: 100 denied requests there cost no read."""
    loopback.rule = lambda request: Answer(403)
    code = """
import requests
def denied(times):
    session = requests.Session()
    return all(session.get(sys.argv[1], auth=ours.SecretsAuth()).status_code == 403 for _ in range(times))
assert denied(2)
print(json.dumps(status_of(in_child(lambda: denied(100)))))
"""
    assert run(code, vault_like, loopback.url) == 0
    assert vault_like.reads == 2


def test_p1_a_signal_handler_that_forks_in_the_middle_of_a_fetch(vault_like: VaultLike) -> None:
    """P1: the child of a fork inside a signal handler, made while the very thread fetches, is told so and can fetch;
    the parent's fetch ends well, although both came from one event loop."""
    code = """
parent = os.getpid()
children = []
def fork(*_):
    pid = os.fork()
    if pid:
        children.append(pid)
    else:
        signal.alarm(5)
signal.signal(signal.SIGUSR1, fork)
threading.Timer(0.2, os.kill, (parent, signal.SIGUSR1)).start()
try:
    done = works()
except ours.SecretFetchError as error:
    assert os.getpid() != parent and error.code == "fetch.interrupted", error
    os._exit(0 if works() else 1)
print(json.dumps([done, status_of(children[0])]))
"""
    vault_like.before_read = lambda: time.sleep(0.6)
    assert run(code, vault_like) == [True, 0]


def test_p2_no_thread_of_ours_at_rest(vault_like: VaultLike) -> None:
    """P2: after a fetch by name (which resolves it on a thread) and a renewal (which runs on one), the process soon
    has the threads that it had before."""
    code = """
def tasks():
    while True:
        try:
            return sorted(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))
        except (FileNotFoundError, ProcessLookupError):
            pass  # One ended while we looked.
before = tasks()
assert works()
seen = set(tasks())
end = time.monotonic() + 5
while ours.cache_info().refreshes < 2 and time.monotonic() < end:
    assert works()
    seen.update(tasks())
end = time.monotonic() + 15
while tasks() != before and time.monotonic() < end:
    time.sleep(0.05)
print(json.dumps([before, tasks(), sorted(seen)]))
"""
    by_name = vault_like.url.replace("127.0.0.1", "localhost")
    vault_like.before_read = lambda: time.sleep(0.02)
    before, after, seen = run(code, vault_like, VAULT_ADDR=by_name, MLFLOW_VAULT_TTL_SEC="1")
    assert after == before
    assert any(name.startswith("mlflow-secrets") for name in seen), "no thread was seen at work: the test sees nothing"


@pytest.mark.parametrize("role", ["leading", "waiting"])
def test_p3_ctrl_c_ends_a_fetch(vault_like: VaultLike, role: str) -> None:
    """P3: Ctrl-C in the main thread ends its own fetch, or its wait for another thread's, within 200 ms (here: one
    second); meanwhile other Python threads run; afterwards the next request fetches."""
    hanging = threading.Event()
    vault_like.before_read = lambda: hanging.wait(30)
    code = """
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.005)
threading.Thread(target=tick, daemon=True).start()
if sys.argv[1] == "waiting":
    threading.Thread(target=works, daemon=True).start()
    time.sleep(0.3)
def press():
    global pressed, before
    before, pressed = ticks, time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.5, press).start()
start = ticks
try:
    works()
    outcome = "fetched"
except KeyboardInterrupt:
    outcome = "interrupted"
print(json.dumps([outcome, time.monotonic() - pressed, before - start]))
"""
    try:
        outcome, seconds, ticks = run(code, vault_like, role)
        assert vault_like.reads == 1
    finally:
        hanging.set()
    assert outcome == "interrupted"
    assert seconds < 1.0
    assert ticks >= 10


def test_p3_a_handler_that_raises_nothing_changes_nothing(vault_like: VaultLike) -> None:
    """P3: other signals run their handlers in the middle of a fetch. One that asks for the credential gets an error
    at once rather than a wait for itself, and the fetch goes on."""
    code = """
codes = []
def handler(*_):
    try:
        works()
    except ours.SecretFetchError as error:
        codes.append(error.code)
signal.signal(signal.SIGUSR1, handler)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
signal.alarm(20)
print(json.dumps([works(), codes]))
"""
    vault_like.before_read = lambda: time.sleep(0.6)
    assert run(code, vault_like) == [True, ["fetch.interrupted"]]
    assert vault_like.reads == 1


def test_p4_five_hundred_processes_exit_in_the_middle_of_a_fetch(vault_like: VaultLike) -> None:
    """P4: 500 processes with a daemon thread in the middle of a fetch end by ``sys.exit`` (the whole of the
    interpreter's exit), ``os._exit`` or SIGTERM: no hang, no abort, no output. The backend answers around the moment
    of the exit in half of them, so that the thread comes back while the interpreter goes away, and hangs in the other
    half."""
    hanging = threading.Event()
    numbers = iter(range(10**9))
    pauses = [30.0, 0.005, 30.0, 0.01, 30.0, 0.015]
    vault_like.before_read = lambda: hanging.wait(pauses[next(numbers) % len(pauses)])
    code = """
import mlflow_secrets_auth.api
children = {}
for number in range(25):
    way = ["exit", "_exit", "term"][number % 3] if number % 2 else "exit"
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        threading.Thread(target=works, daemon=True).start()
        time.sleep(random.uniform(0.005, 0.03))
        if way == "term":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        (sys.exit if way == "exit" else os._exit)(7)
    children[pid] = way
print(json.dumps([[way, status_of(pid)] for pid, way in children.items()]))
"""
    try:
        with ThreadPoolExecutor(2) as pool:
            results = [pair for pairs in pool.map(lambda _: run(code, vault_like), range(20)) for pair in pairs]
    finally:
        hanging.set()
    assert len(results) == 500
    expected = {"exit": 7, "_exit": 7, "term": -signal.SIGTERM}
    assert [pair for pair in results if pair[1] != expected[pair[0]]] == []


def test_p4_a_thread_that_logs_and_raises_while_the_interpreter_exits(vault_like: VaultLike) -> None:
    """P4: threads whose fetch fails, so that they log and raise in Python, end with the interpreter and abort
    nothing."""
    vault_like.failure = Answer.json({"errors": []}, 500)
    code = """
import logging
logging.basicConfig(level=logging.DEBUG, stream=open(os.devnull, "w"))
def ask():
    while True:
        try:
            ours.refresh()
        except Exception:
            pass
children = []
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        for _ in range(4):
            threading.Thread(target=ask, daemon=True).start()
        time.sleep(random.uniform(0.01, 0.05))
        sys.exit(7)
    children.append(pid)
print(json.dumps([status_of(pid) for pid in children]))
"""
    assert run(code, vault_like, MLFLOW_SECRETS_MAX_RETRIES="0") == [7] * 40


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda auth: pickle.loads(pickle.dumps(auth))])
@pytest.mark.parametrize("kind", [SecretsAuth, SecretsAuthProvider])
def test_p6_a_copy_fetches_for_itself(configure: Configure, vault_like: VaultLike, kind: type, copied: Any) -> None:
    """P6: a copy of an object that works from the environment is one that works from the environment."""
    configure(vault_like.settings())
    again = copied(kind())
    auth = again if isinstance(again, SecretsAuth) else again.get_auth()
    configure(MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.example.com")
    request = requests.Request("GET", URL, auth=auth).prepare()
    assert request.headers["Authorization"] == "Bearer first"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [SecretsAuth, SecretsAuthProvider])
def test_p6_pickles_hold_no_secret(configure: Configure, vault_like: VaultLike, kind: type, protocol: int) -> None:
    """P6, S1: neither the credential nor a setting is in a pickle; the copy says which settings it lacks."""
    settings = {**vault_like.settings(), "VAULT_TOKEN": "canary-token"}
    vault_like.fields = {"token": "canary-credential"}
    made = kind(settings=settings)
    auth = made if isinstance(made, SecretsAuth) else made.get_auth()
    if isinstance(made, SecretsAuth):
        requests.Request("GET", URL, auth=auth).prepare()
        assert vault_like.reads == 1
    pickled = pickle.dumps(made, protocol)
    assert b"canary" not in pickled and vault_like.url.encode() not in pickled
    for attempt in (lambda: pickle.loads(pickled), lambda: copy.deepcopy(made)):
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        assert caught.value.code == "config.missing"
        assert all(name in str(caught.value) for name in settings)


@pytest.mark.parametrize("kind", [ConfigurationError, HostNotAllowedError, SecretFetchError, SecretFormatError])
def test_p6_exceptions_travel_whole(kind: type[SecretsAuthError]) -> None:
    """P6: an exception that crosses a process boundary is the same there."""
    error = kind("some.code", "what happened", "what to do")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert (again.code, again.message, again.hint, str(again)) == (
            error.code,
            error.message,
            error.hint,
            str(error),
        )


def answers(port: int) -> bool:
    try:
        requests.get(f"http://127.0.0.1:{port}/", timeout=5)
    except requests.ConnectionError:
        return False
    return True
