"""The wheel and the sdist, as pip and a package index see them. `make package` does the same with a release build."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import mlflow_secrets_auth
from servers import script

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "mlflow_secrets_auth"
#: What pip needs to build the package, and what people look for in an archive. No test: they need the repository.
IN_SDIST = ("Cargo.lock", "Cargo.toml", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml")


def run(*command: str) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel() -> Path:
    [wheel] = (ROOT / "target" / "dev-wheel").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(script("maturin"), "sdist", "--out", str(folder))
    [sdist] = folder.glob("*.tar.gz")
    return sdist


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return Parser().parsestr(read(wheel, "METADATA"))


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        [path] = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def test_one_wheel_serves_every_python_since_3_10(wheel: Path) -> None:
    assert re.fullmatch(r"mlflow_secrets_auth-[\d.]+-cp310-abi3-\w+\.whl", wheel.name)
    assert "Tag: cp310-abi3-" in read(wheel, "WHEEL")


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """With py.typed and the stub of the one extension; no test, no second extension, no source."""
    sources = {f"mlflow_secrets_auth/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py*")}
    sources = {name for name in sources if "__pycache__" not in name} | {"mlflow_secrets_auth/py.typed"}
    assert "mlflow_secrets_auth/_core.pyi" in sources
    with zipfile.ZipFile(wheel) as archive:
        everything = {name for name in archive.namelist() if not name.endswith("/")}
    package = {name for name in everything if name.startswith("mlflow_secrets_auth/")}
    [extension] = package - sources
    assert re.fullmatch(r"mlflow_secrets_auth/_core(\.abi3\.so|\.pyd)", extension)
    assert sources <= package
    about = {name.partition(".dist-info/")[2] for name in everything - package}
    bill_of_materials = "sboms/mlflow-secrets-auth.cyclonedx.json"
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE", bill_of_materials}


def test_the_metadata_is_complete(metadata: Message) -> None:
    assert metadata["Name"] == "mlflow-secrets-auth"
    assert metadata["Version"] == mlflow_secrets_auth.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Summary"] and metadata["Keywords"]
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    body = metadata.get_payload()
    assert isinstance(body, str) and "MLflow" in body and "2.8.0" in body
    classifiers = metadata.get_all("Classifier", [])
    minors = {name.rpartition(" :: ")[2] for name in classifiers if "Python :: 3." in name}
    assert minors == {"3.10", "3.11", "3.12", "3.13", "3.14"}
    assert "Typing :: Typed" in classifiers


def test_c3_the_extras_bring_nothing(metadata: Message) -> None:
    """C3: documented install lines work; MLflow and the vendors' SDKs are no dependencies."""
    assert sorted(metadata.get_all("Requires-Dist", [])) == ["click>=8.1", "requests>=2.31"]
    assert sorted(metadata.get_all("Provides-Extra", [])) == ["all", "aws", "azure", "vault"]


def test_entry_points(wheel: Path) -> None:
    found = configparser.ConfigParser()
    found.read_string(read(wheel, "entry_points.txt"))
    assert {section: dict(found[section]) for section in found.sections()} == {
        "console_scripts": {"mlflow-secrets-auth": "mlflow_secrets_auth.cli:main"},
        "mlflow.request_auth_provider": {"mlflow_secrets_auth": "mlflow_secrets_auth.provider:SecretsAuthProvider"},
        "opentelemetry_otlp_credential_provider": {"mlflow_secrets_auth": "mlflow_secrets_auth.otel:traces_session"},
    }


def test_the_index_would_take_them(wheel: Path, sdist: Path) -> None:
    run(script("twine"), "check", "--strict", str(wheel), str(sdist))
    run(script("check-wheel-contents"), str(wheel))


def test_the_sdist_holds_what_a_build_needs_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        everything = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.rs")}
    assert sources <= everything
    others = {name for name in everything if not name.startswith(("src/", "python/mlflow_secrets_auth/"))}
    assert others == set(IN_SDIST)
    assert not [name for name in everything if name.endswith((".so", ".pyd", ".pyc"))]


def test_c2_the_wheel_works_alone(wheel: Path) -> None:
    """C2, C3: in an environment with nothing but its dependencies, and with each extra."""
    said = run(sys.executable, str(ROOT / "tools" / "check_install.py"), str(wheel))
    assert "works in an empty environment" in said
