"""Monitors: checks that are repeated, what they last found, and the thread that repeats them: by the clock, and when an event says
that there is something new to see.

A check reads; what it found, the alerts that follow and the time of the next one are written in one transaction. A check that dies
before it is repeated as soon as the service is back: the same findings make no second alert.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from sqlalchemy import Connection, text

from cellwork import clock, ids, notify
from cellwork.errors import BadInput, CellworkError, NotFound, near_miss
from cellwork.wire.monitors import Monitor, MonitorsRequest, MonitorStatus
from cellwork_hub import records
from cellwork_hub.loop import Loop
from cellwork_hub.platform import alert_deeds, alerts, checks
from cellwork_hub.platform.alerts import Finding
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

log = logging.getLogger("cellwork.monitors")
MOST_WORDS = 500

MIGRATION = (
    "CREATE TABLE monitors (project TEXT NOT NULL, name TEXT NOT NULL, definition {json} NOT NULL, owner TEXT NOT NULL, state TEXT NOT NULL, "
    "words TEXT NOT NULL, checked BIGINT, next BIGINT NOT NULL, silenced BIGINT, PRIMARY KEY (project, name))",
)
IDLE_SECONDS = 1.0
PAUSE_SECONDS = 10
CAUSES: dict[str, tuple[str, ...]] = {"outcomes.arrived": ("quality", "drift", "outcomes"), "batch.ready": ("batches",)}
"""Event -> the kinds of monitors of its endpoint or data set that look then, without waiting for their time."""
NEEDS: dict[str, tuple[str, ...]] = {
    "batches": ("dataset",),
    "metric": ("endpoint", "metric"),
    "disk": (),
    "memory": (),
}
"""Kind -> what it can't be without, where that is not its endpoint."""
MOST = 200
"""Monitors of a project."""


def routes(state: State) -> list[Route]:
    def put(call: Call) -> list[MonitorStatus]:
        return apply(state, call, call.path["project"], call.body)

    def read(call: Call) -> list[MonitorStatus]:
        call.may_enter("")
        found = _select(state, "(:p = '' OR project = :p)", p=call.query.get("project", ""))
        return [each for each in found if call.may_enter(each.project)]

    def check_now(call: Call) -> MonitorStatus:
        found = get(state, call.path["project"], call.path["name"])
        look(state, found.project, found.monitor)
        return get(state, found.project, found.monitor.name)

    return [
        Route("PUT", "/api/v1/monitors/{project}", put, "monitors:write", MonitorsRequest, list[MonitorStatus], "Make these the monitors of a project."),
        Route("GET", "/api/v1/monitors", read, "monitors:read", None, list[MonitorStatus], "Monitors and what they last found."),
        Route("POST", "/api/v1/monitors/{project}/{name}/check", check_now, "monitors:write", None, MonitorStatus, "Let a monitor look now."),
    ]  # fmt: skip


def apply(state: State, call: Call, project: str, request: MonitorsRequest) -> list[MonitorStatus]:
    """Make the named monitors those of `project`; one that did not change keeps what it found."""
    if request.project != project:
        raise BadInput("project of the monitors", request.project, f"is not {project!r} of the path", "send them there")
    ids.name(project, "project")
    for monitor in request.monitors:
        _refuse_wrong(monitor)
    names = [monitor.name for monitor in request.monitors]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput("monitors", ", ".join(doubled), "are there twice", "give each a name of its own")
    if len(names) > MOST:
        raise BadInput("monitors", len(names), f"are more than {MOST}", "watch what you would act on")
    held = {each.monitor.name: each.monitor for each in _select(state, "project = :p", p=project)}
    with state.engine.begin() as db:
        for gone in sorted(set(held) - set(names)):
            alerts.keep(db, project, gone, [], silent=False)
            db.execute(text("DELETE FROM monitors WHERE project = :p AND name = :n"), {"p": project, "n": gone})
        for monitor in request.monitors:
            if held.get(monitor.name) != monitor:
                _write(db, project, monitor, call.principal.name)
        records.audit(db, call, "monitors.apply", project, before=list(held.values()), after=request.monitors)
    return _select(state, "project = :p", p=project)


