"""What MLflow loads through the entry point ``mlflow.request_auth_provider``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_secrets_auth.auth import SecretsAuth


class SecretsAuthProvider(RequestAuthProvider):
    """MLflow's way to the credential: chosen by ``MLFLOW_TRACKING_AUTH=mlflow_secrets_auth``.

    MLflow builds every installed provider at its first request, and calls :meth:`get_auth` for each request, without
    a URL. So neither does any work: the credential is fetched when ``requests`` hands over the prepared request.

    Args:
        settings: Takes the place of the environment; the same names.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self._settings = settings
        self._auth: SecretsAuth | None = None

    # MLflow's abstract methods have no annotations, and pyright reads their empty bodies as `-> None`.
    def get_name(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``mlflow_secrets_auth``, as it stands in ``MLFLOW_TRACKING_AUTH``."""
        return "mlflow_secrets_auth"

    def get_auth(self) -> SecretsAuth:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The auth object for ``requests``. No I/O."""
        auth = self._auth
        if auth is None:
            # Imported here, so that building the provider costs nothing.
            from mlflow_secrets_auth.auth import MlflowAuth

            auth = self._auth = MlflowAuth(settings=self._settings)
        return auth

    def get_request_auth(self, url: str) -> SecretsAuth:
        """The auth object for a request to ``url``; it decides when it sees the request."""
        return self.get_auth()

    def __reduce__(self) -> tuple[Any, ...]:
        # Settings may hold secrets: a copy has to be given its own.
        if self._settings is None:
            return (type(self), ())
        from mlflow_secrets_auth.auth import _lacking_settings

        return (_lacking_settings, (sorted(self._settings),))


#: The older, documented name.
SecretsAuthProviderFactory = SecretsAuthProvider
