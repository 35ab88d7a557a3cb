"""Managed identities from the metadata service, at its real address in a network of the test run's own (needs root)."""

from __future__ import annotations

import itertools
import logging
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from azure_fixtures import silence
from azure_network import METADATA_ADDRESS, PrivateNetwork
from azure_referee import URL, Verdict, failure, official, ours
from azure_stand_in import AzureStandIn
from conftest import Configure
from loopback import Loopback
from mlflow_secrets_auth import clear_cache, headers_for, refresh

__all__ = ["silence"]

TOKEN = "canary-mlflow-token"
NUMBERS = itertools.count(100_000)


@pytest.fixture(scope="module")
def network() -> Iterator[PrivateNetwork]:
    network = PrivateNetwork()
    yield network
    network.close()


@pytest.fixture(scope="module")
def azure_servers(network: PrivateNetwork) -> Iterator[AzureStandIn]:
    with network.inside():
        stand_in = AzureStandIn(imds_address=METADATA_ADDRESS)
    with stand_in:
        yield stand_in


@pytest.fixture
def azure(
    network: PrivateNetwork, azure_servers: AzureStandIn, configure: Configure, tmp_path: Any
) -> Iterator[AzureStandIn]:
    """The stand-in, with the test's thread in its network; no developer tool is on the path."""
    azure_servers.reset()
    azure_servers.vault.set_secret("mlflow-auth", TOKEN)
    configure(
        {
            **azure_servers.environment(),
            "MLFLOW_SECRETS_AUTH_ENABLE": "azure-key-vault",
            "MLFLOW_AZURE_SECRET_NAME": "mlflow-auth",
            "MLFLOW_AZURE_AUTH_MODE": "raw",
            "MLFLOW_AZURE_TTL_SEC": "0",
            "MLFLOW_SECRETS_MAX_RETRIES": "0",
            "MLFLOW_SECRETS_STALE_IF_ERROR_SEC": str(next(NUMBERS)),
            "PATH": f"{tmp_path}:/usr/bin:/bin",
        }
    )
    with network.inside():
        yield azure_servers
    azure_servers.reset()


def agree_on_success() -> None:
    theirs = official()
    assert theirs.value, theirs.said
    assert ours() == Verdict(theirs.value, "")


def test_a_system_assigned_identity(azure: AzureStandIn) -> None:
    agree_on_success()
    sent = azure.imds.requests[-1]
    assert sent.query["resource"] == "https://vault.azure.net"
    assert sent.headers["metadata"] == "true"


@pytest.mark.parametrize("named", [None, "prod", "ManagedIdentityCredential"])
def test_a_user_assigned_identity_by_its_client_id_alone(
    azure: AzureStandIn, configure: Configure, named: str | None
) -> None:
    azure.identities.system = None
    wanted = [azure.identities.assign(), azure.identities.assign()][1]
    configure(AZURE_CLIENT_ID=wanted.client_id, AZURE_TOKEN_CREDENTIALS=named)
    agree_on_success()
    assert azure.imds.requests[-1].query["client_id"] == wanted.client_id


def test_the_name_of_the_vault_alone_is_a_complete_configuration(azure: AzureStandIn, configure: Configure) -> None:
    """Nothing resolves the name in this network, so the error tells which vault was meant."""
    configure(MLFLOW_AZURE_KEY_VAULT_URL=None, AZURE_KEY_VAULT_NAME="team-ml", AZURE_AUTHORITY_HOST=None)
    error = failure()
    assert error.code == "azure.unreachable"
    assert "https://team-ml.vault.azure.net" in error.message


def test_an_identity_that_is_not_assigned(azure: AzureStandIn, configure: Configure) -> None:
    client = str(uuid.uuid4())
    configure(AZURE_CLIENT_ID=client)
    assert official().value is None
    error = failure()
    assert error.code == "azure.identity_not_assigned"
    assert client in error.message


def test_several_identities_and_none_is_named(azure: AzureStandIn) -> None:
    azure.identities.system = None
    azure.identities.assign()
    azure.identities.assign()
    assert official().value is None
    error = failure()
    assert error.code == "azure.identity_not_assigned"
    assert "AZURE_CLIENT_ID" in error.hint


