"""Outcomes and quality over HTTP: the truth that arrives later, joined to the predictions as either side appears.

The prediction log is the inference service's. What the join needs of it is mirrored page by page into `outcome_store`, which
keeps and joins both sides. Outcomes are only ever appended: the newest `arrived_at` of an observation holds, and what was known
at an earlier time can still be asked. A delivery that was taken is told as an event and in the audit, at least once, whatever dies.
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timedelta
from typing import Any

import polars as pl
from sqlalchemy import text

from cellwork import clock, ids
from cellwork.data import delivery
from cellwork.errors import BadInput, TooLarge, Unavailable, near_miss
from cellwork.monitoring import estimate, summary
from cellwork.monitoring.outcomes import ROWS
from cellwork.wire.endpoints import Prediction
from cellwork.wire.outcomes import Outcome, OutcomesAnswer, OutcomesRequest, Quality
from cellwork.wire.records import Edge
from cellwork_hub import records
from cellwork_hub.once import Once
from cellwork_hub.platform.outcome_store import JOINED, NEWEST, Delivery, OutcomeStore
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

log = logging.getLogger("cellwork.outcomes")

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
"""The tables `outcomes` and `scored` are those of before `outcome_store`: what stands there is taken over once. `mirrored` is in use."""
LOG = "inference"
PAGE = 10_000
CLOCKS = timedelta(minutes=5)
"""How far a sender's clock may be ahead; what arrives in times to come would hold until then, whatever corrects it."""
DAY = "CAST(make_timestamp(p.ts) AS DATE) AS day, p.model, p.version"
ON_TIME = "send when it arrived, or leave it out"
SENT = {
    "n": pl.Int64, "project": pl.String, "endpoint": pl.String, "observation": pl.String, "prediction": pl.String, "value": pl.Float64,
    "observed_at": pl.Int64, "arrived_at": pl.Int64, "dated": pl.Boolean, "source": pl.String,
}  # fmt: skip
SCORED = {
    "project": pl.String, "endpoint": pl.String, "observation": pl.String, "id": pl.String, "model": pl.String, "version": pl.Int32,
    "ts": pl.Int64, "seq": pl.Int64, "score": pl.Float64,
}  # fmt: skip
_mirroring, _telling = threading.Lock(), threading.Lock()


def routes(state: State) -> list[Route]:
    summed = Once[Quality]()

    def send(call: Call) -> OutcomesAnswer:
        mirror(state)
        return take(state, call, call.body)

    def load(call: Call) -> OutcomesAnswer:
        mirror(state)
        return _load(state, call, ids.name(call.path["project"], "project"), ids.name(call.path["name"], "endpoint"))

    def read(call: Call) -> list[Outcome]:
        return _list(state, call)

    def quality(call: Call) -> Quality:
        mirror(state)
        endpoint = f"{call.path['project']}/{call.path['name']}"
        if call.query.get("as_of"):
            return quality_of(state.outcomes, endpoint, clock.utc(call.query["as_of"]))
        return summed(endpoint, state.outcomes.revision, lambda: quality_of(state.outcomes, endpoint))

    return [
        Route("POST", "/api/v1/outcomes", send, "monitors:write", OutcomesRequest, OutcomesAnswer, "Send outcomes; corrections append."),
        Route("PUT", "/api/v1/outcomes/{project}/{name}", load, "monitors:write", bytes, OutcomesAnswer, "Send an endpoint's outcomes as parquet: observation or prediction, value, observed_at; arrived_at and source if known."),
        Route("GET", "/api/v1/outcomes", read, "monitors:read", None, list[Outcome], "Outcomes in order of arrival."),
        Route("GET", "/api/v1/quality/{project}/{name}", quality, "monitors:read", None, Quality, "Quality per day, model and version; ?as_of= with what was known then."),
    ]  # fmt: skip


