"""Evaluation on a sealed holdout, the gate and promotion, with a real MLflow, real batches and real child processes."""

from __future__ import annotations

import json
from typing import Any

import evaluation_world
import mlflow_server
import polars as pl
import pytest
import serving_world
from click.testing import CliRunner
from evaluation_world import GOOD, World, legs
from ports import free_port
from raw_platform import call

from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused
from cellwork.evaluation import metrics
from cellwork.models import package, registry, versions
from cellwork.models.columns import to_pandas
from cellwork.training import fit
from cellwork.wire.evaluations import EvaluationRequest
from cellwork_hub.edge import Service
from cellwork_hub.platform import batches, coarse, datasets, evaluations, gate, promotion
from cellwork_hub.platform.judgements import latest


@pytest.fixture(scope="module")
def world() -> World:
    return evaluation_world.world()


@pytest.fixture(scope="module")
def good(world: World) -> int:
    version = world.register("delay", GOOD)
    world.evaluate("delay", version)
    return version


def test_an_evaluation_is_the_models_metrics_on_the_true_labels_of_the_sealed_days(world: World, good: int) -> None:
    found = evaluations.select(world.state, "name = 'rail/delay'", 1)[0]
    truth = pl.concat([legs(day) for day in (6, 7)])
    with Client(mlflow_server.url(), "") as client:
        folder = package.download(client, "rail/delay", good, world.state.home.root / "fetched")
    sealed = datasets.holdout_frame(world.state, "rail", "last", "departures", ["lately"]).sort("id")
    assert (sealed["late"].cast(pl.Boolean) == (truth["delay"] > 15)).all()
    scores = package.scores(package.load(folder), to_pandas(sealed, package.read(folder).columns))
    expected = metrics.value("roc_auc", truth["delay"] > 15, scores)
    step = 0.02  # the coarsest that is not over 0.5 / sqrt(480)
    assert abs(found.metrics["roc_auc"].value - expected) <= (coarse.WIDE + 0.5) * step, (
        "told in steps of about its standard error"
    )
    assert found.rows == 480
    assert found.version.digest == package.digest(folder)
    assert found.dataset == world.dataset.id
    assert 0.5 < found.baseline["roc_auc"].value < found.metrics["roc_auc"].low


def test_sealed_labels_are_nowhere_that_an_author_can_read(world: World) -> None:
    assert batches.raw_rows(world.state, "rail", "legs").filter(pl.col("id") >= 6000)["delay"].null_count() == 480
    assert world.frame["id"].max() < 6000


def test_every_question_to_a_holdout_is_counted(world: World, good: int) -> None:
    first = world.evaluate("delay", good)
    second = world.evaluate("delay", good, baseline="gate")
    assert second.question_no == first.question_no + 1
    assert second.metrics == first.metrics
    assert second.baseline != first.baseline
    assert [event.data["question_no"] for event in world.events("evaluation.done")][-2:] == [
        first.question_no,
        second.question_no,
    ]


def test_a_rule_of_ones_own_is_a_baseline_as_a_version_of_the_model(world: World, good: int) -> None:
    rule = world.register("delay", ["gate"])
    found = world.evaluate("delay", good, baseline=f"@{rule}")
    assert found.baseline_by == f"@{rule}"
    assert abs(found.baseline["roc_auc"].value - 0.5) < 0.1
    with pytest.raises(BadInput, match="is not a version's number"):
        world.evaluate("delay", good, baseline="@rule")


def test_both_versions_that_a_holdout_is_asked_about_are_counted_and_they_are_of_one_kind(
    world: World, good: int
) -> None:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    first = world.evaluate("delay", good)
    rule = world.register("delay", ["gate"])
    assert world.evaluate("delay", good, baseline=f"@{rule}").question_no == first.question_no + 1
    assert world.evaluate("delay", good).question_no == first.question_no + 3
    columns = world.frame.select(["hour", "crowd"])
    model = fit(make_pipeline(SimpleImputer(), LinearRegression()), columns, world.frame["late"])
    given: dict[str, Any] = {"dataset": world.dataset, "X_example": columns, "client": world.mlflow}
    number = registry.register(model, "rail/delay", baseline="hour", **given).version
    with pytest.raises(BadInput, match="is a regressor, not a classifier"):
        world.evaluate("delay", good, baseline=f"@{number}")


def test_lineage_leads_from_the_evaluation_to_version_dataset_and_training_run(world: World, good: int) -> None:
    version = versions.get(world.mlflow, "rail/delay", good)
    evaluation = latest(world.state, "rail/delay", good, digest=version.digest)
    assert evaluation is not None
    with world.state.engine.connect() as connection:
        rows = {tuple(row)[:3] for row in connection.exec_driver_sql("SELECT * FROM edges")}
    subject = f"rail/delay@{good}"
    assert {
        (version.run, "registered_as", subject),
        (subject, "trained_on", world.dataset.id),
        (subject, "evaluated_on", evaluation.id),
        (evaluation.id, "evaluated_on", "holdout:rail/last"),
    } <= rows


def test_a_version_that_was_not_evaluated_does_not_pass_and_says_why(world: World) -> None:
    version = world.register("unseen", GOOD)
    found = promotion.gate(world.state, "rail/unseen", version)
    assert not found.passed
    assert {check.name: check.passed for check in found.checks} == {
        **dict.fromkeys(("origin", "content", "card", "sanity", "latency", "size"), True),
        "evaluation": False,
    }
    with pytest.raises(Refused, match=r"does not pass the gate.*was not evaluated on a sealed holdout"):
        world.promote("unseen", version)
    assert world.aliases("unseen") == {}


