"""Drift of a window from a reference, both as sketches: a window of any length is a merge, never a new reading.

A column drifts if a test says that its difference is there, corrected for all tests of all columns, and a measure says that
it is large enough to matter: with a million rows everything is significant, with fifty everything is large. Four
things are tested: the distribution (KS of numbers, chi-squared of texts and true/false; PSI is the measure), the share of
missing values, values out of range, new texts. Times are left out: they always move. A column that the window lacks, or
whose kind changed, drifts without a test. Below `least_rows` there is no verdict, of these columns neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cellwork.data import sketches
from cellwork.data.sketches import Column, Ranks, Sketch
from cellwork.monitoring import distances
from cellwork.monitoring.distances import Floats
from cellwork.wire.drift import ColumnDrift, DriftRules, Usual

if TYPE_CHECKING:
    import polars as pl

CATEGORIES = 50
"""The reference's most frequent texts are a category each; all others together are one."""
NAMED = 10
"""New texts that are named."""


@dataclass
class _Test:
    """One thing tested of a column: its p-value, whether it is large enough to matter, and how one would say it."""

    p: float
    matters: bool
    words: str


@dataclass
class _Compared:
    found: ColumnDrift
    tests: list[_Test] = field(default_factory=list)
    least_psi: float = 0.0
    """The PSI from which on a difference matters."""
    ks: tuple[float, float, float] | None = None
    """Distance and both numbers of rows; the p-values of all columns are computed at once."""


def between(reference: Sketch, window: pl.DataFrame, rules: DriftRules | None = None) -> list[ColumnDrift]:
    """Return how far each column of the rows `window` is from `reference`, as `compare` does."""
    return compare(reference, sketches.of(window, count_distinct=False), rules)


def compare(
    reference: Sketch, window: Sketch, rules: DriftRules | None = None, usual: Mapping[str, Usual] | None = None
) -> list[ColumnDrift]:
    """Return how far each column of `window` is from `reference`; those that drifted first, then by falling PSI.

    What is `usual` of a column is no drift, nor what is not `rules.beyond` times as far.
    """
    rules = rules or DriftRules()
    names = list(dict.fromkeys([*reference.columns, *window.columns]))
    compared = [_column(name, reference, window, _ruled(rules, name, usual or {})) for name in names]
    compared = [each for each in compared if each.found.kind not in ("time", "other")]
    _test_numbers(compared)
    _judge(compared, rules)
    order = {"drift": 0, "stable": 1, "not enough data": 2}
    return sorted((each.found for each in compared), key=lambda c: (order[c.verdict], -(c.psi or 0.0), c.column))


def _ruled(rules: DriftRules, name: str, usual: Mapping[str, Usual]) -> DriftRules:
    """Return `rules` with what matters of the column `name`, given what is usual of it."""
    if name not in usual:
        return rules
    psi, missing = rules.beyond * usual[name].psi, rules.beyond * usual[name].missing
    return msgspec.structs.replace(rules, psi=max(rules.psi, psi), missing=max(rules.missing, missing))


def _column(name: str, reference: Sketch, window: Sketch, rules: DriftRules) -> _Compared:
    old, new = reference.columns.get(name), window.columns.get(name)
    if old is None or new is None:
        known = new if old is None else old
        words = "is not in the reference" if old is None else "is not in the window"
        return _Compared(_differs(name, known.kind if known else "", words, reference.rows, window.rows, rules))
    kinds = {each.kind for each in (old, new)} - {"null"}
    if len(kinds) > 1 and kinds != {"bool", "number"}:
        words = f"is {new.kind} and was {old.kind}"
        return _Compared(_differs(name, new.kind, words, old.rows, new.rows, rules))
    kind = "number" if len(kinds) > 1 else next(iter(kinds), "null")
    found = ColumnDrift(
        column=name, kind=kind, verdict="not enough data", reference=old.rows, window=new.rows,
        missing_reference=_missing(old), missing_window=_missing(new),
    )  # fmt: skip
    compared = _Compared(found, least_psi=rules.psi)
    if min(old.rows, new.rows) >= rules.least_rows and kind not in ("time", "other"):
        found.verdict = "stable"
        _test_missing(compared, old, new, rules)
        if min(old.values, new.values) >= rules.least_rows:
            _test_values(compared, old, new, rules)
    return compared


def _differs(name: str, kind: str, words: str, reference: int, window: int, rules: DriftRules) -> ColumnDrift:
    """Return a column that needs no test to be told apart, only enough rows."""
    found = ColumnDrift(column=name, kind=kind, verdict="not enough data", reference=reference, window=window)
    if min(reference, window) >= rules.least_rows:
        found.verdict, found.severity, found.reasons = "drift", "critical", [words]
    return found


def _missing(column: Column) -> float:
    return (column.nulls + column.nan) / column.rows if column.rows else 0.0


