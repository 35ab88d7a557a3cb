"""``make test-matrix``: the short suite with the MLflow versions that we support, each in an environment of its own.

``python tools/matrix.py [NAME ...]`` runs some of them; the names are the keys below. The servers run with the MLflow
of the environment that runs this script.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "demo"))

from servers import MlflowServer, OpenBao, clean_environment  # noqa: E402

#: MLflow 2.8.0 is the first that has request auth plugins. Old versions need the setuptools of their time.
OLDEST = ["mlflow-skinny==2.8.0", "setuptools<81"]
#: What each environment has beside this package. `skinny-oldest` also has the oldest `requests` that we support.
ENVIRONMENTS: dict[str, list[str]] = {
    "skinny-oldest": [*OLDEST, "requests==2.31.0", "urllib3<2"],
    "skinny-newest": ["mlflow-skinny"],
    "2.8": ["mlflow==2.8.0", "setuptools<81"],
    "2.14": ["mlflow==2.14.3", "setuptools<81"],
    "2.22": ["mlflow==2.22.5"],
    "3.0": ["mlflow==3.0.1"],
    "newest": ["mlflow"],
}


def make_environment(name: str, wheel: Path) -> Path:
    """The Python of an environment, which is made where it is not there yet."""
    folder = ROOT / ".venvs" / f"matrix-{name}"
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    wanted = "\n".join(ENVIRONMENTS[name])
    if not ready.exists() or ready.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]], check=True)
        ready.write_text(wanted)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--force-reinstall", "--no-deps", str(wheel)], check=True)
    # The package's own dependencies, within what the environment pins.
    subprocess.run([*pip, "click>=8.1"], check=True)
    return python


def run_suite(python: Path, bao: OpenBao, mlflow: MlflowServer) -> str:
    """Runs the short suite; its last line. The password is changed in the middle."""
    path = f"matrix/{secrets.token_hex(4)}"
    bao.put_secret(path, username=mlflow.user, password=mlflow.password)
    environment = clean_environment(
        MLFLOW_TRACKING_URI=mlflow.url,
        MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=bao.url,
        VAULT_TOKEN=bao.root_token,
        MLFLOW_VAULT_SECRET_PATH=f"secret/{path}",
        MLFLOW_VAULT_AUTH_MODE="basic",
    )
    with subprocess.Popen(
        [str(python), str(ROOT / "tests_py" / "short_suite.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as suite:
        assert suite.stdin and suite.stdout and suite.stderr
        if suite.stdout.readline().strip() == "first half":
            password = secrets.token_urlsafe(18)
            mlflow.change_password(password)
            bao.put_secret(path, username=mlflow.user, password=password)
        out, err = suite.communicate("\n", timeout=120)
    if suite.returncode != 0:
        raise RuntimeError(f"{python} failed:\n{err[-3000:]}")
    return out.strip().splitlines()[-1]


def newest_wheel() -> Path:
    """The wheel that the Makefile has built."""
    return max((ROOT / "dist").glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)


def main(names: list[str]) -> int:
    wheel = newest_wheel()
    failed = []
    with (
        tempfile.TemporaryDirectory(prefix="mlflow-secrets-auth-matrix-") as folder,
        OpenBao(Path(folder)) as bao,
        MlflowServer(Path(folder)) as mlflow,
    ):
        for name in names or list(ENVIRONMENTS):
            try:
                print(f"{name}: {run_suite(make_environment(name, wheel), bao, mlflow)}", flush=True)
            except (RuntimeError, subprocess.SubprocessError) as error:
                failed.append(name)
                print(f"{name}: FAILED: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
