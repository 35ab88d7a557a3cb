"""Fixtures of the AWS tests."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aws_servers import Front, Moto
from conftest import Configure
from mlflow_secrets_auth import SecretsAuthError, headers_for

URL = "https://mlflow.example.com/api"
BEARER = {"Authorization": "Bearer abc"}

Use = Callable[..., None]


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    with Moto() as server:
        yield server


@pytest.fixture
def aws(moto: Moto) -> Iterator[Front]:
    """AWS: moto behind a front that counts, and fails on demand."""
    with Front(moto) as front:
        yield front


@pytest.fixture
def secret(moto: Moto) -> str:
    """The name of a secret that holds the token ``abc``, as boto3 reads it too."""
    name = f"mlflow/{uuid.uuid4().hex}"
    moto.boto().create_secret(Name=name, SecretString='{"token": "abc"}')
    assert moto.boto().get_secret_value(SecretId=name)["SecretString"] == '{"token": "abc"}'
    return name


@pytest.fixture
def use(aws: Front, secret: str, configure: Configure) -> Use:
    """Settings for ``secret``, read through ``aws`` with static keys and no caching."""

    def apply(settings: dict[str, str] | None = None, /, **more: str | None) -> None:
        configure(aws.settings(MLFLOW_AWS_SECRET_NAME=secret, MLFLOW_AWS_TTL_SEC="0"))
        configure(settings, **more)

    return apply


NO_KEYS: dict[str, Any] = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}


def failure(url: str = URL) -> SecretsAuthError:
    """The error of a fetch that must fail."""
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(url)
    text = str(caught.value)
    assert text.startswith(f"{caught.value.code}: ")
    assert "\nhint: " in text
    assert "canary" not in text
    return caught.value
