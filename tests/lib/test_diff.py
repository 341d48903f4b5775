"""Two runs beside each other: each difference is told for what it is, and the page runs nothing of what the runs wrote."""

from __future__ import annotations

import base64
from typing import Any

from cellwork import clock
from cellwork.runs import diff
from cellwork.wire.jobs import Run

PNG = base64.b64encode(b"one picture").decode(), base64.b64encode(b"another").decode()


def run(name: str, **parameters: Any) -> Run:
    return Run(
        id=f"run_{name}", project="p", notebook="n.ipynb", notebook_sha256="", parameters=parameters, principal="ada", state="succeeded", created=clock.now()
    )  # fmt: skip


def cell(source: str, *outputs: dict[str, Any], seconds: float = 0.0) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "source": source,
        "outputs": list(outputs),
        "metadata": {"papermill": {"duration": seconds}},
    }


def text(value: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": value}


def table(*rows: tuple[Any, ...]) -> dict[str, Any]:
    body = "".join(f"<tr>{''.join(f'<td>{v}</td>' for v in row)}</tr>" for row in rows)
    return {"output_type": "display_data", "data": {"text/html": f"<table>{body}</table>", "text/plain": "…"}}


def plot(data: str) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {"image/png": data, "text/plain": "<Figure>"}}


def page(*cells: dict[str, Any], **packages: str) -> dict[str, Any]:
    return {"cells": list(cells), "metadata": {"cellwork": {"packages": packages}}, "nbformat": 4}


def test_the_same_run_twice_differs_in_nothing() -> None:
    it = page(cell("x = 1", text("auc 0.71\n")), polars="1.0")
    found = diff.compare(run("a", x=1), run("b", x=1), (it, it))
    assert found.same
    assert "nothing differs" in diff.as_text(found)


def test_each_difference_is_told_for_what_it_is() -> None:
    a = page(
        cell("fit(10)", text("auc 0.71 on 1000 rows\n"), seconds=1.0),
        cell("show()", table(("hour", "delay"), ("6", "1.5"), ("7", "2.5"))),
        cell("plot()", plot(PNG[0])),
        cell("old()", text("gone")),
        polars="1.0",
    )
    b = page(
        cell("fit(10)", text("auc 0.75 on 1000 rows\n"), seconds=4.0),
        cell("show()", table(("hour", "delay"), ("6", "1.5"), ("7", "9.0"))),
        cell("plot()", plot(PNG[1])),
        cell("new()", text("here")),
        polars="1.1",
    )
    found = diff.compare(run("a", x=1), run("b", x=2, y=3), (a, b), (["bat_1", "bat_2"], ["bat_2"]))
    told = {(c.what, c.name, c.a, c.b, c.cell) for c in found.changes}
    assert told == {
        ("parameter", "x", "1", "2", 0),
        ("parameter", "y", "", "3", 0),
        ("environment", "polars", "'1.0'", "'1.1'", 0),
        ("batch", "bat_1", "used", "", 0),
        ("number", "auc", "0.71", "0.75", 1),
        ("table", "7, delay", "2.5", "9.0", 2),
        ("output", "text", "gone", "here", 4),
    }
    assert found.plots == [(3, *PNG)]
    assert ("-old()" in found.code, "+new()" in found.code) == (True, True)
    assert [(s.cell, s.a, s.b) for s in diff.slowest(found)] == [(1, 1.0, 4.0)]


def test_a_cell_that_was_put_in_pairs_with_none_and_the_others_still_pair() -> None:
    a = page(cell("one", text("1")), cell("two", text("2")))
    b = page(cell("zero"), cell("one", text("1")), cell("two", text("2")))
    found = diff.compare(run("a"), run("b"), (a, b))
    assert found.changes == []
    assert "+zero" in found.code


def test_the_page_shows_plots_side_by_side_and_executes_nothing_of_what_runs_wrote() -> None:
    evil = "<script>alert(1)</script>"
    a = page(cell(f"'{evil}'", text(evil), plot(PNG[0])))
    b = page(cell("2", text("b"), plot('"><script>x</script>')))
    made = diff.as_page(diff.compare(run("a", p=evil), run("b"), (a, b)))
    assert "<script" not in made
    assert "&lt;script&gt;" in made
    assert f"base64,{PNG[0]}" in made
    assert "default-src 'none'" in made
