"""The schedule file beside a notebook: when it runs, with which parameters; read into the request the jobs service takes.

    notebook: score.ipynb                # default: the file's own name
    on:
      schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}
    # on:
    #   event: {name: batch.ready, match: {dataset: flights}}
    with: {day: "${date}"}
    timeout: 30m
    retries: 1

`${date}` is the day on the job's clocks, `${due}` the time it was due (or the event's), `${batch}` the batch of a `batch.…`
event, `${event.<field>}` any field of the event. Everything is checked here, before the service hears of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from cellwork import clock, ids, project
from cellwork.errors import BadInput, NotFound, near_miss
from cellwork.runs import parameters
from cellwork.wire import Struct
from cellwork.wire.jobs import JobRequest, Schedule
from cellwork.wire.records import EVENTS, Event

VARIABLE = re.compile(r"\$\{([^}]*)\}")
ALWAYS = ("date", "due")
MOST_FILE_BYTES, MOST_FILES = 256 * 1024, 200


class Cron(Struct, forbid_unknown_fields=True):
    cron: str
    timezone: str = "UTC"


class OnEvent(Struct, forbid_unknown_fields=True):
    name: str
    match: dict[str, str] = {}


class On(Struct, forbid_unknown_fields=True):
    schedule: Cron | None = None
    event: OnEvent | None = None


class File(Struct, forbid_unknown_fields=True, rename={"with_": "with"}):
    """The form of a schedule file."""

    notebook: str = ""
    project: str = ""
    """Default: the project of the folder."""
    on: On = msgspec.field(default_factory=On)
    with_: dict[str, Any] = {}
    timeout: str = ""
    retries: int = 0
    concurrency: int = 1


def read(path: Path) -> JobRequest:
    """Return the request that the schedule file `path` and the notebook beside it make.

    Raises
    ------
    BadInput
        The file, a cron, a zone, an event, a variable or a parameter is wrong; file and value are named.
    NotFound
        The notebook is not there, or the folder belongs to no project.
    """
    file = parse(path)
    name = ids.name(path.stem, f"job (the name of {path.name})")
    schedule = _schedule(file.on, path)
    root = project.find(path.parent.absolute()) if not file.project else None
    notebook = (path.parent / (file.notebook or f"{name}.ipynb")).resolve()
    folder = root.folder.resolve() if root and notebook.is_relative_to(root.folder.resolve()) else notebook.parent
    if not notebook.is_file():
        raise NotFound(
            f"notebook of {path.name}", notebook, "is not there", "write its path as `notebook:`, relative to the file"
        )
    text = notebook.read_text()
    check(schedule, file.with_)
    parameters.check(parameters.read(text, notebook.name), tried(schedule, file.with_), notebook.name)
    if file.retries < 0 or file.concurrency < 1:
        raise BadInput(
            f"schedule file {path.name}",
            f"retries {file.retries}, concurrency {file.concurrency}",
            "is out of range",
            "retries from 0, concurrency from 1",
        )
    return JobRequest(
        project=root.name if root else ids.name(file.project, "project"),
        name=name,
        notebook=notebook.relative_to(folder).as_posix(),
        content=text,
        files=beside(notebook, folder, root),
        parameters=file.with_,
        schedule=schedule,
        timeout_seconds=int(clock.duration(file.timeout).total_seconds()) if file.timeout else 3600,
        retries=file.retries,
        concurrency=file.concurrency,
    )


def files(path: Path) -> list[Path]:
    """Return `path`, or the schedule files (``*.yaml`` beside a notebook) in the folder `path`."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise NotFound("schedule file", path, "is not there", "name a .yaml file or a folder of them")
    found = [file for file in sorted(path.glob("*.yaml")) if "on" in _mapping(file)]
    if not found:
        raise NotFound(
            "schedule files", path, "has no .yaml file with `on:`", "write <notebook name>.yaml beside the notebook"
        )
    return found


def parse(path: Path) -> File:
    content = _mapping(path)
    try:
        return msgspec.convert(content, File)
    except msgspec.ValidationError as error:
        unknown = re.search(r"unknown field `(\w+)`", str(error))
        known = {"with" if f == "with_" else f for kind in (File, On, Cron, OnEvent) for f in kind.__struct_fields__}
        raise BadInput(
            f"schedule file {path.name}",
            unknown[1] if unknown else "",
            str(error),
            near_miss(unknown[1], known) if unknown else "look at: cellwork job apply --help",
        ) from None


