"""The gate by a project's rules, overrides, promotion and the way back, with a real MLflow and real evaluations."""

from __future__ import annotations

import dataclasses
import importlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import evaluation_world
import msgspec
import pytest
import serving_world
from click.testing import CliRunner
from evaluation_world import GOOD, World
from ports import free_port
from raw_platform import call

from cellwork import clock, project
from cellwork.cli import main
from cellwork.errors import BadInput, Conflict, NotFound, Refused
from cellwork.models import package, registry, tracking, versions
from cellwork.models.columns import to_pandas
from cellwork.settings import Settings
from cellwork.wire.endpoints import ArmWish, Deploy, RolloutWish
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.features import Definitions
from cellwork.wire.gate import (
    Check,
    Gate,
    OverrideRequest,
    Promoted,
    Promotion,
    Rollback,
    Rules,
    RulesRequest,
    Sanity,
    TrustRequest,
)
from cellwork.wire.records import Principal
from cellwork_hub.edge import Service
from cellwork_hub.inference.app import build
from cellwork_hub.inference.registry import PlatformRegistry
from cellwork_hub.platform import cards, code_trust, gate, gate_rules, promotion, scoring
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call

STEPS = """
from sklearn.base import BaseEstimator, TransformerMixin

class Doubled(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.columns_ = list(X.columns)
        return self

    def transform(self, X):
        return X[self.columns_].fillna(0.0) * 2
"""


@pytest.fixture(scope="module")
def world() -> World:
    return evaluation_world.world()


@pytest.fixture(autouse=True)
def the_defaults_hold(world: World) -> Iterator[None]:
    yield
    with world.state.engine.begin() as db:
        db.exec_driver_sql("DELETE FROM gate_rules")


@pytest.fixture(scope="module")
def three(world: World) -> list[int]:
    """Three versions of one model, all evaluated and promoted in turn."""
    numbers = []
    for _ in range(3):
        numbers.append(world.register("line", GOOD))
        world.evaluate("line", numbers[-1])
        world.promote("line", numbers[-1])
    return numbers


def person(name: str, *, bounded: bool = True) -> Call:
    found = call()
    return dataclasses.replace(found, principal=Principal(kind="user", name=name), bounded=bounded)


def team(world: World) -> State:
    """Return the same state, as it is in `team` trust."""
    settings = Settings(home=world.state.context.settings.home, trust="team")
    return dataclasses.replace(world.state, context=dataclasses.replace(world.state.context, settings=settings))


def lines(found: Gate) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def keep(world: World, by: str = "eve", **rules: Any) -> None:
    gate_rules.keep(world.state, person(by), RulesRequest(project="rail", rules=Rules(**rules)))


def test_each_line_says_what_is_asked_what_was_found_and_the_way_out(world: World, three: list[int]) -> None:
    keep(
        world, holdout="last", metric="pr_auc", least={"roc_auc": 0.999}, most={"log_loss": 5.0}, questions=1, size_mb=0.001,
        card=["owner", "contact"], worse_than_champion_by=0.01, better_than_baseline_by=0.9,
    )  # fmt: skip
    found = lines(promotion.gate(world.state, "rail/line", three[0]))
    verdicts = {name: check.passed for name, check in found.items()}
    assert verdicts == {
        **dict.fromkeys(("origin", "content", "evaluation", "champion", "log_loss at most", "sanity", "latency"), True),
        **dict.fromkeys(("card", "questions", "baseline", "roc_auc at least", "size"), False),
    } | ({"questions": True} if "question 1 " in found["questions"].text else {})
    assert all(check.asked for check in found.values())
    assert all(bool(check.way_out) != check.passed for check in found.values())
    assert found["card"].text == "does not say contact"
    assert found["roc_auc at least"].asked == "roc_auc at least 0.999"
    assert found["evaluation"].text.startswith("pr_auc 0.")
    assert "by more than 0.01" in found["champion"].asked


