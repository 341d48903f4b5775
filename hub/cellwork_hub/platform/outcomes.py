"""Outcomes and quality: the truth that arrives later, joined to the predictions as either side appears.

The prediction log is the inference service's. What the join needs of it (no features) is mirrored here page by page; the
cursor moves in the transaction of the page. Outcomes are only ever appended: the newest `arrived_at` of a prediction holds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, text

from cellwork import clock, ids
from cellwork.errors import BadInput, Unavailable
from cellwork.monitoring import summary
from cellwork.wire.endpoints import Prediction
from cellwork.wire.outcomes import Outcome, OutcomesAnswer, OutcomesRequest, Quality
from cellwork_hub import records
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE outcomes (seq {serial}, project TEXT NOT NULL, endpoint TEXT NOT NULL, observation TEXT NOT NULL, prediction TEXT NOT NULL, "
    "value DOUBLE PRECISION NOT NULL, observed_at BIGINT NOT NULL, arrived_at BIGINT NOT NULL, source TEXT NOT NULL)",
    "CREATE INDEX outcomes_observation ON outcomes (endpoint, observation)",
    "CREATE INDEX outcomes_prediction ON outcomes (prediction)",
    "CREATE TABLE scored (id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, version INTEGER NOT NULL, observation TEXT NOT NULL, at BIGINT NOT NULL, "
    "seq BIGINT NOT NULL, score DOUBLE PRECISION NOT NULL, counts INTEGER NOT NULL, outcome DOUBLE PRECISION, outcome_arrived BIGINT)",
    "CREATE INDEX scored_observation ON scored (endpoint, observation, version)",
    "CREATE INDEX scored_seq ON scored (seq)",
    "CREATE TABLE mirrored (log TEXT PRIMARY KEY, seq BIGINT NOT NULL)",
)
PAGE = 5000
CHUNK = 500
_mirroring = threading.Lock()


def routes(state: State) -> list[Route]:
    def send(call: Call) -> OutcomesAnswer:
        mirror(state)
        return take(state, call, call.body)

    def read(call: Call) -> list[Outcome]:
        return _list(state, call)

    def quality(call: Call) -> Quality:
        mirror(state)
        return _quality(state, f"{call.path['project']}/{call.path['name']}")

    return [
        Route("POST", "/api/v1/outcomes", send, "monitors:write", OutcomesRequest, OutcomesAnswer, "Send outcomes; corrections append."),
        Route("GET", "/api/v1/outcomes", read, "monitors:read", None, list[Outcome], "Outcomes in order of arrival."),
        Route("GET", "/api/v1/quality/{project}/{name}", quality, "monitors:read", None, Quality, "Quality per day and version."),
    ]  # fmt: skip


def mirror(state: State) -> int:
    """Fetch what the prediction log has beyond the cursor; return the number of new predictions.

    While the inference service is away nothing is fetched and outcomes still arrive: they match later.
    """
    new = 0
    with _mirroring, state.context.client("cellwork") as client:
        client.connection.attempts = 1
        while True:
            with state.engine.connect() as db:
                after = db.execute(text("SELECT seq FROM mirrored WHERE log = 'inference'")).scalar() or 0
            try:
                page = client.endpoints.predictions(after=after, limit=PAGE, brief=True)
            except Unavailable:
                return new
            if not page:
                return new
            with state.engine.begin() as db:
                _keep(db, [p for p in page if p.route != "shadow"], after, page[-1].seq)
            new += len(page)


def _keep(db: Connection, page: Sequence[Prediction], after: int, cursor: int) -> None:
    """Append mirrored predictions, join what had arrived for them, move the cursor."""
    rows = [
        {
            "id": p.id, "endpoint": p.endpoint, "version": p.version.version, "observation": p.observation,
            "at": records.micros(p.at), "seq": p.seq, "score": p.score, "project": ids.split_name(p.endpoint)[0],
        }
        for p in page
    ]  # fmt: skip
    if rows:
        db.execute(
            text(
                "INSERT INTO scored (id, endpoint, version, observation, at, seq, score, counts) "
                "SELECT :id, :endpoint, :version, :observation, :at, :seq, :score, CASE WHEN :observation <> '' AND EXISTS "
                "(SELECT 1 FROM scored WHERE endpoint = :endpoint AND observation = :observation AND version = :version) THEN 0 ELSE 1 END "
                "WHERE NOT EXISTS (SELECT 1 FROM scored WHERE id = :id)"
            ),
            rows,
        )
        db.execute(
            text(
                "UPDATE outcomes SET endpoint = :endpoint, observation = :observation "
                "WHERE prediction = :id AND project = :project AND endpoint = ''"
            ),
            rows,
        )
        _join_new(db, after)
    db.execute(
        text("INSERT INTO mirrored VALUES ('inference', :seq) ON CONFLICT (log) DO UPDATE SET seq = excluded.seq"),
        {"seq": cursor},
    )


def _join_new(db: Connection, after: int) -> None:
    newest = (  # two searches by index instead of one with OR, which would read every outcome for every prediction
        "SELECT o.{column} FROM ("
        "SELECT value, arrived_at, seq FROM outcomes WHERE endpoint = scored.endpoint AND observation = scored.observation AND observation <> '' "
        "UNION ALL SELECT value, arrived_at, seq FROM outcomes WHERE prediction = scored.id AND endpoint = scored.endpoint) o "
        "ORDER BY o.arrived_at DESC, o.seq DESC LIMIT 1"
    )
    value, arrived = newest.format(column="value"), newest.format(column="arrived_at")
    db.execute(
        text(f"UPDATE scored SET outcome = ({value}), outcome_arrived = ({arrived}) WHERE seq > :after"),
        {"after": after},
    )
    _observe(db, "seq > :after AND outcome IS NOT NULL", [{"after": after}])


def _observe(db: Connection, condition: str, parameters: list[dict[str, Any]]) -> None:
    """Write the edges prediction -observed_as-> observation of the mirrored predictions under `condition`."""
    at = records.micros(clock.now())
    db.execute(
        text(
            "INSERT INTO edges SELECT id, 'observed_as', endpoint || '#' || observation, :edge_at FROM scored "
            f"WHERE observation <> '' AND {condition} ON CONFLICT DO NOTHING"
        ),
        [{**p, "edge_at": at} for p in parameters],
    )


def take(state: State, call: Call, request: OutcomesRequest) -> OutcomesAnswer:
    """Append what is new, join it, and say how much of it met a prediction."""
    now = clock.now()
    rows = [_row(request.project, number, outcome, now) for number, outcome in enumerate(request.outcomes)]
    with state.engine.begin() as db:
        _resolve(db, rows)
        for endpoint in {row["endpoint"] for row in rows} - {""}:
            call.enter(endpoint.partition("/")[0])
        new = _without_repeats(db, rows)
        if new:
            columns = (
                "project",
                "endpoint",
                "observation",
                "prediction",
                "value",
                "observed_at",
                "arrived_at",
                "source",
            )
            values = ", ".join(f":{column}" for column in columns)
            db.execute(text(f"INSERT INTO outcomes ({', '.join(columns)}) VALUES ({values})"), new)
        matched = [row for row in new if row["matched"]]
        _join(db, matched)
        answer = OutcomesAnswer(taken=len(new), matched=len(matched), repeated=len(rows) - len(new))
        if new:
            subjects = sorted({row["endpoint"] for row in new})
            for subject in subjects:
                records.event(db, "outcomes.arrived", request.project, subject, taken=len(new), matched=len(matched))
            records.audit(db, call, "outcomes.send", request.project, after=answer)
    return answer


def _row(project: str, number: int, outcome: Outcome, now: datetime) -> dict[str, Any]:
    by_observation = bool(outcome.endpoint and outcome.observation)
    if not by_observation and not outcome.prediction:
        raise BadInput(
            f"outcome {number}", "", "names neither a prediction nor an endpoint with an observation",
            "send `prediction`, or `endpoint` and `observation`",
        )  # fmt: skip
    if outcome.endpoint and ids.split_name(outcome.endpoint)[0] != project:
        raise BadInput(
            f"endpoint of outcome {number}", outcome.endpoint, f"is not in project {project!r}", "send it there"
        )
    return {
        "project": project, "endpoint": outcome.endpoint if by_observation else "",
        "observation": outcome.observation if by_observation else "", "prediction": outcome.prediction,
        "value": outcome.value, "observed_at": records.micros(clock.utc(outcome.observed_at)),
        "arrived_at": records.micros(clock.utc(outcome.arrived_at or now)), "dated": outcome.arrived_at is not None,
        "source": outcome.source or "", "matched": False,
    }  # fmt: skip


def _resolve(db: Connection, rows: list[dict[str, Any]]) -> None:
    """Find the predictions of `rows`; one sent by prediction id gets its endpoint and observation, so that both ways meet."""
    by_id = {row["prediction"] for row in rows if not row["endpoint"]}
    found = {r["id"]: r for r in _in(db, "SELECT id, endpoint, observation FROM scored WHERE id IN :keys", by_id)}
    for row in rows:
        known = found.get(row["prediction"])
        if not row["endpoint"] and known and ids.split_name(known["endpoint"])[0] == row["project"]:
            row.update(endpoint=known["endpoint"], observation=known["observation"], matched=True)
    observations = {row["observation"] for row in rows if row["observation"]}
    query = "SELECT DISTINCT endpoint, observation FROM scored WHERE observation IN :keys"
    there = {(r["endpoint"], r["observation"]) for r in _in(db, query, observations)}
    for row in rows:
        row["matched"] = row["matched"] or (row["endpoint"], row["observation"]) in there


def _without_repeats(db: Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that say something new: not what holds already, nor a delivery that was taken with the same arrival."""
    held: dict[tuple[str, str], list[tuple[int, float, int]]] = {}
    observations = {row["observation"] for row in rows if row["observation"]}
    predictions = {row["prediction"] for row in rows if not row["observation"]}
    query = "SELECT * FROM outcomes WHERE {} IN :keys ORDER BY seq"
    earlier = [
        *_in(db, query.format("observation"), observations),
        *(r for r in _in(db, query.format("prediction"), predictions) if not r["observation"]),
    ]
    for row in earlier:
        held.setdefault(_key(row), []).append((row["arrived_at"], row["value"], row["observed_at"]))
    new = []
    for row in rows:
        said = held.setdefault(_key(row), [])
        newest = max(said, key=lambda one: one[0], default=None)
        mine = (row["arrived_at"], row["value"], row["observed_at"])
        if (newest and newest[1:] == mine[1:]) or (row["dated"] and mine in said):
            continue
        said.append(mine)
        new.append(row)
    return new


