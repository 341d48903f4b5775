"""An endpoint's rule for values that its model has not been made for: out of their range, or never seen.

    default   the value is taken for none, so the column's default stands in its place; the answer names it
    fallback  the previous version answers, if there is one
    refuse    the request is refused, with the value

The rule is about what requests bring; what is looked up has checks of its own where it is made. No value is no anomaly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from cellwork.errors import BadInput
from cellwork.serving.choose import Choice, text
from cellwork.wire.endpoints import InputRule, Request


def strange(rule: InputRule, name: str, value: Any) -> str:
    """Return what is strange about a value, in words; empty: nothing."""
    if value is None:
        return ""
    if name in rule.ranges and isinstance(value, int | float):
        low, high = rule.ranges[name]
        return "" if low <= value <= high else f"{name}={text(value)} is not from {low:g} to {high:g}"
    if name in rule.known and text(value) not in rule.known[name]:
        return f"{name}={text(value)[:40]} was never seen"
    return ""


def ruled(rule: InputRule, request: Request, choice: Choice) -> tuple[Request, Choice]:
    """Return the request and who answers it, after the rule; raises BadInput where it refuses."""
    found = [(number, name, said) for number, row in enumerate(request.rows) for name, said in _of(rule, row.features)]
    if not found:
        return request, choice
    number, name, said = found[0]
    if rule.then == "refuse":
        value = request.rows[number].features[name]
        way_out = f"send another, or leave it out; {len(found)} value(s) of this request are strange"
        raise BadInput(f"feature {name!r} of row {number}", value, said.removeprefix(f"{name}={text(value)} "), way_out)
    reason = f"{said}{f', and {len(found) - 1} more' if len(found) > 1 else ''}"
    if rule.then == "fallback":
        fallen = choice.route in ("live", "canary") and choice.routes.previous is not None
        chain = (choice.routes.previous,) if fallen and choice.routes.previous else choice.chain
        return request, replace(choice, chain=chain, route="fallback" if fallen else choice.route, reason=reason)
    rows = list(request.rows)
    for number, name, _ in found:
        rows[number] = msgspec.structs.replace(rows[number], features={**rows[number].features, name: None})
    return msgspec.structs.replace(request, rows=rows), replace(choice, reason=reason)


def _of(rule: InputRule, features: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, said) for name, value in features.items() if (said := strange(rule, name, value))]


def is_usual(rule: InputRule, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bool:
    """Whether no value of `rows` is strange; names that the rule does not know cost nothing."""
    ruled = [(place, name) for place, name in enumerate(names) if name in rule.ranges or name in rule.known]
    return not any(
        row[place] is not msgspec.UNSET and strange(rule, name, row[place]) for row in rows for place, name in ruled
    )


def check(rule: InputRule, columns: Mapping[str, str]) -> InputRule:
    """Return `rule` if it makes sense for `columns` (name -> kind); raises BadInput."""
    for name, bounds in rule.ranges.items():
        if columns.get(name) != "number":
            raise BadInput("range", name, "is of no number that the model takes", "name one of its columns")
        if len(bounds) != 2 or not bounds[0] <= bounds[1]:
            raise BadInput(f"range of {name!r}", bounds, "does not go from low to high", "send two numbers")
    for name in rule.known:
        if columns.get(name) != "text":
            raise BadInput("known values", name, "are of no text that the model takes", "name one of its columns")
    return rule
