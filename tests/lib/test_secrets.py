"""Values of secrets are hidden wherever a run writes, in the forms in which values usually leave."""

from __future__ import annotations

import base64
import contextlib
import html
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput
from cellwork.runs import engine
from cellwork.secrets import Masker, check
from cellwork.wire.secrets import Mask

VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=8, max_size=24)
AROUND = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


def masker(value: str) -> Masker:
    return Masker([Mask(name="db", value=value)])


@given(VALUES, AROUND, AROUND)
@settings(max_examples=150, deadline=None)
def test_a_value_is_hidden_in_every_usual_form(value: str, before: str, after: str) -> None:
    data = value.encode()
    for form in (
        value, quote(value), quote_plus(value), quote(value, safe=""), json.dumps(value), repr(value), html.escape(value), data.hex(), data.hex().upper(),
    ):  # fmt: skip
        shown = masker(value).text(f"{before}{form}{after}")
        assert value not in shown.replace("[secret:db]", "\n")  # what stood before and after must not meet there
        assert "[secret:db]" in shown


@given(VALUES, AROUND, AROUND)
@settings(max_examples=150, deadline=None)
def test_a_value_inside_base64_can_not_be_read_back(value: str, before: str, after: str) -> None:
    """As in an Authorization header: user and password are encoded together, at any offset."""
    for encode, decode in (
        (base64.b64encode, base64.b64decode),
        (base64.urlsafe_b64encode, base64.urlsafe_b64decode),
    ):
        coded = encode((before + value + after).encode()).decode()
        shown = masker(value).text(coded)
        assert "[secret:db]" in shown
        for part in shown.split("[secret:db]"):
            for start in range(4):
                piece = part[start:].rstrip("=")
                with contextlib.suppress(ValueError):  # no base64 at this offset
                    assert value.encode() not in decode(piece + "=" * (-len(piece) % 4))


@given(VALUES, st.data())
@settings(max_examples=150, deadline=None)
def test_a_value_that_is_spread_over_texts_is_hidden_and_nothing_else_changes(value: str, data: st.DataObject) -> None:
    whole = f"before {value} between {value} after"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    texts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    shown = masker(value).texts(texts)
    assert "".join(shown) == masker(value).text(whole)
    assert len(shown) == len(texts)


def test_texts_without_a_secret_stay_as_they_are() -> None:
    assert masker("hidden-value").texts(["a", "", "b"]) == ["a", "", "b"]
    assert Masker([]).texts(["a"]) == ["a"]
    assert not Masker([])


@pytest.mark.parametrize("value", ["", "short", " " * 20, "x" * 70_000])
def test_what_can_not_be_hidden_is_no_secret(value: str) -> None:
    with pytest.raises(BadInput, match="can't be hidden"):
        check(value)


def test_a_run_shows_no_secret_in_outputs_errors_or_the_notebook(tmp_path: Path) -> None:
    value = "s3cret/pass word+1"
    sources = [
        f"value = {value[:6]!r} + {value[6:]!r}\nimport sys, base64",
        "print('user:', value); print(base64.b64encode(b'u:' + value.encode()).decode()); {'key': value}",
        "sys.stdout.write(value[:7]); sys.stdout.flush(); sys.stderr.write(value[7:]); sys.stderr.flush()",
        "for letter in value:\n    print(letter, end='', flush=True)",
        "from IPython.display import HTML, display\ndisplay(HTML(f'<b>{value}</b>'))",
        "raise ValueError(f'could not log in with {value}')",
    ]
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {}, "outputs": [], "execution_count": None, "source": source} for k, source in enumerate(sources)
    ]  # fmt: skip
    (tmp_path / "n.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))
    with pytest.raises(engine.RunFailed) as caught:
        engine.execute(tmp_path / "n.ipynb", tmp_path / "out.ipynb", masker=masker(value))
    page = json.loads((tmp_path / "out.ipynb").read_text())
    shown = json.dumps(page) + str(caught.value) + caught.value.traceback
    for form in (value, quote(value), base64.b64encode(b"u:" + value.encode()).decode()):
        assert form not in shown
    outputs = ["".join("".join(o.get("text", "")) for o in cell.get("outputs", [])) for cell in page["cells"]]
    assert value not in "".join(outputs)
    assert sum("[secret:db]" in text for text in outputs) == 3, outputs
    assert "could not log in with [secret:db]" in str(caught.value)
