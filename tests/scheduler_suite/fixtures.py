"""Upstream's fixtures, with our scheduler on a running jobs service in the place of theirs on a database.

Their tests look into the database; `Mirror` is a session whose tables are filled from the service before each question, and
whose new rows are made there. `run.py` copies this file beside their tests, as their `conftest.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_world import World
from jupyter_scheduler import models, orm
from jupyter_scheduler import scheduler as theirs
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from cellwork_jupyter.server.environments import CellworkEnvironments
from cellwork_jupyter.server.scheduler import Scheduler

CHECKOUT = Path(os.environ["SCHEDULER_CHECKOUT"])
sys.path.insert(0, str(CHECKOUT))
pytest_plugins = ("jupyter_server.pytest_plugin", "pytest_jupyter.jupyter_server")
NOTEBOOK = '{"cells": [], "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}}, "nbformat": 4, "nbformat_minor": 5}'

theirs.Scheduler = Scheduler  # what their tests patch by name is the class that is asked


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    started = World(tmp_path_factory.mktemp("service"))
    os.environ |= {"CELLWORK_URL": started.url, "CELLWORK_TOKEN": "ada-token"}
    yield started
    started.close()


@pytest.fixture
def static_test_files_dir() -> Path:
    return CHECKOUT / "jupyter_scheduler" / "tests" / "static"


@pytest.fixture
def jp_scheduler_root_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace_root"
    folder.mkdir()
    (folder / "cellwork.toml").write_text('[project]\nname = "upstream"\n')
    for name in ("helloworld", "helloworld_1", "helloworld_2", "helloworld_3"):
        (folder / f"{name}.ipynb").write_text(NOTEBOOK)
    return folder


@pytest.fixture
def jp_scheduler_output_dir(jp_scheduler_root_dir: Path) -> Path:
    (jp_scheduler_root_dir / "jobs").mkdir()
    return jp_scheduler_root_dir / "jobs"


@pytest.fixture
def jp_scheduler_staging_dir(jp_data_dir: Path) -> Path:
    folder = jp_data_dir / "scheduler_staging_area"
    folder.mkdir()
    return folder


@pytest.fixture
def jp_scheduler_db_url() -> str:
    return "sqlite://"


@pytest.fixture
def jp_scheduler(world: World, jp_scheduler_root_dir: Path) -> Iterator[Scheduler]:
    made = Scheduler(root_dir=str(jp_scheduler_root_dir), environments_manager=CellworkEnvironments())
    made.db_session = lambda: Mirror(made)
    yield made
    for job in made.jobs.list():
        made.jobs.remove(f"{job.project}/{job.name}")
    for run in made.jobs.runs():
        made.jobs.forget(made.jobs.stop(run.id).id)


@pytest.fixture
def jp_scheduler_db(jp_scheduler: Scheduler) -> Iterator[Mirror]:
    with Mirror(jp_scheduler) as session:
        yield session


class Mirror(Session):
    """A session on an empty database that the service's jobs and runs are copied into before each question."""

    def __init__(self, of: Scheduler) -> None:
        engine = create_engine("sqlite://")
        orm.Base.metadata.create_all(engine)
        super().__init__(engine)
        self.of, self.added = of, list[Any]()

    def add(self, row: Any, **_: Any) -> None:
        self.added.append(row)

    def commit(self) -> None:
        for row in self.added:
            fields = {column.name: getattr(row, column.name) for column in row.__table__.columns}
            given = {key: value for key, value in fields.items() if value is not None}
            source = {"project": "upstream", "notebook": row.input_filename, "content": NOTEBOOK, "files": {}}
            self.of.make(given, source)
            if row.active is False:
                job = self.of._job(row.job_definition_id)
                self.of.jobs.pause(f"{job.project}/{job.name}")
        self.added.clear()

    def query(self, *what: Any, **options: Any) -> Any:
        self._copy()
        return super().query(*what, **options)

    def get(self, kind: Any, identity: Any, **options: Any) -> Any:
        self._copy()
        return super().get(kind, identity, **options)

    def _copy(self) -> None:
        for table in (orm.JobDefinition, orm.Job):
            for row in super().query(table).all():
                super().delete(row)
        super().flush()
        super().expunge_all()
        definitions = self.of.list_job_definitions(models.ListJobDefinitionsQuery()).job_definitions
        for table, found in (
            (orm.JobDefinition, definitions),
            (orm.Job, self.of.list_jobs(models.ListJobsQuery()).jobs),
        ):
            names = {column.name for column in table.__table__.columns}
            for record in found:
                super().add(table(**{key: value for key, value in record.dict().items() if key in names}))
        super().flush()


@pytest.fixture
def jp_server_config(world: World, jp_scheduler_root_dir: Path) -> dict[str, Any]:
    return {
        "ServerApp": {"jpserver_extensions": {"jupyter_scheduler": True}},
        "SchedulerApp": {
            "db_url": "sqlite://",
            "scheduler_class": "cellwork_jupyter.server.scheduler.Scheduler",
            "environment_manager_class": "jupyter_scheduler.tests.mocks.MockEnvironmentManager",
        },
        "BaseScheduler": {"execution_manager_class": "jupyter_scheduler.tests.mocks.MockExecutionManager"},
    }


@pytest.fixture(autouse=True)
def in_the_root(jp_scheduler_root_dir: Path) -> Iterator[None]:
    with contextlib.chdir(jp_scheduler_root_dir):
        yield
        shutil.rmtree("jobs", ignore_errors=True)
