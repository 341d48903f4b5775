"""Jobs as Airflow DAGs: a folder for each job with its notebook and the files beside it, and a DAG file that runs `cellwork run` on it.

The DAG file needs Airflow 3 and nothing of ours: the program `cellwork` (or ``$CELLWORK_PROGRAM``) may live in an environment
of its own. Values of a job stand in it as Python literals, never in a template and never in a shell. What Airflow has no means
for is refused (events of the platform, the last success) or named at the top of the file.
"""

from __future__ import annotations

import json
import pprint
from pathlib import Path

from cellwork import files
from cellwork.errors import BadInput
from cellwork.jobs import schedule
from cellwork.wire.jobs import JobRequest

KNOWN = frozenset({"date", "due"})
DAG = '''"""Written by `cellwork job export airflow`; write it again after a change of the job. LEFT_OUT"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import zoneinfo
from pathlib import Path

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Asset
from airflow.timetables.trigger import CronTriggerTimetable, DeltaTriggerTimetable

JOB = {'JOB': 0}
FOLDER = Path(__file__).resolve().parent / JOB["dag"]


def run_notebook(logical_date=None, run_id="", **_):
    """Execute the notebook with the values of this time; its output is kept beside it, by the run's id."""
    due = logical_date or datetime.datetime.now(datetime.timezone.utc)
    known = {
        "date": due.astimezone(zoneinfo.ZoneInfo(JOB["timezone"])).date().isoformat(),
        "due": due.astimezone(datetime.timezone.utc).isoformat(),
    }
    folder = Path(os.environ.get("CELLWORK_OUTPUT", FOLDER / "runs"))
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / ("".join(c if c.isalnum() else "-" for c in run_id) + ".ipynb")
    command = [os.environ.get("CELLWORK_PROGRAM", "cellwork"), "run", "here", str(FOLDER / JOB["notebook"]), "-o", str(output)]
    command += ["-y", json.dumps(filled(JOB["parameters"], known)), "--timeout", str(JOB["timeout_seconds"])]
    if JOB["cell_timeout_seconds"]:
        command += ["--cell-timeout", str(JOB["cell_timeout_seconds"])]
    subprocess.run(command, check=True, cwd=FOLDER)
    return str(output)


def filled(value, known):
    if isinstance(value, dict):
        return {key: filled(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, known) for item in value]
    if isinstance(value, str):
        for name, text in known.items():
            value = value.replace("${" + name + "}", text)
    return value


def schedule():
    if JOB["cron"]:
        return CronTriggerTimetable(JOB["cron"], timezone=JOB["timezone"])
    if JOB["every_seconds"]:
        return DeltaTriggerTimetable(datetime.timedelta(seconds=JOB["every_seconds"]))
    return [Asset("cellwork://" + JOB["after"])] if JOB["after"] else None


with DAG(
    JOB["dag"],
    schedule=schedule(),
    start_date=datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=JOB["catch_up"],
    max_active_runs=JOB["concurrency"],
    tags=["cellwork"],
):
    PythonOperator(
        task_id="run",
        python_callable=run_notebook,
        retries=JOB["retries"],
        retry_delay=datetime.timedelta(seconds=JOB["backoff_seconds"]),
        retry_exponential_backoff=True,
        execution_timeout=datetime.timedelta(seconds=JOB["timeout_seconds"] + 60),
        priority_weight=JOB["priority"],
        outlets=[Asset("cellwork://" + JOB["name"])],
    )
'''


def export(job: JobRequest, folder: Path) -> Path:
    """Write the DAG file of `job` and its notebook's folder into `folder`, whole or not at all, and return the file's path.

    Raises
    ------
    BadInput
        The job waits for an event, or a parameter needs a value that Airflow does not know.
    """
    check(job)
    name = f"{job.project}__{job.name}"
    beside = folder / name
    for path, content in {**job.files, job.notebook: job.content}.items():
        target = beside / path
        if not target.resolve().is_relative_to(beside.resolve()):
            raise BadInput("file", path, "lies outside the job's folder", "use plain relative paths")
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write(target, content)
    files.write(folder / f"{name}.py", source(job))
    return folder / f"{name}.py"


def check(job: JobRequest) -> None:
    full = f"{job.project}/{job.name}"
    if job.schedule.event:
        raise BadInput("job", full, f"waits for the platform's event {job.schedule.event!r}, which Airflow does not hear of", "leave it to the jobs service")  # fmt: skip
    unknown = sorted(set(schedule.used(job.parameters)) - KNOWN)
    if unknown:
        raise BadInput("job", full, f"uses ${{{unknown[0]}}}, which Airflow does not know", "use ${date} or ${due}, or leave it to the jobs service")  # fmt: skip


def source(job: JobRequest) -> str:
    """Return the text of the DAG file."""
    about = {
        "name": f"{job.project}/{job.name}", "dag": f"{job.project}__{job.name}", "notebook": job.notebook, "parameters": job.parameters,
        "cron": job.schedule.cron, "timezone": job.schedule.timezone, "every_seconds": job.schedule.every_seconds, "after": job.schedule.after,
        "catch_up": job.schedule.catch_up == "all", "timeout_seconds": job.timeout_seconds, "cell_timeout_seconds": job.policy.cell_timeout_seconds,
        "retries": job.retries, "backoff_seconds": job.policy.backoff_seconds or 5, "concurrency": job.concurrency,
        "priority": max(1, job.policy.priority + 1),
    }  # fmt: skip
    plain = json.loads(json.dumps(about))  # what JSON can say is a literal of Python, too
    return DAG.replace("LEFT_OUT", _left_out(job)).replace(
        "{'JOB': 0}", pprint.pformat(plain, width=100, sort_dicts=False)
    )


def _left_out(job: JobRequest) -> str:
    """Say what of the job the DAG does not carry."""
    policy = job.policy
    lost = {
        "the deadline": policy.deadline_seconds, "the memory limit": policy.memory_megabytes, "notifications": policy.notify,
        "how many runs are kept": policy.keep_runs, "that what comes while it runs is left out": policy.while_running == "skip",
        "that missed times are dropped (the last one is made up for)": job.schedule.catch_up == "none",
    }  # fmt: skip
    named = [name for name, value in lost.items() if value]
    return f"Not carried over: {', '.join(named)}." if named else "It carries over all of the job's policy."


def exported(jobs: list[JobRequest], folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Export what can be exported; return the DAG files, and why each of the others was left."""
    made, left = list[Path](), dict[str, str]()
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        try:
            made.append(export(job, folder))
        except BadInput as error:
            left[f"{job.project}/{job.name}"] = str(error)
    return made, left
