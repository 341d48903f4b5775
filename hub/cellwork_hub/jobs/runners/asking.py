"""While a slot asks the service for a run, it does not end: the answer may be a run, which nobody else would know of for a lease."""

from __future__ import annotations

import sys
from types import TracebackType


class Asking:
    """A context around one question. Who is told to leave meanwhile leaves at its end, after `leaving` was looked at."""

    def __init__(self) -> None:
        self.leaving = False
        self._asked = False

    def leave(self) -> bool:
        """Note that the slot shall end; return whether it does so by itself, at the end of its question."""
        self.leaving = True
        return self._asked

    def __enter__(self) -> None:
        self._asked = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._asked = False
        if self.leaving:
            sys.exit(0)
