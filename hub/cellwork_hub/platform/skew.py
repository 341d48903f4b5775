"""Skew of an endpoint, and the features of one prediction made anew from the raw batches it names.

Only readable rows are joined: where a sealed batch caused a value, training would not see it, and it counts as online only. What is
made anew says whether the logged values came out, never other values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
from sqlalchemy import text

from cellwork.errors import CellworkError, NotFound
from cellwork.features import history, references
from cellwork.features.history import JoinView
from cellwork.features.row import EVENT
from cellwork.monitoring import skew
from cellwork.wire.endpoints import Prediction
from cellwork.wire.features import Definitions, View
from cellwork.wire.skew import Recomputed, RecomputedView, Skew
from cellwork_hub.platform import drift, feature_tables, feature_worker
from cellwork_hub.platform.feature_definitions import definitions
from cellwork_hub.platform.feature_queue import Claim
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION: tuple[str, ...] = ()
ROWS, MOST_ROWS = 1000, 10_000
PAGE, PAGES = 5000, 20


def routes(state: State) -> list[Route]:
    def of_endpoint(call: Call) -> Skew:
        endpoint = f"{call.path['project']}/{call.path['name']}"
        return of(state, endpoint, _looked_up(state, endpoint, call.limit(ROWS, MOST_ROWS)))

    def of_prediction(call: Call) -> Recomputed:
        with state.context.client("cellwork") as client:
            found = client.endpoints.prediction(call.path["prediction"])
        if found.endpoint.partition("/")[0] != call.path["project"]:
            raise NotFound("prediction", found.id, f"is not of project {call.path['project']!r}", "ask in its project")
        return recompute(state, found)

    return [
        Route("GET", "/api/v1/skew/{project}/{name}", of_endpoint, "monitors:read", None, Skew, "Served feature values beside point-in-time ones, over the newest ?limit= predictions by entity."),
        Route("GET", "/api/v1/recomputed/{project}/{prediction}", of_prediction, "monitors:read", None, Recomputed, "A prediction's features made anew from its raw batches."),
    ]  # fmt: skip


def _looked_up(state: State, endpoint: str, most: int) -> list[Prediction]:
    """Return the newest `most` predictions whose features were looked up by entity, as far as `PAGES` pages of the log go back."""
    found: list[Prediction] = []
    with state.context.client("cellwork") as client:
        page = client.endpoints.predictions(endpoint, after=-PAGE, limit=PAGE)
        for _ in range(PAGES):
            found = [p for p in page if p.entities and p.route != "shadow"] + found
            if len(found) >= most or not page or page[0].seq <= 1:
                break
            first = page[0].seq
            page = client.endpoints.predictions(endpoint, after=max(first - 1 - PAGE, 0), limit=PAGE)
            page = [p for p in page if p.seq < first]
    return found[-most:]


def of(state: State, endpoint: str, predictions: Sequence[Prediction]) -> Skew:
    """Return the skew of `predictions` whose features were looked up by entity; an id of another kind than the view's, such as a
    number sent as text, found nothing there, and its prediction is left out.

    Raises
    ------
    NotFound
        There are none.
    """
    known, _ = definitions(state, endpoint.partition("/")[0])
    features = list(dict.fromkeys(name for p in predictions for name in p.features if _view_of(known, name)))
    views = {name: _view_of(known, name) for name in features}
    wanted = {view.name: view for view in views.values() if view}
    joins = [_join(state, known, view, features) for view in wanted.values()]
    kinds = {key: join.rows.collect_schema()[key] for join in joins for key in join.keys}
    chosen = [p for p in predictions if all(_fits(p.entities.get(key), kind) for key, kind in kinds.items())]
    if not chosen:
        way_out = "skew is about values from the online store"
        raise NotFound(f"predictions of {endpoint} by entity", f"{PAGES * PAGE:,} newest", "are none", way_out)
    rows = pl.DataFrame([{"id": p.id, "at": p.at, **p.entities} for p in chosen], infer_schema_length=None)
    joined, _ = history.join(rows, at="at", views=joins)
    events = [{f"{v}__event_timestamp": p.feature_events.get(v) for v in wanted} for p in chosen]
    values = [
        {"id": p.id, **{name: p.features.get(name) for name in features}, **times}
        for p, times in zip(chosen, events, strict=True)
    ]
    served = pl.DataFrame(values, infer_schema_length=None)
    times = [p.at for p in chosen]
    return Skew(
        endpoint=endpoint,
        rows=len(chosen),
        start=min(times),
        end=max(times),
        features=skew.compare(served, joined, features),
    )


def _fits(value: Any, kind: pl.DataType) -> bool:
    return value is None or isinstance(value, str) == (kind in (pl.String, pl.Categorical, pl.Enum))


def _view_of(known: Definitions, column: str) -> View | None:
    name, _, feature = column.partition("__")
    return next((view for view in known.views if feature and view.name == name), None)


def _join(state: State, known: Definitions, view: View, features: Sequence[str]) -> JoinView:
    fields = [name.partition("__")[2] for name in features if name.startswith(f"{view.name}__")]
    keys = {key: key for key in references.join_keys(known, view)}
    return JoinView(view, keys, fields, feature_tables.view_rows(state, known.project, view))


def recompute(state: State, prediction: Prediction) -> Recomputed:
    """Make the features of `prediction` anew from the raw batches it names, and say whether they are what was logged."""
    if prediction.erased:
        raise NotFound(
            "features of prediction",
            prediction.id,
            f"were erased ({prediction.erased})",
            "nothing can be made anew of it",
        )
    entities = prediction.entities or _entities(state, prediction)
    views = [_recompute(state, prediction, entities, view) for view in sorted(prediction.feature_batches)]
    return Recomputed(
        prediction=prediction.id, entities=entities, same=bool(views) and all(v.same for v in views), views=views
    )


def _entities(state: State, prediction: Prediction) -> dict[str, Any]:
    """Return the join keys of a prediction's observation, as the definitions and raw batches tell them."""
    trained = drift.training(state, prediction.version.name, prediction.version.version)
    known, _ = definitions(state, trained.project)
    asked = next((o for o in known.observations if o.name == trained.observations), None)
    if asked is None:
        raise NotFound(
            "observations", trained.observations, "are not defined any more", "apply the definitions that had them"
        )
    rows = feature_tables.prepared_rows(state, known, asked.rows, sealed=True)
    row = rows.filter(pl.col(asked.id).cast(pl.String) == prediction.observation).head(1).rows(named=True)
    if not row:
        raise NotFound("observation", prediction.observation, "is in no batch yet", "ask again when its batch has come")
    return {key: row[0][column] for key, column in asked.keys.items()}