def test_another_holdout_than_the_projects_does_not_count(world: World, three: list[int]) -> None:
    keep(world, holdout="december")
    found = lines(promotion.gate(world.state, "rail/line", three[0]))["evaluation"]
    assert (found.passed, found.asked) == (False, "evaluated on sealed holdout 'december'")
    assert found.way_out.endswith(f"cellwork model evaluate rail/line@{three[0]} --holdout december")


def test_an_easier_baseline_than_the_projects_does_not_count(world: World, three: list[int]) -> None:
    keep(world, baseline="gate")
    found = lines(promotion.gate(world.state, "rail/line", three[0]))["baseline"]
    assert (
        found.passed,
        "beside the rate by 'hour', the baseline that counts is the rate by 'gate'" in found.text,
    ) == (
        False,
        True,
    )


def test_requests_of_the_project_have_to_be_answered_within_their_bounds(world: World, three: list[int]) -> None:
    row = {"hour": 12, "crowd": 0.0, "gate": "A"}
    for request, passed, text in (
        (Sanity(row=row, least=0.0, most=1.0), True, "loads in a clean process"),
        (Sanity(row=row, least=0.999), False, f"says 0.* to {row}, under 0.999"),
        (Sanity(row={"hours": 1}), False, "did you mean 'hour'"),
    ):
        keep(world, sanity=[request])
        found = lines(promotion.gate(world.state, "rail/line", three[0]))["sanity"]
        assert found.passed is passed
        assert all(part in found.text for part in text.split("*"))


def test_a_successor_is_compared_with_the_champion_on_the_same_rows(world: World, three: list[int]) -> None:
    """Equal models do not differ by chance on the same rows, however wide their own intervals are."""
    found = world.evaluate("line", three[0])
    pair = found.against_champion
    assert (pair.metric, pair.value, pair.low, pair.high, pair.p) == ("roc_auc", 0.0, 0.0, 0.0, 1.0)
    assert found.metrics["roc_auc"].high - found.metrics["roc_auc"].low > 0.01
    assert (
        "by +0.0000 [+0.0000, +0.0000] on the same rows"
        in lines(promotion.gate(world.state, "rail/line", three[0]))["champion"].text
    )


def test_rollback_goes_back_one_by_one_and_says_when_there_is_no_way_back(world: World) -> None:
    numbers = []
    for _ in range(3):
        numbers.append(world.register("back", ["hour", "crowd"]))
        world.evaluate("back", numbers[-1])
        world.promote("back", numbers[-1])
    first, second, third = numbers
    assert world.aliases("back") == {"champion": third, "previous": second}
    ask = Rollback(name="rail/back", version=third, reason="late by an hour")
    moved = promotion.rollback(world.state, call(), ask)
    assert (moved.version.version, moved.left.version, moved.kind) == (second, third, "rolled_back")
    assert world.aliases("back") == {"champion": second, "previous": first}
    assert promotion.rollback(world.state, call(), ask) == moved
    with pytest.raises(Conflict, match=f"'version {second}': is not version {first}"):
        promotion.rollback(world.state, call(), Rollback(name="rail/back", version=first))
    promotion.rollback(world.state, call(), Rollback(name="rail/back"))
    assert world.aliases("back") == {"champion": first}
    with pytest.raises(Conflict, match="has no champion before this one"):
        promotion.rollback(world.state, call(), Rollback(name="rail/back"))
    world.promote("back", third)
    assert world.aliases("back") == {"champion": third, "previous": first}
    names = [
        event.name
        for event in world.events("")
        if event.subject.startswith("rail/back@") and event.name != "evaluation.done"
    ]
    assert names == ["model.promoted"] * 3 + ["model.rolled_back"] * 2 + ["model.promoted"]
    assert world.events("model.rolled_back")[-2].data["reason"] == "late by an hour"
    assert [move.kind for move in promotion.moves(world.state, "rail/back", 10)][:2] == ["promoted", "rolled_back"]


