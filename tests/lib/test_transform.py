from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cellwork.errors import BadInput, Conflict
from cellwork.features.select import choose
from cellwork.features.transform import Transform, applied, clip, code, from_recorded, impute, scale

DICE = np.random.default_rng(11)
N = 400
LABEL = DICE.integers(0, 2, N)
FRAME = pd.DataFrame(
    {
        "a": LABEL + DICE.normal(size=N),
        "noise": DICE.normal(size=N),
        "gap": np.where(DICE.random(N) < 0.2, np.nan, DICE.normal(5, 2, N)),
        "flag": LABEL.astype(bool) ^ (DICE.random(N) < 0.1),
        "c": np.array(["UA", "AA", None, "B6"], dtype=object)[DICE.integers(0, 4, N)],
    }
)
ALL = [
    impute("gap", by="median"),
    impute("c", by="frequent"),
    clip("a", share=0.05),
    scale("a", "gap"),
    code("c", most=2),
]


def test_steps_agree_with_scikit_learn() -> None:
    made = Transform([scale("a", "noise")]).fit_transform(FRAME[["a", "noise"]])
    assert np.allclose(made, StandardScaler().fit_transform(FRAME[["a", "noise"]]))
    numbers = FRAME[["a", "noise", "flag"]].astype(float)
    kept = Transform([choose(2, by="chi-squared")]).fit(numbers, LABEL)
    theirs = SelectKBest(chi2, k=2).fit(numbers - numbers.min(), LABEL)
    assert list(kept.get_feature_names_out()) == list(theirs.get_feature_names_out())


def test_what_was_learned_is_plain_and_its_id_is_of_its_content() -> None:
    fitted = Transform(ALL).fit(FRAME)
    names = list(fitted.get_feature_names_out())
    assert names[:4] == ["a", "noise", "gap", "flag"]
    assert sorted(names[4:])[-1].startswith("c=")
    assert len(names) == 6
    again, other = Transform(ALL).fit(FRAME.copy()), Transform(ALL).fit(FRAME.head(300))
    assert fitted.recorded.id == again.recorded.id
    assert fitted.recorded.id != other.recorded.id
    assert fitted.recorded.id.startswith("tf_")
    back = from_recorded(fitted.recorded)
    pd.testing.assert_frame_equal(back.transform(FRAME), fitted.transform(FRAME))
    assert list(back.get_feature_names_out()) == list(fitted.get_feature_names_out())
    with pytest.raises(Conflict, match="is not what its id says"):
        from_recorded(msgspec.structs.replace(fitted.recorded, steps=fitted.recorded.steps[1:]))


VALUES = {
    "a": st.one_of(st.none(), st.floats(-1e6, 1e6)),
    "noise": st.floats(-10, 10),
    "gap": st.one_of(st.none(), st.floats(-1e3, 1e3)),
    "flag": st.booleans(),
    "c": st.one_of(st.none(), st.sampled_from(["UA", "AA", "B6", "unseen", ""])),
}
FITTED = Transform(ALL).fit(FRAME).recorded


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=12))
def test_a_row_online_gives_what_the_frame_gives_offline(rows: list[dict[str, Any]]) -> None:
    schema = {"a": pl.Float64, "noise": pl.Float64, "gap": pl.Float64, "flag": pl.Boolean, "c": pl.String}
    frame = pl.DataFrame(rows, schema=schema)
    offline, pandas = applied(FITTED, frame), applied(FITTED, frame.to_pandas())
    for place, row in enumerate(rows):
        for name, values in applied(FITTED, row).items():
            np.testing.assert_equal(values[0], offline[name][place])
            np.testing.assert_equal(values[0], pandas[name][place])


@pytest.mark.parametrize("by", ["chi-squared", "mutual information", "model"])
def test_a_selector_keeps_what_tells_of_the_label_and_says_why(by: str) -> None:
    numbers = FRAME[["noise", "a", "gap", "flag"]]
    fitted = Transform([choose(2, by=by, seed=3)]).fit(numbers, LABEL)
    (kept,) = fitted.recorded.steps
    assert "flag" in kept.columns
    assert "noise" not in kept.columns or by == "chi-squared"
    assert (kept.by, set(kept.scores)) == (by, {"noise", "a", "gap", "flag"})
    assert Transform([choose(2, by=by, seed=3)]).fit(numbers, LABEL).recorded.id == fitted.recorded.id
    assert fitted.transform(numbers).columns.tolist() == kept.columns


def test_a_selector_works_for_numbers_as_labels() -> None:
    target = FRAME["a"] * 3 + 0.1 * FRAME["noise"]
    for by in ("mutual information", "model"):
        fitted = Transform([choose(1, by=by)]).fit(FRAME[["noise", "a"]], target)
        assert list(fitted.get_feature_names_out()) == ["a"]
    with pytest.raises(BadInput, match="is no class"):
        Transform([choose(1, by="chi-squared")]).fit(FRAME[["a"]], target)


def test_steps_go_into_a_pipeline_and_into_a_registered_model(tmp_path: Path) -> None:
    from cellwork.models import columns, package, registry

    steps = [impute("gap"), impute("c", by="frequent"), code("c"), choose(3, by="model")]
    model = make_pipeline(Transform(steps), LogisticRegression())
    assert clone(model).get_params()["transform__steps"] == steps
    model.fit(FRAME, LABEL)
    assert model.score(FRAME, LABEL) > 0.8
    example = FRAME.head(3).astype(object).where(FRAME.head(3).notna(), None).to_dict("records")
    manifest = package.Manifest(kind="classifier", columns=columns.kinds(FRAME), example=example)
    registry.save(model, manifest, tmp_path / "model")
    loaded = package.load(tmp_path / "model")
    there = getattr(loaded, "model", loaded)
    assert np.allclose(there.predict_proba(FRAME), model.predict_proba(FRAME))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"kind": "scael", "columns": ["a"]}], "did you mean 'scale'"),
        ([scale("aa")], "did you mean 'a'"),
        ([scale("c")], "is text"),
        ([impute("a", by="mode")], "is not known"),
        ([code("a")], "holds no text"),
        ([choose(2)], "'c'.*is text"),
        ([code("c"), scale("c")], "is not there"),
        ([choose(0)], "are none"),
        ([choose(1, by="luck")], "is not known"),
    ],
)
def test_a_step_that_can_not_be_is_refused(steps: list[Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Transform(steps).fit(FRAME, LABEL)


def test_a_selector_without_label_and_rows_without_a_column_are_refused() -> None:
    with pytest.raises(BadInput, match="needs the label"):
        Transform([choose(1)]).fit(FRAME[["a"]])
    with pytest.raises(BadInput, match=r"'gap'.*is not in the rows"):
        applied(FITTED, {"a": 1.0, "noise": 0.0})
