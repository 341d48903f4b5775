"""A strategy of the caller's own: a splitter of scikit-learn, or a function of the frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cellwork.data.dataset import Rows
from cellwork.data.split.packed import from_splitter, name_of, pack
from cellwork.data.split.parts import Split, made, names_of
from cellwork.errors import BadInput


def using(dataset: Rows, strategy: Callable[[Any], Any] | Any, *, group: str = "", names: Sequence[str] = ()) -> Split:
    """Return the parts that `strategy` chooses; its choice is kept in the recipe, row by row.

    Parameters
    ----------
    strategy : a splitter of scikit-learn that makes one split, or a function of the polars frame that returns a part for each row:
        True for the second part, a number from 0, or a name; None or a negative number for no part.
    group : the column that a splitter gets as `groups`.

    Raises
    ------
    BadInput
        The strategy makes several splits, or not one answer a row.
    """
    if hasattr(strategy, "split"):
        splits = from_splitter(dataset, strategy, group)
        if len(splits) != 1:
            verdict = f"makes {len(splits)} splits"
            raise BadInput("strategy", name_of(strategy), verdict, "give it n_splits=1, or use split.folds")
        places, found = splits[0], ["train", "valid"]
    elif callable(strategy):
        places, found = _answered(dataset, strategy)
    else:
        raise BadInput("strategy", name_of(strategy), "is no splitter and no function", "give it .split, or a function")
    recipe = {"kind": "using", "strategy": name_of(strategy), "places": pack(places)}
    return made(
        dataset, places, names_of(names or found, len(found)), {**recipe, "names": list(names or found)}, group=group
    )


def _answered(dataset: Rows, strategy: Callable[[Any], Any]) -> tuple[Any, list[str]]:
    """Return the number of each row's part and the names of the parts."""
    import numpy as np
    import polars as pl

    answer = strategy(dataset.frame())
    values = answer if isinstance(answer, pl.Series) else pl.Series(list(answer))
    if len(values) != dataset.frame().height:
        verdict = f"gives {len(values):,} answers for {dataset.frame().height:,} rows"
        raise BadInput("strategy", name_of(strategy), verdict, "return one part a row")
    if values.dtype == pl.String:
        found = values.drop_nulls().unique(maintain_order=True).to_list()
        order = [name for name in ("train", "valid", "test") if name in found]
        order += [name for name in found if name not in order]
        numbers = values.replace_strict(order, list(range(len(order))), default=None, return_dtype=pl.Int64)
        return numbers.fill_null(-1).to_numpy().copy(), order
    try:
        places = values.cast(pl.Int64).fill_null(-1).to_numpy().copy()
    except pl.exceptions.PolarsError:
        raise BadInput(
            "strategy", name_of(strategy), f"gives {values.dtype}", "return numbers, names or true and false"
        ) from None
    if places.max(initial=-1) > 126:
        raise BadInput("strategy", name_of(strategy), f"gives part {places.max()}", "use numbers from 0 to 126")
    return np.maximum(places, -1), names_of((), max(2, int(places.max(initial=-1)) + 1))
