"""Parquet to Parquet: the scores are scikit-learn's, a broken-off scoring goes on, and parts of two scorings are never mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cellwork.errors import BadInput, Conflict, NotFound
from cellwork.models import columns
from cellwork.models.compiled import Machine
from cellwork.models.compiled.extract import extract
from cellwork.serving.parquet import Scored, part, score_parquet

RNG = np.random.default_rng(7)
FRAME = pd.DataFrame(RNG.normal(size=(5_000, 4)), columns=list("abcd"))
LABELS = (FRAME.a + FRAME.b * FRAME.c > 0).astype(int)
MODELS = {
    "linear": make_pipeline(StandardScaler(), LogisticRegression()),
    "boosted": GradientBoostingClassifier(n_estimators=20),
    "histogram": HistGradientBoostingClassifier(max_iter=20),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Five row groups, with an id that the model does not take and columns in another order."""
    path = tmp_path / "rows.parquet"
    FRAME.assign(id=np.arange(len(FRAME)))[["id", "d", "c", "b", "a"]].to_parquet(
        path, row_group_size=1_000, index=False
    )
    return path


def machine(kind: str, folder: Path) -> Machine:
    model = MODELS[kind].fit(FRAME, LABELS)
    return Machine(extract(model, columns.kinds(FRAME)), folder)


def read(target: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted(target.glob("*.parquet"))], ignore_index=True)


@pytest.mark.parametrize("kind", MODELS)
def test_the_scores_are_those_of_the_model_itself(kind: str, table: Path, tmp_path: Path) -> None:
    made = score_parquet(table, tmp_path / "out", machine(kind, tmp_path), keep=["id"])
    assert made == Scored(rows=5_000, parts=5, skipped=0)
    found = read(tmp_path / "out")
    assert list(found.id) == list(range(5_000))
    np.testing.assert_allclose(found.score, MODELS[kind].predict_proba(FRAME)[:, 1], rtol=1e-12)


def test_a_scoring_that_broke_off_goes_on_with_what_is_missing(table: Path, tmp_path: Path) -> None:
    target, model = tmp_path / "out", machine("boosted", tmp_path)
    score_parquet(table, target, model)
    whole = read(target)
    stays = part(target, 0).stat().st_mtime_ns
    part(target, 3).rename(part(target, 3).with_suffix(".new"))  # as a kill between writing and renaming leaves it
    assert score_parquet(table, target, model) == Scored(rows=5_000, parts=5, skipped=4)
    pd.testing.assert_frame_equal(read(target), whole)
    assert part(target, 0).stat().st_mtime_ns == stays


def test_what_does_not_fit_is_refused_before_anything_is_written(table: Path, tmp_path: Path) -> None:
    target, model = tmp_path / "out", machine("linear", tmp_path)
    with pytest.raises(NotFound):
        score_parquet(tmp_path / "none.parquet", target, model)
    with pytest.raises(BadInput, match="idd"):
        score_parquet(table, target, model, keep=["idd"])
    with pytest.raises(BadInput, match="kept"):
        score_parquet(table, target, model, keep=["id"], column="id")
    assert not target.exists()
    score_parquet(table, target, model)
    with pytest.raises(Conflict, match="another model"):
        score_parquet(table, target, machine("boosted", tmp_path))
    table.touch()
    with pytest.raises(Conflict, match="earlier state"):
        score_parquet(table, target, model)


def test_a_value_that_the_model_refuses_ends_it_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "holes.parquet"
    FRAME.head(10).assign(a=np.nan).to_parquet(path, index=False)
    with pytest.raises(BadInput, match="no value"):
        score_parquet(path, tmp_path / "out", machine("boosted", tmp_path))
    assert list((tmp_path / "out").glob("part-*.parquet")) == []
