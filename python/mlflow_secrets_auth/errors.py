"""The exceptions. Their text is ``code: what happened, where`` and a second line ``hint: what to do``.

They never derive from those of ``requests``, because MLflow would relabel them, and never hold a secret.
"""

from __future__ import annotations


class SecretsAuthError(Exception):
    """Base of everything that this package raises on purpose.

    Its text is for people; programs look at the class and the code::

        try:
            headers_for(url)
        except SecretsAuthError as error:
            log.error("no credential: %s; %s", error.code, error.hint)

    Attributes:
        code: A stable name for the failure, such as ``vault.permission_denied``; the documentation explains each.
        message: What happened, and where.
        hint: What to do about it.
    """

    code: str
    message: str
    hint: str

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.message}\nhint: {self.hint}"


class ConfigurationError(SecretsAuthError):
    """A setting or a URL is not usable. Nothing was sent."""


class HostNotAllowedError(SecretsAuthError):
    """The host may not get the credential in this way, for example over plain http. Nothing was sent."""


class SecretFetchError(SecretsAuthError):
    """The secret could not be read from any enabled backend."""


class CredentialRejectedError(SecretsAuthError):
    """The server did not take the credential, and did not say so plainly: it answered with a login page."""


class SecretFormatError(SecretsAuthError):
    """The secret was read, but is not a usable credential."""
