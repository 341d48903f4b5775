"""A shop whose model was trained and evaluated, with predictions and outcomes as tests need them, and a client of its platform."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import polars as pl
from log_world import DAY, ENDPOINT, World
from sqlalchemy import text

from cellwork import clock
from cellwork.client import Client
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import Evaluation, Metric, VersionRef
from cellwork.wire.monitors import Monitor
from cellwork.wire.origin import Origin
from cellwork.wire.outcomes import Outcome
from cellwork_hub import records
from cellwork_hub.platform.alert_deeds import Deeds
from cellwork_hub.platform.state import State

DATASET = "ds_" + "1" * 26
TRAINED = 2_000
HOUR = timedelta(hours=1)


def rows(count: int, *, seed: int, shift: float = 0.0) -> list[dict[str, Any]]:
    dice = np.random.default_rng(seed)
    amounts, shops = dice.normal(shift, 1, count), dice.choice(["north", "south"], count)
    return [{"amount": float(a), "shop": str(s)} for a, s in zip(amounts, shops, strict=True)]


def trained(shop: World, version: int = 1) -> None:
    """Let `version` be trained on a dataset of the platform, and evaluated with ROC AUC 0.9."""
    dataset = Dataset(
        id=DATASET, project="shop", name="train", rows=TRAINED, observations="visits", id_column="id", time_column="at",
        inputs=["amount"], features=["shop"], label="churned", labelled=TRAINED, start=DAY, end=DAY, content_sha256="",
        revision=1, batches=[], coverage=[], at=DAY, origin=Origin(),
    )  # fmt: skip
    evaluation = Evaluation(
        id="eval_1", version=VersionRef(name=ENDPOINT, version=version), holdout="may", question_no=1, rows=500,
        metrics={"roc_auc": Metric(value=0.9, low=0.85, high=0.95)}, baseline={}, champion={}, dataset=DATASET, by="ada", at=DAY, origin=Origin(),
    )  # fmt: skip
    folder = shop.state.home.dataset(DATASET)
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows(TRAINED, seed=1)).write_parquet(folder / "data.parquet")
    with shop.state.engine.begin() as db:
        values = {"id": DATASET, "record": msgspec.json.encode(dataset).decode()}
        db.execute(
            text(
                "INSERT INTO datasets (id, project, name, record) VALUES (:id, 'shop', 'train', :record) ON CONFLICT DO NOTHING"
            ),
            values,
        )
        records.edge(db, f"{ENDPOINT}@{version}", "trained_on", DATASET)
        values = {
            "n": ENDPOINT,
            "v": version,
            "record": msgspec.json.encode(evaluation).decode(),
            "id": f"eval_{version}",
        }
        db.execute(
            text("INSERT INTO evaluations (id, name, version, digest, holdout, champion, record) VALUES (:id, :n, :v, '', 'may', '', :record)"),
            values,
        )  # fmt: skip


def predict(shop: World, features: list[dict[str, Any]], *, hour: int = 0, **more: Any) -> None:
    at = DAY + hour * HOUR
    shop.log.write([shop.prediction(f"{hour}-{k}", at=at, features=row, **more) for k, row in enumerate(features)])


def watch(client: Client, **fields: Any) -> None:
    client.monitors.apply("shop", [msgspec.convert({"name": "m", "endpoint": "churn", **fields}, Monitor)])


def told(client: Client) -> list[tuple[str, str]]:
    return [(e.name, e.data["severity"]) for e in client.records.events() if e.name.startswith("alert.")]


def truths(client: Client, scores: Mapping[str, float], *, right: float) -> None:
    dice = np.random.default_rng(0)
    known = [
        Outcome(
            value=float((score > 0.5) == (dice.random() < right)), observed_at=DAY, endpoint=ENDPOINT, observation=name
        )
        for name, score in scores.items()
    ]
    client.outcomes.send("shop", known)


def do_waiting(state: State) -> int:
    """Try what is due of every project once; returns how many deeds are done now."""
    deeds = Deeds(state)
    try:
        return sum(turn.result(120) for turn in deeds.begin())
    finally:
        deeds.stop()


def due(shop: World) -> list[str]:
    with shop.state.engine.connect() as db:
        query = text("SELECT name FROM monitors WHERE next <= :now")
        return list(db.execute(query, {"now": records.micros(clock.now())}).scalars())
