"""The corpus of names and values that try to become code, or to leave the run's folder: 0 executed, 0 files outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput
from cellwork.runs import engine, parameters
from cellwork_hub.jobs import store

MARK = "__import__('pathlib').Path({mark!r}).touch()"
NAMES = [
    "x = 1\nimport os", "x; import os", "x=1 #", "x\n", "x\r", "x\u2028y", "print", "x.y", "x[0]", "x:int", "*x", "**x", "(x)", "x,y", "x = __import__('os')", "import os",
    "class", "lambda", "None", "True", "", " ", "x y", "1x", "-x", "x-", "x\x00", "\ufeffx", "x\\\nimport os", "{x}", "${x}", "%x", "!x", "$(id)", "`id`", "../x", "__class__ ",
    "𝐱 = 1", "x\u202e", "x'", 'x"', "x#", "@x", "x==1", "x:=1", "await x", "del x", "\n", "\t", "x\x0b", "x\x0c", "x\x85", "x\u2029", "ｘ；", "x;", "globals()",
]  # fmt: skip
VALUES = [
    "'; {code} #", '"; {code} #', "\\'; {code} #", "\n{code}\n", "\r\n{code}", "'''{code}'''", '"""\n{code}\n"""', "\\", "\\\\", "\\\n{code}", "{{x}}", "{x}", "${x}", "%s", "%(x)s",
    "\u2028{code}", "\u2029{code}", "\x00{code}", "\x1b[2J{code}", "!touch {mark}", "%run {mark}", "%%bash\ntouch {mark}", "$(touch {mark})", "`touch {mark}`", "| touch {mark}",
    "__import__('os').system('touch {mark}')", "f'{{{code}}}'", "\\N{{LATIN SMALL LETTER A}}", "\\x41\\u0041\\101", "#{code}", "\ufeff{code}", "\x85{code}", "\x0c{code}", "end\\",
    "'+{code}+'", "' if {code} else '", "<script>", "-->", "]]>", "\ud7ff", "𐀀", "a" * 10_000,
]  # fmt: skip
PATHS = [
    "../x.ipynb", "/x.ipynb", "a/../../x.ipynb", "a//b.ipynb", "~/x.ipynb", "C:\\x.ipynb", "..\\x.ipynb", "a/./b.ipynb", "./x.ipynb", "x.ipynb\x00.py", "x\n.ipynb", "-x.ipynb",
    "http://host/x.ipynb", "s3://bucket/x.ipynb", "file:///x.ipynb", "x.py", "", ".ipynb", "a/.hidden/x.ipynb", "{x}.ipynb", "$HOME/x.ipynb", "%2e%2e/x.ipynb", "x..ipynb", "a/b/c/d/e/f/g/h/i/j/x.ipynb",
    "x.ipynb/", "x .ipynb\u2028", "\u202ex.ipynb", "x*.ipynb", "x?.ipynb", "x|y.ipynb", "x;y.ipynb", "x&y.ipynb", "<x>.ipynb", '"x".ipynb', "'x'.ipynb", "`x`.ipynb",
]  # fmt: skip


def page(*sources: str) -> dict[str, Any]:
    cells = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {"tags": ["parameters"] if not k else []}, "outputs": [], "execution_count": None, "source": s} for k, s in enumerate(sources)
    ]  # fmt: skip
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_hostile_values_arrive_as_the_data_they_are(tmp_path: Path) -> None:
    """All at once, alone, in a list, as the keys and values of a mapping: the notebook writes down what it got."""
    mark = tmp_path / "executed"
    code = MARK.format(mark=str(mark))
    values = [value.replace("{code}", code).replace("{mark}", str(mark)) for value in VALUES]
    given_ = {"many": values, "pairs": {value: value for value in values}, **{f"v{k}": v for k, v in enumerate(values)}}
    declared = "\n".join(["many = []", "pairs = {}", *(f"v{k} = ''" for k in range(len(values)))])
    names = f"[many, pairs, [{', '.join(f'v{k}' for k in range(len(values)))}]]"
    source = f"import json, pathlib\npathlib.Path('got.json').write_text(json.dumps({names}))"
    (tmp_path / "n.ipynb").write_text(json.dumps(page(declared, source)))
    engine.execute(tmp_path / "n.ipynb", tmp_path / "out.ipynb", given_)
    assert json.loads((tmp_path / "got.json").read_text()) == [values, {v: v for v in values}, values]
    assert everything(tmp_path) == {"n.ipynb", "out.ipynb", "got.json"}
    assert not mark.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_parameter_is_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text(json.dumps(page("x = 1\nprint_ = 2")))
    with pytest.raises(BadInput):
        engine.execute(tmp_path / "n.ipynb", tmp_path / "out.ipynb", {name: 1})
    assert everything(tmp_path) == {"n.ipynb"}


@given(st.text(min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_no_name_but_a_declared_one_is_taken(name: str) -> None:
    if name == "x":
        return
    with pytest.raises(BadInput):
        parameters.check(page("x = 1"), {name: 1})


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_could_leave_the_runs_folder_is_refused(path: str) -> None:
    with pytest.raises(BadInput):
        store.check_paths(path, {})
    if not path.endswith(".py"):
        with pytest.raises(BadInput):
            store.check_paths("n.ipynb", {path.removesuffix(".ipynb") + ("" if path in ("", ".ipynb") else ".py"): ""})


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "\ud800", {1: 2}, b"bytes", object(), {"x": {"y": float("nan")}}]
)
def test_a_value_that_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(BadInput):
        parameters.check(page("x = None"), {"x": value})