def _mapping(path: Path) -> dict[str, Any]:
    return parameters.from_yaml(path.read_text(), f"schedule file {path.name}")


def _schedule(on: On, path: Path) -> Schedule:
    if on.schedule and on.event:
        raise BadInput(
            f"schedule file {path.name}",
            "on",
            "has a schedule and an event",
            "write two files for one notebook, with `notebook:` in each",
        )
    if on.schedule:
        return Schedule(cron=on.schedule.cron, timezone=on.schedule.timezone)
    return Schedule(event=on.event.name, match=on.event.match) if on.event else Schedule()


def check(schedule: Schedule, values: Mapping[str, Any]) -> None:
    """Raise BadInput unless `schedule` can come due and fills every variable in `values`."""
    clock.zone(schedule.timezone)
    if schedule.cron and schedule.event:
        raise BadInput("schedule", schedule.cron, "is given beside an event", "give one of them")
    if schedule.cron and next(clock.fires(schedule.cron, clock.now(), schedule.timezone), None) is None:
        raise BadInput("cron", schedule.cron, "is never due", "write five fields: minute hour day month weekday")
    if schedule.event and schedule.event not in EVENTS:
        raise BadInput("event", schedule.event, "is not one of the platform's", near_miss(schedule.event, EVENTS))
    for variable in _variables(values):
        if (
            variable not in ALWAYS
            and not (schedule.event and variable.startswith("event."))
            and not (variable == "batch" and schedule.event.startswith("batch."))
        ):
            known = [
                *ALWAYS,
                *(["event.<field>"] if schedule.event else []),
                *(["batch"] if schedule.event.startswith("batch.") else []),
            ]
            raise BadInput(
                "variable", f"${{{variable}}}", "has no value under this schedule", near_miss(variable, known)
            )


def _variables(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from VARIABLE.findall(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _variables(item)
    elif isinstance(value, list):
        for item in value:
            yield from _variables(item)


def variables(due: datetime, timezone: str = "UTC", event: Event | None = None) -> dict[str, Any]:
    """Return what ``${…}`` stands for at a fire."""
    known: dict[str, Any] = {
        "date": due.astimezone(clock.zone(timezone)).date().isoformat(),
        "due": clock.utc(due).isoformat(),
    }
    if event:
        fields = {"id": event.id, "name": event.name, "project": event.project, "subject": event.subject, **event.data}
        known |= {f"event.{key}": value for key, value in fields.items()}
        if event.name.startswith("batch."):
            known["batch"] = event.data.get("batch", event.subject)
    return known


def expand(value: Any, known: Mapping[str, Any]) -> Any:
    """Return `value` with every ``${…}`` filled in; a text that is one variable takes its value with its type.

    Raises
    ------
    BadInput
        A variable without a value.
    """
    if isinstance(value, Mapping):
        return {key: expand(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, known) for item in value]
    if not isinstance(value, str):
        return value
    missing = next((name for name in VARIABLE.findall(value) if name not in known), None)
    if missing is not None:
        raise BadInput(
            "variable", f"${{{missing}}}", "has no value here", f"give the parameter itself {near_miss(missing, known)}"
        )
    whole = VARIABLE.fullmatch(value)
    return known[whole[1]] if whole else VARIABLE.sub(lambda match: str(known[match[1]]), value)


def tried(schedule: Schedule, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` as a fire would fill them, without those that only an event knows."""
    known = variables(clock.now(), schedule.timezone)
    return {
        key: expand(value, known) for key, value in values.items() if all(name in known for name in _variables(value))
    }


def beside(notebook: Path, folder: Path, root: project.Project | None) -> dict[str, str]:
    """Return the text files that travel with `notebook`: the project's file and definitions, and the modules beside both."""
    chosen = {*notebook.parent.glob("*.py"), *folder.glob("*.py")}
    if root:
        chosen |= {root.folder / project.FILE, *root.definitions}
    found = sorted(path.resolve() for path in chosen if path.is_file() and path.resolve().is_relative_to(folder))
    large = next((path for path in found if path.stat().st_size > MOST_FILE_BYTES), None)
    if large or len(found) > MOST_FILES:
        raise BadInput(
            "files beside the notebook",
            large or len(found),
            f"are over {MOST_FILE_BYTES // 1024} KiB or {MOST_FILES} files",
            "install what is large as a package",
        )
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}
