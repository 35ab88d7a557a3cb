"""What holds for every backend: each test runs against a look-alike of each of them."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from aws_servers import AwsLike, Hanging, refusal
from azure_like import AzureLike
from conftest import Configure
from forks import child_gets
from loopback import Answer, Loopback, VaultLike
from mlflow_secrets_auth import SecretsAuth, SecretsAuthError, headers_for, refresh
from servers import free_port

URL = "https://mlflow.example.com/api"


@dataclasses.dataclass
class Backend:
    """A look-alike, and how the tests talk about it."""

    name: str
    server: VaultLike | AwsLike | AzureLike
    prefix: str
    address: str
    denial: Answer

    def at(self, url: str) -> dict[str, str]:
        """The setting that names another server in its place."""
        return {self.address: url.replace("http://", "https://") if self.name == "azure" else url}

    def settings(self, **more: str) -> dict[str, str]:
        """Settings, with ``TTL`` and ``MODE`` standing for the provider's own variables."""
        own = {"TTL": f"MLFLOW_{self.prefix}_TTL_SEC", "MODE": f"MLFLOW_{self.prefix}_AUTH_MODE"}
        return self.server.settings(**{own.get(name, name): value for name, value in more.items()})


KINDS: dict[str, tuple[Callable[[], VaultLike | AwsLike | AzureLike], str, str, Answer]] = {
    "vault": (VaultLike, "VAULT", "VAULT_ADDR", Answer(403)),
    "aws": (AwsLike, "AWS", "AWS_ENDPOINT_URL", refusal("AccessDeniedException", "no")),
    "azure": (AzureLike, "AZURE", "MLFLOW_AZURE_KEY_VAULT_URL", Answer(403)),
}


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    make, prefix, address, denial = KINDS[request.param]
    with make() as server:
        yield Backend(request.param, server, prefix, address, denial)


def failure() -> SecretsAuthError:
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(URL)
    assert "\nhint: " in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "mode", "headers"),
    [
        ({"token": "abc"}, "bearer", {"Authorization": "Bearer abc"}),
        ({"token": "abc"}, "raw", {"Authorization": "abc"}),
        ({"username": "u", "password": "p"}, "basic", {"Authorization": "Basic dTpw"}),
        ({"headers": {"A": "1", "B": "2"}}, "bearer", {"A": "1", "B": "2"}),
    ],
)
def test_the_secret_becomes_headers(backend, configure: Configure, fields, mode, headers) -> None:
    backend.server.fields = fields
    configure(backend.settings(MODE=mode))
    assert headers_for(URL) == headers
    assert backend.server.reads == 1


@pytest.mark.parametrize("fields", [{}, {"token": 1}, {"token": ""}, {"username": "u", "password": "canary"}])
def test_a_secret_that_is_no_credential(backend, configure: Configure, fields) -> None:
    backend.server.fields = fields
    configure(backend.settings())
    error = failure()
    assert error.code.startswith("secret.")
    assert "canary" not in str(error)
    assert backend.server.reads == 1


def test_64_threads_that_miss_together_cost_one_read(backend, configure: Configure) -> None:
    backend.server.before_read = lambda: time.sleep(0.2)
    configure(backend.settings(MLFLOW_SECRETS_MAX_RETRIES="0"))
    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(lambda _: headers_for(URL)["Authorization"], range(64))) == {"Bearer first"}
    assert backend.server.reads == 1


def test_64_threads_share_a_failure(backend, configure: Configure) -> None:
    backend.server.failure = backend.denial
    backend.server.before_read = lambda: time.sleep(0.2)
    configure(backend.settings())

    def code(_: int) -> str:
        try:
            headers_for(URL)
        except SecretsAuthError as error:
            return error.code
        return "none"

    with ThreadPoolExecutor(64) as pool:
        [found] = set(pool.map(code, range(64)))
    assert found.startswith(f"{backend.name}.")
    assert backend.server.reads == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(backend, configure: Configure, status) -> None:
    backend.server.failure = Answer(status)
    configure(backend.settings(MLFLOW_SECRETS_MAX_RETRIES="2"))
    assert failure().code.startswith(f"{backend.name}.")
    assert backend.server.reads == 3


def test_what_the_backend_refuses_is_not(backend, configure: Configure) -> None:
    backend.server.failure = backend.denial
    configure(backend.settings(MLFLOW_SECRETS_MAX_RETRIES="5"))
    failure()
    assert backend.server.reads == 1


