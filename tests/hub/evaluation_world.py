"""A platform's state with sealed days, a training dataset and a real MLflow: one for all tests of a process, which take models' names of their own."""

from __future__ import annotations

import atexit
import functools
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow_server
import numpy as np
import polars as pl
import pytest
from feature_world import DAY, work
from raw_platform import call

from cellwork import db, files
from cellwork.client import Client
from cellwork.models import registry, versions
from cellwork.settings import Settings
from cellwork.training import fit
from cellwork.wire.batches import RawDataset, Seal
from cellwork.wire.datasets import Dataset, DatasetRequest
from cellwork.wire.evaluations import EvaluationRequest
from cellwork.wire.features import Aggregate, Definitions, Entity, Field, Observations, Prepared, Rolling, View
from cellwork.wire.gate import Promotion
from cellwork_hub import records
from cellwork_hub.context import Context
from cellwork_hub.platform import batches, datasets, evaluations, feature_definitions, features, gate, promotion
from cellwork_hub.platform.state import State

ROUTERS = [batches, features, datasets, evaluations, gate]
DAYS, SEALED = 8, 6
FLIGHTS = RawDataset(name="legs", key=["id"], seals=[Seal(holdout="last", partitions=["d6", "d7"], columns=["delay"])])


def legs(day: int) -> pl.DataFrame:
    """Return 240 flights of a day; they are late by the hour, and by how crowded they are."""
    random = np.random.default_rng(day)
    hours, crowd = np.arange(240) // 10, random.normal(size=240)
    delay = 3.0 * (hours - 11) + 20 * crowd + random.normal(0, 15, 240)
    planned = [DAY + timedelta(days=day, hours=int(hour)) for hour in hours]
    columns = {
        "id": day * 1000 + np.arange(240),
        "gate": ["A", "B"] * 120,
        "planned": planned,
        "crowd": crowd,
        "delay": delay,
    }
    return pl.DataFrame(columns, schema_overrides={"planned": pl.Datetime("us", "UTC")})


def definitions() -> Definitions:
    landed = "SELECT *, planned + INTERVAL 2 HOUR AS landed, CAST(hour(planned) AS BIGINT) AS hour, CAST(delay > 15 AS INTEGER) AS late FROM legs"
    rolling = Rolling(
        rows="landed",
        event="planned",
        known="landed",
        window="6h",
        every="1h",
        aggregates={"delay": Aggregate(function="mean", column="delay")},
    )
    return Definitions(
        project="rail",
        prepared=[Prepared(name="landed", sources=["legs"], sql=landed)],
        entities=[Entity(name="gate", join_keys=["gate"])],
        views=[View(name="lately", entities=["gate"], pipeline=rolling, fields=[Field(name="delay", type="Float64")])],
        observations=[
            Observations(name="departures", rows="landed", id="id", at="planned", keys={"gate": "gate"}, inputs=["hour", "crowd", "gate"], label="late", label_known="landed")
        ],
    )  # fmt: skip


class World:
    """A platform's state with a training dataset, and models trained on it."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(home=folder)
        home = settings.folder.ensure()
        files.write(home.secret("cellwork-token"), "the platform's own", mode=0o600)
        context = Context(settings, {"public": urlsplit(mlflow_server.url()).port or 0})
        engine = db.open_database(
            context.database_url("platform"), [records.MIGRATION, *(r.MIGRATION for r in ROUTERS)]
        )
        self.state = State(engine, home, context, on_batch=(features.enqueue,))
        self.mlflow = Client(mlflow_server.url(), "")
        batches.declare(self.state, call(), "rail", FLIGHTS)
        for day in range(DAYS):
            batches.ingest(self.state, call(), "rail", "legs", f"d{day}", legs(day))
        feature_definitions.apply(self.state, call(), definitions())
        work(self.state)
        self.dataset, self.frame = self.build()

    def build(self, **changes: Any) -> tuple[Dataset, pl.DataFrame]:
        """Return the dataset of the days before the sealed ones, and its frame."""
        end = DAY + timedelta(days=SEALED)
        asked = {"name": "training", "observations": "departures", "features": ["lately"], "start": DAY, "end": end}
        built = datasets.build(self.state, call(), DatasetRequest(project="rail", **{**asked, **changes}))
        return built, pl.read_parquet(self.state.home.dataset(built.id) / "data.parquet")

    def define(self, wanted: Definitions) -> None:
        feature_definitions.apply(self.state, call(), wanted)

    def register(self, name: str, columns: list[str], frame: pl.DataFrame | None = None, **changes: Any) -> int:
        """Train a logistic regression on `columns` of `frame` and return its version."""
        from sklearn.compose import make_column_selector, make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        encode = make_column_transformer(
            (OneHotEncoder(), make_column_selector(dtype_include=object)),
            (make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include=float)),
        )
        frame, dataset = self.frame if frame is None else frame, changes.get("dataset", self.dataset)
        model = fit(make_pipeline(encode, LogisticRegression()), frame.select(columns), frame[dataset.label])
        given: dict[str, Any] = {
            "dataset": dataset,
            "X_example": frame.select(columns),
            "baseline": "hour",
            "client": self.mlflow,
            **changes,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CELLWORK_USER", "ada")
            return registry.register(model, f"rail/{name}", **given).version

    def evaluate(self, name: str, version: int, **changes: Any) -> Any:
        return evaluations.evaluate(
            self.state, call(), EvaluationRequest(name=f"rail/{name}", version=version, holdout="last", **changes)
        )

    def promote(self, name: str, version: int) -> Any:
        return promotion.promote(self.state, call(), Promotion(name=f"rail/{name}", version=version, reason="a test"))

    def aliases(self, name: str) -> dict[str, int]:
        return versions.aliases(self.mlflow, f"rail/{name}")

    def events(self, name: str) -> list[Any]:
        return records.events(self.state.engine, 0, name)


GOOD = ["hour", "crowd", "gate", "lately__delay"]


@functools.cache
def world() -> World:
    """Return the world of this process; it ends with it."""
    temporary = tempfile.TemporaryDirectory(prefix="cellwork-evaluations-")
    made = World(Path(temporary.name))

    def end() -> None:
        made.mlflow.close()
        made.state.engine.dispose()
        temporary.cleanup()

    atexit.register(end)
    return made
