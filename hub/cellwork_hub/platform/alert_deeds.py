"""What follows from an alert: people and programs are told, an endpoint goes back to its previous version.

A deed is noted in the transaction of the alert's change, and done afterwards by a thread, again and again, ever later, until it succeeds
or is given up: at least once. Whoever is told twice is told the same `id`. A rollback is done only while the version that the alert is
about still answers; so it is done once, however often it is tried, and never undoes what somebody did meanwhile.
Starting a job needs nothing of this: jobs follow the event ``alert.raised``.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

import msgspec
from sqlalchemy import Connection, text

from cellwork import clock, notify
from cellwork.errors import CellworkError
from cellwork.wire.monitors import Alert, Deed, Monitor
from cellwork_hub.loop import Loop
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
AT_ONCE = 20


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
        if told.mail:
            _insert(db, alert, event, "mail", told.mail)
    version = alert.evidence.get("version")
    if event == "raised" and monitor.then == "rollback" and alert.severity == "critical" and version:
        _insert(db, alert, event, "rollback", version)


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
    return notify.host(target) if what == "webhook" else ", ".join(target) if what == "mail" else target


def do_waiting(state: State) -> int:
    """Try each deed that is due, once; returns how many are done now."""
    now = micros(clock.now())
    with state.engine.connect() as db:
        query = text("SELECT * FROM alert_deeds WHERE done IS NULL AND next <= :now ORDER BY seq LIMIT :most")
        due = db.execute(query, {"now": now, "most": AT_ONCE}).mappings().all()
    return sum(_try(state, dict(row)) for row in due)


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


def _roll_back(state: State, endpoint: str, version: str, reason: str) -> str:
    with state.context.client("cellwork") as client:
        routes = client.endpoints.get(endpoint).routes
        if not version.endswith(f"@{routes.live.version}"):
            return f"not needed: version {routes.live.version} answers"
        now = client.endpoints.rollback(endpoint, reason[:500])
    return f"version {now.live.version} answers again, revision {now.revision}"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class Deeds(Loop):
    """The thread that does what is due."""

    def __init__(self, state: State) -> None:
        super().__init__("alert-deeds", lambda: do_waiting(state) >= AT_ONCE, idle=IDLE_SECONDS)
