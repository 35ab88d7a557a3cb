"""Where the credential may go: H1, H2, H4 to H7 of the promises. H3 is in test_urls.py."""

from __future__ import annotations

import contextlib
import logging

import mlflow
import pytest
import requests

from conftest import Configure
from loopback import Answer, Loopback, Request, Rerouted, VaultLike
from mlflow_secrets_auth import (
    ConfigurationError,
    CredentialRejectedError,
    HostNotAllowedError,
    SecretsAuth,
)
from servers import MlflowServer

HOME = "https://mlflow.example.com"
REDIRECTS = [301, 302, 303, 307, 308]


def saw_nothing_of_ours(server: Loopback) -> bool:
    """Whether no value of any header of any request holds a token of the tests."""
    values = [value for request in server.requests for value in request.headers.values()]
    return not any("canary" in value for value in values)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage() for r in caplog.records if r.name == "mlflow_secrets_auth.auth" and r.levelno == logging.WARNING
    ]


# H1


def artifact_server(loopback: Loopback) -> None:
    """Answers as MLflow's artifact service does: a listing, and a file's text."""
    loopback.rule = lambda request: Answer.json({"files": []}) if "?" in request.path else Answer(body=b"foreign text")


def test_h1_an_artifact_url_on_another_host(
    signed_in: MlflowServer, loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    """H1: `mlflow.artifacts.load_text` of a foreign host carries nothing of ours; the tracking server still gets it."""
    artifact_server(loopback)
    url = f"{loopback.url}/api/2.0/mlflow-artifacts/artifacts/1/notes.txt"
    assert mlflow.artifacts.load_text(url) == "foreign text"
    assert loopback.requests and set(loopback.header("Authorization")) == {None}
    assert len(warnings(caplog)) == 1
    mlflow.search_experiments()


def test_h1_mlflow_artifacts_uri_with_another_host(signed_in: MlflowServer, loopback: Loopback) -> None:
    """H1: `mlflow-artifacts://other-host` carries nothing of ours."""
    artifact_server(loopback)
    assert mlflow.artifacts.load_text(f"mlflow-artifacts://127.0.0.1:{loopback.port}/1/notes.txt") == "foreign text"
    assert loopback.requests and set(loopback.header("Authorization")) == {None}


def test_h1_a_run_whose_artifacts_are_elsewhere(signed_in: MlflowServer, loopback: Loopback) -> None:
    """H1: the server names the artifact location, and that does not make it one of ours."""
    artifact_server(loopback)
    location = f"{loopback.url}/api/2.0/mlflow-artifacts/artifacts/x"
    experiment = mlflow.create_experiment(f"elsewhere-{loopback.port}", artifact_location=location)
    with mlflow.start_run(experiment_id=experiment):
        mlflow.log_text("text", "notes.txt")
    assert [r.method for r in loopback.requests] == ["PUT"]
    assert loopback.header("Authorization") == [None]


def test_h1_the_registry_has_an_origin_of_its_own(
    vault_like: VaultLike, loopback: Loopback, second_loopback: Loopback, configure: Configure
) -> None:
    """H1: without an allowlist, tracking and registry server get the credential, as MLflow names them now."""
    configure(vault_like.settings(MLFLOW_TRACKING_AUTH="mlflow_secrets_auth"))
    mlflow.set_tracking_uri(loopback.url)
    mlflow.set_registry_uri(second_loopback.url)
    try:
        mlflow.search_experiments()
        mlflow.search_registered_models()
    finally:
        mlflow.set_registry_uri("")
    assert set(loopback.header("Authorization")) == {"Bearer first"}
    assert set(second_loopback.header("Authorization")) == {"Bearer first"}


def test_h1_the_allowlist_decides_alone(vault_like: VaultLike, loopback: Loopback, configure: Configure) -> None:
    """H1: an allowlist that does not name the tracking server keeps the credential from it."""
    configure(
        vault_like.settings(
            MLFLOW_TRACKING_AUTH="mlflow_secrets_auth", MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.example.com"
        )
    )
    mlflow.set_tracking_uri(loopback.url)
    mlflow.search_experiments()
    assert set(loopback.header("Authorization")) == {None}
    assert vault_like.reads == 0


def test_h1_a_tracking_uri_with_letters_beyond_ascii(
    vault_like: VaultLike, loopback: Loopback, configure: Configure
) -> None:
    """H1, H4: the tracking URI as a user writes it and the URL as requests prepares it are one origin."""
    from mlflow_secrets_auth.auth import MlflowAuth

    configure(vault_like.settings(MLFLOW_TRACKING_AUTH="mlflow_secrets_auth"))
    mlflow.set_tracking_uri("https://bücher.example")
    Rerouted(loopback).session().get("https://bücher.example/x", auth=MlflowAuth())
    assert loopback.header("Authorization") == ["Bearer first"]


# H2


@pytest.mark.parametrize("after_resend", [False, True], ids=["at-once", "after-resend"])
@pytest.mark.parametrize("header", ["Authorization", "X-MLflow-Auth"])
@pytest.mark.parametrize(
    "target", ["https://other.example.com/", "https://mlflow.example.com:8443/", "http://mlflow.example.com/"]
)
@pytest.mark.parametrize("status", REDIRECTS)
def test_h2_nothing_crosses_an_origin(
    vault_like: VaultLike,
    loopback: Loopback,
    second_loopback: Loopback,
    configure: Configure,
    status: int,
    target: str,
    header: str,
    after_resend: bool,
) -> None:
    """H2: to another host, another port, from https to http; also where the other origin is itself allowed."""
    vault_like.fields = {"token": "canary-1"}
    configure(
        vault_like.settings(
            MLFLOW_AUTH_HEADER_NAME=header,
            MLFLOW_SECRETS_ALLOWED_HOSTS="*",
            MLFLOW_SECRETS_ALLOW_HTTP="true",
        )
    )

    def rule(request: Request) -> Answer:
        if after_resend and "canary-1" in request.headers[header.lower()]:
            vault_like.fields = {"token": "canary-2"}
            return Answer(401)
        return Answer.redirect(target, status)

    loopback.rule = rule
    # The first server is known with its port, so that plain http to the same name is told apart.
    session = Rerouted(second_loopback, {"mlflow.example.com:443": loopback}).session()
    answer = session.post(f"{HOME}:443/", data=b"body", auth=SecretsAuth())
    assert answer.status_code == 200
    assert len(loopback.requests) == (2 if after_resend else 1)
    assert "canary" in (loopback.header(header)[-1] or "")
    assert len(second_loopback.requests) == 1
    assert saw_nothing_of_ours(second_loopback)


@pytest.mark.parametrize("header", ["Authorization", "X-MLflow-Auth"])
def test_h2_resend_then_same_origin_then_other_origin(
    vault_like: VaultLike, loopback: Loopback, second_loopback: Loopback, configure: Configure, header: str
) -> None:
    """H2: the credential of the resend is the one that has to come off, two hops later."""
    vault_like.fields = {"token": "canary-1"}
    configure(vault_like.settings(MLFLOW_AUTH_HEADER_NAME=header))

    def rule(request: Request) -> Answer:
        if "canary-1" in request.headers[header.lower()]:
            vault_like.fields = {"token": "canary-2"}
            return Answer(401)
        return Answer.redirect("/next" if request.path == "/" else "https://other.example.com/")

    loopback.rule = rule
    session = Rerouted(loopback, {"other.example.com": second_loopback}).session()
    session.get(f"{HOME}/", auth=SecretsAuth())
    assert [r.path for r in loopback.requests] == ["/", "/", "/next"]
    assert "canary-2" in (loopback.header(header)[-1] or "")
    assert len(second_loopback.requests) == 1
    assert saw_nothing_of_ours(second_loopback)


def test_h2_all_headers_of_the_secret_stay_behind(
    vault_like: VaultLike, loopback: Loopback, second_loopback: Loopback, configure: Configure
) -> None:
    """H2: also those that the secret itself names."""
    vault_like.fields = {"headers": {"X-One": "canary-1", "Cookie": "session=canary-2"}}
    configure(vault_like.settings())
    loopback.rule = lambda _: Answer.redirect("//other.example.com/")
    session = Rerouted(loopback, {"other.example.com": second_loopback}).session()
    session.get(f"{HOME}/", auth=SecretsAuth())
    assert loopback.header("X-One") == ["canary-1"]
    assert len(second_loopback.requests) == 1
    assert saw_nothing_of_ours(second_loopback)


@pytest.mark.parametrize("status", [401, 403])
def test_h2_a_denial_by_another_origin_is_not_ours(
    vault_like: VaultLike, loopback: Loopback, second_loopback: Loopback, configure: Configure, status: int
) -> None:
    """H2, R6: the other host's 401 is handed on as it is: nothing is added, fetched, rejected or resent."""
    vault_like.mint("canary")
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="*"))
    loopback.rule = lambda _: Answer.redirect("https://other.example.com/")
    second_loopback.rule = lambda _: Answer(status)
    session = Rerouted(loopback, {"other.example.com": second_loopback}).session()
    assert session.get(f"{HOME}/", auth=SecretsAuth()).status_code == status
    assert (len(loopback.requests), len(second_loopback.requests), vault_like.reads) == (1, 1, 1)
    assert saw_nothing_of_ours(second_loopback)
    session.get(f"{HOME}/", auth=SecretsAuth())
    assert loopback.header("Authorization") == ["Bearer canary-1"] * 2


