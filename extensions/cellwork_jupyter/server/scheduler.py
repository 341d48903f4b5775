"""jupyter-scheduler's `BaseScheduler`, so that Lab's "Create Notebook Job" makes jobs and runs of the platform.

Nothing runs and nothing is kept in the user's server: a job goes on firing when the server is stopped. Output files are
fetched from the service when somebody asks for them. Errors of the service reach Lab's dialog as their own sentences.

`CellworkScheduler` is for Lab's server: it answers on a thread, so that no call holds up the server's other requests.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
from jupyter_scheduler import models
from jupyter_scheduler.exceptions import IdempotencyTokenError, SchedulerError
from jupyter_scheduler.scheduler import BaseScheduler
from jupyter_scheduler.utils import create_output_filename

from cellwork import errors
from cellwork.client import connect
from cellwork.client.jobs import ENDED, Jobs
from cellwork.wire.jobs import Job, JobRequest, RunRequest, Schedule
from cellwork_jupyter.server import forms, records

MOST_RUNS = 2_000
"""Lab's list looks back over so many runs at most; `cellwork run list` knows all."""
FEATURES = ("job_name", "parameters", "output_formats", "job_definition", "idempotency_token", "tags", "output_filename_template", "stop_job", "delete_job")  # fmt: skip


class Features:
    """What Lab's form may offer, asked of the class. Nothing is executed here, and the module of those who do takes half a second to import."""

    def supported_features(cls) -> dict[models.JobFeature, bool]:
        return {feature: feature.value in FEATURES for feature in models.JobFeature}

    def validate(cls, input_path: str) -> bool:
        return Path(input_path).is_file()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Hand the service's sentences to Lab."""
    try:
        yield
    except errors.CellworkError as error:
        raise SchedulerError(str(error)) from None


