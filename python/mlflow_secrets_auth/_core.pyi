"""The Rust core. Use the public modules instead; these names may change."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, final

__all__ = [
    "Authorizer",
    "__version__",
    "access_settings",
    "cache_info",
    "clear_cache",
    "error_codes",
    "examine",
    "examine_url",
    "info",
    "keeps_credential",
    "matches",
    "origin",
    "provider_names",
    "variables",
]

__version__: str

_Headers = tuple[tuple[str, str], ...]

class _Variable(TypedDict):
    name: str
    section: str
    summary: str
    documentation: str
    default: str
    accepts: str
    example: str
    secret: bool
    required: bool

@final
class Authorizer:
    def __new__(
        cls,
        make_grant: Callable[[_Headers, str, int], Any],
        settings: Mapping[str, Any] | None = None,
        own_request: bool = False,
    ) -> Authorizer: ...
    def authorize(self, url: str) -> Any | None: ...
    def denied(self, url: str, generation: int, status: int) -> Any | None: ...
    def denied_when_new(self, url: str, generation: int, status: int) -> None: ...
    def refresh(self) -> None: ...
    def setting_names(self) -> list[str] | None: ...

def info() -> str: ...
def examine() -> str: ...
def examine_url(url: str, own_urls: list[str]) -> str: ...
def provider_names() -> list[str]: ...
def access_settings() -> tuple[list[str] | None, str]: ...
def matches(url: str, patterns: list[str]) -> bool: ...
def origin(url: str) -> str: ...
def keeps_credential(url: str, next_url: str) -> bool: ...
def clear_cache() -> None: ...
def cache_info() -> dict[str, Any]: ...
def variables() -> list[_Variable]: ...
def error_codes() -> list[tuple[str, str, str]]: ...
