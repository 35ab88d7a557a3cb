"""Fixtures for test suites of programs that use this package, without a secrets manager and without a network.

Opt in with one line in ``conftest.py`` (``pytest`` loads nothing of this by itself)::

    pytest_plugins = ["mlflow_secrets_auth.testing"]

:func:`secrets_backend` takes the place of the configured secrets manager, below the cache: settings, allowlist,
caching, retries and errors are the real ones. :func:`protected_mlflow` is a small MLflow server that wants the
credential. The documentation has a complete example.

This is the only module that imports ``pytest``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from mlflow_secrets_auth import _core
from mlflow_secrets_auth._loopback import Request
from mlflow_secrets_auth._mlflow_like import ProtectedMlflow, Run
from mlflow_secrets_auth.config import enabled_providers
from mlflow_secrets_auth.errors import ConfigurationError

__all__ = [
    "FIRST_TOKEN",
    "USERNAME",
    "ProtectedMlflow",
    "Request",
    "Run",
    "SecretsBackend",
    "protected_mlflow",
    "secrets_backend",
]

#: The token, and the password, that a new :class:`SecretsBackend` holds and a new :func:`protected_mlflow` accepts.
FIRST_TOKEN = "test-token-1"
#: The user name that stands beside it.
USERNAME = "test-user"

#: What a suite without any configuration works by.
_MINIMAL_SETTINGS = {
    "MLFLOW_SECRETS_AUTH_ENABLE": "vault",
    "VAULT_ADDR": "https://vault.invalid",
    "VAULT_TOKEN": "test-vault-token",
    "MLFLOW_VAULT_AUTH_METHOD": "token",
    "MLFLOW_VAULT_SECRET_PATH": "secret/test",
}


class SecretsBackend:
    """Stands for every configured secrets manager, and keeps the time. Get it from :func:`secrets_backend`.

    It holds a secret that suits every mode: a token (:data:`FIRST_TOKEN`) and a user name (:data:`USERNAME`) with the
    same text as password. Its clock stands still; fetches that wait between retries do not really wait, but move it.

    Where several providers are enabled, ``provider`` names one of them (``vault``, ``aws-secrets-manager``,
    ``azure-key-vault``), and without it all of them are meant.

    Outside of pytest it is a context manager: ``with SecretsBackend() as backend: ...``. There is one at a time in a
    process; a second one raises ``RuntimeError``. A forked child has a copy.
    """

    def __init__(self) -> None:
        self._version = 1
        self._core = _core.FakeBackend(_payload_of(FIRST_TOKEN))

    def __enter__(self) -> SecretsBackend:
        self._core.install()
        return self

    def __exit__(self, *_: object) -> None:
        self._core.uninstall()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(version={self._version}, fetches={self.fetches})"

    def put(
        self,
        text: str | None = None,
        *,
        token: str | None = None,
        username: str | None = None,
        password: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
        lease: float | None = None,
        provider: str | None = None,
    ) -> None:
        """Replaces the secret. What is cached stays so, as with a real backend.

        Args:
            text: The secret as it is stored: plain text, or a JSON object.
            token: In place of ``text``: ``{"token": …}``.
            username: In place of ``text``, with ``password``: ``{"username": …, "password": …}``.
            password: See ``username``.
            headers: In place of ``text``: ``{"headers": …}``.
            expires_in: Seconds until the time at which the backend says that the secret ends.
            lease: Seconds for which the backend lends it at each read.
            provider: Only this provider's secret.

        Raises:
            ValueError: Not exactly one kind of secret is given.
        """
        given = {"token": token, "username": username, "password": password, "headers": headers}
        fields = {name: value for name, value in given.items() if value is not None}
        kinds = [{"token"}, {"username", "password"}, {"headers"}]
        if (text is None) == (not fields) or (fields and set(fields) not in kinds):
            raise ValueError("give a text, or a token, or a user name and a password, or headers")
        self._put(text if text is not None else json.dumps(fields, default=dict), expires_in, lease, provider)

    def rotate(self, *, provider: str | None = None) -> str:
        """Replaces the secret by the next one: ``test-token-2``, and so on.

        Returns:
            The new token, which is also the new password of :data:`USERNAME`.
        """
        token = f"test-token-{self._version + 1}"
        self._put(_payload_of(token), None, None, provider)
        return token

    def _put(self, text: str, expires_in: float | None, lease: float | None, provider: str | None) -> None:
        self._core.put(text, str(self._version + 1), expires_in, lease, provider)
        self._version += 1

    def fail(
        self,
        code: str,
        *,
        times: int | None = None,
        retry_after: float | None = None,
        provider: str | None = None,
    ) -> None:
        """Lets fetches fail from now on, exactly as this failure does in earnest: it is retried or not, a stale
        credential takes its place or not, and it is remembered for the fail-fast window.

        ``fetch.timeout`` is a backend that never answers: the time limit of the fetch passes on the fake clock.

        Args:
            code: The error's code, as the catalogue has it: ``vault.permission_denied``.
            times: How many attempts fail before the backend recovers by itself; retries count. Default: all, until
                :meth:`recover`.
            retry_after: Seconds that the backend asks to wait before the next attempt.
            provider: Only this provider fails.

        Raises:
            ValueError: ``code`` is not that of a failure of a backend; similar ones are listed.
        """
        self._core.fail(code, times, retry_after, provider)

    def recover(self, *, provider: str | None = None) -> None:
        """Ends what :meth:`fail` began. The fail-fast window goes on: :meth:`advance` the clock past it."""
        self._core.recover(provider)

    @property
    def fetches(self) -> int:
        """How often the secret was asked for, attempts that failed included."""
        return self._core.reads()

    def fetches_from(self, provider: str) -> int:
        """As :attr:`fetches`, from one provider."""
        return self._core.reads(provider)

    def advance(self, seconds: float) -> None:
        """Lets time pass: for the TTL, the age of a stale credential, waits after a failure, expiry dates."""
        self._core.advance(seconds)

    @property
    def elapsed(self) -> float:
        """Seconds that have passed on the fake clock, waits of fetches included."""
        return self._core.time()[0]

    @property
    def time(self) -> float:
        """What ``time.time()`` would be on the fake clock, for dates in secrets. It starts at the real time."""
        return self._core.time()[1]

    def set_chance(self, chance: float) -> None:
        """Replaces chance: 0.0 (the default) makes jitter and back-off nothing, 1.0 makes both as long as they get."""
        self._core.set_chance(chance)

    def take_waits(self) -> list[float]:
        """The seconds that fetches waited before they tried again, one number for each wait since the last call."""
        return self._core.take_sleeps()

    def settle(self) -> None:
        """Waits until no fetch is under way. In the last fifth of the TTL a request starts one on another thread."""
        self._core.settle()


@pytest.fixture
def secrets_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretsBackend]:
    """A :class:`SecretsBackend` in the place of the configured secrets manager, for one test. The cache is empty.

    Where no provider is enabled in the environment, the variables of a minimal configuration are set for the test, with
    Vault as provider; otherwise the settings hold as they are (provider, mode, TTL, header name, allowlist).
    """
    try:
        is_configured = bool(enabled_providers())
    except ConfigurationError:
        # The test's own affair; it will meet this error.
        is_configured = True
    if not is_configured:
        for name, value in _MINIMAL_SETTINGS.items():
            monkeypatch.setenv(name, value)
    with SecretsBackend() as backend:
        yield backend


@pytest.fixture
def protected_mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProtectedMlflow]:
    """A :class:`ProtectedMlflow`, which MLflow uses as its tracking server, with this package, for one test.

    It accepts what a new :class:`SecretsBackend` holds, as a bearer token and as user name and password;
    :meth:`ProtectedMlflow.accept` changes that.
    """
    with ProtectedMlflow() as server, _tracking_uri(server.url, monkeypatch):
        server.accept(token=FIRST_TOKEN)
        server.also_accept(username=USERNAME, password=FIRST_TOKEN)
        monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "mlflow_secrets_auth")
        yield server


@contextmanager
def _tracking_uri(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Points MLflow to ``url``. What a program said by ``mlflow.set_tracking_uri`` counts more than the environment."""
    mlflow: Any = sys.modules.get("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    if mlflow is None:
        yield
        return
    # With the variable set to `url`, any other answer is what the program said.
    said = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(url)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(said if said != url else None)


def _payload_of(token: str) -> str:
    return json.dumps({"token": token, "username": USERNAME, "password": token})
