"""Takes a failing live version out of the way of requests, and tries it again now and then.

    closed --(FAILURES in a row that the previous version answered)--> open --(OPEN_SECONDS)--> one turn tries it
      ^------------------------- it answers --------------------------------------------------------|
                                                  open again <--------------------- it fails ------|

Only a request that the previous version answers counts against the live one: a row that no version can score says nothing about
either, so nobody opens the breaker with rows that are just wrong. Without a previous version there is nobody to take over, and it stays closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 5
OPEN_SECONDS = 10.0


class Breaker:
    """Of one deployment. `opened` is told why, once each time it goes from closed to open."""

    def __init__(
        self, opened: Callable[[str], None], *, failures: int = FAILURES, seconds: float = OPEN_SECONDS
    ) -> None:
        self.opened, self.most, self.seconds = opened, failures, seconds
        self.reason = ""
        """Why it is open; empty while it is closed."""
        self._failures, self._until = 0, 0.0

    def allows(self) -> bool:
        """Say whether the live version is asked; while open, one turn in `seconds` is let through to try."""
        if not self.reason:
            return True
        if time.monotonic() < self._until:
            return False
        self._until = time.monotonic() + self.seconds
        return True

    def succeeded(self) -> None:
        self._failures, self.reason = 0, ""

    def failed(self, reason: str) -> None:
        """Count a failure that the previous version made good."""
        self._failures += 1
        if self.reason:
            self._until = time.monotonic() + self.seconds
        elif self._failures >= self.most:
            self.reason, self._until = reason, time.monotonic() + self.seconds
            self.opened(reason)
