"""A stored recipe made into the same parts again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellwork.data.dataset import Rows
from cellwork.data.split import ways
from cellwork.data.split.folds import Folds, folds
from cellwork.data.split.packed import unpack
from cellwork.data.split.parts import Split, made, names_of
from cellwork.errors import BadInput, near_miss

WAYS = {
    "time": ways.by_time,
    "sequential": ways.sequential,
    "random": ways.random,
    "shuffled": ways.shuffled,
    "group": ways.by_group,
    "stratified": ways.stratified,
}
OF_A_PART = ("kind", "part", "fold", "oversampled", "undersampled")


def replay(dataset: Rows, recipe: Mapping[str, Any]) -> Split | Folds:
    """Return the split (or folds) of `recipe` again: the same rows in the same parts, with the warnings of today.

    Raises
    ------
    BadInput
        The recipe is none of ours, or of another dataset.
    """
    kind = str(recipe.get("kind", ""))
    given = {key: value for key, value in recipe.items() if key not in OF_A_PART}
    if kind == "folds":
        return _folds(dataset, given)
    if kind == "using":
        places = unpack(given["places"], dataset.frame().height)
        names = names_of(given["names"], len(given["names"]))
        return made(dataset, places, names, {"kind": kind, **given})
    if kind not in WAYS:
        raise BadInput("kind of the recipe", kind, "is not known", near_miss(kind, [*WAYS, "folds", "using"]))
    cuts = given.pop("cuts", ()) if kind == "time" else ()
    if kind == "sequential":
        given.pop("cuts", None)
    try:
        return WAYS[kind](dataset, *cuts, **given)  # type: ignore[operator,no-any-return]
    except TypeError as error:
        raise BadInput("recipe", kind, f"can't be replayed: {error}", "store it whole") from None


def _folds(dataset: Rows, given: dict[str, Any]) -> Folds:
    if given.get("how") != "using":
        return folds(dataset, **given)
    places = [unpack(each, dataset.frame().height) for each in given["places"]]
    return Folds(dataset, places, {"kind": "folds", **given}, given.get("by", ""))