def _key(row: Any) -> tuple[str, str]:
    return (row["endpoint"], row["observation"]) if row["observation"] else ("", row["prediction"])


def _join(db: Connection, rows: list[dict[str, Any]]) -> None:
    update = (
        "UPDATE scored SET outcome = :value, outcome_arrived = :arrived_at WHERE {} "
        "AND (outcome_arrived IS NULL OR outcome_arrived <= :arrived_at)"
    )
    observed = [row for row in rows if row["observation"]]
    others = [row for row in rows if not row["observation"]]
    if observed:
        db.execute(text(update.format("endpoint = :endpoint AND observation = :observation")), observed)
        _observe(db, "endpoint = :endpoint AND observation = :observation", observed)
    if others:
        db.execute(text(update.format("id = :prediction")), others)


def _in(db: Connection, query: str, keys: set[str]) -> list[Any]:
    """Return the rows of `query` for all `keys`, asked in parts."""
    statement = text(query).bindparams(bindparam("keys", expanding=True))
    ordered = sorted(keys)
    parts = [ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK)]
    return [row for part in parts for row in db.execute(statement, {"keys": part}).mappings()]


def _list(state: State, call: Call) -> list[Outcome]:
    prediction, limit = call.query.get("prediction", ""), call.limit(1000)
    endpoint = call.required("endpoint") if not prediction else call.query.get("endpoint", "")
    query = (
        "SELECT o.* FROM outcomes o WHERE o.seq > :after AND (:endpoint = '' OR o.endpoint = :endpoint) AND (:prediction = '' OR o.prediction = :prediction "
        "OR (o.observation <> '' AND EXISTS (SELECT 1 FROM scored s WHERE s.id = :prediction AND s.endpoint = o.endpoint AND s.observation = o.observation))) "
        "ORDER BY o.seq LIMIT :limit"
    )
    parameters = {"after": call.number("cursor", 0), "endpoint": endpoint, "prediction": prediction, "limit": limit}
    with state.engine.connect() as db:
        rows = db.execute(text(query), parameters).mappings().all()
    if len(rows) == limit:
        call.next_page(rows[-1]["seq"])
    call.may_enter("")
    return [
        Outcome(
            value=row["value"], observed_at=records.moment(row["observed_at"]), prediction=row["prediction"], endpoint=row["endpoint"],
            observation=row["observation"], arrived_at=records.moment(row["arrived_at"]), source=row["source"],
        )
        for row in rows
        if call.may_enter(row["endpoint"].partition("/")[0])
    ]  # fmt: skip


def _quality(state: State, endpoint: str) -> Quality:
    with state.engine.connect() as db:
        rows = db.execute(
            text("SELECT at, version, score, outcome FROM scored WHERE endpoint = :endpoint AND counts = 1"),
            {"endpoint": endpoint},
        ).all()
    return summary.quality(
        endpoint, [(records.moment(at), version, score, outcome) for at, version, score, outcome in rows]
    )
