"""Parameters are checked before anything starts: only declared names, only JSON, only the declared type; nothing of it is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput
from cellwork.runs import parameters

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
INJECTIONS = [
    "x = __import__('os').system('touch hacked') #",
    "x\nimport os\nos.system('touch hacked')\ny",
    "x;import os",
    "x, y",
    "x[0]",
    "x.y",
    "*x",
    "x:int",
    "__import__('os')",
    "",
    " x",
    "x ",
    "class",
    "lambda",
    "None",
    "%run x",
    "!touch hacked",
    "x\u2028y",
    "x\ry",
    "../x",
    "{x}",
]


def load(name: str) -> dict[str, Any]:
    return parameters.read((NOTEBOOKS / f"{name}.ipynb").read_bytes(), name)


@pytest.mark.parametrize("name", INJECTIONS)
def test_a_name_that_is_code_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"is not a name|is unknown"):
        parameters.check(load("works"), {name: 1})


def test_an_unknown_name_gets_its_near_miss() -> None:
    with pytest.raises(BadInput, match="did you mean 'name'"):
        parameters.check(load("works"), {"nmae": "x"})


def test_a_notebook_without_the_tagged_cell_takes_no_parameters() -> None:
    assert parameters.check(load("untagged"), {}) == {}
    with pytest.raises(BadInput, match="no cell tagged 'parameters'"):
        parameters.check(load("untagged"), {"x": 1})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("x", [0, -7, 10**20], [1.5, "3", True, None, [1]]),
        ("ratio", [0.25, 3], ["0.5", False, None]),
        ("name", ["", "naïve ✓", "'); import os #"], [3, None, ["a"]]),
        ("flag", [True], [1, "true", None]),
        ("tags", [[], ["a", "b"]], ["a", [1], {"a": 1}]),
        ("limit", [None, 4], ["4", 1.5]),
        ("options", [{}, {"deep": {"er": [1, None]}}], [[], "x"]),
        ("kind", ["blue"], [3]),
        ("when", ["2013-12-24", 3], [float("nan"), float("inf"), {1: 2}, object(), (1,), "\ud800"]),
    ],
)
def test_values_are_held_against_annotation_type_comment_and_default(
    name: str, good: list[Any], bad: list[Any]
) -> None:
    notebook = load("typed")
    for value in good:
        assert parameters.check(notebook, {name: value}) == {name: value}
    for value in bad:
        with pytest.raises(BadInput):
            parameters.check(notebook, {name: value})


def test_it_reads_what_papermill_reads_and_what_papermill_misses() -> None:
    from papermill.inspection import inspect_notebook

    ours = parameters.declared(load("typed"))
    theirs = inspect_notebook(str(NOTEBOOKS / "typed.ipynb"))
    assert set(theirs) <= set(ours)
    assert set(ours) - set(theirs) == {"limit"}, "papermill can't read `int | None`"
    assert {name: p["help"] for name, p in theirs.items()} == {name: ours[name].help for name in theirs}
    typed = {name: p["inferred_type_name"] for name, p in theirs.items() if p["inferred_type_name"] != "None"}
    assert typed == {name: ours[name].type for name in typed}


@given(
    st.dictionaries(
        st.sampled_from(["x", "ratio", "name", "flag", "tags", "limit", "options", "kind", "when", "no", "x = 1\n"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
@settings(max_examples=150, deadline=None)
def test_what_passes_becomes_assignments_of_these_values_and_nothing_else(given: dict[str, Any]) -> None:
    """Papermill's own translation of every accepted set is parsed: one literal assignment a parameter, equal to the value."""
    import ast

    from papermill.translators import PythonTranslator

    try:
        accepted = parameters.check(load("typed"), given)
    except BadInput:
        return
    tree = ast.parse(PythonTranslator.codify(accepted))
    assert [type(statement) for statement in tree.body] == [ast.Assign] * len(accepted)
    read = {statement.targets[0].id: ast.literal_eval(statement.value) for statement in tree.body}  # type: ignore[attr-defined]
    assert read == accepted


