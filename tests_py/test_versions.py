"""C8: the oldest supported and the newest MLflow, ``mlflow-skinny`` alone, the oldest and the newest requests.

The full list is ``make test-matrix``; these two environments are its corners that install in seconds.
"""

from __future__ import annotations

import pytest

from matrix import ROOT, make_environment, run_suite
from servers import MlflowServer, OpenBao


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["skinny-oldest", "skinny-newest"])
def test_c8_a_run_with_artifacts_and_a_rotation(bao: OpenBao, mlflow_server: MlflowServer, name: str) -> None:
    """C8: mlflow-skinny alone, in an environment without MLflow's server, does the whole job across a rotation."""
    [wheel] = (ROOT / "target" / "dev-wheel").glob("*.whl")
    said = run_suite(make_environment(name, wheel), bao, mlflow_server)
    assert said.startswith("works with mlflow")
    if name == "skinny-oldest":
        assert said == "works with mlflow 2.8.0 and requests 2.31.0"