def test_a_failure_is_remembered_for_a_second(backend, configure: Configure) -> None:
    backend.server.failure = backend.denial
    configure(backend.settings())
    for _ in range(20):
        failure()
    assert backend.server.reads == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_last_credential_outlasts_an_outage_with_one_attempt(backend, configure: Configure, status) -> None:
    configure(backend.settings(TTL="0.2", MLFLOW_SECRETS_MAX_RETRIES="5"))
    headers_for(URL)
    backend.server.failure = Answer(status)
    time.sleep(0.25)
    assert headers_for(URL) == {"Authorization": "Bearer first"}
    assert backend.server.reads == 2


def test_the_last_credential_does_not_outlast_a_refusal(backend, configure: Configure) -> None:
    configure(backend.settings(TTL="0.2"))
    headers_for(URL)
    backend.server.failure = backend.denial
    time.sleep(0.25)
    assert failure().code.startswith(f"{backend.name}.")


def test_nobody_listens(backend, configure: Configure) -> None:
    configure(backend.settings(MLFLOW_SECRETS_MAX_RETRIES="1"))
    configure(backend.at(f"http://127.0.0.1:{free_port()}"))
    assert failure().code == f"{backend.name}.unreachable"


def test_a_hang_ends_at_the_deadline(backend, configure: Configure) -> None:
    with Hanging() as server:
        configure(backend.settings(MLFLOW_SECRETS_TIMEOUT_SEC="1", MLFLOW_SECRETS_MAX_RETRIES="5"))
        configure(backend.at(server.url))
        started = time.monotonic()
        assert failure().code == "fetch.timeout"
        assert time.monotonic() - started < 2


def test_an_answer_that_is_too_large(backend, configure: Configure) -> None:
    backend.server.fields = {"token": "x" * (2 << 20)}
    configure(backend.settings(MLFLOW_SECRETS_MAX_RETRIES="0"))
    assert failure().code == f"{backend.name}.unexpected_answer"


def test_redirects_are_not_followed(backend, configure: Configure) -> None:
    with Loopback() as elsewhere:
        backend.server.failure = Answer.redirect(elsewhere.url)
        configure(backend.settings(MLFLOW_SECRETS_MAX_RETRIES="0"))
        failure()
        assert elsewhere.requests == []


def test_an_expiry_in_the_secret_shortens_the_ttl(backend, configure: Configure) -> None:
    backend.server.fields = {"token": "first", "expires_at": time.time() + 1.2}
    configure(backend.settings(TTL="300"))
    headers_for(URL)
    time.sleep(1.2)
    backend.server.fields = {"token": "second"}
    assert headers_for(URL) == {"Authorization": "Bearer second"}


def test_refresh_passes_the_cache(backend, configure: Configure) -> None:
    configure(backend.settings())
    headers_for(URL)
    backend.server.fields = {"token": "second"}
    refresh()
    assert headers_for(URL) == {"Authorization": "Bearer second"}
    assert backend.server.reads == 2


def test_a_rejected_credential_is_read_again_and_sent_once_more(backend, configure: Configure) -> None:
    def server(request):
        return Answer(200 if request.headers["authorization"] == "Bearer second" else 401)

    with Loopback(server) as mlflow:
        configure(backend.settings())
        headers_for(mlflow.url)
        backend.server.fields = {"token": "second"}
        assert requests.get(mlflow.url, auth=SecretsAuth(), timeout=10).status_code == 200
        assert mlflow.header("Authorization") == ["Bearer first", "Bearer second"]
        assert backend.server.reads == 2


def test_a_request_goes_on_without_a_credential_where_the_settings_say_so(backend, configure: Configure) -> None:
    backend.server.failure = backend.denial
    configure(backend.settings(MLFLOW_SECRETS_ON_ERROR="skip"))
    assert headers_for(URL) == {}


def test_a_fork_with_a_warm_cache_costs_no_read_and_one_with_a_cold_one_reads(backend, configure: Configure) -> None:
    configure(backend.settings())
    headers_for(URL)
    assert child_gets(URL, {"Authorization": "Bearer first"})
    assert backend.server.reads == 1
    configure(backend.settings(TTL="0"))
    headers_for(URL)
    assert child_gets(URL, {"Authorization": "Bearer first"})
    assert backend.server.reads == 3


def test_no_thread_stays(backend, configure: Configure) -> None:
    before = len(os.listdir("/proc/self/task")) - threading.active_count()
    configure(backend.settings())
    headers_for(URL)
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/task")) - threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
