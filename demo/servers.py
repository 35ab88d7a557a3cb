"""Real servers on loopback and free ports: OpenBao, and MLflow with its own authentication."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def script(name: str) -> str:
    """The path of a command that was installed into this Python environment."""
    path = Path(sysconfig.get_path("scripts")) / name
    return str(path) if path.exists() else name


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without anything that would reach our code or MLflow's by accident."""
    ours = ("MLFLOW_", "VAULT_", "BAO_", "AWS_", "AZURE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", **extra}


class Server(AbstractContextManager["Server"]):
    """A child process that is ready when its URL answers, and is gone when the block ends."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{type(self).__name__.lower()}-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The command line that starts it."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """The environment that it runs in."""
        return clean_environment()

    def ready_path(self) -> str:
        """The path that answers once it is up."""
        return "/health"

    def ready_headers(self) -> dict[str, str]:
        """What it has to be asked with."""
        return {}

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with self.log.open("ab") as log:
            # A session of its own, so that Ctrl-C reaches us alone and all of its workers can be ended together.
            self._process = subprocess.Popen(
                self.command(), env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                request = urllib.request.Request(self.url + self.ready_path(), headers=self.ready_headers())
                urllib.request.urlopen(request, timeout=2).close()
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        tail = self.log.read_text(errors="replace")[-3000:]
        self.stop()
        raise RuntimeError(f"{self.command()[0]} did not start:\n{tail}")

    def stop(self) -> None:
        """Ends it and its children."""
        process, self._process = self._process, None
        if process is None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
            except ProcessLookupError:
                break
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                continue

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class OpenBao(Server):
    """An OpenBao server in development mode: unsealed, in memory, with KV version 2 at ``secret/``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root_token = f"root-{secrets.token_hex(8)}"

    def command(self) -> list[str]:
        return [
            script("bao"),
            "server",
            "-dev",
            "-dev-no-store-token",
            f"-dev-root-token-id={self.root_token}",
            f"-dev-listen-address=127.0.0.1:{self.port}",
        ]

    def ready_path(self) -> str:
        return "/v1/sys/health"

    def api(self, method: str, path: str, body: dict[str, Any] | None = None, token: str | None = None) -> Any:
        """One call of its HTTP API, with the root token unless another is given. The answer's JSON, or None."""
        request = urllib.request.Request(
            f"{self.url}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": token or self.root_token},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def put_secret(self, path: str, **fields: Any) -> None:
        """Writes a secret below ``secret/``, as ``bao kv put secret/<path>`` does."""
        self.api("POST", f"secret/data/{path}", {"data": fields})

    def new_token(self, *policies: str, **options: Any) -> str:
        """A token with these policies."""
        answer = self.api("POST", "auth/token/create", {"policies": list(policies), **options})
        return str(answer["auth"]["client_token"])


class MlflowServer(Server):
    """``mlflow server`` with basic authentication, an administrator, and nothing shared with the outside."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.user = "admin"
        self.password = secrets.token_urlsafe(18)
        self._config = folder / f"auth-{self.port}.ini"

    def start(self) -> None:
        self._config.write_text(
            "[mlflow]\n"
            "default_permission = READ\n"
            f"database_uri = sqlite:///{self.folder}/users-{self.port}.db\n"
            f"admin_username = {self.user}\n"
            f"admin_password = {self.password}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        super().start()

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--app-name=basic-auth",
            "--host=127.0.0.1",
            f"--port={self.port}",
            f"--backend-store-uri=sqlite:///{self.folder}/runs-{self.port}.db",
            f"--artifacts-destination={self.folder}/artifacts-{self.port}",
            "--workers=1",
        ]

    def environment(self) -> dict[str, str]:
        return clean_environment(
            MLFLOW_AUTH_CONFIG_PATH=str(self._config),
            MLFLOW_FLASK_SERVER_SECRET_KEY=secrets.token_hex(16),
        )

    def change_password(self, password: str) -> None:
        """Gives the administrator another password, through the server's own API."""
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/users/update-password",
            method="PATCH",
            data=json.dumps({"username": self.user, "password": password, "current_password": self.password}).encode(),
            headers={"Authorization": f"Basic {pair}", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=30).close()
        self.password = password
