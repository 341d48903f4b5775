"""Ids and names: made, told apart, refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork import ids
from cellwork.errors import BadInput

INTS = st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=8)
quick = settings(max_examples=60, deadline=None)


@given(INTS, INTS)
@quick
def test_the_boundaries_of_the_parts_of_a_content_id_count(a: list[int | None], b: list[int | None]) -> None:
    left, right = str(a), str(b)
    assert (ids.of_content("bat", left, right) == ids.of_content("bat", left + right)) is False
    assert ids.check(ids.of_content("bat", left, right), "bat")


def test_times_sort_and_content_ids_are_not_made_from_time() -> None:
    made = [ids.new("run") for _ in range(3)]
    assert all(ids.check(one, "run") for one in made)
    assert len(set(made)) == 3
    with pytest.raises(BadInput, match="not made from time"):
        ids.new("bat")
    with pytest.raises(BadInput, match="not made from content"):
        ids.of_content("run", "x")


@pytest.mark.parametrize("text", ["", "1a", "A", "a b", "a/b", "../a", "a" * 64, "a\n", "é"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a name"):
        ids.name(text)


def test_a_full_name_has_a_project() -> None:
    assert ids.split_name("flights/delay") == ("flights", "delay")
    with pytest.raises(BadInput, match="has no project"):
        ids.split_name("delay")
    with pytest.raises(BadInput):
        ids.split_name("flights/delay/x")