class Scheduler(BaseScheduler):  # type: ignore[misc]
    """The scheduler, method by method as its base describes them; each raises SchedulerError with the service's sentence."""

    task_runner = None
    db_url = ""
    execution_manager_class = Features

    def __init__(self, root_dir: str, environments_manager: Any, db_url: str = "", config: Any = None, **options: Any) -> None:  # fmt: skip
        super().__init__(root_dir=root_dir, environments_manager=environments_manager, config=config, **options)

    @property
    def jobs(self) -> Jobs:
        return connect().jobs

    def create_job(self, model: models.CreateJob) -> str:
        source = forms.read(Path(self.root_dir), model.input_uri, folder_too=bool(model.package_input_folder))
        kept = {**model.dict(exclude_none=True), **_packaged(model, source)}
        with told():
            request = RunRequest(
                **source, parameters=forms.values(source["content"], model.parameters), labels=records.labels(kept),
                once=model.idempotency_token or "",
            )  # fmt: skip
            try:
                return records.job_id(self.jobs.start(request).id)
            except errors.Conflict:
                raise IdempotencyTokenError(model.idempotency_token) from None

    def list_jobs(self, query: models.ListJobsQuery) -> models.ListJobsResponse:
        with told():
            names = {f"{job.project}/{job.name}": records.definition_id(job) for job in self.jobs.list()}
            chosen = next((name for name, id in names.items() if id == query.job_definition_id), "")
            if query.job_definition_id and not chosen:
                return models.ListJobsResponse(jobs=[], total_count=0)
            state = records.STATES.get(query.status, "") if query.status else ""
            runs = itertools.islice(self.jobs.runs(job=chosen, state=state), MOST_RUNS)
            found = [records.job(run, names) for run in runs]
        if query.start_time:
            found = [job for job in found if (job.start_time or 0) >= query.start_time]
        page, token, total = _page(found, query)
        for job in page:
            self.add_job_files(job)
        return models.ListJobsResponse(jobs=page, next_token=token, total_count=total)

    def count_jobs(self, query: models.CountJobsQuery) -> int:
        with told():
            return sum(1 for _ in itertools.islice(self.jobs.runs(state=records.STATES.get(query.status, "")), MOST_RUNS))  # fmt: skip

    def get_job(self, job_id: str, job_files: bool | None = True) -> models.DescribeJob:
        with told():
            run = self.jobs.run(records.run_id(job_id))
            names = {run.job: records.definition_id(self.jobs.get(run.job))} if run.job and self._there(run.job) else {}
        model = records.job(run, names)
        if job_files:
            self.add_job_files(model)
        return model

    def _there(self, job: str) -> bool:
        try:
            self.jobs.get(job)
        except errors.NotFound:
            return False
        return True

    def update_job(self, job_id: str, model: models.UpdateJob) -> None:
        if model.status == models.Status.STOPPED:
            self.stop_job(job_id)
        elif model.name or model.compute_type:
            raise SchedulerError(f"run {records.run_id(job_id)} keeps the name it was started with; give its job another name")  # fmt: skip

    def stop_job(self, job_id: str) -> None:
        with told():
            self.jobs.stop(records.run_id(job_id))

    def delete_job(self, job_id: str) -> None:
        """Stop the run if it is under way, wait for its runner's last word, and forget it."""
        run = records.run_id(job_id)
        with told():
            if self.jobs.run(run).state not in ENDED:
                self.jobs.stop(run)
                self.jobs.wait(run, timeout=30)
            self.jobs.forget(run)

    def create_job_definition(self, model: models.CreateJobDefinition) -> str:
        source = forms.read(Path(self.root_dir), model.input_uri, folder_too=bool(model.package_input_folder))
        at = records.now()
        fields = {"job_definition_id": records.new_id(), "create_time": at, "update_time": at, **model.dict(exclude_none=True)}  # fmt: skip
        with told():
            return self.make({**fields, **_packaged(model, source)}, source)

    def make(self, fields: dict[str, Any], source: dict[str, Any]) -> str:
        """Make the job of a form's `fields` and return its id in their words."""
        taken = [job.name for job in self.jobs.list(source["project"])]
        self.jobs.ensure(
            JobRequest(
                **source, name=records.slug(fields["name"], taken), labels=records.labels(fields),
                schedule=forms.plan(fields.get("schedule"), fields.get("timezone")), parameters=forms.values(source["content"], fields.get("parameters")),
            )
        )  # fmt: skip
        return str(fields["job_definition_id"])

    def _job(self, definition: str) -> Job:
        found = next((job for job in self.jobs.list() if records.definition_id(job) == definition), None)
        if found is None:
            raise SchedulerError(f"job definition {definition} does not exist; look at: cellwork job list")
        return found

    def update_job_definition(self, job_definition_id: str, model: models.UpdateJobDefinition) -> None:
        with told():
            job = self._job(job_definition_id)
            name, given = f"{job.project}/{job.name}", model.dict(exclude_none=True)
            request = self.jobs.request(name)
            source: dict[str, Any] = {}
            if model.input_uri:
                source = forms.read(Path(self.root_dir), model.input_uri, folder_too=False)
                source.pop("project")
            changes: dict[str, Any] = {**source, **_timing(request.schedule, given)}
            if model.parameters is not None:
                changes["parameters"] = forms.values(source.get("content", request.content), model.parameters)
            labels = {**request.labels, **records.labels({**given, "update_time": records.now()})}
            self.jobs.ensure(msgspec.structs.replace(request, **changes, labels=labels))
            if model.active is not None:
                self.jobs.pause(name, paused=not model.active)

    def delete_job_definition(self, job_definition_id: str) -> None:
        """Forget the job; its runs stay in the service's list, those that wait are stopped."""
        with told():
            job = self._job(job_definition_id)
            self.jobs.remove(f"{job.project}/{job.name}")

    def get_job_definition(self, job_definition_id: str) -> models.DescribeJobDefinition:
        with told():
            return records.definition(self._job(job_definition_id))

    def list_job_definitions(self, query: models.ListJobDefinitionsQuery) -> models.ListJobDefinitionsResponse:
        with told():
            found = [records.definition(job) for job in self.jobs.list()]
        if query.create_time:
            found = [definition for definition in found if definition.create_time >= query.create_time]
        page, token, total = _page(found, query)
        return models.ListJobDefinitionsResponse(job_definitions=page, next_token=token, total_count=total)

    def create_job_from_definition(self, job_definition_id: str, model: models.CreateJobFromDefinition) -> str:
        with told():
            job = self._job(job_definition_id)
            name = f"{job.project}/{job.name}"
            given = forms.values(self.jobs.request(name).content, model.parameters) if model.parameters else {}
            return records.job_id(self.jobs.start(RunRequest(job=name, parameters=given)).id)

    def get_staging_paths(self, model: models.DescribeJob | models.DescribeJobDefinition) -> dict[str, str]:
        """Return where the files of a run lie on this server, fetched from the service just now; a definition has none here."""
        if not isinstance(model, models.DescribeJob):
            return {}
        folder = Path(self.staging_path) / model.job_id
        folder.mkdir(parents=True, exist_ok=True)
        paths = {kind: str(folder / create_output_filename(model.input_filename, model.create_time, kind)) for kind in model.output_formats or []}  # fmt: skip
        paths["input"] = str(folder / model.input_filename)
        with told():
            text = self.jobs.notebook(records.run_id(model.job_id))
        for kind, path in paths.items():
            Path(path).write_text(_html(text) if kind == "html" else text)
        return paths

    def add_job_files(self, model: models.DescribeJob) -> None:
        model.output_formats = model.output_formats or []
        super().add_job_files(model)


