"""``headers_for_async``: as ``headers_for``, without holding up the event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import Configure
from forks import child_gets
from loopback import Answer, VaultLike
from mlflow_secrets_auth import SecretsAuthError, cache_info, clear_cache, headers_for, headers_for_async, refresh
from mlflow_secrets_auth.testing import FIRST_TOKEN, SecretsBackend
from programs import run, wait_until

URL = "https://mlflow.example.com/api"
FIRST = {"Authorization": "Bearer first"}
SECOND = {"Authorization": "Bearer second"}


@pytest.fixture(autouse=True)
def use_vault_like(configure: Configure, vault_like: VaultLike) -> None:
    configure({**vault_like.settings(), "MLFLOW_SECRETS_MAX_RETRIES": "0"})


def threads_of_ours() -> list[str]:
    """The names of the threads of this process that are ours, as the system knows them."""
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            names.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [name for name in names if name.startswith("mlflow-secrets")]


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing: it is driven by hand, without an event loop."""
    with pytest.raises(StopIteration) as caught:
        coroutine.send(None)
    return caught.value.value


def quiet(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs ``coroutine`` in an event loop that has nothing to complain of, not even afterwards."""
    complaints: list[Any] = []

    async def main() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        result = await coroutine
        gc.collect()
        await asyncio.sleep(0.1)
        return result

    result = asyncio.run(main())
    gc.collect()
    assert complaints == []
    return result


def test_a_cold_fetch(vault_like: VaultLike) -> None:
    assert quiet(headers_for_async(URL)) == FIRST
    assert vault_like.reads == 1


def test_a_cached_answer_does_not_leave_the_event_loop(vault_like: VaultLike) -> None:
    """C1: no turn of the loop, no thread, no read."""
    headers_for(URL)
    before = (threading.active_count(), os.listdir("/proc/self/task"), cache_info())
    for _ in range(1000):
        assert at_once(headers_for_async(URL)) == FIRST
    after = (threading.active_count(), os.listdir("/proc/self/task"), cache_info())
    assert after[:2] == before[:2]
    assert (after[2].hits - before[2].hits, after[2].misses - before[2].misses) == (1000, 0)
    assert vault_like.reads == 1


def test_a_no_does_not_leave_the_event_loop(configure: Configure, vault_like: VaultLike) -> None:
    """H3, H6: what is decided without the credential is decided at once."""
    configure(MLFLOW_SECRETS_ALLOWED_HOSTS="other.example.com")
    assert at_once(headers_for_async(URL)) == {}
    with pytest.raises(SecretsAuthError) as caught:
        headers_for_async("https://user@mlflow.example.com").send(None)
    assert caught.value.code == "url.refused"
    assert vault_like.requests == []


def test_a_fetch_needs_an_event_loop(vault_like: VaultLike) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        headers_for_async(URL).send(None)
    assert vault_like.requests == []


def test_settings_given_in_code(configure: Configure, vault_like: VaultLike) -> None:
    settings = vault_like.settings()
    configure(MLFLOW_SECRETS_AUTH_ENABLE=None)
    assert quiet(headers_for_async(URL, settings=settings)) == FIRST


def test_the_loop_goes_on_meanwhile(vault_like: VaultLike) -> None:
    """P3: the interpreter is free, and so is the loop."""
    vault_like.before_read = lambda: time.sleep(0.5)
    turns = 0

    async def main() -> dict[str, str]:
        nonlocal turns
        task = asyncio.create_task(headers_for_async(URL))
        while not task.done():
            turns += 1
            await asyncio.sleep(0.005)
        return await task

    assert quiet(main()) == FIRST
    assert turns >= 20


def test_r1_sixty_four_tasks_cost_one_fetch_and_one_thread(vault_like: VaultLike) -> None:
    """R1, P2: one read, one thread for all tasks, and none afterwards."""
    seen: list[list[str]] = []

    def look() -> None:
        time.sleep(0.2)
        seen.append(threads_of_ours())

    vault_like.before_read = look
    misses = cache_info().misses

    async def main() -> list[dict[str, str]]:
        return await asyncio.gather(*[headers_for_async(URL) for _ in range(64)])

    assert quiet(main()) == [FIRST] * 64
    assert vault_like.reads == 1
    assert cache_info().misses == misses + 64
    # The system keeps 15 characters of a name.
    assert seen == [["mlflow-secrets-await"[:15]]]
    wait_until(lambda: threads_of_ours() == [])


def test_r1_threads_and_loops_share_one_fetch(vault_like: VaultLike) -> None:
    """R1: threads, and tasks of several loops, cold and all at once."""
    vault_like.before_read = lambda: time.sleep(0.3)
    start = threading.Barrier(16)

    async def several() -> list[dict[str, str]]:
        return await asyncio.gather(*[headers_for_async(URL) for _ in range(4)])

    def ask(number: int) -> list[dict[str, str]]:
        start.wait()
        return asyncio.run(several()) if number % 2 else [headers_for(URL)]

    with ThreadPoolExecutor(16) as pool:
        answers = [headers for answer in pool.map(ask, range(16)) for headers in answer]
    assert answers == [FIRST] * 40
    assert vault_like.reads == 1


def test_r1_the_failure_is_shared(vault_like: VaultLike) -> None:
    """R1: all tasks get the error, with its code, and nothing is said of exceptions that nobody retrieved."""
    vault_like.failure = Answer.json({"errors": []}, 500)
    vault_like.before_read = lambda: time.sleep(0.2)

    async def main() -> list[Any]:
        return await asyncio.gather(*[headers_for_async(URL) for _ in range(64)], return_exceptions=True)

    codes = [error.code for error in quiet(main())]
    assert codes == ["vault.unavailable"] * 64
    assert vault_like.reads == 1


def test_ttl_zero_is_one_fetch_per_task(configure: Configure, vault_like: VaultLike) -> None:
    """R1: without caching, what another task's request fetched is not this one's."""
    configure(MLFLOW_VAULT_TTL_SEC="0")
    vault_like.mint()

    async def main() -> list[dict[str, str]]:
        return await asyncio.gather(*[headers_for_async(URL) for _ in range(5)])

    assert sorted(headers["Authorization"] for headers in quiet(main())) == [f"Bearer token-{n}" for n in range(1, 6)]
    assert vault_like.reads == 5


def test_records_are_emitted_on_the_loops_thread(
    configure: Configure, vault_like: VaultLike, caplog: pytest.LogCaptureFixture
) -> None:
    """S4: as with ``headers_for``, logging handlers run where the caller is; ``skip`` holds, too."""
    configure(MLFLOW_SECRETS_ON_ERROR="skip")
    vault_like.failure = Answer.json({"errors": []}, 500)
    with caplog.at_level(logging.DEBUG, "mlflow_secrets_auth"):
        assert quiet(headers_for_async(URL)) == {}
    assert {record.thread for record in caplog.records} == {threading.get_ident()}
    assert [record.event for record in caplog.records if record.levelno == logging.ERROR] == ["fetch_failed", "skipped"]


def test_stale_and_renewed_ahead(secrets_backend: SecretsBackend) -> None:
    """R2, R9: in the last fifth of the TTL the answer is at hand; past it, a stale one while the backend is down."""
    good = {"Authorization": f"Bearer {FIRST_TOKEN}"}
    assert quiet(headers_for_async(URL)) == good
    secrets_backend.fail("vault.unreachable")
    secrets_backend.advance(250)
    assert at_once(headers_for_async(URL)) == good
    secrets_backend.settle()
    assert secrets_backend.fetches == 5 - 3, "with a credential in hand, one attempt"
    secrets_backend.advance(60)
    assert quiet(headers_for_async(URL)) == good
    assert secrets_backend.fetches == 3


# Cancellation


def test_p3_a_cancelled_task_ends_at_once(vault_like: VaultLike) -> None:
    """P3: within 200 ms (here: a second) while the backend hangs. Nobody waits any more, so the fetch is given up, its
    thread ends, and the next caller fetches."""
    release = threading.Event()
    first = iter([True])
    vault_like.before_read = lambda: next(first, False) and release.wait(30)

    async def main() -> float:
        task = asyncio.create_task(headers_for_async(URL))
        while vault_like.reads == 0:
            await asyncio.sleep(0.01)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        took = time.monotonic() - start
        while threads_of_ours():
            await asyncio.sleep(0.01)
        assert time.monotonic() - start < 2, "the fetch was not given up"
        assert await headers_for_async(URL) == FIRST
        return took

    try:
        assert quiet(main()) < 1
    finally:
        release.set()
    assert vault_like.reads == 2


def test_a_cancelled_task_leaves_the_others_their_fetch(vault_like: VaultLike) -> None:
    """R1: one of several tasks is cancelled, another has a time limit: the fetch goes on for the rest."""
    release = threading.Event()
    vault_like.before_read = lambda: release.wait(30)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(headers_for_async(URL)) for _ in range(4)]
        limited = asyncio.create_task(asyncio.wait_for(headers_for_async(URL), 0.1))
        while vault_like.reads == 0:
            await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0.3)
        release.set()
        return await asyncio.gather(*tasks, limited, return_exceptions=True)

    cancelled, *others, limited = quiet(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(limited, asyncio.TimeoutError)
    assert others == [FIRST] * 3
    assert vault_like.reads == 1


def test_a_thread_takes_over_from_a_cancelled_task(vault_like: VaultLike) -> None:
    """R1: a thread that waits for the task's fetch is not left hanging when the task is cancelled."""
    release = threading.Event()
    first = iter([True])
    vault_like.before_read = lambda: next(first, False) and release.wait(30)

    async def main(pool: ThreadPoolExecutor) -> Any:
        task = asyncio.create_task(headers_for_async(URL))
        while vault_like.reads == 0:
            await asyncio.sleep(0.01)
        misses = cache_info().misses
        waiting = pool.submit(headers_for, URL)
        while cache_info().misses == misses:
            await asyncio.sleep(0.01)
        task.cancel()
        return await asyncio.wait_for(asyncio.wrap_future(waiting), 10)

    try:
        with ThreadPoolExecutor(1) as pool:
            assert quiet(main(pool)) == FIRST
    finally:
        release.set()
    assert vault_like.reads == 2


def test_tasks_that_come_and_go(vault_like: VaultLike) -> None:
    """Tasks are cancelled at any moment of their fetch, while others begin: whoever stays gets the credential."""
    vault_like.before_read = lambda: time.sleep(0.02)

    async def main() -> None:
        for number in range(60):
            clear_cache()
            fickle = [asyncio.create_task(headers_for_async(URL)) for _ in range(3)]
            await asyncio.sleep(0.001 * (number % 30))
            steady = asyncio.create_task(headers_for_async(URL))
            for task in fickle:
                task.cancel()
            assert await asyncio.wait_for(steady, 10) == FIRST
            await asyncio.gather(*fickle, return_exceptions=True)

    quiet(main())


# Process


def test_p1_a_fork_while_a_task_waits(vault_like: VaultLike) -> None:
    """P1: the child does not wait for the parent's fetch, neither with a thread nor with a loop of its own."""
    release = threading.Event()
    first = iter([True])
    vault_like.before_read = lambda: next(first, False) and release.wait(30)

    async def main() -> dict[str, str]:
        task = asyncio.create_task(headers_for_async(URL))
        while vault_like.reads == 0:
            await asyncio.sleep(0.01)
        assert child_gets(URL, FIRST)
        release.set()
        return await task

    assert quiet(main()) == FIRST
    vault_like.fields = {"token": "second"}
    assert child_gets(URL, FIRST)
    refresh()
    assert at_once(headers_for_async(URL)) == SECOND


def test_p1_forks_at_any_moment(vault_like: VaultLike) -> None:
    """P1: 100 forks at any moment of a task's fetch; each child makes a loop and fetches in it."""
    code = """
import asyncio
async def in_loop():
    return await ours.headers_for_async(URL)
def child():
    asyncio.events._set_running_loop(None)
    return asyncio.run(in_loop()) == {"Authorization": "Bearer first"}
async def main():
    results = []
    for number in range(100):
        ours.clear_cache()
        task = asyncio.ensure_future(in_loop())
        await asyncio.sleep(random.uniform(0, 0.004))
        results.append(in_child(child))
        await task
    return [status_of(pid) for pid in results]
print(json.dumps(asyncio.run(main())))
"""
    assert run(code, vault_like) == [0] * 100


def test_p4_exits_in_the_middle(vault_like: VaultLike) -> None:
    """P4: 200 processes end while tasks wait, or while their answers arrive: in ``asyncio.run`` that is left by an
    exception, with a loop that is closed too early, and with one that runs in a daemon thread. No hang, no abort, and
    nothing on stderr (which ``run`` asserts)."""
    pauses = [0.0, 0.005, 0.01, 0.02, 30.0]
    numbers = iter(range(10**9))
    hanging = threading.Event()
    vault_like.before_read = lambda: hanging.wait(pauses[next(numbers) % len(pauses)])
    code = """
import asyncio, warnings
# A loop that stops too early has tasks that it never began; Python says so about any coroutine.
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
def many():
    return asyncio.gather(*[ours.headers_for_async(URL) for _ in range(8)], return_exceptions=True)
async def left_by_an_exception():
    waiting = asyncio.ensure_future(many_forever())
    await asyncio.sleep(random.uniform(0.0, 0.03))
    sys.exit(7)
async def many_forever():
    while True:
        ours.clear_cache()
        await many()
def closed_too_early():
    loop = asyncio.new_event_loop()
    task = loop.create_task(many_forever())
    loop.call_later(random.uniform(0.0, 0.03), loop.stop)
    loop.run_forever()
    task._log_destroy_pending = False
    loop.close()
    time.sleep(0.02)
    sys.exit(7)
def in_a_daemon_thread():
    loop = asyncio.new_event_loop()
    def work():
        asyncio.set_event_loop(loop)
        task = loop.create_task(many_forever())
        task._log_destroy_pending = False
        loop.run_forever()
    threading.Thread(target=work, daemon=True).start()
    time.sleep(random.uniform(0.005, 0.04))
    sys.exit(7)
children = []
for number in range(20):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            [lambda: asyncio.run(left_by_an_exception()), closed_too_early, in_a_daemon_thread][number % 3]()
        except KeyboardInterrupt:
            pass
    children.append(pid)
print(json.dumps([status_of(pid) for pid in children]))
"""
    try:
        with ThreadPoolExecutor(2) as pool:
            results = [
                status for statuses in pool.map(lambda _: run(code, vault_like), range(10)) for status in statuses
            ]
    finally:
        hanging.set()
    assert results == [7] * 200
