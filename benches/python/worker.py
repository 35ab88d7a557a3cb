"""One measurement, in whichever environment this runs: ours or the Python plugin 0.2.0. Prints one JSON document.

Both are driven through what MLflow uses: the entry point, ``get_auth()``, and the auth object on a prepared request.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from importlib.metadata import entry_points, version
from typing import Any

URL = os.environ.get("BENCH_URL", "http://127.0.0.1:5000/api/2.0/mlflow/runs/search")


def provider_class() -> Any:
    """What MLflow loads, once per process."""
    [entry] = entry_points(group="mlflow.request_auth_provider", name="mlflow_secrets_auth")
    return entry.load()


def new_provider() -> Any:
    return provider_class()()


def prepared() -> Any:
    import requests

    return requests.Request("GET", URL).prepare()


def per_call(function: Any, calls: int) -> float:
    """Median of seven rounds, in microseconds per call."""
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        rounds.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(rounds)


def cached() -> dict[str, float]:
    """A request whose credential is cached, next to one that only sets a header."""
    provider, request = new_provider(), prepared()
    hooks = request.hooks["response"]
    provider.get_auth()(request)

    def with_provider() -> None:
        provider.get_auth()(request)
        hooks.clear()

    def static() -> None:
        request.headers["Authorization"] = "Bearer static"
        hooks.clear()

    return {"cached_us": per_call(with_provider, 20_000), "static_us": per_call(static, 20_000)}


def importing() -> dict[str, float]:
    """The import of the package, and from there to the first header, in a process that has imported nothing."""
    start = time.perf_counter()
    import mlflow_secrets_auth  # noqa: F401

    return {"import_ms": (time.perf_counter() - start) * 1e3}


def first_request() -> dict[str, float]:
    """From a fresh process to the first header, the way a program without MLflow would: import, auth object, header."""
    start = time.perf_counter()
    if version("mlflow-secrets-auth") == "0.2.0":
        from mlflow_secrets_auth import SecretsAuthProviderFactory

        auth = SecretsAuthProviderFactory().get_auth()
    else:
        from mlflow_secrets_auth import SecretsAuth

        auth = SecretsAuth()
    auth(prepared())
    return {"first_request_ms": (time.perf_counter() - start) * 1e3}


def cold() -> dict[str, float]:
    """A new provider with an empty cache, to a header in hand, in a warm process."""
    variable = "MLFLOW_AWS_TTL_SEC" if "aws" in os.environ["MLFLOW_SECRETS_AUTH_ENABLE"] else "MLFLOW_VAULT_TTL_SEC"
    provider, request = provider_class(), prepared()
    clear = cache_clearer()
    times = []
    for number in range(41):
        # For ours, another TTL is another configuration: clients and login are new as well.
        os.environ[variable] = str(300 + number)
        clear()
        start = time.perf_counter()
        provider().get_auth()(request)
        times.append((time.perf_counter() - start) * 1e3)
    return {"cold_ms": statistics.median(times[1:]), "cold_first_ms": times[0]}


def cache_clearer() -> Any:
    if version("mlflow-secrets-auth") == "0.2.0":
        from mlflow_secrets_auth.cache import clear_cache
    else:
        from mlflow_secrets_auth import clear_cache
    return clear_cache


def herd() -> dict[str, float]:
    """Threads that all find the cache empty at the same moment. The server counts what it is asked."""
    count = int(os.environ["BENCH_THREADS"])
    provider = new_provider()
    barrier = threading.Barrier(count)

    def run() -> None:
        request = prepared()
        barrier.wait()
        provider.get_auth()(request)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {}


def expiry() -> dict[str, float]:
    """The slowest of 10,000 requests spread over three TTLs of one second, the first excepted."""
    provider, request = new_provider(), prepared()
    provider.get_auth()(request)
    slowest = 0.0
    for _ in range(10_000):
        start = time.perf_counter()
        provider.get_auth()(request)
        slowest = max(slowest, time.perf_counter() - start)
        request.hooks["response"].clear()
        time.sleep(0.0003)
    return {"slowest_ms": slowest * 1e3}


def memory() -> dict[str, float]:
    """Resident memory that a credential in hand adds to a process that has imported MLflow."""
    import mlflow.tracking  # noqa: F401
    import requests  # noqa: F401

    before = resident_kb()
    new_provider().get_auth()(prepared())
    return {"memory_mb": (resident_kb() - before) / 1024}


def resident_kb() -> int:
    with open("/proc/self/status") as status:
        [line] = [line for line in status if line.startswith("VmRSS:")]
    return int(line.split()[1])


CASES = {f.__name__: f for f in (cached, importing, first_request, cold, herd, expiry, memory)}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]]()))