def _refuse_wrong(monitor: Monitor) -> None:
    ids.name(monitor.name, "monitor")
    subject = f"monitor {monitor.name!r}"
    for needed in NEEDS.get(monitor.kind, ("endpoint",)):
        if not getattr(monitor, needed):
            raise BadInput(subject, monitor.kind, f"needs its {needed}", f"write {needed}: and a short name")
        ids.name(getattr(monitor, needed), needed)
    clock.duration(monitor.window)
    if clock.duration(monitor.every).total_seconds() < 10:
        raise BadInput(f"every of {subject}", monitor.every, "is too often", "write 10s or more")
    if monitor.kind == "quality" and monitor.least is None and monitor.drop is None:
        raise BadInput(subject, "quality", "needs a bound", "write least: 0.7, or drop: 0.05")
    if monitor.kind == "metric" and monitor.least is None and monitor.most is None:
        raise BadInput(subject, "metric", "needs a bound", "write least: 100, or most: 500")
    if monitor.kind in checks.MACHINE and not 0 < (monitor.most or checks.MOST_IN_USE) <= 1:
        raise BadInput(f"most of {subject}", monitor.most, "is no share", "write most: 0.9")
    if monitor.then and monitor.kind not in ("drift", "quality"):
        raise BadInput(
            f"then of {subject}",
            monitor.then,
            f"does not go with {monitor.kind}",
            "it is about a version: of drift or quality",
        )
    if monitor.then and monitor.kind == "quality" and monitor.severity != "critical":
        raise BadInput(
            f"then of {subject}", monitor.then, "is done of critical alerts only", "write severity: critical"
        )
    for told in monitor.tell:
        if bool(told.webhook) == bool(told.mail):
            way_out = "write webhook: https://… or mail: [ada@example.org]"
            raise BadInput(f"tell of {subject}", told.webhook, "is not one address", way_out)
        if told.webhook:
            notify.check_address(told.webhook)
        for address in told.mail:
            notify.check_mail(address)


def _write(db: Any, project: str, monitor: Monitor, owner: str) -> None:
    db.execute(
        text(
            "INSERT INTO monitors (project, name, definition, owner, state, words, next) VALUES (:p, :n, :d, :o, 'new', '', 0) "
            "ON CONFLICT (project, name) DO UPDATE SET definition = excluded.definition, owner = excluded.owner, state = 'new', words = '', next = 0"
        ),
        {"p": project, "n": monitor.name, "d": msgspec.json.encode(monitor).decode(), "o": owner},
    )


def get(state: State, project: str, name: str) -> MonitorStatus:
    found = _select(state, "project = :p", p=project)
    for each in found:
        if each.monitor.name == name:
            return each
    raise NotFound("monitor", f"{project}/{name}", "does not exist", near_miss(name, [m.monitor.name for m in found]))


def look(state: State, project: str, monitor: Monitor) -> list[Finding]:
    """Check once, keep what was found and what follows from it."""
    found: list[Finding] = []
    try:
        found, words = checks.check(state, project, monitor)
        if monitor.then:
            found = [_with_models(state, finding) for finding in found]
        now = "alert" if found else "fine"
    except CellworkError as error:
        now, words = "unknown", str(error)
    except Exception as error:  # whatever one monitor meets, the others look
        log.exception("monitor %s of %s could not look", monitor.name, project)
        now, words = "unknown", f"could not look: {type(error).__name__}: {error}"[:MOST_WORDS]
    with state.engine.begin() as db:
        row = db.execute(
            text("SELECT silenced, definition FROM monitors WHERE project = :p AND name = :n"),
            {"p": project, "n": monitor.name},
        ).first()
        if row is None or msgspec.json.decode(row.definition, type=Monitor) != monitor:
            return []  # taken down or changed meanwhile: the new one looks for itself
        at = micros(clock.now())
        new: list[Finding] = []
        if now != "unknown":
            new = alerts.keep(db, project, monitor.name, found, silent=(row.silenced or 0) > at)
        following = at + round(clock.duration(monitor.every).total_seconds() * 1_000_000)
        db.execute(
            text(
                "UPDATE monitors SET state = :s, words = :w, checked = :at, next = :f WHERE project = :p AND name = :n"
            ),
            {"s": now, "w": words, "at": at, "f": following, "p": project, "n": monitor.name},
        )
        for finding in new if monitor.kind == "drift" else []:
            records.event(db, "drift.found", project, finding.subject, monitor=monitor.name, words=finding.words)
    return found


