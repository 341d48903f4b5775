"""Who answers: the same unit always by the same version, shares as asked for, nothing lost when a share grows."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cellwork.errors import Conflict, NotFound, Refused
from cellwork.serving.choose import Beside, Routes, Served, arm, choose, position, text, unit_of
from cellwork.serving.inline import Inline
from cellwork.serving.plan import Column, Plan
from cellwork.wire.endpoints import Arm, Request, Row
from cellwork.wire.evaluations import VersionRef

UNITS = st.text(max_size=12)
WEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=4).map(
    lambda raw: [weight / max(1.0, sum(raw)) for weight in raw]
)


def served(version: int, name: str = "shop/churn") -> Served:
    plan = Plan(project="shop", columns=[Column(name="visits", kind="number")])
    return Served(VersionRef(name=name, version=version), f"dep_{version}", plan, Inline.__new__(Inline))


def arms(weights: list[float]) -> list[Arm]:
    return [
        Arm(version=VersionRef(name="shop/churn", version=k), deployment=f"dep_{k}", weight=weight)
        for k, weight in enumerate(weights, start=10)
    ]


def routes(*beside: Arm, previous: int | None = 1) -> Routes:
    places = tuple(Beside(served(each.version.version), each) for each in beside)
    return Routes("shop/churn", 3, served(2), served(previous) if previous else None, places)


def picked(weights: list[float], unit: str, salt: str = "") -> int | None:
    found = arm(arms(weights), unit, {}, position("shop/churn", salt, unit))
    return found[0] if found else None


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, UNITS)
def test_a_unit_is_always_answered_by_the_same_version(weights: list[float], unit: str) -> None:
    assert picked(weights, unit) == picked(list(weights), unit)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.integers(0, 3), st.floats(0, 1), UNITS)
def test_raising_a_weight_takes_no_unit_from_that_version(
    weights: list[float], number: int, more: float, unit: str
) -> None:
    assume(number < len(weights))
    raised = list(weights)
    raised[number] += more * (1 - sum(weights))
    assume(raised[number] >= weights[number])
    if picked(weights, unit) == number:
        assert picked(raised, unit) == number


@settings(max_examples=50, deadline=None)
@given(UNITS)
def test_no_weight_answers_nobody_and_all_of_it_answers_everybody(unit: str) -> None:
    assert (picked([0.0], unit), picked([1.0], unit)) == (None, 0)


@pytest.mark.parametrize("weights", [[0.01], [0.1, 0.3], [0.5, 0.25, 0.25]])
def test_each_version_gets_its_share_of_units(weights: list[float]) -> None:
    """Within five standard errors of 20,000 draws."""
    count = 20_000
    got = [picked(weights, f"user-{k}") for k in range(count)]
    for number, weight in enumerate(weights):
        assert abs(got.count(number) / count - weight) <= 5 * (weight * (1 - weight) / count) ** 0.5 + 1e-9


def test_another_salt_or_endpoint_draws_anew() -> None:
    units = [f"user-{k}" for k in range(2000)]
    chosen = {unit for unit in units if picked([0.1], unit) == 0}
    other = {unit for unit in units if picked([0.1], unit, salt="2") == 0}
    assert 5 < len(chosen & other) < 60  # a tenth of a tenth is 20
    assert position("shop/churn", "", "a") != position("shop/chur", "n", "a")


def test_another_process_puts_a_unit_in_the_same_place() -> None:
    """Python's own hash differs from process to process; this one must not."""
    code = "from cellwork.serving.choose import position; print(position('shop/churn', 's', 'é'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert float(said.stdout) == position("shop/churn", "s", "é")


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 99) | st.text(max_size=5), min_size=1))
def test_a_unit_of_entities_does_not_depend_on_their_order(entities: dict[str, Any]) -> None:
    assert unit_of(entities) == unit_of(dict(reversed(entities.items())))


