"""The page between two attempts: what ran stays as it ran, what follows is the mended notebook's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput
from cellwork.runs import resume


def code(source: str, *tags: str, ran: bool = False) -> dict[str, Any]:
    outputs = [{"output_type": "stream", "name": "stdout", "text": source}] if ran else []
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": outputs, "execution_count": 1 if ran else None}  # fmt: skip


def text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def page(*cells: dict[str, Any]) -> dict[str, Any]:
    return {"cells": list(cells), "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}


def sources(notebook: dict[str, Any]) -> list[str]:
    return [cell["source"] for cell in notebook["cells"]]


@given(st.lists(st.text("ab\n", min_size=0, max_size=4), min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_cells_before_the_first_keep_their_outputs_and_no_other_does(cells: list[str], data: st.DataObject) -> None:
    counted = [s for s in cells if s.strip()]
    if not counted:
        return
    first = data.draw(st.integers(1, len(counted)))
    executed, mended = page(*(code(s, ran=True) for s in cells)), page(*map(code, cells))
    merged = resume.merge(executed, mended, first)
    numbered = [cell for cell in merged["cells"] if resume.counted(cell)]
    assert [bool(cell["outputs"]) for cell in numbered] == [k < first for k in range(1, len(numbered) + 1)]
    assert sources(merged) == cells


def test_the_injected_parameters_come_along_and_the_banner_does_not() -> None:
    executed = page(
        text("note"),
        code("x = 1", "parameters", ran=True),
        code("x = 5", "injected-parameters", ran=True),
        text("An Exception was encountered"),
        code("1 / 0", ran=True),
    )
    executed["cells"][3]["metadata"] = {"tags": ["papermill-error-cell-tag"]}
    mended = page(text("note, longer"), code("x = 1", "parameters"), code("2"), code("3"))
    merged = resume.merge(executed, mended, 3)
    assert sources(merged) == ["note, longer", "x = 1", "x = 5", "2", "3"]
    assert sources(resume.plain(merged)) == sources(mended)
    assert resume.merge(executed, executed, 3)["cells"][-1]["outputs"] == []


def test_a_changed_cell_above_is_named_and_so_is_a_first_cell_that_is_none() -> None:
    executed = page(code("a", ran=True), code("b", ran=True), code("c", ran=True))
    with pytest.raises(BadInput, match="cell 2: differs"):
        resume.merge(executed, page(code("a"), code("B"), code("c")), 3)
    with pytest.raises(BadInput, match="1 to 3"):
        resume.merge(executed, executed, 4)
    with pytest.raises(BadInput, match="cell 2: differs"):
        resume.merge(page(code("a", ran=True)), page(code("a"), code("b"), code("c")), 3)
