"""An author of a project in `team` trust looks for sealed labels by every way that is open, from a notebook under another account of the machine."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from account import Account
from evaluation_world import DAYS, FLIGHTS, SEALED, definitions
from feature_world import DAY
from scipy.stats import norm
from team_world import Team

from cellwork.evaluation import metrics
from cellwork.wire import PREFIX
from cellwork.wire.datasets import DatasetRequest

pytestmark = pytest.mark.timeout(1800)
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "seeks_sealed_labels.ipynb"
ROWS = 1500
FEW, MANY = 6, 200
METRICS = ("roc_auc", "pr_auc", "log_loss", "brier", "ece", "difference")
WORD = re.compile(r"-?\d+\.\d{4,}")


def legs(day: int) -> pl.DataFrame:
    """Return the flights of a day. No two of all days have a delay in common, so that one says whose it is; nor a `crowd`, which lie so far
    apart that a tree, which compares in single precision, can set any one row apart."""
    random = np.random.default_rng(day)
    hours, crowd = np.arange(ROWS) * 24 // ROWS, _crowds()[day]
    delay = (3.0 * (hours - 11) + 20 * crowd + random.normal(0, 15, ROWS)).round(7)
    columns = {
        "id": day * 1_000_000 + np.arange(ROWS), "gate": ["A", "B"] * (ROWS // 2), "crowd": crowd, "delay": delay,
        "planned": [DAY + timedelta(days=day, hours=int(hour)) for hour in hours],
    }  # fmt: skip
    return pl.DataFrame(columns, schema_overrides={"planned": pl.Datetime("us", "UTC")})


@functools.cache
def _crowds() -> np.ndarray:
    """Return the days' crowds, shape (days, rows): evenly spread quantiles of a normal distribution in any order."""
    n = DAYS * ROWS
    places = (np.random.default_rng(2024).permutation(n) + 0.5) / n
    return norm.ppf(places).round(9).reshape(DAYS, ROWS)


@dataclass(frozen=True)
class Loot:
    ways: dict[str, str]
    guesses: dict[int, dict[str, float]]
    truth: pl.DataFrame
    """The sealed rows as they were delivered."""


@pytest.fixture(scope="module")
def prepared(team: Team) -> dict[str, str]:
    """A project that a deployer filled and whose author only works in it; the notebook's parameters."""
    dora, anna = team.people["dora"].client(), team.people["anna"].client()
    dora.projects.create("depots")
    dora.projects.add("depots", "anna")
    dora.batches.declare("depots", FLIGHTS)
    for day in range(DAYS):
        dora.batches.ingest("depots", "legs", legs(day), f"d{day}")
    dora.features.apply(msgspec.structs.replace(definitions(), project="depots"))
    dora.features.wait("depots", timeout=120, progress=None)
    end = DAY + timedelta(days=SEALED)
    request = DatasetRequest(
        project="depots", name="training", observations="departures", features=["lately"], start=DAY, end=end
    )
    made = anna.datasets.build(request)
    return {
        "project": "depots",
        "holdout": "last",
        "dataset": made.id,
        "start": DAY.isoformat(),
        "end": end.isoformat(),
    }