def test_h2_the_way_back_brings_nothing(
    vault_like: VaultLike, loopback: Loopback, second_loopback: Loopback, configure: Configure
) -> None:
    """H2: another origin that redirects back to ours does not get to use our credential there."""
    vault_like.fields = {"token": "canary-1"}
    configure(vault_like.settings())
    loopback.rule = lambda request: (
        Answer.redirect("https://other.example.com/") if request.path == "/" else Answer(401)
    )
    second_loopback.rule = lambda _: Answer.redirect(f"{HOME}/delete-everything", 307)
    session = Rerouted(loopback, {"other.example.com": second_loopback}).session()
    assert session.post(f"{HOME}/", auth=SecretsAuth()).status_code == 401
    assert loopback.header("Authorization") == ["Bearer canary-1", None]
    assert vault_like.reads == 1


@pytest.mark.parametrize("header", ["Authorization", "X-MLflow-Auth"])
def test_h2_the_one_exception_is_the_same_hosts_own_https(
    vault_like: VaultLike, loopback: Loopback, second_loopback: Loopback, configure: Configure, header: str
) -> None:
    """H2: from http on port 80 to https on port 443 of the same host the credential stays, and a 401 there is ours."""
    configure(
        vault_like.settings(MLFLOW_AUTH_HEADER_NAME=header, MLFLOW_SECRETS_ALLOWED_HOSTS="http://mlflow.example.com")
    )
    loopback.rule = lambda request: Answer.redirect("https://mlflow.example.com:443/")
    current = "first" if header != "Authorization" else "Bearer first"

    def secure(request: Request) -> Answer:
        if request.headers.get(header.lower()) == current:
            vault_like.fields = {"token": "second"}
            return Answer(401)
        return Answer()

    second_loopback.rule = secure
    session = Rerouted(loopback, {"mlflow.example.com:443": second_loopback}).session()
    assert session.get("http://mlflow.example.com/", auth=SecretsAuth()).status_code == 200
    assert second_loopback.header(header) == [current, current.replace("first", "second")]


