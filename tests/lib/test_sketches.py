from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cellwork.content import hash_texts
from cellwork.data import sketches
from cellwork.data.sketches import distinct, ordered
from cellwork.errors import BadInput, NotFound

SHAPES = {
    "normal": lambda dice, n: dice.normal(size=n),
    "heavy tails": lambda dice, n: dice.standard_cauchy(n),
    "skewed": lambda dice, n: dice.lognormal(0, 3, n),
    "half zeros": lambda dice, n: np.where(dice.random(n) < 0.5, 0.0, dice.exponential(size=n)),
    "lumps": lambda dice, n: dice.integers(0, 3000, n) + dice.normal(size=n) * 1e-6,
    "few": lambda dice, n: dice.poisson(3.0, n).astype(float),
}
floats = st.floats(allow_nan=True, allow_infinity=True, width=64)


def of(values: Any, dtype: Any = None) -> sketches.Column:
    return sketches.of(pl.DataFrame({"x": pl.Series(values, dtype=dtype)}))["x"]


def merged(parts: Sequence[sketches.Column]) -> sketches.Column:
    return sketches.merge([sketches.Sketch(part.rows, {"x": part}) for part in parts])["x"]


def plain_ks(a: sketches.Ranks, b: sketches.Ranks) -> float:
    at = np.union1d(a.values, b.values)
    return float(max(np.abs(a.cdf(at, side) - b.cdf(at, side)).max() for side in ("left", "right")))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.none(), floats), max_size=40), st.lists(floats, max_size=5))
def test_a_sketch_of_few_floats_agrees_with_a_plain_count(values: list[float | None], asked: list[float]) -> None:
    column, there = of(values, pl.Float64), [v for v in values if v is not None]
    finite = [v for v in there if math.isfinite(v)]
    assert (column.rows, column.nulls) == (len(values), values.count(None))
    assert (column.nan, column.infinite) == (sum(map(math.isnan, there)), sum(map(math.isinf, there)))
    assert column.distinct.count == len(set(finite))
    if not finite:
        assert (column.ranks, column.mean, column.least) == (None, None, None)
        return
    assert (column.least, column.greatest) == (min(finite), max(finite))
    assert column.ranks is not None
    assert column.ranks.exact
    for at in [*finite, *(v for v in asked if math.isfinite(v))]:
        assert column.ranks.rank(at) == pytest.approx(sum(v <= at for v in finite))
        assert column.ranks.rank(at, "left") == pytest.approx(sum(v < at for v in finite))


@given(st.lists(st.integers(-15, 15), min_size=1, max_size=60), st.sampled_from([0, 2**40]))
def test_counted_sorted_and_taken_as_they_came_values_have_one_sketch(drawn: list[int], apart: int) -> None:
    values = [*drawn, drawn[0] + apart]  # in a narrow range they are counted
    came, in_order, as_floats = of(values), of(sorted(values)), of([float(v) for v in values])
    for other in (in_order, as_floats):
        assert (came.least, came.greatest, came.rows) == (other.least, other.greatest, other.rows)
        assert came.distinct.hashes.tolist() == other.distinct.hashes.tolist()
        assert came.mean == pytest.approx(other.mean)
        assert came.squares == pytest.approx(other.squares, abs=1e-6)
        assert came.ranks is not None
        assert other.ranks is not None
        for part in ("values", "below", "at_most"):
            assert getattr(came.ranks, part).tolist() == getattr(other.ranks, part).tolist()


def test_both_ways_of_sorting_many_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = np.random.default_rng(5)
    rows = np.concatenate([dice.standard_cauchy(5000), [0.0, 1e308, -1e308, 5e-324]])
    found = []
    for sort in (ordered._sort_by_numpy, ordered._sort_by_polars):
        monkeypatch.setattr(ordered, "_MANY", 1000)
        monkeypatch.setattr(ordered, "_quickest_sort", lambda sort=sort: sort)
        found.append(sketches.pack(sketches.of(pl.DataFrame({"x": rows}))))
    assert found[0] == found[1]