def _test_missing(compared: _Compared, old: Column, new: Column, rules: DriftRules) -> None:

    table = [np.array([c.nulls + c.nan, c.rows - c.nulls - c.nan], dtype=np.float64) for c in (old, new)]
    before, now = compared.found.missing_reference, compared.found.missing_window
    words = f"missing in {now:.1%}, was {before:.1%}"
    compared.tests.append(_Test(distances.chi_squared(*table)[1], abs(now - before) >= rules.missing, words))


def _test_values(compared: _Compared, old: Column, new: Column, rules: DriftRules) -> None:

    found = compared.found
    if old.ranks and new.ranks and found.kind == "number":
        apart = distances.Apart(old.ranks, new.ranks)
        reference, window = distances.shares(old.ranks, new.ranks)
        found.ks = apart.ks()
        compared.ks = found.ks, old.ranks.count, new.ranks.count
        if old.deviation:
            found.wasserstein = apart.wasserstein() / old.deviation
        _test_range(compared, old.ranks, new.ranks, rules)
    else:
        before, now = _categories(compared, old, new, rules)
        found.chi_squared, found.p_value = distances.chi_squared(before, now)
        reference, window = before / before.sum(), now / now.sum()
    found.psi = distances.psi(reference, window)
    found.jensen_shannon = distances.jensen_shannon(reference, window)
    if found.p_value is not None:
        compared.tests.append(
            _Test(found.p_value, found.psi >= rules.psi, f"distributed otherwise, PSI {found.psi:.2f}")
        )


def _test_range(compared: _Compared, old: Ranks, new: Ranks, rules: DriftRules) -> None:
    least, greatest = old.values[0], old.values[-1]
    outside = float(new.cdf(least, "left") + 1 - new.cdf(greatest))
    compared.found.out_of_range = outside
    p = distances.chance_of_at_least(outside * new.count, int(new.count), 2 / (old.count + 1))
    words = f"{outside:.1%} outside {least:g} to {greatest:g}"
    compared.tests.append(_Test(p, outside >= rules.outside, words))


def _categories(compared: _Compared, old: Column, new: Column, rules: DriftRules) -> tuple[Floats, Floats]:
    """Return the counts of both by category."""
    now = _counted(new)
    if old.counts and old.counts.exact:
        _test_new(compared, _counted(old), now, new.values, rules)
    chosen, before = categories(old)
    kept = [float(now.get(text, 0)) for text in chosen]
    return before, np.array([*kept, max(new.values - sum(kept), 0.0)])


def categories(reference: Column) -> tuple[list[str], Floats]:
    """Return the reference's most frequent texts and how often each is there, then all others together, shape (k + 1,)."""
    counted = _counted(reference)
    chosen = list(counted)[:CATEGORIES]
    kept = [float(counted[text]) for text in chosen]
    return chosen, np.array([*kept, max(reference.values - sum(kept), 0.0)])


def _counted(column: Column) -> dict[str, int]:
    if column.counts:
        return column.counts.items()
    assert column.ranks  # true and false, sketched as 1 and 0
    true = int(column.ranks.count - column.ranks.rank(0.5))
    return {"true": true, "false": column.values - true}


def _test_new(compared: _Compared, before: dict[str, int], now: dict[str, int], rows: int, rules: DriftRules) -> None:
    """Test the texts that the reference lacks: as many as its own texts seen once make likely are no news (Good 1953)."""
    new = {text: count for text, count in now.items() if text not in before}
    share = sum(new.values()) / rows
    compared.found.new_values, compared.found.new_share = list(new)[:NAMED], share
    seen_once = sum(count == 1 for count in before.values())
    p = distances.chance_of_at_least(sum(new.values()), rows, (seen_once + 1) / sum(before.values()))
    named = ", ".join(repr(text) for text in list(new)[:3])
    compared.tests.append(_Test(p, share >= rules.outside, f"{share:.1%} new: {named}"))


def _test_numbers(compared: list[_Compared]) -> None:

    numbers = [(each, each.ks) for each in compared if each.ks]
    if not numbers:
        return
    of_all = np.array([ks for _, ks in numbers], dtype=np.float64)
    for (each, _), p in zip(numbers, distances.ks_p_values(of_all[:, 0], of_all[:, 1], of_all[:, 2]), strict=True):
        psi = each.found.psi or 0.0
        each.found.p_value = float(p)
        each.tests.append(_Test(float(p), psi >= each.least_psi, f"distributed otherwise, PSI {psi:.2f}"))


def _judge(compared: list[_Compared], rules: DriftRules) -> None:

    adjusted = iter(distances.holm([test.p for each in compared for test in each.tests]))
    for each in compared:
        found, sure = each.found, [next(adjusted) for _ in each.tests]
        if each.tests:
            found.adjusted = min(sure)
        found.reasons += [t.words for t, p in zip(each.tests, sure, strict=True) if p < rules.alpha and t.matters]
        if each.tests and found.reasons:
            found.verdict = "drift"
            found.severity = "critical" if _size(found) >= rules.critical else "warning"


def _size(found: ColumnDrift) -> float:
    moved = abs(found.missing_window - found.missing_reference)
    return max(found.psi or 0.0, moved, found.out_of_range or 0.0, found.new_share or 0.0)
