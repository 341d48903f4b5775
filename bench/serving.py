"""Requests per second of single rows and of a hundred, at 1 and 64 connections: the inference service beside its peers, in one run.

All serve one scikit-learn pipeline (an imputer, gradient boosting of 100 trees, 20 features). Requests are 500 bodies in turn, sent by
`wrk`, which is light enough to leave the cores to the servers. Ours runs as `cellwork serve` does, with keys, limits and the log in
`process` mode; before each measurement every answer is compared with scikit-learn's, after it the log with the number of answers.
Run: python bench/serving.py [SECONDS] [PYTHON OF AN ENVIRONMENT WITH BENTOML]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BODIES = 500
CONNECTIONS = (1, 64)
FEATURES = 20
NAME = "bench/model"
TOKEN = "bench"
MANY = 100
HEADERS = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
NAMES = [f"x{k}" for k in range(FEATURES)]
LUA = """
local bodies, number = {}, %d
for line in io.lines("%s") do bodies[#bodies + 1] = line end
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer %s"
request = function()
  number = number %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[number])
end
done = function(summary, latency, requests)
  local wrong = summary.errors.status + summary.errors.read + summary.errors.write + summary.errors.timeout + summary.errors.connect
  io.write(string.format("RESULT %%d %%f %%d %%f %%f\\n", summary.requests, summary.duration / 1e6, wrong,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""
BENTO = """
import bentoml, numpy as np, skops.io
@bentoml.service(workers=%d, traffic={"timeout": 60, "concurrency": 64}, logging={"access": {"enabled": False}})
class Model:
    def __init__(self):
        self.model = skops.io.load("%s", trusted=skops.io.get_untrusted_types(file="%s"))
    @bentoml.api(batchable=True, max_batch_size=128, max_latency_ms=10000)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(rows)[:, 1]
"""


@dataclass
class Figures:
    rate: float
    p50: float
    p99: float
    wrong: int
    answers: int
    cpu_us: float
    """Processor time of the server a request."""


def make_model(folder: Path) -> Any:
    import numpy as np
    import pandas as pd
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    from cellwork.models import columns, package, registry

    dice = np.random.default_rng(0)
    frame = pd.DataFrame(dice.normal(size=(2000, FEATURES)), columns=NAMES)
    labels = (frame.sum(axis=1) > 0).astype(int)
    model = make_pipeline(SimpleImputer(), GradientBoostingClassifier(n_estimators=100)).fit(frame, labels)
    example = frame.head(3).to_dict("records")
    manifest = package.Manifest(kind="classifier", columns=columns.kinds(frame), example=example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry.save(model, manifest, folder)
    return model


def serve(home: Path, port: int, folder: Path, workers: int, number: int) -> None:
    """Be the inference service, with `folder` as the one version there is; `workers` processes share the port."""
    from cellwork.models import package
    from cellwork.scopes import ROLES
    from cellwork.settings import Settings
    from cellwork.wire.evaluations import VersionRef
    from cellwork.wire.gate import Gate
    from cellwork.wire.records import Principal
    from cellwork_hub import edge
    from cellwork_hub.context import Context
    from cellwork_hub.inference.app import build

    class One:
        def gate(self, name: str, version: int) -> Gate:
            return Gate(
                version=VersionRef(name=name, version=version, digest=package.digest(folder)), passed=True, checks=[]
            )

        def fetch(self, ref: VersionRef, target: Path) -> None:
            shutil.copytree(folder, target)

        def definitions(self, project: str) -> None:
            return None

    async def authorise(scope: Any) -> Principal:
        return Principal(kind="user", name="bench", scopes=frozenset(ROLES["deployer"]))

    settings = Settings(home=home, caller_requests_per_second=1_000_000)
    settings.folder.ensure()
    context = Context(settings, {"public": port, "hub": port, "inference": port})
    app = build(context, authorise=authorise, registry=One(), worker=number if workers > 1 else None)
    edge.serve(app, "127.0.0.1", port, shared=workers > 1, proxied=False)


def serve_empty(port: int) -> None:
    """Be the same server with an app that reads the body and says nothing: what HTTP itself costs."""
    from cellwork_hub import edge

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await receive()
            return await edge.respond(send, 200, b"{}", "application/json", {})
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return None

    edge.serve(app, "127.0.0.1", port, proxied=False)


@contextmanager
def process(command: list[str], port: int, health: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    import httpx

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as running:
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}{health}", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    if time.monotonic() > end or running.poll() is not None:
                        raise
                    time.sleep(0.2)
            yield running
        finally:
            running.terminate()


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time of processes and all that they started."""
    total, left = 0.0, list(pids)
    while left:
        pid = left.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            left += [int(p) for f in Path(f"/proc/{pid}/task").glob("*/children") for p in f.read_text().split()]
        except FileNotFoundError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def load(port: int, path: str, bodies: Path, connections: int, seconds: float, pids: list[int]) -> Figures:
    script = bodies.with_suffix(".lua")
    script.write_text(LUA % (os.getpid() % BODIES, bodies, TOKEN))
    before = cpu_seconds(pids)
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(script)]
    said = subprocess.run([*wrk, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True).stdout
    used = cpu_seconds(pids) - before
    found = re.search(r"RESULT (\d+) ([\d.]+) (\d+) ([\d.]+) ([\d.]+)", said)
    assert found, said
    count = int(found[1])
    return Figures(
        count / float(found[2]), float(found[4]), float(found[5]), int(found[3]), count, used / max(1, count) * 1e6
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compare(port: int, path: str, bodies: list[str], expected: list[float], key: str) -> float:
    """Return the largest difference between the answers to all bodies and scikit-learn's scores."""
    import httpx

    worst, place = 0.0, 0
    with httpx.Client(trust_env=False, headers=HEADERS) as client:
        for body in bodies:
            said = client.post(f"http://127.0.0.1:{port}{path}", content=body).raise_for_status().json()
            found = said if not key else said[key]
            for score in found:
                value = score["score"] if isinstance(score, dict) else score[1] if isinstance(score, list) else score
                worst, place = max(worst, abs(value - expected[place])), place + 1
    assert place == len(expected), (place, len(expected))
    return worst


class Bench:
    def __init__(self, folder: Path, seconds: float) -> None:
        import numpy as np
        import pandas as pd

        self.folder, self.seconds, self.results = folder, seconds, {}
        self.model = make_model(folder / "model")
        rows = np.random.default_rng(1).normal(size=(BODIES * MANY, FEATURES))
        self.expected = self.model.predict_proba(pd.DataFrame(rows, columns=NAMES))[:, 1].tolist()
        self.rows = rows.tolist()
        single, many = self.rows[:BODIES], [self.rows[k * MANY : (k + 1) * MANY] for k in range(BODIES)]
        self.bodies = {
            "split": [{"dataframe_split": {"columns": NAMES, "data": [row]}} for row in single],
            "split many": [{"dataframe_split": {"columns": NAMES, "data": rows}} for rows in many],
            "own": [{"rows": [{"features": dict(zip(NAMES, row, strict=True))}]} for row in single],
            "bento": [{"rows": [row]} for row in single],
        }
        self.results: dict[str, dict[str, Figures]] = {}
        for name, bodies in self.bodies.items():
            (folder / f"{name.replace(' ', '-')}.json").write_text("".join(json.dumps(body) + "\n" for body in bodies))

    def measure(self, title: str, port: int, path: str, kind: str, key: str, pids: list[int]) -> int:
        """Compare, warm, measure; returns how many answers were given in all."""
        file, many = self.folder / f"{kind.replace(' ', '-')}.json", "many" in kind
        if key != "-":
            checked = [json.dumps(body) for body in (self.bodies[kind][:20] if many else self.bodies[kind])]
            expected = self.expected[: 20 * MANY] if many else self.expected[:BODIES]
            worst = compare(port, path, checked, expected, key)
            print(f"{title}: {len(expected)} answers, at most {worst:.0e} from scikit-learn's", flush=True)
        else:
            checked = []
        warm = load(port, path, file, 4, 1, pids)
        found = {str(c): load(port, path, file, c, self.seconds, pids) for c in ((64,) if many else CONNECTIONS)}
        self.results[title] = found
        return len(checked) + warm.answers + sum(figures.answers for figures in found.values())


def main(seconds: float, bento: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), seconds)
        _mlflow(bench)
        if bento:
            _bento(bench, bento)
        port = free_port()
        with process([sys.executable, __file__, "--empty", str(port)], port, "/") as running:
            bench.measure("the same server's empty answer, one process", port, "/", "own", "-", [running.pid])
        try:
            for workers in sorted({1, os.cpu_count() or 1}):
                _ours(bench, workers)
        finally:  # counting what is in the log takes longer than the rest
            show(bench.results)


def _mlflow(bench: Bench) -> None:
    port = free_port()
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", str(bench.folder / "model")]
    with process([*command, "-p", str(port), "--env-manager", "local"], port, "/ping") as running:
        bench.measure("mlflow models serve", port, "/invocations", "split", "predictions", [running.pid])
        bench.measure("mlflow models serve, 100 rows", port, "/invocations", "split many", "predictions", [running.pid])


def _bento(bench: Bench, python: str) -> None:
    port, file = free_port(), bench.folder / "model" / "model.skops"
    (bench.folder / "service.py").write_text(BENTO % (os.cpu_count() or 1, file, file))
    command = [python, "-m", "bentoml", "serve", "service:Model", "-p", str(port)]
    with process(command, port, "/readyz", cwd=bench.folder, env={**os.environ, "DO_NOT_TRACK": "1"}) as running:
        bench.measure("BentoML, adaptive batching", port, "/predict", "bento", "", [running.pid])


def _ours(bench: Bench, workers: int) -> None:
    from contextlib import ExitStack

    from cellwork.client import Client
    from cellwork.wire.endpoints import Deploy

    port, home = free_port(), bench.folder / f"home-{workers}"
    command = [sys.executable, __file__, "--serve", str(home), str(port), str(bench.folder / "model"), str(workers)]
    with ExitStack() as stack:
        running = [stack.enter_context(process([*command, str(k)], port, "/health/ready")) for k in range(workers)]
        client = stack.enter_context(Client(f"http://127.0.0.1:{port}", TOKEN, timeout=120))
        client.endpoints.deploy(NAME, Deploy(version=1))
        time.sleep(1)
        answered, pids = 0, [one.pid for one in running]
        for title, path, kind, key in (
            ("/predict", f"/predict/{NAME}", "own", "outputs"),
            ("/invocations", f"/invocations/{NAME}", "split", "predictions"),
            ("/invocations, 100 rows", f"/invocations/{NAME}", "split many", "predictions"),
        ):
            count = bench.measure(
                f"cellwork {title}, {workers} process{'es' * (workers > 1)}", port, path, kind, key, pids
            )
            answered += count * (MANY if "many" in kind else 1)
        logged, after = 0, 0
        while page := client.endpoints.predictions(NAME, after=after, limit=10_000, brief=True):
            logged, after = logged + len(page), page[-1].seq
        open_ends = 4 * 64 * (1 + 1 + MANY)  # wrk stops without reading what is on its way
        print(
            f"{workers} process(es): {answered} answers read, {logged} in the log (at most {open_ends} on their way)",
            flush=True,
        )
        assert answered <= logged <= answered + open_ends


def show(results: dict[str, dict[str, Figures]]) -> None:
    base = results["mlflow models serve"]
    many = results["mlflow models serve, 100 rows"]
    print("| server | connections | requests/s | ratio | p50 ms | p99 ms | CPU us a request | failed |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, figures in results.items():
        for connections, f in figures.items():
            ratio = f.rate / (many if "100 rows" in name else base)[connections].rate
            print(
                f"| {name} | {connections} | {f.rate:,.0f} | {ratio:.1f} | {f.p50:.2f} | {f.p99:.2f} | {f.cpu_us:.0f} | {f.wrong} |"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
    elif sys.argv[1:2] == ["--empty"]:
        serve_empty(int(sys.argv[2]))
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0, sys.argv[2] if len(sys.argv) > 2 else "")
