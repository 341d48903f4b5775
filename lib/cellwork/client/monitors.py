"""Drift, monitors and alerts over HTTP."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from datetime import datetime
from itertools import islice

from cellwork.client.base import Connection
from cellwork.wire.drift import Beside, Drift
from cellwork.wire.monitors import Alert, Deed, Monitor, MonitorsRequest, MonitorStatus, SilenceRequest
from cellwork.wire.service import EndpointService
from cellwork.wire.skew import Recomputed, Skew


class Monitors:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def drift(
        self, endpoint: str, *, version: int = 0, start: datetime | None = None, end: datetime | None = None,
        beside: Beside = "season",
    ) -> Drift:  # fmt: skip
        """The features of an endpoint's predictions beside its version's training dataset; default: its newest seven days."""
        asked = {"start": start and start.isoformat(), "end": end and end.isoformat(), "beside": beside}
        return self._to.call("cellwork", "GET", f"/api/v1/drift/{endpoint}", Drift, version=version or "", **asked)

    def drift_by_day(self, endpoint: str, *, version: int = 0) -> builtins.list[Drift]:
        """The same for each day (UTC) that has predictions, oldest first."""
        path = f"/api/v1/drift/{endpoint}/days"
        return self._to.call("cellwork", "GET", path, builtins.list[Drift], version=version or "")

    def skew(self, endpoint: str, *, limit: int = 1000) -> Skew:
        """Feature values as they were served beside those of a point-in-time join, over the newest `limit` predictions."""
        return self._to.call("cellwork", "GET", f"/api/v1/skew/{endpoint}", Skew, limit=limit)

    def service(self, endpoint: str, *, days: int = 7) -> EndpointService:
        """Predictions, times and fallbacks of an endpoint by the hour, and its deployments."""
        return self._to.call("cellwork", "GET", f"/api/v1/service/{endpoint}", EndpointService, days=days)

    def recompute(self, project: str, prediction: str) -> Recomputed:
        """Make a prediction's features anew from the raw batches it names; says whether they are what was logged."""
        return self._to.call("cellwork", "GET", f"/api/v1/recomputed/{project}/{prediction}", Recomputed)

    def apply(self, project: str, monitors: builtins.list[Monitor]) -> builtins.list[MonitorStatus]:
        body = MonitorsRequest(project=project, monitors=monitors)
        return self._to.call("cellwork", "PUT", f"/api/v1/monitors/{project}", builtins.list[MonitorStatus], body)

    def list(self, project: str = "") -> builtins.list[MonitorStatus]:
        return self._to.call("cellwork", "GET", "/api/v1/monitors", builtins.list[MonitorStatus], project=project)

    def check(self, name: str) -> MonitorStatus:
        """Let the monitor `project/name` look now."""
        return self._to.call("cellwork", "POST", f"/api/v1/monitors/{name}/check", MonitorStatus)

    def silence(self, name: str, until: datetime, reason: str = "") -> MonitorStatus:
        """Nothing is told of what `project/name` finds until then; its alerts are still kept. A past time ends it."""
        body = SilenceRequest(until=until, reason=reason)
        return self._to.call("cellwork", "POST", f"/api/v1/monitors/{name}/silence", MonitorStatus, body)

    def deeds(self, alert: str) -> builtins.list[Deed]:
        """Who was told of an alert, and what was done because of it."""
        return self._to.call("cellwork", "GET", f"/api/v1/alerts/{alert}/deeds", builtins.list[Deed])

    def alerts(self, project: str = "", state: str = "") -> Iterator[Alert]:
        """Alerts, newest first."""
        return self._to.listing("cellwork", "/api/v1/alerts", Alert, project=project, state=state)

    def alerts_in_view(self, project: str, newest: int = 50) -> builtins.list[Alert]:
        """Return every open alert of `project` (the newest 500 of them), then those of its `newest` that are resolved; each newest first."""
        waiting = list(islice(self.alerts(project, "open"), 500))
        done = [alert for alert in islice(self.alerts(project), newest) if alert.state != "open"]
        return waiting + done

    def resolve(self, alert: str) -> Alert:
        return self._to.call("cellwork", "POST", f"/api/v1/alerts/{alert}/resolve", Alert)
