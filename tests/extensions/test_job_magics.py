"""`%job` and `%runs` and their panels, on a jobs service: what a press did is asked of the service."""

from __future__ import annotations

from pathlib import Path

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from jobs_world import World, page

from cellwork.ui.jobs import JobForm, RunList
from cellwork.wire.jobs import Progress
from cellwork_jupyter.kernel.jobs import JobMagics

PAGE = page("days: int = 3", "print(days)", parameters=True)


@pytest.fixture
def magics(shop: Path, monkeypatch: pytest.MonkeyPatch) -> JobMagics:
    monkeypatch.chdir(shop)
    (shop / "report.ipynb").write_text(PAGE)
    return JobMagics(InteractiveShell.instance())


def test_the_form_makes_a_job_and_runs_the_notebook(magics: JobMagics, world: World) -> None:
    form, jobs = magics.job("report.ipynb"), world.client().jobs
    assert isinstance(form, JobForm)
    form.cron.value = "99 3 * * *"
    assert "99 3 * * *" in form.message.value, "what is wrong is said while it is typed"
    form.make_button.click()
    assert list(jobs.list("shop")) == [], "nothing is made of a cron line that is none"
    form.cron.value, form.fields["days"].value = "0 3 * * *", "7"
    assert "next due" in form.message.value
    form.make_button.click()
    job = jobs.get("shop/report")
    assert (job.schedule.cron, job.parameters, job.notebook) == ("0 3 * * *", {"days": 7}, "report.ipynb")
    form.fields["days"].value = "many"
    form.run_button.click()
    assert "days" in form.message.value
    assert list(jobs.runs()) == [], "a value of another type starts nothing"
    form.fields["days"].value = "8"
    form.run_button.click()
    run = next(iter(jobs.runs()))
    assert (run.state, run.parameters, run.job) == ("queued", {"days": 8}, "")
    jobs.stop(run.id)


def test_the_list_shows_stops_and_repeats_runs(magics: JobMagics, world: World) -> None:
    magics.job("report.ipynb").make_button.click()
    shown, jobs, runner = magics.job("report --run"), world.client().jobs, world.client("runner").jobs
    assert isinstance(shown, RunList)
    first = shown.runs[0].id
    claim = runner.claim("r", wait_seconds=5)
    assert claim is not None
    runner.report(first, Progress(fence=claim.fence, state="succeeded", cell=2, cells=2, notebook=PAGE))
    shown.buttons["Run again"].click()
    again = shown.runs[0].id
    assert jobs.run(again).state == "queued"
    shown.first.value = again
    shown.buttons["Stop"].click()
    assert jobs.run(again).state == "stopped"
    assert [run.id for run in magics.runs("report --state stopped").runs] == [again]
    magics.job("report --pause")
    assert jobs.get("shop/report").paused
    magics.job("report --resume")
    assert not jobs.get("shop/report").paused


def test_mistakes_are_told_in_a_sentence(magics: JobMagics) -> None:
    with pytest.raises(UsageError, match=r"nosuch.ipynb.*is not there"):
        magics.job("nosuch.ipynb")
    with pytest.raises(UsageError, match=r"shop/nosuch.*does not exist"):
        magics.job("nosuch")
