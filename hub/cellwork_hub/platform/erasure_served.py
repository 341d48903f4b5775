"""The part of an erasure that is about what was predicted: the prediction log of the inference service, and what this service made of it.

Before raw rows go, `observed` notes which observations are the subject's, for predictions that know nothing else of it. Behind them:

1. what the log has is mirrored and taken into the hours, so that nothing comes later that names an observation;
2. the inference service empties submissions and log (`cellwork.serving.forgetting`); it is the one that tells which predictions they were;
3. outcomes that only those predictions have are removed and the file written anew (`OutcomeStore.forget`), feedback on them is removed;
4. sketches of their hours are made anew from what is left, snapshots dropped, and the database written anew.

All of it may be repeated. While the inference service is away nothing of this is done, and the erasure waits (`erasure.Again`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl
from sqlalchemy import BindParameter, bindparam, text

from cellwork.client import Client
from cellwork.errors import CellworkError, Unavailable
from cellwork.features import references
from cellwork.serving import forgetting
from cellwork.wire import Struct
from cellwork.wire.endpoints import Forget, Forgotten, RouteTable
from cellwork.wire.features import Observations
from cellwork_hub.platform import feature_tables, outcomes, serving_hours, snapshots
from cellwork_hub.platform.state import State
from cellwork_hub.platform.statistics import defined

CHUNK = 500


class Observed(Struct):
    """Observations of a subject."""

    ids: dict[str, list[str]] = {}
    """Name of the observations -> ids of the subject's."""
    unknown: list[str] = []
    """Observations that could not be looked into, and why."""


class Served(Struct):
    """What was found of a subject among what was predicted, over all attempts of an erasure."""

    predictions: dict[str, int] = {}
    """Endpoint -> logged predictions."""
    archived: int = 0
    files: int = 0
    submissions: int = 0
    outcomes: int = 0
    feedback: int = 0
    unknown: list[str] = []
    """Endpoints whose observations could not be told."""
    left: list[str] = []
    done: bool = False


def observed(state: State, project: str, value: str, columns: Iterable[str]) -> Observed:
    """Return which observations are the subject's, from raw rows that are still there.

    Parameters
    ----------
    columns : of raw data that name subjects.
    """
    known, found = defined(state, project), Observed()
    for about in known.observations:
        subjects = _naming(about, set(columns))

        def own(rows: pl.DataFrame, subjects: set[str] = subjects) -> pl.DataFrame:
            there = [pl.col(name).cast(pl.String) == value for name in sorted(subjects & set(rows.columns))]
            return rows.filter(pl.any_horizontal(there)) if there else rows.clear()

        try:
            references.prepared_of(known, about.rows)
            rows = feature_tables.prepared_rows(state, known, about.rows, sealed=True, cached=False, only=own)
        except CellworkError as error:
            found.unknown.append(f"{about.name} ({error})")
            continue
        ids = set(rows.get_column(about.id).cast(pl.String).drop_nulls()) if about.id in rows.columns else set()
        found.ids[about.name] = sorted(ids | ({value} if about.id in subjects else set()))
    return found


def names(state: State, project: str, columns: Iterable[str]) -> list[str]:
    """Return the names under which requests say a subject: columns of raw data, and join keys that observations ask by them."""
    known = defined(state, project).observations
    subjects = set(columns)
    return sorted(subjects | {key for about in known for key, column in about.keys.items() if column in subjects})


def _naming(about: Observations, subjects: set[str]) -> set[str]:
    """Return the columns of observations that name a subject, by their own name or by that of the join key they are asked for."""
    return subjects | {column for key, column in about.keys.items() if key in subjects}


