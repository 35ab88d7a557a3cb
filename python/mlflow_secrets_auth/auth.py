"""The ``requests`` side: set the header, and on 401, 403 or a login page try once more with a newer credential.

The way of a request, and of its redirects, through ``requests``:

- ``SecretsAuth.__call__`` gets the prepared request, and only once: not again for the hops of a redirect.
- The response hook runs on every hop, before ``requests`` copies that hop's request to make the next one. So this is
  where our headers, and the hook itself, are taken off when the next hop leads to another origin; ``requests`` itself
  strips ``Authorization`` only.
- After a resend in the hook, ``requests`` builds the next hop from the original request, not from the one that was
  resent. So whatever is changed on one is changed on both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlparse, urlsplit

from requests.auth import AuthBase
from requests.cookies import extract_cookies_to_jar
from requests.utils import requote_uri

from mlflow_secrets_auth import _core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requests import PreparedRequest, Response

_DENIED = (401, 403)
#: What MLflow's API has in its paths. There, an answer for browsers means that the credential was not accepted.
_API_PATHS = ("/api/", "/ajax-api/", "/v1/traces")
_LOGIN_WORDS = ("login", "signin", "oauth2", "authorize")


class SecretsAuth(AuthBase):
    """Puts the credential on a request: ``requests.get(url, auth=SecretsAuth())``.

    Which hosts get it is decided by ``MLFLOW_SECRETS_ALLOWED_HOSTS``; when that is unset, the host of the request
    itself. Settings are read from the environment when a request is made. Objects are cheap, and all of them with equal
    settings share one credential; they may be used from several threads.

    Args:
        settings: Takes the place of the environment: the same names, for example
            ``{"MLFLOW_SECRETS_AUTH_ENABLE": "vault", "VAULT_ADDR": "https://vault.example.com", ...}``.

    Raises (when a request is made):
        ConfigurationError: Settings are not usable, or the URL is one that could be read in two ways.
        HostNotAllowedError: The credential would go over plain http, which is not permitted for that host.
        SecretFetchError: The credential can't be fetched.
        SecretFormatError: What is stored is not a usable credential.
        CredentialRejectedError: An MLflow server answered its API with a login page.
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

    def __init__(self, auth: SecretsAuth, headers: tuple[tuple[str, str], ...], origin: str, generation: int) -> None:
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

    def is_on(self, request: PreparedRequest) -> bool:
        return all(request.headers.get(name) == value for name, value in self.headers)

    def _on_response(self, response: Response, **kwargs: Any) -> Response:
        if response.status_code in _DENIED or _asks_to_log_in(response):
            sending = _Sending(kwargs)
            del kwargs
            response = self._after_denial(response, sending)
            if _asks_to_log_in(response):
                response.close()
                raise _login_page(response)
        elif response.is_redirect:
            self._before_redirect(response, response.request)
        return response

    def _before_redirect(self, response: Response, *requests: PreparedRequest) -> None:
        """Lets go of the request where its next hop leads to another origin.

        For good: the hook goes too, so that a way back from there does not bring our credential in.
        """
        if _core.keeps_credential(response.url, _next_url(response)):
            return
        for request in requests:
            # Whatever stands there now: ours, or what requests put in its place for this origin.
            for name, _ in self.headers:
                request.headers.pop(name, None)
            self._hand_over(request, None)

    def _hand_over(self, request: PreparedRequest, hook: Any) -> None:
        """Puts ``hook`` in the place of ours. The dictionary is replaced, because requests is walking through it."""
        hooks = [hook if known == self.on_response else known for known in request.hooks["response"]]
        request.hooks = {**request.hooks, "response": [known for known in hooks if known is not None]}

    def _after_denial(self, response: Response, sending: _Sending) -> Response:
        """The answer to the same request with a newer credential.

        ``response`` itself where there is no newer one, or where the request can't be repeated faithfully.
        """
        request, core = response.request, self._auth._core
        if not _core.keeps_credential(self.origin, response.url):
            return response
        if self.is_on(request):
            newer = core.denied(self.origin, self.generation, _denial(response))
        else:
            # A redirect hop on which something else (netrc) took the place of our header: nothing of ours was rejected.
            newer = core.authorize(self.origin)
        if newer is None or newer.is_on(request) or not hasattr(response, "connection") or not _rewind(request):
            return response
        again = _resend(response, newer, sending)
        if again.status_code in _DENIED or _asks_to_log_in(again):
            core.denied_when_new(self.origin, newer.generation, _denial(again))
        # The next hop is built from the original request.
        newer.put_on(request)
        self._hand_over(request, newer.on_response)
        if again.is_redirect:
            newer._before_redirect(again, request, again.request)
        return again


