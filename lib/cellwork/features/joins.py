"""Features for rows of one's own: the platform joins, this waits, tells how far it is, and cancels when it is interrupted.

The first that is told is the estimate: the platform answers with it before it reads the first feature row.
"""

from __future__ import annotations

import html
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cellwork import project as projects
from cellwork.client import Client, connect
from cellwork.errors import BadInput, Conflict
from cellwork.wire.datasets import BuildStatus, Coverage, Estimate, Late
from cellwork.wire.features import HistoryStatus

if TYPE_CHECKING:
    import polars as pl

Tell = Callable[[HistoryStatus], None]


@dataclass(frozen=True)
class Joined:
    """Rows with their features, once each, in the order they came; and how many found a value."""

    frame: pl.DataFrame
    coverage: list[Coverage]
    late: list[Late]
    seconds: float

    def __repr__(self) -> str:
        return "\n".join(
            [f"{self.frame.height:,} rows in {self.seconds:.1f} s", *map(say, self.coverage), *map(say_late, self.late)]
        )

    def _repr_html_(self) -> str:
        return report(self)


def join(
    rows: Any,
    features: Sequence[str],
    *,
    at: str = "event_timestamp",
    project: str = "",
    arrival: bool = True,
    late: bool = False,
    memory_mb: int | None = None,
    tell: Tell | None = None,
    client: Client | None = None,
) -> Joined:
    """Return `rows` with `features` as they were known at each row's time.

    Parameters
    ----------
    rows : a polars or pandas frame with the join keys and the time `at` (with a zone).
    features : services, ``view`` or ``view:feature``; they come as columns ``view__feature``.
    late : also report how many rows a join without arrival times would have given a value from their future.
    tell : called with the estimate before a feature is read, then when the join has gone on; what it raises cancels the join.

    Raises
    ------
    BadInput
        A name or a column is wrong.
    Conflict
        The join failed, or somebody cancelled it. An interrupt cancels it and is raised again.
    """
    client, name = client or connect(), project or projects.find().name
    status = client.features.start_join(
        name, _parquet(rows), features=list(features), at=at, arrival=arrival, late=late, memory_mb=memory_mb
    )
    try:
        while status.state == "running":
            if tell:
                tell(status)
            time.sleep(0.1)
            status = client.features.join_status(name, status.id)
        if status.state != "done":
            raise Conflict("join", status.id, status.error or f"was {status.state}", "ask again")
        if tell:
            tell(status)
        frame = client.features.join_rows(name, status.id)
    finally:
        client.features.cancel_join(name, status.id)  # also forgets what was fetched
    return Joined(frame, status.coverage, status.late, status.seconds)


def estimate(
    rows: Any, features: Sequence[str], *, at: str = "event_timestamp", project: str = "",
    memory_mb: int | None = None, client: Client | None = None,
) -> Estimate:  # fmt: skip
    """Return what `join` of the same will take; nothing is joined, and what it raises `join` would."""
    client, name = client or connect(), project or projects.find().name
    return client.features.estimate_join(name, _parquet(rows), features=list(features), at=at, memory_mb=memory_mb)


def _parquet(rows: Any) -> bytes:
    import polars as pl

    if not isinstance(rows, pl.DataFrame):
        if not hasattr(rows, "__dataframe__") and not hasattr(rows, "to_dict"):
            raise BadInput("rows", type(rows).__name__, "are no frame", "pass a polars or pandas frame")
        rows = pl.from_pandas(rows)
    buffer = io.BytesIO()
    rows.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def say(coverage: Coverage) -> str:
    """Return a view's coverage in a line."""
    share = coverage.found / coverage.rows if coverage.rows else 0.0
    reasons = {
        "expired": coverage.expired,
        "unknown entity": coverage.unknown,
        "nothing known yet": coverage.early,
        "no key or time": coverage.no_key,
    }
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    age = (
        f"; age median {_age(coverage.median_age_seconds)}, 95 % {_age(coverage.p95_age_seconds)}"
        if coverage.found
        else ""
    )
    return f"{coverage.view}: {share:.1%} of {coverage.rows:,} rows found a value" + (f" ({why})" if why else "") + age


def say_late(late: Late) -> str:
    if not late.observations:
        return f"{late.view}: no value came too late"
    return f"{late.view}: {late.observations:,} rows would have got a value that came too late, by {_age(late.median_seconds)} (median)"


def say_estimate(estimate: Estimate) -> str:
    size = (estimate.result_bytes + estimate.work_bytes) / 1e6
    return f"{estimate.observations:,} rows, {estimate.feature_rows:,} feature rows: about {max(estimate.seconds, 0.1):.1f} s, {size:,.0f} MB, {estimate.partitions} steps"


class Teller:
    """Prints the estimate of a join or a build once, then a line for each view that is begun. Pass it as `tell`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._told = say, ""

    def __call__(self, status: HistoryStatus | BuildStatus) -> None:
        if status.estimate is None:
            return
        line = f"view {status.view}: step {status.done + 1} of {status.steps}" if status.view else ""
        if not self._told:
            self._say(say_estimate(status.estimate))
        if line and line != self._told:
            self._say(line)
        self._told = line or self._told or "estimated"


def _age(seconds: float | None) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds is not None and seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds or 0:.0f} s"


def report(joined: Joined) -> str:
    """Return the coverage as an HTML table; every text is escaped."""
    head = (
        "view",
        "found",
        "expired",
        "unknown entity",
        "nothing known yet",
        "no key or time",
        "median age",
        "95 % age",
    )
    lines = []
    for each in joined.coverage:
        share = each.found / each.rows if each.rows else 0.0
        bar = f"<progress max=1 value={share:.4f} title='{share:.1%}'></progress> {share:.1%}"
        cells = [
            html.escape(each.view),
            bar,
            *(f"{n:,}" for n in (each.expired, each.unknown, each.early, each.no_key)),
        ]
        ages = [_age(each.median_age_seconds), _age(each.p95_age_seconds)] if each.found else ["", ""]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in [*cells, *ages]) + "</tr>")
    late = "".join(f"<p>{html.escape(say_late(each))}</p>" for each in joined.late)
    header = "".join(f"<th>{name}</th>" for name in head)
    return f"<p>{joined.frame.height:,} rows in {joined.seconds:.1f} s</p><table><tr>{header}</tr>{''.join(lines)}</table>{late}"
