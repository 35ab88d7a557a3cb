"""The documentation is true: generated pages say what the code says, and every example is executed or parsed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import boto3
import hcl2
import kubernetes_validate
import pytest
from botocore.validate import ParamValidator
from check_jsonschema.builtin_schemas import get_builtin_schema
from dockerfile_parse import DockerfileParser
from jsonschema.validators import validator_for

from aws_servers import Front, Moto
from conftest import Configure
from doc_pages import FOREIGN, PAGES, ROOT, Example, complete, containers, example, examples, pod_of
from loopback import Loopback, VaultLike
from mlflow_secrets_auth import SecretsAuthError, _core, headers_for
from reference_blocks import BLOCKS
from servers import Server, clean_environment, script

LANGUAGES = {"dockerfile", "hcl", "json", "python", "sh", "text", "toml", "yaml"}
OURS = {variable["name"] for variable in _core.variables()}
PREFIXES = ("MLFLOW_", "VAULT_", "AWS_", "AZURE_", "OTEL_", "IDENTITY_", "IMDS_", "MSI_")


def test_generated_pages_are_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "tables.py")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


# Names


def test_every_example_has_a_language() -> None:
    assert [str(each) for each in examples() if each.language not in LANGUAGES] == []


def names_of(text: str) -> set[str]:
    """Variables in code spans of a page, whole ones: `NAME`, `NAME=value`."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return {
        found.group() for span in spans if (found := re.match(r"[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b(?![_*])", span))
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_variable_that_a_page_names_exists(page: Path) -> None:
    named = {name for name in names_of(page.read_text()) if name.startswith(PREFIXES)}
    for each in examples(page=str(page.relative_to(ROOT))):
        named |= {name for variables in each.environments() for name in variables}
    assert named - OURS - FOREIGN == set()


CODES = {code for code, *_ in _core.error_codes()}


