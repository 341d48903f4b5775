"""What a tombstone says of the places where a subject may be: those that were rewritten, and those that were not, with what to do there.

A place that an erasure does not reach is always named, whether the subject is in it or not: nobody looked. Names are of data sets, views
and datasets, never of the subject. What an erasure learns to reach moves from `untouched` to `rewritten`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cellwork.wire.erasures import Erasure, Place
from cellwork_hub.platform.erasure_served import Observed, Served


def rewritten(done: Erasure, online: Sequence[str], served: Served) -> list[Place]:
    """Return the places that hold nothing of the subject any more.

    Parameters
    ----------
    online : views whose values the online store was made to forget.
    """
    rows = [f"{name}: {count:,} rows" for name, count in done.rows.items()]
    places = [
        (rows, "raw batches", "taken out, with sealed values, quarantine, held deliveries, statistics and the tables' history"),
        (done.views, "feature views", "taken out by their key or made anew, in every revision and in the tables' history"),
        (done.emptied, "datasets", "the rows emptied, in their place so that splits hold"),
        (online, "online values", "forgotten, and the real-time twins made anew"),
        *_predicted(served),
    ]  # fmt: skip
    found = [Place(what=what, names=list(names), said=said) for names, what, said in places if names]
    return [*found, Place(what="prepared rows and snapshots", said="dropped: caches, made again from what is left")]


def _predicted(served: Served) -> list[tuple[list[str], str, str]]:
    """Return of places of what was predicted their names, kinds and what was done."""
    logs = [f"{endpoint}: {count:,} predictions" for endpoint, count in served.predictions.items()]
    old = f"; {served.archived:,} of them in {served.files:,} Parquet files, written anew" if served.archived else ""
    counted = [("submissions", served.submissions), ("outcomes", served.outcomes), ("feedback", served.feedback)]
    names = {what: [f"{count:,}"] if count else [] for what, count in counted}
    return [
        (logs, "prediction logs", f"emptied in their place, so that counts hold: id, times, version and route stay, and that they were erased{old}"),
        (names["submissions"], "submissions", "emptied, and they say so for the rest of their week"),
        (names["outcomes"], "outcomes", "removed, of predictions and observations that were the subject's alone"),
        (names["feedback"], "feedback", "removed, with its comments"),
        (logs, "serving hours", "their statistics made anew from what is left"),
    ]  # fmt: skip


def untouched(done: Erasure, served: Served, known: Observed) -> list[Place]:
    """Return the places that were left as they are, with the way out of each."""
    return [*_data(done), *_served(served, known), *_copies()]


def _data(done: Erasure) -> list[Place]:
    places = [
        Place(
            what="rolling aggregates", names=done.aggregates, said="old values still count the rows, among those of others",
            way_out="where one value tells of the subject, change the view's definition and apply it: it is filled anew from what is left. "
            "Nothing but `?revision=` reads an old revision (`view@N`): an administrator removes its folder revision-N under data/features",
        ),
        Place(
            what="datasets without a column of the subject", names=done.datasets,
            said="built before from these batches: which of their rows were the subject's can't be told",
            way_out="build them anew and train on those; `cellwork why ID --forward` names what an old one was used for, and when nothing "
            "in use needs it an administrator removes its folder under data/datasets of CELLWORK_HOME",
        ),
        Place(
            what="raw data sets without a subject", names=done.undeclared, said="nobody looked into them",
            way_out="declare the column that names it, RawDataset(name=…, subject=…), and erase again; or declare erasable=False",
        ),
    ]  # fmt: skip
    return [place for place in places if place.names]


def _served(served: Served, known: Observed) -> list[Place]:
    places = [
        Place(
            what="observations", names=[*served.unknown, *known.unknown],
            said="which of them were the subject's could not be told: predictions that know nothing of it but an observation may be left",
            way_out="evaluate the version that the endpoint serves, so that lineage tells its observations, or mend their definition; erase again",
        ),
        Place(what="the databases' own copies", names=served.left, said="they are not this platform's to reach", way_out="let them expire by their own rules"),
    ]  # fmt: skip
    routes = Place(
        what="topics, route tables, audit and logs of services",
        said="messages and answers in topics, units that an arm of an endpoint lists, audit rows and log lines stay as they were written",
        way_out="let topics and logs expire by their own rules; take a unit out of an arm with `cellwork endpoint canary`, and the audit, "
        "which is chained, keeps what a table was",
    )
    return [*(place for place in places if place.names), routes]


def _copies() -> list[Place]:
    return [
        Place(
            what="models, notebooks and copies",
            said="what was trained, logged to MLflow, printed, saved, scored ahead into tables of one's own, or backed up before stays",
            way_out="register versions trained on datasets built anew, delete the old ones and their runs in MLflow, and let backups expire",
        )
    ]  # fmt: skip