def test_a_move_that_a_crash_left_half_made_is_ended_once_by_whoever_looks(world: World, three: list[int]) -> None:
    """The process ended after it had noted the move, before MLflow knew."""
    last, stack = promotion.history(world.state, "rail/line")
    to = versions.get(world.mlflow, "rail/line", three[0]).ref
    move = Promoted(version=to, previous=stack[-1], gate=None, at=clock.now(), by="ada", left=stack[-1])
    with world.state.engine.begin() as db:
        promotion._begin(db, call(), move, last)
    with pytest.raises(Conflict, match="was moved by somebody else"), world.state.engine.begin() as db:
        promotion._begin(db, call(), move, last)
    assert world.aliases("line")["champion"] == three[2]
    for _ in range(2):
        promotion.gate(world.state, "rail/line", three[1])
    assert world.aliases("line") == {"champion": three[0], "previous": three[2]}
    events = [event for event in world.events("model.promoted") if event.subject == f"rail/line@{three[0]}"]
    assert len(events) == 2
    assert events[-1].data["previous"] == f"rail/line@{three[2]}"
    promotion.rollback(world.state, call(), Rollback(name="rail/line"))
    assert world.aliases("line") == {"champion": three[2], "previous": three[1]}


def override(state: State, by: Call, name: str, version: int, check: str, reason: str = "the holdout is small") -> Any:
    request = OverrideRequest(name=name, version=version, check=check, reason=reason)
    with state.context.client("cellwork") as client:
        return gate_rules.override(state, client, by, request, promotion.gate(state, name, version))


def test_an_override_lets_one_line_pass_for_what_it_said_and_stands_in_the_list(world: World) -> None:
    version = world.register("useless", ["gate"])
    world.evaluate("useless", version)
    with pytest.raises(Refused, match="does not pass the gate"):
        world.promote("useless", version)
    with pytest.raises(BadInput, match="is empty"):
        override(world.state, person("ada", bounded=False), "rail/useless", version, "baseline", " ")
    with pytest.raises(BadInput, match="'latency': does not block"):
        override(world.state, person("ada", bounded=False), "rail/useless", version, "latency")
    override(world.state, person("ada", bounded=False), "rail/useless", version, "baseline")
    found = lines(promotion.gate(world.state, "rail/useless", version))["baseline"]
    assert (found.passed, found.override) == (True, "ada let it pass: the holdout is small")
    keep(world, metric="log_loss")
    assert not promotion.gate(world.state, "rail/useless", version).passed, "the line says something else now"
    keep(world)
    moved = world.promote("useless", version)
    assert "ada let it pass" in lines(moved.gate)["baseline"].override
    with world.state.engine.connect() as db:
        said = db.exec_driver_sql(
            f"SELECT after FROM audit WHERE action = 'model.promote' AND subject = 'rail/useless@{version}'"
        ).scalar()
    assert "the holdout is small" in said


def test_in_a_team_an_override_is_the_word_of_somebody_who_neither_made_nor_promotes_it(world: World) -> None:
    state = team(world)
    version = world.register("shared", ["gate"])
    world.evaluate("shared", version)
    ask = Promotion(name="rail/shared", version=version)
    with pytest.raises(Refused, match="was made by 'ada', who can't let it pass"):
        override(state, person("ada"), "rail/shared", version, "baseline")
    override(state, person("bob"), "rail/shared", version, "baseline")
    with pytest.raises(Refused, match="does not clearly beat"):
        promotion.promote(state, person("bob"), ask)
    assert promotion.promote(state, person("cy"), ask).version.version == version


