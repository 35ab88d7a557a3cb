"""pytest fixtures for `azure_stand_in`: `from azure_fixtures import azure, azure_servers`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from azure_stand_in import AzureStandIn


@pytest.fixture(scope="session")
def azure_servers() -> Iterator[AzureStandIn]:
    """The running servers, shared by all tests because making their keys takes time."""
    with AzureStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def azure(azure_servers: AzureStandIn) -> Iterator[AzureStandIn]:
    """The servers as if just started. Clients that still hang are let go afterwards."""
    azure_servers.reset()
    yield azure_servers
    azure_servers.reset()


CANARIES = ("canary", "BEGIN PRIVATE", "BEGIN RSA", "BEGIN ENCRYPTED", "eyJ", "<html", "Trace ID", "client_secret=")
"""What no output of ours may hold: secrets (tests name theirs so), keys, tokens, and parts of answers."""


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """S1: whatever a test does, our log at DEBUG shows no secret, in no attribute of any record."""
    caplog.set_level(logging.DEBUG, logger="mlflow_secrets_auth")
    yield
    for record in caplog.get_records("call"):
        if record.name.startswith("mlflow_secrets_auth"):
            shown = repr(vars(record)) + record.getMessage()
            for canary in CANARIES:
                assert canary not in shown, shown
