"""A small generated project that shares no name with the flights: will an order of a shop arrive later than promised?

Warehouses are crowded for hours at a time, and a crowded warehouse delivers late; so what was delivered lately tells about
what comes. The truth of April is sealed; May arrives day by day.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from cellwork import assets, project
from cellwork.cli.tour import Tour, Walked
from cellwork.client import Client

FIRST, LAST_MONTH, DAYS = datetime(2024, 2, 1, tzinfo=UTC), "2024-04", ("2024-05-01", "2024-05-03")
SCHEDULES = assets.folder("scheduled")
RETRAINS = 'schedule: {cron: "0 5 29 2 *"}'
"""The tour starts it, and no first of a month does beside the tests."""

PROJECT = """
[project]
name = "{name}"
owner = "the shop"
contact = "the counter"

[features]
paths = ["wares.py"]

[gate]
holdout = "spring"
baseline = "day_of_week"
card = ["owner", "contact", "origin", "dataset", "environment"]
"""

MONITORS = """
monitors:
  - {name: tardy-drift, kind: drift, endpoint: tardy, window: 30d, every: 1h}
  - {name: wares-arrive, kind: batches, dataset: orders, window: 1d, every: 1h}
"""

DEFINITIONS = '''
from datetime import timedelta

from cellwork.data import RawDataset, Seal
from cellwork.features import Aggregate, Observations, Prepared, Rolling, Select
from cellwork.features.feast import PipelineSource
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Float64, Int64

orders = RawDataset(
    name="orders", key=["order_no"], source="orders.csv",
    seals=[Seal(holdout="spring", partitions=["2024-04*"], columns=["delivered_at"])],
)
staffing = RawDataset(name="staffing", source="staffing.csv")
riders = RawDataset(name="riders", key=["rider"], source="riders.csv")

parcels = Prepared(name="parcels", sources=["orders", "riders"], sql="""
    SELECT orders.*, bikes, dayofweek(placed_at) AS day_of_week, placed_at + to_hours(promised_hours) AS promised_at,
           CAST(delivered_at > placed_at + to_hours(promised_hours) AS INTEGER) AS tardy
    FROM orders LEFT JOIN riders USING (rider)
""")
shifts = Prepared(name="shifts", sources=["staffing"], sql="SELECT *, measured_at AS known_at FROM staffing")

depot = Entity(name="depot", join_keys=["depot"], value_type=ValueType.STRING)
crew = FeatureView(
    name="crew", entities=[depot], schema=[Field(name="people", dtype=Int64)], ttl=timedelta(days=2),
    source=PipelineSource(Select(rows="shifts", event="measured_at", known="known_at")),
)
lately = FeatureView(
    name="lately", entities=[depot], schema=[Field(name="tardy", dtype=Float64), Field(name="parcels", dtype=Int64)], ttl=timedelta(days=2),
    source=PipelineSource(Rolling(
        rows="parcels", event="delivered_at", known="delivered_at", window="12h", every="1h",
        aggregates={"tardy": Aggregate(function="mean", column="tardy"), "parcels": Aggregate(function="count")},
    )),
)
at_checkout = FeatureService(name="at_checkout", features=[crew, lately])

promises = Observations(
    name="promises", rows="parcels", id="order_no", at="placed_at", keys={"depot": "depot"},
    inputs=["rider", "bikes", "weight", "promised_hours", "day_of_week"], label="tardy", label_known="delivered_at",
)
'''


@dataclass(frozen=True)
class Toured:
    """The shop after its tour."""

    tour: Tour
    client: Client
    walked: list[Walked]


def write(folder: Path, name: str = "shop") -> Path:
    """Write the project `name`, its definitions, data and schedules under `folder`; return the project's folder."""
    place, data = folder / name, folder / "deliveries"
    place.mkdir(parents=True)
    data.mkdir()
    (place / "cellwork.toml").write_text(PROJECT.format(name=name))
    (place / "wares.py").write_text(DEFINITIONS)
    (place / "monitors.yaml").write_text(MONITORS)
    for table, frame in frames().items():
        frame.write_csv(data / f"{table}.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ", null_value="NA")
    for job in ("score", "retrain"):
        (place / f"{job}.yaml").write_text(schedule(job, name))
    return place