def logged_by_mlflows_client(world: World, name: str, folder: Path) -> int:
    """Register a folder that is no model of the platform's, with its true digest and no dataset."""
    run = tracking.start_run(world.mlflow, tracking.ensure_experiment(world.mlflow, "rail"), name, {})
    logged, where = tracking.start_model(world.mlflow, tracking.ensure_experiment(world.mlflow, "rail"), name, run)
    folder.mkdir()
    (folder / "model.pkl").write_bytes(b"no model")
    tracking.upload(world.mlflow, folder, where)
    tracking.end_model(world.mlflow, logged)
    tags = {"cellwork.digest": package.digest(folder), "cellwork.user": "ada"}
    return versions.create(world.mlflow, f"rail/{name}", source=f"models:/{logged}", run=run, tags=tags)


def test_a_version_that_can_not_be_tried_is_not_let_pass_whatever_is_overridden(world: World, tmp_path: Path) -> None:
    version = logged_by_mlflows_client(world, "pickled", tmp_path / "model")
    found = lines(promotion.gate(world.state, "rail/pickled", version))
    assert (found["content"].passed, found["sanity"].passed) == (True, False)
    assert "has no readable cellwork.json" in found["sanity"].text
    for check in ("origin", "card", "evaluation"):
        override(world.state, person("bob", bounded=False), "rail/pickled", version, check)
    with pytest.raises(Refused, match="is one that nobody overrides"):
        override(world.state, person("bob", bounded=False), "rail/pickled", version, "sanity")
    with pytest.raises(Refused, match=r"does not pass the gate \(sanity: "):
        world.promote("pickled", version)


def test_a_version_of_unknown_origin_is_tried_like_any_other(world: World) -> None:
    stranger = msgspec.structs.replace(world.dataset, id="ds_" + "0" * 26)
    version = world.register("unknown", GOOD, dataset=stranger)
    keep(world, sanity=[Sanity(row={"hour": 12, "crowd": 0.0, "gate": "A"}, least=0.999)])
    found = lines(promotion.gate(world.state, "rail/unknown", version))
    verdicts = {name: found[name].passed for name in ("origin", "sanity", "latency", "size")}
    assert verdicts == {"origin": False, "sanity": False, "latency": True, "size": True}


class TwoAddresses(PlatformRegistry):
    """The platform's gate and MLflow's files, which have an address each here."""

    def fetch(self, ref: VersionRef, folder: Path) -> None:
        package.download(evaluation_world.world().mlflow, ref.name, ref.version, folder)

    def definitions(self, project: str) -> Definitions:
        return evaluation_world.definitions()


def test_in_a_team_who_let_a_version_pass_does_not_bring_it_to_traffic(world: World, tmp_path: Path) -> None:
    """Neither at once nor as a canary nor in stages; somebody else does, and alone one does all of it."""
    state, good, useless = team(world), world.register("carried", GOOD), world.register("carried", ["gate"])
    for version in (good, useless):
        world.evaluate("carried", version)
    override(state, person("deployer"), "rail/carried", useless, "baseline")
    assert promotion.gate(state, "rail/carried", useless).passed
    assert promotion.gate(world.state, "rail/carried", useless, "deployer").passed
    context, platform = serving_world.context(tmp_path), Service("cellwork", gate.routes(state), authorise=serving_world.authorise)  # fmt: skip
    with (
        serving_world.running(lambda: platform, free_port()) as url,
        serving_world.caller(url, "viewer") as asking,
        serving_world.running(
            lambda: build(
                context, authorise=serving_world.authorise, registry=TwoAddresses(asking), lookup=lambda *_: {}
            ),
            context.ports["inference"],
        ) as address,
        serving_world.caller(address, "deployer") as deployer,
        serving_world.caller(address, "author") as author,
    ):
        deployer.endpoints.deploy("rail/carried", Deploy(version=good))
        for bring in (
            lambda: deployer.endpoints.deploy("rail/carried", Deploy(version=useless)),
            lambda: deployer.endpoints.put_arm("rail/carried", useless, ArmWish(weight=0.5)),
            lambda: deployer.endpoints.roll_out("rail/carried", RolloutWish(version=useless)),
        ):
            with pytest.raises(Refused, match="deployer let it pass: have somebody else promote or deploy it"):
                bring()
        assert author.endpoints.deploy("rail/carried", Deploy(version=useless)).live.version == useless