def test_a_model_no_better_than_its_baseline_is_refused(world: World) -> None:
    version = world.register("useless", ["gate"])
    world.evaluate("useless", version)
    failed = [check for check in promotion.gate(world.state, "rail/useless", version).checks if not check.passed]
    assert [check.name for check in failed] == ["baseline"]
    assert "does not clearly beat the baseline's" in failed[0].text


def test_promotion_moves_the_aliases_once_and_refuses_a_worse_successor(world: World) -> None:
    first = world.register("ranked", ["hour", "crowd"])
    world.evaluate("ranked", first)
    promoted = world.promote("ranked", first)
    assert promoted.previous is None
    assert world.aliases("ranked") == {"champion": first}
    assert world.promote("ranked", first) == promoted
    events = [event for event in world.events("model.promoted") if event.subject == f"rail/ranked@{first}"]
    assert len(events) == 1

    worse = world.register("ranked", ["crowd"], baseline="")
    found = world.evaluate("ranked", worse)
    assert found.champion["roc_auc"].value > found.metrics["roc_auc"].high
    with pytest.raises(Refused, match=f"is worse than champion version {first}"):
        world.promote("ranked", worse)
    assert world.aliases("ranked") == {"champion": first}

    equal = world.register("ranked", GOOD)
    world.evaluate("ranked", equal)
    assert world.promote("ranked", equal).previous.version == first
    assert world.aliases("ranked") == {"champion": equal, "previous": first}
    with world.state.engine.connect() as connection:
        actions = [
            row[0] for row in connection.exec_driver_sql("SELECT action FROM audit WHERE subject LIKE 'rail/ranked@%'")
        ]
    assert actions.count("model.promote") == 2
    assert actions.count("model.promote.refused") == 1


def test_changed_artifacts_do_not_pass_although_they_were_evaluated(world: World) -> None:
    version = world.register("swapped", GOOD)
    world.evaluate("swapped", version)
    path = versions.artifact_path(world.mlflow, "rail/swapped", version)
    world.mlflow.connection.raw(
        "mlflow", "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}/{package.MODEL}", b"another"
    )
    failed = [check.name for check in promotion.gate(world.state, "rail/swapped", version).checks if not check.passed]
    assert failed == ["content"]


def test_a_version_of_another_origin_can_not_be_evaluated(world: World) -> None:
    import msgspec

    stranger = msgspec.structs.replace(world.dataset, id="ds_" + "0" * 26)
    version = world.register("stranger", GOOD, dataset=stranger)
    with pytest.raises(Refused, match="names no dataset of this platform"):
        world.evaluate("stranger", version)
    gate = promotion.gate(world.state, "rail/stranger", version)
    assert not gate.checks[0].passed


def test_wrong_names_are_told_and_nothing_unanswerable_is_counted(world: World, good: int) -> None:
    def questions() -> int:
        with world.state.engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM questions").scalar_one())

    before = questions()
    with pytest.raises(NotFound, match="did you mean 'last'"):
        evaluations.evaluate(world.state, call(), EvaluationRequest(name="rail/delay", version=good, holdout="lost"))
    with pytest.raises(NotFound, match="rail/delay@99"):
        world.evaluate("delay", 99)
    with pytest.raises(BadInput, match="did you mean 'hour'"):
        world.evaluate("delay", good, baseline="hours")
    assert questions() == before


def test_the_command_line_evaluates_asks_the_gate_and_promotes_over_http(
    world: World, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    service = Service(
        "cellwork", [*evaluations.routes(world.state), *gate.routes(world.state)], authorise=serving_world.authorise
    )
    subject = f"rail/delay@{good}"
    with serving_world.running(lambda: service, port) as url:

        def cellwork(role: str, *arguments: str, at: str = url) -> tuple[int, str]:
            monkeypatch.setenv("CELLWORK_URL", at)
            monkeypatch.setenv("CELLWORK_TOKEN", role)
            answer = CliRunner().invoke(main, ["model", *arguments])
            return answer.exit_code, answer.output

        code, text = cellwork("author", "evaluate", subject, "--holdout", "last")
        assert (code, "on sealed holdout 'last': 480 rows" in text) == (0, True)
        assert cellwork("viewer", "evaluate", subject, "--holdout", "last")[0] == 3
        code, text = cellwork("viewer", "gate", subject, "--json")
        assert (code, json.loads(text)["passed"]) == (0, True)
        assert cellwork("author", "promote", subject)[0] == 3
        code, text = cellwork("deployer", "promote", subject, "--reason", "good")
        assert code == 0, text
        assert f"champion of rail/delay is version {good}" in text
        unseen = world.register("unseen", GOOD)
        code, text = cellwork("deployer", "promote", f"rail/unseen@{unseen}")
        assert (code, "was not evaluated" in text) == (3, True)
        code, text = cellwork("viewer", "gate", f"rail/unseen@{unseen}")
        assert (code, "REFUSED" in text) == (3, True)
        code, text = cellwork("viewer", "list", "--project", "rail", at=mlflow_server.url())
        assert code == 0
        assert any(line.split()[:3] == ["rail/delay", str(good), "champion"] for line in text.splitlines())
        with Client(url, "viewer") as client:
            listed = list(client.evaluations.list("rail/delay", good))
            assert [e.question_no for e in listed] == sorted((e.question_no for e in listed), reverse=True)
            assert client.evaluations.get(listed[-1].id) == listed[-1]
            with pytest.raises(NotFound):
                client.evaluations.get("eval_" + "0" * 26)
