"""``python -m mlflow_secrets_auth`` is ``mlflow-secrets-auth``."""

from mlflow_secrets_auth.cli import main

if __name__ == "__main__":
    main(prog_name="mlflow-secrets-auth")
