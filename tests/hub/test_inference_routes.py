"""Versions beside the live one, as callers and those who change routes meet them: canary, shadow, pinned, and the way back."""

from __future__ import annotations

import functools
import importlib
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import serving_world as world
from click.testing import CliRunner

from cellwork import errors
from cellwork.cli import main
from cellwork.client import Client
from cellwork.serving import endpoint
from cellwork.serving.breaker import Breaker
from cellwork.wire.endpoints import ArmWish, Deploy, InputRule, InputWish, Prediction, Request, Row
from cellwork.wire.gate import Check
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> world.Folders:
    """Versions 1 to 3 are compiled; 8 lives in a child process and gives numbers that are not finite from 300 visits on."""
    folder, folders = tmp_path_factory.mktemp("models"), world.Folders()
    for version in (1, 2, 3):
        folders.add(world.saved(version, folder / str(version)), version)
    folders.add(world.save(world.fragile(), world.FRAME[["visits"]], folder / "8"), 8)
    return folders


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, folders: world.Folders) -> Iterator[str]:
    context = world.context(tmp_path_factory.mktemp("home"))

    def service() -> FrontDoor:
        return build(
            context, authorise=world.authorise, registry=folders, lookup=lambda *_: {}, deadline=world.DEADLINE
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoint, "Breaker", functools.partial(Breaker, seconds=600.0))  # what is taken out stays so
        with world.running(service, context.ports["inference"]) as address:
            yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with world.caller(address) as client:
        yield client


@pytest.fixture
def shop(client: Client, request: pytest.FixtureRequest) -> str:
    """An endpoint of the test's own; version 1 is live."""
    name = f"shop/e{abs(hash(request.node.name)) % 10**9}"
    return client.endpoints.deploy(name, Deploy(version=1, model=world.MODEL)).endpoint


def wish(**more: Any) -> ArmWish:
    return ArmWish(model=world.MODEL, **more)


def ask(client: Client, endpoint: str, unit: str = "", visits: float = 3.0, **more: Any) -> Any:
    row = Row(features={"visits": visits, "plan": more.pop("plan", "free")})
    return client.endpoints.predict(endpoint, Request(rows=[row], unit=unit, **more))


def logged(client: Client, endpoint: str, route: str, count: int) -> list[Prediction]:
    """Return the predictions of `route` as soon as there are `count`."""
    end = time.monotonic() + 60
    while True:
        found = [p for p in client.endpoints.predictions(endpoint, limit=10_000) if p.route == route]
        if len(found) >= count or time.monotonic() > end:
            return found
        time.sleep(0.05)


def test_a_canary_answers_its_share_of_units_each_always_the_same_and_the_log_says_so(
    client: Client, shop: str
) -> None:
    table = client.endpoints.put_arm(shop, 2, wish(weight=0.3))
    assert [(arm.version.version, arm.weight) for arm in table.canary] == [(2, 0.3)]
    first = {f"u{k}": ask(client, shop, f"u{k}") for k in range(60)}
    again = {unit: ask(client, shop, unit).model.version for unit in first}
    assert again == {unit: answer.model.version for unit, answer in first.items()}
    by = Counter(answer.route for answer in first.values())
    assert 5 <= by["canary"] <= 35
    canary = next(answer for answer in first.values() if answer.route == "canary")
    entry = client.endpoints.prediction(canary.outputs[0].id)
    assert (entry.route, entry.reason, entry.version.version) == ("canary", "30% of units", 2)
    assert entry.unit == next(unit for unit, answer in first.items() if answer is canary)
    client.endpoints.put_arm(shop, 2, wish(weight=0.6))
    assert all(ask(client, shop, unit).model.version == 2 for unit, answer in first.items() if answer.route == "canary")


def test_a_list_of_units_and_a_condition_choose_whatever_the_weight(client: Client, shop: str) -> None:
    client.endpoints.put_arm(shop, 2, wish(units=["ada"], when={"plan": ["paid"]}))
    assert (ask(client, shop, "ada").model.version, ask(client, shop, "bob").model.version) == (2, 1)
    answer = ask(client, shop, "bob", plan="paid")
    assert (answer.model.version, answer.reason) == (2, "plan=paid")


