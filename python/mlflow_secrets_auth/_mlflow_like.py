"""A look-alike of an MLflow tracking server that wants a credential. For tests; its data is in memory."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mlflow_secrets_auth._loopback import Answer, Loopback, Request

_API = "/api/2.0/mlflow/"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
#: What MLflow itself gives without a credential, too.
_OPEN_PATHS = ("/health",)


@dataclass
class Run:
    """A run as the look-alike has it.

    Attributes:
        run_id: Its id.
        experiment_id: The id of its experiment.
        name: Its name.
        status: ``RUNNING``, ``FINISHED`` and so on.
        params: Its parameters.
        tags: Its tags, those that MLflow sets included.
    """

    run_id: str
    experiment_id: str
    name: str = ""
    status: str = "RUNNING"
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    _history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _times: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric."""
        return {key: entry["value"] for key, entry in self._latest().items()}

    def _record(self, metric: Mapping[str, Any]) -> None:
        entry = {name: metric.get(name, 0) for name in ("key", "value", "timestamp", "step")}
        self._history.append({**entry, "value": float(entry["value"])})

    def _latest(self) -> dict[str, dict[str, Any]]:
        in_order = sorted(self._history, key=lambda entry: (int(entry["step"]), int(entry["timestamp"])))
        return {entry["key"]: entry for entry in in_order}

    def _history_of(self, key: str) -> list[dict[str, Any]]:
        return [entry for entry in self._history if entry["key"] == key]

    def _info(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "run_uuid": self.run_id,
            "run_name": self.name,
            "experiment_id": self.experiment_id,
            "status": self.status,
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/{self.experiment_id}/{self.run_id}/artifacts",
            **self._times,
        }

    def _document(self) -> dict[str, Any]:
        def pairs(items: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"key": key, "value": value} for key, value in items.items()]

        metrics = list(self._latest().values())
        data = {"params": pairs(self.params), "tags": pairs(self.tags), "metrics": metrics}
        return {"info": self._info(), "data": data}


