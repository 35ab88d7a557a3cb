"""The configuration as this package understands it, for programs and tests. No network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_secrets_auth import _core
from mlflow_secrets_auth.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "enabled_providers",
    "get_allowed_hosts",
    "get_auth_header_name",
    "is_host_allowed",
    "is_provider_enabled",
]


def enabled_providers() -> list[str]:
    """The names of the enabled providers, in the order of their priority.

    Raises:
        ConfigurationError: A name or a boolean is not one.
    """
    return _core.provider_names()


def is_provider_enabled(name: str) -> bool:
    """Whether the provider ``name`` (``vault``, ``aws-secrets-manager``, ``azure-key-vault``) is enabled.

    Raises:
        ConfigurationError: As :func:`enabled_providers`.
    """
    return name in enabled_providers()


def get_allowed_hosts() -> list[str] | None:
    """The patterns of ``MLFLOW_SECRETS_ALLOWED_HOSTS``, or ``None`` when it is unset.

    Raises:
        ConfigurationError: A pattern is malformed, or the variable is set and names no host.
    """
    return _core.access_settings()[0]


def get_auth_header_name() -> str:
    """The header that carries the credential: ``Authorization`` unless ``MLFLOW_AUTH_HEADER_NAME`` says otherwise.

    Raises:
        ConfigurationError: It can't be the name of a header.
    """
    return _core.access_settings()[1]


def is_host_allowed(url: str, allowed_hosts: Iterable[str] | None) -> bool:
    """Whether a pattern matches the host that ``requests`` would dial for ``url``; always when there are no patterns.

    An odd URL (user name in it, backslash, and so on) is never allowed.

    Raises:
        ConfigurationError: A pattern is malformed.
    """
    from mlflow_secrets_auth.api import dialed

    if allowed_hosts is None:
        return True
    try:
        dialed_url = dialed(url)
    except ValueError:
        return False
    try:
        return _core.matches(dialed_url, list(allowed_hosts))
    except ConfigurationError as error:
        if error.code == "url.refused":
            return False
        raise
