"""Evaluations of registered versions on sealed holdouts.

Every question to a holdout is counted before the model is scored, whatever comes of it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, text

from cellwork import clock, ids
from cellwork.client import Client
from cellwork.errors import BadInput, CellworkError, NotFound
from cellwork.evaluation import baseline
from cellwork.evaluation.metrics import Kind, primary
from cellwork.models import package, versions
from cellwork.models.versions import Version
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import Difference, Evaluation, EvaluationRequest, Metric
from cellwork.wire.gate import Rules
from cellwork_hub import records
from cellwork_hub.platform import gate_rules, scoring
from cellwork_hub.platform.judgements import MIGRATION, asked_of, select
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

__all__ = ["MIGRATION", "evaluate", "routes"]

log = logging.getLogger("cellwork.evaluations")


def evaluate(state: State, call: Call, request: EvaluationRequest) -> Evaluation:
    """Score a registered version on a sealed holdout, beside its baseline and the champion, if that can still be scored.

    Raises
    ------
    NotFound
        The version or the holdout does not exist.
    BadInput
        The model can't be scored, or the baseline's column is not among its columns.
    Refused
        The version has no dataset, or its content is not what was registered.
    """
    started = time.perf_counter()
    project = ids.split_name(request.name)[0]
    with state.context.client("cellwork") as client:
        version = versions.get(client, request.name, request.version)
        trained = scoring.trained_on(state, version)
        folder = scoring.copy(state, client, version)
        kind = package.read(folder).kind
        rules = gate_rules.kept(state, project).rules
        holdout = scoring.sealed(state, request.holdout, trained)
        if request.also:
            holdout = scoring.together(state, holdout, request.also, trained)
        column = request.baseline or _baseline(rules, version)
        beside = _beside(state, client, version, column, kind)
        if beside is None:
            simple = scoring.of_baseline(state, column, kind, trained, holdout)
        rival = Champion() if request.also else _champion(state, client, version, trained, (request.holdout, holdout))
        question = _count(state, call, project, request, version)
        if beside is not None:
            _count(state, call, project, request, beside[0])
            simple = scoring.of_model(beside[1], holdout).metrics
        found = scoring.of_model(folder, holdout)
        champion, theirs = _compared(version, rival)
    record = Evaluation(
        id=ids.new("eval"), version=version.ref, holdout=request.holdout, question_no=question, rows=len(holdout.labels),
        metrics=found.metrics, baseline=simple, champion=theirs.metrics, dataset=trained.id, by=call.principal.name, at=clock.now(),
        origin=call.origin, seconds=time.perf_counter() - started, also=request.also, baseline_by=column,
        against_champion=theirs.difference(rules.metric or primary(kind), found, holdout),
        latency=scoring.sanity(folder).latency, size_bytes=scoring.size(folder),
    )  # fmt: skip
    with state.engine.begin() as db:
        _keep(db, call, record, version, champion)
    return record


def _count(state: State, call: Call, project: str, request: EvaluationRequest, version: Version) -> int:
    """Note that the holdout was asked about `version`, and return how often it was asked by now."""
    where = {"p": project, "h": request.holdout}
    values = {
        **where,
        "v": version.subject,
        "by": call.principal.name,
        "at": records.micros(clock.now()),
    }
    with state.engine.begin() as db:
        db.execute(
            text("INSERT INTO questions (project, holdout, version, principal, at) VALUES (:p, :h, :v, :by, :at)"),
            values,
        )
        return int(
            db.execute(text("SELECT count(*) FROM questions WHERE project = :p AND holdout = :h"), where).scalar_one()
        )


def _beside(state: State, client: Client, version: Version, name: str, kind: Kind) -> tuple[Version, Path] | None:
    """Return the version that a baseline names, with its folder; None for a baseline that is no version."""
    if not name.startswith(baseline.VERSION):
        return None
    number = name.removeprefix(baseline.VERSION)
    if not number.isdecimal():
        raise BadInput("baseline", name, "is not a version's number", "write it like @2")
    found = versions.get(client, version.name, int(number))
    folder = scoring.copy(state, client, found)
    if (other := package.read(folder).kind) != kind:
        raise BadInput("baseline", name, f"is a {other}, not a {kind}", "name a version of the same kind")
    return found, folder


def _baseline(rules: Rules, version: Version) -> str:
    """Return the baseline that counts for the gate: the project's, else the one it was registered with."""
    return version.tags.get("baseline", "") if rules.baseline is None else rules.baseline


@dataclass(frozen=True)
class Beside:
    """What the champion did with the same holdout, if there is one."""

    scored: scoring.Scored | None = None
    rows: scoring.Sealed | None = None

    @property
    def metrics(self) -> dict[str, Metric]:
        return self.scored.metrics if self.scored else {}

    def difference(self, metric: str, found: scoring.Scored, holdout: scoring.Sealed) -> Difference | None:
        """Return how much better `found` is, row by row; None without a champion, or one of other rows or another kind."""
        if self.scored is None or self.rows is None or self.scored.kind != found.kind:
            return None
        return scoring.difference(metric, (holdout, found), (self.rows, self.scored))


