"""Evaluation on a sealed holdout, the gate and promotion, with a real MLflow, real batches and real child processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import evaluation_world
import mlflow_server
import polars as pl
import pytest
import serving_world
from click.testing import CliRunner
from evaluation_world import DAYS, GOOD, World, definitions, legs
from feature_world import DAY, work
from ports import free_port
from raw_platform import call

from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused
from cellwork.evaluation import metrics
from cellwork.models import package, registry, versions
from cellwork.models.columns import to_pandas
from cellwork.training import fit
from cellwork.wire.batches import RawDataset, Seal
from cellwork.wire.evaluations import EvaluationRequest
from cellwork.wire.features import Definitions, Label, Prepared, View
from cellwork_hub.edge import Service
from cellwork_hub.platform import batches, coarse, datasets, evaluations, gate, promotion
from cellwork_hub.platform.judgements import latest


@pytest.fixture(scope="module")
def world() -> World:
    return evaluation_world.world()


def questions(world: World) -> int:
    with world.state.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM questions").scalar_one())


@contextmanager
def defined(world: World, wanted: Definitions) -> Iterator[None]:
    """Let `wanted` be the project's definitions for as long."""
    world.define(wanted)
    work(world.state)
    try:
        yield
    finally:
        world.define(definitions())
        work(world.state)


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
    before = questions(world)
    with pytest.raises(NotFound, match="did you mean 'last'"):
        evaluations.evaluate(world.state, call(), EvaluationRequest(name="rail/delay", version=good, holdout="lost"))
    with pytest.raises(NotFound, match="rail/delay@99"):
        world.evaluate("delay", 99)
    with pytest.raises(BadInput, match="did you mean 'hour'"):
        world.evaluate("delay", good, baseline="hours")
    assert questions(world) == before


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


# A champion that can't be scored any more


def champion_line(world: World, name: str, version: int) -> Any:
    return next(
        check for check in promotion.gate(world.state, f"rail/{name}", version).checks if check.name == "champion"
    )


def widely() -> Definitions:
    wanted = definitions()
    wanted.views.append(
        View(name="widely", entities=["gate"], pipeline=wanted.views[0].pipeline, fields=wanted.views[0].fields)
    )
    return wanted


def champion_of_a_view_that_goes(world: World, name: str) -> None:
    with defined(world, widely()):
        dataset, frame = world.build(name=f"wide-{name}", features=["lately", "widely"])
        version = world.register(name, [*GOOD, "widely__delay"], frame, dataset=dataset)
        world.evaluate(name, version)
        world.promote(name, version)


def test_a_champion_of_a_view_that_is_gone_or_not_made_yet_does_not_stop_its_successor(world: World) -> None:
    champion_of_a_view_that_goes(world, "outlived")
    new = world.register("outlived", GOOD)
    before = questions(world)
    found = world.evaluate("outlived", new)
    assert (found.champion, found.against_champion, questions(world)) == ({}, None, before + 1)
    line = champion_line(world, "outlived", new)
    assert (line.passed, line.text.endswith("by intervals")) == (True, True), (
        "the champion's own evaluation still holds"
    )
    with defined(world, widely()):
        world.define(definitions())
        world.define(widely())  # to be filled anew
        assert world.evaluate("outlived", new).champion == {}
        work(world.state)
        assert world.evaluate("outlived", new).champion["roc_auc"]


def test_a_champion_that_fails_in_its_child_is_told_as_not_compared(world: World) -> None:
    narrow = world.register("narrow", GOOD, world.frame.filter(pl.col("gate") == "A"))
    versions.set_alias(world.mlflow, "rail/narrow", "champion", narrow)
    with pytest.raises(BadInput, match="unknown categories"):
        world.evaluate("narrow", narrow)
    version, before = world.register("narrow", GOOD), questions(world)
    found = world.evaluate("narrow", version)
    assert (found.champion, questions(world)) == ({}, before + 1)
    line = champion_line(world, "narrow", version)
    assert (line.passed, line.text) == (False, f"was not compared with champion version {narrow}")


# Columns that are gone


@pytest.mark.parametrize("gone", ["crowd", "late", "id"])
def test_a_column_that_is_no_longer_there_is_refused_with_words_and_not_counted(world: World, gone: str) -> None:
    version = world.register("bereft", GOOD)
    wanted = definitions()
    about = wanted.observations[0]
    about.inputs = [name for name in about.inputs if name != gone]
    about.label = "" if gone == about.label else about.label
    about.id = "crowd" if gone == about.id else about.id
    before = questions(world)
    with defined(world, wanted), pytest.raises(Refused, match=f"'departures' '{gone}': is not there any more"):
        world.evaluate("bereft", version)
    assert questions(world) == before


def test_a_champion_of_an_input_that_is_gone_does_not_stop_its_successor(world: World) -> None:
    versions.set_alias(world.mlflow, "rail/thinner", "champion", world.register("thinner", GOOD))
    wanted = definitions()
    wanted.observations[0].inputs = ["hour", "gate"]
    with defined(world, wanted):
        dataset, frame = world.build(name="thin")
        found = world.evaluate("thinner", world.register("thinner", ["hour", "gate"], frame, dataset=dataset))
    assert (found.champion, found.rows) == ({}, 480)


# Labels by name


def letters(days: list[int]) -> pl.DataFrame:
    """Return a letter of each flight of these days, written the next day: who sat in a crowd complains."""
    flown = pl.concat([legs(day) for day in days])
    return flown.select(
        flight="id", written=pl.col("planned") + timedelta(days=1), complained=(pl.col("crowd") > 0.5).cast(pl.Int64)
    )


