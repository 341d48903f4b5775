"""The schedule file beside a notebook: when it runs, with which parameters; read into the request the jobs service takes.

    notebook: score.ipynb                # default: the file's own name
    on:
      schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}
    # on: {schedule: {every: 15m, catch_up: none}}                 # catch_up: all, last (default) or none of the missed times
    # on: {event: {name: batch.ready, match: {dataset: flights}}}
    # on: {after: ingest}                                          # after each success of another job
    with: {day: "${date}"}
    timeout: 30m                         # of the run; also cell_timeout, memory: 2GB
    retries: 1                           # also backoff: 30s
    concurrency: 1                       # also priority: 5, deadline: 2h
    while_running: skip                  # what comes meanwhile is left out; default: queue
    keep: 30                             # ended runs
    notify: [{on: [failed], mail: [ada@example.org]}, {webhook: "https://example.org/hook"}, {on: [succeeded], lab: true}]

`${date}` is the day on the job's clocks, `${due}` the time it was due (or the event's), `${last_success}` when the last run that
succeeded was due (empty before the first), `${batch}` the batch of a `batch.…` event, `${event.<field>}` any field of the event,
`${run}` the run after which it comes. Everything is checked here, before the service hears of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from cellwork import clock, ids, notify, project
from cellwork.errors import BadInput, NotFound, near_miss
from cellwork.runs import parameters
from cellwork.wire import Struct
from cellwork.wire.jobs import CatchUp, JobRequest, Notify, Policy, Schedule, WhileRunning
from cellwork.wire.records import EVENTS, Event

VARIABLE = re.compile(r"\$\{([^}]*)\}")
ALWAYS = ("date", "due", "last_success")
SIZES = {"MB": 1, "GB": 1024}
MOST_FILE_BYTES, MOST_FILES = 256 * 1024, 200


class Cron(Struct, forbid_unknown_fields=True):
    cron: str = ""
    timezone: str = "UTC"
    every: str = ""
    catch_up: CatchUp = "last"


class OnEvent(Struct, forbid_unknown_fields=True):
    name: str
    match: dict[str, str] = {}


class On(Struct, forbid_unknown_fields=True):
    schedule: Cron | None = None
    event: OnEvent | None = None
    after: str = ""
    """Another job; a short name is one of the same project."""


class File(Struct, forbid_unknown_fields=True, rename={"with_": "with"}):
    """The form of a schedule file."""

    notebook: str = ""
    project: str = ""
    """Default: the project of the folder."""
    on: On = msgspec.field(default_factory=On)
    with_: dict[str, Any] = {}
    timeout: str = ""
    cell_timeout: str = ""
    memory: str = ""
    retries: int = 0
    backoff: str = ""
    concurrency: int = 1
    while_running: WhileRunning = "queue"
    priority: int = 0
    deadline: str = ""
    keep: int = 0
    notify: list[Notify] = []


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
    root = project.find(path.parent.absolute()) if not file.project else None
    schedule = _schedule(file.on, path, root.name if root else file.project)
    notebook = (path.parent / (file.notebook or f"{name}.ipynb")).resolve()
    folder = root.folder.resolve() if root and notebook.is_relative_to(root.folder.resolve()) else notebook.parent
    if not notebook.is_file():
        raise NotFound(
            f"notebook of {path.name}", notebook, "is not there", "write its path as `notebook:`, relative to the file"
        )
    text = notebook.read_text()
    check(schedule, file.with_)
    check_parameters(schedule, file.with_, parameters.read(text, notebook.name), notebook.name)
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
        timeout_seconds=_seconds(file.timeout) or 3600,
        retries=file.retries,
        concurrency=file.concurrency,
        policy=_policy(file),
    )


def _seconds(text: str) -> int:
    return int(clock.duration(text).total_seconds()) if text else 0


def _policy(file: File) -> Policy:
    memory = re.fullmatch(r"(\d+)\s*(MB|GB)|", file.memory)
    if memory is None:
        raise BadInput("memory", file.memory, "is not a size", "write 512MB or 2GB")
    policy = Policy(
        priority=file.priority, backoff_seconds=_seconds(file.backoff), deadline_seconds=_seconds(file.deadline),
        cell_timeout_seconds=_seconds(file.cell_timeout), memory_megabytes=int(memory[1]) * SIZES[memory[2]] if memory[1] else 0,
        while_running=file.while_running, keep_runs=file.keep, notify=file.notify,
    )  # fmt: skip
    check_policy(policy)
    return policy


def check_policy(policy: Policy) -> None:
    """Raise BadInput unless every part of `policy` can be held to."""
    for name, value, least, most in (
        ("priority", policy.priority, -100, 100),
        ("backoff", policy.backoff_seconds, 0, 3600),
        ("deadline", policy.deadline_seconds, 0, 31 * 86_400),
        ("cell_timeout", policy.cell_timeout_seconds, 0, 7 * 86_400),
        ("memory", policy.memory_megabytes, 0, 1 << 20),
        ("keep", policy.keep_runs, 0, 100_000),
    ):
        if not least <= value <= most:
            raise BadInput(name, value, "is out of range", f"choose from {least} to {most}")
    for told in policy.notify:
        if bool(told.webhook) + bool(told.mail) + told.lab != 1:
            raise BadInput("notify", "", "has no webhook, mail or lab, or several", "write one entry for each")
        if told.webhook:
            notify.check_address(told.webhook)
        for address in told.mail:
            notify.check_mail(address)


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
        known = {
            "with" if f == "with_" else f for kind in (File, On, Cron, OnEvent, Notify) for f in kind.__struct_fields__
        }
        raise BadInput(
            f"schedule file {path.name}",
            unknown[1] if unknown else "",
            str(error),
            near_miss(unknown[1], known) if unknown else "look at: cellwork job apply --help",
        ) from None


def _mapping(path: Path) -> dict[str, Any]:
    return parameters.from_yaml(path.read_text(), f"schedule file {path.name}")


def _schedule(on: On, path: Path, of: str) -> Schedule:
    given = [name for name, value in (("schedule", on.schedule), ("event", on.event), ("after", on.after)) if value]
    if len(given) > 1:
        way_out = "write a file for each, with `notebook:` in it"
        raise BadInput(f"schedule file {path.name}", "on", f"has {' and '.join(given)}", way_out)
    if on.schedule:
        every = _seconds(on.schedule.every)
        told = {"timezone": on.schedule.timezone, "catch_up": on.schedule.catch_up}
        return Schedule(cron=on.schedule.cron, every_seconds=every, **told)  # type: ignore[arg-type]
    if on.after:
        return Schedule(after=on.after if "/" in on.after else f"{of}/{on.after}")
    return Schedule(event=on.event.name, match=on.event.match) if on.event else Schedule()


def check(schedule: Schedule, values: Mapping[str, Any]) -> None:
    """Raise BadInput unless `schedule` can come due and fills every variable in `values`."""
    clock.zone(schedule.timezone)
    given = [w for w in (schedule.cron, schedule.every_seconds, schedule.event, schedule.after) if w]
    if len(given) > 1:
        raise BadInput("schedule", given[0], f"is given beside {given[1]!r}", "give one of them")
    five = "write five fields: minute hour day month weekday"
    if schedule.cron and (fields := len(schedule.cron.split())) != 5:
        raise BadInput("cron", schedule.cron, f"has {fields} fields", five)
    if schedule.cron and next(due(schedule, clock.now()), None) is None:
        raise BadInput("cron", schedule.cron, "is never due", five)
    if schedule.every_seconds < 0 or schedule.every_seconds > 366 * 86_400:
        raise BadInput("every", schedule.every_seconds, "is out of range", "write 15m, 6h or 7d")
    if schedule.after:
        ids.split_name(schedule.after)
    if schedule.event and schedule.event not in EVENTS:
        raise BadInput("event", schedule.event, "is not one of the platform's", near_miss(schedule.event, EVENTS))
    for variable in used(values):
        if (
            variable not in ALWAYS
            and not (schedule.event and variable.startswith("event."))
            and not (variable == "batch" and schedule.event.startswith("batch."))
            and not (variable == "run" and schedule.after)
        ):
            known = [
                *ALWAYS,
                *(["event.<field>"] if schedule.event else []),
                *(["batch"] if schedule.event.startswith("batch.") else []),
                *(["run"] if schedule.after else []),
            ]
            raise BadInput(
                "variable", f"${{{variable}}}", "has no value under this schedule", near_miss(variable, known)
            )


def due(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """Yield the times after `after` at which `schedule` is due by the clock; none if it follows events, another job or nobody."""
    if schedule.cron:
        return clock.fires(schedule.cron, after, schedule.timezone)
    if schedule.every_seconds:
        return clock.ticks(timedelta(seconds=schedule.every_seconds), after)
    return iter(())


def used(value: Any) -> Iterator[str]:
    """Yield the names of the variables in `value`."""
    if isinstance(value, str):
        yield from VARIABLE.findall(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from used(item)
    elif isinstance(value, list):
        for item in value:
            yield from used(item)


def variables(
    due: datetime, timezone: str = "UTC", event: Event | None = None, *, last_success: datetime | None = None, run: str = ""
) -> dict[str, Any]:  # fmt: skip
    """Return what ``${…}`` stands for at a fire."""
    known: dict[str, Any] = {
        "date": due.astimezone(clock.zone(timezone)).date().isoformat(),
        "due": clock.utc(due).isoformat(),
        "last_success": clock.utc(last_success).isoformat() if last_success else "",
        **({"run": run} if run else {}),
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
    return {key: expand(value, known) for key, value in values.items() if all(name in known for name in used(value))}


def check_parameters(schedule: Schedule, values: Mapping[str, Any], notebook: parameters.Notebook, name: str) -> None:
    """Raise BadInput unless a fire can hand `values` to `notebook`; of what only an event or another run knows, the names are checked."""
    now = tried(schedule, values)
    parameters.check(notebook, now, name, later=values.keys() - now.keys())


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