def test_the_sort_that_is_chosen_sorts() -> None:
    rows = np.random.default_rng(6).random(1000)
    assert ordered._quickest_sort()(rows).tolist() == sorted(rows.tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=20), min_size=1, max_size=6).filter(any))
def test_moments_of_merged_parts_are_those_of_all_rows(parts: list[list[float]]) -> None:
    column, everything = merged([of(part, pl.Float64) for part in parts]), np.concatenate(parts)
    assert column.mean == pytest.approx(everything.mean(), rel=1e-9, abs=1e-9)
    if len(everything) > 1:
        assert column.variance == pytest.approx(everything.var(ddof=1), rel=1e-6, abs=1e-6)
    else:
        assert column.variance is None


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(0, 2**32),
    st.lists(st.integers(1, 9000), min_size=3, max_size=6),
    st.integers(1, 2),
)
def test_any_order_of_merging_stays_within_the_error_that_the_sketch_states(
    shape: str, seed: int, sizes: list[int], cut: int
) -> None:
    dice = np.random.default_rng(seed)
    pieces = [SHAPES[shape](dice, size) for size in sizes]
    parts = [of(piece) for piece in pieces]
    everything = np.sort(np.concatenate(pieces))
    ways = [
        merged(parts),
        merged([merged(parts[:cut]), merged(parts[cut:])]),
        merged([parts[-1], merged(parts[:-1][::-1])]),
    ]
    asked = np.concatenate([everything, everything[:-1] + np.diff(everything) / 2])
    for column in ways:
        assert column.ranks is not None
        for side in ("left", "right"):
            truth = np.searchsorted(everything, asked, side) / len(everything)
            assert np.abs(column.ranks.cdf(asked, side) - truth).max() <= column.ranks.error + 1e-9
        assert column.ranks.error < 0.005
        assert (column.least, column.greatest) == (everything[0], everything[-1])
        assert np.array_equal(column.distinct.hashes, ways[0].distinct.hashes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("batches", "rows"), [(1, 60_000), (20, 1_000), (7, 9_000)])
def test_kolmogorov_smirnov_from_merged_sketches_is_scipys(shape: str, batches: int, rows: int) -> None:
    dice = np.random.default_rng(batches)
    reference = [SHAPES[shape](dice, rows) for _ in range(batches)]
    current = [SHAPES[shape](dice, rows) * 1.05 + 0.02 for _ in range(batches)]
    one, other = (merged([of(piece) for piece in side]).ranks for side in (reference, current))
    assert one is not None
    assert other is not None
    truth = stats.ks_2samp(np.concatenate(reference), np.concatenate(current)).statistic
    assert abs(plain_ks(one, other) - truth) < 1e-3


def test_few_distinct_values_stay_exact_however_much_is_merged() -> None:
    dice = np.random.default_rng(0)
    pieces = [dice.integers(0, 500, 20_000) for _ in range(8)]
    column = merged([merged([of(piece) for piece in pieces[:3]]), *(of(piece) for piece in pieces[3:])])
    values, counts = np.unique(np.concatenate(pieces), return_counts=True)
    assert column.ranks is not None
    assert column.ranks.error == 0
    assert np.array_equal(column.ranks.values, values)
    assert np.array_equal(column.ranks.at_most - column.ranks.below, counts)


def test_quantiles_are_within_the_error_of_the_true_ones_far_into_the_tails() -> None:
    values = np.random.default_rng(1).lognormal(0, 2, 300_000)
    ranks = of(values).ranks
    assert ranks is not None
    for share in (0.0, 1e-5, 0.01, 0.5, 0.99, 0.99999, 1.0):
        found = float(ranks.quantile(share))
        assert abs((values <= found).mean() - share) <= ranks.error
    assert (ranks.quantile(0.0), ranks.quantile(1.0)) == (values.min(), values.max())
    tail = float(ranks.quantile(0.99999))
    assert (values > tail).sum() == pytest.approx(3, abs=2)


