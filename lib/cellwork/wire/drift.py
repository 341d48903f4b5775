"""Drift: how far the values of a window are from those of a reference, column by column."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from cellwork.wire import Struct

Beside = Literal["season", "training", "before"]
"""What a window is compared with: the rows of its version's training dataset at the same hours of the week (all of them, where the
window has every weekday); the whole dataset; or what the version predicted from in the window before."""
Verdict = Literal["stable", "drift", "not enough data"]


class ColumnDrift(Struct):
    """One column. A share is between 0 and 1; a measure is None where the column's kind or its rows do not allow it."""

    column: str
    kind: str
    verdict: Verdict
    reasons: list[str] = []
    """What drifted, in words with numbers."""
    severity: Literal["", "warning", "critical"] = ""
    reference: int = 0
    """Rows of the reference."""
    window: int = 0
    psi: float | None = None
    """Population stability index: over ten bins of equal share in the reference, or over its values."""
    jensen_shannon: float | None = None
    """The distance (0 to 1) between both over the bins of `psi`."""
    ks: float | None = None
    """Kolmogorov-Smirnov: the greatest distance between both distribution functions, of numbers."""
    wasserstein: float | None = None
    """In standard deviations of the reference, of numbers."""
    chi_squared: float | None = None
    """Of texts and true/false."""
    p_value: float | None = None
    """Of the test of the distribution (KS or chi-squared), as it is; `adjusted` is what the verdict reads."""
    adjusted: float | None = None
    """The smallest p-value of the column's tests, adjusted for all tests of all columns (Holm 1979)."""
    missing_reference: float = 0.0
    missing_window: float = 0.0
    out_of_range: float | None = None
    """Share of the window below the least or above the greatest number of the reference."""
    new_values: list[str] = []
    """Texts that the reference does not have, the most frequent ones."""
    new_share: float | None = None


class Usual(Struct):
    """The most that one week of a reference was apart from all of it, in the same hours of the week."""

    psi: float = 0.0
    missing: float = 0.0
    """Difference of the shares that are missing."""


class DriftRules(Struct):
    """When a difference is drift: it must be surely there (`alpha`), and large enough to matter (the others)."""

    alpha: float = 0.001
    """The chance that any column of a window without drift is called drifted."""
    least_rows: Annotated[int, msgspec.Meta(ge=1)] = 100
    psi: float = 0.1
    missing: float = 0.05
    """A change of the share of missing values that matters."""
    outside: float = 0.01
    """A share of values out of range, or new, that matters."""
    beyond: float = 1.5
    """Of a window without all weekdays: how many times as far as the same hours of any week of the reference are from all of them."""
    critical: float = 0.25
    """PSI, or any of these shares, from here on is critical; below it is a warning."""


class Drift(Struct):
    """A window beside its reference; `columns` has those that drifted first, then by falling PSI."""

    subject: str
    reference: str
    """What the window is compared with: the training dataset's id, or the times of the window before."""
    start: datetime
    end: datetime
    rows: int
    reference_rows: int
    columns: list[ColumnDrift]
    rules: DriftRules = msgspec.field(default_factory=DriftRules)
    season: str = ""
    """Which part of the reference it is compared with, in words; none means all."""