@pytest.mark.parametrize(
    "location", ["https://[mlflow.example.com/", "https://mlflow.example.com\\@other.example.com/"]
)
def test_h2_a_location_that_can_not_be_read_for_certain_gets_nothing(
    vault_like: VaultLike, loopback: Loopback, configure: Configure, location: str
) -> None:
    """H2: doubt about the next hop ends in no credential there. (Some of these requests itself refuses.)"""
    configure(vault_like.settings(MLFLOW_AUTH_HEADER_NAME="X-MLflow-Auth"))
    loopback.rule = lambda request: Answer.redirect(location) if len(loopback.requests) == 1 else Answer()
    request = requests.Request("GET", f"{HOME}/", auth=SecretsAuth()).prepare()
    assert request.headers["X-MLflow-Auth"] == "first"
    with contextlib.suppress(ValueError):
        # The servers of both names are this one.
        Rerouted(loopback).session().send(request)
    assert "X-MLflow-Auth" not in request.headers
    assert loopback.header("X-MLflow-Auth")[1:] in ([], [None])


# H4


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("*.x.com", "https://a.x.com/", True),
        ("*.x.com", "https://A.X.COM./", True),
        ("*.x.com", "https://a.b.x.com:8443/", True),
        ("*.x.com", "https://x.com/", False),
        ("*.x.com", "https://evilx.com/", False),
        ("*.x.com", "https://a.x.com.evil.com/", False),
        ("A.x.com.", "https://a.x.com/", True),
        ("[0:0:0:0:0:0:0:1]", "https://[::1]/", True),
        ("2001:db8::1", "https://[2001:DB8:0:0::1]/", True),
        ("[2001:db8::1]:8443", "https://[2001:db8::1]/", False),
        ("bücher.example", "https://xn--bcher-kva.example/", True),
        ("xn--bcher-kva.example", "https://BÜCHER.example/", True),
        ("*.bücher.example", "https://a.bücher.example/", True),
    ],
)
def test_h4_hosts_are_normalised_before_matching(
    vault_like: VaultLike, loopback: Loopback, configure: Configure, pattern: str, url: str, allowed: bool
) -> None:
    """H4: trailing dot, case, forms of IPv6, IDNA; and a wildcard label is a label, not a suffix."""
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS=pattern))
    Rerouted(loopback).session().get(url, auth=SecretsAuth())
    assert loopback.header("Authorization") == ["Bearer first" if allowed else None]