def mirror(state: State) -> int:
    """Fetch what the prediction log has beyond the cursor; return the number of new predictions.

    While the inference service is away nothing is fetched and outcomes still arrive: they match later.
    """
    new = 0
    with _mirroring, state.context.client("cellwork") as client:
        client.connection.attempts = 1
        while True:
            after = state.outcomes.cursor(LOG)
            try:
                page = client.endpoints.predictions(after=after, limit=PAGE, brief=True)
            except Unavailable:
                return new
            if not page:
                return new
            state.outcomes.keep(scored([p for p in page if p.route != "shadow"]), LOG, page[-1].seq)
            new += len(page)


def scored(page: list[Prediction]) -> pl.DataFrame:
    """Return what the join needs of predictions."""
    columns = {
        "project": [ids.split_name(p.endpoint)[0] for p in page], "endpoint": [p.endpoint for p in page],
        "observation": [p.observation for p in page], "id": [p.id for p in page],
        "model": [p.version.name for p in page], "version": [p.version.version for p in page], "ts": [records.micros(p.at) for p in page], "seq": [p.seq for p in page], "score": [p.score for p in page],
    }  # fmt: skip
    return pl.DataFrame(columns, schema=SCORED)


def take(state: State, call: Call, request: OutcomesRequest) -> OutcomesAnswer:
    """Append what is new, join it, and say how much of it met a prediction."""
    call.enter(ids.name(request.project, "project"))
    now = clock.now()
    rows = [_row(request.project, number, outcome, now) for number, outcome in enumerate(request.outcomes)]
    return _take(state, call, pl.DataFrame(rows, schema=SENT))


def _take(state: State, call: Call, sent: pl.DataFrame) -> OutcomesAnswer:
    if not sent.height:
        return OutcomesAnswer(taken=0, matched=0, repeated=0)
    done = state.outcomes.take(sent, f"{call.principal.kind}:{call.principal.name}", call.request_id)
    tell(state)
    return _answer(done)


def _answer(done: Delivery) -> OutcomesAnswer:
    return OutcomesAnswer(taken=done.taken, matched=done.matched, repeated=done.repeated)


def tell(state: State) -> None:
    """Write the events and the audit of deliveries that were taken and not told yet."""
    with _telling:
        for done in state.outcomes.untold():
            try:
                _tell(state, done)
            except Exception:  # it stays untold; the others' are told, and the service starts
                log.exception("delivery %s of outcomes of %r could not be told", done.id, done.project)


def _tell(state: State, done: Delivery) -> None:
    with state.engine.begin() as db:
        for subject in done.subject.split(" "):
            records.event(db, "outcomes.arrived", done.project, subject, taken=done.taken, matched=done.matched)
        said = records.as_text(_answer(done))
        records.audit_of(
            db, done.principal, done.request, "outcomes.send", done.project, before="", after=said, reason=""
        )
    state.outcomes.told(done)


def take_over(state: State) -> None:
    """Take over, once, the outcomes that this service kept in its own database before; tell what waits since the last stop."""
    with state.engine.connect() as db:
        rows = db.execute(text("SELECT * FROM outcomes ORDER BY seq")).mappings().all()
    if rows and not state.outcomes.rows("SELECT 1 FROM outcomes LIMIT 1").height:
        columns = {name: [row[name] for row in rows] for name in SENT if name not in ("n", "dated")}
        sent = pl.DataFrame(columns).with_row_index("n").with_columns(dated=pl.lit(True)).select(*SENT).cast(SENT)  # type: ignore[arg-type]
        for part in sent.partition_by("project", maintain_order=True):
            state.outcomes.take(part.with_columns(pl.int_range(pl.len()).alias("n")), "service:cellwork", "")
    tell(state)


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
    arrived = clock.kept(outcome.arrived_at or now)
    if arrived > now + CLOCKS:
        raise BadInput(f"arrived_at of outcome {number}", arrived.isoformat(), "is later than now", ON_TIME)
    return {
        "n": number, "project": project, "endpoint": outcome.endpoint if by_observation else "",
        "observation": outcome.observation if by_observation else "", "prediction": outcome.prediction,
        "value": outcome.value, "observed_at": records.micros(clock.kept(outcome.observed_at)),
        "arrived_at": records.micros(arrived), "dated": outcome.arrived_at is not None,
        "source": outcome.source or "",
    }  # fmt: skip


