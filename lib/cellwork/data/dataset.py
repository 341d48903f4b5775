"""Training frames in a notebook: build one by name, look at it, hand it to scikit-learn.

The frame is made by the platform (observations joined with what was known at each one's time) and fetched once. Rows are
never dropped from it; only `X` and `y` leave out rows without a label, both the same ones.
"""

from __future__ import annotations

import contextlib
import functools
import html
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwork import clock
from cellwork.client import Client, connect
from cellwork.data.ingest import located
from cellwork.errors import BadInput, Conflict
from cellwork.wire.datasets import BuildStatus, DatasetRequest, Estimate
from cellwork.wire.datasets import Dataset as Record

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


class Rows:
    """Rows of a dataset, all or a part, as what models take. Made by `build`, `get` and `cellwork.data.split`."""

    def __init__(self, record: Record, rows: pl.DataFrame) -> None:
        self.record, self._rows = record, rows

    def frame(self) -> pl.DataFrame:
        """Return every row with all columns, as the platform made them."""
        return self._rows

    @property
    def columns(self) -> list[str]:
        """A model's columns: the inputs, then the features ``view__feature``."""
        return [*self.record.inputs, *self.record.features]

    def X(self, *, labelled: bool | None = None) -> pd.DataFrame:
        """Return the model's columns as serving will give them (`models.columns`): float64 and objects, missing is NaN in both.

        Times and lists stay what pandas makes of them; no model is registered with such a column.

        Parameters
        ----------
        labelled : only rows with a label; by default if the dataset has labels. False returns every row, for scoring.
        """
        import polars as pl
        import polars.selectors as cs

        from cellwork.models import columns

        labelled = bool(self.record.label) if labelled is None else labelled
        rows = self._labelled() if labelled else self._rows
        wanted = rows.select(self.columns).with_columns(cs.by_dtype(pl.Null).cast(pl.Float64))
        others = wanted.select(cs.temporal() | cs.nested())
        plain = columns.to_pandas(wanted.drop(others.columns))
        return plain.join(others.to_pandas())[self.columns] if others.width else plain

    def y(self) -> pd.Series[float]:
        """Return the label as float64, of the rows of `X()` and in their order."""
        import polars as pl

        return self._labelled().get_column(self.record.label).cast(pl.Float64).to_pandas()

    def _labelled(self) -> pl.DataFrame:
        import polars as pl

        if not self.record.label:
            raise BadInput("dataset", self.record.id, "has no labels", "build it with labels=True")
        return self._rows.filter(pl.col(self.record.label).is_not_null())

    @property
    def labelled(self) -> int:
        """How many rows have a label."""
        return int(self._rows.get_column(self.record.label).count()) if self.record.label else 0

    def __len__(self) -> int:
        return self._rows.height

    def facts(self) -> list[tuple[str, str]]:
        """Return what the repr shows: name and text of each line."""
        record, rows = self.record, len(self)
        facts = [
            ("dataset", record.id),
            ("observations", f"{record.observations}, {rows:,} rows"),
            ("time", f"{_short(record.start)} to {_short(record.end)}, by {record.time_column}"),
            ("columns", f"{len(record.inputs)} inputs, {len(record.features)} features"),
        ]
        if record.label:
            facts.append(("label", f"{record.label}: {self.labelled:,} known, {rows - self.labelled:,} not"))
        return facts

    def title(self) -> str:
        return f"{self.record.project}/{self.record.name}"

    def warnings_of(self) -> list[str]:
        return []

    def __repr__(self) -> str:
        lines = [f"Dataset {self.title()}", *(f"  {name:<13} {text}" for name, text in self.facts())]
        return "\n".join([*lines, *(f"  ! {text}" for text in self.warnings_of())])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self.facts()
        )
        notes = "".join(f"<li>{html.escape(text)}</li>" for text in self.warnings_of())
        return f"<b>Dataset {html.escape(self.title())}</b><table>{rows}</table>" + (
            f"<ul>{notes}</ul>" if notes else ""
        )


class Dataset(Rows):
    """A whole dataset; its rows are fetched when they are first asked for."""

    def __init__(self, record: Record) -> None:
        self.record = record

    @property
    def id(self) -> str:
        return self.record.id

    def save(self, file: Path | str) -> Path:
        """Write the rows to a Parquet file and return it; they are never in memory all at once.

        What is larger than memory is trained on from there:
        ``training.batches(rows.save("rows.parquet"), rows.record.label, rows.columns)``.
        """
        connect().datasets.save(self.id, Path(file))
        return Path(file)

    @functools.cached_property
    def _rows(self) -> pl.DataFrame:  # type: ignore[override]
        return connect().datasets.frame(self.id)

    @property
    def labelled(self) -> int:
        return self.record.labelled

    def __len__(self) -> int:
        return self.record.rows

    def facts(self) -> list[tuple[str, str]]:
        views = [
            (f"view {c.view}", _coverage(c.found, c.expired, c.rows, c.median_age_seconds))
            for c in self.record.coverage
        ]
        erased = [("erased", f"{self.record.erased:,} rows of erased subjects are empty")] if self.record.erased else []
        return [*super().facts(), *views, *erased, ("content", self.record.content_sha256[:16])]


