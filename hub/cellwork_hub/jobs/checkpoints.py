"""Checkpoints of runs, as files beside the attempts: the newest few of each run, whole or not at all.

They go when their run has succeeded or was stopped: no attempt starts from them any more. Those of a failed run stay with it.
Only runners send and fetch them, and only the attempt that holds the run's fence sends: what is put back is a program's state.
"""

from __future__ import annotations

import shutil

import msgspec

from cellwork import files
from cellwork.errors import BadInput, Conflict, NotFound
from cellwork.home import Home
from cellwork.wire.jobs import Checkpoint
from cellwork_hub.jobs import store
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

MOST_KEPT = 3
OVER = ("succeeded", "stopped")
"""Of such a run there is no further attempt."""


def of_run(home: Home, run: str) -> list[Checkpoint]:
    """Return what checkpoints of `run` there are, oldest first."""
    folder = home.checkpoint(run, "0" * 64).parent
    abouts = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [msgspec.json.decode(path.read_bytes(), type=Checkpoint) for path in abouts]


def save(state: State, call: Call) -> None:
    about = msgspec.json.decode(call.required("about"), type=Checkpoint)
    if about.key != call.path["key"]:
        raise BadInput("checkpoint", about.key, "is not the one of the path", "send the same key")
    with state.engine.connect() as db:
        row = store.run_row(db, call.path["run"])
    if row["fence"] != call.number("fence", -1) or row["lease_until"] is None:
        raise Conflict("attempt of run", row["id"], "was replaced or has ended", "drop this checkpoint")
    archive = state.home.checkpoint(row["id"], about.key)
    files.write(archive, call.body, mode=0o600)
    files.write(archive.with_suffix(".json"), msgspec.json.encode(about), mode=0o600)
    for old in of_run(state.home, row["id"])[:-MOST_KEPT]:
        forgotten = state.home.checkpoint(row["id"], old.key)
        forgotten.with_suffix(".json").unlink(missing_ok=True)
        forgotten.unlink(missing_ok=True)


def forget(home: Home, run: str) -> None:
    """Remove what checkpoints of `run` there are."""
    shutil.rmtree(home.checkpoint(run, "0" * 64).parent, ignore_errors=True)


def tidy(state: State) -> int:
    """Remove the checkpoints that a killed service left of runs which start from none any more; returns of how many runs."""
    left = 0
    for folder in (state.home.root / "runs").glob("run_*/checkpoints"):
        with state.engine.connect() as db:
            row = store.one(db, "SELECT state, lease_until FROM runs WHERE id = :id", id=folder.parent.name)
        if row is None or (row["state"] in OVER and row["lease_until"] is None):
            shutil.rmtree(folder, ignore_errors=True)
            left += 1
    return left


def read(state: State, call: Call) -> bytes:
    path = state.home.checkpoint(call.path["run"], call.path["key"])
    if not path.is_file():
        raise NotFound("checkpoint", path.stem[:12], "is not there (any more)", "start from the first cell")
    call.media_type = "application/x-tar"
    return path.read_bytes()


def routes(state: State) -> list[Route]:
    one = "/api/v1/runs/{run}/checkpoints/{key}"
    return [
        Route(
            "PUT",
            one,
            lambda call: save(state, call),
            scope="runs:execute",
            body=bytes,
            doc="A runner saves what a run had made up to a cell.",
        ),
        Route(
            "GET",
            one,
            lambda call: read(state, call),
            scope="runs:execute",
            answer=bytes,
            doc="A runner fetches what a run had made up to a cell.",
        ),
    ]
