"""Microsoft's own Python client, set up by the same variables as ours: it says what must succeed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from azure.identity import DefaultAzureCredential
from azure.keyvault.secrets import SecretClient

from mlflow_secrets_auth import SecretsAuthError, headers_for

URL = "https://mlflow.example.com/api"


@dataclass
class Verdict:
    """What became of one read: the secret's value, or what the client said."""

    value: str | None
    said: str


def official() -> Verdict:
    """Read the secret that the environment names with ``DefaultAzureCredential``."""
    environ = os.environ
    # The stand-in has no discovery of other clouds' instances; a real Entra does, and doesn't mind.
    credential = DefaultAzureCredential(disable_instance_discovery=True, retry_total=0, process_timeout=3)
    checks = environ.get("MLFLOW_AZURE_VERIFY_CHALLENGE", "true") == "true"
    url = environ["MLFLOW_AZURE_KEY_VAULT_URL"]
    with credential, SecretClient(url, credential, verify_challenge_resource=checks, retry_total=0) as client:
        try:
            version = environ.get("MLFLOW_AZURE_SECRET_VERSION")
            secret = client.get_secret(environ["MLFLOW_AZURE_SECRET_NAME"], version)
        except Exception as error:  # of whatever kind, as several leak out of the SDK
            return Verdict(None, f"{type(error).__name__}: {error}")
        return Verdict(secret.value, "")


def ours(url: str = URL) -> Verdict | SecretsAuthError:
    """Read it with our package; its header shows the value."""
    try:
        headers = headers_for(url)
    except SecretsAuthError as error:
        return error
    return Verdict(headers["Authorization"], "")


def failure(url: str = URL) -> SecretsAuthError:
    """Our error for a read that must fail."""
    verdict = ours(url)
    assert isinstance(verdict, SecretsAuthError), "the read succeeded"
    text = str(verdict)
    assert text.startswith(f"{verdict.code}: ")
    assert "\nhint: " in text
    return verdict