def _coverage(found: int, expired: int, rows: int, age: float | None) -> str:
    share = found / rows if rows else 0.0
    old = f", {expired:,} too old" if expired else ""
    return f"{share:.1%} of rows found a value{old}" + (f", median age {_age(age)}" if age is not None else "")


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _short(at: datetime) -> str:
    return clock.utc(at).strftime("%Y-%m-%d %H:%MZ")


Tell = Callable[[BuildStatus], None]
STILL_MADE = ("has a pipeline run that is queued", "has a pipeline run that is running")
"""What the platform says of a view whose rows come by themselves."""


def build(
    name: str,
    *,
    observations: str,
    features: Sequence[str],
    start: datetime | str,
    end: datetime | str,
    labels: bool | str = True,
    batch: str = "",
    project: str | None = None,
    wait: float = 300,
    memory_mb: int | None = None,
    tell: Tell | None = None,
) -> Dataset:
    """Return the dataset of the observations with `start` <= time < `end`, each with the features known at its time.

    The same request on the same batches and definitions gives the same dataset, quickly. An interrupt cancels the build.

    Parameters
    ----------
    name : of the dataset, ``training`` or ``project/training``.
    features : names of feature services, ``view`` or ``view:feature``.
    start, end : with a time zone; a date such as ``2013-01-01`` is its midnight in UTC.
    labels : with the column of the truth; the name of a label takes that one (`features.Label`); False for frames to score.
    batch : only observations of this batch.
    wait : how many seconds feature pipelines may still run before this gives up.
    memory_mb : what the join may take on the platform beside the observations, in 10**6 bytes; default no limit.
    tell : called with the estimate, then as the build goes on; what it raises cancels the build.

    Raises
    ------
    BadInput
        A name is unknown, with the near miss; or no observation lies in that time.
    Conflict
        A pipeline of one of its views failed, or the build was cancelled.
    TooLarge
        It can't be done in `memory_mb`; nothing was begun.
    Unavailable
        Feature pipelines did not finish in `wait` seconds.
    """
    request = _request(name, observations, features, (start, end), labels=labels, batch=batch, project=project)
    client = connect()
    return Dataset(_followed(client, _begun(client, request, memory_mb, wait), tell))


def estimate(
    name: str,
    *,
    observations: str,
    features: Sequence[str],
    start: datetime | str,
    end: datetime | str,
    batch: str = "",
    project: str | None = None,
    memory_mb: int | None = None,
) -> Estimate:
    """Return what `build` of the same will take; nothing is built, and what it raises `build` would."""
    request = _request(name, observations, features, (start, end), batch=batch, project=project)
    return connect().datasets.estimate(request, memory_mb=memory_mb)


def _request(
    name: str,
    observations: str,
    features: Sequence[str],
    between: tuple[datetime | str, datetime | str],
    *,
    labels: bool | str = True,
    batch: str,
    project: str | None,
) -> DatasetRequest:
    space, short = located(name, project)
    return DatasetRequest(
        project=space, name=short, observations=observations, features=list(features),
        start=moment(between[0]), end=moment(between[1]), labels=bool(labels), batch=batch,
        label=labels if isinstance(labels, str) else "",
    )  # fmt: skip


def _begun(client: Client, request: DatasetRequest, memory_mb: int | None, wait: float) -> BuildStatus:
    """Return the build, begun when no view that is asked for has rows still to be made."""
    end = time.monotonic() + wait
    while True:
        with contextlib.suppress(Conflict):  # a failed run of a view that is not asked for is no reason to stop
            client.features.wait(request.project, timeout=max(end - time.monotonic(), 1.0))
        try:
            return client.datasets.start_build(request, memory_mb=memory_mb)
        except Conflict as error:
            if error.verdict not in STILL_MADE or time.monotonic() > end:
                raise
        time.sleep(0.2)  # a batch came in between, or another view's failed run hid this one


def _followed(client: Client, status: BuildStatus, tell: Tell | None) -> Record:
    """Return the dataset of a build when it is done; whatever ends this earlier cancels the build."""
    pause = 0.01
    try:
        while status.state == "running":
            if tell:
                tell(status)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
            status = client.datasets.build_status(status.id)
        if tell:
            tell(status)
    except BaseException:  # an interrupt too: nobody waits for it any more
        client.datasets.cancel_build(status.id)
        raise
    if status.dataset is None:
        raise Conflict("dataset build", status.id, status.error or f"was {status.state}", "ask again")
    return status.dataset


def moment(at: datetime | str) -> datetime:
    """Return `at` in UTC; a bare date is its midnight in UTC, a time needs its zone."""
    text: Any = f"{at}T00:00:00Z" if isinstance(at, str) and len(at) == len("2013-01-01") else at
    return clock.utc(text)


def get(dataset: str) -> Dataset:
    """Return the dataset with the id `dataset`."""
    return Dataset(connect().datasets.get(dataset))


def listing(project: str | None = None) -> list[Record]:
    """Return the records of a project's datasets, oldest first."""
    space, _ = located("any", project)
    return list(connect().datasets.list(space))
