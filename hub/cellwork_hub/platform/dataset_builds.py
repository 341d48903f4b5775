"""Builds of datasets that one follows and may cancel: estimate before, progress during, a limit of memory.

`background` says whose a build is and how long its status is kept. The dataset is stored as the last deed: a build that is
cancelled, fails or ends with the service leaves none. A cancel that comes later changes nothing, for a dataset is never taken back.
"""

from __future__ import annotations

import polars as pl

from cellwork import ids
from cellwork.features import estimate, history
from cellwork.features.history import Progress
from cellwork.wire.datasets import BuildStatus, DatasetRequest, Estimate
from cellwork_hub.platform import datasets, observed
from cellwork_hub.platform.background import Line, Task, Tell
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION: tuple[str, ...] = ()


def _memory(call: Call) -> int | None:
    return call.number("memory_mb", 0) * 1_000_000 or None


def _asked(state: State, call: Call) -> Task[BuildStatus]:
    """Return the build that `call` asks for, with its estimate. Raises TooLarge if it can't be done in the memory allowed."""
    asked, memory = datasets.planned(state, call.body), _memory(call)
    status = BuildStatus(id=ids.new("build"), project=asked.request.project, state="running", dataset=asked.stored)
    if asked.stored:
        return Task(call.principal.name, status, lambda tell: b"")
    rows = datasets.observations(state, asked)
    status.estimate = _estimate(state, asked, rows, memory)
    status.steps = status.estimate.partitions

    def make(tell: Tell) -> bytes:
        def storing() -> None:
            tell(Progress(status.steps, status.steps, ""))

        status.dataset = datasets.make(state, call, asked, rows, memory=memory, tell=tell, storing=storing)
        return b""

    return Task(call.principal.name, status, make)


def _estimate(state: State, asked: datasets.Build, rows: pl.DataFrame, memory: int | None) -> Estimate:
    views = observed.join_views(state, asked.plan, lazy=True)
    history.check(rows, at=asked.plan.observations.at, views=views)
    return estimate.estimate(rows, views, memory=memory)


def routes(state: State) -> list[Route]:
    line: Line[BuildStatus] = Line("build")

    def post_build(call: Call) -> BuildStatus:
        build = _asked(state, call)
        line.add(build)
        return build.status

    def post_estimate(call: Call) -> Estimate:
        asked = datasets.planned(state, call.body)
        return _estimate(state, asked, datasets.observations(state, asked), _memory(call))

    def get_build(call: Call) -> BuildStatus:
        build = line.get(call, call.path["build"])
        call.enter(build.status.project)
        return build.status

    def delete_build(call: Call) -> BuildStatus:
        call.enter(line.get(call, call.path["build"]).status.project)
        return line.cancel(call, call.path["build"])

    one = "/api/v1/dataset-builds/{build}"
    return [
        Route("POST", "/api/v1/datasets/estimate", post_estimate, scope="data:read", body=DatasetRequest, answer=Estimate, doc="What building a dataset will take; ?memory_mb=."),
        Route("POST", "/api/v1/dataset-builds", post_build, scope="data:write", body=DatasetRequest, answer=BuildStatus, doc="Build a dataset in the background; ?memory_mb=."),
        Route("GET", one, get_build, scope="data:read", answer=BuildStatus, doc="How far a build is, and its dataset."),
        Route("DELETE", one, delete_build, scope="data:write", answer=BuildStatus, doc="Cancel a build; what is stored already stays."),
    ]  # fmt: skip
