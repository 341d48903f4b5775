"""Jobs and runs in jupyter-scheduler's words: its job definition is our job, its job is our run.

What its form knows and our records don't (a display name, tags, wanted formats) travels as labels, so that nothing is kept in
the user's server. Its ids need a hyphen: ``run_x`` is ``run-x`` there; a definition made in Lab has an id of its own.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import msgspec
from jupyter_scheduler import models

from cellwork import clock
from cellwork.wire.jobs import Job, Run

PREFIX = "jupyter."
STATUS = {
    "queued": models.Status.QUEUED, "running": models.Status.IN_PROGRESS, "succeeded": models.Status.COMPLETED,
    "failed": models.Status.FAILED, "stopped": models.Status.STOPPED,
}  # fmt: skip
STATES = {status: state for state, status in STATUS.items()}
KEPT = (
    "name", "tags", "output_formats", "output_filename_template", "runtime_environment_name", "runtime_environment_parameters", "compute_type",
    "package_input_folder", "packaged_files", "idempotency_token", "create_time", "update_time", "job_definition_id",
)  # fmt: skip


def labels(model: Mapping[str, Any]) -> dict[str, str]:
    """Return as labels what of a form's fields our records have no place for."""
    return {PREFIX + key: msgspec.json.encode(model[key]).decode() for key in KEPT if model.get(key) is not None}


def of_labels(kept: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that `labels` made labels of; those of other tools are left alone."""
    mine = {key.removeprefix(PREFIX): text for key, text in kept.items() if key.startswith(PREFIX)}
    return {key: msgspec.json.decode(text) for key, text in mine.items() if key in KEPT}


def millis(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def now() -> int:
    return millis(clock.now())


def new_id() -> str:
    return str(uuid.uuid4())


def definition_id(job: Job) -> str:
    return str(of_labels(job.labels).get("job_definition_id") or job.id.replace("_", "-"))


def job_id(run: str) -> str:
    return run.replace("_", "-")


def run_id(job: str) -> str:
    return job.replace("-", "_")


def slug(name: str, taken: Iterable[str]) -> str:
    """Return a job's name for what a person called it, and not one of `taken`."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "job"
    plain = (plain if plain[0].isalpha() else f"job-{plain}")[:55].rstrip("-")
    others = set(taken)
    names = [plain, *(f"{plain}-{n}" for n in range(2, len(others) + 2))]
    return next(name for name in names if name not in others)


def definition(job: Job) -> models.DescribeJobDefinition:
    kept = of_labels(job.labels)
    created = kept.get("create_time", 0)
    return models.DescribeJobDefinition(
        **{
            **_common(kept, job.notebook, job.parameters),
            "name": kept.get("name") or job.name,
            "job_definition_id": definition_id(job),
            "create_time": created,
            "update_time": kept.get("update_time", created),
            "schedule": job.schedule.cron or None,
            "timezone": job.schedule.timezone if job.schedule.cron else None,
            "active": not job.paused,
        }
    )


def job(run: Run, definitions: Mapping[str, str]) -> models.DescribeJob:
    """Return the run in their words; `definitions` are the ids of jobs by full name."""
    kept = of_labels(run.labels)
    first, last = (run.attempts[0], run.attempts[-1]) if run.attempts else (None, None)
    return models.DescribeJob(
        **{
            **_common(kept, run.notebook, run.parameters),
            "name": kept.get("name") or run.job.partition("/")[2] or PurePosixPath(run.notebook).stem,
            "idempotency_token": kept.get("idempotency_token"),
            "job_id": job_id(run.id),
            "job_definition_id": definitions.get(run.job) or (kept.get("job_definition_id") if run.job else None),
            "url": f"/jobs/{job_id(run.id)}",
            "create_time": millis(run.created),
            "update_time": millis((last.ended or last.started) if last else run.created),
            "start_time": millis(first.started) if first else None,
            "end_time": millis(last.ended) if last and last.ended else None,
            "status": STATUS[run.state],
            "status_message": (last.error or None) if last else None,
        }
    )


def _common(kept: Mapping[str, Any], notebook: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("tags", "output_formats", "runtime_environment_parameters", "compute_type", "package_input_folder")
    return {
        **{key: kept.get(key) for key in keys},
        "output_filename_template": kept.get("output_filename_template"),
        "runtime_environment_name": kept.get("runtime_environment_name") or "cellwork",
        "input_filename": PurePosixPath(notebook).name,
        "parameters": {key: _text(value) for key, value in parameters.items()} or None,
        "packaged_files": kept.get("packaged_files", []),
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
