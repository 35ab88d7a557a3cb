"""Fixtures of the tests of the Vault provider."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from conftest import Configure
from servers import OpenBao


@pytest.fixture
def path() -> str:
    """A path below ``secret/`` that only this test uses."""
    return f"mlflow/{uuid.uuid4().hex}"


@pytest.fixture
def use_vault(bao: OpenBao, path: str, configure: Configure) -> Callable[..., None]:
    """Settings for the secret at ``path`` in OpenBao, read with the root token, without retries."""

    def apply(**more: str | None) -> None:
        configure(
            MLFLOW_SECRETS_AUTH_ENABLE="vault",
            VAULT_ADDR=bao.url,
            VAULT_TOKEN=bao.root_token,
            MLFLOW_VAULT_SECRET_PATH=f"secret/{path}",
            MLFLOW_SECRETS_MAX_RETRIES="0",
        )
        configure(**more)

    return apply
