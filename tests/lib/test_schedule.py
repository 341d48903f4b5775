"""The schedule file beside a notebook becomes the request of its job, or an error that names file and value."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork import clock
from cellwork.errors import BadInput, NotFound
from cellwork.jobs import schedule
from cellwork.wire.jobs import Notify, Policy, Schedule
from cellwork.wire.records import Event

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project `flights` with the notebook jobs/score.ipynb."""
    jobs = tmp_path / "project" / "jobs"
    jobs.mkdir(parents=True)
    (tmp_path / "project" / "cellwork.toml").write_text(
        '[project]\nname = "flights"\n[features]\npaths = ["definitions/all.py"]\n'
    )
    shutil.copy(NOTEBOOKS / "works.ipynb", jobs / "score.ipynb")
    return jobs


def write(folder: Path, text: str, name: str = "score.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_cron_schedule_is_read_with_its_zone_parameters_and_limits(folder: Path) -> None:
    text = 'on:\n  schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}\nwith: {name: "${date}"}\ntimeout: 30m\nretries: 1\n'
    request = schedule.read(write(folder, text))
    assert (request.project, request.name, request.notebook) == ("flights", "score", "jobs/score.ipynb")
    assert request.schedule == Schedule(cron="0 3 * * *", timezone="Europe/Berlin")
    assert (request.parameters, request.timeout_seconds, request.retries) == ({"name": "${date}"}, 1800, 1)


def test_an_event_schedule_fills_the_batch(folder: Path) -> None:
    text = (
        'notebook: score.ipynb\non: {event: {name: batch.ready, match: {dataset: flights}}}\nwith: {name: "${batch}"}\n'
    )
    request = schedule.read(write(folder, text, "on-batch.yaml"))
    assert request.name == "on-batch"
    assert request.schedule == Schedule(event="batch.ready", match={"dataset": "flights"})


def test_the_projects_file_definitions_and_the_modules_beside_travel_along(folder: Path) -> None:
    root = folder.parent
    (root / "definitions").mkdir()
    for path in ("definitions/all.py", "helper.py", "jobs/beside.py", "jobs/data.csv"):
        (root / path).write_text("x = 1\n")
    request = schedule.read(write(folder, "{}"))
    assert sorted(request.files) == ["cellwork.toml", "definitions/all.py", "helper.py", "jobs/beside.py"]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("on: {schedul: {cron: '* * * * *'}}", "did you mean 'schedule'"),
        ("on: {schedule: {cron: '61 * * * *'}}", "61"),
        ("on: {schedule: {cron: '0 0 31 2 *'}}", "cron"),
        ("on: {schedule: {cron: '* * * * * *'}}", "has 6 fields"),
        ("on: {schedule: {cron: '0 3 * * *', timezone: Europe/Berln}}", "time zone 'Europe/Berln'"),
        ("on: {event: {name: batch.reddy}}", "did you mean 'batch.ready'"),
        ("on: {schedule: {cron: '0 3 * * *'}}\nwith: {name: '${batch}'}", "has no value under this schedule"),
        ("on: {schedule: {cron: '0 3 * * *'}}\nwith: {nmae: x}", "did you mean 'name'"),
        ("with: {x: '3'}", "not of type int"),
        ("on: {schedule: {cron: '0 3 * * *'}, event: {name: batch.ready}}", "a file for each"),
        ("on: {schedule: {every: soon}}", "duration 'soon'"),
        ("memory: lots", "512MB or 2GB"),
        ("notify: [{mail: [nobody]}]", "not an address"),
        ("on: {schedule: {cron: '0 3 * * *', catch_up: some}}", "catch_up"),
        ("timeout: 30 minutes", "duration '30 minutes'"),
        ("retries: -1", "out of range"),
        ("notebook: missing.ipynb", "is not there"),
        ("on: [", "line 1"),
        ("just text", "not a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_a_way_out(folder: Path, text: str, verdict: str) -> None:
    with pytest.raises((BadInput, NotFound), match=verdict):
        schedule.read(write(folder, text))


def test_everything_a_job_can_say_is_read(folder: Path) -> None:
    text = """
on: {schedule: {every: 15m, catch_up: all}}
cell_timeout: 5m
memory: 2GB
backoff: 30s
priority: 5
deadline: 2h
keep: 30
notify: [{on: [failed, succeeded], mail: [ada@example.org]}, {webhook: "https://example.org/hook"}]
"""
    request = schedule.read(write(folder, text))
    assert request.schedule == Schedule(every_seconds=900, catch_up="all")
    told = [Notify(on=("failed", "succeeded"), mail=["ada@example.org"]), Notify(webhook="https://example.org/hook")]
    assert request.policy == Policy(
        cell_timeout_seconds=300, memory_megabytes=2048, backoff_seconds=30, priority=5, deadline_seconds=7200, keep_runs=30, notify=told
    )  # fmt: skip
    after = schedule.read(write(folder, "notebook: score.ipynb\non: {after: ingest}", "next.yaml"))
    assert after.schedule == Schedule(after="flights/ingest")


def test_a_folder_gives_its_schedule_files_and_no_other_yaml(folder: Path) -> None:
    write(folder, "on: {schedule: {cron: '0 3 * * *'}}")
    write(folder, "services: {}", "compose.yaml")
    assert [path.name for path in schedule.files(folder)] == ["score.yaml"]
    with pytest.raises(NotFound, match=r"has no \.yaml file"):
        schedule.files(folder.parent)


def test_variables_keep_the_type_of_the_event_and_the_day_of_the_jobs_clock() -> None:
    event = Event(
        seq=1,
        id="evt_1",
        name="batch.ready",
        project="p",
        subject="bat_1",
        at=clock.now(),
        data={"dataset": "flights", "rows": 7},
    )
    known = schedule.variables(datetime(2013, 12, 24, 3, tzinfo=UTC), "America/New_York", event)
    values = {
        "day": "${date}",
        "rows": "${event.rows}",
        "text": "${batch}: ${event.rows} rows",
        "deep": ["${batch}", 1],
    }
    assert schedule.expand(values, known) == {
        "day": "2013-12-23",
        "rows": 7,
        "text": "bat_1: 7 rows",
        "deep": ["bat_1", 1],
    }
    with pytest.raises(BadInput, match=r"variable '\$\{event.row\}'.*event.rows"):
        schedule.expand("${event.row}", known)


@given(
    st.integers(0, 23),
    st.integers(0, 59),
    st.sampled_from(
        ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata", "America/Sao_Paulo", "UTC"]
    ),
    st.sampled_from(
        [
            datetime(2013, 3, 8, tzinfo=UTC),
            datetime(2013, 3, 29, tzinfo=UTC),
            datetime(2013, 11, 1, tzinfo=UTC),
            datetime(2013, 10, 4, tzinfo=UTC),
        ]
    ),
)
@settings(max_examples=60, deadline=None)
def test_a_daily_job_is_due_once_on_each_local_day_also_when_clocks_change(
    hour: int, minute: int, zone: str, start: datetime
) -> None:
    days: list[Any] = []
    for due in clock.fires(f"{minute} {hour} * * *", start, zone):
        if due > start + timedelta(days=6):
            break
        days.append(due.astimezone(clock.zone(zone)).date())
    assert days == sorted(set(days)), "no day twice, no step back"
    assert all(b - a == timedelta(days=1) for a, b in pairwise(days)), "no day left out"
    assert len(days) >= 5