def tour(folder: Path, name: str = "shop") -> Tour:
    """Write the project under `folder` and return the tour of it, through the flights' notebooks."""
    place = write(folder, name)
    return Tour(
        project=project.read(place), notebooks=assets.folder("nbs") / "tutorials" / "flights",
        schedules=(place / "score.yaml", place / "retrain.yaml"), raw="orders", last_month=LAST_MONTH, last_day=DAYS[1],
        model="tardy", output=folder / "executed", parameters=parameters(folder),
    )  # fmt: skip


def schedule(job: str, name: str) -> str:
    """Return the schedule file of the project `name` for one of the scheduled notebooks, which are the flights' own."""
    given = f"project: {name}, observations: promises, features: [at_checkout]"
    if job == "score":
        when = "event: {name: batch.ready, match: {dataset: orders}}"
        given += f', endpoint: {name}/tardy, batch: "${{batch}}"'
    else:
        when = RETRAINS
        given += ", model: tardy, start: 2024-02-01, through: 2024-05-04, validation_days: 3, holdout: spring, baseline: day_of_week"
        given += ", parameters: {model__min_samples_leaf: 20}"
    return f"notebook: {SCHEDULES / job}.ipynb\nproject: {name}\non:\n  {when}\nwith: {{{given}}}\ntimeout: 15m\n"


def parameters(folder: Path) -> dict[str, dict[str, object]]:
    """Return notebook -> the parameters that make it the shop's."""
    files = {"folder": str(folder / "deliveries")}
    dates = {"staffing": ["measured_at"], "orders": ["placed_at"]}
    frame = {"observations": "promises", "features": ["at_checkout"]}
    candidates = {"model__learning_rate": [0.05, 0.1], "model__min_samples_leaf": [20]}
    return {
        "01_ingest": {**files, "dates": dates, "first": "2024-02", "last": LAST_MONTH},
        "02_features": {},
        "03_train": {
            **frame, "start": "2024-02-01", "cut": "2024-03-15", "end": "2024-04-01", "baseline": "day_of_week", "model": "tardy",
            "candidates": candidates,
        },
        "04_deploy": {**frame, "model": "tardy", "holdout": "spring", "baseline": "day_of_week", "raw": "orders"},
        "05_december": {
            **files, "dates": dates, "first": DAYS[0], "last": DAYS[1], "dataset": "orders", "observations": "promises",
            "endpoint": "tardy", "mornings": 5,
        },
        "06_report": {**frame, "model": "tardy", "holdout": "spring", "baseline": "day_of_week", "start": DAYS[0], "end": "2024-05-04"},
    }  # fmt: skip


def frames() -> dict[str, pl.DataFrame]:
    """Return the raw tables, always the same: 40 orders a day in three depots."""
    import numpy as np

    random = np.random.default_rng(2024)
    days = 95
    crowd = {depot: _crowd(random, days * 24) for depot in ("north", "south", "harbour")}
    orders, staffing = [], []
    for hour in range(days * 24):
        at = FIRST + timedelta(hours=hour)
        staffing += [(at, depot, int(9 - 2 * level[hour])) for depot, level in crowd.items() if hour % 6 == 0]
    for number in range(days * 40):
        at = FIRST + timedelta(minutes=36 * number + int(random.integers(36)))
        depot = ("north", "south", "harbour")[int(random.integers(3))]
        level = crowd[depot][int((at - FIRST).total_seconds() // 3600)]
        promised = int(random.choice([4, 6, 8]))
        hours = promised + 1.5 * level + random.normal(0, 1) - 0.5
        lost = random.uniform() < 0.03
        arrived = None if lost else at + timedelta(minutes=max(30, round(60 * hours)))
        rider = f"r{int(random.integers(4))}"
        orders.append((number, at, depot, rider, round(float(random.uniform(0.2, 9)), 2), promised, arrived))
    return {
        "orders": pl.DataFrame(orders, orient="row", schema=["order_no", "placed_at", "depot", "rider", "weight", "promised_hours", "delivered_at"]),
        "staffing": pl.DataFrame(staffing, orient="row", schema=["measured_at", "depot", "people"]),
        "riders": pl.DataFrame({"rider": [f"r{k}" for k in range(4)], "bikes": [1, 2, 1, 3]}),
    }  # fmt: skip


def _crowd(random: object, hours: int) -> list[float]:
    """Return how crowded a depot is hour by hour: it changes slowly."""
    level, levels = 0.0, []
    for step in random.normal(0, 0.3, hours):  # type: ignore[attr-defined]
        level = 0.95 * level + step
        levels.append(float(level))
    return levels
