"""Erasing one subject, a person for example, from everything that a project keeps."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Struct


class EraseRequest(Struct):
    value: str
    """The subject, as it stands in the subject columns."""
    reason: str


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
    """Training datasets built from those batches before; they are copies that their owners must judge."""
    undeclared: list[str]
    """Raw data sets that name neither a subject nor `erasable=False`: nobody looked into them."""
    by: str
    reason: str
    at: datetime
