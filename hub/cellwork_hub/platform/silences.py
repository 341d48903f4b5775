"""Silences: until one ends, nobody is told of what its monitor finds; the alerts are kept all the same.

A silence keeps an alert from being told, never for good: what is still found when it ends is told then, and what became critical in it
(`alerts.keep`). What nobody was told of is not told to be over.
"""

from __future__ import annotations

from sqlalchemy import text

from cellwork import clock
from cellwork.wire.monitors import MonitorStatus, SilenceRequest
from cellwork_hub import records
from cellwork_hub.platform import monitors
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MIGRATION = ("ALTER TABLE alerts ADD COLUMN told TEXT",)
"""Of the table of `alerts`, whose own number is taken: the severity that was last told, '' of none; NULL is from before, and was told."""


def routes(state: State) -> list[Route]:
    def silence(call: Call) -> MonitorStatus:
        return _silence(state, call, monitors.get(state, call.path["project"], call.path["name"]), call.body)

    return [
        Route("POST", "/api/v1/monitors/{project}/{name}/silence", silence, "monitors:write", SilenceRequest, MonitorStatus, "Tell nothing of what it finds until then."),
    ]  # fmt: skip


def _silence(state: State, call: Call, found: MonitorStatus, request: SilenceRequest) -> MonitorStatus:
    until = micros(clock.utc(request.until))
    with state.engine.begin() as db:
        db.execute(
            text("UPDATE monitors SET silenced = :u WHERE project = :p AND name = :n"),
            {"u": until, "p": found.project, "n": found.monitor.name},
        )
        subject = f"{found.project}/{found.monitor.name}"
        records.audit(db, call, "monitor.silence", subject, after=moment(until).isoformat(), reason=request.reason)
    return monitors.get(state, found.project, found.monitor.name)
