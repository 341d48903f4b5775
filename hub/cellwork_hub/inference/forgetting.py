"""Empties what the inference service holds of an erased subject: submissions first, then the prediction log with its files.

Submissions come first, so that none that waits is answered, and logged, behind the log's back; the log ends by making the database anew,
which is for the submissions too. A submission is one request: where one of its rows is the subject's all of it becomes `erased`, and
its problem says so; what was answered to its other rows stands in the prediction log. Who asks again after a kill gets the whole sum.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, text

from cellwork import ids
from cellwork.serving import forgetting
from cellwork.serving.forgetting import Subject, like
from cellwork.wire import Problem
from cellwork.wire.endpoints import Forget, Forgotten, Request
from cellwork_hub import records
from cellwork_hub.inference.deploy import Endpoints
from cellwork_hub.route import Call, Route

EMPTY = '{"rows":[]}'


def forget(endpoints: Endpoints, call: Call, project: str, wish: Forget) -> Forgotten:
    """Empty what is held of a subject of `project`; may be repeated.

    Raises
    ------
    Unavailable
        The log is busy for very long, or the disk is full; asked again it goes on.
    """
    ids.check(wish.erasure, "ers")
    _empty_submissions(endpoints.engine, Subject(project, wish), wish.erasure)
    done = forgetting.forget(endpoints.log, project, wish)
    with endpoints.engine.begin() as db:
        done.submissions = _count(db, wish.erasure)
        after = {
            "erasure": wish.erasure, "predictions": len(done.predictions), "archived": done.archived, "submissions": done.submissions,
        }  # fmt: skip
        records.audit(db, call, "predictions.forget", project, after=after)
    return done


def _empty_submissions(engine: Engine, subject: Subject, erasure: str) -> None:
    problem = Problem(
        type="Conflict", subject="submission", verdict=f"has a row of a subject that was erased ({erasure})",
        way_out="its other rows, if there were any, can be submitted again",
    )  # fmt: skip
    change = text(
        "UPDATE submissions SET state = 'erased', request = :request, answer = 'null', problem = :problem, webhook = '', due = NULL WHERE id = :id"
    )
    with engine.begin() as db:
        values = {"request": EMPTY, "problem": msgspec.json.encode(problem).decode()}
        for name in _meant(db, subject):
            db.execute(change, {**values, "id": name})


def _meant(db: Connection, subject: Subject) -> list[str]:
    query = text(
        "SELECT id, endpoint, request FROM submissions WHERE state <> 'erased' AND endpoint LIKE :of ESCAPE '!'"
    )
    rows = db.execute(query, {"of": f"{like(subject.of)}%"}).mappings()
    return [row["id"] for row in rows if _names(subject, row)]


def _names(subject: Subject, row: Any) -> bool:
    """Say whether one of a submission's rows is the subject's."""
    request, own = msgspec.json.decode(row["request"], type=Request), subject.observations.get(row["endpoint"], ())
    return any(each.observation in own or subject.is_in(each.entities, each.features, request.unit) for each in request.rows)  # fmt: skip


def _count(db: Connection, erasure: str) -> int:
    query = text("SELECT count(*) FROM submissions WHERE state = 'erased' AND problem LIKE :named")
    return int(db.execute(query, {"named": f"%{erasure}%"}).scalar_one())


def routes(endpoints: Endpoints) -> list[Route]:
    def post(call: Call) -> Forgotten:
        return forget(endpoints, call, ids.name(call.path["project"], "project"), call.body)

    return [
        Route("POST", "/api/v1/forget/{project}", post, "admin", Forget, Forgotten, "Empty logged predictions and submissions of an erased subject; erasures ask it."),
    ]  # fmt: skip
