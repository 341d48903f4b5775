"""The tutorial and the scheduled notebooks on a generated project with other names, entities and label, from raw batch to report.

Nothing but parameters and definitions differs from the flights; `shop_world` holds both.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import shop_world
from click.testing import CliRunner
from running import command

from cellwork import assets, errors
from cellwork.cli import main
from cellwork.cli import tour as tours
from cellwork.serving import precomputed, stamp
from cellwork.wire.endpoints import Request, Row
from cellwork.wire.jobs import RunRequest

STEPS, FIRST_DAY = 8, datetime(2024, 5, 1, tzinfo=UTC)
pytestmark = pytest.mark.timeout(900)  # the first test waits for the tour


def test_the_same_notebooks_carry_another_project_from_raw_batch_to_report(toured):
    assert [walked.seconds is not None for walked in toured.walked] == [True] * STEPS
    assert all(walked.rows > 0 for walked in toured.walked)


def test_the_model_beats_the_baseline_on_the_sealed_month_and_on_the_days_after(toured):
    for period, auc in tours.figures(toured.tour)["roc_auc"].items():
        assert auc["model"] > max(0.65, auc["baseline"] + 0.1), period


def test_the_sealed_truth_can_be_read_from_no_batch_and_no_dataset(toured):
    batch = next(b for b in toured.client.batches.list("shop", "orders") if b.partition == "2024-04")
    assert batch.sealed == "spring"
    assert toured.client.batches.rows("shop", "orders", batch=batch.id)["delivered_at"].null_count() == batch.rows
    retrained = next(d for d in toured.client.datasets.list("shop") if d.name == "retraining")
    frame = toured.client.datasets.frame(retrained.id)
    assert frame.filter(frame["_batch"] == batch.id)["tardy"].null_count() == batch.rows


def test_the_holdout_was_asked_by_the_author_the_retraining_and_the_report_and_each_was_counted(toured):
    asked = list(toured.client.evaluations.list("shop/tardy"))
    assert [(e.version.version, e.question_no, bool(e.also)) for e in asked] == [
        (1, 3, True),
        (2, 2, False),
        (1, 1, False),
    ]
    assert asked[-1].metrics["roc_auc"].value > asked[-1].baseline["roc_auc"].value


def test_each_new_day_was_scored_by_the_scheduled_notebook_and_its_outcomes_met_the_predictions(toured):
    days = [b for b in toured.client.batches.list("shop", "orders") if b.partition.startswith("2024-05")]
    runs = {run.parameters["batch"]: run for run in toured.client.jobs.runs(job="shop/score")}
    assert [runs[day.id].state for day in days] == ["succeeded"] * 3, [runs[day.id].attempts for day in days]
    assert [runs[day.id].cause.split()[0] for day in days] == ["event"] * 3
    quality = toured.client.outcomes.quality("shop/tardy")
    by_batch = [p for p in toured.client.endpoints.predictions("shop/tardy", limit=10_000) if p.batch_run]
    assert len(by_batch) == sum(day.rows for day in days)
    assert quality.outcomes > 0.9 * len(by_batch)


def test_the_first_orders_of_the_next_morning_were_scored_by_entity_id_with_features_from_the_store(toured):
    log = toured.client.endpoints.predictions("shop/tardy", limit=10_000)
    mornings = [p for p in log if not p.batch_run and p.request_id.startswith("first-of-")]
    assert len(mornings) == 2 * 5
    assert all(p.entities and p.features["crew__people"] is not None for p in mornings)
    assert all(at is None or at <= p.at for p in mornings for at in p.feature_events.values())


def test_the_features_of_a_prediction_come_out_of_its_raw_batches_again_bit_for_bit_after_the_model_was_replaced(
    toured,
):
    log = toured.client.endpoints.predictions("shop/tardy", limit=10_000)
    chosen = [p for p in log if p.feature_batches]
    by_entity = [p for p in chosen if p.entities]
    assert by_entity
    for prediction in [*by_entity[:2], *[p for p in chosen if p.batch_run][:: len(chosen) // 3]]:
        found = toured.client.monitors.recompute("shop", prediction.id)
        assert {view.view for view in found.views} == set(prediction.feature_batches)
        assert found.same, found.views


def test_the_skew_of_what_was_served_by_entity_is_told_feature_by_feature(toured):
    found = toured.client.monitors.skew("shop/tardy")
    by_entity = [p for p in toured.client.endpoints.predictions("shop/tardy", limit=10_000) if p.entities]
    assert found.rows == len(by_entity)
    assert found.features
    assert all(each.rows == found.rows for each in found.features)


def test_the_projects_own_rules_let_the_version_pass_and_the_notebook_that_promotes_shows_each_line(toured):
    kept, gate = toured.client.gate.rules("shop"), toured.client.gate.check("shop/tardy", 1)
    assert (kept.revision, kept.rules, kept.owner) == (1, toured.tour.project.gate, "the shop")
    assert (gate.passed, gate.rules) == (True, 1)
    executed = json.loads((toured.tour.output / "04_deploy.ipynb").read_text())
    said = "".join("".join(o.get("text", "")) for cell in executed["cells"] for o in cell.get("outputs", []))
    assert "shop/tardy version 1 passes the gate, rules of revision 1" in said
    assert "passed  evaluation: evaluated on sealed holdout 'spring'; found: roc_auc" in said
    assert "passed  baseline: roc_auc clearly better than" in said
    assert [move.version.version for move in toured.client.gate.moves("shop/tardy")][-1] == 1


def test_the_retraining_either_took_over_or_said_why_not(toured):
    run = next(iter(toured.client.jobs.runs(job="shop/retrain")))
    text = toured.client.jobs.notebook(run.id)
    live = toured.client.endpoints.get("shop/tardy").routes.live.version
    gate = toured.client.gate.check("shop/tardy", 2)
    assert run.state == "succeeded"
    assert ("version 2 answers" in text) == (live == 2)
    assert live == 2 or not gate.passed


def test_a_version_carries_the_notebook_and_the_cell_that_made_it(toured):
    from cellwork.models import versions

    tags = versions.get(toured.client, "shop/tardy", 1).tags
    notebook = json.loads((toured.tour.notebooks / "03_train.ipynb").read_text())
    cell = next(cell for cell in notebook["cells"] if cell["id"] == tags["cell_id"])
    assert tags["notebook"] == "03_train.ipynb"
    assert "registry.register" in "".join(cell["source"])


def test_what_the_new_days_were_predicted_from_is_watched_column_by_column(toured):
    trained = next(d for d in toured.client.datasets.list("shop") if d.name == "training")
    found = toured.client.monitors.drift("shop/tardy", version=1, start=FIRST_DAY)
    assert (found.subject, found.reference) == ("shop/tardy@1", trained.id)
    assert {c.column for c in found.columns} == {*trained.inputs, *trained.features, "_label"}
    assert not any("is not in" in reason for c in found.columns for reason in c.reasons)
    assert toured.client.monitors.check("shop/wares-arrive").state == "fine"
    looked = toured.client.monitors.check("shop/tardy-drift").words
    assert looked.endswith(f"of {len(found.columns)} columns drifted"), looked


def test_a_second_walk_does_nothing_again(toured):
    def made() -> tuple[int, ...]:
        lists = (
            toured.client.batches.list("shop"),
            toured.client.jobs.runs(project="shop"),
            toured.client.evaluations.list("shop/tardy"),
        )
        return tuple(sum(1 for _ in one) for one in lists)

    before, started = made(), time.monotonic()
    again = list(tours.walk(toured.tour, toured.client, lambda _: None))
    print(f"a second walk took {time.monotonic() - started:.1f} s")
    assert [walked.step for walked in again] == [walked.step for walked in toured.walked]
    assert again[0].rows == toured.walked[0].rows
    assert [walked.seconds for walked in again] == [None] * STEPS
    assert made() == before


def test_a_step_that_was_cut_short_is_done_again_and_makes_nothing_twice(toured):
    """The last notebook before the report: as if the kernel had died after its work."""
    before = toured.client.outcomes.quality("shop/tardy")
    tours.execute(toured.tour, toured.client, "05_december", lambda _: None)
    after = toured.client.outcomes.quality("shop/tardy")
    assert (after.predictions, after.outcomes) == (before.predictions, before.outcomes)


def test_a_report_with_other_parameters_or_an_error_is_no_report(toured, tmp_path):
    report = toured.tour.output / "06_report.ipynb"
    copy = replace(toured.tour, output=tmp_path)
    assert tours.figures(copy) == {}
    (tmp_path / "06_report.ipynb").write_text(report.read_text())
    assert tours.figures(copy)["version"] == 1
    assert tours.figures(replace(copy, parameters={**copy.parameters, "06_report": {"end": "2024-05-02"}})) == {}
    notebook = json.loads(report.read_text())
    notebook["metadata"]["papermill"]["exception"] = True
    (tmp_path / "06_report.ipynb").write_text(json.dumps(notebook))
    assert tours.figures(copy) == {}


def test_missing_data_is_told_before_anything_starts(tmp_path):
    with pytest.raises(errors.Unavailable, match=r"no_such_flights.*not installed.*pip install"):
        tours.check_packages(replace(tours.flights(3, tmp_path), package="no_such_flights"))


def test_the_flights_arrive_as_many_days_as_asked_and_from_the_folder_named(tmp_path):
    tour = tours.flights(3, tmp_path, "/data")
    assert tour.last_day == "2013-12-03"
    assert tour.parameters["05_december"] == {"last": "2013-12-03", "folder": "/data"}
    assert tour.package == ""
    tours.check_packages(tour)


def test_the_demo_without_a_platform_says_how_to_start_one(tmp_path, monkeypatch):
    for name in ("CELLWORK_URL", "CELLWORK_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CELLWORK_HOME", str(tmp_path))
    answer = CliRunner().invoke(main, ["demo", "--days", "1"])
    assert answer.exit_code == 4
    assert "start it with: cellwork up" in answer.output


def test_every_notebook_of_the_tour_is_there_and_takes_the_parameters_it_is_given():
    from cellwork.runs import parameters

    tour = tours.flights(31, Path())
    flights = [(name, values) for name, values in tour.parameters.items() if name != "retrain"]
    for name, values in [*flights, *shop_world.parameters(Path("/data")).items()]:
        path = tour.notebooks / f"{name}.ipynb"
        parameters.check(parameters.read(path.read_bytes(), path.name), values, path.name)


def test_a_table_scored_ahead_holds_what_the_endpoint_answers_under_the_same_ids(toured, platform, tmp_path):
    """Flags, numbers and texts with gaps, as the dataset has them; the endpoint is asked for some of the rows."""
    endpoint, client = toured.tour.endpoint, toured.client
    record = next(d for d in client.datasets.list("shop") if d.name == "retraining")
    status, frame = client.endpoints.get(endpoint), client.datasets.frame(record.id)
    frame.select(record.id_column, *status.columns).write_parquet(tmp_path / "rows.parquet", row_group_size=500)
    words = ["endpoint", "score", endpoint, str(tmp_path / "rows.parquet"), str(tmp_path / "answers"), "--observation", record.id_column, "--json"]  # fmt: skip
    done = command(platform.home, *words, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == frame.height
    some = frame.head(20).to_dicts()
    named = [str(one[record.id_column]) for one in some]
    keys = [
        stamp.key(name, status.routes.live, text)
        for name, text in zip(named, stamp.texts(frame.head(20), status.columns), strict=True)
    ]
    rows = [
        Row(features={column: one[column] for column in status.columns}, observation=name, key=key)
        for one, name, key in zip(some, named, keys, strict=True)
    ]
    asked = {output.id: output.score for output in client.endpoints.predict(endpoint, Request(rows=rows)).outputs}
    ahead = precomputed.answers(tmp_path / "answers", [row.observation for row in rows])
    assert dict(zip(ahead["id"], ahead["score"], strict=True)) == pytest.approx(asked, rel=1e-9)
    again = command(platform.home, *words, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert json.loads(again.stdout)["skipped"] == json.loads(again.stdout)["parts"] > 1, "nothing is done twice"


def test_the_production_notebooks_ingest_materialise_and_look_at_the_monitors(toured, tmp_path):
    """As the service runs them. A file that is there twice is one batch; an open critical alert fails the run that looks."""
    client, here = toured.client, assets.folder("scheduled")

    def run(name: str, **parameters: object):
        content = (here / f"{name}.ipynb").read_text()
        asked = RunRequest(project="shop", notebook=f"{name}.ipynb", content=content, parameters={"project": "shop", **parameters})  # fmt: skip
        return client.jobs.wait(client.jobs.start(asked).id, timeout=300)

    (tmp_path / "2024-05-06.csv").write_text("depot,cats\nnorth,2\nsouth,NA\n")
    for _ in range(2):
        ended = run("ingest", dataset="cats", folder=str(tmp_path))
        assert ended.state == "succeeded", ended.attempts
    (batch,) = client.batches.list("shop", "cats")
    assert (batch.partition, batch.rows) == ("2024-05-06", 2)
    brought = run("materialise")
    assert brought.state == "succeeded", brought.attempts
    online = [view.name for view in client.features.definitions("shop").views if view.online]
    assert online
    assert all(name in client.jobs.notebook(brought.id) for name in online)
    ended = run("monitor", fail_on="warning")
    alerts = list(client.monitors.alerts("shop", "open"))
    assert ended.state == ("failed" if alerts else "succeeded"), ended.attempts
    assert all(one.monitor.name in client.jobs.notebook(ended.id) for one in client.monitors.list("shop"))