def test_a_shadow_scores_what_is_answered_and_answers_nobody(client: Client, shop: str, folders: world.Folders) -> None:
    folders.closed[3] = [Check(name="champion", passed=False, text="not better")]
    try:
        client.endpoints.put_arm(shop, 3, wish(shadow=True))
        with pytest.raises(errors.Refused, match="not better"):
            client.endpoints.put_arm(shop, 3, wish(weight=0.1))
    finally:
        del folders.closed[3]
    answers = [ask(client, shop, f"u{k}", visits=float(k)) for k in range(8)]
    assert {answer.model.version for answer in answers} == {1}
    shadows = logged(client, shop, "shadow", 8)
    assert sorted(p.reason for p in shadows) == sorted(f"beside {answer.outputs[0].id}" for answer in answers)
    with pytest.raises(errors.Refused, match=r"is a shadow.*answers nobody"):
        ask(client, shop, version=3)
    client.endpoints.put_arm(shop, 3, wish())
    expected = {ask(client, shop, version=3, visits=float(k)).outputs[0].score for k in range(8)}
    assert {p.score for p in shadows} == expected


CODE = """
from pathlib import Path
from sklearn.linear_model import LinearRegression

Path({mark!r}).touch()


class Steep(LinearRegression):
    pass
"""


@pytest.fixture
def own_code(folders: world.Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Version 21 brings code of its own, which leaves a mark where it runs; the gate has nobody's word for it."""
    mark, frame = tmp_path / "ran", world.FRAME[["visits"]]
    (tmp_path / "steep_steps.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(tmp_path))
    steps = importlib.import_module("steep_steps")
    model = world.save(steps.Steep().fit(frame, frame["visits"]), frame, tmp_path / "21", steps)
    mark.unlink()
    folders.add(model, 21)
    folders.closed[21] = [Check(name="code", passed=False, text="nobody trusts it")]
    yield mark
    del folders.closed[21], sys.modules["steep_steps"]


def test_a_shadow_with_code_of_its_own_waits_for_somebodys_word_and_none_of_it_runs(
    client: Client, shop: str, folders: world.Folders, own_code: Path
) -> None:
    with pytest.raises(errors.Refused, match="brings code of its own and has not passed the gate"):
        client.endpoints.put_arm(shop, 21, wish(shadow=True))
    assert not own_code.exists()
    folders.closed[21] = [Check(name="code", passed=True, text="trusted by ada")]
    assert [arm.version.version for arm in client.endpoints.put_arm(shop, 21, wish(shadow=True)).shadow] == [21]
    assert own_code.exists()


def test_a_shadow_of_another_project_is_refused(client: Client, shop: str) -> None:
    with pytest.raises(errors.Refused, match="is of another project"):
        client.endpoints.put_arm(shop, 2, ArmWish(model="other/churn", shadow=True))


def test_a_pinned_version_answers_who_names_it_and_nobody_takes_its_place(client: Client, shop: str) -> None:
    client.endpoints.put_arm(shop, 8, wish())
    answer = ask(client, shop, version=8, visits=1.0)
    assert (answer.model.version, answer.route) == (8, "pinned")
    assert ask(client, shop, visits=1e5).model.version == 1
    with pytest.raises(errors.Unavailable, match="not finite"):
        ask(client, shop, version=8, visits=1e5)
    with pytest.raises(errors.NotFound, match=r"is not at hand.*has: 1, 8"):
        ask(client, shop, version=5)
    with pytest.raises(errors.BadInput, match="only compiled versions are explained"):
        ask(client, shop, version=8, explain=True)


def test_blue_green_switches_at_once_to_what_is_warm_and_back(client: Client, shop: str) -> None:
    client.endpoints.put_arm(shop, 2, wish())
    table = client.endpoints.deploy(shop, Deploy(version=2, model=world.MODEL))
    assert (table.live.version, table.canary) == (2, [])
    checks = client.endpoints.deployment(table.deployment).checks
    assert any(line.startswith("at hand") for line in checks)
    assert client.endpoints.rollback(shop).live.version == 1


def test_a_failing_canary_fails_nobody_and_is_taken_out(client: Client, shop: str) -> None:
    client.endpoints.put_arm(shop, 8, wish(weight=1.0))
    answers = [ask(client, shop, f"u{k}", visits=1e5) for k in range(6)]
    assert {(answer.model.version, answer.route) for answer in answers} == {(1, "fallback")}
    assert "not finite" in answers[0].reason
    assert "is taken out" in ask(client, shop, "u9", visits=1.0).reason
    entry = client.endpoints.prediction(answers[0].outputs[0].id)
    assert entry.tried == client.endpoints.get(shop).routes.canary[0].deployment


def test_the_same_wish_twice_changes_nothing_and_removing_twice_neither(client: Client, shop: str) -> None:
    first = client.endpoints.put_arm(shop, 2, wish(weight=0.3))
    assert client.endpoints.put_arm(shop, 2, wish(weight=0.3)) == first
    gone = client.endpoints.remove_arm(shop, 2, model=world.MODEL)
    assert (gone.canary, gone.revision) == ([], first.revision + 1)
    assert client.endpoints.remove_arm(shop, 2, model=world.MODEL) == gone


def test_of_two_who_saw_the_same_revision_one_wins_and_one_is_told_by_whom(client: Client, shop: str) -> None:
    seen = client.endpoints.get(shop).routes.revision
    results: list[object] = []

    def change(version: int) -> None:
        try:
            results.append(client.endpoints.put_arm(shop, version, wish(weight=0.1, revision=seen)))
        except errors.Conflict as error:
            results.append(error)

    threads = [threading.Thread(target=change, args=(version,)) for version in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    told = [result for result in results if isinstance(result, errors.Conflict)]
    assert (len(results), len(told)) == (2, 1)
    assert "by deployer" in str(told[0])
    assert client.endpoints.get(shop).routes.revision == seen + 1


def test_every_change_is_in_the_audit_with_the_table_before_and_after(client: Client, shop: str) -> None:
    client.endpoints.put_arm(shop, 2, wish(weight=0.1, reason="try it"))
    row = [row for row in client.records.audit(service="inference") if row.subject == shop][-1]
    assert (row.action, row.subject, row.reason, row.principal) == ("endpoint.canary", shop, "try it", "user:deployer")
    assert '"weight":0.1' in row.after
    assert '"weight"' not in row.before
    event = [event for event in client.records.events(service="inference") if event.subject == shop][-1]
    assert (event.name, event.data["arms"]) == ("endpoint.changed", [f"{world.MODEL}@2"])


@pytest.mark.parametrize(
    ("version", "more", "message"),
    [
        (1, {"weight": 0.1}, "is live at"),
        (2, {"weight": 1.5}, "is not a share"),
        (2, {"weight": -0.1}, "is not a share"),
        (2, {"weight": 0.5, "shadow": True}, "is to be a shadow and to answer"),
    ],
)
def test_a_wrong_wish_is_refused_with_its_value(
    client: Client, shop: str, version: int, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.BadInput, match=message):
        client.endpoints.put_arm(shop, version, wish(**more))


def test_weights_of_more_than_all_units_together_are_refused(client: Client, shop: str) -> None:
    client.endpoints.put_arm(shop, 2, wish(weight=0.7))
    with pytest.raises(errors.BadInput, match="lower another canary first"):
        client.endpoints.put_arm(shop, 3, wish(weight=0.4))


def test_an_observation_that_a_batch_has_scored_gets_that_answer_by_its_id_alone(client: Client, shop: str) -> None:
    rows = [Row(features={"visits": float(k), "plan": "free"}, observation=f"o{k}", key=f"o{k}@1") for k in range(3)]
    scored = client.endpoints.predict(shop, Request(rows=rows, batch_run="run_1")).outputs
    client.endpoints.deploy(shop, Deploy(version=2, model=world.MODEL))
    answer = client.endpoints.predict(shop, Request(rows=[Row(observation="o2"), Row(observation="o0")]))
    assert [(o.id, o.score, o.repeated) for o in answer.outputs] == [
        (scored[k].id, scored[k].score, True) for k in (2, 0)
    ]
    assert (answer.route, answer.model.version, answer.reason.startswith("scored by run_1 at ")) == (
        "precomputed",
        1,
        True,
    )
    with pytest.raises(errors.NotFound, match="'o9': was scored by no batch"):
        client.endpoints.predict(shop, Request(rows=[Row(observation="o9")]))


RULE = InputRule(ranges={"visits": [0, 100]}, known={"plan": ["free", "paid"]})


def test_a_strange_value_is_taken_for_none_by_the_rule_and_the_answer_says_so(client: Client, shop: str) -> None:
    client.endpoints.put_input(shop, InputWish(rule=RULE))
    answer, usual = ask(client, shop, visits=1e6), ask(client, shop, visits=99.0)
    assert (answer.outputs[0].defaults, answer.reason) == (
        ["visits", "customer__age"],
        "visits=1000000 is not from 0 to 100",
    )
    assert (usual.outputs[0].defaults, usual.reason) == (["customer__age"], "")
    assert client.endpoints.prediction(answer.outputs[0].id).features["visits"] is None
    expected = client.endpoints.predict(shop, Request(rows=[Row(features={"plan": "free"})])).outputs[0].score
    assert answer.outputs[0].score == expected


def test_a_strange_value_is_refused_or_answered_by_the_previous_version_as_the_rule_says(
    client: Client, shop: str
) -> None:
    client.endpoints.deploy(shop, Deploy(version=2, model=world.MODEL))
    client.endpoints.put_input(shop, InputWish(rule=msgspec.structs.replace(RULE, then="fallback")))
    answer = ask(client, shop, plan="vip")
    assert (answer.model.version, answer.route, answer.reason) == (1, "fallback", "plan=vip was never seen")
    table = client.endpoints.put_input(
        shop, InputWish(rule=msgspec.structs.replace(RULE, then="refuse"), reason="strict")
    )
    with pytest.raises(errors.BadInput, match="was never seen"):
        ask(client, shop, plan="vip")
    assert ask(client, shop).model.version == 2
    assert client.endpoints.put_input(shop, InputWish(rule=table.input)) == table
    assert client.endpoints.put_input(shop, InputWish()).input is None
    assert ask(client, shop, plan="vip").model.version == 2


@pytest.mark.parametrize(
    "rule",
    [InputRule(ranges={"plan": [0, 1]}), InputRule(ranges={"visits": [2, 1]}), InputRule(known={"visits": ["1"]})],
)
def test_a_rule_that_makes_no_sense_is_refused(client: Client, shop: str, rule: InputRule) -> None:
    with pytest.raises(errors.BadInput):
        client.endpoints.put_input(shop, InputWish(rule=rule))


def test_an_explained_answer_says_what_each_column_did_and_adds_up(client: Client, shop: str) -> None:
    answer = ask(client, shop, explain=True)
    told = answer.outputs[0].explanation
    assert told is not None
    assert (told.scale, sorted(told.contributions)) == ("log-odds", ["customer__age", "plan", "visits"])
    score = answer.outputs[0].score
    assert told.base + sum(told.contributions.values()) == pytest.approx(math.log(score / (1 - score)), abs=1e-9)
    assert ask(client, shop).outputs[0].explanation is None


def test_a_request_of_its_own_deadline_does_not_wait_longer(client: Client, shop: str) -> None:
    with pytest.raises(errors.BadInput, match="leaves no time"):
        ask(client, shop, deadline_ms=0)
    assert ask(client, shop, deadline_ms=20_000).route == "live"


def test_the_command_line_sets_canary_shadow_and_pin_and_shows_them(
    client: Client, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "deployer")

    def run(*command: str) -> str:
        done = CliRunner().invoke(main, ["endpoint", *command])
        assert done.exit_code == 0, done.output
        return done.output

    model = ("--model", world.MODEL)
    assert "canary: version 2 answers 10% of units; plan in paid, vip" in run(
        "canary", shop, "2", *model, "--weight", "10%", "--when", "plan=paid,vip"
    )
    assert "shadow: version 3" in run("shadow", shop, "3", *model)
    assert "pinned: version 2" in run("pin", shop, "2", *model)
    assert "version 3" in run("show", shop)
    assert "by version 2 (pinned)" in run("predict", shop, "-f", "visits=3", "--version", "2")
    assert "shadow" not in run("remove", shop, "3", *model)
    assert "base (log-odds)" in run("predict", shop, "-f", "visits=3", "--explain")
    assert "strange values of visits: refuse" in run("input", shop, "--range", "visits=0..10", "--then", "refuse")
    assert CliRunner().invoke(main, ["endpoint", "canary", shop, "2", "--weight", "much"]).exit_code == 2
