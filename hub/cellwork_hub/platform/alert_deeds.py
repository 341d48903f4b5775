"""What follows from an alert: people and programs are told, an endpoint goes back to its previous version.

A deed is noted in the transaction of the alert's change, and done afterwards by a thread, again and again, ever later, until it succeeds
or is given up: at least once. Whoever is told twice is told the same `id`, and of one alert nobody is told the later before the earlier.
Projects are served side by side, each for a while and its rollbacks first, so who does not answer one project keeps no other waiting.
A rollback is done only while the version that the alert is about still answers, and only from the revision at which that was seen; so
it is done once, however often it is tried, and never undoes what somebody did meanwhile.
Starting a job needs nothing of this: jobs follow the event ``alert.raised``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import msgspec
from sqlalchemy import Connection, text

from cellwork import clock, notify
from cellwork.errors import CellworkError
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.monitors import Alert, Deed, Monitor
from cellwork_hub.loop import Loop
from cellwork_hub.platform import serving_hours
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Route

log = logging.getLogger("cellwork.alerts")
MIGRATION = (
    "CREATE TABLE alert_deeds (seq {serial}, alert TEXT NOT NULL, event TEXT NOT NULL, what TEXT NOT NULL, target {json} NOT NULL, "
    "said {json} NOT NULL, tries INTEGER NOT NULL, next BIGINT NOT NULL, done BIGINT, words TEXT NOT NULL)",
    "CREATE INDEX alert_deeds_alert ON alert_deeds (alert)",
)
IDLE_SECONDS = 1.0
MOST = 20
"""Deeds of a project that are tried in one turn."""
PROJECTS = 32
"""Projects that are served side by side."""
DUE = (
    "SELECT * FROM (SELECT d.*, a.project, row_number() OVER (PARTITION BY a.project ORDER BY d.what = 'rollback' DESC, d.tries, d.seq) AS place "
    "FROM alert_deeds d JOIN alerts a ON a.id = d.alert WHERE d.done IS NULL AND d.next <= :now AND NOT EXISTS (SELECT 1 FROM alert_deeds e "
    "WHERE e.alert = d.alert AND e.what = d.what AND e.target = d.target AND e.done IS NULL AND e.seq < d.seq)) AS due "
    "WHERE place <= :most ORDER BY place"
)
"""What waits behind an earlier deed of the same alert to the same target is not due."""


def routes(_: State) -> list[Route]:
    """Return none: `alerts` shows an alert's deeds."""
    return []


def note(db: Connection, monitor: Monitor, alert: Alert, event: str) -> None:
    """Note what follows from `event` (``raised``, ``resolved``) of `alert`, in the transaction of that."""
    for told in monitor.tell:
        if event not in told.on or (told.least == "critical" and alert.severity != "critical"):
            continue
        if told.webhook:
            _insert(db, alert, event, "webhook", told.webhook)
        for person in told.mail:  # each a deed of its own: one may be refused for now
            _insert(db, alert, event, "mail", [person])
    version = alert.evidence.get("version")
    if event == "raised" and monitor.then == "rollback" and alert.severity == "critical" and version:
        _insert(db, alert, event, "rollback", {"version": version, "models": alert.evidence.get("models", [])})


def _insert(db: Connection, alert: Alert, event: str, what: str, target: Any) -> None:
    said = {
        "alert": alert.id, "event": f"alert.{event}", "project": alert.project, "monitor": alert.monitor, "subject": alert.subject,
        "severity": alert.severity, "words": alert.words, "at": clock.now(),
    }  # fmt: skip
    values = {"a": alert.id, "e": event, "w": what, "t": _json(target), "s": _json(said)}
    db.execute(
        text(
            "INSERT INTO alert_deeds (alert, event, what, target, said, tries, next, words) VALUES (:a, :e, :w, :t, :s, 0, 0, '')"
        ),
        values,
    )


def of(state: State, alert: str) -> list[Deed]:
    with state.engine.connect() as db:
        rows = (
            db.execute(text("SELECT * FROM alert_deeds WHERE alert = :a ORDER BY seq"), {"a": alert}).mappings().all()
        )
    return [
        Deed(
            event=row["event"], what=row["what"], to=_named(row["what"], msgspec.json.decode(row["target"])), tries=row["tries"],
            done=None if row["done"] is None else moment(row["done"]), words=row["words"],
        )
        for row in rows
    ]  # fmt: skip


def _named(what: str, target: Any) -> str:
    """Return a target as others may see it: an address of a webhook may hold a secret behind its host."""
    if what == "rollback":
        return str(_version(target, "")[0])
    return notify.host(target) if what == "webhook" else ", ".join(target)


def _due(state: State) -> dict[str, list[dict[str, Any]]]:
    """Return some of what is due of every project."""
    with state.engine.connect() as db:
        due = db.execute(text(DUE), {"now": micros(clock.now()), "most": MOST}).mappings().all()
    projects: dict[str, list[dict[str, Any]]] = {}
    for row in due:
        projects.setdefault(row["project"], []).append(dict(row))
    return projects


