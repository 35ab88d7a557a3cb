"""Forked children that fetch."""

from __future__ import annotations

import os
import time

from mlflow_secrets_auth import headers_for


def child_gets(url: str, headers: dict[str, str]) -> bool:
    """Whether a forked child gets these headers for ``url`` within 5 s."""
    child = os.fork()
    if child == 0:
        # Nothing of pytest may run in the child.
        try:
            os._exit(0 if headers_for(url) == headers else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 5
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return False
        time.sleep(0.01)
    return status[1] == 0
