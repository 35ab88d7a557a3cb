"""The examples of the documentation that Vault has a part in, run against OpenBao as they stand.

Only addresses, files and what a cloud would sign are put in the places of the examples' own.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from conftest import Configure
from doc_pages import Example, example, examples
from mlflow_secrets_auth import SecretsAuthError, clear_cache, headers_for
from servers import OpenBao, Server, clean_environment, script
from vaults import Kubernetes, Signer, enable_approle

MLFLOW = "https://mlflow.example.com/api"
ABC = {"Authorization": "Bearer abc"}


class Vault(OpenBao):
    """A server of these tests alone, so that the examples find the mounts and names free that they use."""

    def run(self, commands: str, folder: Path, **environment: str) -> dict[str, str]:
        """Runs a shell example as an administrator, with OpenBao's command line for Vault's; what it has exported."""
        (folder / "vault").unlink(missing_ok=True)
        (folder / "vault").symlink_to(script("bao"))
        exported = re.findall(r"\b[A-Z]+(?:_[A-Z]+)+(?==)", commands)
        result = subprocess.run(
            ["bash", "-euc", commands + "\n" + "".join(f'echo "={name}=${{{name}}}"\n' for name in exported)],
            env={
                **clean_environment(**environment),
                "PATH": f"{folder}:{os.environ['PATH']}",
                "VAULT_ADDR": self.url,
                "VAULT_TOKEN": self.root_token,
            },
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return dict(line[1:].split("=", 1) for line in result.stdout.splitlines() if line.startswith("="))


@pytest.fixture(scope="module")
def vault(server_folder: Path) -> Iterator[Vault]:
    with Vault(server_folder) as server:
        server.put_secret("mlflow/auth", token="abc")
        server.put_secret("other", token="abc")
        yield server


def environment(each: Example) -> dict[str, str]:
    """The variables of an example that describes one process."""
    [found] = each.environments()
    return found


def commands_of(page: str, heading: str, containing: str) -> str:
    """The one shell example below a heading that contains some text."""
    [found] = [each for each in examples("sh", page) if each.heading == heading and containing in each.text]
    return found.text


def test_the_policy_and_the_approle_of_the_vault_guide(vault: Vault, tmp_path: Path, configure: Configure) -> None:
    """The guide's policy and commands give settings that read the secret, and no other."""
    (tmp_path / "mlflow.hcl").write_text(example("docs/vault.md", "The policy", "hcl").text)
    vault.run(example("docs/vault.md", "The policy", "sh").text, tmp_path)
    make = commands_of("docs/vault.md", "AppRole", "auth enable")
    settings = vault.run(make, tmp_path)
    configure(
        settings,
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=vault.url,
        MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth",
    )
    assert headers_for(MLFLOW) == ABC
    wrapped = vault.run(commands_of("docs/vault.md", "AppRole", "-wrap-ttl"), tmp_path)
    configure(wrapped, VAULT_SECRET_ID=None)
    assert headers_for(MLFLOW) == ABC
    configure(MLFLOW_VAULT_SECRET_PATH="secret/other")
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(MLFLOW)
    assert caught.value.code == "vault.permission_denied"


def test_the_secret_of_the_first_steps(vault: Vault, tmp_path: Path, configure: Configure) -> None:
    """The command that stores it and the settings that read it belong together."""
    page = "docs/index.md"
    vault.run(example(page, "2. Store the credential", "sh").text.replace("…", "s3cret"), tmp_path)
    settings = environment(example(page, "3. Point MLflow at it", "sh"))
    configure(settings, VAULT_ADDR=vault.url, VAULT_TOKEN=vault.root_token)
    try:
        assert headers_for(MLFLOW) == {"Authorization": "Basic YWxpY2U6czNjcmV0"}
    finally:
        vault.put_secret("mlflow/auth", token="abc")


def test_the_workflows_login_at_vault(vault: Vault, tmp_path: Path, configure: Configure) -> None:
    """GitHub's keys are ours here; the role, the policy and the workflow's settings are the page's."""
    page = "docs/integrations/github-actions.md"
    signer, key = Signer(), tmp_path / "key.pem"
    key.write_text(signer.public_pem)
    commands = example(page, "Vault", "sh").text
    github = "oidc_discovery_url=https://token.actions.githubusercontent.com"
    assert github in commands
    vault.run(commands.replace(github, f"jwt_validation_pubkeys=@{key}"), tmp_path)
    settings = environment(example(page, "Vault", "yaml"))
    file = tmp_path / "id-token"
    configure(settings, VAULT_ADDR=vault.url, MLFLOW_VAULT_JWT_PATH=str(file))
    claims = {
        "iss": "https://token.actions.githubusercontent.com",
        "aud": "https://vault.example.com",
        "sub": "repo:example/training:ref:refs/heads/main",
        "repository": "example/training",
        "ref": "refs/heads/main",
    }
    file.write_text(signer.token(**{**claims, "repository": "somebody/else"}))
    with pytest.raises(SecretsAuthError) as caught:
        headers_for(MLFLOW)
    assert caught.value.code == "vault.login_refused"
    clear_cache()
    file.write_text(signer.token(**claims))
    assert headers_for(MLFLOW) == ABC


