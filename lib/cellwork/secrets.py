"""Secrets by reference: a notebook says `secret("name")`, and what it gets is hidden wherever a run writes.

Hidden by value, in every form in which values usually leave: as they are, in base64 (at any offset), hex, URL encoding and in
the escapes of JSON, Python and HTML; also when a value is spread over several outputs of a cell. It guards against accidents:
who is bent on it can always write a value in a form of his own. A run sees the secrets as they were when it began, because
those are what it hides; one that was removed or is not shared with its author any more it does not see.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote, quote_plus

from cellwork.errors import BadInput
from cellwork.wire.secrets import Mask

LEAST_LENGTH = 8
"""Shorter values would hide harmless words, and are easily guessed."""
LEAST_ENCODED = 8


def secret(name: str, *, project: str = "") -> str:
    """Return the value of the secret `name` of this project.

    Raises
    ------
    NotFound
        There is none (any more), it is not shared with you (any more), or it was set after this run began.
    """
    from cellwork import project as projects
    from cellwork.client import connect

    of = project or os.environ.get("CELLWORK_PROJECT", "") or projects.find().name
    return connect().secrets.read(of, name, as_of=os.environ.get("CELLWORK_RUN_BEGAN", "")).value


def check(value: str) -> str:
    """Return `value` if it can be hidden."""
    if len(value) < LEAST_LENGTH or len(value) > 65_536 or not value.strip():
        raise BadInput("secret", f"{len(value)} characters", "can't be hidden in outputs", f"use {LEAST_LENGTH} to 65,536 characters")  # fmt: skip
    return value


class Masker:
    """Hides values in texts and notebooks."""

    def __init__(self, masks: Sequence[Mask]) -> None:
        self.forms: dict[str, str] = {}
        for mask in masks:
            for form in forms(mask.value):
                self.forms.setdefault(form, mask.name)

    def __bool__(self) -> bool:
        return bool(self.forms)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(form) for form in sorted(self.forms, key=len, reverse=True)))

    def found(self, text: str) -> str:
        """Return the name of a secret whose value is in `text`; empty if there is none."""
        match = self._pattern.search(text) if self.forms else None
        return self.forms[match[0]] if match else ""

    def text(self, text: str) -> str:
        return self._pattern.sub(lambda match: f"[secret:{self.forms[match[0]]}]", text) if self.forms else text

    def texts(self, texts: Sequence[str]) -> list[str]:
        """Return `texts` without the values in them, also those that begin in one text and end in a later one."""
        joined, made, at = "".join(texts), [""] * len(texts), 0
        ends = [sum(map(len, texts[: k + 1])) for k in range(len(texts))]
        for match in self._pattern.finditer(joined) if self.forms else ():
            _share(joined, at, match.start(), ends, made)
            first = next(k for k, end in enumerate(ends) if match.start() < end)
            made[first] += f"[secret:{self.forms[match[0]]}]"
            at = match.end()
        _share(joined, at, len(joined), ends, made)
        return made

    def cell(self, cell: Any) -> None:
        """Hide the values in the outputs of a notebook's cell."""
        if not self.forms or not cell.get("outputs"):
            return
        places = list(_places(cell["outputs"]))
        texts = [holder[key] for holder, key in places]
        for (holder, key), text in zip(places, self.texts(texts), strict=True):
            holder[key] = text


def _share(joined: str, start: int, end: int, ends: Sequence[int], made: list[str]) -> None:
    """Add to each of `made` what of `joined` from `start` to `end` lies in its part."""
    for k, stop in enumerate(ends):
        if start < stop:
            made[k] += joined[start : min(stop, end)]
            start = min(stop, end)
        if start >= end:
            return


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key) of every text in the outputs, in order, keys of bundles left out."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, str):
            if key not in ("output_type", "name"):
                yield node, key
        elif isinstance(value, dict | list):
            yield from _places(value)


def forms(value: str) -> set[str]:
    """Return the forms of `value` that are hidden."""
    data = value.encode()
    made = {value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}  # fmt: skip
    made |= {repr(value)[1:-1], html.escape(value), data.hex(), data.hex().upper(), data.hex(" ")}
    for offset in range(3):
        inner = base64.b64encode(b"\0" * offset + data)
        middle = inner[4 if offset else 0 : len(inner) - (4 if (offset + len(data)) % 3 else 0)]
        for coded in (middle.decode(), middle.decode().replace("+", "-").replace("/", "_")):
            if len(coded) >= LEAST_ENCODED:
                made.add(coded)
    return {form for form in made if len(form) >= LEAST_LENGTH}
