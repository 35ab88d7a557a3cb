"""The ``requests`` side: set the header, and on 401 or 403 try once more with a newer credential.

The way of a request, and of its redirects, through ``requests``:

- ``SecretsAuth.__call__`` gets the prepared request, and only once: not again for the hops of a redirect.
- The response hook runs on every hop, before ``requests`` copies that hop's request to make the next one. So this is where
  our headers are taken off when the next hop leads to another origin; ``requests`` itself strips ``Authorization`` only.
- After a resend in the hook, ``requests`` builds the next hop from the original request, not from the one that was resent.
  So whatever is changed on one is changed on both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from requests.auth import AuthBase
from requests.cookies import extract_cookies_to_jar

from mlflow_secrets_auth import _core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requests import PreparedRequest, Response

_DENIED = (401, 403)


class SecretsAuth(AuthBase):
    """Puts the credential on a request: ``requests.get(url, auth=SecretsAuth())``.

    Which hosts get it is decided by ``MLFLOW_SECRETS_ALLOWED_HOSTS``; when that is unset, the host of the request itself.
    Settings are read from the environment when a request is made. Objects are cheap, and all of them with equal settings
    share one credential; they may be used from several threads.

    Args:
        settings: Takes the place of the environment: the same names, for example
            ``{"MLFLOW_SECRETS_AUTH_ENABLE": "vault", "VAULT_ADDR": "https://vault.example.com", ...}``.

    Raises (when a request is made):
        ConfigurationError: Settings are not usable, or the URL is one that could be read in two ways.
        HostNotAllowedError: The credential would go over plain http, which is not permitted for that host.
        SecretFetchError: The credential can't be fetched.
        SecretFormatError: What is stored is not a usable credential.
    """

    _own_request = True

    def __init__(self, *, settings: Mapping[str, Any] | None = None) -> None:
        self._core = _core.Authorizer(_Grant.bind(self), settings, self._own_request)
        # Looked up once: this is called for every request.
        self._authorize = self._core.authorize

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        grant = self._authorize(r.url or "")
        if grant is not None:
            grant.put_on(r)
            r.hooks["response"].append(grant.on_response)
        return r

    def __reduce__(self) -> tuple[Any, ...]:
        names = self._core.setting_names()
        if names is None:
            return (type(self), ())
        return (_lacking_settings, (names,))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class MlflowAuth(SecretsAuth):
    """What MLflow gets: without an allowlist, only its own tracking and registry servers receive the credential."""

    _own_request = False


def _lacking_settings(names: list[str]) -> SecretsAuth:
    """Unpickles an object that had settings given in code. They may hold secrets, so they do not travel."""
    from mlflow_secrets_auth.errors import ConfigurationError

    raise ConfigurationError(
        "config.missing",
        f"a copied SecretsAuth lacks the settings that were given in code: {', '.join(names)}",
        "make the object in the process that uses it, or set environment variables there",
    )


class _Grant:
    """One credential for one origin. Made by the core when either changes, and shared by all requests in between."""

    __slots__ = ("_auth", "generation", "headers", "on_response", "origin")

    def __init__(
        self, auth: SecretsAuth, headers: tuple[tuple[str, str], ...], origin: str, generation: int
    ) -> None:
        self._auth = auth
        self.headers = headers
        self.origin = origin
        self.generation = generation
        # Bound once, because it is needed for every request.
        self.on_response = self._on_response

    @classmethod
    def bind(cls, auth: SecretsAuth) -> Any:
        """A maker of grants that work for ``auth``."""
        return lambda headers, origin, generation: cls(auth, headers, origin, generation)

    def put_on(self, request: PreparedRequest) -> None:
        for name, value in self.headers:
            request.headers[name] = value

    def take_off(self, request: PreparedRequest) -> None:
        """Removes our headers where the request still has them with our values."""
        for name, value in self.headers:
            if request.headers.get(name) == value:
                del request.headers[name]

    def is_on(self, request: PreparedRequest) -> bool:
        return all(request.headers.get(name) == value for name, value in self.headers)

    def _on_response(self, response: Response, **kwargs: Any) -> Response:
        request = response.request
        if response.status_code in _DENIED:
            return self._after_denial(response, kwargs)
        if response.is_redirect:
            self._before_redirect(response, request)
        return response

    def _before_redirect(self, response: Response, *requests: PreparedRequest) -> None:
        """Takes our headers off before they would cross to another origin."""
        target = urljoin(response.url, _location(response))
        if not _core.keeps_credential(response.url, target):
            for request in requests:
                self.take_off(request)

    def _after_denial(self, response: Response, kwargs: dict[str, Any]) -> Response:
        """Asks for a newer credential, and sends the request again with it: once, and only if that can be done faithfully."""
        request = response.request
        if not self._is_ours(response) or not _can_be_resent(request) or not hasattr(response, "connection"):
            return response
        if self.is_on(request):
            newer = self._auth._core.denied(response.url, self.generation, response.status_code)
        else:
            # A redirect hop on which something else (netrc) took the place of our header: nothing of ours was rejected.
            newer = self._auth._core.authorize(response.url)
        if newer is None or not _rewind(request):
            return response
        again = _resend(response, newer, kwargs)
        if again.status_code in _DENIED and newer.is_on(again.request):
            self._auth._core.denied_when_new(again.url, newer.generation, again.status_code)
        # The next hop is built from the original request.
        newer.put_on(request)
        if again.is_redirect:
            newer._before_redirect(again, again.request, request)
        return again

    def _is_ours(self, response: Response) -> bool:
        """Whether the answer comes from the origin that this grant is for, or that origin's own https."""
        origin = self.origin
        return _core.keeps_credential(origin, response.url)


def _location(response: Response) -> str:
    # As requests decodes it: header bytes came in as Latin-1 and are meant as UTF-8.
    return response.headers["location"].encode("latin1").decode("utf-8", "replace")


def _can_be_resent(request: PreparedRequest) -> bool:
    body = request.body
    if body is None or isinstance(body, (bytes, str)):
        return True
    return isinstance(request._body_position, int) and hasattr(body, "seek")


def _rewind(request: PreparedRequest) -> bool:
    body = request.body
    if body is None or isinstance(body, (bytes, str)):
        return True
    try:
        body.seek(request._body_position)  # type: ignore[attr-defined]
    except (OSError, ValueError):
        return False
    return True


def _resend(response: Response, grant: _Grant, kwargs: dict[str, Any]) -> Response:
    """Sends the request again over the same adapter, as requests' own digest authentication does."""
    # Reading the rest gives the connection back to the pool.
    response.content  # noqa: B018
    response.close()
    request = response.request.copy()
    extract_cookies_to_jar(request._cookies, response.request, response.raw)  # type: ignore[no-untyped-call]
    request.prepare_cookies(request._cookies)
    grant.put_on(request)
    again: Response = response.connection.send(request, **kwargs)  # type: ignore[attr-defined]
    again.history.append(response)
    again.request = request
    return again
