"""``make bench``: this package against the Python plugin 0.2.0, on this machine, in one run, on the same servers.

Each measurement is made in turn for both (A B A B …), in processes of their own; the figure is the median. Writes
``docs/performance.md`` with its plot, and the ratios to ``benches/python/ratios.json``.

``--alert`` writes nothing: it exits 1 where a ratio is worse by half than the one stored there. Ratios, because both
sides run on the same machine, whichever it is.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "tests_py")]

from loopback import VaultLike  # noqa: E402
from servers import OpenBao, Server, clean_environment, script  # noqa: E402

WORKER = str(Path(__file__).with_name("worker.py"))
OURS, THEIRS = (ROOT / ".venvs" / name / "bin" / "python" for name in ("bench-ours", "bench-0.2.0"))
RATIOS = Path(__file__).with_name("ratios.json")
ROUNDS = 7
#: How much worse than the stored one a ratio may be: 150 %.
TOLERANCE = 1.5

Figures = dict[str, list[float]]


class Moto(Server):
    """moto's server: AWS Secrets Manager in memory."""

    def command(self) -> list[str]:
        return [script("moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]

    def ready_path(self) -> str:
        return "/moto-api/"


def worker(python: Path, case: str, settings: dict[str, str]) -> dict[str, float]:
    result = subprocess.run(
        [str(python), WORKER, case], env=clean_environment(**settings), capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"{python} {case}: {result.stderr[-2000:]}")
    document: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return document


def in_turn(case: str, settings: dict[str, str], rounds: int = ROUNDS) -> tuple[Figures, Figures]:
    """Runs both alternately, after one round that does not count."""
    sides: tuple[Figures, Figures] = ({}, {})
    for number in range(rounds + 1):
        for side, python in zip(sides, (OURS, THEIRS), strict=True):
            for name, value in worker(python, case, settings).items():
                if number:
                    side.setdefault(name, []).append(value)
    return sides


def whole_process(
    arguments: list[str], settings: dict[str, str] | None = None, rounds: int = ROUNDS
) -> tuple[list[float], list[float]]:
    """Milliseconds of a command that succeeds, from start to end."""
    sides: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side, python in zip(sides, (OURS, THEIRS), strict=True):
            start = time.perf_counter()
            subprocess.run(
                [str(python.with_name(arguments[0])), *arguments[1:]],
                env=clean_environment(**(settings or {})),
                capture_output=True,
                check=True,
            )
            if number:
                side.append((time.perf_counter() - start) * 1e3)
    return sides


def herd(threads: int) -> tuple[int, int]:
    """Reads of the secret that the server counts when this many threads miss together."""
    counts = []
    for python in (OURS, THEIRS):
        with VaultLike() as server:
            server.before_read = lambda: time.sleep(0.02)
            own = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "BENCH_THREADS": str(threads)}
            worker(python, "herd", {**server.settings(), **own})
            counts.append(server.reads)
    return counts[0], counts[1]


class Report:
    """Rows of the table: what, unit, both figures, the aim, and whether it is reached."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, unit: str, ours: float, theirs: float, aim: str, reached: bool) -> None:
        row = {"what": what, "unit": unit, "ours": ours, "theirs": theirs, "aim": aim, "reached": reached}
        self.rows.append(row)
        verdict = "ok" if reached else "MISSED"
        print(f"{what:<58} {ours:>9.2f} {theirs:>9.2f} {unit:<3} {aim:<20} {verdict}", flush=True)


def measure(folder: Path) -> Report:
    report = Report()
    with OpenBao(folder) as bao, Moto(folder) as moto:
        bao.put_secret("bench/mlflow", token="bench-token")
        vault = {
            "MLFLOW_SECRETS_AUTH_ENABLE": "vault",
            "VAULT_ADDR": bao.url,
            "VAULT_TOKEN": bao.root_token,
            "MLFLOW_VAULT_SECRET_PATH": "secret/bench/mlflow",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        }
        median = statistics.median

        ours, theirs = in_turn("cached", vault)
        a, b = median(ours["cached_us"]), median(theirs["cached_us"])
        reached = a <= 2 and b / a >= 6
        report.add("cached request: get_auth() and the auth call", "µs", a, b, "2 µs, and 6 times", reached)
        a, b = median(ours["static_us"]), median(theirs["static_us"])
        report.add("… a static header, for comparison", "µs", a, b, "", True)

        ours, theirs = in_turn("importing", vault)
        a, b = median(ours["import_ms"]), median(theirs["import_ms"])
        report.add("import of the package", "ms", a, b, "15 times", b / a >= 15)

        ours, theirs = in_turn("first_request", vault)
        a, b = median(ours["first_request_ms"]), median(theirs["first_request_ms"])
        report.add("fresh process to the first header (OpenBao)", "ms", a, b, "", True)

        mine, others = whole_process(["mlflow-secrets-auth", "info"])
        a, b = median(mine), median(others)
        reached = b / a >= 15 and a <= 100
        report.add("mlflow-secrets-auth info, whole process", "ms", a, b, "15 times, and 100 ms", reached)
        mine, others = whole_process(["mlflow-secrets-auth", "doctor"], vault)
        a, b = median(mine), median(others)
        report.add("mlflow-secrets-auth doctor (OpenBao), whole process", "ms", a, b, "300 ms", a <= 300)

        ours, theirs = in_turn("cold", vault)
        a, b = median(ours["cold_ms"]), median(theirs["cold_ms"])
        report.add("cold credential, OpenBao", "ms", a, b, "2 times", b / a >= 2)
        # Only here does ours ask which mount the path is on.
        a, b = median(ours["cold_first_ms"]), median(theirs["cold_first_ms"])
        report.add("… the first of a process, which asks for the mount", "ms", a, b, "", True)

        if aws := moto_settings(moto):
            ours, theirs = in_turn("cold", aws)
            a, b = median(ours["cold_ms"]), median(theirs["cold_ms"])
            report.add("cold credential, AWS (moto)", "ms", a, b, "2 times", b / a >= 2)

        for threads in (32, 64):
            x, y = herd(threads)
            report.add(f"backend reads when {threads} threads miss together", "", x, y, "1", x == 1)

        ours, theirs = in_turn("expiry", {**vault, "MLFLOW_VAULT_TTL_SEC": "1"}, rounds=3)
        a, b = median(ours["slowest_ms"]), median(theirs["slowest_ms"])
        report.add("slowest of 10,000 requests across expiries", "ms", a, b, "1 ms", a < 1)

        ours, theirs = in_turn("memory", vault, rounds=3)
        a, b = median(ours["memory_mb"]), median(theirs["memory_mb"])
        report.add("memory added to a process with MLflow", "MB", a, b, "", True)
    return report


def moto_settings(moto: Moto) -> dict[str, str] | None:
    """Settings for a secret in moto, where this build has the AWS provider."""
    command = [str(OURS), "-m", "mlflow_secrets_auth", "info", "--json"]
    info = subprocess.run(command, env=clean_environment(), capture_output=True, check=True)
    built = {p["name"]: p["built_in"] for p in json.loads(info.stdout)["providers"]}
    if not built["aws-secrets-manager"]:
        return None
    settings = {
        "MLFLOW_SECRETS_AUTH_ENABLE": "aws-secrets-manager",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": moto.url,
        # The only name that 0.2.0 knows; for us it is an alias.
        "MLFLOW_AWS_SECRET_ID": "bench/mlflow",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
    }
    create = (
        "import boto3; boto3.client('secretsmanager').create_secret(Name='bench/mlflow',"
        ' SecretString=\'{"token": "bench-token"}\')'
    )
    subprocess.run([str(THEIRS), "-c", create], env=clean_environment(**settings), check=True)
    return settings


def ratio(row: dict[str, Any]) -> float:
    """How many times less ours takes."""
    return float(row["theirs"] / row["ours"]) if row["ours"] > 0 else float("inf")


def ratios(report: Report) -> dict[str, float]:
    """The ratios that have an aim, as they are stored."""
    return {row["what"]: round(ratio(row), 1) for row in report.rows if row["aim"]}


def worse(stored: dict[str, float], now: dict[str, float]) -> list[str]:
    """A line for every measurement that has become worse by more than the tolerance, or is not made any more."""
    return [
        f"{what}: {now.get(what, 0)} times less than 0.2.0, where it was {before}"
        for what, before in stored.items()
        if now.get(what, 0) * TOLERANCE < before
    ]


def write_page(report: Report, size_mb: float) -> None:
    plot(report)
    lines = [
        "# Performance",
        "",
        "<!-- Written by `make bench`; do not edit. -->",
        "",
        "This package against the Python plugin of the same name, 0.2.0: same machine, same run, same OpenBao and moto",
        "servers, each in its own environment and process, in turn; medians.",
        f"Measured on {platform.machine()} with {os.cpu_count()} cores and Python {platform.python_version()}.",
        f"The wheel is {size_mb:.1f} MB.",
        "",
        "![ratios](performance.svg)",
        "",
        "| | this package | 0.2.0 | ratio | aim | reached |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in report.rows:
        unit = f" {row['unit']}" if row["unit"] else ""
        reached = "" if not row["aim"] else "yes" if row["reached"] else "**no**"
        figures = f"{row['ours']:.2f}{unit} | {row['theirs']:.2f}{unit} | {ratio(row):.1f}"
        lines.append(f"| {row['what']} | {figures} | {row['aim']} | {reached} |")
    lines += [
        "",
        "How each figure is taken is in `benches/python/worker.py`. `make bench` runs it here; it builds a release",
        "wheel first, which takes some minutes.",
    ]
    (ROOT / "docs" / "performance.md").write_text("\n".join(lines) + "\n")


def plot(report: Report) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = [row for row in report.rows if row["aim"] and row["ours"] > 0][::-1]
    times = [ratio(row) for row in rows]
    matplotlib.rcParams["svg.hashsalt"] = "mlflow-secrets-auth"
    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(rows) + 1.2))
    bars = axes.barh([row["what"] for row in rows], times, color="#0b6e4f")
    axes.bar_label(bars, labels=[f"{each:.0f}" if each >= 10 else f"{each:.1f}" for each in times], padding=3)
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_xlabel("how many times less than the Python plugin 0.2.0 (logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(right=max(times) * 3)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "performance.svg", metadata={"Date": None})


def main(arguments: list[str]) -> int:
    [wheel] = sorted((ROOT / "dist").glob("*.whl"))[-1:]
    with tempfile.TemporaryDirectory(prefix="mlflow-secrets-auth-bench-") as name:
        report = measure(Path(name))
    if arguments == ["--alert"]:
        alerts = worse(json.loads(RATIOS.read_text()), ratios(report))
        print("\n".join(alerts) or "no ratio is worse by half than the stored one")
        return 1 if alerts else 0
    write_page(report, wheel.stat().st_size / 1e6)
    RATIOS.write_text(json.dumps(ratios(report), indent=2, ensure_ascii=False) + "\n")
    return 0 if all(row["reached"] for row in report.rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
