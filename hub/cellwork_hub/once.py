"""Answers that cost something, computed once for all who ask, until what they are made of changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Once(Generic[Answer]):
    """Keeps the answers of the last `most` questions. Who asks while an answer is computed waits for it."""

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, tuple[Hashable, Answer]] = OrderedDict()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def __call__(self, question: Hashable, revision: Hashable, compute: Callable[[], Answer]) -> Answer:
        """Return the answer to `question` as of `revision`; an error of `compute` is the caller's and is not kept."""
        with self._lock:
            mine = self._locks.setdefault(question, threading.Lock())
        with mine:
            with self._lock:
                kept = self._kept.get(question)
            if kept is not None and kept[0] == revision:
                return kept[1]
            answer = compute()
            with self._lock:
                self._kept[question] = (revision, answer)
                self._kept.move_to_end(question)
                while len(self._kept) > self.most:
                    gone, _ = self._kept.popitem(last=False)
                    self._locks.pop(gone, None)
            return answer
