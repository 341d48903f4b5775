"""`cellwork up|down|status|doctor`: shells around the supervisor. They talk to it by signals and read its board."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import click

from cellwork import settings
from cellwork.cli import show
from cellwork.errors import Conflict, Unavailable
from cellwork.settings import Settings
from cellwork_hub import doctor as checks
from cellwork_hub import preparation, processes, supervisor
from cellwork_hub.containers import way
from cellwork_hub.units import environment, reachable

STOP_SECONDS = 90.0
TRUST = {
    "personal": "trust: personal (one user, one account of this machine; no secrecy between notebooks and services is promised)",
    "team": "trust: team (each user has a credential and projects of their own; user servers and runs can't read the platform's folder)",
}


def address(chosen: Settings, port: int) -> str:
    return f"http://{reachable(chosen.host)}:{port}"


@click.command()
@click.option("--demo", is_flag=True, help="Then walk the demo from raw batch to dashboard.")
@click.option("--foreground", is_flag=True, help="Stay here and stop the platform on Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), help="The public port; 0 takes a free one.")
def up(demo: bool, foreground: bool, port: int | None) -> None:
    """Start the platform; if it runs already, say where.

    Example: cellwork up --demo
    """
    chosen = settings.load()[0]
    if port is not None:
        chosen = dataclasses.replace(chosen, port=port)
    if foreground:
        _stay(chosen)
        return
    board = start(chosen)
    if demo:
        _run_demo()
        _say_where(chosen, board)


def start(chosen: Settings) -> supervisor.Board:
    """Bring the platform up and say where it is; what runs already is left alone."""
    home = chosen.folder
    board = supervisor.running(home)
    if board and chosen.port not in (0, board.port):
        raise Conflict("platform", home.root, f"already runs on port {board.port}", "stop it first: cellwork down")
    if not board:
        checks.can_start(chosen)
    process = None if board else _launch(chosen)
    try:
        board = _follow(chosen, process)
    except BaseException as error:
        if process and process.poll() is None:
            if isinstance(error, KeyboardInterrupt):
                click.echo("interrupted; stopping what was started", err=True)
            process.terminate()
            process.wait(STOP_SECONDS)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        raise
    _say_where(chosen, board)
    return board


def _launch(chosen: Settings) -> subprocess.Popen[bytes]:
    """Start the supervisor in a session of its own, deaf to this terminal."""
    home = chosen.folder.ensure()
    environ = environment(chosen, "")
    del environ[processes.MARKER]
    with home.log("supervisor").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cellwork_hub.supervisor"],
            env=environ,
            cwd=home.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _follow(chosen: Settings, process: subprocess.Popen[bytes] | None) -> supervisor.Board:
    """Print each service as it becomes ready; return the board when all are. `process` is the supervisor, if it is ours."""
    home = chosen.folder
    told: set[str] = set()
    end = time.monotonic() + 2 * chosen.ready_seconds + 30
    while time.monotonic() < end:
        code = process.poll() if process else None
        board = supervisor.read_board(home)
        other = supervisor.running(home)
        if board and process and board.pid != process.pid:
            board = other
        if board and process is None and not other:
            board = None
        if board:
            for service in board.services:
                if service.state == "ready" and service.name not in told and process:
                    told.add(service.name)
                    click.echo(f"  {service.name:<12} {service.message}")
            _raise_failure(home.log("supervisor"), board)
            if board.state() == "ready":
                return board
        if code is not None and not other:
            raise Unavailable(
                "platform", home.root, f"did not start (exit code {code})", f"look into {home.log('supervisor')}"
            )
        if process is None and not other:
            raise Unavailable("platform", home.root, "stopped while it was starting", "try again: cellwork up")
        time.sleep(0.05)
    raise Unavailable("platform", home.root, "did not become ready in time", f"look into {home.logs}")


def _raise_failure(log: Path, board: supervisor.Board) -> None:
    if board.error:
        raise Unavailable("platform", "", board.error, f"more in {log}")
    for service in board.services:
        if service.state == "failed":
            raise Unavailable(
                "service", service.name, service.message.partition("; ")[0], service.message.partition("; ")[2]
            )


def _say_where(chosen: Settings, board: supervisor.Board) -> None:
    click.echo(f"Cellwork runs at {address(chosen, board.port)}")
    if chosen.trust == "team":
        click.echo("  users     each with a credential of their own (cellwork user list, cellwork user add NAME)")
        click.echo(
            "  servers and runs need a container engine in team trust: without one, servers are refused and runs wait"
        )
    else:
        click.echo(f"  user      {preparation.one_user(chosen)}")
        click.echo(f"  password  in {chosen.folder.secret('password')} (show it: cellwork user password)")
    click.echo(f"  {TRUST[chosen.trust]}")
    click.echo(f"  user servers: {way.known(chosen.folder).text}")


def _stay(chosen: Settings) -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if board := supervisor.running(chosen.folder):
        raise Conflict("platform", chosen.home, f"already runs on port {board.port}", "stop it first: cellwork down")
    checks.can_start(chosen)
    sys.exit(supervisor.supervise(chosen))


def _run_demo() -> None:
    for point in entry_points(group="cellwork.commands", name="demo"):
        point.load().main(args=[], standalone_mode=False)


@click.command()
def down() -> None:
    """Stop the platform and everything that was started in it.

    Example: cellwork down
    """
    chosen = settings.load()[0]
    stopped = stop(chosen)
    click.echo("Cellwork has stopped" if stopped else "Cellwork does not run")


def stop(chosen: Settings) -> bool:
    """Stop the platform of `chosen.home`; return whether anything ran. Every process is gone when this returns."""
    home = chosen.folder
    board = supervisor.read_board(home)
    if board is None:
        return False
    found = supervisor.running(home) is not None
    if found:
        os.kill(board.pid, signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        while processes.alive(board.pid, board.created):
            if time.monotonic() > end:
                os.kill(board.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
    way.end_all(home)
    found = bool(board.instance and processes.end_instance(board.instance, 10.0)) or found
    home.pids().unlink(missing_ok=True)
    return found


@click.command()
@show.as_json
def status(json: bool) -> None:
    """What runs, where, and how much memory it takes; exit code 4 if the platform does not run.

    Example: cellwork status --json
    """
    chosen = settings.load()[0]
    board = supervisor.running(chosen.folder)
    if json:
        show.document(
            {
                "state": board.state() if board else "stopped",
                "address": address(chosen, board.port) if board else "",
                "home": str(chosen.home),
                "trust": TRUST[chosen.trust],
                "user_servers": way.known(chosen.folder).text,
                "services": supervisor.with_memory(board) if board else [],
            }
        )
    elif board:
        _print_status(chosen, board)
    else:
        click.echo(f"Cellwork does not run from {chosen.home}; start it with: cellwork up")
    if not board:
        sys.exit(4)


def _print_status(chosen: Settings, board: supervisor.Board) -> None:
    rows = supervisor.with_memory(board)
    show.table(
        [
            (s.name, s.state, str(s.pid or "-"), str(s.port or "-"), s.restarts, round(s.memory_mb), s.message)
            for s in rows
        ],
        ("service", "state", "pid", "port", "restarts", "MB", "message"),
    )
    click.echo(f"{address(chosen, board.port)}  {sum(s.memory_mb for s in rows):.0f} MB in all  home {chosen.home}")
    click.echo(TRUST[chosen.trust])
    click.echo(f"user servers: {way.known(chosen.folder).text}")


@click.command()
@show.as_json
def doctor(json: bool) -> None:
    """Check this machine and this installation; exit code 1 if something needed is missing.

    Example: cellwork doctor
    """
    found = checks.examine(settings.load()[0])
    if json:
        show.document(found)
    else:
        for check in found:
            click.echo(
                f"{check.verdict:<8} {check.name}: {check.found}" + (f"; {check.way_out}" if check.way_out else "")
            )
    if any(check.verdict == "missing" for check in found):
        sys.exit(1)