@pytest.mark.parametrize("url", ["https://[fe80::1%25lo]/", "https://[fe80::1%lo]/", "https://[::1%251]/"])
def test_h4_zone_ids_are_refused(vault_like: VaultLike, loopback: Loopback, configure: Configure, url: str) -> None:
    """H4: even where everything is allowed, and before anything is sent."""
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="*"))
    with pytest.raises(ConfigurationError) as caught:
        Rerouted(loopback).session().get(url, auth=SecretsAuth())
    assert caught.value.code == "url.refused"
    assert (loopback.requests, vault_like.requests) == ([], [])


# H5


@pytest.mark.parametrize(
    ("settings", "url", "permitted"),
    [
        ({}, "http://localhost:5000/", True),
        ({}, "http://127.0.0.9/", True),
        ({}, "http://[::1]/", True),
        ({}, "http://mlflow.example.com/", False),
        ({"MLFLOW_SECRETS_ALLOW_HTTP": "true"}, "http://mlflow.example.com/", True),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "mlflow.example.com"}, "http://mlflow.example.com/", True),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "*.local"}, "http://mlflow.local/", True),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "*.x.local"}, "http://mlflow.x.local/", False),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "http://*.example.com"}, "http://mlflow.example.com/", True),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "*.example.com"}, "http://mlflow.example.com/", False),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "*"}, "http://mlflow.example.com/", False),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "*,mlflow.example.com"}, "http://mlflow.example.com/", True),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "*", "MLFLOW_SECRETS_ALLOW_HTTP": "1"}, "http://a.b/", True),
        ({"MLFLOW_SECRETS_ALLOWED_HOSTS": "*", "MLFLOW_SECRETS_ON_ERROR": "skip"}, "http://a.b/", False),
    ],
)
def test_h5_plain_http(
    vault_like: VaultLike,
    loopback: Loopback,
    configure: Configure,
    settings: dict[str, str],
    url: str,
    permitted: bool,
) -> None:
    """H5: who may get the credential over plain http; else an error that names the settings, and nothing is sent."""
    configure(vault_like.settings(**settings))
    session = Rerouted(loopback).session()
    if permitted:
        session.get(url, auth=SecretsAuth())
        assert loopback.header("Authorization") == ["Bearer first"]
        return
    with pytest.raises(HostNotAllowedError) as caught:
        session.get(url, auth=SecretsAuth())
    assert caught.value.code == "host.plain_http"
    assert "MLFLOW_SECRETS_ALLOWED_HOSTS" in caught.value.hint
    assert "MLFLOW_SECRETS_ALLOW_HTTP" in caught.value.hint
    assert (loopback.requests, vault_like.requests) == ([], [])


