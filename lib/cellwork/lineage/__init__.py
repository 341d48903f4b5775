"""`why`: from a prediction, or any id, back to the cell and the raw batches behind it, and forward to what was made of it.

Every step is read from what was recorded when it happened (the prediction's log row, the deployment's record, the dataset's
own list of batches), never from what a name points to now. What the caller may not read, or what is gone, is said so in place.
"""

from __future__ import annotations

import html
import re

from cellwork import ids
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound
from cellwork.lineage import say
from cellwork.lineage.walk import Walk, kind_of
from cellwork.wire import records
from cellwork.wire.skew import Recomputed


class Trail(records.Trail):
    """The steps, as data; printed, an indented trail."""

    def __str__(self) -> str:
        return "\n".join(say.lines(self.steps))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre style='line-height:1.4'>{html.escape(str(self))}</pre>"


def why(client: Client, subject: str, *, forward: bool = False) -> Trail:
    """Return where `subject` comes from, or, `forward`, what was made of it.

    Parameters
    ----------
    subject : a prediction, deployment, evaluation, dataset, feature set, batch or run by its id, an MLflow run, a version
        ``project/name@3``, or ``project/endpoint#observation``.

    Raises
    ------
    NotFound
        Nothing is recorded under that id.
    BadInput
        It is not an id.
    """
    subject = re.sub(r"^([^/@]+/[^/@]+)/(\d+)$", r"\1@\2", subject)
    kind = kind_of(subject)
    if not kind:
        raise BadInput(
            "id", subject, "is not one of ours", "give pred_…, dep_…, eval_…, ds_…, bat_…, run_… or project/name@3"
        )
    walk = Walk(client)
    first = walk.describe(subject, "", 0, strict=True)
    walk.steps.append(first)
    (walk.forward if forward else walk.back)(subject, 1)
    if len(walk.steps) == 1 and kind in ("training run", "feature set", "observation", "holdout"):
        raise NotFound(kind, subject, "has no lineage here", "look at the id again")
    return Trail(subject=subject, steps=walk.steps)


def recompute(client: Client, prediction: str) -> Recomputed:
    """Make the features of `prediction` anew from the raw batches they name; say whether they are what was logged, bit for bit."""
    found = client.endpoints.prediction(ids.check(prediction, "pred"))
    return client.monitors.recompute(found.endpoint.partition("/")[0], prediction)