def _load(state: State, call: Call, project: str, name: str) -> OutcomesAnswer:
    frame = delivery.unpack(call.body, "outcomes")
    if frame.height > ROWS:
        raise TooLarge("outcomes", f"{frame.height:,} rows", f"are more than {ROWS:,}", "send them in parts")
    return _take(state, call, of_frame(frame, project, f"{project}/{name}"))


def of_frame(frame: pl.DataFrame, project: str, endpoint: str) -> pl.DataFrame:
    """Return the rows of `frame` as they are kept; those without a value are no outcomes yet and stay out."""
    known = {"observation", "prediction", "value", "observed_at", "arrived_at", "source"}
    if odd := [column for column in frame.columns if column not in known]:
        raise BadInput("column of the outcomes", odd[0], "is not known", near_miss(odd[0], sorted(known)))
    by = next((column for column in ("observation", "prediction") if column in frame.columns), "")
    if missing := [column for column in ("value", "observed_at", by or "observation") if column not in frame.columns]:
        raise BadInput("outcomes", ", ".join(frame.columns), f"lack the column {missing[0]!r}", "add it")
    _refuse_odd_kinds(frame)
    frame = frame.filter(pl.col("value").is_not_null())
    if odd_values := int((~frame["value"].cast(pl.Float64).is_finite()).sum()):
        raise BadInput(
            "value of the outcomes", odd_values, "are no finite numbers", "leave such rows out, or mend them"
        )
    for column in (by, "observed_at"):
        none = (
            pl.col(column).is_null() if column == "observed_at" else pl.col(column).cast(pl.String).fill_null("") == ""
        )
        if empty := frame.select(none.sum()).item():
            raise BadInput(f"{column} of the outcomes", empty, "are missing", "leave such rows out, or mend them")
    for column in ("observed_at", "arrived_at"):
        dtype = frame.schema.get(column, pl.Datetime("us", "UTC"))
        if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
            raise BadInput(f"{column} of the outcomes", str(dtype), "is no time with a time zone", "send UTC times")
        if column not in frame.columns:
            continue
        frame = frame.with_columns(pl.col(column).dt.convert_time_zone("UTC"))
        if far := frame.filter(~pl.col(column).is_between(clock.LEAST, clock.MOST, closed="left")).height:
            raise BadInput(
                f"{column} of the outcomes", far, "are outside the years 1678 to 2261", "send the times that are meant"
            )
    now = clock.now()
    if "arrived_at" in frame.columns and (late := frame.filter(pl.col("arrived_at") > now + CLOCKS).height):
        raise BadInput("arrived_at of the outcomes", late, "are later than now", ON_TIME)
    arrived = pl.col("arrived_at").dt.epoch("us") if "arrived_at" in frame.columns else pl.lit(None, pl.Int64)
    named = pl.col("observation") if by == "observation" else pl.lit("")
    return frame.select(
        n=pl.int_range(pl.len()), project=pl.lit(project), endpoint=pl.lit(endpoint if by == "observation" else ""),
        observation=named.cast(pl.String),
        prediction=pl.col("prediction").cast(pl.String).fill_null("") if "prediction" in frame.columns else pl.lit(""),
        value=pl.col("value").cast(pl.Float64), observed_at=pl.col("observed_at").dt.epoch("us"),
        arrived_at=arrived.fill_null(records.micros(now)), dated=arrived.is_not_null(),
        source=pl.col("source").cast(pl.String).fill_null("") if "source" in frame.columns else pl.lit(""),
    )  # fmt: skip


def _refuse_odd_kinds(frame: pl.DataFrame) -> None:
    kinds = frame.schema
    if not (kinds["value"].is_numeric() or kinds["value"] in (pl.Boolean, pl.Null)):
        raise BadInput("value of the outcomes", str(kinds["value"]), "is no number", "send numbers")
    for column in {"observation", "prediction", "source"} & set(kinds):
        if kinds[column].is_nested() or kinds[column] in (pl.Binary, pl.Object):
            raise BadInput(f"{column} of the outcomes", str(kinds[column]), "is no text", "send texts or whole numbers")


