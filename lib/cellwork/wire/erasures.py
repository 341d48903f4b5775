"""Erasing one subject, a person for example, from everything that a project keeps."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from cellwork.wire import Struct


class EraseRequest(Struct):
    value: str
    """The subject, as it stands in the subject columns."""
    reason: str


class Place(Struct):
    """Where a subject may be, and what the erasure did there."""

    what: str
    """The kind of place: ``raw batches``, ``prediction logs``."""
    said: str
    names: list[str] = []
    """Which of them, where they have names."""
    way_out: str = ""
    """Of a place that was not touched: what to do about it."""


class Erasure(Struct):
    """The tombstone: what was erased, without saying who."""

    id: str
    project: str
    subject_sha256: str
    """Of the id and the value: with the value in hand one can tell that it was erased."""
    rows: dict[str, int]
    """Raw data set -> rows that were taken out of its batches."""
    views: list[str]
    """Feature views whose rows were taken out or made anew."""
    aggregates: list[str]
    """Rolling views over many subjects, whose old values still count the erased rows."""
    datasets: list[str]
    """Training datasets built from those batches before in which no column names the subject; their owners must judge."""
    undeclared: list[str]
    """Raw data sets that name neither a subject nor `erasable=False`: nobody looked into them."""
    by: str
    reason: str
    at: datetime
    emptied: list[str] = []
    """Training datasets in which the subject's rows were emptied."""
    rewritten: list[Place] = []
    """Places that hold nothing of the subject any more; none in tombstones of before they were named."""
    untouched: list[Place] = []
    """Places that were left as they are, the subject in them or not."""
    predictions: int = 0
    """Logged predictions that were emptied."""
    state: Literal["done", "waiting"] = "done"
    """`waiting`: it is not finished, and is tried again by itself; `waits_for` says what it waits for."""
    waits_for: str = ""
