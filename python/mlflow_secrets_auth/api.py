"""Functions for programs that do without ``requests``, or want to look at the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_secrets_auth import _core

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Mapping


@dataclass(frozen=True)
class CacheEntry:
    """One credential in memory.

    Attributes:
        provider: Who gave it: ``vault``, ``aws-secrets-manager`` or ``azure-key-vault``.
        age: Seconds since it was fetched.
        expires_in: Seconds for which it is still fresh.
        stale: Whether it has outlived its TTL.
        fingerprint: A keyed hash that tells credentials apart, for as long as this process lives.
    """

    provider: str
    age: float
    expires_in: float
    stale: bool
    fingerprint: str


@dataclass(frozen=True)
class CacheInfo:
    """What the caches of this process have done so far.

    Attributes:
        hits: Requests that a cached credential served.
        misses: Requests that had to wait for a fetch.
        refreshes: Fetches that ended with a credential.
        failures: Fetches that failed.
        entries: The credentials in memory.
    """

    hits: int
    misses: int
    refreshes: int
    failures: int
    entries: tuple[CacheEntry, ...]


def headers_for(url: str, *, settings: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The headers that a request to ``url`` should carry; empty for a host that is not allowed.

    When no allowlist is set, the host of ``url`` counts as allowed, because the caller named it. A cached credential
    is given without I/O; else this waits for the fetch, at most ``MLFLOW_SECRETS_TIMEOUT_SEC`` (30 seconds)::

        urllib.request.Request(url, headers=headers_for(url))

    Args:
        url: Where the request goes: http or https, with a host.
        settings: As for :class:`mlflow_secrets_auth.SecretsAuth`. Default: the environment.

    Example::

        headers_for("https://mlflow.example.com/")  # {"Authorization": "Bearer …"}

    Raises:
        SecretsAuthError: As :class:`mlflow_secrets_auth.SecretsAuth`.
    """
    try:
        grant = _core.Authorizer(_headers_of, settings, True).authorize(dialed(url))
    finally:
        # Some tracebacks show the local variables of every frame, and these may hold secrets.
        del url, settings
    return dict(grant) if grant is not None else {}


async def headers_for_async(url: str, *, settings: Mapping[str, Any] | None = None) -> dict[str, str]:
    """As :func:`headers_for`, for programs with an asyncio event loop, which goes on while the credential is fetched.

    A credential in the cache is returned at once, without a turn of the loop. Otherwise the fetch runs on one thread
    for all tasks that wait for it, and the thread ends with it. A task that is cancelled stops waiting at once; the
    fetch is given up when nobody else waits for it.

    Example::

        async with httpx.AsyncClient() as client:
            await client.get(url, headers=await headers_for_async(url))

    Args:
        url: Where the request goes: http or https, with a host.
        settings: As for :class:`mlflow_secrets_auth.SecretsAuth`. Default: the environment.

    Raises:
        SecretsAuthError: As :class:`mlflow_secrets_auth.SecretsAuth`.
        RuntimeError: A fetch is needed, and no asyncio event loop is running.
    """
    try:
        grant, fetch = _core.Authorizer(_headers_of, settings, True).authorize_or_fetch(dialed(url))
    finally:
        # Some tracebacks show the local variables of every frame, and these may hold secrets.
        del url, settings
    if fetch is not None:
        await _landing(fetch)
        grant = fetch.finish()
    return dict(grant) if grant is not None else {}


async def _landing(fetch: _core.Fetch) -> None:
    """Waits until ``fetch`` has an outcome."""
    from asyncio import get_running_loop

    loop = get_running_loop()
    landed = loop.create_future()
    fetch.start(lambda: loop.call_soon_threadsafe(_land, landed))
    try:
        await landed
    finally:
        fetch.cancel()


def _land(landed: Future[None]) -> None:
    # Whoever waited may have been cancelled while the outcome was on its way here.
    if not landed.done():
        landed.set_result(None)


def refresh(*, settings: Mapping[str, Any] | None = None) -> None:
    """Fetches the credential now, past every cache and every wait after a failure.

    Takes at most ``MLFLOW_SECRETS_TIMEOUT_SEC`` (30 seconds). What it fetched serves the requests that follow; no
    stale credential stands in for a fetch that fails.

    Args:
        settings: As for :class:`mlflow_secrets_auth.SecretsAuth`. Default: the environment.

    Raises:
        SecretsAuthError: As :class:`mlflow_secrets_auth.SecretsAuth`.
    """
    try:
        _core.Authorizer(_headers_of, settings, True).refresh()
    finally:
        del settings


def clear_cache() -> None:
    """Forgets all credentials, rejections and failures, so that the next request fetches. Logins are kept."""
    _core.clear_cache()


def cache_info() -> CacheInfo:
    """Counters and entries of this process's caches."""
    info = _core.cache_info()
    entries = tuple(CacheEntry(**entry) for entry in info.pop("entries"))
    return CacheInfo(entries=entries, **info)


def dialed(url: str) -> str:
    """``url`` as ``requests`` would prepare it, which matters for hosts with letters beyond ASCII."""
    if url.isascii():
        return url
    import requests

    return requests.Request("GET", url).prepare().url or ""


def _headers_of(headers: tuple[tuple[str, str], ...], origin: str, generation: int) -> Any:
    return headers
