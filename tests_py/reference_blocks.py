"""The environment blocks of the reference documents, as facts: which variables each sets, and to what.

``complete`` blocks configure a process by themselves, apart from what the document says once for all (the base); the
others are fragments, which show a variable or two. Where a block offers alternatives, each is a block here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: What a block of a provider leaves out, because its document gave it before.
BASES: dict[str, dict[str, str]] = {
    "": {},
    "vault": {
        "MLFLOW_SECRETS_AUTH_ENABLE": "vault",
        "VAULT_ADDR": "https://vault.company.com",
        "VAULT_TOKEN": "hvs.XXXXXXXXXXXXXXXX",
        "MLFLOW_VAULT_SECRET_PATH": "secret/mlflow/auth",
    },
    "aws-secrets-manager": {
        "MLFLOW_SECRETS_AUTH_ENABLE": "aws-secrets-manager",
        "AWS_REGION": "us-east-1",
        "MLFLOW_AWS_SECRET_NAME": "mlflow/auth",
    },
    "azure-key-vault": {
        "MLFLOW_SECRETS_AUTH_ENABLE": "azure-key-vault",
        "MLFLOW_AZURE_KEY_VAULT_URL": "https://your-vault.vault.azure.net/",
        "MLFLOW_AZURE_SECRET_NAME": "mlflow-auth",
    },
}


@dataclass(frozen=True)
class Block:
    """One environment block: where it stands, what it builds on, and what it sets."""

    document: str
    heading: str
    base: str
    complete: bool
    variables: dict[str, str] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.document}: {self.heading}"

    def environment(self) -> dict[str, str]:
        """The base with the block on top."""
        return {**BASES[self.base], **self.variables}

    def providers(self) -> set[str]:
        """The providers that it enables."""
        return set(self.environment()["MLFLOW_SECRETS_AUTH_ENABLE"].split(","))


TENANT = "12345678-1234-1234-1234-123456789012"
CLIENT = "87654321-4321-4321-4321-210987654321"
VAULT_URL = "https://your-vault.vault.azure.net/"
DEV_HOSTS = "localhost,127.0.0.1,*.local"
VAULT, AWS, AZURE = "vault", "aws-secrets-manager", "azure-key-vault"
ALL = f"{VAULT},{AWS},{AZURE}"


def configuration(heading: str, base: str, complete: bool = False, **variables: str) -> Block:
    return Block("configuration", heading, base, complete, variables)


def vault(heading: str, complete: bool = False, base: str = VAULT, **variables: str) -> Block:
    return Block("vault-provider", heading, base, complete, variables)


def azure(heading: str, complete: bool = False, base: str = AZURE, **variables: str) -> Block:
    return Block("azure-provider", heading, base, complete, variables)


#: All three providers with what each needs, for blocks that only say which are enabled.
EVERYTHING = {**BASES[AZURE], **BASES[AWS], **BASES[VAULT]}

BLOCKS = [
    configuration("Primary control", "", **{**EVERYTHING, "MLFLOW_SECRETS_AUTH_ENABLE": ALL}),
    configuration(
        "Per-provider control",
        "",
        **{
            **EVERYTHING,
            "MLFLOW_SECRETS_AUTH_ENABLE": ALL,
            "MLFLOW_SECRETS_AUTH_ENABLE_VAULT": "true",
            "MLFLOW_SECRETS_AUTH_ENABLE_AWS_SECRETS_MANAGER": "true",
            "MLFLOW_SECRETS_AUTH_ENABLE_AZURE_KEY_VAULT": "true",
        },
    ),
    configuration(
        "Host allowlisting, exact", VAULT, MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.company.com,mlflow-staging.company.com"
    ),
    configuration("Host allowlisting, globs", VAULT, MLFLOW_SECRETS_ALLOWED_HOSTS="*.company.com,localhost,127.0.0.1"),
    configuration(
        "Host allowlisting, mixed", VAULT, MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.prod.com,*.staging.com,localhost"
    ),
    configuration(
        "Host allowlisting, examples", VAULT, MLFLOW_SECRETS_ALLOWED_HOSTS="*.company.com,mlflow-*,api.*.com"
    ),
    configuration("Authentication headers", VAULT, MLFLOW_AUTH_HEADER_NAME="X-MLflow-Auth"),
    configuration("Logging", VAULT, MLFLOW_SECRETS_LOG_LEVEL="INFO"),
    configuration(
        "Vault authentication, token", VAULT, VAULT_ADDR="https://vault.company.com", VAULT_TOKEN="hvs.XXXXXXXXXXXXXXXX"
    ),
    configuration(
        "Vault authentication, AppRole",
        VAULT,
        VAULT_TOKEN="",
        VAULT_ROLE_ID="role-id-value",
        VAULT_SECRET_ID="secret-id-value",
    ),
    configuration("Vault secret path", VAULT, MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth"),
    configuration("Vault secret path, explicit", VAULT, MLFLOW_VAULT_SECRET_PATH="secret/data/mlflow/auth"),
    configuration(
        "Vault options",
        VAULT,
        MLFLOW_VAULT_AUTH_MODE="bearer",
        MLFLOW_VAULT_TTL_SEC="300",
        VAULT_NAMESPACE="namespace",
        VAULT_SKIP_VERIFY="false",
    ),
    configuration(
        "AWS authentication, keys",
        AWS,
        AWS_REGION="us-east-1",
        AWS_ACCESS_KEY_ID="AKIAXXXXXXXXXXXXXXXX",
        AWS_SECRET_ACCESS_KEY="x" * 40,
    ),
    configuration("AWS authentication, profile", AWS, AWS_PROFILE="mlflow-profile"),
    configuration(
        "AWS authentication, role",
        AWS,
        AWS_ROLE_ARN="arn:aws:iam::123456789012:role/MLflowRole",
        AWS_ROLE_SESSION_NAME="mlflow-session",
    ),
    configuration(
        "AWS secret, name", AWS, MLFLOW_AWS_SECRET_NAME="mlflow/auth", MLFLOW_AWS_SECRET_VERSION="AWSCURRENT"
    ),
    configuration(
        "AWS secret, ARN",
        AWS,
        MLFLOW_AWS_SECRET_NAME="arn:aws:secretsmanager:us-east-1:123456789012:secret:mlflow/auth-AbCdEf",
    ),
    configuration(
        "AWS options",
        AWS,
        MLFLOW_AWS_AUTH_MODE="bearer",
        MLFLOW_AWS_TTL_SEC="300",
        MLFLOW_AWS_MAX_RETRIES="3",
        MLFLOW_AWS_RETRY_MODE="adaptive",
    ),
    configuration(
        "Azure authentication, secret",
        AZURE,
        AZURE_TENANT_ID="tenant-id-uuid",
        AZURE_CLIENT_ID="client-id-uuid",
        AZURE_CLIENT_SECRET="client-secret-value",
    ),
    configuration(
        "Azure authentication, certificate",
        AZURE,
        AZURE_TENANT_ID="tenant-id-uuid",
        AZURE_CLIENT_ID="client-id-uuid",
        AZURE_CLIENT_CERTIFICATE_PATH="/path/to/certificate.pem",
    ),
    configuration("Azure authentication, managed identity", AZURE, AZURE_CLIENT_ID="managed-identity-client-id"),
    configuration(
        "Key Vault",
        AZURE,
        MLFLOW_AZURE_KEY_VAULT_URL=VAULT_URL,
        MLFLOW_AZURE_SECRET_NAME="mlflow-auth",
        MLFLOW_AZURE_SECRET_VERSION="latest",
    ),
    configuration(
        "Azure options",
        AZURE,
        MLFLOW_AZURE_AUTH_MODE="bearer",
        MLFLOW_AZURE_TTL_SEC="300",
        AZURE_CLOUD_ENVIRONMENT="AzurePublicCloud",
    ),
    configuration(
        "Caching",
        "",
        **{
            **EVERYTHING,
            "MLFLOW_SECRETS_AUTH_ENABLE": ALL,
            "MLFLOW_VAULT_TTL_SEC": "300",
            "MLFLOW_AWS_TTL_SEC": "300",
            "MLFLOW_AZURE_TTL_SEC": "300",
        },
    ),
    configuration("Retries", VAULT, MLFLOW_SECRETS_MAX_RETRIES="3"),
    configuration(
        "Development",
        "",
        complete=True,
        VAULT_ADDR="http://localhost:8200",
        VAULT_TOKEN="dev-token",
        MLFLOW_VAULT_SECRET_PATH="secret/dev/mlflow",
        MLFLOW_SECRETS_ALLOWED_HOSTS=DEV_HOSTS,
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
        MLFLOW_SECRETS_LOG_LEVEL="DEBUG",
    ),
    configuration(
        "Staging",
        "",
        complete=True,
        AWS_REGION="us-east-1",
        MLFLOW_AWS_SECRET_NAME="staging/mlflow/auth",
        MLFLOW_SECRETS_ALLOWED_HOSTS="*.staging.company.com",
        MLFLOW_SECRETS_AUTH_ENABLE=AWS,
        MLFLOW_SECRETS_LOG_LEVEL="INFO",
        MLFLOW_AWS_TTL_SEC="600",
    ),
    configuration(
        "Production",
        "",
        complete=True,
        AZURE_TENANT_ID=TENANT,
        AZURE_CLIENT_ID=CLIENT,
        AZURE_CLIENT_SECRET="expanded-by-the-shell",
        MLFLOW_AZURE_KEY_VAULT_URL="https://prod-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-prod-auth",
        MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.company.com",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
        MLFLOW_SECRETS_LOG_LEVEL="WARNING",
        MLFLOW_AZURE_TTL_SEC="900",
    ),
    configuration(
        "Multi-provider fallback",
        "",
        complete=True,
        MLFLOW_SECRETS_AUTH_ENABLE=ALL,
        VAULT_ADDR="https://vault.company.com",
        VAULT_TOKEN="expanded-by-the-shell",
        MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth",
        AWS_REGION="us-east-1",
        MLFLOW_AWS_SECRET_NAME="mlflow/auth",
        MLFLOW_AZURE_KEY_VAULT_URL="https://backup-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-auth",
        MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.company.com",
        MLFLOW_SECRETS_LOG_LEVEL="INFO",
    ),
    configuration("Debug commands", VAULT, MLFLOW_SECRETS_LOG_LEVEL="DEBUG"),
    vault(
        "Token authentication",
        complete=True,
        base="",
        VAULT_ADDR="https://vault.company.com",
        VAULT_TOKEN="hvs.XXXXXXXXXXXXXXXX",
        MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
    ),
    vault(
        "AppRole authentication",
        complete=True,
        base="",
        VAULT_ADDR="https://vault.company.com",
        VAULT_ROLE_ID="role-id-value",
        VAULT_SECRET_ID="secret-id-value",
        MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
    ),
    vault(
        "Configuration reference",
        VAULT_ADDR="https://vault.company.com",
        MLFLOW_VAULT_AUTH_MODE="basic",
        MLFLOW_VAULT_TTL_SEC="600",
        VAULT_NAMESPACE="production",
        VAULT_SKIP_VERIFY="true",
    ),
    vault(
        "Development",
        complete=True,
        base="",
        VAULT_ADDR="http://localhost:8200",
        VAULT_TOKEN="dev-only-token",
        MLFLOW_VAULT_SECRET_PATH="secret/dev/mlflow",
        MLFLOW_VAULT_AUTH_MODE="bearer",
        MLFLOW_VAULT_TTL_SEC="60",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
        MLFLOW_SECRETS_ALLOWED_HOSTS=DEV_HOSTS,
        MLFLOW_SECRETS_LOG_LEVEL="DEBUG",
    ),
    vault(
        "Production",
        complete=True,
        base="",
        VAULT_ADDR="https://vault.company.com",
        VAULT_ROLE_ID="expanded-by-the-shell",
        VAULT_SECRET_ID="expanded-by-the-shell",
        MLFLOW_VAULT_SECRET_PATH="secret/prod/mlflow/auth",
        MLFLOW_VAULT_AUTH_MODE="bearer",
        MLFLOW_VAULT_TTL_SEC="900",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
        MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.company.com",
        MLFLOW_SECRETS_LOG_LEVEL="INFO",
    ),
    vault(
        "Multi-environment, development",
        complete=True,
        base="",
        VAULT_ADDR="http://localhost:8200",
        VAULT_TOKEN="dev-token",
        MLFLOW_VAULT_SECRET_PATH="secret/dev/mlflow",
        MLFLOW_VAULT_TTL_SEC="60",
        MLFLOW_SECRETS_ALLOWED_HOSTS="localhost,*.local",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
    ),
    vault(
        "Multi-environment, staging",
        complete=True,
        base="",
        VAULT_ADDR="https://vault-staging.company.com",
        VAULT_ROLE_ID="expanded-by-the-shell",
        VAULT_SECRET_ID="expanded-by-the-shell",
        MLFLOW_VAULT_SECRET_PATH="secret/staging/mlflow/auth",
        MLFLOW_VAULT_TTL_SEC="300",
        MLFLOW_SECRETS_ALLOWED_HOSTS="*.staging.company.com",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
    ),
    vault(
        "Multi-environment, production",
        complete=True,
        base="",
        VAULT_ADDR="https://vault.company.com",
        VAULT_ROLE_ID="expanded-by-the-shell",
        VAULT_SECRET_ID="expanded-by-the-shell",
        MLFLOW_VAULT_SECRET_PATH="secret/prod/mlflow/auth",
        MLFLOW_VAULT_TTL_SEC="900",
        MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.company.com",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
    ),
    vault(
        "Namespace support",
        complete=True,
        VAULT_NAMESPACE="production",
        VAULT_ADDR="https://vault.company.com",
        VAULT_TOKEN="hvs.XXXXXXXXXXXXXXXX",
        MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth",
    ),
    vault("Performance standby, primary", VAULT_ADDR="https://vault-primary.company.com"),
    vault("Performance standby, standby", VAULT_ADDR="https://vault-standby.company.com"),
    vault("Caching strategy, long", MLFLOW_VAULT_TTL_SEC="1800"),
    vault("Caching strategy, careful", MLFLOW_VAULT_TTL_SEC="300"),
    vault("Caching strategy, development", MLFLOW_VAULT_TTL_SEC="60"),
    # The image sets these to nothing, which is unset; the values come when it runs.
    vault("Docker, as it runs", base="", complete=True, **BASES[VAULT]),
    vault("Docker, the image's own", VAULT_ROLE_ID="", VAULT_SECRET_ID="", VAULT_NAMESPACE=""),
    vault(
        "Kubernetes",
        complete=True,
        base="",
        VAULT_ADDR="https://vault.company.com",
        VAULT_ROLE_ID="from-a-kubernetes-secret",
        # The manifest shows the role id only; the secret id comes from the same Kubernetes secret.
        VAULT_SECRET_ID="from-a-kubernetes-secret",
        MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
    ),
    vault(
        "Kubernetes, as it stands",
        complete=True,
        base="",
        VAULT_ADDR="https://vault.company.com",
        VAULT_ROLE_ID="from-a-kubernetes-secret",
        MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
    ),
    vault(
        "CI pipeline",
        complete=True,
        base="",
        VAULT_ADDR="https://vault.company.com",
        VAULT_ROLE_ID="from-the-ci",
        VAULT_SECRET_ID="from-the-ci",
        MLFLOW_VAULT_SECRET_PATH="secret/ci/mlflow/auth",
        MLFLOW_SECRETS_AUTH_ENABLE=VAULT,
    ),
    azure(
        "Service principal with secret",
        complete=True,
        base="",
        AZURE_TENANT_ID=TENANT,
        AZURE_CLIENT_ID=CLIENT,
        AZURE_CLIENT_SECRET="your-client-secret-value",
        MLFLOW_AZURE_KEY_VAULT_URL=VAULT_URL,
        MLFLOW_AZURE_SECRET_NAME="mlflow-auth",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
    ),
    azure(
        "Service principal with certificate",
        complete=True,
        base="",
        AZURE_TENANT_ID=TENANT,
        AZURE_CLIENT_ID=CLIENT,
        AZURE_CLIENT_CERTIFICATE_PATH="/path/to/certificate.pem",
        MLFLOW_AZURE_KEY_VAULT_URL=VAULT_URL,
        MLFLOW_AZURE_SECRET_NAME="mlflow-auth",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
    ),
    azure(
        "System-assigned managed identity",
        complete=True,
        base="",
        MLFLOW_AZURE_KEY_VAULT_URL=VAULT_URL,
        MLFLOW_AZURE_SECRET_NAME="mlflow-auth",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
    ),
    azure(
        "User-assigned managed identity",
        complete=True,
        base="",
        AZURE_CLIENT_ID="user-assigned-identity-client-id",
        MLFLOW_AZURE_KEY_VAULT_URL=VAULT_URL,
        MLFLOW_AZURE_SECRET_NAME="mlflow-auth",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
    ),
    azure("Naming, by resource group", MLFLOW_AZURE_SECRET_NAME="mlflow-my-rg-auth"),
    azure("Naming, by environment", MLFLOW_AZURE_SECRET_NAME="mlflow-production-auth"),
    azure(
        "Configuration reference",
        MLFLOW_AZURE_AUTH_MODE="basic",
        MLFLOW_AZURE_TTL_SEC="600",
        MLFLOW_AZURE_SECRET_VERSION="latest",
        AZURE_CLOUD_ENVIRONMENT="AzurePublicCloud",
    ),
    azure(
        "Development",
        complete=True,
        base="",
        AZURE_TENANT_ID=TENANT,
        AZURE_CLIENT_ID=CLIENT,
        AZURE_CLIENT_SECRET="expanded-by-the-shell",
        MLFLOW_AZURE_KEY_VAULT_URL="https://dev-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-development-auth",
        MLFLOW_AZURE_AUTH_MODE="bearer",
        MLFLOW_AZURE_TTL_SEC="60",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
        MLFLOW_SECRETS_ALLOWED_HOSTS=DEV_HOSTS,
        MLFLOW_SECRETS_LOG_LEVEL="DEBUG",
    ),
    azure(
        "Production with managed identity",
        complete=True,
        base="",
        MLFLOW_AZURE_KEY_VAULT_URL="https://prod-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-production-auth",
        MLFLOW_AZURE_AUTH_MODE="bearer",
        MLFLOW_AZURE_TTL_SEC="900",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
        MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.company.com",
        MLFLOW_SECRETS_LOG_LEVEL="INFO",
    ),
    azure(
        "Multi-environment, development",
        complete=True,
        base="",
        AZURE_TENANT_ID=TENANT,
        AZURE_CLIENT_ID=CLIENT,
        AZURE_CLIENT_SECRET="expanded-by-the-shell",
        MLFLOW_AZURE_KEY_VAULT_URL="https://dev-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-dev-auth",
        MLFLOW_AZURE_TTL_SEC="60",
        MLFLOW_SECRETS_ALLOWED_HOSTS="localhost,*.local",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
    ),
    azure(
        "Multi-environment, staging",
        complete=True,
        base="",
        AZURE_TENANT_ID=TENANT,
        AZURE_CLIENT_ID=CLIENT,
        AZURE_CLIENT_SECRET="expanded-by-the-shell",
        MLFLOW_AZURE_KEY_VAULT_URL="https://staging-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-staging-auth",
        MLFLOW_AZURE_TTL_SEC="300",
        MLFLOW_SECRETS_ALLOWED_HOSTS="*.staging.company.com",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
    ),
    azure(
        "Multi-environment, production",
        complete=True,
        base="",
        MLFLOW_AZURE_KEY_VAULT_URL="https://prod-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-production-auth",
        MLFLOW_AZURE_TTL_SEC="900",
        MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.company.com",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
    ),
    azure(
        "Certificate-based authentication",
        complete=True,
        base="",
        AZURE_TENANT_ID=TENANT,
        AZURE_CLIENT_ID=CLIENT,
        AZURE_CLIENT_CERTIFICATE_PATH="/etc/ssl/certs/mlflow-auth.pem",
        MLFLOW_AZURE_KEY_VAULT_URL="https://secure-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-secure-auth",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
    ),
    azure("Secret versions, latest", MLFLOW_AZURE_SECRET_VERSION="latest"),
    azure("Secret versions, one", MLFLOW_AZURE_SECRET_VERSION="d1234567890abcdef1234567890abcdef"),
    azure(
        "Government cloud",
        AZURE_CLOUD_ENVIRONMENT="AzureUSGovernment",
        MLFLOW_AZURE_KEY_VAULT_URL="https://your-vault.vault.usgovcloudapi.net/",
    ),
    azure(
        "China cloud",
        AZURE_CLOUD_ENVIRONMENT="AzureChinaCloud",
        MLFLOW_AZURE_KEY_VAULT_URL="https://your-vault.vault.azure.cn/",
    ),
    azure("Debug mode", MLFLOW_SECRETS_LOG_LEVEL="DEBUG"),
    azure(
        "Container instances, app service, functions, AKS",
        complete=True,
        base="",
        MLFLOW_AZURE_KEY_VAULT_URL="https://prod-vault.vault.azure.net/",
        MLFLOW_AZURE_SECRET_NAME="mlflow-production-auth",
        MLFLOW_SECRETS_AUTH_ENABLE=AZURE,
        MLFLOW_SECRETS_ALLOWED_HOSTS="mlflow.company.com",
    ),
]

#: Every command of ours in the documents, without `mlflow-secrets-auth`.
COMMANDS = [
    ("info",),
    ("doctor",),
    ("doctor", "--dry-run", "https://mlflow.company.com"),
    ("doctor", "--dry-run", "http://localhost:5000"),
]
