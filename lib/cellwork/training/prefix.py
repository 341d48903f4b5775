"""First steps that candidates have in common: computed once for each fold, whatever the last step's parameters are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cellwork.training.candidates import Candidate, Parameters


def steps_of(model: Any) -> tuple[list[tuple[str, Any]], tuple[str, Any]] | None:
    """Return the first steps and the last one of a pipeline; None for another model, and where the first steps do nothing."""
    from sklearn.pipeline import Pipeline

    if type(model) is not Pipeline or model.memory is not None or len(model.steps) < 2:
        return None
    *first, last = model.steps
    idle = all(step in ("passthrough", None) for _, step in first)
    return None if idle or last[1] in ("passthrough", None) else (first, last)


def key_of(candidate: Candidate, last: str) -> str:
    """Return what tells the first steps of one candidate from those of another; `last` is the name of the last step."""
    return f"{candidate.model}|{candidate.fraction}|{first_parameters(candidate.parameters, last)!r}"


def first_parameters(parameters: Parameters, last: str) -> list[tuple[str, str]]:
    return sorted(
        (name, told(value)) for name, value in parameters.items() if not (name == last or name.startswith(last + "__"))
    )


def told(value: Any) -> str:
    """Return what tells a parameter's value from every other one: the text of an estimator leaves its middle out."""
    import pickle

    import joblib

    if value is None or isinstance(value, str | int | float):
        return repr(value)
    try:
        return str(joblib.hash(value))
    except (pickle.PicklingError, TypeError, AttributeError):
        return f"{value!r} at {id(value)}"


def worth_sharing(listed: Iterable[Candidate], last: str) -> bool:
    """Return whether two of the candidates have the same first steps."""
    keys = [key_of(candidate, last) for candidate in listed]
    return len(set(keys)) < len(keys)