class _Sending:
    """How requests sends: timeout, proxies and so on. No dictionary, which a traceback that shows local variables would
    show with the password of a proxy.
    """

    __slots__ = ("options",)

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options


def _next_url(response: Response) -> str:
    """Where requests would go next; empty where that can't be told for certain.

    The standard's way and the way of requests differ on some locations: ``////evil.example`` is a path to the former,
    and another host to the latter.
    """
    try:
        # As requests decodes it: header bytes came in as Latin-1 and are meant as UTF-8.
        location = response.headers["location"].encode("latin1").decode("utf-8", "replace")
        by_the_standard = urljoin(response.url, location)
        if location.startswith("//"):
            location = f"{urlsplit(response.url).scheme}:{location}"
        parts = urlparse(location)
        by_requests = requote_uri(parts.geturl())
        if not parts.netloc:
            by_requests = urljoin(response.url, by_requests)
    except ValueError:
        return ""
    return by_requests if _core.keeps_credential(by_the_standard, by_requests) else ""


def _asks_to_log_in(response: Response) -> bool:
    """Whether an API request was answered in the way that sends a browser to log in."""
    if response.status_code == 200:
        if not response.headers.get("content-type", "").lower().startswith("text/html"):
            return False
        # MLflow sends artifacts that are pages as attachments.
        return _is_api(urlsplit(response.url).path) and "content-disposition" not in response.headers
    if not response.is_redirect:
        return False
    path = urlsplit(response.url).path
    if not _is_api(path):
        return False
    target = _next_url(response)
    if not _core.keeps_credential(response.url, target):
        return True
    # A word that was there before the redirect (an artifact's name) says nothing.
    before, after = path.lower(), urlsplit(target).path.lower()
    return any(word in after and word not in before for word in _LOGIN_WORDS)


def _is_api(path: str) -> bool:
    return any(mark in path for mark in _API_PATHS)


def _denial(response: Response) -> int:
    """What the answer means in terms of the two ways to say no: a login page is a 401 in disguise."""
    return 403 if response.status_code == 403 else 401


def _login_page(response: Response) -> Exception:
    from mlflow_secrets_auth.errors import ConfigurationError, CredentialRejectedError

    what = f"a page (HTTP {response.status_code})"
    if response.is_redirect:
        try:
            what = f"a redirect to {_core.origin(_next_url(response))} (HTTP {response.status_code})"
        except ConfigurationError:
            what = f"a redirect to a malformed URL (HTTP {response.status_code})"
    return CredentialRejectedError(
        "tracking.login_page",
        f"{_core.origin(response.url)} did not take the credential: it answered an API request with {what},"
        " as for a browser that has to log in",
        "check that the stored credential is one that the server's API accepts, and what a proxy in front of it"
        f" expects; `mlflow-secrets-auth doctor --dry-run {_core.origin(response.url)}` tries it",
    )


def _rewind(request: Any) -> bool:
    """Whether the body can be sent again from where it began; a stream is put back there."""
    body = request.body
    if body is None or isinstance(body, (bytes, str)):
        return True
    if not isinstance(request._body_position, int):
        return False
    try:
        body.seek(request._body_position)
    except Exception:
        # Whatever a body of the user's own making raises: then the server's answer is the better news.
        return False
    return True


def _resend(response: Any, grant: _Grant, sending: _Sending) -> Response:
    """Sends the request again over the same adapter, as requests' own digest authentication does."""
    # Reading the rest gives the connection back to the pool.
    response.content  # noqa: B018
    response.close()
    request = response.request.copy()
    extract_cookies_to_jar(request._cookies, response.request, response.raw)  # type: ignore[no-untyped-call]
    request.prepare_cookies(request._cookies)
    grant.put_on(request)
    again: Response = response.connection.send(request, **sending.options)
    again.history.append(response)
    again.request = request
    return again