def contrary(day: int, number: int) -> pl.DataFrame:
    """Return a later letter of flight `number` of `day` that says the opposite."""
    return letters([day])[number : number + 1].with_columns(
        written=pl.lit(DAY + timedelta(days=20)), complained=1 - pl.col("complained")
    )


@pytest.fixture(scope="module")
def mail(world: World) -> World:
    """The world with letters: sealed of the sealed days, but of one flight of day 6 an open one, and of another one for another holdout."""
    sealed = [
        Seal(holdout=name, partitions=days, columns=["complained"])
        for name, days in (("last", ["d6", "d7"]), ("other", ["x"]))
    ]
    batches.declare(world.state, call(), "rail", RawDataset(name="letters", seals=sealed))
    for day in range(DAYS):
        batches.ingest(world.state, call(), "rail", "letters", f"d{day}", letters([day]))
    batches.ingest(world.state, call(), "rail", "letters", "open", contrary(6, 0))
    batches.ingest(world.state, call(), "rail", "letters", "x", contrary(6, 1))
    return world


def labelled(name: str) -> Definitions:
    wanted = definitions()
    wanted.prepared.append(Prepared(name="complaints", sources=["letters"], sql="SELECT * FROM letters"))
    wanted.labels = [Label(name=name, rows="complaints", id="flight", value="complained", known="written")]
    return wanted


@pytest.mark.parametrize("name", ["complained", "late"])
def test_a_model_of_a_label_by_name_is_measured_on_what_is_sealed_of_it(mail: World, name: str) -> None:
    with defined(mail, labelled(name)):
        dataset, frame = mail.build(name=f"by-{name}", label=name)
        version = mail.register(f"by-{name}", GOOD, frame, dataset=dataset)
        found = mail.evaluate(f"by-{name}", version)
        held = datasets.holdout_frame(mail.state, "rail", "last", "departures", ["lately"], label=name).sort("id")
    truth = letters([6, 7])["complained"].to_list()
    assert held[name].to_list() == [None, *truth[1:]], (
        "neither a label that can be read, nor what another holdout keeps"
    )
    assert found.rows == 479
    assert found.metrics["roc_auc"].low > 0.95, "the crowd tells who complains, and much less who is late"
    own = datasets.holdout_frame(mail.state, "rail", "last", "departures", ["lately"])
    assert own["late"].null_count() == 0


def test_a_label_that_can_be_read_is_no_holdouts(mail: World) -> None:
    wanted = definitions()
    sql = "SELECT id, planned, CAST(hour(planned) < 12 AS BIGINT) AS early FROM legs"
    wanted.prepared.append(Prepared(name="mornings", sources=["legs"], sql=sql))
    wanted.labels = [Label(name="early", rows="mornings", id="id", value="early", known="planned")]
    with defined(mail, wanted):
        dataset, frame = mail.build(name="early", label="early")
        version, before = mail.register("early", ["crowd"], frame, dataset=dataset), questions(mail)
        with pytest.raises(NotFound, match="has no row whose label 'early' is sealed"):
            mail.evaluate("early", version)
    assert questions(mail) == before


def test_a_version_is_not_compared_with_a_champion_that_learned_another_truth(mail: World) -> None:
    old = mail.register("apart", GOOD)
    mail.evaluate("apart", old)
    mail.promote("apart", old)
    wanted = labelled("complained")
    wanted.labels.append(Label(name="late", rows="landed", id="id", value="late", known="landed"))
    with defined(mail, wanted):
        for name, compared in (("complained", False), ("late", True)):
            dataset, frame = mail.build(name=f"apart-{name}", label=name)
            version = mail.register("apart", GOOD, frame, dataset=dataset)
            assert bool(mail.evaluate("apart", version).champion) == compared
            line = champion_line(mail, "apart", version)
            assert ("was not compared" in line.text, line.passed) == (not compared, compared)


def test_a_champion_of_another_truth_that_is_gone_is_not_compared_by_intervals_either(mail: World) -> None:
    champion_of_a_view_that_goes(mail, "parted")
    with defined(mail, labelled("complained")):
        dataset, frame = mail.build(name="by-parted", label="complained")
        version = mail.register("parted", GOOD, frame, dataset=dataset)
        assert mail.evaluate("parted", version).champion == {}
        assert "was not compared" in champion_line(mail, "parted", version).text


def test_an_error_in_a_labels_sql_tells_nothing_of_sealed_rows(mail: World) -> None:
    wanted = labelled("complained")
    of_sealed = (
        f"complained IS NOT NULL AND written > '{DAY + timedelta(days=7)}' AND written < '{DAY + timedelta(days=15)}'"
    )
    told = f"CASE WHEN {of_sealed} THEN CAST('told=' || complained AS BIGINT) ELSE complained END"
    wanted.prepared[-1] = Prepared(
        name="complaints", sources=["letters"], sql=f"SELECT flight, written, {told} AS complained FROM letters"
    )
    with defined(mail, wanted):
        dataset, frame = mail.build(name="telling", label="complained")
        version, before = mail.register("telling", ["crowd"], frame, dataset=dataset), questions(mail)
        with pytest.raises(Refused, match="can't be made of the sealed rows") as refused:
            mail.evaluate("telling", version)
    assert "told=" not in str(refused.value)
    assert questions(mail) == before
