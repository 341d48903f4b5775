"""Splits that the platform keeps with their dataset, so that another notebook, or next year's, works on the same parts."""

from __future__ import annotations

from cellwork.client import connect
from cellwork.data import dataset
from cellwork.data.split.folds import Folds
from cellwork.data.split.parts import Split
from cellwork.data.split.replay import replay
from cellwork.errors import BadInput, Conflict
from cellwork.wire.datasets import KeptSplit, SplitRequest


def keep(made: Split | Folds) -> KeptSplit:
    """Store the recipe and the digest of `made` with its dataset on the platform; the same split twice is one.

    Raises
    ------
    BadInput
        It was made of a frame in hand, which the platform does not know.
    """
    if isinstance(made, Folds):
        identity = made.dataset.record.id
        rows = {f"{k} {part.name}": len(part) for k, fold in enumerate(made) for part in fold}
    else:
        identity = made.parts[0].record.id
        rows = {part.name: len(part) for part in made}
    if not identity:
        raise BadInput("split", "", "was made of a frame in hand", "build a dataset: cellwork.data.dataset.build(…)")
    request = SplitRequest(recipe=made.recipe, digest=made.digest, rows=rows, warnings=made.warnings)
    return connect().datasets.keep_split(identity, request)


def recall(identity: str, digest: str) -> Split | Folds:
    """Return the kept split of the dataset with the id `identity`: the same rows in the same parts.

    Raises
    ------
    NotFound
        No split with this digest is kept.
    Conflict
        Its recipe gives other parts today than it gave then.
    """
    stored = connect().datasets.split(identity, digest)
    made = replay(dataset.get(identity), stored.recipe)
    if made.digest != stored.digest:
        raise Conflict(
            "split", digest[:12], "comes out otherwise today than when it was kept", "split anew, and keep that"
        )
    return made
