"""How good a model is: on data its author sees (`validation`), and on the sealed holdout beside baseline and champion (`evaluate`)."""

from __future__ import annotations

from cellwork.evaluation.compare import Report, evaluate, validation

__all__ = ["Report", "evaluate", "validation"]
