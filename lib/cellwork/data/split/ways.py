"""Ways of cutting: each gives every row the number of its part.

A time cut is between moments: rows of one moment stay together, what is later is never in an earlier part, and a gap before
the cut (an embargo) keeps rows out whose labels or windows reach over it. `random` and `by_group` depend on the seed and on
each row's id or group only, so that a row stays on its side when rows are added; `shuffled` and `stratified` hit their shares
exactly instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from cellwork import clock
from cellwork.data.dataset import Rows, moment
from cellwork.data.split.parts import Split, made, names_of
from cellwork.errors import BadInput, near_miss

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    Places = np.ndarray[Any, np.dtype[np.int64]]

Gap = timedelta | str
"""Such as ``timedelta(hours=6)`` or ``"6h"``."""
Shares = float | Sequence[float]
"""The last part's share, or the share of each part (their sum is 1)."""


def by_time(dataset: Rows, *cuts: datetime | str, gap: Gap = "", group: str = "", names: Sequence[str] = ()) -> Split:
    """Return the rows before the first of `cuts`, from each to the next, and from the last on.

    Parameters
    ----------
    cuts : increasing times with a zone, or dates (midnight UTC); a row at a cut belongs to the later part.
    gap : how long before each cut rows are left out.
    group : a column whose values should not be in two parts; it is looked at, not enforced.
    names : of the parts; by default ``train, valid`` or ``train, valid, test``, and numbers beyond.

    Raises
    ------
    BadInput
        The cuts do not increase, or a part has no rows.
    """
    times = [moment(cut) for cut in cuts]
    if not times or sorted(set(times)) != times:
        raise BadInput("cuts", ", ".join(map(str, cuts)), "do not increase", "give one time or more, earliest first")
    recipe = {
        "kind": "time",
        "cuts": [time.isoformat() for time in times],
        **_gap_of(gap),
        **_given(group=group, names=list(names)),
    }
    places = timed(times_of(dataset), times, duration(gap))
    return made(dataset, places, names_of(names, len(times) + 1), recipe, group=group)


def sequential(
    dataset: Rows, share: Shares = 0.2, *, gap: Gap = "", group: str = "", names: Sequence[str] = ()
) -> Split:
    """Return the parts in the order of time, with about `share` of the rows; rows of one moment stay together."""
    shares = shares_of(share)
    recipe = {"kind": "sequential", "share": _plain(share), **_gap_of(gap), **_given(group=group, names=list(names))}
    times = times_of(dataset)
    cuts = quantile_cuts(times, shares)
    places = timed(times, cuts, duration(gap))
    found = {**recipe, "cuts": [cut.isoformat() for cut in cuts]}
    return made(dataset, places, names_of(names, len(shares)), found, group=group)


def random(dataset: Rows, share: Shares = 0.2, *, seed: int = 0, group: str = "", names: Sequence[str] = ()) -> Split:
    """Return parts with about `share` of the rows, chosen by a hash of seed and id; equal ids stay together.

    Raises
    ------
    BadInput
        A share is not between 0 and 1, or a part has no rows.
    """
    shares = shares_of(share)
    recipe = {"kind": "random", "share": _plain(share), "seed": seed, **_given(group=group, names=list(names))}
    places = hashed(column_of(dataset, dataset.record.id_column), shares, seed)
    return made(dataset, places, names_of(names, len(shares)), recipe, group=group)


def shuffled(dataset: Rows, share: Shares = 0.2, *, seed: int = 0, group: str = "", names: Sequence[str] = ()) -> Split:
    """Return parts with exactly `share` of the rows (to one row), drawn by `seed`."""
    import numpy as np

    shares = shares_of(share)
    recipe = {"kind": "shuffled", "share": _plain(share), "seed": seed, **_given(group=group, names=list(names))}
    order = np.random.default_rng(seed).permutation(dataset.frame().height)
    return made(dataset, dealt(order, shares), names_of(names, len(shares)), recipe, group=group)


def by_group(dataset: Rows, column: str, share: Shares = 0.2, *, seed: int = 0, names: Sequence[str] = ()) -> Split:
    """Return parts with about `share` of the groups, the values of `column`; all rows of a group are in one part."""
    shares = shares_of(share)
    recipe = {"kind": "group", "column": column, "share": _plain(share), "seed": seed, **_given(names=list(names))}
    places = hashed(column_of(dataset, column), shares, seed)
    return made(dataset, places, names_of(names, len(shares)), recipe, group=column)


def stratified(
    dataset: Rows, share: Shares = 0.2, *, by: str = "", seed: int = 0, group: str = "", names: Sequence[str] = ()
) -> Split:
    """Return parts with exactly `share` of the rows of each value of `by` (to one row); default: of the label.

    Raises
    ------
    BadInput
        There is no label and no `by`, or it has more than a hundred values.
    """
    shares = shares_of(share)
    column = stratum_of(dataset, by)
    recipe = {
        "kind": "stratified",
        "share": _plain(share),
        "by": column,
        "seed": seed,
        **_given(group=group, names=list(names)),
    }
    places = in_strata(column_of(dataset, column), seed, lambda order: dealt(order, shares))
    return made(dataset, places, names_of(names, len(shares)), recipe, group=group)


