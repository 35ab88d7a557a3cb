"""Programs in an interpreter of their own, without MLflow, that fetch from a look-alike of Vault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from loopback import VaultLike

# What every program begins with. A child that hangs is ended by its alarm, which shows as exit status -14.
PRELUDE = """
import json, os, random, signal, sys, threading, time
import mlflow_secrets_auth as ours
URL = "https://mlflow.example.com/api"

def works(token="first"):
    return ours.headers_for(URL) == {"Authorization": f"Bearer {token}"}

def in_child(question):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(5)
    status = 1
    try:
        status = 0 if question() else 1
    finally:
        os._exit(status)

def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def program(code: str, vault_like: VaultLike, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Starts a program whose settings read from ``vault_like``."""
    environment = {**os.environ, **vault_like.settings(), **more}
    command = [sys.executable, "-c", PRELUDE + code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(code: str, vault_like: VaultLike, *arguments: str, **more: str) -> Any:
    """Runs a program to its good end, and reads the JSON that it prints."""
    process = program(code, vault_like, *arguments, **more)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    return json.loads(out) if out else None


def wait_until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
