"""The part of ``doctor`` that talks to the MLflow server: through MLflow's own code where MLflow is installed."""

from __future__ import annotations

import importlib.util
import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_secrets_auth import _core
from mlflow_secrets_auth._findings import Finding, fail, passed, skip, warn

if TYPE_CHECKING:
    import requests

#: A cheap read that every MLflow server has, and that needs a user where the server knows users.
_ENDPOINT = "/api/2.0/mlflow/experiments/search"
_QUESTION = {"max_results": 1}
_TIMEOUT_SEC = 10
_LOGIN_WORDS = ("login", "signin", "oauth2", "authorize")
_NAME = "mlflow_secrets_auth"
_MEND = "mend what is named above, then run `mlflow-secrets-auth doctor --dry-run` again"


def examine(url: str, why_without: str | None) -> list[Finding]:
    """Whether ``url`` may get the credential, and what the server does without and, unless ``why_without``, with it."""
    if url.startswith("databricks") or url.startswith("uc:"):
        hint = "MLflow signs in to Databricks by itself; unset MLFLOW_TRACKING_AUTH there"
        return [fail("server.databricks", "that is Databricks, for which MLflow never asks this package", hint)]
    decision: Finding = json.loads(_core.examine_url(url, _own_urls(url)))
    if decision["status"] != "pass":
        return [decision, skip("server.accepts", "needs a URL that may get the credential", _MEND)]
    url = url.rstrip("/")
    without = _ask_without(url)
    if not isinstance(without, dict):
        with_it = _ask_with(url) if why_without is None else skip("server.accepts", why_without, _MEND)
        return [decision, _openness(url, without), with_it]
    return [decision, without, skip("server.accepts", "needs a server that can be reached", _MEND)]


def _own_urls(url: str) -> list[str]:
    uris = [os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")]
    # With neither set, the URL on the command line is the only server there is.
    return [uri for uri in uris if uri] or [url]


def _ask_without(url: str) -> requests.Response | Finding:
    """The server's answer to a request without a credential."""
    import requests

    try:
        # An auth object that does nothing, because without any requests would look into ~/.netrc.
        return requests.post(
            url + _ENDPOINT, json=_QUESTION, auth=lambda r: r, timeout=_TIMEOUT_SEC, allow_redirects=False
        )
    except requests.RequestException as error:
        return _unreachable(url, error)


def _ask_with(url: str) -> Finding:
    """What the server says to a request that carries the credential."""
    import requests

    from mlflow_secrets_auth.errors import SecretsAuthError

    ask = _ask_as_mlflow if importlib.util.find_spec("mlflow") else _ask_as_requests
    try:
        return _acceptance(url, ask(url))
    except Exception as error:
        # MLflow wraps what we raise into an exception of its own, and keeps ours as the context.
        context = error.__context__
        cause = context if isinstance(context, (SecretsAuthError, requests.RequestException)) else error
        if isinstance(cause, SecretsAuthError):
            return fail(cause.code, cause.message, cause.hint)
        return _unreachable(url, cause)


def _ask_as_mlflow(url: str) -> requests.Response:
    import mlflow
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    if _own_urls(url) == [url]:
        mlflow.set_tracking_uri(url)
    credentials = get_default_host_creds(url)
    credentials.auth = _NAME
    return http_request(  # type: ignore[no-any-return]
        credentials,
        _ENDPOINT,
        "POST",
        json=_QUESTION,
        max_retries=0,
        timeout=_TIMEOUT_SEC,
        raise_on_status=False,
        allow_redirects=False,
    )


def _ask_as_requests(url: str) -> requests.Response:
    import requests

    from mlflow_secrets_auth.auth import SecretsAuth

    return requests.post(
        url + _ENDPOINT, json=_QUESTION, auth=SecretsAuth(), timeout=_TIMEOUT_SEC, allow_redirects=False
    )


def _unreachable(url: str, error: BaseException) -> Finding:
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        issuer = _core.certificate_issuer(url)
        signed = f": its certificate is signed by {issuer}, which is not trusted here, or not made for this host"
        hint = "name the CA that signs its certificate in REQUESTS_CA_BUNDLE, if that is a signer that you trust"
        message = f"the TLS connection to {url} failed{signed if issuer else ''}"
        return fail("server.tls", message, hint, server=url, issuer=issuer)
    what = "timed out" if isinstance(error, requests.Timeout) else "failed"
    hint = "check the URL, that the server is running, and that this machine may reach it"
    return fail("server.unreachable", f"connecting to {url} {what} ({type(error).__name__})", hint, server=url)


def _facts(url: str, answer: requests.Response) -> dict[str, Any]:
    return {"server": url, "status": answer.status_code, "duration_ms": int(answer.elapsed.total_seconds() * 1000)}


def _openness(url: str, answer: requests.Response) -> Finding:
    status, facts = answer.status_code, _facts(url, answer)
    if status in (401, 403) or _is_login(answer):
        return passed("server.protected", f"{url} refuses requests without a credential (HTTP {status})", **facts)
    hint = "if it should be protected, check the server's authentication"
    return warn("server.open", f"{url} answers without a credential (HTTP {status})", hint, **facts)


def _acceptance(url: str, answer: requests.Response) -> Finding:
    status, facts = answer.status_code, _facts(url, answer)
    if _is_login(answer):
        hint = "the server sends browsers to log in; ask for a token or a user that its API accepts"
        return fail("server.login_page", f"{url} answers with a login page (HTTP {status})", hint, **facts)
    if status == 200:
        return passed("server.accepts", f"{url} accepts the credential, after {facts['duration_ms']} ms", **facts)
    if status in (401, 403):
        hint = "check that the stored credential is the server's, and the provider's auth mode (bearer, basic or raw)"
        return fail("server.denied", f"{url} refuses the credential (HTTP {status})", hint, **facts)
    if answer.is_redirect:
        target = urlsplit(answer.headers.get("location", ""))
        hint = "use the address that it redirects to, and permit that one"
        where = f"{target.scheme}://{target.hostname}"
        return fail("server.redirects", f"{url} redirects to {where}", hint, **facts)
    hint = "check that the URL is that of an MLflow tracking server, without the path of a page"
    return fail("server.unexpected", f"{url} answers HTTP {status}", hint, **facts)


def _is_login(answer: requests.Response) -> bool:
    """Whether this is a page for a person to log in, or the way to one."""
    if answer.is_redirect:
        path = urlsplit(answer.headers.get("location", "")).path.lower()
        return any(word in path for word in _LOGIN_WORDS)
    return answer.status_code == 200 and "text/html" in answer.headers.get("content-type", "")
