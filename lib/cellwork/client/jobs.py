"""Jobs and runs over HTTP."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator

import msgspec

from cellwork import errors
from cellwork.client.base import Connection
from cellwork.wire.jobs import (
    Backfill,
    BackfillRequest,
    Checkpoint,
    Claim,
    ClaimRequest,
    Job,
    JobRequest,
    KeepAnswer,
    KeepRequest,
    Progress,
    ResumeRequest,
    Run,
    RunRequest,
)
from cellwork.wire.records import Event

ENDED = frozenset({"succeeded", "failed", "stopped"})


class Jobs:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def ensure(self, job: JobRequest) -> Job:
        return self._to.call("jobs", "PUT", f"/api/v1/jobs/{job.project}/{job.name}", Job, job)

    def list(self, project: str = "") -> Iterator[Job]:
        return self._to.listing("jobs", "/api/v1/jobs", Job, project=project, limit=1000)

    def get(self, job: str) -> Job:
        return self._to.call("jobs", "GET", f"/api/v1/jobs/{job}", Job)

    def request(self, job: str) -> JobRequest:
        """Return the request that would make the job as it is, with its notebook and files."""
        return self._to.call("jobs", "GET", f"/api/v1/jobs/{job}/request", JobRequest)

    def pause(self, job: str, *, paused: bool = True) -> Job:
        return self._to.call("jobs", "POST", f"/api/v1/jobs/{job}/{'pause' if paused else 'resume'}", Job)

    def backfill(self, job: str, request: BackfillRequest) -> Backfill:
        return self._to.call("jobs", "POST", f"/api/v1/jobs/{job}/backfill", Backfill, request)

    def grid(self, job: str, first: str, last: str) -> builtins.list[Run]:
        """Return the newest run of `job` for each time due from `first` up to `last` (ISO 8601), in order; there may be none."""
        return self._to.call("jobs", "GET", f"/api/v1/jobs/{job}/grid", builtins.list[Run], first=first, last=last)

    def remove(self, job: str) -> None:
        self._to.raw("jobs", "DELETE", f"/api/v1/jobs/{job}")

    def start(self, request: RunRequest) -> Run:
        return self._to.call("jobs", "POST", "/api/v1/runs", Run, request)

    def runs(self, *, job: str = "", project: str = "", state: str = "") -> Iterator[Run]:
        """Runs, newest first."""
        return self._to.listing("jobs", "/api/v1/runs", Run, job=job, project=project, state=state)

    def run(self, run: str) -> Run:
        return self._to.call("jobs", "GET", f"/api/v1/runs/{run}", Run)

    def notebook(self, run: str) -> str:
        """Return the executed notebook (so far) as JSON text."""
        return self._to.raw("jobs", "GET", f"/api/v1/runs/{run}/notebook").text

    def stop(self, run: str) -> Run:
        return self._to.call("jobs", "POST", f"/api/v1/runs/{run}/stop", Run)

    def forget(self, run: str) -> None:
        """Forget an ended run with its executed notebook."""
        self._to.raw("jobs", "DELETE", f"/api/v1/runs/{run}")

    def resume(self, run: str, request: ResumeRequest) -> Run:
        """Continue a failed run, in its kept kernel or on a new one."""
        return self._to.call("jobs", "POST", f"/api/v1/runs/{run}/resume", Run, request)

    def release(self, run: str) -> Run:
        """End the kernel that is kept for a failed run, if one is."""
        return self._to.call("jobs", "DELETE", f"/api/v1/runs/{run}/kernel", Run)

    def wait(self, run: str, *, timeout: float = 3600, progress: Callable[[Run], None] | None = None) -> Run:
        """Return the run when it has ended; raises Unavailable after `timeout` seconds."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            current = self.run(run)
            if progress:
                progress(current)
            if current.state in ENDED:
                return current
            time.sleep(0.1)
        raise errors.Unavailable("run", run, f"did not end in {timeout:.0f} s", f"look at: cellwork run show {run}")

    def follow(self, run: str, *, timeout: float = 7 * 86_400) -> Iterator[Event]:
        """Yield the events of a run as they happen, to its end; a broken connection is taken up again where it was.

        Raises
        ------
        Unavailable
            The run did not end within `timeout` seconds, or the service stays away.
        """
        end, after = time.monotonic() + timeout, 0
        while time.monotonic() < end:
            for event in self._to.events("jobs", f"/api/v1/runs/{run}/events", after=after):
                after = event.seq
                yield event
            if self.run(run).state in ENDED:
                return
        raise errors.Unavailable("run", run, f"did not end in {timeout:.0f} s", f"look at: cellwork run show {run}")

    def news(self, after: int | None = None) -> Iterator[Event]:
        """Yield how one's own runs end, as it happens, until the service ends the stream or the connection breaks.

        The first event, ``begin``, has the sequence number from which on the others are; without `after` it begins now.
        """
        yield from self._to.events("jobs", "/api/v1/news", **({} if after is None else {"after": after}))

    def claim(self, runner: str, *, wait_seconds: float = 0.0) -> Claim | None:
        """Return a run to execute, or None if there is none within `wait_seconds`."""
        asked = ClaimRequest(runner=runner, wait_seconds=wait_seconds)
        return self._to.call("jobs", "POST", "/api/v1/claims", Claim | None, asked)  # type: ignore[arg-type]

    def report(self, run: str, progress: Progress) -> Run:
        return self._to.call("jobs", "POST", f"/api/v1/runs/{run}/progress", Run, progress)

    def keep(self, run: str, request: KeepRequest) -> KeepAnswer:
        """Say that the kernel of `run` is kept, and hear whether the run is resumed; raises Conflict when it shall be kept no more."""
        return self._to.call("jobs", "POST", f"/api/v1/runs/{run}/kernel", KeepAnswer, request)

    def save_checkpoint(self, run: str, fence: int, about: Checkpoint, data: bytes) -> None:
        path = f"/api/v1/runs/{run}/checkpoints/{about.key}"
        text = msgspec.json.encode(about).decode()
        self._to.raw("jobs", "PUT", path, data, "application/x-tar", fence=fence, about=text)

    def checkpoint(self, run: str, key: str) -> bytes:
        return self._to.raw("jobs", "GET", f"/api/v1/runs/{run}/checkpoints/{key}").content
