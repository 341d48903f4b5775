"""`cellwork monitor` and `cellwork alert`: what is watched, what was found, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from cellwork import clock, project
from cellwork.cli import show
from cellwork.client import connect
from cellwork.errors import BadInput
from cellwork.monitoring import definitions
from cellwork.wire.drift import Beside, Drift
from cellwork.wire.monitors import MonitorStatus


@click.group()
def monitor() -> None:
    """Monitors: drift, quality, and what should have come and did not.

    Example: cellwork monitor drift flights/delay
    """


@monitor.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@show.as_json
def apply(file: Path | None, json: bool) -> None:
    """Make the monitors of FILE (default: monitors.yaml of the project here) those of its project.

    One that the file does not name any more is taken down.

    Example: cellwork monitor apply monitors.yaml
    """
    path = file or project.find().folder / definitions.FILE
    found = connect().monitors.apply(project.find(path.absolute().parent).name, definitions.read(path))
    return show.document(found) if json else _table(found)


@monitor.command("list")
@click.option("--project", "name", default="", help="Only those of this project.")
@show.as_json
def list_(name: str, json: bool) -> None:
    """Every monitor and what it last found.

    Example: cellwork monitor list --project flights
    """
    found = connect().monitors.list(name)
    return show.document(found) if json else _table(found)


@monitor.command()
@click.argument("name", metavar="PROJECT/NAME")
@show.as_json
def check(name: str, json: bool) -> None:
    """Let a monitor look now; exit code 3 if it finds something.

    Example: cellwork monitor check flights/delay-drift
    """
    found = connect().monitors.check(name)
    if json:
        show.document(found)
    else:
        click.echo(f"{name}: {found.state}\n{found.words}")
    raise SystemExit(3 if found.state == "alert" else 0)


@monitor.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.option("--for", "length", default="1d", help="How long, such as 2h or 7d; 0 ends it.", show_default=True)
@click.option("--reason", default="", help="Why; kept in the audit.")
@show.as_json
def silence(name: str, length: str, reason: str, json: bool) -> None:
    """Tell nobody of what a monitor finds for a while; its alerts are kept all the same.

    Example: cellwork monitor silence flights/delay-drift --for 7d --reason "holidays"
    """
    until = clock.now() if length == "0" else clock.now() + clock.duration(length)
    found = connect().monitors.silence(name, until, reason)
    if json:
        return show.document(found)
    if found.silenced_until is None:
        return click.echo(f"{name} is told again")
    return click.echo(f"{name} is silent until {show.text(found.silenced_until)}; end it with: --for 0")


@monitor.command()
@click.argument("endpoint", metavar="PROJECT/ENDPOINT")
@click.option("--version", type=int, default=0, help="Default: the version that answered last.")
@click.option("--start", default="", help="Such as 2013-12-01T00:00:00Z; default: seven days before the end.")
@click.option("--end", default="", help="Default: the newest prediction.")
@click.option(
    "--beside", type=click.Choice(get_args(Beside)), default="season", show_default=True,
    help="The training dataset at the same hours of the week, all of it, or the window before.",
)  # fmt: skip
@click.option("--days", is_flag=True, help="Day by day.")
@show.as_json
def drift(endpoint: str, version: int, start: str, end: str, beside: Beside, days: bool, json: bool) -> None:
    """What an endpoint predicts from, beside the dataset its version was trained on.

    Example: cellwork monitor drift flights/delay --days
    """
    monitors = connect().monitors
    if days:
        if start or end:
            raise BadInput("option", "--days", "does not go with --start and --end", "leave one of them out")
        by_day = monitors.drift_by_day(endpoint, version=version)
        return show.document(by_day) if json else _days(by_day)
    times = {"start": clock.utc(start) if start else None, "end": clock.utc(end) if end else None}
    found = monitors.drift(endpoint, version=version, beside=beside, **times)
    return show.document(found) if json else _columns(found)


@monitor.command()
@click.argument("endpoint", metavar="PROJECT/ENDPOINT")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Newest predictions.")
@show.as_json
def skew(endpoint: str, limit: int, json: bool) -> None:
    """Feature values as they were served, beside those training would see for the same entity and time.

    Example: cellwork monitor skew flights/delay
    """
    found = connect().monitors.skew(endpoint, limit=limit)
    if json:
        return show.document(found)
    click.echo(f"{found.rows:,} predictions by entity, {show.text(found.start)} to {show.text(found.end)}")
    columns = ("feature", "rows", "differ", "missing_online", "only_online", "older", "mean_online", "mean_training")
    rows = [tuple(getattr(each, name) for name in columns) for each in found.features]
    return show.table(rows, columns, empty="no feature was looked up")


@monitor.command()
@click.argument("endpoint", metavar="PROJECT/ENDPOINT")
@click.option(
    "--days", type=click.IntRange(1, 366), default=1, show_default=True, help="The newest days with predictions."
)
@show.as_json
def service(endpoint: str, days: int, json: bool) -> None:
    """Predictions, times and fallbacks of an endpoint by the hour, and its deployments.

    Example: cellwork monitor service flights/delay --days 2
    """
    found = connect().monitors.service(endpoint, days=days)
    if json:
        return show.document(found)
    for mark in found.marks:
        click.echo(f"{show.text(mark.at)}  {mark.text} {mark.version}, revision {mark.revision}")
    columns = ("start", "version", "predictions", "fallbacks", "p50_ms", "p95_ms", "p99_ms", "greatest_ms")
    rows = [tuple(getattr(hour, name) for name in columns) for hour in found.hours]
    return show.table(rows, columns, empty="no prediction yet")


@click.group()
def alert() -> None:
    """Alerts of the monitors.

    Example: cellwork alert list --open
    """


@alert.command("list")
@click.option("--project", "name", default="", help="Only those of this project.")
@click.option("--open", "only_open", is_flag=True, help="Only those that are not resolved.")
@show.as_json
def alerts(name: str, only_open: bool, json: bool) -> None:
    """Alerts, newest first.

    Example: cellwork alert list --open
    """
    found = list(connect().monitors.alerts(name, "open" if only_open else ""))
    if json:
        return show.document(found)
    rows = [(a.opened, a.state, a.severity, f"{a.project}/{a.monitor}", a.times, a.words[:90], a.id) for a in found]
    return show.table(rows, ("opened", "state", "severity", "monitor", "times", "words", "id"), empty="no alert")


@alert.command()
@click.argument("id")
@show.as_json
def resolve(id: str, json: bool) -> None:
    """Resolve an alert by hand; it opens again if its monitor finds it again.

    Example: cellwork alert resolve alr_01jd3v5w2n6q8r9s0t1v2w3x4y
    """
    found = connect().monitors.resolve(id)
    return show.document(found) if json else click.echo(f"{found.id} is resolved, by {found.by}")


def _table(found: list[MonitorStatus]) -> None:
    rows = [(f"{m.project}/{m.monitor.name}", m.monitor.kind, m.state, m.checked, m.words[:100]) for m in found]
    show.table(
        rows, ("monitor", "kind", "state", "checked", "words"), empty="no monitor; write monitors.yaml and apply it"
    )


def _columns(found: Drift) -> None:
    click.echo(
        f"{found.subject}: {found.rows:,} predictions, {show.text(found.start)} to {show.text(found.end)}, "
        f"beside {found.reference_rows:,} rows of {found.reference}\n"
    )
    rows = [
        (c.column, c.verdict, c.psi, c.ks, c.wasserstein, c.missing_window, c.out_of_range, "; ".join(c.reasons))
        for c in found.columns
    ]
    show.table(rows, ("column", "verdict", "psi", "ks", "wasserstein", "missing", "outside", "why"))


def _days(found: list[Drift]) -> None:
    rows = []
    for day in found:
        moved = [c for c in day.columns if c.verdict == "drift"]
        rows.append((f"{day.start:%F}", day.rows, len(moved), ", ".join(c.column for c in moved)[:100]))
    show.table(rows, ("day", "predictions", "drifted", "columns"), empty="no prediction yet")
