"""The workflows run elsewhere. What can be said without running them: they are well-formed, what they name exists,
every action is pinned, and no job may do more than it has to. `make lint` adds an audit of their security.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from servers import script

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: ([\w-]+/[\w-]+)@([0-9a-f]{40}) # v\d+\.\d+\.\d+$")
#: A file or a folder of this repository, as the start of a path in a command.
NAMED = re.compile(r"(?<![\w./-])((?:\.ci|benches|demo|docs|python|src|tests|tests_py|tools)/[\w./-]*\w)")
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def targets() -> set[str]:
    """What `make` can be asked for."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["jobs"]
    return found


def commands(path: Path) -> list[str]:
    return [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]


def test_they_are_all_there() -> None:
    assert {path.name for path in WORKFLOWS} == {"audit.yml", "bench.yml", "ci.yml", "wheels.yml"}


def test_actionlint_has_no_complaint() -> None:
    result = subprocess.run([script("actionlint"), *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@every_workflow
def test_every_action_is_pinned_to_a_commit_with_its_version_beside_it(path: Path) -> None:
    lines = [line.strip().removeprefix("- ") for line in path.read_text().splitlines()]
    used = [line for line in lines if line.startswith("uses:")]
    assert used
    for line in used:
        assert PINNED.match(line), line


def test_an_action_is_the_same_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action, commit in re.findall(r"uses: ([^@\s]+)@(\S+)", path.read_text()):
            pins.setdefault(action, set()).add(commit)
    assert {action: commits for action, commits in pins.items() if len(commits) > 1} == {}


@every_workflow
def test_nothing_is_permitted_that_is_not_needed(path: Path) -> None:
    """Only the job that publishes may prove who it is, and only on a tag."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90
        if (path.name, name) == ("wheels.yml", "publish"):
            assert job["permissions"] == {"id-token": "write", "attestations": "write"}
            assert "github.ref_type == 'tag'" in job["if"]
            assert set(job["needs"]) == set(workflow["jobs"]) - {name}
        else:
            assert job["permissions"] == {"contents": "read"}


@every_workflow
def test_what_a_workflow_runs_exists(path: Path) -> None:
    for command in commands(path):
        for target in re.findall(r"\bmake ([\w-]+)", command):
            assert target in targets(), command
        for named in NAMED.findall(command):
            assert (ROOT / named).exists(), named


@every_workflow
def test_what_starts_a_workflow_exists(path: Path) -> None:
    # YAML takes the key `on` for a boolean.
    started: dict[str, Any] = yaml.safe_load(path.read_text())[True]
    for event in started.values():
        for pattern in (event or {}).get("paths", []) if isinstance(event, dict) else []:
            assert any(ROOT.glob(pattern)), pattern


@every_workflow
def test_they_use_the_rust_that_the_package_asks_for(path: Path) -> None:
    [wanted] = re.findall(r'^rust-version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    text = path.read_text()
    assert set(re.findall(r'(?:RUSTUP_TOOLCHAIN|rust-toolchain): "(.+)"', text)) == {wanted}


def test_the_benchmark_compares_with_the_published_figures() -> None:
    """`make bench` writes both; the alert is about the rows that have an aim."""
    rows = (line.strip("| \n").split(" | ") for line in (ROOT / "docs" / "performance.md").read_text().splitlines())
    published = {
        row[0]: float(row[3]) for row in rows if len(row) == 6 and row[3] != "ratio" and row[5] in ("yes", "**no**")
    }
    stored = json.loads((ROOT / "benches" / "python" / "ratios.json").read_text())
    assert stored and stored == published


def test_dependabot_looks_where_something_is() -> None:
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"cargo", "pip", "github-actions"}
    for update in updates:
        for folder in update.get("directories", [update.get("directory")]):
            assert (ROOT / folder.lstrip("/")).is_dir(), folder


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_pages_name_targets_that_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"`make ([\w-]+)", text)) | set(re.findall(r"^ {4}make ([\w-]+)", text, re.MULTILINE))
    assert named <= targets()
    if page.name == "CONTRIBUTING.md":
        inner = {"prerequisites", "bench-ready", "lint-rust", "lint-python", "test-rust", "test-python", "help"}
        assert targets() - inner <= named