def seek(team: Team, given: dict[str, str], questions: int) -> Loot:
    """Run the notebook as anna, under another account, which sees the platform's folder past the closed ones above it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        account = Account(folder)
        token = team.people["anna"].token()
        environ = {"CELLWORK_URL": team.url, "CELLWORK_TOKEN": token, "CELLWORK_USER": "anna"}
        environ |= {"MLFLOW_TRACKING_URI": team.url + PREFIX["mlflow"], "MLFLOW_TRACKING_TOKEN": token}
        given = {**given, "platform_home": str(account.show(team.home)), "questions": str(questions)}
        words = [word for pair in given.items() for word in ("-p", *pair)]
        command = [sys.executable, "-m", "papermill", str(NOTEBOOK), "out.ipynb", "--cwd", str(account.home), *words]
        code, told = account.run(command, environ, timeout=300 + 25 * questions)
        assert code == 0, told[-4000:]
        found = json.loads((account.home / "loot.json").read_text())
        print("".join(_said(json.loads((account.home / "out.ipynb").read_text()))))
    guesses = {int(row): values for row, values in found["guesses"].items()}
    return Loot(found["loot"], guesses, pl.concat([legs(day) for day in range(SEALED, DAYS)]))


def _said(notebook: dict[str, Any]) -> list[str]:
    return [line for cell in notebook["cells"] for output in cell.get("outputs", []) for line in output.get("text", [])]


@pytest.fixture(scope="module")
def loot(team: Team, prepared: dict[str, str]) -> Loot:
    return seek(team, prepared, FEW)


def test_the_ways_that_are_open_to_an_author_were_really_walked(loot: Loot) -> None:
    """Otherwise the search would prove nothing: sealed rows are read without their delay, feature rows and events are there."""
    rows = pl.read_csv(loot.ways["raw rows as of now"].encode())
    assert rows["id"].sort().to_list() == loot.truth["id"].sort().to_list()
    assert rows["delay"].null_count() == rows.height
    for way in (
        "feature rows",
        "events",
        "statistics",
        "search",
        "the card",
        "the gate",
    ):
        assert not loot.ways[way].startswith("error"), loot.ways[way]
    assert len(loot.guesses) == FEW
    assert loot.ways["rows set apart"] == str([1] * FEW)


def test_the_ways_that_are_closed_say_so(loot: Loot) -> None:
    closed = [
        "files: the database",
        "audit",
        "MLflow's artifacts",
        "MLflow's artifacts, upwards",
        "MLflow's runs",
        "evaluator: a class of one's own",
    ]
    closed += [f"files: {name}" for name in ("data/sealed", "db", "models", "data/raw", "secrets", "mlflow")]
    assert {way: loot.ways[way] for way in closed if not loot.ways[way].startswith("error")} == {}
    assert "proposal='prop_" in loot.ways["definitions that carry the label"]  # somebody else is to decide


def test_no_sealed_value_is_in_anything_that_was_seen(loot: Loot) -> None:
    delays = loot.truth["delay"].to_list()
    values = {repr(value) for value in delays} | {f"{value:.7f}" for value in delays}
    for way, text in loot.ways.items():
        seen = set(WORD.findall(text)) & values
        assert not seen, f"{way} told {len(seen)} sealed delays"


def test_a_question_about_one_row_is_answered_in_steps_that_hide_it(loot: Loot) -> None:
    """The attack is a real one: exact numbers would tell each label. What is told are multiples of a step many times what one row weighs."""
    late = _late(loot)
    exact = {row: _exact(loot, row) for row in loot.guesses}
    assert {row: value > 0.5 for row, value in exact.items()} == {row: late[row] for row in loot.guesses}
    weight = max(abs(value - 0.5) for value in exact.values())
    step = 0.005
    assert step > 4 * weight
    for values in loot.guesses.values():
        assert math.isclose(values["roc_auc"] / step, round(values["roc_auc"] / step), abs_tol=1e-6), values
        assert abs(values["roc_auc"] - 0.5) <= 2.5 * 2 * step


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_questions_do_not_tell_a_label(team: Team, prepared: dict[str, Any]) -> None:
    loot = seek(team, prepared, MANY)
    late = _late(loot)
    truth = [late[row] for row in loot.guesses]
    assert {True, False} <= set(truth)
    assert _separated([_exact(loot, row) for row in loot.guesses], truth) == 1.0, "exact numbers would tell all of them"
    for metric in METRICS:
        found = _separated([values[metric] for values in loot.guesses.values()], truth)
        print(f"{metric}: sorts late rows from others with ROC AUC {found:.3f}")
        assert found < 0.72, metric


def _late(loot: Loot) -> dict[int, bool]:
    return dict(zip(loot.truth["id"].to_list(), (loot.truth["delay"] > 15).to_list(), strict=True))


def _exact(loot: Loot, row: int) -> float:
    """Return the ROC AUC that the evaluator would tell if it did not round."""
    scores = (loot.truth["id"] == row).cast(pl.Float64)
    return metrics.value("roc_auc", (loot.truth["delay"] > 15).cast(pl.Float64), scores)


def _separated(values: list[float], late: list[bool]) -> float:
    """Return how well values tell late rows from others: ROC AUC, the better way round."""
    found: float = metrics.value("roc_auc", np.array(late, dtype=float), np.array(values))
    return max(found, 1 - found)
