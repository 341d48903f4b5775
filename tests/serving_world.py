"""A small real world for the inference service: scikit-learn models in folders, a server on a free port, callers with scopes.

Run as a program it is that service: ``python serving_world.py HOME PORT MODELS``; without MODELS the registry is away.
With the variable WORKER it is one of several processes on the port.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import uvicorn
from ports import free_port
from starlette.types import Scope

from cellwork import scopes
from cellwork.client import Client
from cellwork.errors import NotFound
from cellwork.home import Home
from cellwork.models import columns, package, registry
from cellwork.settings import Settings
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.features import Definitions, Entity, Field, Select, View
from cellwork.wire.gate import Check, Gate
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal
from cellwork_hub import edge
from cellwork_hub.auth import NOBODY, bearer
from cellwork_hub.context import Context
from cellwork_hub.drain import Draining, configuration
from cellwork_hub.edge import Call, Service
from cellwork_hub.inference.app import build

if "CELLWORK_TEST_MODELS" not in os.environ:  # a service that a test starts as a process has its tests' folder
    os.environ["CELLWORK_TEST_MODELS"] = tempfile.mkdtemp(prefix="cellwork-test-models-")
    atexit.register(shutil.rmtree, os.environ["CELLWORK_TEST_MODELS"], ignore_errors=True)
SHARED = Path(os.environ["CELLWORK_TEST_MODELS"])
MODEL = "shop/churn"
DEADLINE = 30.0
"""Of versions in child processes, which may be late because the machine is busy; a test in which one hangs says what its request may take."""
FRAME = pd.DataFrame({"visits": np.arange(40.0), "plan": ["free", "paid"] * 20, "customer__age": np.arange(40.0) % 7})
DEFINITIONS = Definitions(
    project="shop",
    entities=[Entity(name="customer", join_keys=["customer_id"])],
    views=[
        View(
            name="customer",
            entities=["customer"],
            fields=[Field(name="age", type="Float32")],
            pipeline=Select(rows="customers", event="at", known="at"),
            ttl="7d",
        )
    ],
)


def estimator(seed: int = 0, *, compiles: bool = True) -> Any:
    """A pipeline that takes numbers, text and missing values; its scores depend on `seed`."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["plan"]),
        ("passthrough", ["visits", "customer__age"]),
    )
    labels = np.random.default_rng(seed).integers(0, 2, len(FRAME))
    boosted = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2)
    return make_pipeline(encode, boosted if compiles else BaggingClassifier(boosted, 1)).fit(FRAME, labels)


def fragile() -> Any:
    """A linear model in a child process: raises at a missing value, and overflows to infinity for numbers over some hundreds."""
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    frame = FRAME[["visits"]]
    model = make_pipeline(PolynomialFeatures(1, include_bias=False), LinearRegression()).fit(frame, frame["visits"])
    model[-1].coef_ = np.array([1e306])
    return model


def save(model: Any, frame: pd.DataFrame, folder: Path, *code: Any) -> Path:
    """Write the model folder that training would register; `code` are modules of the author's own."""
    rows = frame.head(3).to_dict("records")
    kind: Any = "classifier" if hasattr(model, "predict_proba") else "regressor"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry.save(model, package.Manifest(kind=kind, columns=columns.kinds(frame), example=rows), folder, code=code)
    return folder


def saved(seed: int, folder: Path) -> Path:
    """Write the model folder of `estimator(seed)`, made once for all tests of this run."""
    kept = SHARED / f"model-{seed}"
    if not kept.is_dir():
        fresh = Path(tempfile.mkdtemp(dir=SHARED))
        save(estimator(seed), FRAME, fresh / "model").rename(kept)
    return shutil.copytree(kept, folder)


def share_compiled(home: Path) -> None:
    """Let what is read out of models lie in one folder for all homes of this run: each model is compiled once."""
    (SHARED / "compiled").mkdir(exist_ok=True)
    compiled = Home(home).ensure().compiled()
    if not compiled.exists():
        compiled.symlink_to(SHARED / "compiled")


class Folders:
    """The registry's twin: versions are folders, the gate says what it is told to."""

    def __init__(self) -> None:
        self.folders: dict[tuple[str, int], Path] = {}
        self.closed: dict[int, list[Check]] = {}
        self.away = False

    def add(self, folder: Path, version: int, name: str = MODEL) -> None:
        self.folders[name, version] = folder

    def gate(self, name: str, version: int, promoter: str) -> Gate:
        if (name, version) not in self.folders:
            raise NotFound("version", f"{name}@{version}", "is not registered", "register it")
        ref = VersionRef(name=name, version=version, digest=package.digest(self.folders[name, version]))
        checks = self.closed.get(version, [Check(name="evaluated", passed=True, text="0.73 on november")])
        return Gate(version=ref, passed=all(check.passed for check in checks), checks=checks)

    def fetch(self, ref: VersionRef, folder: Path) -> None:
        assert not self.away, "the registry was asked although it is away"
        shutil.copytree(self.folders[ref.name, ref.version], folder)

    def definitions(self, project: str) -> Definitions | None:
        return DEFINITIONS if project == "shop" else None


async def authorise(scope: Scope) -> Principal:
    """The token is the name of a role."""
    token = bearer(scope)
    return (
        Principal(kind="user", name=token, scopes=frozenset(scopes.ROLES[token])) if token in scopes.ROLES else NOBODY
    )


def context(home: Path) -> Context:
    settings = Settings(home=home)
    share_compiled(home)
    return Context(settings, {"public": 1, "hub": 1, "inference": free_port()})


def serve(home: Path, port: int, models: list[Path]) -> None:
    """Be the service, with the folders of `models` as versions 1, 2, …; no entity has a value online."""
    folders = Folders()
    folders.away = not models
    for version, folder in enumerate(models, start=1):
        folders.add(folder, version)
    worker = int(os.environ["WORKER"]) if "WORKER" in os.environ else None
    app = build(context(home), authorise=authorise, registry=folders, lookup=lambda project, needed: {}, worker=worker)
    edge.serve(app, "127.0.0.1", port, shared=worker is not None)


@contextmanager
def running(build: Callable[[], Service], port: int) -> Iterator[str]:
    """Serve the app of `build` on a thread and yield its address; leaving stops it."""
    server = uvicorn.Server(configuration(Draining(build()), "127.0.0.1", port, proxied=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started, "the service did not start"
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive(), "the service did not stop"


def call() -> Call:
    """A call as a router gets it."""
    return Call(Principal(kind="user", name="ada"), "req_1", Origin(), {}, {}, None, {})


def caller(address: str, role: str = "deployer") -> Client:
    return Client(address, role, timeout=240)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]])
