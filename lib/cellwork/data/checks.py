"""Declared checks of a batch, before anything of it is published: which rows fail, and whether the rest may be published.

The verdict depends on the rows, their arrival and the sizes of the batches before, never on the order of rows. Sealed columns are not
looked at, since what a check says of a row would tell its value. Reasons name limits, never values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from cellwork import clock
from cellwork.errors import BadInput, near_miss
from cellwork.wire.batches import Check, CheckOutcome, Column, RawDataset

if TYPE_CHECKING:
    import polars as pl

FEWEST = 3
"""Batches before from which on their mean row count says something."""


@dataclass(frozen=True)
class Verdict:
    kept: pl.DataFrame
    failed: pl.DataFrame
    """Rows for the quarantine, with `_reason`."""
    outcomes: list[CheckOutcome]

    @property
    def passed(self) -> bool:
        return all(outcome.passed for outcome in self.outcomes)


def judge(
    rows: pl.DataFrame, checks: Sequence[Check], *, sealed: Sequence[str], at: datetime, before: Sequence[int]
) -> Verdict:
    """Return what `checks` say of the canonical `rows`.

    Parameters
    ----------
    sealed : columns that are not looked at.
    at : when the batch arrived.
    before : row counts of the last batches.
    """
    import polars as pl

    open_checks = [check for check in checks if check.column not in sealed]
    outcomes, reasons = [], []
    for check in open_checks:
        for text, failing in _of_rows(check, rows.schema):
            failed = rows.select(failing.fill_null(False).sum()).item()
            outcomes.append(
                CheckOutcome(check=text, failed=failed, passed=failed <= check.tolerance * max(1, rows.height))
            )
            reasons.append(pl.when(failing.fill_null(False)).then(pl.lit(f"check failed: {text}")))
        outcomes += _of_batch(check, rows, at, before)
    judged = rows.with_columns(_reason=pl.coalesce(*reasons, pl.lit("")) if reasons else pl.lit(""))
    return Verdict(
        judged.filter(pl.col("_reason") == "").drop("_reason"), judged.filter(pl.col("_reason") != ""), outcomes
    )


def _of_rows(check: Check, columns: Any) -> list[tuple[str, pl.Expr]]:
    """Return what must hold, and which rows fail it."""
    import polars as pl

    if not check.column:
        return []
    column, name = pl.col(check.column), f"column {check.column!r}"
    dtype = columns[check.column]
    found = [(f"{name} is not null", column.is_null())] if check.not_null else []
    if dtype == pl.Null:
        return found
    if check.unique:
        found.append((f"{name} is unique", column.is_duplicated() & column.is_not_null()))
    if check.least is not None:
        found.append((f"{name} is at least {_text(check.least)}", column < _limit(check.least, dtype, check)))
    if check.greatest is not None:
        found.append((f"{name} is at most {_text(check.greatest)}", column > _limit(check.greatest, dtype, check)))
    if check.pattern:
        found.append((f"{name} matches {check.pattern}", ~column.str.contains(f"^(?:{check.pattern})$")))
    if check.one_of:
        found.append((f"{name} is one of {', '.join(check.one_of)}", ~column.is_in(check.one_of)))
    return found


def _of_batch(check: Check, rows: pl.DataFrame, at: datetime, before: Sequence[int]) -> list[CheckOutcome]:
    found = []
    if check.within and str(rows.schema[check.column]) != "Null":
        newest: Any = rows.get_column(check.column).max()
        moment = newest if isinstance(newest, datetime) else datetime(newest.year, newest.month, newest.day, tzinfo=UTC)
        fresh = (at - moment).total_seconds() <= clock.duration(check.within).total_seconds()
        text = f"the newest {check.column!r} is at most {check.within} old"
        found.append(CheckOutcome(check=text, failed=0 if fresh else rows.height, passed=fresh))
    if check.rows_near_mean is not None and len(before) >= FEWEST:
        mean = sum(before) / len(before)
        near = abs(rows.height - mean) <= check.rows_near_mean * mean
        text = f"{rows.height:,} rows are within {check.rows_near_mean:.0%} of the mean of the last {len(before)} batches, {mean:,.0f}"
        found.append(CheckOutcome(check=text, failed=0 if near else rows.height, passed=near))
    return found


def _text(limit: float | str) -> str:
    return limit if isinstance(limit, str) else f"{limit:g}"


def _limit(limit: float | str, dtype: pl.DataType, check: Check) -> Any:
    """Return `limit` as a literal of `dtype`."""
    import polars as pl

    if dtype == pl.Date:
        return pl.lit(date.fromisoformat(str(limit)))
    if isinstance(dtype, pl.Datetime):
        return pl.lit(clock.utc(str(limit)))
    return pl.lit(limit)


NEEDS = {"pattern": ("string",), "one_of": ("string",), "within": ("timestamp[us, tz=UTC]", "date32[day]")}
RANGES = ("int64", "double", "timestamp[us, tz=UTC]", "date32[day]")


def check_declared(declared: RawDataset, columns: Sequence[Column]) -> None:
    """Raise BadInput for a check that can't be read, or that does not fit `columns` (empty while there is no batch)."""
    types = {column.name: column.type for column in columns}
    for check in declared.checks:
        subject = f"check of data set {declared.name!r}"
        if bool(check.column) == (check.rows_near_mean is not None):
            raise BadInput(subject, check.column, "needs a column, or rows_near_mean without one", "name one of both")
        if not 0 <= check.tolerance <= 1:
            raise BadInput(f"tolerance of {subject}", check.tolerance, "is not a share", "give 0 to 1")
        _readable(subject, check)
        if types and check.column:
            if check.column not in types:
                raise BadInput(
                    f"column of {subject}", check.column, "is not in its schema", near_miss(check.column, types)
                )
            _fits(subject, check, types[check.column])


def _readable(subject: str, check: Check) -> None:
    import polars as pl

    if check.within:
        clock.duration(check.within)
    try:
        pl.Series([""]).str.contains(f"^(?:{check.pattern})$")
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[-1].strip()
        raise BadInput(
            f"pattern of {subject}", check.pattern, f"is no regular expression: {reason}", "mend it"
        ) from None


def _fits(subject: str, check: Check, type_: str) -> None:
    for field, types in {**NEEDS, "least": RANGES, "greatest": RANGES}.items():
        value = getattr(check, field)
        if value in (None, "", []) or type_ == "null":
            continue
        where = f"{field} of {subject} on column {check.column!r}"
        if type_ not in types:
            raise BadInput(where, value, f"does not fit the type {type_}", f"it is for {', '.join(types)}")
        if field in ("least", "greatest") and isinstance(value, str) is (type_ in ("int64", "double")):
            raise BadInput(where, value, f"is no limit for {type_}", "give numbers a number, and times ISO text")
        if field in ("least", "greatest") and isinstance(value, str):
            _check_time(where, value, type_)


def _check_time(where: str, value: str, type_: str) -> None:
    if not type_.startswith("date"):
        clock.utc(value)
        return
    try:
        date.fromisoformat(value)
    except ValueError:
        raise BadInput(where, value, "is no date", "write 2013-01-31") from None
