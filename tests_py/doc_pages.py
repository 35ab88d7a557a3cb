"""The pages of the documentation, and the examples in them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser
from markdown_it import MarkdownIt

from reference_blocks import AWS, AZURE, BASES, VAULT

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: Variables that pages name or set and that are not ours to declare.
FOREIGN = {
    "MLFLOW_ALLOW_HTTP_REDIRECTS",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
    "SSL_CERT_DIR",
    "TF_VAR_mlflow_token",
}

#: What a page of one backend leaves out of its fragments, because it was said at the top.
_BASE_OF_PREFIX = {"VAULT_": VAULT, "MLFLOW_VAULT_": VAULT, "AWS_": AWS, "MLFLOW_AWS_": AWS}
_BASE_OF_PREFIX |= {"AZURE_": AZURE, "MLFLOW_AZURE_": AZURE}


@dataclass(frozen=True)
class Example:
    """A code block: its page below the repository's root, the heading above it, its line, its language, its text."""

    page: str
    heading: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def environments(self) -> Iterator[dict[str, str]]:
        """The variables that it sets, once for each process that it describes."""
        reader = _READERS.get(self.language)
        for variables in reader(self.text) if reader else ():
            if variables:
                yield variables

    def documents(self) -> list[Any]:
        """What a YAML or JSON example holds."""
        return list(yaml.safe_load_all(self.text)) if self.language == "yaml" else [json.loads(self.text)]


def examples(language: str | None = None, page: str | None = None) -> list[Example]:
    """Every code block of the documentation; of one language, of one page."""
    found = [example for path in PAGES for example in _of_page(path)]
    found = [example for example in found if language in (None, example.language)]
    return [example for example in found if page in (None, example.page)]


def example(page: str, heading: str, language: str) -> Example:
    """The only example of a language below a heading."""
    [found] = [example for example in examples(language, page) if example.heading == heading]
    return found


def _of_page(path: Path) -> Iterator[Example]:
    heading = ""
    tokens = MarkdownIt("commonmark").parse(path.read_text())
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[index + 1].content
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            page = str(path.relative_to(ROOT))
            yield Example(page, heading, token.map[0] + 1, token.info.strip(), token.content)


def settled(value: str) -> str:
    """A value as a process might see it: what the example leaves out or the shell expands is a plain word here."""
    return "left-out" if re.search(r"[$…]", value) else value


def complete(variables: dict[str, str]) -> dict[str, str]:
    """A configuration: the variables, on top of what their backend needs unless they say which backend it is."""
    variables = {name: settled(value) for name, value in variables.items()}
    if "MLFLOW_SECRETS_AUTH_ENABLE" in variables:
        return variables
    bases = {base for prefix, base in _BASE_OF_PREFIX.items() for name in variables if name.startswith(prefix)}
    [base] = bases or {VAULT}
    return {**BASES[base], **variables}


def _of_shell(text: str) -> Iterator[dict[str, str]]:
    """One process: whoever types the block. What a command line sets for itself counts too (``… appsettings set``)."""
    text = re.sub(r"\$\([^()]*(\([^()]*\)[^()]*)*\)", "$substituted", text.replace("\\\n", " "))
    exported, passed = {}, {}
    for line in text.splitlines():
        words = shlex.split(line, comments=True) if line.startswith("export ") or " --settings " in line else []
        pairs = dict(word.split("=", 1) for word in words if re.match(r"[A-Z]\w*=", word))
        (exported if line.startswith("export ") else passed).update(pairs)
    yield exported
    yield passed


def _of_dockerfile(text: str) -> Iterator[dict[str, str]]:
    yield dict(DockerfileParser(fileobj=BytesIO(text.encode())).envs)


def _of_yaml(text: str) -> Iterator[dict[str, str]]:
    documents = list(yaml.safe_load_all(text))
    maps = {document["metadata"]["name"]: document.get("data", {}) for document in documents if "metadata" in document}
    for document in documents:
        for service in document.get("services", {}).values():
            yield service.get("environment", {})
        for job in document.get("jobs", {}).values():
            yield job.get("env", {})
        for container in containers(document):
            variables = {variable["name"]: variable["value"] for variable in container.get("env", [])}
            for source in container.get("envFrom", []):
                variables |= maps[source["configMapRef"]["name"]]
            yield variables


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of a Pod, or of what makes pods; a bare ``env`` is the container's only part."""
    pod = pod_of(manifest)
    if pod is None:
        return [manifest] if "env" in manifest else []
    return [*pod.get("initContainers", []), *pod["containers"]]


def pod_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The specification of the pod that a manifest makes."""
    if manifest.get("kind") == "Pod":
        return manifest["spec"]  # type: ignore[no-any-return]
    return manifest.get("spec", {}).get("template", {}).get("spec")  # type: ignore[no-any-return]


def _of_json(text: str) -> Iterator[dict[str, str]]:
    document = json.loads(text)
    for container in document.get("containerDefinitions", []):
        yield {variable["name"]: variable["value"] for variable in container["environment"]}


def _of_python(text: str) -> Iterator[dict[str, str]]:
    """What it hands to workers, or to objects of ours."""
    pairs = re.findall(r'"(?:spark\.executorEnv\.)?([A-Z][A-Z0-9]*_[A-Z0-9_]+)"[:,] "([^"]*)"', text)
    yield dict(pairs)


_READERS = {
    "sh": _of_shell,
    "dockerfile": _of_dockerfile,
    "yaml": _of_yaml,
    "json": _of_json,
    "python": _of_python,
}
