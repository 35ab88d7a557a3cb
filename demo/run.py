"""The whole chain on this machine: an MLflow client, a protected MLflow server, and OpenBao with the credential.

Run it by ``make demo``. Everything is on loopback and free ports, in a temporary folder, and gone at the end.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servers import MlflowServer, OpenBao, clean_environment

CLIENT = str(Path(__file__).with_name("client.py"))
SECRET_PATH = "demo/mlflow"


def main() -> int:
    # As Ctrl-C does: leave through the blocks below, so that they clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlflow-secrets-auth-demo-") as name:
        folder = Path(name)
        step(1, "starting OpenBao and a protected MLflow server")
        with OpenBao(folder) as bao, MlflowServer(folder) as mlflow:
            tell(f"OpenBao on {bao.url}, MLflow on {mlflow.url}")
            bao.put_secret(SECRET_PATH, username=mlflow.user, password=mlflow.password)
            tell(f"stored user name and password at secret/{SECRET_PATH}")
            ok = refused_without_plugin(mlflow) and run_with_rotation(bao, mlflow) and diagnose(bao, mlflow)
    print(f"\n{'done' if ok else 'FAILED'} after {time.monotonic() - started:.0f} s; servers and files are gone")
    return 0 if ok else 1


def refused_without_plugin(mlflow: MlflowServer) -> bool:
    step(2, "a client without the plugin")
    client = subprocess.run(
        [sys.executable, CLIENT],
        env=clean_environment(MLFLOW_TRACKING_URI=mlflow.url, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    last = client.stderr.strip().splitlines()[-1] if client.stderr.strip() else "(no error)"
    tell(f"it ended with status {client.returncode}: {last[:160]}")
    return client.returncode != 0 and "401" in client.stderr


def plugin_environment(bao: OpenBao, mlflow: MlflowServer) -> dict[str, str]:
    return clean_environment(
        MLFLOW_TRACKING_URI=mlflow.url,
        MLFLOW_TRACKING_AUTH="mlflow_secrets_auth",
        MLFLOW_SECRETS_AUTH_ENABLE="vault",
        VAULT_ADDR=bao.url,
        VAULT_TOKEN=bao.root_token,
        MLFLOW_VAULT_SECRET_PATH=f"secret/{SECRET_PATH}",
        MLFLOW_VAULT_AUTH_MODE="basic",
    )


def run_with_rotation(bao: OpenBao, mlflow: MlflowServer) -> bool:
    step(3, "the same client with the plugin; its password changes while it runs")
    with subprocess.Popen(
        [sys.executable, CLIENT],
        env=plugin_environment(bao, mlflow),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdin is not None and client.stdout is not None
        try:
            for line in client.stdout:
                if "waiting for line" in line:
                    rotate(bao, mlflow)
                    client.stdin.write("\n")
                    client.stdin.flush()
                else:
                    tell(line.rstrip())
        finally:
            if client.poll() is None and sys.exc_info()[0] is not None:
                client.kill()
    tell(f"it ended with status {client.returncode}, without an error" if client.returncode == 0 else "it FAILED")
    return client.returncode == 0


def rotate(bao: OpenBao, mlflow: MlflowServer) -> None:
    password = secrets.token_urlsafe(18)
    mlflow.change_password(password)
    bao.put_secret(SECRET_PATH, username=mlflow.user, password=password)
    tell("rotated: MLflow and OpenBao have a new password, the client's is refused from now on")


def diagnose(bao: OpenBao, mlflow: MlflowServer) -> bool:
    step(4, f"mlflow-secrets-auth doctor --dry-run {mlflow.url}")
    doctor = subprocess.run(
        [sys.executable, "-m", "mlflow_secrets_auth", "doctor", "--dry-run", mlflow.url],
        env=plugin_environment(bao, mlflow),
        capture_output=True,
        text=True,
        timeout=60,
    )
    for line in (doctor.stdout + doctor.stderr).splitlines():
        tell(line)
    return doctor.returncode == 0


def step(number: int, what: str) -> None:
    print(f"\n{number}. {what}", flush=True)


def tell(what: str) -> None:
    print(f"   {what}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped; servers and files are gone", file=sys.stderr)
        sys.exit(130)