def checks() -> set[str]:
    """What `doctor` calls the things that it checks, besides the codes of errors."""
    sources = [*(ROOT / "src").glob("doctor*.rs"), *(ROOT / "src").glob("doctor/*.rs")]
    sources += (ROOT / "python" / "mlflow_secrets_auth").glob("*.py")
    return set(re.findall(r'"([a-z]+\.[a-z_]+)"', "".join(source.read_text() for source in sources)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    areas = "|".join(sorted({code.split(".")[0] for code in CODES} | {"allowlist", "header", "identity", "server"}))
    named = set(re.findall(rf"`((?:{areas})\.[a-z_]+)`", text))
    # As `doctor` prints them.
    named |= set(re.findall(r"^ *(?:pass|WARN|FAIL|skip) +([a-z]+\.[a-z_]+)", text, re.MULTILINE))
    assert named - CODES - checks() == set()


def test_the_backends_guides_say_what_to_do_about_each_of_their_codes() -> None:
    for backend in ("vault", "aws", "azure"):
        text = (ROOT / "docs" / f"{backend}.md").read_text()
        troubleshooting = text.partition("## Troubleshooting")[2]
        assert [code for code in sorted(CODES) if code.startswith(f"{backend}.") and code not in troubleshooting] == []


def test_the_migration_guide_names_every_variable_of_the_old_documents() -> None:
    """C9: whoever comes from there finds each of their variables."""
    named = names_of((ROOT / "docs" / "migrating.md").read_text())
    assert {name for block in BLOCKS for name in block.variables} - named - {"AZURE_KEY_VAULT_NAME"} == set()


# The secret


def secrets() -> list[Any]:
    """The rows and columns of the table of payloads: what is stored, the mode, and what comes of it."""
    found = []
    for line in (ROOT / "docs" / "secret.md").read_text().splitlines():
        if line.startswith("| `"):
            stored, *outcomes = re.findall(r"`([^`]*)`", line)
            found += [(stored, *pair) for pair in zip(("bearer", "basic", "raw"), outcomes, strict=True)]
    return found


@pytest.mark.parametrize(("stored", "mode", "outcome"), secrets())
def test_the_table_of_payloads(
    moto: Moto, aws: Front, configure: Configure, stored: str, mode: str, outcome: str
) -> None:
    """With AWS, where plain text can be stored."""
    name = f"docs/{uuid.uuid4().hex}"
    moto.boto().create_secret(Name=name, SecretString=stored)
    configure(aws.settings(MLFLOW_AWS_SECRET_NAME=name, MLFLOW_AWS_AUTH_MODE=mode))
    if outcome.startswith("secret."):
        with pytest.raises(SecretsAuthError) as caught:
            headers_for("https://mlflow.example.com/api")
        assert caught.value.code == outcome
    else:
        header, _, value = outcome.rpartition(": ")
        assert headers_for("https://mlflow.example.com/api") == {header or "Authorization": value}


# The doctor


def test_the_first_steps_show_what_doctor_prints(signed_in: Server) -> None:
    """The same checks in the same order, where everything is as it should be."""
    shown = example("docs/index.md", "4. Ask whether it works", "text").text
    result = subprocess.run(
        [sys.executable, "-m", "mlflow_secrets_auth", "doctor", "--dry-run", signed_in.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0
    assert [line.split()[:2] for line in shown.splitlines()] == [
        line.split()[:2] for line in result.stdout.splitlines()
    ]


# Environments


def environments() -> list[Any]:
    """Every set of variables that an example gives to a process, and that has to do with us."""
    found = []
    for each in examples():
        for variables in each.environments():
            mine = {name: value for name, value in variables.items() if name in OURS}
            if mine:
                found.append(pytest.param(each, mine, id=str(each)))
    return found


@pytest.mark.parametrize(("each", "variables"), environments())
def test_every_environment_is_a_valid_configuration(
    configure: Configure, each: Example, variables: dict[str, str]
) -> None:
    """As it stands where it names the backend; else on top of what that backend needs."""
    log_in_as_a_person(each)
    configure(complete(variables))
    facts = json.loads(_core.info())
    assert facts["errors"] == []
    assert facts["notices"] == []


def log_in_as_a_person(each: Example) -> None:
    """Leaves the files that the example's own ``vault login`` or ``aws sso login`` would; a person runs the image."""
    if "vault login" in each.text or each.language == "dockerfile":
        Path("~/.vault-token").expanduser().write_text("token")
    if found := re.search(r"aws sso login --profile (\w+)", each.text):
        Path("~/.aws").expanduser().mkdir()
        Path("~/.aws/config").expanduser().write_text(f"[profile {found[1]}]\nregion = us-east-1\n")


def test_an_environment_that_is_wrong_would_be_noticed(configure: Configure) -> None:
    configure(complete({"MLFLOW_VAULT_TTL_SEC": "soon"}))
    assert [error["code"] for error in json.loads(_core.info())["errors"]] == ["config.invalid_value"]


# Shell


@pytest.mark.parametrize("each", examples("sh"), ids=str)
def test_shell_is_shell(each: Example) -> None:
    """What is left out stands for a word."""
    result = subprocess.run(
        ["bash", "-n"], input=each.text.replace("…", "x"), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def command_lines() -> list[str]:
    """Our commands: whole lines of shell examples and of workflows, and code spans."""
    spans = "\n".join(span for page in PAGES for span in re.findall(r"`([^`\n]+)`", page.read_text()))
    blocks = "\n".join(each.text for each in examples() if each.language in ("sh", "yaml"))
    found = re.findall(r"^(?:\s*- run: )?(mlflow-secrets-auth(?: .*)?)$", f"{spans}\n{blocks}", re.MULTILINE)
    return sorted({line.partition("#")[0].strip() for line in found if "|" not in line})


@pytest.mark.parametrize("line", command_lines())
def test_every_command_of_ours_answers(line: str, vault_like: VaultLike, loopback: Loopback) -> None:
    """With a working backend; the URL is the server of this test. Alone, the command shows its help."""
    words = [loopback.url if re.match("http|[$]|URL", word) else word for word in shlex.split(line)[1:]]
    result = subprocess.run(
        [sys.executable, "-m", "mlflow_secrets_auth", *words],
        env=clean_environment(**vault_like.settings()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == (0 if words else 2), result.stdout + result.stderr
    assert result.stdout + result.stderr


# Python

#: They need a framework that the tests do not install. What they hand to workers is checked as an environment.
NOT_RUN = {("docs/integrations/workers.md", "Ray"), ("docs/integrations/workers.md", "Spark")}


@pytest.mark.parametrize("each", examples("python"), ids=str)
def test_python_is_python(each: Example) -> None:
    compile(each.text, str(each), "exec")
    named = [
        (node.module, name.name) for node in ast.walk(ast.parse(each.text)) if isinstance(node, ast.ImportFrom)
        for name in node.names if (node.module or "").startswith("mlflow_secrets_auth")
    ]  # fmt: skip
    for module, name in named:
        assert hasattr(__import__(str(module), fromlist=[name]), name)


@pytest.mark.parametrize(
    "each", [each for each in examples("python") if (each.page, each.heading) not in NOT_RUN], ids=str
)
def test_python_runs(each: Example, vault_like: VaultLike, mlflow_server: Server, tmp_path: Path) -> None:
    """In a process of its own, with the settings in its environment and our servers at the places of its own."""
    vault_like.fields = {"username": mlflow_server.user, "password": mlflow_server.password}
    text = each.text.replace("https://mlflow.example.com", mlflow_server.url)
    text = text.replace("https://vault.example.com:8200", vault_like.url).replace("…", "x")
    result = subprocess.run(
        [sys.executable, "-c", text],
        env=clean_environment(
            **vault_like.settings(MLFLOW_VAULT_AUTH_MODE="basic"),
            MLFLOW_TRACKING_URI=mlflow_server.url,
            MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
        ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_what_travels_to_a_worker_holds_no_secret(vault_like: VaultLike, mlflow_server: Server) -> None:
    """P6: the example of the workers' page: the message is short of any secret, and the worker is let in."""
    text = example("docs/integrations/workers.md", "Without any framework", "python").text
    text = text.replace(
        "https://mlflow.example.com/health", f"{mlflow_server.url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    )
    vault_like.fields = {"username": mlflow_server.user, "password": mlflow_server.password}
    result = subprocess.run(
        [sys.executable, "-c", text + "\nprint(message)"],
        env=clean_environment(**vault_like.settings(MLFLOW_VAULT_AUTH_MODE="basic", VAULT_TOKEN="canary")),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.startswith("200\n")
    assert "canary" not in result.stdout
    assert mlflow_server.password not in result.stdout
    assert vault_like.header("X-Vault-Token") == ["canary"]


# YAML and JSON


@pytest.mark.parametrize("each", [*examples("yaml"), *examples("json")], ids=str)
def test_documents_parse(each: Example) -> None:
    assert all(isinstance(document, dict) for document in each.documents())


def manifests() -> list[Example]:
    return [each for each in examples("yaml") if "apiVersion:" in each.text]


@pytest.mark.parametrize("each", manifests(), ids=str)
def test_kubernetes_manifests_have_their_schema(each: Example) -> None:
    for manifest in each.documents():
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("each", manifests(), ids=str)
def test_what_kubernetes_manifests_refer_to_exists(each: Example) -> None:
    """Service accounts and config maps are beside the pod, volumes in it, labels are the selector's."""
    documents = each.documents()
    there = {(document["kind"], document["metadata"]["name"]) for document in documents}
    assert len({document["metadata"].get("namespace") for document in documents}) == 1
    for document in documents:
        pod = pod_of(document)
        if pod is None:
            continue
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounted = {mount["name"] for each in containers(document) for mount in each.get("volumeMounts", [])}
        assert mounted == volumes
        maps = [volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume]
        maps += [source["configMapRef"]["name"] for each in containers(document) for source in each.get("envFrom", [])]
        assert {("ServiceAccount", pod["serviceAccountName"]), *(("ConfigMap", name) for name in maps)} <= there
        if "selector" in document["spec"]:
            labels = document["spec"]["template"]["metadata"]["labels"]
            assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("each", [each for each in examples("yaml") if "jobs:" in each.text], ids=str)
def test_actionlint_has_no_complaint_about_a_workflow(each: Example, tmp_path: Path) -> None:
    file = tmp_path / "workflow.yml"
    file.write_text(each.text)
    result = subprocess.run([script("actionlint"), str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("each", [each for each in examples("yaml") if "services:" in each.text], ids=str)
def test_compose_files_have_their_schema(each: Example) -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    [document] = each.documents()
    validator_for(schema)(schema).validate(document)


@pytest.mark.parametrize("each", [each for each in examples("json") if "containerDefinitions" in each.text], ids=str)
def test_task_definitions_fit_the_api(each: Example) -> None:
    [document] = each.documents()
    shape = boto3.client("ecs", "us-east-1").meta.service_model.operation_model("RegisterTaskDefinition").input_shape
    assert ParamValidator().validate(document, shape).generate_report() == ""
    assert {"taskRoleArn", "family"} <= document.keys()


@pytest.mark.parametrize("each", [each for each in examples("json") if '"Statement"' in each.text], ids=str)
def test_policies_are_accepted(each: Example, moto: Moto) -> None:
    """By IAM as moto has it: the policy of an identity, or the trust policy of a role."""
    actions = re.findall(r'"Action": (?:\[([^]]*)\]|"([^"]*)")', each.text)
    for action in re.findall(r"[^\s\",]+", " ".join(one or other for one, other in actions)):
        assert re.fullmatch(r"[a-z-]+:[A-Z]\w+", action), action
    iam = boto3.client(
        "iam", endpoint_url=moto.url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    name = f"docs-{each.line}-{Path(each.page).stem}"
    if "Principal" in each.text and "sts:" in each.text:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=each.text)
    elif "Principal" not in each.text:
        iam.create_policy(PolicyName=name, PolicyDocument=each.text)
    else:
        secrets = moto.boto()
        secrets.create_secret(Name=name, SecretString="x")
        secrets.put_resource_policy(SecretId=name, ResourcePolicy=each.text)


# HCL and Dockerfiles


@pytest.mark.parametrize("each", examples("hcl"), ids=str)
def test_hcl_parses(each: Example) -> None:
    assert hcl2.loads(each.text)


@pytest.mark.parametrize("each", examples("hcl", "docs/integrations/terraform.md"), ids=str)
def test_what_terraform_refers_to_exists(each: Example) -> None:
    """Whatever is used is defined in the same example, so that it can be pasted."""
    kinds = r'^(resource|data|variable) "(\w+)"(?: "(\w+)")?'
    defined = set()
    for block, first, second in re.findall(kinds, each.text, re.MULTILINE):
        defined.add(
            {"resource": f"{first}.{second}", "data": f"data.{first}.{second}", "variable": f"var.{first}"}[block]
        )
    used = set(re.findall(r"\b(data\.\w+\.\w+|var\.\w+|(?<!data\.)(?:vault|aws|azurerm)_\w+\.\w+)", each.text))
    assert used
    assert used - defined == set()


@pytest.mark.parametrize("each", examples("dockerfile"), ids=str)
def test_dockerfiles_parse(each: Example, tmp_path: Path) -> None:
    file = DockerfileParser(str(tmp_path / "Dockerfile"))
    file.content = each.text
    known = {"FROM", "COPY", "RUN", "ENV", "WORKDIR", "USER", "CMD", "COMMENT"}
    instructions = [line["instruction"] for line in file.structure]
    assert set(instructions) <= known
    assert instructions[0] == "FROM"