def timed(times: pl.Series, cuts: Sequence[datetime], gap: timedelta) -> Places:
    """Return the number of each time's part; -1 in a gap, and for no time."""
    import numpy as np

    places = np.zeros(len(times), dtype=np.int64)
    for cut in cuts:
        places += (times >= cut).fill_null(False).to_numpy()
    for cut in cuts:
        places[((times >= cut - gap) & (times < cut)).fill_null(True).to_numpy()] = -1
    return places


def quantile_cuts(times: pl.Series, shares: Sequence[float]) -> list[datetime]:
    """Return the moments between which lie about `shares` of the rows; raises BadInput if there are too few moments."""
    ordered = times.drop_nulls().sort()
    cuts, before = [], 0.0
    for share in shares[:-1]:
        before += share
        cuts.append(clock.utc(ordered[min(round(before * len(ordered)), len(ordered) - 1)]) if len(ordered) else None)
    if None in cuts or len(set(cuts)) != len(cuts) or cuts[0] == clock.utc(ordered[0]):
        verdict = f"has too few moments ({ordered.n_unique()}) for {len(shares)} parts in the order of time"
        raise BadInput("time column", times.name, verdict, "take fewer parts, or split.random")
    return [cut for cut in cuts if cut is not None]


def hashed(values: pl.Series, shares: Sequence[float], seed: int) -> Places:
    """Return the number of each value's part, by a hash of `seed` and the value alone."""
    import numpy as np
    import polars as pl

    texts = values.cast(pl.String).fill_null("")
    unique = texts.unique()
    units = np.array([unit(seed, text) for text in unique])
    number = len(shares) - 1 - np.searchsorted(np.cumsum(shares[::-1])[:-1], units, side="right")
    return texts.replace_strict(unique, pl.Series(number), return_dtype=pl.Int64).to_numpy().copy()


def dealt(order: np.ndarray[Any, Any], shares: Sequence[float]) -> Places:
    """Return places such that the rows of `order` go to the parts one after the other, by their shares."""
    import numpy as np

    bounds = np.round(np.cumsum(shares)[:-1] * len(order)).astype(int)
    places = np.empty(len(order), dtype=np.int64)
    for number, rows in enumerate(np.split(order, bounds)):
        places[rows] = number
    return places


def in_strata(values: pl.Series, seed: int, place: Any) -> Places:
    """Return the places that `place` gives to a permutation of each stratum's rows; missing values are a stratum too."""
    import numpy as np
    import polars as pl

    texts = values.cast(pl.String).fill_null("missing")
    places = np.empty(len(texts), dtype=np.int64)
    random = np.random.default_rng(seed)
    for value in texts.unique().sort():
        rows = np.flatnonzero((texts == value).to_numpy())
        places[rows] = place(random.permutation(len(rows)))
    return places


def unit(seed: int, text: str) -> float:
    """Return a number in [0, 1) that depends on nothing but `seed` and `text`."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:7], "big") / 2**56


def shares_of(share: Shares) -> list[float]:
    """Return the share of each part; raises BadInput unless each is between 0 and 1 and the sum is 1."""
    shares = [1 - share, share] if isinstance(share, int | float) else [float(each) for each in share]
    if len(shares) < 2 or not all(0 < each < 1 for each in shares):
        raise BadInput(
            "share",
            share,
            "is not between 0 and 1",
            "give the last part's share of the rows, such as 0.2, or each part's",
        )
    if abs(sum(shares) - 1) > 1e-9:
        raise BadInput("shares", share, f"sum to {sum(shares):g}", "let them sum to 1")
    return shares


def times_of(dataset: Rows) -> pl.Series:
    name = dataset.record.time_column
    if not name:
        raise BadInput(f"dataset {dataset.record.name!r}", "", "has no time column", "name it, or use split.random")
    return dataset.frame().get_column(name)


def column_of(dataset: Rows, column: str) -> pl.Series:
    frame = dataset.frame()
    if column not in frame.columns:
        raise BadInput("column", column, f"is not in dataset {dataset.record.name!r}", near_miss(column, frame.columns))
    return frame.get_column(column)


def stratum_of(dataset: Rows, by: str) -> str:
    """Return the column to stratify by; raises BadInput if there is none, or it has more than a hundred values."""
    column = by or dataset.record.label
    if not column:
        raise BadInput(f"dataset {dataset.record.name!r}", "", "has no label to stratify by", "name a column: by=…")
    values = column_of(dataset, column).n_unique()
    if values > 100:
        raise BadInput("stratum", column, f"has {values} values", "stratify by a class or a segment, or split.random")
    return column


def duration(gap: Gap) -> timedelta:
    """Return `gap` as a time span; raises BadInput for one that is not, or is negative."""
    span = clock.duration(gap) if isinstance(gap, str) and gap else gap or timedelta()
    if not isinstance(span, timedelta) or span < timedelta():
        raise BadInput("gap", gap, "is not a time span", "write 6h, 2d or timedelta(hours=6)")
    return span


def _gap_of(gap: Gap) -> dict[str, str]:
    span = duration(gap)
    return {"gap": f"{round(span.total_seconds())}s"} if span else {}


def _given(**values: str | list[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


def _plain(share: Shares) -> float | list[float]:
    return float(share) if isinstance(share, int | float) else [float(each) for each in share]
