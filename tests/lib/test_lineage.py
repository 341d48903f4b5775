"""`why` on a real platform: the whole trail of a prediction, and that it still tells what was true after everything changed.

The story: a small shop is ingested, trained, evaluated, deployed, asked and scored; then the model is replaced, a view is
defined anew and a batch is corrected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import shop_world
from click.testing import CliRunner
from running import Platform

from cellwork import errors, features, lineage, project, serving
from cellwork.cli import main
from cellwork.client import Client
from cellwork.data import dataset
from cellwork.models import registry, versions
from cellwork.monitoring import outcomes, quality
from cellwork.wire.endpoints import Request, Row
from cellwork.wire.evaluations import EvaluationRequest, VersionRef
from cellwork.wire.outcomes import OutcomesAnswer
from cellwork.wire.records import Step

PROJECT, ENDPOINT = "trail", "trail/tardy"
pytestmark = pytest.mark.timeout(900)  # the first test waits for the story


@dataclass
class Story:
    """What happened, and what `why` said before everything changed."""

    client: Client
    place: Path
    training: dataset.Dataset
    march: dataset.Dataset
    first: VersionRef
    asked: str
    scored: pl.DataFrame
    scored_again: pl.DataFrame
    sent: OutcomesAnswer
    before: lineage.Trail


@pytest.fixture(scope="module")
def story(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    client = Client(platform.url, platform.user_token("inherit"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CELLWORK_URL", platform.url)
        environment.setenv("CELLWORK_TOKEN", str(client.connection.http.headers["authorization"].split()[1]))
        environment.setenv("CELLWORK_NOTEBOOK", "story.ipynb")
        place = shop_world.write(tmp_path_factory.mktemp("story"), PROJECT)
        yield _told(client, place)


def _told(client: Client, place: Path) -> Story:
    features.apply(project.read(place), client)
    tables = shop_world.frames()
    client.batches.ingest(PROJECT, "riders", tables["riders"], "all")  # orders are prepared with them
    for month in ("2024-02", "2024-03", "2024-04"):
        client.batches.ingest(PROJECT, "staffing", _month(tables["staffing"], "measured_at", month), month)
        client.batches.ingest(PROJECT, "orders", _month(tables["orders"], "placed_at", month), month)
    features.wait(PROJECT, progress=None, client=client)
    training = _build("training", "2024-02-01", "2024-03-25")
    first = _registered(training, seed=1)
    _deployed(client, first)
    row = Row(
        entities={"depot": "north"}, at=datetime(2024, 4, 30, 23, 59, tzinfo=UTC), observation="4711",
        features={"rider": "r1", "bikes": 2, "weight": 1.5, "promised_hours": 4, "day_of_week": 2},
    )  # fmt: skip
    asked = client.endpoints.predict(ENDPOINT, Request(rows=[row])).outputs[0].id
    march = _build("march", "2024-03-25", "2024-04-01")
    scored, again = serving.score_batch(march, ENDPOINT), serving.score_batch(march, ENDPOINT)
    known = march.frame().select(
        observation=pl.col("order_no").cast(pl.String), value="tardy", observed_at="delivered_at"
    )  # fmt: skip
    sent = outcomes.send(ENDPOINT, known.drop_nulls())
    outcomes.send(ENDPOINT, [{"observation": "4711", "value": 1, "observed_at": datetime(2024, 5, 1, tzinfo=UTC)}])
    return Story(client, place, training, march, first, asked, scored, again, sent, lineage.why(client, asked))


def _month(frame: pl.DataFrame, column: str, month: str) -> pl.DataFrame:
    return frame.filter(pl.col(column).dt.strftime("%Y-%m") == month)


def _build(name: str, start: str, end: str) -> dataset.Dataset:
    wanted: dict[str, Any] = {"observations": "promises", "features": ["at_checkout"], "project": PROJECT}
    return dataset.build(name, start=start, end=end, **wanted)


def _registered(training: dataset.Dataset, seed: int) -> VersionRef:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    X = training.X()
    encode = make_column_transformer((OrdinalEncoder(), ["rider"]), remainder="passthrough")
    trees = HistGradientBoostingClassifier(max_iter=20 + seed, min_samples_leaf=20, random_state=seed)
    model = make_pipeline(encode, trees).fit(X, training.y())
    return registry.register(model, "tardy", dataset=training.record, X_example=X.head(5), baseline="day_of_week")


def _deployed(client: Client, ref: VersionRef) -> None:
    client.evaluations.evaluate(EvaluationRequest(name=ref.name, version=ref.version, holdout="spring"))
    serving.deploy(ENDPOINT, ref.version, promote=True, reason="story", client=client)


def ids_of(trail: lineage.Trail) -> list[tuple[str, str, str]]:
    return [(step.relation, step.kind, step.id) for step in trail.steps]


def of_kind(trail: lineage.Trail, kind: str) -> list[Step]:
    return [step for step in trail.steps if step.kind == kind]


def test_a_prediction_leads_back_to_version_evaluation_cell_dataset_and_raw_batches(story: Story) -> None:
    trail = story.before
    assert [step.kind for step in trail.steps if step.depth == 0] == ["prediction"]
    [deployment], [version] = of_kind(trail, "deployment"), of_kind(trail, "version")
    assert deployment.id.startswith("dep_")
    assert version.id == versions.subject(ENDPOINT, story.first.version)
    assert story.first.digest[:12] in version.text
    assert "question 1" in of_kind(trail, "evaluation")[0].text
    assert "notebook story.ipynb" in of_kind(trail, "training run")[0].text
    assert [step.id for step in of_kind(trail, "dataset")] == [story.training.id]
    assert {step.id for step in of_kind(trail, "batch")} >= set(story.training.record.batches)


def test_the_feature_values_tell_their_times_and_the_batch_they_came_with(story: Story) -> None:
    looked_up = {step.id: step for step in story.before.steps if step.relation == "looked_up"}
    assert set(looked_up) == {"crew", "lately"}
    assert looked_up["crew"].at == datetime(2024, 4, 30, 18, tzinfo=UTC)
    assert "6 hours old" in looked_up["crew"].text
    batches = [
        story.client.batches.get(s.id).partition for s in story.before.steps if s.depth == 2 and s.kind == "batch"
    ]
    assert set(batches) == {"2024-04"}


def test_the_outcome_stands_in_the_trail_of_its_prediction(story: Story) -> None:
    [outcome] = of_kind(story.before, "outcome")
    assert (outcome.id, outcome.text.split(",")[0]) == ("4711", "1")


def test_a_dataset_scored_twice_is_logged_once_with_the_values_it_was_built_with(story: Story) -> None:
    assert story.scored.height == len(story.march)
    assert story.scored["repeated"].sum() == 0
    assert story.scored_again["repeated"].all()
    assert story.scored_again["prediction"].equals(story.scored["prediction"])
    built = story.march.frame().row(0, named=True)
    logged = story.client.endpoints.prediction(story.scored["prediction"][0])
    assert logged.features["crew__people"] == built["crew__people"]
    assert logged.feature_events["crew"] == built["crew__event_timestamp"]
    assert logged.feature_batches["crew"] == built["crew___batch"]
    assert (logged.observation, logged.at) == (str(built["order_no"]), built["placed_at"])


def test_outcomes_of_a_scored_dataset_become_quality(story: Story) -> None:
    assert story.sent.matched == story.sent.taken == story.march.labelled
    told = quality(ENDPOINT)
    assert told.predictions == len(story.march) + 1
    assert told.outcomes == story.march.labelled + 1
    assert told.auc is not None
    assert told.auc.value > 0.6


def test_a_batch_leads_forward_to_the_predictions_that_stand_on_it(story: Story) -> None:
    batch = next(b for b in story.client.batches.list(PROJECT, "orders") if b.partition == "2024-02")
    trail = lineage.why(story.client, batch.id, forward=True)
    found = {step.kind for step in trail.steps}
    assert {"feature set", "dataset", "version", "evaluation", "deployment", "prediction"} <= found


@pytest.mark.parametrize("kind", ["deployment", "version", "evaluation", "dataset", "batch"])
def test_every_id_in_a_trail_can_be_asked_about_itself(story: Story, kind: str) -> None:
    step = of_kind(story.before, kind)[0]
    again = lineage.why(story.client, step.id)
    assert (again.steps[0].id, again.steps[0].text) == (step.id, step.text)


@pytest.mark.parametrize(
    ("subject", "error"),
    [("pred_" + "0" * 26, errors.NotFound), ("0" * 32, errors.NotFound), ("nothing", errors.BadInput)],
)
def test_what_is_not_recorded_is_said_to_be_so(story: Story, subject: str, error: type[errors.CellworkError]) -> None:
    with pytest.raises(error):
        lineage.why(story.client, subject)


def test_the_printed_trail_is_the_same_in_html_and_on_the_command_line(story: Story) -> None:
    assert "└─ served by deployment" in str(story.before)
    assert "served by deployment" in story.before._repr_html_()
    printed = CliRunner().invoke(main, ["why", story.asked]).output
    assert printed.strip() == str(story.before)


def test_why_still_tells_what_was_true_after_the_model_the_view_and_a_batch_changed(story: Story) -> None:
    """Last in this module: it changes everything the trail passes through."""
    second = _registered(story.training, seed=2)
    _deployed(story.client, second)
    wares = story.place / "wares.py"
    text = wares.read_text().replace("measured_at AS known_at", "measured_at + to_hours(1) AS known_at")
    wares.write_text(text.replace("ttl=timedelta(days=2)", "ttl=timedelta(days=3)"))
    assert "view:crew" in features.apply(project.read(story.place), story.client).changed
    orders = _month(shop_world.frames()["orders"], "placed_at", "2024-02").with_columns(pl.col("weight") + 1)
    corrected = story.client.batches.ingest(PROJECT, "orders", orders, "2024-02").batch
    features.wait(PROJECT, progress=None, client=story.client)

    after = lineage.why(story.client, story.asked)
    assert ids_of(after) == ids_of(story.before)
    assert story.client.endpoints.get(ENDPOINT).routes.live.version == second.version
    changed = [b.text for a, b in zip(story.before.steps, after.steps, strict=True) if a.text != b.text]
    assert changed == [text for text in changed if f"corrected since by {corrected.id}" in text]
    assert len(changed) == 1
    newer = story.client.endpoints.predict(ENDPOINT, Request(rows=[Row(features={"rider": "r1"})]))
    assert newer.model.version == second.version
    assert timedelta(0) <= datetime.now(UTC) - story.client.endpoints.prediction(newer.outputs[0].id).logged_at
