"""Would it run alone: each thing that only the author's session has is found, and a sound notebook gives no finding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cellwork.cli import main
from cellwork.runs import check

ROOT = Path(__file__).resolve().parents[2]


def notebook(*sources: str, ran: tuple[int | None, ...] = ()) -> dict[str, Any]:
    counts = ran or (None,) * len(sources)
    cells = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {}, "outputs": [], "execution_count": count, "source": source}
        for k, (source, count) in enumerate(zip(sources, counts, strict=True))
    ]  # fmt: skip
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}


def kinds(*sources: str, **options: Any) -> list[tuple[int, str, str]]:
    return [(f.cell, f.kind, f.subject) for f in check.check(notebook(*sources, **options))]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (("print(frame)",), [(1, "name", "frame")]),
        (("print(total)", "total = 3"), [(1, "order", "total")]),
        (("x = y + 1\ny = 2",), [(1, "name", "y")]),
        (("def f():\n    return later\n", "later = 1", "f()"), []),
        (("def f():\n    return never\n",), [(1, "name", "never")]),
        (("[n for n in range(3) if n]\nlambda q: q + 1",), []),
        (("import os\nwith open('x') as file:\n    rows = [l for l in file]\nfor k, v in {}.items():\n    print(k, v)",), []),
        (("class A:\n    def f(self):\n        return A, self.g\n    def g(self): ...\n",), []),
        (("try:\n    1\nexcept ValueError as error:\n    print(error)\nif (n := 3) > 2:\n    print(n)",), []),
        (("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nf(3)",), []),
        (("%matplotlib inline\n!ls\nfiles = !ls\nprint(files)\nx = 1\nx?",), []),
        (("%%bash\necho $frame",), []),
        (("total += 1",), [(1, "name", "total")]),
        (("1 +",), [(1, "syntax", "")]),
        (("open('/home/ada/data.csv')",), [(1, "path", "/home/ada/data.csv")]),
        (("open('C:\\\\data\\\\x.csv'); open('data/x.csv'); url = 'https://example.org/home/x'",), [(1, "path", "C:\\data\\x.csv")]),
        (("password = 'hunter2-Rx9'",), [(1, "secret", "password")]),
        (("connect(token='q8s7d6f5g4h3') if False else None", "connect = 1"), [(1, "order", "connect"), (1, "secret", "token")]),
        (("key = 'AKIAABCDEFGHIJKLMNOP'",), [(1, "secret", "AKIAAB…")]),
        (("url = 'postgres://ada:wordword@db/x'",), [(1, "secret", "postgr…")]),
        (("password = ''\ntoken = 'changeme'\nsecret = 'your-secret'\ntoken_column = 'token of the row'",), []),
        (("import no_such_package_anywhere",), [(1, "import", "no_such_package_anywhere")]),
    ],
)  # fmt: skip
def test_what_only_a_live_session_has_is_found(sources: tuple[str, ...], expected: list[tuple[int, str, str]]) -> None:
    assert kinds(*sources) == expected


def test_cells_that_ran_out_of_order_are_named() -> None:
    assert kinds("a = 1", "b = 2", "c = 3", ran=(1, 5, 3)) == [(3, "order", "[3]")]
    assert kinds("a = 1", "b = 2", ran=(None, 2)) == []


def test_an_import_is_held_against_the_pins_and_a_module_beside_is_none(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "requirements.txt").write_text("polars==1.0\n# scikit_learn\nnumpy>=2\n")
    pins = check.pins(tmp_path)
    found = check.check(notebook("import beside, json, polars, numpy"), pinned=pins, beside=tmp_path)
    assert [(f.subject, f.verdict) for f in found] == [("numpy", "is not pinned by the project")]
    assert check.pins(tmp_path / "nowhere") is None


@pytest.mark.parametrize("path", sorted((ROOT / "scheduled").glob("*.ipynb")), ids=lambda p: p.name)
def test_our_own_production_notebooks_would_run_alone(path: Path) -> None:
    assert check.check(json.loads(path.read_text())) == []


def test_the_command_says_what_it_found_and_a_dry_run_proves_it(tmp_path: Path) -> None:
    sound, broken = tmp_path / "sound.ipynb", tmp_path / "broken.ipynb"
    sound.write_text(json.dumps(notebook("import pathlib\npathlib.Path('made').touch()", "print(1)")))
    broken.write_text(json.dumps(notebook("globals()['hidden']")))
    answer = CliRunner().invoke(main, ["run", "check", str(sound), "--dry"])
    assert (answer.exit_code, "to its end on a clean kernel" in answer.output) == (0, True), answer.output
    assert not (tmp_path / "made").exists(), "what a dry run writes stays in a copy"
    answer = CliRunner().invoke(main, ["run", "check", str(broken), "--dry", "--json"])
    assert answer.exit_code == 3
    assert "KeyError" in json.loads(answer.output)["dry_run"]
