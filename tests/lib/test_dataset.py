"""A dataset in a notebook: what models take of it, and how it looks."""

from __future__ import annotations

import html
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from pandas.testing import assert_frame_equal
from sklearn.linear_model import LinearRegression

from cellwork.data.dataset import Dataset, Rows, moment
from cellwork.errors import BadInput
from cellwork.models import columns
from cellwork.wire.datasets import Coverage
from cellwork.wire.datasets import Dataset as Record
from cellwork.wire.origin import Origin

START = datetime(2013, 1, 1, tzinfo=UTC)


def record(**changed: Any) -> Record:
    known: dict[str, Any] = {
        "id": "ds_" + "0" * 26, "project": "demo", "name": "training", "rows": 4, "observations": "trips", "id_column": "trip",
        "time_column": "asked", "inputs": ["hour", "carrier"], "features": ["weather__temp", "weather__wet"], "label": "late", "labelled": 3,
        "start": START, "end": START + timedelta(days=2), "content_sha256": "ab" * 32, "revision": 1, "batches": [],
        "coverage": [Coverage(view="weather", rows=4, found=3, expired=1, median_age_seconds=5400.0)], "at": START, "origin": Origin(),
    }  # fmt: skip
    return Record(**{**known, **changed})


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "trip": ["a", "b", "c", "d"],
            "asked": [START + timedelta(hours=hour) for hour in range(4)],
            "hour": [5, 6, 7, 8],
            "carrier": ["UA", None, "AA", "UA"],
            "weather__temp": pl.Series([1.5, None, 2.5, 3.5], dtype=pl.Float32),
            "weather__wet": [True, None, False, True],
            "late": [True, False, None, True],
            "_batch": ["bat"] * 4,
        }
    )


def test_x_and_y_leave_out_the_same_rows_and_frame_leaves_out_none() -> None:
    rows = Rows(record(), frame())
    assert rows.X()["hour"].tolist() == [5.0, 6.0, 8.0]
    assert rows.y().tolist() == [1.0, 0.0, 1.0]
    assert rows.X().index.equals(rows.y().index)
    assert rows.X(labelled=False)["hour"].tolist() == [5.0, 6.0, 7.0, 8.0]
    assert (rows.frame().height, len(rows), rows.labelled) == (4, 4, 3)


def test_a_model_is_trained_on_the_values_that_it_is_asked_with() -> None:
    """Missing text too: what serving and evaluation make of the same rows is the same, value by value."""
    rows, wanted = Rows(record(), frame()), [*record().inputs, *record().features]
    X = rows.X(labelled=False)
    kinds = columns.kinds(X)
    for asked in (rows.frame().select(wanted), {name: rows.frame()[name].to_list() for name in wanted}):
        assert_frame_equal(columns.to_pandas(asked, kinds), X)
    assert X["carrier"][1] is np.nan
    dated = Rows(record(), frame().with_columns(hour=pl.date(2013, 1, 1))).X()
    assert list(dated.columns) == wanted
    with pytest.raises(BadInput, match=r"'hour'.*make numbers, flags or text"):
        columns.kinds(dated)


def test_a_models_columns_have_one_type_each_whatever_is_missing() -> None:
    """A part without a gap must not be of other types than one with: signatures would differ."""
    whole, gaps = Rows(record(), frame().filter(pl.col("trip") == "a")).X(), Rows(record(), frame()).X()
    assert list(gaps.columns) == ["hour", "carrier", "weather__temp", "weather__wet"]
    assert (
        gaps.dtypes.tolist()
        == whole.dtypes.tolist()
        == [np.dtype(float), np.dtype(object), np.dtype(float), np.dtype(float)]
    )
    assert gaps["carrier"].tolist() == ["UA", np.nan, "UA"]
    assert np.isnan(gaps["weather__temp"][1])
    empty = Rows(record(), frame().with_columns(weather__temp=pl.lit(None))).X()
    assert empty["weather__temp"].dtype == float


def test_scikit_learn_takes_it_as_it_is() -> None:
    rows = Rows(record(inputs=["hour"], features=[]), frame())
    assert LinearRegression().fit(rows.X(), rows.y()).predict(rows.X(labelled=False)).shape == (4,)


def test_without_labels_x_is_every_row_and_y_says_what_to_do() -> None:
    rows = Rows(record(label="", labelled=0), frame().drop("late"))
    assert len(rows.X()) == 4
    with pytest.raises(BadInput, match="build it with labels=True"):
        rows.y()
    with pytest.raises(BadInput, match="build it with labels=True"):
        rows.X(labelled=True)


def test_its_repr_reads_well_without_asking_the_platform_for_its_rows() -> None:
    made = Dataset(record())
    assert repr(made).splitlines() == [
        "Dataset demo/training",
        f"  dataset       {record().id}",
        "  observations  trips, 4 rows",
        "  time          2013-01-01 00:00Z to 2013-01-03 00:00Z, by asked",
        "  columns       2 inputs, 2 features",
        "  label         late: 3 known, 1 not",
        "  view weather  75.0% of rows found a value, 1 too old, median age 1.5 h",
        "  content       abababababababab",
    ]
    for _, fact in made.facts():
        assert html.escape(fact) in made._repr_html_()


def test_its_html_escapes_names() -> None:
    assert "<script>" not in Dataset(record(observations="<script>"))._repr_html_()


@pytest.mark.parametrize("at", ["2013-01-01", "2013-01-01T00:00:00Z", "2012-12-31T19:00:00-05:00", START])
def test_a_date_is_its_midnight_in_utc(at: Any) -> None:
    assert moment(at) == START


@pytest.mark.parametrize("at", ["2013-01-01T00:00:00", "soon", "2013-13-01", datetime(2013, 1, 1)])
def test_a_time_without_a_zone_is_refused(at: Any) -> None:
    with pytest.raises(BadInput, match=r"zone|ISO"):
        moment(at)
