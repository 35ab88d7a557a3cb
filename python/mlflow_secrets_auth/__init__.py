"""The right credential on every MLflow request, from the secrets manager that you already have.

MLflow uses this package by itself once ``MLFLOW_TRACKING_AUTH=mlflow_secrets_auth`` is set. The names below are for
programs that send requests of their own. Importing the package imports neither ``mlflow`` nor ``requests``.
"""

from __future__ import annotations

# Type checkers know this name. Importing `typing` for it would take most of this package's import time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mlflow_secrets_auth._core import __version__
    from mlflow_secrets_auth.api import (
        CacheEntry,
        CacheInfo,
        cache_info,
        clear_cache,
        headers_for,
        headers_for_async,
        refresh,
    )
    from mlflow_secrets_auth.auth import SecretsAuth
    from mlflow_secrets_auth.errors import (
        ConfigurationError,
        CredentialRejectedError,
        HostNotAllowedError,
        SecretFetchError,
        SecretFormatError,
        SecretsAuthError,
    )
    from mlflow_secrets_auth.provider import SecretsAuthProvider, SecretsAuthProviderFactory

__all__ = [
    "CacheEntry",
    "CacheInfo",
    "ConfigurationError",
    "CredentialRejectedError",
    "HostNotAllowedError",
    "SecretFetchError",
    "SecretFormatError",
    "SecretsAuth",
    "SecretsAuthError",
    "SecretsAuthProvider",
    "SecretsAuthProviderFactory",
    "__version__",
    "cache_info",
    "clear_cache",
    "headers_for",
    "headers_for_async",
    "refresh",
]

_HOMES = {
    "CacheEntry": "api",
    "CacheInfo": "api",
    "ConfigurationError": "errors",
    "CredentialRejectedError": "errors",
    "HostNotAllowedError": "errors",
    "SecretFetchError": "errors",
    "SecretFormatError": "errors",
    "SecretsAuth": "auth",
    "SecretsAuthError": "errors",
    "SecretsAuthProvider": "provider",
    "SecretsAuthProviderFactory": "provider",
    "__version__": "_core",
    "cache_info": "api",
    "clear_cache": "api",
    "headers_for": "api",
    "headers_for_async": "api",
    "refresh": "api",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
