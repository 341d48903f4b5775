"""What each kind of monitor looks at. A check returns what it found, or raises when nothing can be found out yet.

An alert of drift or quality is about the endpoint, whichever version answers: a new version that is no better is no new alert, so what an
alert starts, such as a retraining, is not started again by its own result. Drift and quality look back from the newest prediction, so that a replayed past is judged like the present; whether anything came at
all is judged by the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec
from sqlalchemy import text

from cellwork import clock
from cellwork.errors import NotFound, near_miss
from cellwork.monitoring.ranking import auc
from cellwork.wire.business import BusinessMetric, MetricPoint
from cellwork.wire.drift import ColumnDrift
from cellwork.wire.evaluations import Metric
from cellwork.wire.monitors import Monitor, Severity
from cellwork_hub import gauges
from cellwork_hub.platform import batches, business, drift, judgements, outcomes, serving_hours
from cellwork_hub.platform.alerts import Finding
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment

MACHINE = ("disk", "memory")
MOST_IN_USE = 0.9
NAMED = 5
"""Columns, or versions, that an alert names; its evidence has all."""


def check(state: State, project: str, monitor: Monitor) -> tuple[list[Finding], str]:
    """Return what `monitor` finds, and in words what it looked at.

    Raises
    ------
    CellworkError
        Nothing can be found out: no prediction yet, too few outcomes, no dataset to compare with.
    """
    return _CHECKS[monitor.kind](state, project, monitor)


def _drift(state: State, project: str, monitor: Monitor) -> tuple[list[Finding], str]:
    serving_hours.follow(state)
    window, endpoint = clock.duration(monitor.window), f"{project}/{monitor.endpoint}"
    found = drift.of(state, endpoint, window=window, rules=monitor.rules, beside=monitor.beside)
    columns = [c for c in found.columns if not monitor.columns or c.column in monitor.columns]
    moved = [c for c in columns if c.verdict == "drift"]
    judged = sum(c.verdict != "not enough data" for c in columns)
    looked = f"{found.rows:,} predictions of {found.start:%F} to {found.end:%F} beside {found.reference}{f' at {found.season}' if found.season else ''}: {len(moved)} of {judged} columns drifted"
    if not judged:
        raise NotFound(
            "columns with enough predictions", found.subject, "are none", f"wait for {found.rules.least_rows}"
        )
    if not moved:
        return [], looked
    severity: Severity = "critical" if any(c.severity == "critical" for c in moved) else "warning"
    named = _listed([_column(c) for c in moved])
    evidence = {
        "version": found.subject,
        "rows": found.rows,
        "reference": found.reference,
        "columns": msgspec.to_builtins(moved),
    }
    evidence |= {"start": found.start.isoformat(), "end": found.end.isoformat()}
    return [Finding(subject=endpoint, severity=severity, words=f"{found.subject}: {named}", evidence=evidence)], looked


def _listed(words: list[str]) -> str:
    return "; ".join(words[:NAMED]) + ("; …" if len(words) > NAMED else "")


def _column(column: ColumnDrift) -> str:
    return f"{column.column} {', '.join(column.reasons)}"


def _quality(state: State, project: str, monitor: Monitor) -> tuple[list[Finding], str]:
    outcomes.mirror(state)
    endpoint = f"{project}/{monitor.endpoint}"
    model, version, start, end, measured, known = _measured(state, endpoint, monitor)
    needed = _needed(state, model, version, monitor)
    looked = f"ROC AUC {measured.value:.3f} ({measured.low:.3f} to {measured.high:.3f}) of {known:,} outcomes, {start:%F} to {end:%F}"
    if needed is None or measured.high >= needed:
        return [], looked
    evidence = {
        "version": f"{endpoint}@{version}",
        "auc": msgspec.to_builtins(measured),
        "needed": needed,
        "outcomes": known,
    }
    evidence |= {"start": start.isoformat(), "end": end.isoformat()}
    words = f"{endpoint}@{version}: {looked}: surely below {needed:.3f}"
    return [Finding(subject=endpoint, severity=monitor.severity, words=words, evidence=evidence)], looked


def _measured(state: State, endpoint: str, monitor: Monitor) -> tuple[str, int, datetime, datetime, Metric, int]:
    """Return model, version, start, end, ROC AUC and number of outcomes of the version whose outcomes are the newest."""
    joined = "FROM joined WHERE endpoint = ? AND counts"
    now = micros(clock.now())  # what is dated after now has no outcome yet, whatever was sent
    last = state.outcomes.rows(
        f"SELECT model, version, ts {joined} AND ts <= ? ORDER BY ts DESC, seq DESC LIMIT 1", endpoint, now
    )
    if not last.height:
        raise NotFound("endpoint", endpoint, "has no outcome yet", "send them: cellwork.monitoring.outcomes.send")
    model, version, newest = last.row(0)
    start = newest - _micros(monitor)
    asked = f"SELECT score, outcome {joined} AND model = ? AND version = ? AND ts > ? AND ts <= ?"
    known = state.outcomes.rows(asked, endpoint, model, version, start, newest)
    if known.height < monitor.least_outcomes:
        raise NotFound(
            f"outcomes of {endpoint}@{version}", known.height, f"are fewer than {monitor.least_outcomes}", "wait"
        )
    area = auc(known["outcome"], known["score"])
    if area is None:
        raise NotFound(f"ROC AUC of {endpoint}@{version}", "", "is not defined: all outcomes are alike", "wait")
    return model, version, moment(start), moment(newest), area, known.height


def _micros(monitor: Monitor) -> int:
    return round(clock.duration(monitor.window).total_seconds() * 1_000_000)


def _needed(state: State, model: str, version: int, monitor: Monitor) -> float | None:
    """Return below what an area is an alert: the greater of `least` and the version's evaluation on a holdout alone minus `drop`."""
    bounds = [monitor.least] if monitor.least is not None else []
    if monitor.drop is not None:
        alone = "name = :n AND version = :v AND holdout NOT LIKE '%+%'"
        found = judgements.select(state, alone, 1, n=model, v=version)
        if area := found[0].metrics.get("roc_auc") if found else None:
            bounds.append(area.value - monitor.drop)
    return max(bounds, default=None)