def test_a_share_outside_0_and_1_is_refused_as_a_quantile() -> None:
    ranks = of([1.0, 2.0]).ranks
    assert ranks is not None
    with pytest.raises(BadInput, match=r"1\.5.*not between 0 and 1"):
        ranks.quantile(1.5)


def test_the_widest_column_of_floats_has_no_overflow() -> None:
    widest = np.finfo(np.float64).max
    ranks = of([-widest, 0.0, 1.0, widest]).ranks
    assert ranks is not None
    assert ranks.rank([-widest, -1.0, 0.0, 1.0, 1e308, widest]).tolist() == pytest.approx([1, 1, 2, 3, 3, 4])
    assert ranks.quantile([0.0, 1.0]).tolist() == [-widest, widest]


@pytest.mark.parametrize("size", [900, 50_000])
def test_distinct_values_of_merged_batches_are_exact_when_few_and_close_when_many(size: int) -> None:
    batches = [np.arange(k * size // 4, k * size // 4 + size) for k in range(5)]
    everything = 2 * size
    column = merged([of([f"unit {value}" for value in batch]) for batch in batches[:5]])
    assert column.distinct.count == pytest.approx(everything, rel=0.12)
    assert column.distinct.exact is (everything < distinct.KEPT)
    numbers = merged([of(batch) for batch in batches])
    assert numbers.distinct.count == pytest.approx(everything, rel=0.12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 3000), st.integers(1, 20_000))
def test_the_hashes_kept_of_merged_parts_are_the_smallest_whatever_the_parts_share(
    seed: int, parts: int, rows: int, values: int
) -> None:
    dice = np.random.default_rng(seed)
    pieces = [np.unique(dice.integers(0, values, rows)) for _ in range(parts)]
    merged = distinct.merge([distinct.of(distinct.hash_numbers(piece)) for piece in pieces])
    every = np.unique(distinct.hash_numbers(np.unique(np.concatenate(pieces))))
    assert np.array_equal(merged.hashes, every[: distinct.KEPT])
    assert merged.least <= len(every) <= merged.most


def test_distinct_integers_beyond_the_exact_floats_are_told_apart() -> None:
    column = of(2**60 + np.arange(5000))
    assert column.distinct.count == 5000


def test_overlap_says_how_much_two_columns_have_in_common() -> None:
    one, same, half, other = (of(np.arange(start, start + 30_000)).distinct for start in (0, 0, 15_000, 10**6))
    assert one.overlap(same) == 1.0
    assert one.overlap(half) == pytest.approx(1 / 3, abs=0.06)
    assert one.overlap(other) == 0.0
    assert of([], pl.Int64).distinct.overlap(of([], pl.Int64).distinct) == 0.0


def test_a_number_hashes_alike_as_an_integer_and_as_a_float_and_a_text_alike_in_any_frame() -> None:
    numbers = np.array([0, 1, -5, 2**40])
    assert np.array_equal(distinct.hash_numbers(numbers), distinct.hash_numbers(numbers.astype(np.float64)))
    assert distinct.hash_numbers(np.array([-0.0]))[0] == distinct.hash_numbers(np.array([0]))[0]
    texts = ["", "a", "Zürich", "eight by", "nine byte", "x" * 1000, "x" * 1001, "a\0", "a\0\0"]
    alone = [int(hash_texts(pl.Series([text]))[0]) for text in texts]
    assert hash_texts(pl.Series(["other", *texts]).slice(1)).tolist() == alone
    assert len(set(alone)) == len(texts)
    assert alone[:3] == [16294208416658607535, 12808206641938706764, 2326873545127102153], "kept sketches rely on it"


def test_counts_of_few_texts_are_exact_and_of_many_are_right_within_their_doubt() -> None:
    dice = np.random.default_rng(3)
    pieces = [[f"w{int(k)}" for k in dice.zipf(1.5, 4000).clip(max=5000)] for _ in range(5)]
    truth = Counter(word for piece in pieces for word in piece)
    counts = merged([of(piece) for piece in pieces]).counts
    assert counts is not None
    assert not counts.exact
    assert sum(counts.counts) + counts.rest == 20_000
    for word, count in counts.items().items():
        assert count <= truth[word] <= count + counts.doubt
    assert counts.texts[:3] == tuple(word for word, _ in truth.most_common(3))
    few = merged([of(["a", "b", None]), of(["b", ""])]).counts
    assert few is not None
    assert few.exact
    assert few.items() == {"b": 2, "": 1, "a": 1}


def test_times_dates_and_true_or_false_are_numbers_and_nested_values_are_only_counted() -> None:
    frame = pl.DataFrame(
        {
            "at": [datetime(2013, 1, 1, tzinfo=UTC), None],
            "day": [date(1970, 1, 2), date(1970, 1, 4)],
            "late": [True, False],
            "tags": [["a"], None],
            "empty": [None, None],
            "exact": pl.Series(["0.5", "1.5"]).cast(pl.Decimal(10, 2)),
        }
    )
    sketch = sketches.of(frame)
    kinds = {name: column.kind for name, column in sketch.columns.items()}
    assert kinds == {"at": "time", "day": "time", "late": "bool", "tags": "other", "empty": "null", "exact": "number"}
    assert sketch["at"].greatest == datetime(2013, 1, 1, tzinfo=UTC).timestamp() * 1e6
    assert sketch["day"].mean == 2 * 86_400e6
    assert (sketch["late"].mean, sketch["exact"].mean) == (0.5, 1.0)
    assert (sketch["tags"].nulls, sketch["empty"].nulls) == (1, 2)


def test_a_column_without_values_merges_with_any_and_texts_never_with_numbers() -> None:
    numbers, nothing, texts = of([1.0, 3.0]), of([None], pl.Null), of(["a"])
    assert merged([nothing, numbers, of([True])]).kind == "number"
    assert merged([nothing, numbers]).nulls == 1
    with pytest.raises(BadInput, match=r"number and text.*don't mix"):
        merged([numbers, texts])


def test_a_column_that_a_part_lacks_is_null_in_its_rows() -> None:
    whole = sketches.merge([sketches.of(pl.DataFrame({"a": [1]})), sketches.of(pl.DataFrame({"a": [2], "b": [5]}))])
    assert whole.rows == 2
    assert (whole["b"].nulls, whole["b"].mean) == (1, 5.0)
    with pytest.raises(NotFound, match=r"bb.*did you mean 'b'"):
        whole["bb"]
    with pytest.raises(BadInput, match="are none"):
        sketches.merge([])


def test_a_packed_sketch_comes_back_equal_and_a_damaged_one_is_refused() -> None:
    dice = np.random.default_rng(4)
    frame = pl.DataFrame(
        {"x": dice.normal(size=20_000), "t": [f"id {k}" for k in range(20_000)], "b": [True, None] * 10_000}
    )
    sketch = sketches.of(frame)
    packed = sketches.pack(sketch)
    back = sketches.unpack(packed)
    assert sketches.pack(back) == packed
    assert back["x"].ranks is not None
    assert sketch["x"].ranks is not None
    assert np.array_equal(back["x"].ranks.cdf(frame["x"]), sketch["x"].ranks.cdf(frame["x"]))
    assert (back["t"].counts, back["x"].variance) == (sketch["t"].counts, sketch["x"].variance)
    assert len(packed) < 60_000
    for damaged in (b"", packed[:-1], packed[:40], packed[20:], packed[:60] + b"\0" * 40 + packed[100:]):
        with pytest.raises(BadInput, match=r"sketch.*make it again"):
            sketches.unpack(damaged)
