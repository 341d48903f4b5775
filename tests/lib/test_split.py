"""Splits: no row lost, none in two parts, time never mixed, and the warnings that matter."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupShuffleSplit, KFold, ShuffleSplit
from test_dataset import record

from cellwork.data import split
from cellwork.data.dataset import Rows
from cellwork.errors import BadInput

START = datetime(2013, 1, 1, tzinfo=UTC)
quick = settings(max_examples=60, deadline=None)


def rows(hours: list[int], labels: list[Any] | None = None, known: list[datetime | None] | None = None) -> Rows:
    frame = pl.DataFrame(
        {
            "trip": list(range(len(hours))),
            "asked": [START + timedelta(hours=hour) for hour in hours],
            "late": labels if labels is not None else [float(k % 2) for k in range(len(hours))],
            "landed": known or [None] * len(hours),
        },
        schema_overrides={"asked": pl.Datetime("us", "UTC"), "landed": pl.Datetime("us", "UTC"), "late": pl.Float64},
    )
    return Rows(record(inputs=[], features=[], label_known="landed"), frame)


def numbers(part: Rows) -> list[int]:
    return part.frame()["trip"].to_list()


@quick
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
    st.lists(st.integers(0, 21), min_size=1, max_size=4, unique=True),
)
def test_a_time_split_keeps_every_row_once_and_time_apart(hours: list[int], cuts: list[int]) -> None:
    times = [START + timedelta(hours=cut) for cut in sorted(cuts)]
    bounds = [START - timedelta(hours=1), *times, START + timedelta(days=9)]
    expected = [
        [k for k, hour in enumerate(hours) if low <= START + timedelta(hours=hour) < high]
        for low, high in itertools.pairwise(bounds)
    ]
    if not all(expected):
        with pytest.raises(BadInput, match="has no rows"):
            split.by_time(rows(hours), *times)
        return
    assert [numbers(part) for part in split.by_time(rows(hours), *times)] == expected


@quick
@given(st.integers(80, 200), st.integers(0, 99), st.floats(0.2, 0.8))
def test_a_random_split_keeps_every_row_once_and_a_row_on_its_side(count: int, seed: int, share: float) -> None:
    parts = split.random(rows(list(range(count))), share, seed=seed).parts
    first, second = map(numbers, parts)
    assert sorted(first + second) == list(range(count))
    assert first == sorted(first)
    more = split.random(rows(list(range(count + 50))), share, seed=seed).parts
    assert set(first) <= set(numbers(more[0]))
    assert set(second) <= set(numbers(more[1]))


def test_a_random_split_has_about_its_share_and_another_seed_is_another_split() -> None:
    many = rows(list(range(4000)))
    assert abs(len(split.random(many, 0.25).parts[1]) - 1000) < 120
    assert numbers(split.random(many, 0.25, seed=1).parts[1]) != numbers(split.random(many, 0.25).parts[1])
    assert numbers(split.random(many, 0.25).parts[1]) == numbers(split.random(many, 0.25).parts[1])


def test_parts_know_their_names_and_the_recipe() -> None:
    made = split.by_time(rows(list(range(6))), START + timedelta(hours=2), "2013-01-01T04:00:00Z")
    assert [part.name for part in made] == ["train", "valid", "test"]
    assert made["valid"].recipe == {
        "kind": "time",
        "cuts": ["2013-01-01T02:00:00+00:00", "2013-01-01T04:00:00+00:00"],
        "part": "valid",
    }
    named = split.random(rows(list(range(50))), 0.5, seed=3, names=["a", "b"])
    assert named["b"].recipe == {"kind": "random", "share": 0.5, "seed": 3, "names": ["a", "b"], "part": "b"}


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: split.by_time(rows([1, 2])), "do not increase"),
        (lambda: split.by_time(rows([1, 2]), "2013-02-01", "2013-01-01"), "do not increase"),
        (lambda: split.by_time(rows([1, 2]), "2013-01-01T01:30:00"), "no time zone"),
        (lambda: split.by_time(rows([1, 2]), START + timedelta(hours=2), names=["one"]), "are not 2 different"),
        (lambda: split.random(rows([1, 2]), 0.0), "not between 0 and 1"),
        (lambda: split.random(rows([1]), 0.5), "has no rows"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(attempt: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        attempt()


# Warnings

MANY = list(range(4000))
CUT = START + timedelta(hours=2000)


def warnings_of(labels: list[Any], known: list[datetime | None] | None = None) -> list[str]:
    return split.by_time(rows(MANY, labels, known), CUT).warnings


def test_an_even_split_has_no_warnings() -> None:
    assert warnings_of([float(k % 2) for k in MANY]) == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            [float(k % 2) if k < 2000 else float(k % 4 == 0) for k in MANY],
            "valid: late is 1 in 25.0% of its rows, in 37.5% of all",
        ),
        ([float(k % 2) if k < 2000 else 0.0 for k in MANY], "valid: late is never 1 in it"),
        ([float(k % 2) if k < 2000 else float(k % 100 == 0) for k in MANY], "valid: late is 1 in only 20 rows"),
        ([float(k % 2) if k < 2000 else None for k in MANY], "valid: none of its rows has a label"),
        ([None if k > 3700 else float(k % 2) for k in MANY], "valid: 299 of 2,000 rows have no label"),
        ([float(k % 2) if k < 2000 or k > 3950 else None for k in MANY], "valid: only 49 labelled rows"),
        ([float(k % 997 + (900 if k < 2000 else 0)) for k in MANY], "train: mean of late is"),
    ],
)
def test_what_is_uneven_missing_or_too_small_is_said(labels: list[Any], words: str) -> None:
    assert any(words in warning for warning in warnings_of(labels)), warnings_of(labels)


def test_labels_that_were_known_only_after_the_cut_are_counted() -> None:
    known: list[datetime | None] = [START + timedelta(hours=k + 3) for k in MANY]
    assert warnings_of([float(k % 2) for k in MANY], known) == [
        "train: 2 of its labels became known only after the cut at 2013-03-25 08:00Z; a gap leaves them out"
    ]


def test_a_random_split_says_when_moments_are_in_both_parts() -> None:
    apart = split.random(rows(MANY), 0.5)
    together = split.random(rows([k // 100 for k in MANY]), 0.5)
    assert not any("moment" in warning for warning in apart.warnings)
    assert "a time split is honest" in together.warnings[0]


def test_a_part_shows_its_recipe_and_its_warnings() -> None:
    part = split.by_time(rows(MANY, [float(k % 2) if k < 2000 else 0.0 for k in MANY]), CUT)["valid"]
    for text in (repr(part), part._repr_html_()):
        assert "part &#x27;valid&#x27;" in text or "part 'valid'" in text
        assert "late is never 1 in it" in text
        assert "kind time" in text


# More ways of cutting

GROUPS = [f"g{k % 37}" for k in MANY]


def many(**more: Any) -> Rows:
    made = rows(MANY, [float(k % 10 == 0) for k in MANY])
    return Rows(made.record, made.frame().with_columns(**{name: pl.Series(values) for name, values in more.items()}))


WAYS = st.sampled_from(
    [
        lambda data, seed: split.by_time(data, START + timedelta(hours=900), START + timedelta(hours=1500), gap="7h"),
        lambda data, seed: split.sequential(data, [0.5, 0.3, 0.2], gap="1d", names=["a", "b", "c"]),
        lambda data, seed: split.random(data, [0.6, 0.2, 0.2], seed=seed),
        lambda data, seed: split.shuffled(data, 0.3, seed=seed, group="group"),
        lambda data, seed: split.by_group(data, "group", 0.3, seed=seed, names=["in", "out"]),
        lambda data, seed: split.stratified(data, 0.25, seed=seed),
        lambda data, seed: split.stratified(data, 0.25, by="group", seed=seed),
        lambda data, seed: split.using(data, lambda frame: frame["trip"] % 3 == seed % 3),
        lambda data, seed: split.using(data, GroupShuffleSplit(1, random_state=None), group="group"),
        lambda data, seed: split.folds(data, 3, seed=seed),
        lambda data, seed: split.folds(data, 4, "shuffled", seed=seed),
        lambda data, seed: split.folds(data, 3, "group", by="group", seed=seed),
        lambda data, seed: split.folds(data, 3, "stratified", seed=seed),
        lambda data, seed: split.folds(data, 3, "time", gap="5h"),
        lambda data, seed: split.folds(data, ShuffleSplit(2, random_state=None)),
    ]
)


@settings(max_examples=40, deadline=None)
@given(WAYS, st.integers(0, 99))
def test_a_stored_recipe_replayed_gives_equal_parts(way: Any, seed: int) -> None:
    """As JSON and back: that is how it is stored; strategies without a seed are kept row by row."""
    data = many(group=GROUPS)
    made = way(data, seed)
    again = split.replay(data, json.loads(json.dumps(made.recipe)))
    assert again.digest == made.digest
    assert again.recipe == made.recipe
    assert again.warnings == made.warnings


@settings(max_examples=25, deadline=None)
@given(WAYS, st.integers(0, 99))
def test_no_way_of_cutting_puts_a_row_into_two_parts(way: Any, seed: int) -> None:
    made = way(many(group=GROUPS), seed)
    for one in made if isinstance(made, split.Folds) else [made]:
        placed = [number for part in one for number in numbers(part)]
        assert len(placed) == len(set(placed)) == len(MANY) - one.left_out


def test_a_gap_keeps_rows_out_before_the_cut_and_the_late_labels_with_them() -> None:
    known: list[datetime | None] = [START + timedelta(hours=k + 3) for k in MANY]
    made = split.by_time(rows(MANY, None, known), CUT, gap="3h")
    assert numbers(made["train"])[-1] == 1996
    assert numbers(made["valid"])[0] == 2000
    assert made.left_out == 3
    assert made.warnings == []


def test_shares_are_hit_exactly_where_that_is_promised() -> None:
    data = many(group=GROUPS)
    assert [len(part) for part in split.shuffled(data, [0.5, 0.3, 0.2])] == [2000, 1200, 800]
    for part in split.stratified(data, 0.25):
        assert part.y().mean() == pytest.approx(0.1, abs=1e-3)
    assert [len(part) for part in split.sequential(data, [0.5, 0.25, 0.25])] == [2000, 1000, 1000]


def test_groups_stay_whole_and_a_split_that_tears_them_says_so() -> None:
    data = many(group=GROUPS)
    whole = split.by_group(data, "group", 0.3)
    assert not set(whole["train"].frame()["group"]) & set(whole["valid"].frame()["group"])
    torn = split.shuffled(data, 0.3, group="group")
    assert any("have a group that is in 'train' too (37 values)" in text for text in torn.warnings)
    assert not any("that is in 'train' too" in text for text in whole.warnings)
    for fold in split.folds(data, 3, "group", by="group"):
        assert not set(fold["train"].frame()["group"]) & set(fold["valid"].frame()["group"])


def test_folds_of_time_train_on_what_is_earlier_and_validate_each_row_once() -> None:
    made = split.folds(many(), 4, "time", gap="10h")
    validated: list[int] = []
    for fold in made:
        assert max(numbers(fold["train"])) < min(numbers(fold["valid"])) - 10
        validated += numbers(fold["valid"])
    assert sorted(validated) == list(range(800, 4000))


def test_folds_are_a_splitter_of_scikit_learn_for_the_labelled_rows() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    made = rows(MANY, [None if k % 5 == 0 else float(k % 2) for k in MANY])
    data = Rows(
        msgspec.structs.replace(made.record, inputs=["hour"]), made.frame().with_columns(hour=pl.col("trip") % 24)
    )
    folds = split.folds(data, 3)
    scores = cross_val_score(LogisticRegression(), data.X(), data.y(), cv=folds)
    assert len(scores) == folds.get_n_splits() == 3
    assert sum(len(valid) for _, valid in folds.split(data.X())) == 3200
    with pytest.raises(BadInput, match="are not the 3,200 rows"):
        next(folds.split(data.X()[:10]))


def test_a_split_needs_neither_labels_nor_a_platform() -> None:
    frame = pl.DataFrame({"x": [float(k) for k in range(500)], "day": [START.date()] * 500})
    made = split.random(split.local(frame), 0.3)
    assert sum(len(part) for part in made) == 500
    assert list(made["train"].X().columns) == ["x", "day"]
    with pytest.raises(BadInput, match="has no label to stratify by"):
        split.stratified(split.local(frame))
    with pytest.raises(BadInput, match="has no time column"):
        split.sequential(split.local(frame))
    timed = split.local(
        frame.with_columns(at=pl.datetime(2013, 1, 1) + pl.duration(hours=pl.col("x").cast(int))), time="at"
    )
    assert [len(part) for part in split.sequential(timed)] == [400, 100]


def test_near_duplicates_across_parts_are_counted() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=2000)
    frame = pl.DataFrame(
        {"x": [*x, *(x[:300] + 1e-9)], "name": [f"Row {k}" for k in range(2000)] + [f"row  {k}" for k in range(300)]}
    )
    said = split.shuffled(split.local(frame), 0.3).warnings
    assert any("rows have a near-duplicate in 'train'" in text for text in said)
    assert split.shuffled(split.local(frame[:2000]), 0.3).warnings == []


def test_segments_that_the_first_part_never_shows_are_named() -> None:
    carrier = ["AA" if k < 3000 else "HA" for k in MANY]
    data = split.local(pl.DataFrame({"carrier": carrier, "at": [START + timedelta(hours=k) for k in MANY]}), time="at")
    assert (
        "66.7% of its rows have a carrier the first part never shows (HA)"
        in split.by_time(data, START + timedelta(hours=2500)).warnings[0]
    )
    assert "carrier is spread otherwise" in split.by_time(data, START + timedelta(hours=3300)).warnings[0]


def test_a_split_that_shows_the_future_says_so_and_a_constant_label_too() -> None:
    assert any("rows of 'train' are later than its first row" in text for text in split.shuffled(many(), 0.3).warnings)
    assert any(
        "late is 1 in every row: there is nothing to learn" in text
        for text in split.by_time(rows(MANY, [1.0] * 4000), CUT).warnings
    )


# Balancing


def test_only_the_part_to_train_on_can_be_balanced() -> None:
    train, valid = split.stratified(many(), 0.25)
    more, fewer = train.oversampled(seed=1), train.undersampled(0.5)
    assert more.y().mean() == pytest.approx(0.5)
    assert len(more) == 2 * 2700
    assert set(numbers(more)) == set(numbers(train))
    assert (len(fewer), fewer.y().sum()) == (900, 300)
    assert set(numbers(fewer)) < set(numbers(train))
    assert more.recipe["oversampled"] == {"by": "late", "ratio": 1.0, "seed": 1}
    weights = train.weights()
    assert weights.mean() == pytest.approx(1)
    assert weights[train.y() == 1].sum() == pytest.approx(weights[train.y() == 0].sum())
    for attempt in (valid.oversampled, valid.undersampled, valid.weights):
        with pytest.raises(BadInput, match="would flatter the model"):
            attempt()
    with pytest.raises(BadInput, match="has 3186 values"):
        split.random(many(), 0.2)["train"].oversampled(by="trip")


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: split.folds(many(), 1), "are too few"),
        (lambda: split.folds(rows([1, 2]), 3, "shuffled"), "more than the 2 rows"),
        (lambda: split.folds(many(group=GROUPS), 38, "group", by="group"), "more than the 37 values of group"),
        (lambda: split.folds(rows([1, 1, 1]), 2, "time"), "too few moments"),
        (lambda: split.folds(many(), 3, "sorted"), "way to make folds 'sorted'"),
        (lambda: split.shuffled(many(), [0.5, 0.4]), "sum to 0.9"),
        (lambda: split.by_group(many(group=GROUPS), "grup"), "did you mean 'group'"),
        (lambda: split.by_time(many(), CUT, gap="soon"), "is not a positive number with a unit"),
        (lambda: split.using(many(), lambda frame: [1, 2]), "2 answers for 4,000 rows"),
        (lambda: split.using(many(), ShuffleSplit(5)), "makes 5 splits"),
        (lambda: split.folds(rows([1, 2, 3]), KFold(5)), "refuses the dataset"),
        (lambda: split.replay(many(), {"kind": "tme"}), "did you mean 'time'"),
        (
            lambda: split.replay(rows([1]), split.using(many(), lambda f: f["trip"] > 9).recipe),
            "is not of this dataset's 1",
        ),
    ],
)
def test_what_cannot_be_split_that_way_is_refused_with_the_way_out(attempt: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        attempt()