def _with_models(state: State, finding: Finding) -> Finding:
    """Return `finding` saying which models its version may be of: what follows undoes no other one's."""
    models = alert_deeds.models(state, finding.subject, finding.evidence)
    return msgspec.structs.replace(finding, evidence=finding.evidence | {"models": models})


def _select(state: State, where: str, **values: Any) -> list[MonitorStatus]:
    with state.engine.connect() as db:
        return _rows(db, where, **values)


def _rows(db: Connection, where: str, **values: Any) -> list[MonitorStatus]:
    rows = db.execute(text(f"SELECT * FROM monitors WHERE {where} ORDER BY project, name"), values).mappings()
    return [
        MonitorStatus(
            project=row["project"], monitor=msgspec.json.decode(row["definition"], type=Monitor), state=row["state"],
            words=row["words"], checked=None if row["checked"] is None else moment(row["checked"]), owner=row["owner"],
            silenced_until=None if (row["silenced"] or 0) <= micros(clock.now()) else moment(row["silenced"]),
        )
        for row in rows
    ]  # fmt: skip


class Watch(Loop):
    """The thread that lets each monitor look when it is due, and at once when something happens that it looks at."""

    def __init__(self, state: State) -> None:
        super().__init__("monitors", self._look, idle=IDLE_SECONDS)
        self.state, self._seen = state, 0

    def prepare(self) -> None:
        with self.state.engine.connect() as db:
            self._seen = db.execute(text("SELECT coalesce(max(seq), 0) FROM events")).scalar_one()

    def _look(self) -> bool:
        self._seen = hurry(self.state, self._seen)
        for due in _select(self.state, "next <= :now", now=micros(clock.now())):
            if self.stopping.is_set():
                break
            try:
                look(self.state, due.project, due.monitor)
            except Exception:  # it is due again at the next turn, and so are those behind it now
                log.exception("what monitor %s of %s found could not be kept", due.monitor.name, due.project)
        return False


def hurry(state: State, after: int) -> int:
    """Make due what looks at something that happened after the event `after`; returns the last event.

    A monitor that has just looked waits `PAUSE_SECONDS`, however much happens.
    """
    happened: set[tuple[str, str, str]] = set()
    since = after
    for name in CAUSES:
        for event in records.events(state.engine, since, name):
            about = event.data["dataset"] if name == "batch.ready" else event.subject.partition("/")[2]
            happened.add((event.project, name, about))
            after = max(after, event.seq)
    if not happened:
        return after
    with state.engine.begin() as db:
        for each in _rows(db, "state <> ''"):
            caused = {
                (each.project, name, each.monitor.endpoint or each.monitor.dataset)
                for name in CAUSES
                if each.monitor.kind in CAUSES[name]
            }
            if caused & happened:
                values = {"p": each.project, "n": each.monitor.name, "soon": _soon(each)}
                db.execute(
                    text("UPDATE monitors SET next = :soon WHERE project = :p AND name = :n AND next > :soon"), values
                )
    return after


def _soon(status: MonitorStatus) -> int:
    looked = micros(status.checked) if status.checked else 0
    return max(micros(clock.now()), looked + PAUSE_SECONDS * 1_000_000)