def _recompute(state: State, prediction: Prediction, entities: dict[str, Any], name: str) -> RecomputedView:
    batch, event = prediction.feature_batches[name], prediction.feature_events.get(name)
    try:
        words = _differs(state, prediction, entities, name)
    except CellworkError as error:
        words = str(error)
    return RecomputedView(view=name, batch=batch, event=event, same=not words, words=words)


def _differs(state: State, prediction: Prediction, entities: dict[str, Any], name: str) -> str:
    run = _run(state, prediction.endpoint.partition("/")[0], name, prediction.feature_batches[name])
    known, _ = definitions(state, run.project, run.revision)
    view = references.view_of(known, name)
    keys = [pl.col(key) == entities[key] for key in references.join_keys(known, view)]
    event = pl.col(EVENT) == prediction.feature_events.get(name)
    found = feature_worker.again(state, run).filter(*keys, event)
    if not found.height:
        return f"no row of {entities} at {prediction.feature_events.get(name)} came out of {run.batch}"
    logged = {feature: value for feature, value in prediction.features.items() if feature.startswith(f"{name}__")}
    odd = [
        [name for name, value in logged.items() if not skew.same(value, row[name.partition("__")[2]])]
        for row in found.rows(named=True)
    ]
    nearest = min(odd, key=lambda names: len(names))
    return f"{', '.join(nearest)} came out differently" if nearest else ""


def _run(state: State, project: str, view: str, batch: str) -> Claim:
    """Return the newest pipeline run that made feature rows of `view` from `batch`."""
    query = (
        "SELECT id, project, view, revision, batch FROM pipeline_runs WHERE project = :p AND view = :v AND batch = :b "
        "AND state = 'succeeded' ORDER BY revision DESC LIMIT 1"
    )
    with state.engine.connect() as db:
        row = db.execute(text(query), {"p": project, "v": view, "b": batch}).first()
    if row is None:
        raise NotFound(f"pipeline run of view {view!r}", batch, "is not recorded", "look at: cellwork feature runs")
    return Claim(*row)