def forget(state: State, project: str, wish: Forget, known: Observed, served: Served) -> None:
    """Empty what was predicted of a subject; what was found is added to `served`.

    Raises
    ------
    CellworkError
        A service is away or refuses; asked again it goes on.
    """
    with state.context.client("cellwork") as client:
        client.connection.attempts = 1
        _catch_up(state, client)
        tables = [each.routes for each in client.endpoints.list() if each.routes.endpoint.startswith(f"{project}/")]
        wish.observations, served.unknown = _of_endpoints(state, tables, known)
        done = client.endpoints.forget(project, wish)
        gone = [each.id for each in done.predictions]
        found = state.outcomes.forget(project, gone, wish.observations)
        served.outcomes = max(served.outcomes, found)
        served.feedback = max(served.feedback, _feedback(state, project, gone, wish))
        serving_hours.remake(state, client, done.predictions)
    snapshots.drop(state, project)
    served.left = [*done.left, *forgetting.renew(state.engine)]
    _count(served, done)
    served.left = list(dict.fromkeys(served.left))
    served.done = True


def _catch_up(state: State, client: Client) -> None:
    """Mirror what the log has now; raises Unavailable if that can't be done."""
    last = client.endpoints.predictions(after=-1, limit=1, brief=True)
    outcomes.mirror(state)
    serving_hours.follow(state)
    there = min(state.outcomes.cursor(outcomes.LOG), serving_hours.cursor(state))
    if last and there < last[0].seq:
        raise Unavailable("prediction log", "", "could not be read to its end", "it is tried again")


def _count(served: Served, done: Forgotten) -> None:
    counts: dict[str, int] = {}
    for each in done.predictions:
        counts[each.endpoint] = counts.get(each.endpoint, 0) + 1
    served.predictions, served.archived, served.files = counts, done.archived, done.files
    served.submissions = max(served.submissions, done.submissions)


def _of_endpoints(
    state: State, tables: Sequence[RouteTable], known: Observed
) -> tuple[dict[str, list[str]], list[str]]:
    """Return endpoint -> observations of the subject, and the endpoints of which nobody knows what their observations are."""
    found, unknown = {}, []
    for table in tables:
        asked = _trained_with(state, _models(table))
        if not asked:
            unknown.append(table.endpoint)
        if ids := sorted({id_ for name in asked for id_ in known.ids.get(name, [])}):
            found[table.endpoint] = ids
    return found, unknown


def _models(table: RouteTable) -> set[str]:
    beside = [arm.version.name for arm in (*table.canary, *table.shadow)]
    return {table.live.name, *beside, *([table.previous.name] if table.previous else [])}


def _trained_with(state: State, models: set[str]) -> set[str]:
    """Return the observations that versions of these models were trained with, as lineage tells since their evaluation."""
    from cellwork_hub.platform import datasets

    query = text("SELECT DISTINCT target FROM edges WHERE relation = 'trained_on' AND source LIKE :versions ESCAPE '!'")
    with state.engine.connect() as db:
        found = [name for model in models for name in db.execute(query, {"versions": f"{forgetting.like(model)}@%"}).scalars()]  # fmt: skip
    return {datasets.get(state, name).observations for name in found}


def _feedback(state: State, project: str, gone: Sequence[str], wish: Forget) -> int:
    """Remove feedback on these predictions, and rows of the project in the tables of before the outcome store; return how many were feedback."""
    chosen: BindParameter[Any] = bindparam("chosen", expanding=True)
    by_id = text("DELETE FROM feedback WHERE prediction IN :chosen").bindparams(chosen)
    by_observation = text("DELETE FROM feedback WHERE endpoint = :endpoint AND observation IN :chosen").bindparams(chosen)  # fmt: skip
    count = 0
    with state.engine.begin() as db:
        for part in _chunks(gone):
            count += db.execute(by_id, {"chosen": part}).rowcount
        for endpoint, ids in wish.observations.items():
            for part in _chunks(ids):
                count += db.execute(by_observation, {"endpoint": endpoint, "chosen": part}).rowcount
        values: dict[str, Any] = {"p": project, "of": f"{forgetting.like(project)}/%"}
        db.execute(text("DELETE FROM outcomes WHERE project = :p"), values)
        db.execute(text("DELETE FROM scored WHERE endpoint LIKE :of ESCAPE '!'"), values)
    return count


def _chunks(ids: Sequence[str]) -> Iterable[list[str]]:
    return (list(ids[start : start + CHUNK]) for start in range(0, len(ids), CHUNK))