@dataclass(frozen=True)
class Champion:
    """The champion, ready to be scored: 0 for none, and without rows where it learned another truth."""

    version: int = 0
    folder: Path = Path()
    rows: scoring.Sealed | None = None


def _champion(
    state: State, client: Client, version: Version, trained: Dataset, holdout: tuple[str, scoring.Sealed]
) -> Champion:
    """Return the champion beside which `version` is scored; none if it is `version` itself, or can't be scored any more."""
    number = versions.aliases(client, version.name).get("champion", 0)
    if number in (0, version.version):
        return Champion()
    theirs = trained
    try:
        champion = versions.get(client, version.name, number)
        theirs = scoring.trained_on(state, champion)
        rows = scoring.sealed(state, holdout[0], theirs)
        if theirs.label_name != trained.label_name and not scoring.same_truth(holdout[1], rows):
            return Champion(number)
        return Champion(number, scoring.copy(state, client, champion), rows)
    except CellworkError as error:
        without = _without(version, number, error)
        return without if theirs.label_name == trained.label_name else Champion(number)


def _without(version: Version, champion: int, error: CellworkError) -> Champion:
    log.warning("%s is not compared with champion version %d: %s", version.subject, champion, error)
    return Champion()


def _compared(version: Version, champion: Champion) -> tuple[int, Beside]:
    """Return the champion's version and what it does with its rows; 0 and nothing if it can't be scored."""
    if champion.rows is None:
        return champion.version, Beside()
    try:
        return champion.version, Beside(scoring.of_champion(champion.folder, champion.rows), champion.rows)
    except CellworkError as error:
        return _without(version, champion.version, error).version, Beside()


def _keep(db: Connection, call: Call, record: Evaluation, version: Version, champion: int) -> None:
    project = ids.split_name(version.name)[0]
    db.execute(
        text("INSERT INTO evaluations (id, name, version, digest, holdout, champion, record) VALUES (:id, :n, :v, :d, :h, :c, :r)"),
        {"id": record.id, "n": version.name, "v": version.version, "d": version.digest, "h": asked_of(record), "c": champion, "r": msgspec.json.encode(record).decode()},
    )  # fmt: skip
    edges(db, version, record.dataset)
    records.edge(db, version.subject, "evaluated_on", record.id)
    records.edge(db, record.id, "evaluated_on", f"holdout:{project}/{record.holdout}")
    records.event(
        db, "evaluation.done", project, record.id, model=version.name, version=version.version, holdout=record.holdout,
        question_no=record.question_no, metrics={name: metric.value for name, metric in record.metrics.items()},
    )  # fmt: skip
    after = {"evaluation": record.id, "holdout": record.holdout, "question_no": record.question_no}
    records.audit(db, call, "holdout.evaluate", version.subject, after=after)


def edges(db: Connection, version: Version, dataset: str) -> None:
    """Say where a version comes from: its training run, its dataset, and the notebook run behind them."""
    if version.run:
        records.edge(db, version.run, "registered_as", version.subject)
        if version.tags.get("run"):
            records.edge(db, version.run, "made_by", version.tags["run"])
    records.edge(db, version.subject, "trained_on", dataset)


def routes(state: State) -> list[Route]:
    def post_evaluation(call: Call) -> Evaluation:
        return evaluate(state, call, call.body)

    def list_evaluations(call: Call) -> list[Evaluation]:
        limit, name = call.limit(100, 1000), call.required("name")
        where, values = "name = :n", {"n": name, "v": call.number("version", 0)}
        where += " AND version = :v" if values["v"] else ""
        where += " AND seq < (SELECT seq FROM evaluations WHERE id = :after)" if call.query.get("cursor") else ""
        found = select(state, where, limit, **values, after=call.query.get("cursor", ""))
        if len(found) == limit:
            call.next_page(found[-1].id)
        return found

    def get_evaluation(call: Call) -> Evaluation:
        found = select(state, "id = :id", 1, id=ids.check(call.path["evaluation"], "eval"))
        if not found:
            raise NotFound(
                "evaluation", call.path["evaluation"], "does not exist", "look at: cellwork model show NAME@VERSION"
            )
        call.enter(ids.split_name(found[0].version.name)[0])
        return found[0]

    def route(method: str, path: str, handler: Any, scope: str, answer: Any, doc: str, body: Any = None) -> Route:
        return Route(method, path, handler, scope=scope, body=body, answer=answer, doc=doc)

    return [
        route("POST", "/api/v1/evaluations", post_evaluation, "holdout:evaluate", Evaluation, "Score a version on a sealed holdout.", EvaluationRequest),
        route("GET", "/api/v1/evaluations", list_evaluations, "models:read", list[Evaluation], "Evaluations of a model, newest first."),
        route("GET", "/api/v1/evaluations/{evaluation}", get_evaluation, "models:read", Evaluation, "One evaluation."),
    ]  # fmt: skip
