"""Canaries: secrets that are told apart, and the search for them in everything that comes out."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterable
from urllib.parse import quote

from mlflow_secrets_auth import (
    SecretsAuth,
    SecretsAuthProvider,
    _core,
    cache_info,
    headers_for,
    headers_for_async,
    refresh,
)

URL = "https://mlflow.example.com/api"

_NUMBERS = itertools.product("ABCDEFGHJKLMNPRSTUVWXYZ", repeat=2)
_made: dict[str, tuple[str, ...]] = {}


def canary(name: str, odd: str = "") -> str:
    """A new secret. Its first four and its last four characters are like nothing else in any output.

    ``odd`` goes in the middle: characters that look different where they are escaped.
    """
    one, two = next(_NUMBERS)
    return watch(f"x{one}{two}q-{name}-{odd}-q{two}{one}x")


def watch(secret: str) -> str:
    """Makes a secret that others made one to look for, in all its forms."""
    _made[secret] = tuple(_forms(secret))
    return secret


def _forms(secret: str) -> Iterable[str]:
    yield from {
        secret,
        secret[::-1],
        quote(secret, safe=""),
        quote(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }
    if secret.startswith("x") and secret.endswith("x") and secret[3:5] == "q-":
        yield from (secret[:4], secret[-4:])
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # The characters that depend on what stands before and behind are left out.
            text = encode(bytes(before) + secret.encode()).decode().rstrip("=")
            yield text[(0, 2, 3)[before] : -2]


def assert_clean(*texts: str) -> None:
    """Nothing that comes out holds a canary, or a part or another form of one."""
    for text in texts:
        for secret, forms in _made.items():
            for form in forms:
                if form in text:
                    at = text.index(form)
                    raise AssertionError(f"{secret} shows as {form}: {text[max(0, at - 300) : at + 300]}")


def everything_about(error: BaseException | None) -> str:
    """What a reader of logs could ever see of an exception and of those behind it, each with the local variables of
    every frame that is ours. (The frames of the caller and of requests hold the request itself.)"""
    shown: list[str] = []
    while error is not None:
        shown += [str(error), repr(error), repr(error.args), repr(vars(error))]
        report = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown += report.format_exception_only()
        for frame in report.stack:
            shown += [f"{frame.filename} {frame.name}: {frame.line}"]
            if "mlflow_secrets_auth" in frame.filename:
                shown += [f"{name}={value}" for name, value in (frame.locals or {}).items()]
        error = error.__cause__ or error.__context__
    return "\n".join(shown)


def outcome(action: Callable[[], object]) -> str:
    """Everything that shows of what ``action`` raises; nothing where it succeeds."""
    try:
        action()
    except Exception as error:
        return everything_about(error)
    return ""


def records_of(records: Iterable[logging.LogRecord]) -> str:
    """Every record with all of its attributes."""
    return "\n".join(f"{record.getMessage()} {vars(record)!r}" for record in records)


def pickled(thing: object) -> str:
    return pickle.dumps(thing).decode("latin1")


def outputs() -> str:
    """All that this package says of the settings in the environment, and of those settings given in code: errors,
    ``info``, ``doctor``, pickles, ``repr`` of every public object."""
    given = dict(os.environ)
    auth, provider = SecretsAuth(settings=given), SecretsAuthProvider(settings=given)
    shown = [
        outcome(lambda: headers_for(URL)),
        outcome(lambda: headers_for(URL, settings=given)),
        outcome(lambda: asyncio.run(headers_for_async(URL, settings=given))),
        outcome(lambda: refresh(settings=given)),
        _core.info(),
        _core.examine(),
        _core.examine_url(URL, []),
        pickled(auth),
        pickled(provider),
        pickled(provider.get_auth()),
    ]
    shown += map(repr, (auth, provider, provider.get_auth(), cache_info(), auth._core, SecretsAuth()))
    return "\n".join(shown)
