"""Lab's "Create Notebook Job" through our scheduler: real requests to a jobs service; what came of them is asked of the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from jobs_world import World, page
from jupyter_scheduler import models
from jupyter_scheduler.exceptions import IdempotencyTokenError, InputUriError, SchedulerError
from users_server import a_users_server

from cellwork.wire.jobs import Progress
from cellwork_jupyter.server.environments import CellworkEnvironments
from cellwork_jupyter.server.scheduler import CellworkScheduler, Scheduler

PAGE = page("days: int = 3\nword: str = 'x'", parameters=True)


@pytest.fixture
def scheduler(shop: Path) -> Scheduler:
    (shop / "report.ipynb").write_text(PAGE)
    return Scheduler(root_dir=str(shop), environments_manager=CellworkEnvironments(), staging_path=str(shop / "staging"))  # fmt: skip


def form(**fields: object) -> dict[str, object]:
    return {"input_uri": "report.ipynb", "name": "My report", "runtime_environment_name": "cellwork", "output_formats": ["ipynb", "html"], **fields}  # fmt: skip


def test_a_scheduled_job_of_labs_form_is_a_job_of_the_service(scheduler: Scheduler, world: World) -> None:
    asked = form(schedule="0 3 * * 1-5", timezone="Europe/Berlin", parameters={"days": "7", "word": "7"}, tags=["night"])  # fmt: skip
    made = scheduler.create_job_definition(models.CreateJobDefinition(**asked))
    jobs = world.client().jobs
    job = jobs.get("shop/my-report")
    assert (job.schedule.cron, job.schedule.timezone, job.owner) == ("0 3 * * 1-5", "Europe/Berlin", "ada")
    assert job.parameters == {"days": 7, "word": "7"}, "text becomes what the notebook declares"
    shown = scheduler.get_job_definition(made)
    assert (shown.name, shown.tags, shown.active, shown.parameters) == ("My report", ["night"], True, {"days": "7", "word": "7"})  # fmt: skip
    scheduler.update_job_definition(made, models.UpdateJobDefinition(schedule="0 4 * * *", active=False))
    job = jobs.get("shop/my-report")
    assert (job.schedule.cron, job.schedule.timezone, job.paused) == ("0 4 * * *", "Europe/Berlin", True)
    assert jobs.request("shop/my-report").content == PAGE, "a change of the time leaves the notebook"
    run = scheduler.create_job_from_definition(made, models.CreateJobFromDefinition(parameters={"days": "9"}))
    assert scheduler.get_job(run, False).job_definition_id == made
    assert jobs.run(run.replace("-", "_")).parameters == {"days": 9, "word": "7"}
    assert [j.job_id for j in scheduler.list_jobs(models.ListJobsQuery(job_definition_id=made)).jobs] == [run]
    second = scheduler.create_job_definition(models.CreateJobDefinition(**form()))
    assert {j.name for j in jobs.list("shop")} == {"my-report", "my-report-2"}, "two may be called the same in Lab"
    for one in (made, second):
        scheduler.delete_job_definition(one)
    assert list(jobs.list("shop")) == []


def test_a_run_started_in_lab_is_followed_to_its_files_and_forgotten(scheduler: Scheduler, world: World) -> None:
    made = scheduler.create_job(models.CreateJob(**form(parameters={"days": "5"}, idempotency_token="once")))
    assert scheduler.get_job(made).status == models.Status.QUEUED
    with pytest.raises(IdempotencyTokenError):
        scheduler.create_job(models.CreateJob(**form(idempotency_token="once")))
    runner = world.client("runner").jobs
    claim = runner.claim("r", wait_seconds=5)
    assert claim is not None
    assert scheduler.count_jobs(models.CountJobsQuery()) == 1
    executed = json.loads(PAGE)
    executed["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "seen by the reader"}]
    runner.report(claim.run.id, Progress(fence=claim.fence, state="succeeded", cell=1, cells=1, notebook=json.dumps(executed)))  # fmt: skip
    job = scheduler.get_job(made)
    assert (job.status, job.name, job.parameters) == (models.Status.COMPLETED, "My report", {"days": "5"})
    assert job.start_time is not None
    paths = scheduler.get_staging_paths(job)
    assert set(paths) == {"ipynb", "html", "input"}
    assert all("seen by the reader" in Path(paths[kind]).read_text() for kind in ("ipynb", "html"))
    scheduler.delete_job(made)
    assert made not in {one.job_id for one in scheduler.list_jobs(models.ListJobsQuery()).jobs}
    with pytest.raises(SchedulerError, match="does not exist"):
        scheduler.get_job(made)


def test_what_cannot_be_said_to_the_service_is_told_in_its_words(scheduler: Scheduler, tmp_path: Path) -> None:
    with pytest.raises(InputUriError):
        scheduler.create_job(models.CreateJob(**form(input_uri="../elsewhere.ipynb")))
    with pytest.raises(SchedulerError, match=r"dayz.*did you mean 'days'"):
        scheduler.create_job(models.CreateJob(**form(parameters={"dayz": "1"})))
    with pytest.raises(SchedulerError, match="99 3"):
        scheduler.create_job_definition(models.CreateJobDefinition(**form(schedule="99 3 * * *")))
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(SchedulerError, match=r"photo.png is not text"):
        scheduler.create_job(models.CreateJob(**form(package_input_folder=True)))
    with pytest.raises(SchedulerError, match="does not exist"):
        scheduler.get_job_definition("no-such-job")


@pytest.fixture
def server(scheduler: Scheduler, shop: Path) -> Iterator[httpx.Client]:
    with a_users_server(shop) as client:
        yield client


def test_a_users_server_hands_labs_form_to_the_service(server: httpx.Client, world: World) -> None:
    assert [one["name"] for one in server.get("/scheduler/runtime_environments").json()] == ["cellwork"]
    assert server.get("/scheduler/config").json()["supported_features"]["stop_job"]
    answer = server.post("/scheduler/job_definitions", json=form(name="From Lab", schedule="0 3 * * *", timezone="UTC"))
    assert answer.is_success, answer.text
    job = world.client().jobs.get("shop/from-lab")
    assert job.schedule.cron == "0 3 * * *"
    run = server.post(f"/scheduler/job_definitions/{answer.json()['job_definition_id']}/jobs", json={}).json()["job_id"]
    assert world.client().jobs.run(run.replace("-", "_")).job == "shop/from-lab"
    assert server.patch(f"/scheduler/jobs/{run}", json={"status": "STOPPED"}).status_code == 204
    assert world.client().jobs.run(run.replace("-", "_")).state == "stopped"
    refused = server.post("/scheduler/jobs", json=form(parameters={"dayz": "1"}))
    assert "did you mean 'days'" in refused.json()["message"]
    assert server.delete(f"/scheduler/job_definitions/{answer.json()['job_definition_id']}").status_code == 204
    assert list(world.client().jobs.list("shop")) == []


async def _ask(scheduler: CellworkScheduler) -> object:
    return await scheduler.list_job_definitions(models.ListJobDefinitionsQuery())


def test_in_labs_server_questions_are_answered_on_a_thread(scheduler: Scheduler, tmp_path: Path) -> None:
    import anyio

    inside = CellworkScheduler(root_dir=str(tmp_path), environments_manager=CellworkEnvironments())
    answer = anyio.run(_ask, inside)
    assert isinstance(answer, models.ListJobDefinitionsResponse)
