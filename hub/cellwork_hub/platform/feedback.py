"""What people say of a prediction: "this was wrong", and, if they know it, what was true.

With the truth it is an outcome like any other, of source ``feedback``, and quality counts it. Without, it is kept and shown, and counts for
nothing: only those who are unhappy speak, so such words say which predictions to look at, not how good a model is.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from cellwork import clock, ids
from cellwork.errors import BadInput, Conflict
from cellwork.wire.business import Feedback, FeedbackRequest
from cellwork.wire.outcomes import Outcome, OutcomesRequest
from cellwork_hub import records
from cellwork_hub.platform import outcomes
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE feedback (seq {serial}, id TEXT UNIQUE NOT NULL, project TEXT NOT NULL, endpoint TEXT NOT NULL, prediction TEXT NOT NULL, "
    "observation TEXT NOT NULL, version INTEGER NOT NULL, score DOUBLE PRECISION NOT NULL, wrong INTEGER NOT NULL, value DOUBLE PRECISION, "
    "comment TEXT NOT NULL, by_whom TEXT NOT NULL, at BIGINT NOT NULL)",
    "CREATE INDEX feedback_endpoint ON feedback (endpoint, seq)",
)
SOURCE = "feedback"
MOST_COMMENT = 2000


def give(state: State, call: Call) -> Feedback:
    """Keep what is said of a prediction of a project of the caller's; said twice by one person the last word holds."""
    asked: FeedbackRequest = call.body
    if len(asked.comment) > MOST_COMMENT:
        raise BadInput(
            "comment", f"{len(asked.comment)} characters", f"is longer than {MOST_COMMENT}", "say it shorter"
        )
    with state.context.client("cellwork") as client:
        found = client.endpoints.prediction(ids.check(asked.prediction, "pred"))
    project = found.endpoint.partition("/")[0]
    call.enter(project)
    if found.score is None:
        raise Conflict("prediction", found.id, f"was erased ({found.erased})", "nothing can be said of it any more")
    by = f"{call.principal.kind}:{call.principal.name}"
    values: dict[str, Any] = {
        "id": ids.new("fb"), "project": project, "endpoint": found.endpoint, "prediction": found.id, "observation": found.observation,
        "version": found.version.version, "score": found.score, "wrong": int(asked.wrong), "value": asked.value, "comment": asked.comment,
        "by": by, "at": micros(clock.now()),
    }  # fmt: skip
    with state.engine.begin() as db:
        before = {"prediction": found.id, "by": by}
        db.execute(text("DELETE FROM feedback WHERE prediction = :prediction AND by_whom = :by"), before)
        db.execute(
            text(
                "INSERT INTO feedback (id, project, endpoint, prediction, observation, version, score, wrong, value, comment, by_whom, at) VALUES "
                "(:id, :project, :endpoint, :prediction, :observation, :version, :score, :wrong, :value, :comment, :by, :at)"
            ),
            values,
        )
        records.event(db, "feedback.given", project, found.endpoint, prediction=found.id, wrong=asked.wrong)
        after = {"wrong": asked.wrong, "value": asked.value}  # no comment: what is in the audit can't be erased
        records.audit(db, call, "feedback.give", found.id, after=after)
    if asked.value is not None:
        outcomes.mirror(state)
        said = Outcome(prediction=found.id, value=asked.value, observed_at=clock.now(), source=SOURCE)
        outcomes.take(state, call, OutcomesRequest(project=project, outcomes=[said]))
    return _feedback({**values, "by_whom": by})


def _feedback(row: Any) -> Feedback:
    return Feedback(
        id=row["id"], project=row["project"], endpoint=row["endpoint"], prediction=row["prediction"], observation=row["observation"],
        version=row["version"], score=row["score"], wrong=bool(row["wrong"]), value=row["value"], comment=row["comment"],
        by=row["by_whom"], at=moment(row["at"]),
    )  # fmt: skip


def routes(state: State) -> list[Route]:
    def post(call: Call) -> Feedback:
        return give(state, call)

    def read(call: Call) -> list[Feedback]:
        query = "SELECT * FROM feedback WHERE endpoint = :e ORDER BY seq DESC LIMIT :most"
        values = {"e": f"{call.path['project']}/{call.path['name']}", "most": call.limit(100, 1000)}
        with state.engine.connect() as db:
            return [_feedback(row) for row in db.execute(text(query), values).mappings()]

    return [
        Route("POST", "/api/v1/feedback", post, "endpoints:predict", FeedbackRequest, Feedback, "Say that a prediction was wrong, or right, and what was true."),
        Route("GET", "/api/v1/feedback/{project}/{name}", read, "monitors:read", None, list[Feedback], "What was said of an endpoint's predictions, newest first."),
    ]  # fmt: skip
