"""Parquet to Parquet: the scores are scikit-learn's, a broken-off scoring goes on, and parts of two scorings are never mixed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cellwork import ids, training
from cellwork.errors import BadInput, Conflict, NotFound
from cellwork.models import columns
from cellwork.models.compiled import Machine
from cellwork.models.compiled.extract import extract
from cellwork.serving import parquet
from cellwork.serving.log import COLUMNS
from cellwork.serving.parquet import Scored, part, score_parquet
from cellwork.serving.precomputed import answers
from cellwork.serving.stamp import Stamp, key
from cellwork.wire.evaluations import VersionRef

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


def test_a_model_of_texts_numbers_and_gaps_scores_a_table_as_it_scores_rows(tmp_path: Path) -> None:
    """Texts are looked up by their different values, gaps are filled; scikit-learn says what is right."""
    mixed = FRAME.assign(kind=RNG.choice(["x", "y", "z"], len(FRAME)), a=FRAME.a.where(RNG.random(len(FRAME)) > 0.1))
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    prepared = ColumnTransformer([("k", OneHotEncoder(handle_unknown="ignore"), ["kind"]), ("n", numbers, ["a", "b", "c"])])  # fmt: skip
    model = make_pipeline(prepared, GradientBoostingClassifier(n_estimators=10)).fit(mixed, LABELS)
    asked = mixed.assign(kind=mixed.kind.where(RNG.random(len(mixed)) > 0.05, "never seen"))
    asked.to_parquet(tmp_path / "mixed.parquet", row_group_size=1_000, index=False)
    score_parquet(tmp_path / "mixed.parquet", tmp_path / "out", Machine(extract(model, columns.kinds(mixed)), tmp_path))
    np.testing.assert_allclose(read(tmp_path / "out").score, model.predict_proba(asked)[:, 1], rtol=1e-12)
    asked.assign(b="many").to_parquet(tmp_path / "wrong.parquet", index=False)
    with pytest.raises(BadInput, match=r"column 'b'.* takes a number"):
        score_parquet(tmp_path / "wrong.parquet", tmp_path / "wrong", Machine(extract(model, columns.kinds(mixed)), tmp_path))  # fmt: skip


def test_two_dask_workers_write_the_very_same_parts(table: Path, tmp_path: Path, workers: training.Cluster) -> None:
    assert workers.workers == 2
    model = machine("boosted", tmp_path)
    score_parquet(table, tmp_path / "here", model, keep=["id"])
    part(tmp_path / "there", 2).parent.mkdir()
    made = score_parquet(table, tmp_path / "there", model, keep=["id"], cluster=workers.client)
    assert made == Scored(rows=5_000, parts=5, skipped=0)
    for group in range(5):
        assert part(tmp_path / "here", group).read_bytes() == part(tmp_path / "there", group).read_bytes()
    part(tmp_path / "there", 3).unlink()
    assert score_parquet(table, tmp_path / "there", model, keep=["id"], cluster=workers.client).skipped == 4
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [*(part(tmp_path, k).name for k in range(5)), "plan.json"]  # fmt: skip


@pytest.mark.parametrize("most", [0, 64 << 20])
def test_a_large_row_group_is_read_in_portions_and_says_the_same(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers with gaps, texts, flags and a date that is kept: each way of reading gives what pandas reads."""
    monkeypatch.setattr(parquet, "WHOLE_BYTES", most)
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 700)
    day = pd.to_datetime("2026-01-01").date()
    rows = FRAME.assign(day=day, id=[f"n{k}" for k in range(len(FRAME))], flag=FRAME.a > 0, count=pd.array(range(len(FRAME)), dtype="Int32"))  # fmt: skip
    rows.to_parquet(tmp_path / "rows.parquet", row_group_size=2_000, index=False)
    keep = ["day", "id", "flag", "count"]
    score_parquet(tmp_path / "rows.parquet", tmp_path / "out", machine("histogram", tmp_path), keep=keep)
    written = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))])
    assert written.select(keep).equals(pq.read_table(tmp_path / "rows.parquet", columns=keep))
    np.testing.assert_allclose(read(tmp_path / "out").score, MODELS["histogram"].predict_proba(FRAME)[:, 1], rtol=1e-12)


def test_answers_computed_ahead_have_the_columns_of_the_prediction_log(table: Path, tmp_path: Path) -> None:
    target, model = tmp_path / "out", machine("boosted", tmp_path)
    live = VersionRef(name="shop/churn", version=3, digest="f" * 64)
    stamp = Stamp(observation="id", endpoint="shop/churn", revision=7, version=live, deployment="dep_1", run="run_1")
    score_parquet(table, target, model, stamp=stamp)
    found = read(target)
    assert set(found.columns) == set(COLUMNS)
    first = found.iloc[0]
    assert (first.endpoint, first.revision, first.version, first.route, first.batch_run) == ("shop/churn", 7, 3, "precomputed", "run_1")  # fmt: skip
    named = key(first.observation, live, first.features)
    assert first.id == ids.of_key("pred", "shop/churn", "row", named), "as the endpoint names it"
    assert json.loads(first.features) == {name: FRAME[name][0] for name in "abcd"}
    np.testing.assert_allclose(found.score, MODELS["boosted"].predict_proba(FRAME)[:, 1], rtol=1e-12)
    two = answers(target, ["17", "4711"]).sort("observation")
    assert list(two["score"]) == [found.score[17], found.score[4711]]
    part(target, 1).unlink()
    again = Stamp(observation="id", endpoint="shop/churn", revision=7, version=live, deployment="dep_1", run="run_2")
    assert score_parquet(table, target, model, stamp=again).skipped == 4, "another run goes on with it"
    other = Stamp(observation="id", endpoint="shop/churn", revision=8, version=live, deployment="dep_2", run="run_2")
    with pytest.raises(Conflict, match="another table"):
        score_parquet(table, target, model, stamp=other)


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
