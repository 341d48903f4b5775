"""Splits: no row lost, none in two parts, time never mixed, and the warnings that matter."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
@given(st.integers(20, 200), st.integers(0, 99), st.floats(0.2, 0.8))
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
    assert named["b"].recipe == {"kind": "random", "share": 0.5, "seed": 3, "part": "b"}


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
        "train: 2 of its labels became known only after the cut at 2013-03-25 08:00Z"
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