def _list(state: State, call: Call) -> list[Outcome]:
    prediction, limit = call.query.get("prediction", ""), call.limit(1000)
    endpoint = call.required("endpoint") if not prediction else call.query.get("endpoint", "")
    query = (
        "SELECT * FROM outcomes WHERE seq > $1 AND ($2 = '' OR endpoint = $2) AND ($3 = '' OR prediction = $3 "
        "OR key IN (SELECT key FROM predictions WHERE id = $3)) ORDER BY seq LIMIT $4"
    )
    rows = state.outcomes.rows(query, call.number("cursor", 0), endpoint, prediction, limit).rows(named=True)
    if len(rows) == limit:
        call.next_page(rows[-1]["seq"])
    call.may_enter("")
    return [
        Outcome(
            value=row["value"], observed_at=records.moment(row["observed_at"]), prediction=row["prediction"], endpoint=row["endpoint"],
            observation=row["observation"], arrived_at=records.moment(row["arrived_at"]), source=row["source"],
        )
        for row in rows
        if call.may_enter(row["project"])
    ]  # fmt: skip


def edges(state: State, subject: str) -> list[Edge]:
    """Return the edges prediction -observed_as-> observation from or to `subject`."""
    endpoint, hash_sign, observation = subject.partition("#")
    where = "p.endpoint = $1 AND p.observation = $2" if hash_sign else "p.id = $1 AND $2 = ''"
    query = (
        "SELECT p.id, p.endpoint, p.observation, j.arrived_at FROM predictions p JOIN joined j ON j.seq = p.seq AND j.key = p.key "
        f"WHERE p.observation <> '' AND {where} LIMIT 1000"
    )
    return [
        Edge(from_=name, relation="observed_as", to=f"{of}#{seen}", at=records.moment(at))
        for name, of, seen, at in state.outcomes.rows(query, endpoint, observation).rows()
    ]


def quality_of(store: OutcomeStore, endpoint: str, as_of: datetime | None = None) -> Quality:
    """Return the quality of `endpoint` with what is known, or was known at `as_of`."""
    traffic = store.rows(
        f"SELECT {DAY}, count(*) AS predictions, avg(score) AS mean_score FROM predictions p WHERE endpoint = ? AND counts GROUP BY ALL",
        endpoint,
    )
    joined, asked = _joined(endpoint, as_of)
    known = store.rows(f"SELECT {DAY}, score, outcome FROM {joined} p WHERE endpoint = $1 AND counts", *asked)
    estimated = estimate.areas(*_by_score(store, joined, asked), summary.GROUP)
    traffic = traffic.join(estimated, on=summary.GROUP, how="left")
    return summary.quality(endpoint, traffic, known)


def _joined(endpoint: str, as_of: datetime | None) -> tuple[str, tuple[Any, ...]]:
    """Return in SQL the predictions with what is known, or was known at `as_of`, and its parameters: $1 is `endpoint`."""
    if as_of is None:
        return "joined", (endpoint,)
    then = f"SELECT key, value AS outcome FROM outcomes WHERE endpoint = $1 AND arrived_at <= $2 {NEWEST}"
    joined = f"(SELECT {JOINED}, outcome FROM predictions JOIN ({then}) USING (key) WHERE endpoint = $1)"
    return joined, (endpoint, records.micros(as_of))


def _by_score(store: OutcomeStore, joined: str, asked: tuple[Any, ...]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return how many predictions there are by day, model, version and score, and by model, version and score how many came true."""
    step = f"CAST(least(floor(score * {estimate.BINS}), {estimate.BINS - 1}) AS INTEGER) AS bin"
    where = "WHERE p.endpoint = $1 AND counts AND score BETWEEN 0 AND 1"
    predicted = f"SELECT {DAY}, {step}, count(*) AS rows FROM predictions p {where} GROUP BY ALL"
    known = f"SELECT model, version, {step}, count(*) AS rows, sum(outcome) AS happened FROM {joined} p {where} AND outcome IN (0, 1) GROUP BY ALL"
    return store.rows(predicted, asked[0]), store.rows(known, *asked)
