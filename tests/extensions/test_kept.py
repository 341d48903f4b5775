"""What is kept of a kernel's executions: the newest of each cell, as a page would show it, within a size, to the kernel's end."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork_jupyter.server import deaths
from cellwork_jupyter.server.kept import Kept

numbers = itertools.count()


def ask(kept: Kept, cell: str | None = "a", code: str = "1", **content: Any) -> str:
    name = f"request-{next(numbers)}"
    kept.asked({"msg_id": name}, {"cellId": cell} if cell else {}, {"code": code, **content})
    return name


def tell(kept: Kept, request: str, kind: str, size: int = 10, **content: Any) -> None:
    kept.told({"header": {"msg_type": kind}, "parent_header": {"msg_id": request}, "content": content}, size)


def texts(kept: Kept) -> list[str]:
    return ["".join(o.get("text", "") for o in one.outputs) for one in kept.executions.values()]


def test_an_execution_is_followed_from_request_to_idle() -> None:
    kept = Kept()
    request = ask(kept, code="print(1); 2")
    tell(kept, request, "execute_input", execution_count=4)
    tell(kept, request, "stream", name="stdout", text="1")
    tell(kept, request, "stream", name="stdout", text="\n")
    tell(kept, request, "execute_result", data={"text/plain": "2"}, metadata={}, execution_count=4)
    [told] = [one.as_json() for one in kept.executions.values()]
    assert (told["cell"], told["code"], told["count"], told["begun"], told["ended"]) == (
        "a",
        "print(1); 2",
        4,
        True,
        None,
    )
    assert told["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "1\n"},
        {"output_type": "execute_result", "data": {"text/plain": "2"}, "metadata": {}, "execution_count": 4},
    ]
    tell(kept, request, "status", execution_state="idle")
    tell(kept, request, "stream", name="stdout", text="a thread that goes on")
    assert kept.executions[request].ended is not None
    assert texts(kept) == ["1\n"]


def test_only_the_newest_execution_of_a_cell_is_kept_and_none_that_no_cell_asked_for() -> None:
    kept = Kept()
    first, other, second = ask(kept, "a"), ask(kept, "b"), ask(kept, "a")
    ask(kept, None)
    ask(kept, "c", silent=True)
    assert list(kept.executions) == [other, second]
    tell(kept, first, "stream", name="stdout", text="late")
    assert texts(kept) == ["", ""]


def test_outputs_are_cleared_and_updated_as_a_page_does_it() -> None:
    kept = Kept()
    request = ask(kept)
    tell(kept, request, "display_data", data={"text/plain": "0 %"}, metadata={}, transient={"display_id": "bar"})
    tell(kept, ask(kept, "b"), "update_display_data", data={"text/plain": "50 %"}, metadata={}, transient={"display_id": "bar"})  # fmt: skip
    assert kept.executions[request].outputs[0]["data"] == {"text/plain": "50 %"}
    tell(kept, request, "clear_output", wait=True)
    assert kept.executions[request].outputs
    tell(kept, request, "stream", name="stdout", text="new")
    assert texts(kept)[0] == "new"
    tell(kept, request, "clear_output", wait=False)
    assert kept.executions[request].outputs == []


def test_what_an_output_widget_takes_is_not_shown_a_second_time() -> None:
    kept = Kept()
    request = ask(kept)
    capture = {"comm_id": "w", "data": {"method": "update", "state": {"msg_id": request}}}
    tell(kept, request, "comm_msg", **capture)
    tell(kept, request, "stream", name="stdout", text="inside")
    tell(kept, request, "comm_msg", comm_id="w", data={"method": "update", "state": {"msg_id": ""}})
    tell(kept, request, "stream", name="stdout", text="outside")
    assert texts(kept) == ["outside"]


def test_a_kernel_that_dies_says_why_in_the_cells_that_ran() -> None:
    kept = Kept()
    done, running = ask(kept, "a"), ask(kept, "b")
    tell(kept, done, "status", execution_state="idle")
    [(header, content)] = kept.end("the kernel is gone")
    assert (header["msg_id"], content["evalue"]) == (running, "the kernel is gone")
    assert kept.executions[running].outputs[-1]["ename"] == "KernelDied"
    assert kept.executions[running].ended is not None
    assert kept.end("again") == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.booleans()), max_size=60))
def test_what_is_kept_is_bounded_whatever_is_said(steps: list[tuple[int, int, bool]]) -> None:
    """All that has ended and all that runs, but for the cells that still run each within the same bound."""
    kept = Kept(most_bytes=100)
    for cell, size, ends in steps:
        request = ask(kept, f"c{cell}")
        for _ in range(4):
            tell(kept, request, "stream", size=size, name="stdout", text="x" * size)
        if ends:
            tell(kept, request, "status", execution_state="idle")
        for one in kept.executions.values():
            assert one.size <= 100
            assert sum(len(o["text"]) for o in one.outputs) == one.size
        running = [one for one in kept.executions.values() if not one.ended]
        if not running:
            assert sum(one.size for one in kept.executions.values()) <= 100


@pytest.mark.parametrize(
    ("code", "for_memory", "said"),
    [
        (-9, True, "needed more memory than the 700 MB that this server may have"),
        (-9, False, "was ended by SIGKILL"),
        (1, False, "ended by itself with exit code 1"),
        (None, False, "ended by itself; run"),
    ],
)
def test_a_death_is_told_with_its_reason(
    code: int | None, for_memory: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEM_LIMIT", str(700 * 2**20))
    assert said in deaths.why(code, for_memory=for_memory)


@pytest.mark.parametrize("text", ["low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"])  # fmt: skip
def test_kills_for_memory_are_read_from_both_versions_of_control_groups(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counter").write_text(text)
    monkeypatch.setattr(deaths, "COUNTERS", (tmp_path / "none", tmp_path / "counter"))
    assert deaths.killed_for_memory() == 3
    monkeypatch.setattr(deaths, "COUNTERS", (tmp_path / "none",))
    assert deaths.killed_for_memory() == 0
