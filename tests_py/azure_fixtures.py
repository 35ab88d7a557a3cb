"""pytest fixtures for `azure_stand_in`: `from azure_fixtures import azure, azure_servers`."""

from __future__ import annotations

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
