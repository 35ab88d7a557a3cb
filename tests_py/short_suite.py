"""What has to work with every supported MLflow: a run, its artifacts, and a rotation in between. One line per step.

Runs in an environment with some version of MLflow (or only ``mlflow-skinny``) and this package; the servers are
elsewhere. Reads a line from stdin before the second half: the password changes meanwhile.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import mlflow
import requests


def main() -> None:
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    run_id = run.info.run_id
    client.log_param(run_id, "p", "1")
    client.log_metric(run_id, "m", 0.5)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "notes.txt"
        file.write_text("text")
        client.log_artifact(run_id, str(file))
        print("first half", flush=True)
        sys.stdin.readline()
        client.log_metric(run_id, "m", 0.25, step=1)
        assert [file.path for file in client.list_artifacts(run_id)] == ["notes.txt"]
        assert Path(client.download_artifacts(run_id, "notes.txt", folder)).read_text() == "text"
    data = client.get_run(run_id).data
    assert (data.params, data.metrics) == ({"p": "1"}, {"m": 0.25})
    client.set_terminated(run_id)
    print(f"works with mlflow {mlflow.__version__} and requests {requests.__version__}", flush=True)


if __name__ == "__main__":
    main()
