"""Alerts: opened once, counted while they last, resolved by the monitor that no longer finds them, or by a person.

At most one is open for a monitor and a subject (a unique index holds it). Opening, becoming critical and resolving are events,
which start jobs and reach whoever listens; what is found again only counts. A silenced monitor's alerts are kept without events: what
is still found when the silence is over is told then, and only what was told is told to be over.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
from sqlalchemy import Connection, text

from cellwork import clock, ids
from cellwork.errors import NotFound
from cellwork.wire import Struct
from cellwork.wire.monitors import Alert, Deed, Monitor, Severity
from cellwork_hub import records
from cellwork_hub.gauges import Gauge
from cellwork_hub.platform import alert_deeds
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE alerts (seq {serial}, id TEXT UNIQUE NOT NULL, project TEXT NOT NULL, monitor TEXT NOT NULL, subject TEXT NOT NULL, "
    "severity TEXT NOT NULL, state TEXT NOT NULL, words TEXT NOT NULL, opened BIGINT NOT NULL, last BIGINT NOT NULL, times INTEGER NOT NULL, "
    "resolved BIGINT, by_whom TEXT NOT NULL, evidence {json} NOT NULL)",
    "CREATE UNIQUE INDEX alerts_open ON alerts (project, monitor, subject) WHERE state = 'open'",
)


class Finding(Struct):
    """What a monitor found about a subject."""

    subject: str
    severity: Severity
    words: str
    evidence: dict[str, Any] = {}


def routes(state: State) -> list[Route]:
    def read(call: Call) -> list[Alert]:
        call.may_enter("")
        limit = call.limit(100, 1000)
        found = _select(
            state, "(:p = '' OR project = :p) AND (:s = '' OR state = :s) AND (:c = '' OR seq < (SELECT seq FROM alerts WHERE id = :c))", limit,
            p=call.query.get("project", ""), s=call.query.get("state", ""), c=call.query.get("cursor", ""),
        )  # fmt: skip
        if len(found) == limit:
            call.next_page(found[-1].id)
        return [alert for alert in found if call.may_enter(alert.project)]

    def one(call: Call) -> Alert:
        found = get(state, call.path["alert"])
        call.enter(found.project)
        return found

    def resolve(call: Call) -> Alert:
        before = one(call)
        if before.state == "open":
            with state.engine.begin() as db:
                _close(db, before, f"{call.principal.kind}:{call.principal.name}", silent=False)
                records.audit(db, call, "alert.resolve", before.id, before=before.words)
        return get(state, before.id)

    def deeds(call: Call) -> list[Deed]:
        return alert_deeds.of(state, one(call).id)

    return [
        Route("GET", "/api/v1/alerts/{alert}/deeds", deeds, "monitors:read", None, list[Deed], "Who was told of an alert, and what was done."),
        Route("GET", "/api/v1/alerts", read, "monitors:read", None, list[Alert], "Alerts, newest first."),
        Route("GET", "/api/v1/alerts/{alert}", one, "monitors:read", None, Alert, "One alert with what its monitor saw."),
        Route("POST", "/api/v1/alerts/{alert}/resolve", resolve, "monitors:write", None, Alert, "Resolve an alert; it opens again if it is found again."),
    ]  # fmt: skip


def gauges(state: State) -> list[Gauge]:
    """Return how many alerts are open, by severity."""
    with state.engine.connect() as db:
        rows = db.execute(
            text("SELECT severity, count(*) AS alerts FROM alerts WHERE state = 'open' GROUP BY severity")
        ).all()
    known = {row.severity: row.alerts for row in rows}
    return [("cellwork_alerts_open", {"severity": name}, known.get(name, 0)) for name in get_args(Severity)]


def get(state: State, alert: str) -> Alert:
    found = _select(state, "id = :id", 1, id=ids.check(alert, "alr"))
    if not found:
        raise NotFound("alert", alert, "does not exist", "look at: cellwork alert list")
    return found[0]


def keep(db: Connection, project: str, monitor: str, findings: list[Finding], *, silent: bool) -> list[Finding]:
    """Make the open alerts of a monitor what it finds now: open, count, resolve; in the caller's transaction.

    Whoever is `silent` tells nothing now; what is not over by then is told by the first that is not. Returns what was not found before.
    """
    rows = db.execute(
        text("SELECT * FROM alerts WHERE project = :p AND monitor = :m AND state = 'open'"),
        {"p": project, "m": monitor},
    ).mappings()
    held = {row["subject"]: _alert(row) for row in rows}
    for finding in findings:
        if finding.subject in held:
            _again(db, held[finding.subject], finding, silent=silent)
        else:
            _open(db, project, monitor, finding, silent=silent)
    for subject, alert in held.items():
        if subject not in {finding.subject for finding in findings}:
            _close(db, alert, "monitor", silent=silent)
    return [finding for finding in findings if finding.subject not in held]


def _open(db: Connection, project: str, monitor: str, finding: Finding, *, silent: bool) -> None:
    name, now = ids.new("alr"), micros(clock.now())
    values = {"id": name, "p": project, "m": monitor, "now": now, **_said(finding), "subject": finding.subject}
    db.execute(
        text(
            "INSERT INTO alerts (id, project, monitor, subject, severity, state, words, opened, last, times, by_whom, evidence, told) "
            "VALUES (:id, :p, :m, :subject, :severity, 'open', :words, :now, :now, 1, '', :evidence, '')"
        ),
        values,
    )
    if not silent:
        _raise(db, name)


def _again(db: Connection, alert: Alert, finding: Finding, *, silent: bool) -> None:
    told = _told(db, alert)
    if told and finding.severity == "warning":
        told = "warning"  # should it become critical again, that is told again
    db.execute(
        text(
            "UPDATE alerts SET severity = :severity, words = :words, evidence = :evidence, last = :now, times = times + 1, told = :told "
            "WHERE id = :id"
        ),
        {**_said(finding), "now": micros(clock.now()), "id": alert.id, "told": told},
    )
    if not silent and told in ("", "warning") and told != finding.severity:
        _raise(db, alert.id)


def _close(db: Connection, alert: Alert, by: str, *, silent: bool) -> None:
    db.execute(
        text("UPDATE alerts SET state = 'resolved', resolved = :now, by_whom = :by WHERE id = :id"),
        {"now": micros(clock.now()), "by": by, "id": alert.id},
    )
    if not silent and _told(db, alert):
        _tell(db, "resolved", alert)


def _told(db: Connection, alert: Alert) -> str:
    """Return the severity of `alert` that was last told; empty if nobody was told of it."""
    query = text("SELECT coalesce(told, severity) FROM alerts WHERE id = :id")
    return str(db.execute(query, {"id": alert.id}).scalar_one())


def _raise(db: Connection, alert: str) -> None:
    db.execute(text("UPDATE alerts SET told = severity WHERE id = :id"), {"id": alert})
    _tell(db, "raised", _now(db, alert))


def _tell(db: Connection, event: Literal["raised", "resolved"], alert: Alert) -> None:
    """Write the event, and what follows from it by the monitor's own words."""
    said = {
        "alert": alert.id,
        "monitor": alert.monitor,
        "about": alert.subject,
        "severity": alert.severity,
        "words": alert.words,
    }
    records.event(db, f"alert.{event}", alert.project, alert.id, **said)
    query = text("SELECT definition FROM monitors WHERE project = :p AND name = :n")
    definition = db.execute(query, {"p": alert.project, "n": alert.monitor}).scalar()
    if definition:
        alert_deeds.note(db, msgspec.json.decode(definition, type=Monitor), alert, event)


def _now(db: Connection, alert: str) -> Alert:
    return _alert(db.execute(text("SELECT * FROM alerts WHERE id = :id"), {"id": alert}).mappings().one())


def _said(finding: Finding) -> dict[str, Any]:
    evidence = msgspec.json.encode(finding.evidence).decode()
    return {"severity": finding.severity, "words": finding.words, "evidence": evidence}


def _select(state: State, where: str, limit: int, **values: Any) -> list[Alert]:
    with state.engine.connect() as db:
        query = text(f"SELECT * FROM alerts WHERE {where} ORDER BY seq DESC LIMIT {int(limit)}")
        return [_alert(row) for row in db.execute(query, values).mappings()]


def _alert(row: Any) -> Alert:
    return Alert(
        id=row["id"], project=row["project"], monitor=row["monitor"], subject=row["subject"], severity=row["severity"],
        state=row["state"], words=row["words"], opened=moment(row["opened"]), last=moment(row["last"]), times=row["times"],
        resolved=None if row["resolved"] is None else moment(row["resolved"]), by=row["by_whom"],
        evidence=msgspec.json.decode(row["evidence"]),
    )  # fmt: skip