def _predictions(state: State, project: str, monitor: Monitor) -> tuple[list[Finding], str]:
    serving_hours.follow(state)
    endpoint = f"{project}/{monitor.endpoint}"
    with state.engine.connect() as db:
        query = text("SELECT max(logged) FROM serving_hours WHERE endpoint = :s")
        newest = db.execute(query, {"s": endpoint}).scalar()
    return _absent(endpoint, monitor, "prediction", None if newest is None else moment(newest))


def _outcomes(state: State, project: str, monitor: Monitor) -> tuple[list[Finding], str]:
    endpoint = f"{project}/{monitor.endpoint}"
    newest = state.outcomes.rows("SELECT max(arrived_at) FROM outcomes WHERE endpoint = ?", endpoint).item()
    return _absent(endpoint, monitor, "outcome", None if newest is None else moment(newest))


def _batches(state: State, project: str, monitor: Monitor) -> tuple[list[Finding], str]:
    newest = max((batch.at for batch in batches.current(state, project, monitor.dataset)), default=None)
    return _absent(f"{project}/{monitor.dataset}", monitor, "batch", newest)


def _metric(state: State, project: str, monitor: Monitor) -> tuple[list[Finding], str]:
    """Look at the newest day: at all its points, since a metric may have one for each version."""
    endpoint = f"{project}/{monitor.endpoint}"
    known = {each.name: each for each in business.of(state, endpoint)}
    if monitor.metric not in known or not known[monitor.metric].points:
        raise NotFound(f"metric of {endpoint}", monitor.metric, "was never sent", near_miss(monitor.metric, known))
    found = known[monitor.metric]
    day = max(point.day for point in found.points)
    newest = [(point, _point(found, point)) for point in found.points if point.day == day]
    looked = _listed([words for _, words in newest])
    past = [(point, f"{words}: {bound}") for point, words in newest if (bound := _past(monitor, point.value))]
    if not past:
        return [], looked
    beyond = [point for point, _ in past]
    evidence = {"day": day, "value": beyond[0].value, "least": monitor.least, "most": monitor.most}
    evidence["points"] = msgspec.to_builtins(beyond)
    words = _listed([words for _, words in past])
    return [Finding(subject=endpoint, severity=monitor.severity, words=words, evidence=evidence)], looked


def _point(metric: BusinessMetric, point: MetricPoint) -> str:
    of = f"{metric.endpoint}@{point.version}" if point.version else metric.endpoint
    return f"{metric.name} of {of} was {f'{point.value:g} {metric.unit}'.strip()} on {point.day}"


def _past(monitor: Monitor, value: float) -> str:
    """Return in words which bound of `monitor` the value is past, if any."""
    if monitor.least is not None and value < monitor.least:
        return f"below {monitor.least:g}"
    return f"above {monitor.most:g}" if monitor.most is not None and value > monitor.most else ""


def _machine(state: State, _: str, monitor: Monitor) -> tuple[list[Finding], str]:
    """Look at how full the disk under the platform's folder is, or the memory."""
    sizes = {
        labels["state"]: value
        for name, labels, value in gauges.machine(state.home.root)
        if name == f"cellwork_{monitor.kind}_bytes"
    }
    total, most = sizes["used"] + sizes["free"], monitor.most or MOST_IN_USE
    used = sizes["used"] / total
    words = f"{used:.1%} of {total / 1e9:,.0f} GB {monitor.kind} is in use, {sizes['free'] / 1e9:,.1f} GB are free"
    if used <= most:
        return [], words
    evidence = {"used_bytes": sizes["used"], "free_bytes": sizes["free"], "most": most}
    return [
        Finding(
            subject=f"machine:{monitor.kind}",
            severity=monitor.severity,
            words=f"{words}: above {most:.0%}",
            evidence=evidence,
        )
    ], words


def _absent(subject: str, monitor: Monitor, what: str, newest: datetime | None) -> tuple[list[Finding], str]:
    if newest is None:
        raise NotFound(what, subject, "never came", "its monitor begins with the first")
    words = f"the newest {what} of {subject} came {newest:%F %T} UTC"
    if clock.now() - newest <= clock.duration(monitor.window):
        return [], words
    found = Finding(
        subject=subject, severity=monitor.severity, words=f"{words}: none within {monitor.window}",
        evidence={"newest": newest.isoformat(), "window": monitor.window},
    )  # fmt: skip
    return [found], words


_CHECKS: dict[str, Callable[[State, str, Monitor], tuple[list[Finding], str]]] = {
    "drift": _drift,
    "quality": _quality,
    "predictions": _predictions,
    "outcomes": _outcomes,
    "batches": _batches,
    "metric": _metric,
    **dict.fromkeys(MACHINE, _machine),
}
