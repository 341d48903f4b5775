"""What is found by words, who uses it, and which features are nearly the same."""

from __future__ import annotations

from typing import Literal

from cellwork.wire import Struct

Kind = Literal["raw", "view", "feature", "label", "service", "dataset"]


class Found(Struct):
    kind: Kind
    project: str
    name: str
    """Of a feature ``view:feature``, of a label its name, or ``observations:column`` where it has none of its own."""
    owner: str = ""
    description: str = ""
    tags: dict[str, str] = {}
    entities: list[str] = []
    used_by: list[str] = []
    """Views, services, observations, datasets, models, endpoints and jobs, ``model:flights/late@2`` and so on."""
    score: float = 0.0


class Twin(Struct):
    """A feature that nearly repeats another."""

    feature: str
    """``view:feature`` of the view asked about."""
    twin: str
    """``project/view:feature`` of the other."""
    reason: str
    strength: float
    """1 for the same definition or equal values, else the share of equal values or the rank correlation."""
    owner: str = ""
    used_by: list[str] = []