def _try_some(state: State, rows: Sequence[dict[str, Any]]) -> int:
    """Try deeds of one project until all are tried or its time is over; returns how many are done now."""
    end, done = time.monotonic() + notify.SECONDS, 0
    for row in rows:
        if time.monotonic() > end:
            break
        done += _try(state, row)
    return done


def _try(state: State, row: dict[str, Any]) -> bool:
    target, said = msgspec.json.decode(row["target"]), msgspec.json.decode(row["said"])
    said["id"], said["url"] = f"{row['alert']}-{row['seq']}", link(state, said["subject"])
    try:
        words, succeeded = _do(state, row["what"], target, said), True
    except Exception as error:  # whatever one deed meets is its own try; those behind it are done
        words, succeeded = f"{type(error).__name__}: {error}".replace("\0", "\ufffd"), False
        unforeseen = not isinstance(error, OSError | CellworkError)
        log.warning("%s of alert %s did not succeed: %s", row["what"], row["alert"], error, exc_info=unforeseen)
    wait = None if succeeded else notify.wait(row["tries"] + 1)
    now = micros(clock.now())
    values = {"seq": row["seq"], "next": now + (wait or 0), "done": now if wait is None else None, "words": words[:500]}
    with state.engine.begin() as db:
        db.execute(
            text(
                "UPDATE alert_deeds SET tries = tries + 1, next = :next, done = :done, words = :words WHERE seq = :seq"
            ),
            values,
        )
    return succeeded


def link(state: State, subject: str) -> str:
    """Return where a person sees what an alert is about."""
    return f"{state.context.public_url}/services/dashboards/voila/render/model.ipynb?endpoint={quote(subject)}"


def _do(state: State, what: str, target: Any, said: dict[str, Any]) -> str:
    if what == "webhook":
        notify.post(state.home, target, said)
        return "arrived"
    if what == "mail":
        settings, verb = state.context.settings, said["event"].partition(".")[2]
        subject = f"[cellwork] {said['severity']}: {said['monitor']} of {said['project']} {verb}"
        content = f"{said['subject']}\n{said['words']}\n\n{said['url']}\ncellwork alert show {said['alert']}\n"
        notify.mail(settings.mail_server, settings.mail_from, target, id=said["id"], subject=subject, text=content)
        return "sent"
    return _roll_back(state, said["subject"], target, f"{said['alert']}: {said['words']}")


def models(state: State, endpoint: str, evidence: dict[str, Any]) -> list[str]:
    """Return the models that answered in the window of `evidence` under its version's number: versions are numbered model by model."""
    serving_hours.follow(state)
    start, end = (micros(clock.utc(evidence[key])) for key in ("start", "end"))
    query = text(
        "SELECT DISTINCT model FROM serving_hours WHERE endpoint = :e AND version = :v AND hour > :start AND hour <= :end ORDER BY model"
    )
    values = {"e": endpoint, "v": _number(evidence["version"]), "start": start - serving_hours.HOUR, "end": end}
    with state.engine.connect() as db:
        return list(db.execute(query, values).scalars())


def _number(version: str) -> int:
    return int(version.rpartition("@")[2])


def _version(target: Any, endpoint: str) -> tuple[str, list[str]]:
    """Return the version a rollback is about and its possible models; one noted before these were is of the endpoint's own."""
    return (target, [endpoint]) if isinstance(target, str) else (target["version"], target["models"])


def _roll_back(state: State, endpoint: str, target: Any, reason: str) -> str:
    version, among = _version(target, endpoint)
    with state.context.client("cellwork") as client:
        routes = client.endpoints.get(endpoint).routes
        if routes.live.version != _number(version) or (among and routes.live.name not in among):
            return f"not needed: {_full(routes.live)} answers"
        if len(among) != 1:
            known = ", ".join(among) or "no known model"
            return (
                f"not done: {known} answered as version {routes.live.version}; look: cellwork endpoint show {endpoint}"
            )
        now = client.endpoints.rollback(endpoint, reason[:500], revision=routes.revision)
    return f"{_full(now.live)} answers again, revision {now.revision}"


def _full(version: VersionRef) -> str:
    return f"{version.name}@{version.version}"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class Deeds(Loop):
    """The threads that do what is due: one looks, and gives each project that has none in hand to another."""

    def __init__(self, state: State) -> None:
        super().__init__("alert-deeds", self._look, idle=IDLE_SECONDS)
        self.state = state
        self._pool = ThreadPoolExecutor(PROJECTS, thread_name_prefix="alert-deeds")
        self._in_hand: dict[str, Future[int]] = {}

    def begin(self) -> list[Future[int]]:
        """Begin a turn of every project that has something due and none in hand; each returns how many deeds it did."""
        due = _due(self.state)
        fresh = {p: self._pool.submit(_try_some, self.state, due[p]) for p in due if p not in self._in_hand}
        self._in_hand |= fresh
        return list(fresh.values())

    def _look(self) -> bool:
        over = [project for project, turn in self._in_hand.items() if turn.done()]
        for project in over:
            error = self._in_hand.pop(project).exception()
            if error:
                log.error("the deeds of project %s could not go on", project, exc_info=error)
        self.begin()
        return False

    def stop(self, timeout: float = 30.0) -> None:
        super().stop(timeout)
        self._pool.shutdown(wait=False, cancel_futures=True)