def test_the_winner_is_asked_alone_from_then_on(azure: AzureStandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    azure.imds.lifetime_sec = 60
    try:
        headers_for(URL)
        first = len(azure.imds.requests)
        headers_for(URL)
        # The first walk knocks, and asks; from then on there is only the question.
        assert [request.headers.get("metadata") for request in azure.imds.requests[:first]] == [None, "true"]
        assert {request.headers.get("metadata") for request in azure.imds.requests[first:]} == {"true"}
    finally:
        azure.imds.lifetime_sec = 86399
    assert caplog.text.count("ManagedIdentityCredential") == 1


def test_off_azure_the_chain_fails_within_three_seconds_and_lists_its_links(azure: AzureStandIn) -> None:
    azure.imds.fail_next("hang", times=10)
    started = time.monotonic()
    error = failure()
    took = time.monotonic() - started
    assert 1 <= took < 3
    assert error.code == "azure.no_identity"
    links = re.findall(r"^  (\w+) \((\d+) ms\): (.+)$", error.message, re.MULTILINE)
    assert [name for name, _, _ in links] == [
        "EnvironmentCredential",
        "WorkloadIdentityCredential",
        "ManagedIdentityCredential",
        "AzureCliCredential",
        "AzureDeveloperCliCredential",
    ]
    assert 1000 <= int(links[2][1]) < 1500
    assert "did not answer within 1 s" in links[2][2]
    assert azure.imds.count() == 1


def test_off_azure_with_retries_it_still_fails_within_three_seconds(azure: AzureStandIn, configure: Configure) -> None:
    configure(MLFLOW_SECRETS_MAX_RETRIES="10")
    azure.imds.fail_next("hang", times=10)
    started = time.monotonic()
    assert failure().code == "azure.no_identity"
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("named", ["prod", "ManagedIdentityCredential"])
def test_a_slow_proxy_of_pod_identities_has_time_when_it_is_the_only_choice(
    azure: AzureStandIn, configure: Configure, named: str
) -> None:
    azure.imds.delay = 1.2
    configure(AZURE_TOKEN_CREDENTIALS=named)
    assert headers_for(URL) == {"Authorization": TOKEN}
    assert azure.imds.count() == 1


def test_the_named_choice_has_the_whole_deadline(azure: AzureStandIn, configure: Configure) -> None:
    azure.imds.fail_next("hang", times=10)
    configure(AZURE_TOKEN_CREDENTIALS="ManagedIdentityCredential", MLFLOW_SECRETS_TIMEOUT_SEC="1.5")
    started = time.monotonic()
    error = failure()
    assert 1.5 <= time.monotonic() - started < 2
    assert error.code == "fetch.timeout"
    assert "waiting for the managed identity endpoint at http://169.254.169.254" in error.message


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "azure.unavailable"),
        (410, "azure.unavailable"),
        (429, "azure.throttled"),
        (500, "azure.unavailable"),
        (503, "azure.unavailable"),
    ],
)
def test_failures_that_pass_are_retried_by_us_alone(
    azure: AzureStandIn, configure: Configure, status: int, code: str
) -> None:
    configure(AZURE_TOKEN_CREDENTIALS="ManagedIdentityCredential", MLFLOW_SECRETS_MAX_RETRIES="2")
    azure.imds.fail_next(status=status, times=100)
    assert failure().code == code
    assert azure.imds.count(status=status) == 3
    azure.imds.reset()
    clear_cache()
    azure.imds.fail_next(status=status, times=2)
    assert headers_for(URL) == {"Authorization": TOKEN}


@pytest.mark.parametrize("status", [401, 403])
def test_another_clouds_metadata_service_is_not_azures(azure: AzureStandIn, status: int) -> None:
    azure.imds.fail_next(status=status, times=100)
    assert official().value is None
    error = failure()
    assert error.code == "azure.no_identity"
    assert "not Azure's" in error.message


def test_a_refused_connection_is_told_at_once(azure: AzureStandIn, configure: Configure) -> None:
    azure.imds.fail_next("close", times=10)
    started = time.monotonic()
    error = failure()
    assert time.monotonic() - started < 1
    assert error.code == "azure.no_identity"
    assert "can't be reached" in error.message


def test_the_metadata_service_is_never_asked_through_a_proxy(azure: AzureStandIn, configure: Configure) -> None:
    with Loopback() as proxy:
        configure(HTTP_PROXY=proxy.url, http_proxy=proxy.url, HTTPS_PROXY=proxy.url, NO_PROXY="localhost")
        refresh()
        assert headers_for(URL) == {"Authorization": TOKEN}
        assert proxy.requests == []