@pytest.mark.parametrize(
    ("value", "said"), [(3.0, "3"), (3, "3"), (True, "true"), (None, ""), ("UA", "UA"), (2.5, "2.5")]
)
def test_conditions_compare_values_as_they_are_written(value: Any, said: str) -> None:
    assert text(value) == said


def test_a_list_goes_before_a_condition_and_that_before_a_weight() -> None:
    listed, meeting, weighed = (arms([0.0])[0], arms([0.0, 0.0])[1], arms([0.0, 0.0, 1.0])[2])
    listed.units, meeting.when = ["ada"], {"carrier": ["UA", "AA"], "paid": ["true"]}
    table = routes(weighed, meeting, listed)

    def by(unit: str, **features: Any) -> tuple[int, str]:
        choice = choose(table, Request(rows=[Row(features=features)], unit=unit), "")
        return choice.chain[0].ref.version, choice.reason

    assert by("ada", carrier="UA", paid=True) == (10, "its unit is in the list")
    assert by("bob", carrier="UA", paid=True) == (11, "carrier=UA, paid=true")
    assert by("bob", carrier="UA", paid=False) == (12, "100% of units")


def test_whoever_fails_is_answered_for_by_the_next_but_a_pinned_version_by_nobody() -> None:
    table = routes(*arms([1.0]))
    answered = choose(table, Request(rows=[Row()]), "pred_1")
    assert ([s.ref.version for s in answered.chain], answered.route) == ([10, 2, 1], "canary")
    pinned = choose(table, Request(rows=[Row()], version=1), "pred_1")
    assert ([s.ref.version for s in pinned.chain], pinned.route) == ([1], "pinned")
    with pytest.raises(NotFound, match=r"has: 2, 10, 1\).*pin"):
        choose(table, Request(rows=[Row()], version=7), "pred_1")


def test_a_number_that_two_models_have_at_hand_is_refused_and_nobody_is_taken_for_the_other() -> None:
    pinned = arms([0.0])[0]
    pinned.version = VersionRef(name="shop/churn", version=1)
    table = Routes("shop/churn", 3, served(1, "shop/other"), None, (Beside(served(1), pinned),))
    with pytest.raises(Conflict, match="shop/churn@1, shop/other@1"):
        choose(table, Request(rows=[Row()], version=1), "pred_1")
    with pytest.raises(NotFound, match=r"has: shop/other@1, shop/churn@1\)"):
        choose(table, Request(rows=[Row()], version=2), "pred_1")


def test_a_version_that_stands_in_two_places_is_one_version() -> None:
    back = arms([0.0])[0]
    back.version = VersionRef(name="shop/churn", version=1)
    table = routes(back, previous=1)
    assert choose(table, Request(rows=[Row()], version=1), "").chain[0].ref.version == 1
    with pytest.raises(NotFound, match=r"has: 2, 1\)"):
        choose(table, Request(rows=[Row()], version=7), "")


def test_who_names_a_shadow_is_refused_and_told_how_it_could_answer() -> None:
    shadow = arms([0.0])[0]
    shadow.shadow = True
    with pytest.raises(Refused, match=r"is a shadow.*answers nobody.*endpoint pin shop/churn 10"):
        choose(routes(shadow), Request(rows=[Row()], version=10), "")
    shadow.version = VersionRef(name="shop/other", version=1)
    table = Routes("shop/churn", 3, served(2), served(1), (Beside(served(1, "shop/other"), shadow),))
    assert choose(table, Request(rows=[Row()], version=1), "").chain[0].ref.name == "shop/churn"


def test_shadows_and_pinned_versions_answer_nobody_who_does_not_name_them() -> None:
    shadow, pinned = arms([0.0, 0.0])
    shadow.shadow = True
    table = routes(shadow, pinned)
    assert table.canaries == ()
    assert [s.ref.version for s in table.shadows] == [10]
    assert choose(table, Request(rows=[Row()]), "pred_1").route == "live"