class _Refused(Exception):
    """An answer that is an error, in MLflow's form."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = Answer.json({"error_code": code, "message": message}, status)


class ProtectedMlflow(Loopback):
    """A look-alike of an MLflow tracking server on ``http://127.0.0.1:<port>`` that wants a credential.

    It has as much of the REST API as runs need: experiments (create, get, get by name, search), runs (create, get,
    update, search without a filter, parameters, metrics, tags, batches), artifacts through the server, ``/version`` and
    ``/health``. Whatever else is asked for is a 404. All but ``/health`` wants the credential, and is a 401 without it.

    Attributes:
        url: Its address.
        requests: Every :class:`Request` so far, refused ones included.
        refused: How many requests came without the right credential.
        runs: Every :class:`Run` by its id.
        artifacts: The content of every artifact by its path.
    """

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, bytes] = {}
        self._experiments: dict[str, str] = {"0": "Default"}
        self.refused = 0
        self._accepted: list[dict[str, str]] = []
        # Each connection has a thread of its own.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url})"

    def accept(
        self,
        *,
        token: str | None = None,
        username: str | None = None,
        password: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """From now on this credential is the right one, and no other.

        Args:
            token: ``Authorization: Bearer <token>``.
            username: With ``password``: ``Authorization: Basic …``.
            password: See ``username``.
            headers: The headers as they have to be, for everything else.

        Raises:
            ValueError: Not exactly one kind of credential is given.
        """
        self._accepted = [_expected(token, username, password, headers)]

    def also_accept(
        self,
        *,
        token: str | None = None,
        username: str | None = None,
        password: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """As :meth:`accept`, beside what is accepted already: the time of a rotation in which both are good."""
        self._accepted = [*self._accepted, _expected(token, username, password, headers)]

    def _answer(self, request: Request) -> Answer:
        url = urlsplit(request.path)
        with self._lock:
            if url.path not in _OPEN_PATHS and not self._accepts(request):
                self.refused += 1
                answer = Answer.json({"error_code": "UNAUTHENTICATED", "message": "no valid credential"}, 401)
                answer.headers["WWW-Authenticate"] = 'Bearer realm="mlflow"'
                return answer
            try:
                return self._serve(request, url.path, {name: values[0] for name, values in parse_qs(url.query).items()})
            except _Refused as refused:
                return refused.answer

    def _accepts(self, request: Request) -> bool:
        return any(
            all(request.headers.get(name.lower()) == value for name, value in expected.items())
            for expected in self._accepted
        )

    def _serve(self, request: Request, path: str, query: dict[str, str]) -> Answer:
        if path == "/health":
            return Answer(headers={"Content-Type": "text/plain"}, body=b"OK")
        if path == "/version":
            return Answer(headers={"Content-Type": "text/plain"}, body=_mlflow_version().encode())
        if path.startswith(_ARTIFACTS):
            return self._artifact(request, unquote(path[len(_ARTIFACTS) :]).strip("/"), query)
        calls: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "experiments/create": self._create_experiment,
            "experiments/get": lambda asked: {"experiment": self._experiment(asked.get("experiment_id", ""))},
            "experiments/get-by-name": self._get_experiment_by_name,
            "experiments/search": lambda asked: {"experiments": [self._experiment(id) for id in self._experiments]},
            "runs/create": self._create_run,
            "runs/get": lambda asked: {"run": self._run(asked)._document()},
            "runs/update": self._update_run,
            "runs/search": self._search_runs,
            "runs/log-batch": self._log,
            "runs/log-metric": lambda asked: self._log({**asked, "metrics": [asked]}),
            "runs/log-parameter": lambda asked: self._log({**asked, "params": [asked]}),
            "runs/set-tag": lambda asked: self._log({**asked, "tags": [asked]}),
            "metrics/get-history": lambda asked: {"metrics": self._run(asked)._history_of(asked["metric_key"])},
        }
        call = calls.get(path.removeprefix(_API)) if path.startswith(_API) else None
        if call is None:
            raise _Refused(404, "ENDPOINT_NOT_FOUND", f"the look-alike has no {path}")
        return Answer.json(call({**query, **(json.loads(request.body) if request.body else {})}))

    def _create_experiment(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["name"] in self._experiments.values():
            raise _Refused(400, "RESOURCE_ALREADY_EXISTS", f"Experiment {asked['name']!r} already exists")
        experiment_id = str(len(self._experiments))
        self._experiments[experiment_id] = asked["name"]
        return {"experiment_id": experiment_id}

    def _get_experiment_by_name(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = [id for id, name in self._experiments.items() if name == asked.get("experiment_name")]
        return {"experiment": self._experiment(found[0] if found else "")}

    def _experiment(self, experiment_id: str) -> dict[str, Any]:
        if experiment_id not in self._experiments:
            raise _Refused(404, "RESOURCE_DOES_NOT_EXIST", "no such experiment")
        return {
            "experiment_id": experiment_id,
            "name": self._experiments[experiment_id],
            "artifact_location": f"mlflow-artifacts:/{experiment_id}",
            "lifecycle_stage": "active",
        }

    def _create_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        experiment = self._experiment(str(asked.get("experiment_id", "0")))
        run = Run(uuid.uuid4().hex, experiment["experiment_id"])
        run._times["start_time"] = int(asked.get("start_time") or time.time() * 1000)
        run.tags.update((tag["key"], tag["value"]) for tag in asked.get("tags", []))
        run.name = asked.get("run_name") or run.tags.get("mlflow.runName", "a-run")
        self.runs[run.run_id] = run
        return {"run": run._document()}

    def _run(self, asked: dict[str, Any]) -> Run:
        run = self.runs.get(str(asked.get("run_id") or asked.get("run_uuid")))
        if run is None:
            raise _Refused(404, "RESOURCE_DOES_NOT_EXIST", "no such run")
        return run

    def _update_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self._run(asked)
        run.status = asked.get("status", run.status)
        run.name = asked.get("run_name", run.name)
        if "end_time" in asked:
            run._times["end_time"] = int(asked["end_time"])
        return {"run_info": run._info()}

    def _search_runs(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked.get("filter"):
            raise _Refused(501, "NOT_IMPLEMENTED", "the look-alike searches without a filter only")
        wanted = asked.get("experiment_ids", [])
        return {"runs": [run._document() for run in self.runs.values() if run.experiment_id in wanted]}

    def _log(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self._run(asked)
        for metric in asked.get("metrics", []):
            run._record(metric)
        run.params.update((param["key"], param["value"]) for param in asked.get("params", []))
        run.tags.update((tag["key"], tag["value"]) for tag in asked.get("tags", []))
        return {}

    def _artifact(self, request: Request, path: str, query: dict[str, str]) -> Answer:
        if not path:
            return Answer.json({"files": self._listing(query.get("path", ""))})
        if request.method == "PUT":
            self.artifacts[path] = request.body
            return Answer.json({})
        if path not in self.artifacts:
            raise _Refused(404, "RESOURCE_DOES_NOT_EXIST", "no such artifact")
        if request.method == "DELETE":
            del self.artifacts[path]
            return Answer.json({})
        return Answer(headers={"Content-Type": "application/octet-stream"}, body=self.artifacts[path])

    def _listing(self, folder: str) -> list[dict[str, Any]]:
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        below = [path[len(prefix) :] for path in self.artifacts if path.startswith(prefix)]
        files = [{"path": name, "is_dir": False, "file_size": len(self.artifacts[prefix + name])} for name in below]
        folders = sorted({name.split("/")[0] for name in below if "/" in name})
        return [
            *[entry for entry in files if "/" not in str(entry["path"])],
            *[{"path": name, "is_dir": True} for name in folders],
        ]


def _expected(
    token: str | None, username: str | None, password: str | None, headers: Mapping[str, str] | None
) -> dict[str, str]:
    """The headers of a credential."""
    match (token, username, password, headers):
        case (str(), None, None, None):
            return {"Authorization": f"Bearer {token}"}
        case (None, str(), str(), None):
            encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
            return {"Authorization": f"Basic {encoded}"}
        case (None, None, None, Mapping()) if headers:
            return dict(headers)
    raise ValueError("give a token, or a user name and a password, or headers")


def _mlflow_version() -> str:
    """The version that the look-alike claims to be: that of the client, so that neither does anything special."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("mlflow-skinny", "mlflow"):
        try:
            return version(package)
        except PackageNotFoundError:
            pass
    return "3.0.0"
