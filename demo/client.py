"""A training script, as anybody would write it. It knows nothing of credentials."""

from __future__ import annotations

import sys
import time

import mlflow


def main() -> None:
    print("client: starting a run", flush=True)
    with mlflow.start_run(run_name="demo") as run:
        mlflow.log_param("learning_rate", 0.01)
        for step in range(8):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
            print(f"client: logged step {step}", flush=True)
            if step == 3:
                # Whoever runs this demo changes the password now.
                print("client: waiting for line on stdin", flush=True)
                sys.stdin.readline()
            time.sleep(0.1)
        mlflow.log_text("all went well", "notes.txt")
    stored = mlflow.get_run(run.info.run_id)
    artifacts = [a.path for a in mlflow.MlflowClient().list_artifacts(run.info.run_id)]
    print(
        f"client: the server has loss={stored.data.metrics['loss']:.3f},"
        f" params={dict(stored.data.params)}, artifacts={artifacts}",
        flush=True,
    )


if __name__ == "__main__":
    main()
