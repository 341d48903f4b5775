"""A search's results in a file, one line each, so that the next one goes on where this one ended, however it ended.

A line is written when a fold's score is known, and is on the disk before the search hears of it. A torn last line is left out.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from cellwork.training.candidates import Candidate
from cellwork.training.prefix import told
from cellwork.wire import Struct


class Line(Struct):
    key: str
    fold: int
    score: float | None
    seconds: float
    error: str = ""


class Journal:
    """Scores by (what was fitted to what, fold). Without a path it keeps nothing."""

    def __init__(self, path: Path | str | None, data: Any = None, metric: str = "") -> None:
        self._path = Path(path) if path else None
        self._known: dict[tuple[str, int], Line] = {}
        self._about = ""
        if self._path is None:
            return
        import joblib

        self._about = f"{joblib.hash(data)}|{metric}"
        if self._path.exists():
            content = self._path.read_bytes()
            if content and not content.endswith(b"\n"):
                self._path.write_bytes(content[: content.rfind(b"\n") + 1])
            for text in content.splitlines():
                try:
                    line = msgspec.json.decode(text, type=Line)
                except msgspec.MsgspecError:
                    continue
                self._known[line.key, line.fold] = line

    def key(self, candidate: Candidate, model: Any) -> str:
        """Return the hash of all that a score depends on."""
        settings = sorted((name, told(value)) for name, value in model.get_params().items())
        text = f"{self._about}|{candidate.model}|{candidate.fraction}|{type(model).__name__}|{settings}"
        return hashlib.sha256(text.encode()).hexdigest()

    def known(self, candidate: Candidate, model: Any, fold: int) -> Line | None:
        return self._known.get((self.key(candidate, model), fold)) if self._path else None

    def write(
        self, candidate: Candidate, model: Any, fold: int, score: float | None, seconds: float, error: str = ""
    ) -> None:
        if self._path is None:
            return
        line = Line(key=self.key(candidate, model), fold=fold, score=score, seconds=seconds, error=error)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
