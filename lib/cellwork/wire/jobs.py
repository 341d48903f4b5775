"""Jobs and runs of notebooks."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from cellwork.wire import Struct
from cellwork.wire.origin import Origin
from cellwork.wire.secrets import Mask

RunState = Literal["queued", "running", "succeeded", "failed", "stopped"]


CatchUp = Literal["all", "last", "none"]
WhileRunning = Literal["queue", "skip"]


class Schedule(Struct):
    """When a job is due: `cron` read on the clocks of `timezone`, every so many seconds since 1970, after each success of another
    job (`after`, project/name), or at each event of the name (with equal fields in `match`).

    `catch_up` says which of the times that were missed are made up for; events and other jobs are never missed.
    """

    cron: str = ""
    timezone: str = "UTC"
    event: str = ""
    match: dict[str, str] = {}
    every_seconds: int = 0
    after: str = ""
    catch_up: CatchUp = "last"


class Notify(Struct):
    """Whom to tell when a run has ended in one of the states: a `webhook` (POST, JSON), people by `mail`, or its owner in Lab.

    Lab tells of failures, and of how runs ended that were started by hand, without being asked.
    """

    on: tuple[RunState, ...] = ("failed",)
    webhook: str = ""
    mail: list[str] = []
    lab: bool = False


class Policy(Struct):
    """How runs of a job are queued, tried again, ended, told of and forgotten. 0 leaves a thing to the platform, or out."""

    priority: int = 0
    """Runs of a higher priority start first."""
    backoff_seconds: int = 0
    """Before the first retry; doubled for each further one, up to an hour."""
    deadline_seconds: int = 0
    """After it was due (after another job's run: after it was queued): a run that has not ended by then fails."""
    cell_timeout_seconds: int = 0
    memory_megabytes: int = 0
    """More memory in its kernel and what that started fails the run."""
    while_running: WhileRunning = "queue"
    """What becomes of a time, an event or another job's end that comes while `concurrency` runs have not ended: it waits, or is left out."""
    keep_runs: int = 0
    """How many ended runs are kept; older ones are forgotten with their notebooks."""
    notify: list[Notify] = []


class Job(Struct):
    id: str
    project: str
    name: str
    notebook: str
    """The notebook's name; its content is kept with the job, by hash."""
    notebook_sha256: str
    parameters: dict[str, Any] = {}
    schedule: Schedule = msgspec.field(default_factory=Schedule)
    timeout_seconds: int = 3600
    retries: int = 0
    concurrency: int = 1
    policy: Policy = msgspec.field(default_factory=Policy)
    paused: bool = False
    owner: str = ""
    revision: int = 1
    next_due: datetime | None = None
    image_digest: str = ""
    """The container image it was scheduled from, in which its runs execute."""
    labels: dict[str, str] = {}
    """What other tools keep with it; the platform reads none of it. A run has its job's and its own."""


class JobRequest(Struct):
    """Make or change the job `project/name`; saying it twice changes nothing."""

    project: str
    name: str
    notebook: str
    content: str
    """The notebook as JSON text."""
    files: dict[str, str] = {}
    """Text files that belong beside it (``cellwork.toml``, helper modules), by relative path."""
    parameters: dict[str, Any] = {}
    schedule: Schedule = msgspec.field(default_factory=Schedule)
    timeout_seconds: int = 3600
    retries: int = 0
    concurrency: int = 1
    policy: Policy = msgspec.field(default_factory=Policy)
    labels: dict[str, str] = {}


class RunRequest(Struct):
    """Run a job now (`job`), or a notebook once (`notebook`, `content`)."""

    job: str = ""
    """Full name ``project/name``."""
    project: str = ""
    notebook: str = ""
    content: str = ""
    files: dict[str, str] = {}
    parameters: dict[str, Any] = {}
    timeout_seconds: int = 3600
    policy: Policy = msgspec.field(default_factory=Policy)
    origin: Origin = Origin()
    labels: dict[str, str] = {}
    once: str = ""
    """A word of the caller's choice: a second request with it makes no second run, but a Conflict that names the first."""


class BackfillRequest(Struct):
    """Run a job for every time from `first` up to `last` at which it was, or would have been, due; at most `parallel` at once.

    A time whose newest run succeeded, or is under way, is left alone, so that asking twice changes nothing.
    """

    first: datetime
    last: datetime
    parallel: int = 1
    again: bool = False
    """Also the times that have succeeded."""


class Backfill(Struct):
    queued: list[str]
    """The runs that were queued, in order of their times."""
    left_alone: int = 0


class Attempt(Struct):
    n: int
    fence: int
    runner: str
    state: RunState
    started: datetime
    ended: datetime | None = None
    cell: int = 0
    cells: int = 0
    error: str = ""
    first_cell: int = 1
    """Where it began; above 1 the earlier cells ran in an attempt before it, in the same kernel or up to a checkpoint."""


class Kept(Struct):
    """The kernel of a failed run, kept for its owner until `until`, or until it holds more than `most_bytes`."""

    attempt: int
    runner: str
    cell: int
    until: datetime
    bytes: int = 0
    most_bytes: int = 0


class Run(Struct):
    id: str
    project: str
    notebook: str
    notebook_sha256: str
    parameters: dict[str, Any]
    principal: str
    state: RunState
    created: datetime
    job: str = ""
    due: datetime | None = None
    cause: str = ""
    """``schedule``, ``event <id>`` or ``manual``."""
    attempts: list[Attempt] = []
    kept: Kept | None = None
    image_digest: str = ""
    """The container image it executes in: where it was started or scheduled from; empty is the runner's own."""
    labels: dict[str, str] = {}


class ClaimRequest(Struct):
    """A runner asks for work; the answer waits for up to `wait_seconds` until there is some."""

    runner: str
    wait_seconds: float = 0.0


class Checkpoint(Struct):
    """What a run had made up to a cell tagged ``checkpoint``: it stands for the parameters and the cells up to it by `key`.

    `missing` names what could not be saved, and why.
    """

    key: str
    cell: int
    missing: dict[str, str] = {}


class Claim(Struct):
    """What a runner gets: the run, all it needs to execute it, and the fence its results must carry."""

    run: Run
    attempt: int
    fence: int
    content: str
    files: dict[str, str]
    token: str
    """The run's own token: its author's scopes, its life."""
    timeout_seconds: int
    lease_seconds: int
    cell_timeout_seconds: int = 0
    memory_megabytes: int = 0
    masks: list[Mask] = []
    """What the run must hide wherever it writes."""
    first_cell: int = 1
    """Above 1: continue in the kernel that was kept, with `executed` as it stood."""
    executed: str = ""
    checkpoints: list[Checkpoint] = []


class Progress(Struct):
    """A runner's word about its attempt; a stale fence is refused. `notebook` is the executed notebook so far.

    State ``queued`` hands the run back unfinished, because the runner stops. The answer's state ``stopped`` tells the runner to end it.
    """

    fence: int
    state: RunState = "running"
    cell: int = 0
    cells: int = 0
    error: str = ""
    notebook: str = ""
    first_cell: int = 1
    keepable: bool = False
    """With state ``failed``: the kernel lives and may be kept; the answer's `kept` says whether it shall be."""


class KeepRequest(Struct):
    """A runner's word about the kernel it keeps. The answer waits for up to `wait_seconds` for the run to be resumed."""

    fence: int
    bytes: int = 0
    wait_seconds: float = 0.0
    ended: str = ""
    """Why the kernel has ended, when it has."""


class KeepAnswer(Struct):
    """`claim` is the next attempt at the run, in the kept kernel; without it the kernel is kept on."""

    claim: Claim | None = None


class ResumeRequest(Struct):
    """Continue a failed run in its kept kernel, from the cell at which it failed or from `first_cell`.

    `content` is the mended notebook (as it was written, or as it was executed); empty: the notebook as it is.
    """

    content: str = ""
    first_cell: int = 0
    new_kernel: bool = False
    """Start on a new kernel instead: from the last checkpoint whose cells above are unchanged, else from the first cell."""