class Agent(Server):
    """OpenBao's agent, or its proxy, with a configuration of the documentation."""

    def __init__(self, folder: Path, command: str, configuration: str) -> None:
        super().__init__(folder)
        self._command = command
        self._configuration = folder / f"agent-{self.port}.hcl"
        tcp = re.search('address += "127.0.0.1:8100"', configuration)
        # Where the example has a socket alone, a port beside it tells when the agent is up.
        port = "" if tcp else f'\nlistener "tcp" {{\n address = "127.0.0.1:{self.port}"\n tls_disable = true\n}}\n'
        self._configuration.write_text(configuration.replace("127.0.0.1:8100", f"127.0.0.1:{self.port}") + port)

    def command(self) -> list[str]:
        return [script("bao"), self._command, f"-config={self._configuration}"]

    def ready_path(self) -> str:
        return "/v1/auth/token/lookup-self"

    def ready_headers(self) -> dict[str, str]:
        return {"X-Vault-Request": "true"}


@pytest.fixture(scope="module")
def kubernetes(vault: Vault, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file with the token of the pods' service account, for a Vault that the page's commands have set up."""
    folder = tmp_path_factory.mktemp("kubernetes")
    signer, file, ca = Signer(), folder / "token", folder / "ca.pem"
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    with Kubernetes() as cluster:
        commands = commands_of("docs/integrations/kubernetes.md", "With the pod's service account", "auth enable")
        host = "kubernetes_host=https://kubernetes.default.svc"
        assert host in commands
        reviewer = signer.token(sub="reviewer")
        here = f"kubernetes_host={cluster.url} kubernetes_ca_cert=@{ca} token_reviewer_jwt={reviewer}"
        here += " disable_local_ca_jwt=true disable_iss_validation=true"
        vault.run(commands.replace(host, here), folder)
        file.write_text(cluster.service_account(signer, "trainer", namespace="ml", aud=["vault"]))
        yield file


def test_the_deployments_login_at_vault(vault: Vault, kubernetes: Path, configure: Configure) -> None:
    page = "docs/integrations/kubernetes.md"
    settings = environment(example(page, "With the pod's service account", "yaml"))
    # A token that is there by accident is not used.
    configure(
        settings, VAULT_ADDR=vault.url, MLFLOW_VAULT_JWT_PATH=str(kubernetes), VAULT_TOKEN="stray", VAULT_CACERT=None
    )
    assert headers_for(MLFLOW) == ABC


@pytest.mark.parametrize("command", ["agent", "proxy"])
def test_the_sidecar(vault: Vault, kubernetes: Path, configure: Configure, tmp_path: Path, command: str) -> None:
    each = example("docs/integrations/kubernetes.md", "With a Vault agent as sidecar", "yaml")
    [configuration] = [document["data"]["agent.hcl"] for document in each.documents() if "data" in document]
    configuration = configuration.replace("https://vault.vault.svc:8200", vault.url)
    configuration = configuration.replace("/var/run/secrets/tokens/vault", str(kubernetes))
    settings = environment(each)
    with Agent(tmp_path, command, configuration) as agent:
        configure(settings, VAULT_AGENT_ADDR=agent.url, VAULT_TOKEN="stray")
        assert headers_for(MLFLOW) == ABC


@pytest.mark.parametrize("command", ["agent", "proxy"])
def test_the_agent_beside_a_container(
    vault: Vault, configure: Configure, tmp_path_factory: pytest.TempPathFactory, command: str
) -> None:
    folder = tmp_path_factory.mktemp(command)
    page, heading = "docs/integrations/docker.md", "With a Vault agent, by Compose"
    role = enable_approle(vault, "approle", 'path "secret/data/mlflow/auth" { capabilities = ["read"] }')
    (folder / "role-id").write_text(role["VAULT_ROLE_ID"])
    (folder / "secret-id").write_text(role["VAULT_SECRET_ID"])
    configuration = example(page, heading, "hcl").text.replace("https://vault.example.com:8200", vault.url)
    # A socket's path may not be longer than about a hundred characters.
    with tempfile.TemporaryDirectory() as short:
        configuration = configuration.replace("/etc/agent", str(folder)).replace("/run/agent", short)
        settings = environment(example(page, heading, "yaml"))
        with Agent(folder, command, configuration):
            configure(settings, VAULT_AGENT_ADDR=f"unix://{short}/agent.sock")
            assert headers_for(MLFLOW) == ABC