def test_text_of_the_command_line_is_read_by_the_declared_type() -> None:
    known = parameters.declared(load("typed"))
    texts = {
        "x": "5",
        "ratio": "0.5",
        "name": "5",
        "flag": "True",
        "tags": '["a"]',
        "limit": "None",
        "when": "2013-12-24",
    }
    read = {name: parameters.from_text(text, known[name]) for name, text in texts.items()}
    assert read == {"x": 5, "ratio": 0.5, "name": "5", "flag": True, "tags": ["a"], "limit": None, "when": "2013-12-24"}
    assert parameters.check(load("typed"), read) == read


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("not json", "is not JSON"),
        ("[]", "not a notebook"),
        ('{"nbformat": 3, "cells": []}', "not a notebook"),
        (
            json.dumps({"nbformat": 4, "cells": [], "metadata": {"kernelspec": {"language": "julia"}}}),
            "written in julia",
        ),
    ],
)
def test_what_is_no_python_notebook_is_refused(text: str, verdict: str) -> None:
    with pytest.raises(BadInput, match=verdict):
        parameters.read(text)


def test_yaml_keeps_words_and_dates_as_they_are_written() -> None:
    read = parameters.from_yaml("on: x\nday: 2013-12-24\nanswer: no\nflag: true\nn: 3\n")
    assert read == {"on": "x", "day": "2013-12-24", "answer": "no", "flag": True, "n": 3}
    for text, verdict in (("a: [", "line 1"), ("- a", "is not a mapping")):
        with pytest.raises(BadInput, match=verdict):
            parameters.from_yaml(text)


def text(*cells: Any, **fields: Any) -> str:
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells), **fields})


def tagged(source: Any) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}


@pytest.mark.parametrize(
    "content",
    [text(3), text(None), text({"metadata": 3}), text({"metadata": ["tags"]}), text(metadata=[1]), text(metadata={"kernelspec": "python3"}), text(metadata={"language_info": {"name": 3}}), text({"source": {"a": 1}}), text({"source": ["a", 1]}), "[" * 100_000],
    ids=lambda content: content[:80],
)  # fmt: skip
def test_what_is_not_built_like_a_notebook_is_refused_when_it_is_read(content: str) -> None:
    with pytest.raises(BadInput, match="notebook"):
        parameters.read(content)


@pytest.mark.parametrize("metadata", [None, {}, {"tags": None}, {"tags": 3}, {"tags": "parameters"}, {"tags": [None]}])
def test_a_cell_whose_tags_are_none_is_not_tagged(metadata: Any) -> None:
    odd = {"cell_type": "code", "metadata": metadata, "source": "y = 1"}
    assert list(parameters.declared(parameters.read(text(odd, tagged("x = 1"))))) == ["x"]


@pytest.mark.parametrize("source", ["x = (", "x = '\0'", "(" * 5000 + ")" * 5000, "-" * 100_000 + "1", "x = 0x" + "f" * 9000, "x = 1\\", "x = 1 #\0"])  # fmt: skip
def test_a_parameters_cell_that_python_can_not_read_is_said_to_be_one(source: str) -> None:
    with pytest.raises(BadInput, match="parameters cell"):
        parameters.declared(parameters.read(text(tagged(source))))


@pytest.mark.parametrize("source", ["x = {[]}", "x: Optional[()] = 1", "x: list[()] = []", "x: '((' = 1", "x = 1  # type: ((", "x: Literal[()] = 1", "x: dict[()] = {}", "x: " + "int | " * 3000 + "int = 1"])  # fmt: skip
def test_a_type_that_means_nothing_takes_every_value_or_refuses_it(source: str) -> None:
    notebook = parameters.read(text(tagged(source)))
    for value in (1, "text", [1], {"a": 1}, None):
        try:
            assert parameters.check(notebook, {"x": value}) == {"x": value}
        except BadInput:
            continue


def test_the_names_of_values_that_come_later_are_checked_now() -> None:
    assert parameters.check(load("works"), {}, later=["name"]) == {}
    with pytest.raises(BadInput, match="did you mean 'name'"):
        parameters.check(load("works"), {}, later=["nmae"])
    with pytest.raises(BadInput, match="no cell tagged 'parameters'"):
        parameters.check(load("untagged"), {}, later=["x"])