def _packaged(model: Any, source: dict[str, Any]) -> dict[str, Any]:
    return {"packaged_files": sorted(source["files"])} if model.package_input_folder else {}


def _timing(before: Schedule, given: dict[str, Any]) -> dict[str, Any]:
    """Return the changed schedule, if cron or zone change; what else a schedule says stays."""
    if "schedule" not in given and "timezone" not in given:
        return {}
    cron, zone = given.get("schedule", before.cron), given.get("timezone", before.timezone)
    return {"schedule": msgspec.structs.replace(before, cron=cron, timezone=zone)}


def _page(found: Sequence[Any], query: Any) -> tuple[list[Any], str | None, int]:
    """Return the page of `found` that `query` asks for, what names the next one, and how many there are."""
    rows: Iterable[Any] = found
    if query.name:
        rows = [row for row in rows if row.name.startswith(query.name)]
    if query.tags:
        rows = [row for row in rows if set(query.tags) <= set(row.tags or [])]
    ordered = list(rows)
    for field in reversed(query.sort_by or []):
        ordered.sort(key=lambda row: _key(getattr(row, field.name)), reverse=field.direction == models.SortDirection.desc)  # fmt: skip
    start = int(query.next_token or 0)
    end = start + int(query.max_items or models.DEFAULT_MAX_ITEMS)
    return ordered[start:end], str(end) if end < len(ordered) else None, len(ordered)


def _key(value: Any) -> tuple[bool, Any]:
    return (value is not None, value if isinstance(value, (int, float)) else str(value))


def _html(text: str) -> str:
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter()  # type: ignore[no-untyped-call]
    body, _ = exporter.from_notebook_node(nbformat.reads(text, as_version=4))
    return str(body)


def on_thread(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def run(self: Any, *values: Any, **options: Any) -> Any:
        return await anyio.to_thread.run_sync(functools.partial(method, self, *values, **options))

    return run


ASKED = (
    "create_job", "update_job", "list_jobs", "count_jobs", "get_job", "delete_job", "stop_job", "create_job_definition", "update_job_definition",
    "delete_job_definition", "get_job_definition", "list_job_definitions", "create_job_from_definition", "get_staging_paths",
)  # fmt: skip


class CellworkScheduler(BaseScheduler):  # type: ignore[misc]
    """`Scheduler`, with every question answered on a thread."""

    task_runner = None
    execution_manager_class = Features

    def __init__(self, root_dir: str, environments_manager: Any, db_url: str = "", config: Any = None, **options: Any) -> None:  # fmt: skip
        super().__init__(root_dir=root_dir, environments_manager=environments_manager, config=config, **options)
        self.by_hand = Scheduler(root_dir, environments_manager, config=config)
        for name in ASKED:
            setattr(self, name, on_thread(lambda _, *v, of=getattr(self.by_hand, name), **o: of(*v, **o)).__get__(self))
