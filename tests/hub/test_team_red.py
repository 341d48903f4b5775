"""An author of a project in `team` trust looks for sealed labels by every way that is open, from a notebook under another account of the machine."""

from __future__ import annotations

import json
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
from team_world import Team

from cellwork.evaluation import metrics
from cellwork.wire import PREFIX
from cellwork.wire.datasets import DatasetRequest

pytestmark = [pytest.mark.timeout(1500), pytest.mark.soak]  # four minutes of questions
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "seeks_sealed_labels.ipynb"
ROWS = 1500
FEW, MANY = 12, 200


def legs(day: int) -> pl.DataFrame:
    """Return the flights of a day; no two of all days have a delay in common, so that one says whose it is."""
    random = np.random.default_rng(day)
    hours, crowd = np.arange(ROWS) * 24 // ROWS, random.normal(size=ROWS).round(9)
    delay = (3.0 * (hours - 11) + 20 * crowd + random.normal(0, 15, ROWS)).round(7)
    columns = {
        "id": day * 1_000_000 + np.arange(ROWS), "gate": ["A", "B"] * (ROWS // 2), "crowd": crowd, "delay": delay,
        "planned": [DAY + timedelta(days=day, hours=int(hour)) for hour in hours],
    }  # fmt: skip
    return pl.DataFrame(columns, schema_overrides={"planned": pl.Datetime("us", "UTC")})


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
        code, told = account.run(command, environ, timeout=300 + 10 * questions)
        assert code == 0, told[-4000:]
        found = json.loads((account.home / "loot.json").read_text())
    guesses = {int(row): values for row, values in found["guesses"].items()}
    return Loot(found["loot"], guesses, pl.concat([legs(day) for day in range(SEALED, DAYS)]))


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
    values = {repr(value) for value in loot.truth["delay"].to_list()} | {
        f"{value:.7f}" for value in loot.truth["delay"].to_list()
    }
    for way, text in loot.ways.items():
        seen = set(_numbers(text)) & values
        assert not seen, f"{way} told {len(seen)} sealed delays"


def _numbers(text: str) -> list[str]:
    import re

    return re.findall(r"-?\d+\.\d{4,}", text)


def _exact(loot: Loot, row: int) -> float:
    """Return the ROC AUC that the evaluator would tell if it did not round."""
    scores = (loot.truth["id"] == row).cast(pl.Float64)
    return metrics.value("roc_auc", (loot.truth["delay"] > 15).cast(pl.Float64), scores)


@pytest.mark.soak  # scikit-learn's trees compare float32: its models set more than one row apart, so it does not show what it says yet
def test_a_question_about_one_row_does_not_tell_its_label(loot: Loot) -> None:
    late = dict(zip(loot.truth["id"].to_list(), (loot.truth["delay"] > 15).to_list(), strict=True))
    assert all((_exact(loot, row) > 0.5) == late[row] for row in loot.guesses), "the attack works on exact numbers"
    told = [values["roc_auc"] for values in loot.guesses.values()]
    assert _separated(told, [late[row] for row in loot.guesses]) < 1.0
    assert len(set(told)) <= 3, "steps, not digits"


def _separated(values: list[float], late: list[bool]) -> float:
    """Return how well values tell late rows from others: ROC AUC, the better way round."""
    found: float = metrics.value("roc_auc", np.array(late, dtype=float), np.array(values))
    return max(found, 1 - found)


@pytest.mark.soak
def test_two_hundred_questions_do_not_tell_a_label(team: Team, prepared: dict[str, Any]) -> None:
    loot = seek(team, prepared, MANY)
    late = dict(zip(loot.truth["id"].to_list(), (loot.truth["delay"] > 15).to_list(), strict=True))
    truth = [late[row] for row in loot.guesses]
    for metric in ("roc_auc", "pr_auc", "log_loss", "brier", "ece", "difference"):
        assert _separated([values[metric] for values in loot.guesses.values()], truth) < 0.62, metric
