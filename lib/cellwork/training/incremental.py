"""Learning a batch at a time, with a checkpoint after each so that a long fit goes on where it ended.

The loss that is told is of a batch before the model has seen it, so it is honest without rows set aside. A checkpoint holds the
model (skops, no pickle), how many batches it has seen, and hashes of what was asked for: the steps with their parameters, the classes, and the
first batch. It is written beside and renamed; what was learned after it is learned again.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellwork import files
from cellwork.errors import BadInput
from cellwork.training.prefix import told
from cellwork.training.rows import features, truth

MAGIC = b"cellwork-checkpoint "
WAY_OUT = "name another file, or remove this one to learn from the beginning"


@dataclass(frozen=True)
class Loss:
    """What `progress` is told after each batch."""

    batch: int
    rows: int
    """Learned from so far."""
    loss: float | None
    """Of this batch before it was learned: log loss, or mean squared error; None for the first one."""
    elapsed: float

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4f} on what it had not seen"
        return f"batch {self.batch}: {self.rows:,} rows in {self.elapsed:.1f} s{loss}"


def fit_batches(
    model: Any,
    batches: Iterable[tuple[Any, Any]],
    *,
    classes: Iterable[Any] | None = None,
    progress: Callable[[Loss], None] = print,
    stop: threading.Event | None = None,
    checkpoint: Path | str | None = None,
) -> Any:
    """Return a clone of `model` that has learned from every batch.

    Parameters
    ----------
    model : an estimator with `partial_fit`, or a pipeline of such steps (``StandardScaler``, ``SGDClassifier``, …).
    batches : frames and labels, such as `training.batches` yields them, in the same order each time.
    classes : of a classifier, all of them: the first batch may not have each.
    checkpoint : a file; where it is there, its batches are skipped. It goes on with the model, the classes and the batches that it is of.
    stop : set it to end with what is learned.

    Raises
    ------
    BadInput
        A step can't learn in batches, the classes are missing, or there was no batch; the checkpoint is of something else.
    """
    from sklearn.base import clone, is_classifier

    if is_classifier(model) and classes is None:
        raise BadInput("classes", "", "are missing, and a batch may not have each", "give all of them: classes=[0, 1]")
    known = {"classes": list(classes)} if classes is not None else {}
    _refuse_others(model)
    kept = Checkpoint(Path(checkpoint), _hash(model, known)) if checkpoint else None
    learner, seen = kept.begun(model) if kept else (clone(model), 0)
    started, rows = time.monotonic(), 0
    number = 0
    for number, (X, y) in enumerate(batches, start=1):
        if kept and number == 1:
            kept.check(X, y)
        if number <= seen:
            continue
        frame, labels = features(X), truth(y)
        loss = _loss(learner, frame, labels, known) if number > 1 else None
        _learn(learner, frame, labels, known)
        rows += len(labels)
        if kept:
            kept.write(learner, number)
        progress(Loss(number, rows, loss, time.monotonic() - started))
        if stop is not None and stop.is_set():
            break
    if not number:
        raise BadInput("batches", "", "are none", "look at the files and their labels")
    return learner


def _steps(model: Any) -> list[Any]:
    from sklearn.pipeline import Pipeline

    return [step for _, step in model.steps if step != "passthrough"] if isinstance(model, Pipeline) else [model]


def _refuse_others(model: Any) -> None:
    for step in _steps(model):
        if not hasattr(step, "partial_fit"):
            verdict = "can't learn in batches"
            raise BadInput("step", type(step).__name__, verdict, "take one with partial_fit, such as SGDClassifier")


def _hash(model: Any, known: dict[str, Any]) -> str:
    """Return the hash of the types and parameters of the steps, and of the classes."""
    import numpy as np
    from sklearn.base import clone

    steps = [
        (f"{type(step).__module__}.{type(step).__qualname__}", sorted((k, told(v)) for k, v in step.get_params().items()))
        for step in _steps(clone(model))
    ]  # fmt: skip
    classes = np.asarray(known.get("classes", [])).tolist()
    return hashlib.sha256(f"{steps}|{classes}".encode()).hexdigest()


class Checkpoint:
    """A file that holds a learner: a line of what it is of, then the learner itself. `about` is the hash of the model that is asked for."""

    def __init__(self, path: Path, about: str) -> None:
        self._path, self._about, self._first = path, about, ""

    def begun(self, model: Any) -> tuple[Any, int]:
        """Return the learner to go on with and how many batches it has seen.

        Raises
        ------
        BadInput
            The file is no checkpoint, or of another model.
        """
        from sklearn.base import clone

        if not self._path.exists():
            return clone(model), 0
        import skops.io

        from cellwork.models import package

        head, _, data = self._path.read_bytes().partition(b"\n")
        if not head.startswith(MAGIC):
            raise BadInput("checkpoint", self._path, "is none of ours", "name another file")
        batches, *of = head[len(MAGIC) :].decode().split()
        if not of:
            verdict = "is of an older Cellwork and does not say of which model"
            raise BadInput("checkpoint", self._path, verdict, WAY_OUT)
        about, self._first = of
        if about != self._about:
            raise BadInput("checkpoint", self._path, "is of another model, other parameters or other classes", WAY_OUT)
        return skops.io.loads(data, trusted=package.untrusted(data)), int(batches)

    def check(self, X: Any, y: Any) -> None:
        """Take the first batch; raises BadInput where the file is of batches that began otherwise."""
        import joblib

        first = str(joblib.hash((features(X), truth(y))))
        if self._first not in ("", first):
            raise BadInput("checkpoint", self._path, "is of other rows, or of batches of another size", WAY_OUT)
        self._first = first

    def write(self, learner: Any, batches: int) -> None:
        import skops.io

        head = MAGIC + f"{batches} {self._about} {self._first}\n".encode()
        files.write(self._path, head + skops.io.dumps(learner))


def _learn(model: Any, X: Any, y: Any, known: dict[str, Any]) -> None:
    *first, last = _steps(model)
    for step in first:
        step.partial_fit(X)
        X = step.transform(X)
    last.partial_fit(X, y, **known)


def _loss(model: Any, X: Any, y: Any, known: dict[str, Any]) -> float:
    import numpy as np
    from sklearn.metrics import log_loss

    *first, last = _steps(model)
    for step in first:
        X = step.transform(X)
    if not known:
        return float(np.mean((last.predict(X) - y) ** 2))
    if hasattr(last, "predict_proba"):
        return float(log_loss(y, last.predict_proba(X), labels=known["classes"]))
    return float((last.predict(X) != y).mean())
