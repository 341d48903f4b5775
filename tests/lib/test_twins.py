from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from feature_samples import LATE, definitions_of

from cellwork.features import twins

START = datetime(2013, 1, 1, tzinfo=UTC)
DICE = np.random.default_rng(5)
VALUES = DICE.normal(size=2000)


def rows(key: str, ids: list[str], **fields: object) -> pl.DataFrame:
    times = [START + timedelta(minutes=k) for k in range(2000)]
    return pl.DataFrame({key: (ids * 2000)[:2000], "event_timestamp": times, **fields})


def found(other: pl.DataFrame, key: str = "id") -> list[tuple[str, str, str, float]]:
    ids = [f"e{k}" for k in range(40)]
    ours = rows("id", ids, x=VALUES, flag=VALUES > 0, c=np.where(VALUES > 0, "a", "b"))
    named = [name for name in other.columns if name not in (key, "event_timestamp")]
    one, two = twins.sample(ours.lazy(), ["id"], ["x", "flag", "c"]), twins.sample(other.lazy(), [key], named)
    return twins.compare(one, two, ["x", "flag", "c"], named)


IDS = [f"e{k}" for k in range(40)]


@pytest.mark.parametrize(
    ("values", "pairs"),
    [
        (VALUES, {("x", "y")}),
        (VALUES * 1.8 + 32, {("x", "y")}),
        (-VALUES, {("x", "y")}),
        (np.exp(VALUES), {("x", "y")}),
        (np.where(DICE.random(2000) < 0.03, 0.0, VALUES), {("x", "y")}),
        (VALUES + DICE.normal(size=2000), set()),
        (DICE.permutation(VALUES), set()),
        (np.zeros(2000), set()),
    ],
)
def test_equal_and_rescaled_values_are_twins_and_others_are_not(
    values: np.ndarray, pairs: set[tuple[str, str]]
) -> None:
    assert {pair[:2] for pair in found(rows("unit", IDS, y=values), "unit")} == pairs


def test_text_and_true_or_false_are_compared_by_equality() -> None:
    other = rows("id", IDS, f=(VALUES > 0).astype(int), c=np.where(VALUES > 0, "a", "b"), d=["z"] * 2000)
    assert {pair[:2] for pair in found(other)} == {("flag", "f"), ("c", "c")}


def test_of_the_other_feature_the_value_that_held_then_is_taken() -> None:
    later = rows("id", IDS, y=VALUES).with_columns(pl.col("event_timestamp") + timedelta(seconds=30))
    assert found(later) == []
    earlier = rows("id", IDS, y=VALUES).with_columns(pl.col("event_timestamp") - timedelta(seconds=30))
    assert found(earlier)[0][3] == 1.0


def test_views_with_other_entities_share_no_pair() -> None:
    assert found(rows("id", [f"other{k}" for k in range(40)], y=VALUES)) == []


def test_samples_of_two_large_views_have_the_same_entities() -> None:
    one = pl.DataFrame({"a": range(5000), "event_timestamp": [START] * 5000, "x": range(5000)})
    two = one.rename({"a": "b"}).sample(fraction=1.0, shuffle=True, seed=1)
    samples = [set(twins.sample(f.lazy(), [key], ["x"])["_entity"]) for f, key in ((one, "a"), (two, "b"))]
    assert samples[0] == samples[1]
    assert len(samples[0]) == twins.ENTITIES


def test_definitions_that_differ_in_names_and_spaces_only_are_alike() -> None:
    one, other = definitions_of(LATE), definitions_of(LATE, project="other", rename=True)
    assert twins.defined_alike(one, one.views[0], other, other.views[0]) == [("n", "m"), ("late", "slow")]
    window = definitions_of(LATE, window="12h")
    assert twins.defined_alike(one, one.views[0], window, window.views[0]) == []
    sql = definitions_of(LATE.replace("delay", "delay + 1"))
    assert twins.defined_alike(one, one.views[0], sql, sql.views[0]) == []