def test_in_a_team_an_author_does_not_set_the_rules_for_a_version_that_is_there(world: World, three: list[int]) -> None:
    state = team(world)
    keep(world, by="ada", latency_ms=5000.0)
    found = lines(promotion.gate(state, "rail/line", three[0]))["rules"]
    assert (found.passed, found.way_out) == (False, "have somebody else set them: cellwork model rules --apply")
    keep(world, by="bob", latency_ms=5000.0)
    assert lines(promotion.gate(state, "rail/line", three[0]))["rules"].passed


def test_content_that_changed_is_not_overridden(world: World) -> None:
    version = world.register("changed", GOOD)
    path = versions.artifact_path(world.mlflow, "rail/changed", version)
    world.mlflow.connection.raw("mlflow", "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}/{package.MODEL}", b"x")
    with pytest.raises(Refused, match="is one that nobody overrides"):
        override(world.state, person("bob"), "rail/changed", version, "content")


def test_code_of_its_own_runs_on_somebodys_word_and_in_a_team_not_on_its_authors(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (tmp_path / "doubled_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(tmp_path)
    steps = importlib.import_module("doubled_steps")
    columns = ["hour", "crowd"]
    model = make_pipeline(steps.Doubled(), LogisticRegression()).fit(
        to_pandas(world.frame.select(columns)), world.frame["late"].to_numpy()
    )
    monkeypatch.setenv("CELLWORK_USER", "ada")
    given: Any = {"dataset": world.dataset, "client": world.mlflow, "baseline": "hour"}
    version = registry.register(
        model, "rail/coded", X_example=world.frame.select(columns), code=[steps], **given
    ).version
    with pytest.raises(Refused, match="brings code that nobody has trusted here"):
        world.evaluate("coded", version)
    found = lines(promotion.gate(world.state, "rail/coded", version))["code"]
    assert (found.passed, found.way_out) == (False, f"look at it, then: cellwork model trust rail/coded@{version}")
    request = TrustRequest(name="rail/coded", version=version, reason="read it")
    about = versions.get(world.mlflow, "rail/coded", version)
    with world.state.context.client("cellwork") as client:
        folder = scoring.copy(world.state, client, about)
    assert "class Doubled" in "".join(code_trust.look(folder).values())
    with pytest.raises(Refused, match="whose word does not count for it"):
        code_trust.give(team(world), person("ada"), request, about, folder)
    for _ in range(2):
        assert [word.by for word in code_trust.give(world.state, person("bob"), request, about, folder)] == ["bob"]
    world.evaluate("coded", version)
    assert lines(promotion.gate(world.state, "rail/coded", version))["code"].text.startswith(
        "bob trusts doubled_steps-0+"
    )
    assert world.promote("coded", version).version.version == version
    assert [(word.by, word.reason) for word in cards.card(world.state, "rail/coded", version).code] == [
        ("bob", "read it")
    ]


def test_two_who_set_the_rules_at_once_are_told_apart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen the same rules; the second is told, and nothing of the first is lost."""
    seen = gate_rules.kept(world.state, "rail")
    keep(world, by="ada", latency_ms=9.0)
    monkeypatch.setattr(gate_rules, "kept", lambda *_: seen)
    with pytest.raises(Conflict, match="were just set by somebody else"):
        keep(world, by="bob", latency_ms=7.0)
    monkeypatch.undo()
    assert gate_rules.kept(world.state, "rail").rules.latency_ms == 9.0


def test_a_number_that_no_version_has_is_not_found(world: World, three: list[int]) -> None:
    for number in (10**20, 2**31, 0):
        with pytest.raises(NotFound, match="is not registered"):
            promotion.gate(world.state, "rail/line", number)


def test_a_gate_that_takes_long_keeps_nobody_from_going_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version's gate is asked while the champion before it has to come back at once."""
    first, second, third = (world.register("busy", GOOD) for _ in range(3))
    for number in (first, second):
        world.evaluate("busy", number)
        world.promote("busy", number)
    world.evaluate("busy", third)
    judging, go_on, gate = threading.Event(), threading.Event(), promotion._gate

    def slow(*arguments: Any) -> Gate:
        found = gate(*arguments)
        judging.set()
        assert go_on.wait(60)
        return found

    monkeypatch.setattr(promotion, "_gate", slow)
    with ThreadPoolExecutor(1) as other:
        promoted = other.submit(world.promote, "busy", third)
        try:
            assert judging.wait(60)
            back = promotion.rollback(world.state, person("eve"), Rollback(name="rail/busy", reason="it fails"))
        finally:
            go_on.set()
        with pytest.raises(Conflict, match="was moved by somebody else"):
            promoted.result(120)
    assert back.version.version == first


def test_rules_name_what_there_is(tmp_path: Path, world: World) -> None:
    with pytest.raises(BadInput, match="did you mean 'roc_auc'"):
        keep(world, least={"roc_auk": 0.5})
    file = tmp_path / "cellwork.toml"
    file.write_text(
        '[project]\nname = "rail"\ncontact = "#rail"\n[gate]\nlatency_ms = 20\n[gate.least]\nroc_auc = 0.7\n'
    )
    found = project.read(tmp_path)
    assert (found.gate.latency_ms, found.gate.least, found.contact) == (20.0, {"roc_auc": 0.7}, "#rail")
    for wrong, says in (("latency = 20", "did you mean 'latency_ms'"), ('latency_ms = "fast"', "Expected `float`")):
        file.write_text(f'[project]\nname = "rail"\n[gate]\n{wrong}\n')
        with pytest.raises(BadInput, match=says):
            project.read(tmp_path)


def test_the_command_line_sets_rules_rolls_back_and_overrides_over_http(
    world: World, three: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("cellwork", gate.routes(world.state), authorise=serving_world.authorise)
    (tmp_path / "cellwork.toml").write_text('[project]\nname = "rail"\nowner = "Rail"\n[gate]\nquestions = 1\n')
    monkeypatch.chdir(tmp_path)
    with serving_world.running(lambda: service, free_port()) as url:
        monkeypatch.setenv("CELLWORK_URL", url)

        def cellwork(role: str, *arguments: str) -> tuple[int, str]:
            monkeypatch.setenv("CELLWORK_TOKEN", role)
            answer = CliRunner().invoke(main, ["model", *arguments])
            return answer.exit_code, answer.output

        assert cellwork("author", "rules", "--apply")[0] == 3
        code, text = cellwork("deployer", "rules", "--apply", "--json")
        assert (code, json.loads(text)["rules"]["questions"], json.loads(text)["owner"]) == (0, 1, "Rail")
        assert cellwork("viewer", "rules")[1].splitlines()[1].split()[:3] == ["rules", "revision", "1"]
        subject = f"rail/line@{three[1]}"
        code, text = cellwork("viewer", "gate", subject)
        assert (code, "seal newer data as a new holdout" in text) == (3, True)
        code, text = cellwork(
            "deployer", "override", subject, "--check", "questions", "--reason", "only the demo asked"
        )
        assert (code, "deployer lets" in text) == (0, True)
        assert "deployer let it pass: only the demo asked" in cellwork("viewer", "gate", subject)[1]
        assert cellwork("author", "rollback", "rail/line")[0] == 3
        code, text = cellwork("deployer", "rollback", f"rail/line@{three[2]}", "--reason", "a trial")
        assert (code, f"champion of rail/line is version {three[1]}, before it version {three[2]}" in text) == (0, True)
        rows = json.loads(cellwork("viewer", "moves", "rail/line", "--json")[1])
        assert [rows[0]["kind"], rows[0]["by"], rows[0]["reason"]] == ["rolled_back", "deployer", "a trial"]
        assert msgspec.convert(rows[0], Promoted).version.version == three[1]