# H6


def test_h6_an_origin_that_is_not_allowed(
    vault_like: VaultLike, loopback: Loopback, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    """H6: the request goes on with what MLflow put there itself; one WARNING per host; no backend call."""
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.example.com"))
    session, auth = Rerouted(loopback).session(), SecretsAuth()
    for url in (
        "https://a.example.com/1",
        "https://a.example.com/2",
        "http://a.example.com:81/3",
        "https://b.example.com/",
    ):
        session.get(url, headers={"Authorization": "Bearer of-mlflow"}, auth=auth)
    assert loopback.header("Authorization") == ["Bearer of-mlflow"] * 4
    assert vault_like.requests == []
    messages = warnings(caplog)
    assert len(messages) == 2
    assert "https://a.example.com" in messages[0] and "https://b.example.com" in messages[1]


# H7


PAGE = Answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Login</html>")
LOGIN_PAGES = {
    "other-origin": Answer.redirect("https://idp.example.com/start?state=canary-state"),
    "login": Answer.redirect("/auth/login?next=/"),
    "signin": Answer.redirect("/SignIn", 303),
    "oauth2": Answer.redirect("/oauth2/start", 307),
    "authorize": Answer.redirect("/realms/x/authorize", 301),
    "page": PAGE,
}
API_PATHS = ["/api/2.0/mlflow/experiments/search", "/prefix/ajax-api/2.0/x", "/v1/traces"]


@pytest.mark.parametrize("path", API_PATHS)
@pytest.mark.parametrize("kind", LOGIN_PAGES)
def test_h7_a_login_page_is_a_denial(
    vault_like: VaultLike,
    loopback: Loopback,
    second_loopback: Loopback,
    configure: Configure,
    kind: str,
    path: str,
) -> None:
    """H7: the credential is fetched again, the first request is resent once, and then the error names the host."""
    configure(vault_like.settings())
    loopback.rule = lambda _: LOGIN_PAGES[kind]
    vault_like.mint()
    session = Rerouted(loopback, {"idp.example.com": second_loopback}).session()
    with pytest.raises(CredentialRejectedError) as caught:
        session.post(f"{HOME}{path}", json={"a": 1}, auth=SecretsAuth())
    assert caught.value.code == "tracking.login_page"
    assert HOME in caught.value.message
    assert ("https://idp.example.com" in caught.value.message) is (kind == "other-origin")
    assert "canary" not in str(caught.value)
    assert second_loopback.requests == []
    assert [(r.method, r.path, r.body) for r in loopback.requests] == [("POST", path, b'{"a": 1}')] * 2
    assert loopback.header("Authorization") == ["Bearer token-1", "Bearer token-2"]


@pytest.mark.parametrize("allow_redirects", ["true", "false"])
@pytest.mark.parametrize("kind", ["other-origin", "login", "page"])
def test_h7_in_mlflow_with_redirects_on_and_off(
    vault_like: VaultLike,
    loopback: Loopback,
    second_loopback: Loopback,
    configure: Configure,
    kind: str,
    allow_redirects: str,
) -> None:
    """H7: a rotation behind an OAuth proxy is survived; a credential that is refused for good ends in our error."""
    answers = {**LOGIN_PAGES, "other-origin": Answer.redirect(second_loopback.url + "/start")}
    configure(
        vault_like.settings(
            MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
            MLFLOW_ALLOW_HTTP_REDIRECTS=allow_redirects,
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        )
    )
    mlflow.set_tracking_uri(loopback.url)
    loopback.rule = lambda request: Answer() if request.headers["authorization"] == "Bearer second" else answers[kind]
    vault_like.fields = {"token": "first"}
    SecretsAuth()(requests.Request("GET", loopback.url).prepare())
    vault_like.fields = {"token": "second"}
    assert mlflow.search_experiments() == []
    assert loopback.header("Authorization") == ["Bearer first", "Bearer second"]

    loopback.rule = lambda _: answers[kind]
    vault_like.mint()
    with pytest.raises(mlflow.MlflowException) as caught:
        mlflow.search_experiments()
    assert "tracking.login_page" in str(caught.value)
    assert loopback.url in str(caught.value)
    assert second_loopback.requests == []


def test_h7_an_unchanged_credential_is_not_sent_twice(
    vault_like: VaultLike, loopback: Loopback, configure: Configure
) -> None:
    """H7, R6: nothing newer, nothing resent."""
    configure(vault_like.settings())
    loopback.rule = lambda _: PAGE
    for _ in range(3):
        with pytest.raises(CredentialRejectedError):
            Rerouted(loopback).session().get(f"{HOME}/api/x", auth=SecretsAuth())
    assert len(loopback.requests) == 3


@pytest.mark.parametrize(
    "answer",
    [
        Answer.redirect("/api/2.0/elsewhere"),
        Answer.redirect("/api/2.0/artifacts/my-login-model/"),
        Answer(200, {"Content-Type": "text/html", "Content-Disposition": 'attachment; filename="a.html"'}),
        Answer(404, {"Content-Type": "text/html"}),
        Answer(500, {"Content-Type": "text/html"}),
    ],
    ids=["redirect-at-home", "the-word-was-there", "html-artifact", "404", "500"],
)
def test_h7_what_is_not_a_login_page(
    vault_like: VaultLike, loopback: Loopback, configure: Configure, answer: Answer
) -> None:
    """H7: redirects within the API, artifacts that are pages, and plain errors are answers like any other."""
    path = "/api/2.0/artifacts/my-login-model"
    loopback.rule = lambda request: answer if request.path == path else Answer()
    configure(vault_like.settings())
    found = Rerouted(loopback).session().get(f"{HOME}{path}", auth=SecretsAuth())
    assert found.status_code == (200 if answer.status == 302 else answer.status)
    assert set(loopback.header("Authorization")) == {"Bearer first"}
    assert vault_like.reads == 1


@pytest.mark.parametrize("kind", LOGIN_PAGES)
def test_h7_holds_for_the_api_only(
    vault_like: VaultLike, loopback: Loopback, second_loopback: Loopback, configure: Configure, kind: str
) -> None:
    """H7: elsewhere, pages and redirects are nobody's business."""
    configure(vault_like.settings())
    loopback.rule = lambda request: LOGIN_PAGES[kind] if request.path == "/" else Answer()
    session = Rerouted(loopback, {"idp.example.com": second_loopback}).session()
    assert session.get(f"{HOME}/", auth=SecretsAuth()).status_code == 200
    assert len(loopback.requests) + len(second_loopback.requests) == (1 if kind == "page" else 2)


def test_h7_an_html_artifact_of_a_real_server(signed_in: MlflowServer) -> None:
    """H7: MLflow serves HTML artifacts below /api/ with the type text/html; they come through."""
    with mlflow.start_run() as run:
        mlflow.log_text("<html>report</html>", "report.html")
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/report.html") == "<html>report</html>"


def test_h7_the_https_upgrade_is_followed(
    vault_like: VaultLike, loopback: Loopback, second_loopback: Loopback, configure: Configure
) -> None:
    """H7: the one redirect to another origin that is none."""
    configure(vault_like.settings(MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.example.com"))
    loopback.rule = lambda _: Answer.redirect("https://mlflow.example.com:443/api/x", 307)
    session = Rerouted(loopback, {"mlflow.example.com:443": second_loopback}).session()
    assert session.get("http://mlflow.example.com/api/x", auth=SecretsAuth()).status_code == 200
    assert second_loopback.header("Authorization") == ["Bearer first"]
