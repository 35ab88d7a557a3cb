"""What a check found: the same shape that the core's checks have."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class Finding(TypedDict):
    """One check. Every one that did not pass has a hint."""

    status: Literal["pass", "warn", "fail", "skip"]
    code: str
    message: str
    hint: str | None
    #: The same for programs, by name; what there is depends on the code.
    facts: dict[str, Any]


def passed(code: str, message: str, /, **facts: Any) -> Finding:
    """It is as it should be."""
    return {"status": "pass", "code": code, "message": message, "hint": None, "facts": facts}


def warn(code: str, message: str, hint: str, /, **facts: Any) -> Finding:
    """It works, and deserves a look."""
    return {"status": "warn", "code": code, "message": message, "hint": hint, "facts": facts}


def fail(code: str, message: str, hint: str, /, **facts: Any) -> Finding:
    """It does not work."""
    return {"status": "fail", "code": code, "message": message, "hint": hint, "facts": facts}


def skip(code: str, message: str, hint: str, /, **facts: Any) -> Finding:
    """It could not be checked; the message says what it needs."""
    return {"status": "skip", "code": code, "message": message, "hint": hint, "facts": facts}
