"""The platform's errors. They know no protocol: each edge (HTTP, CLI, page) maps them in one table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CellworkError(Exception):
    """What happened, to which subject, with which value, and what to do.

    Parameters
    ----------
    subject : what the error is about, e.g. ``feature 'temp_f'``.
    value : the offending value, as the user would recognise it; empty if there is none.
    verdict : what is wrong with it.
    way_out : what the user can do now.
    """

    def __init__(self, subject: str, value: object = "", verdict: str = "", way_out: str = "") -> None:
        self.subject, self.value, self.verdict, self.way_out = subject, str(value), verdict, way_out
        super().__init__(subject, value, verdict, way_out)

    def __str__(self) -> str:
        head = f"{self.subject} {self.value!r}" if self.value else self.subject
        text = f"{head}: {self.verdict}" if self.verdict else head
        return f"{text}; {self.way_out}" if self.way_out else text


class BadInput(CellworkError):
    """The value itself is wrong."""


class NotFound(CellworkError):
    """Nothing of that name or id is there, or the caller may not know of it."""


class Refused(CellworkError):
    """The caller may not do this, or a gate forbids it."""


class Conflict(CellworkError):
    """It contradicts what is there now; look again and decide."""


class TooLarge(CellworkError):
    """More bytes or rows than the limit named in the verdict."""


class TooBusy(CellworkError):
    """Over a rate or a queue limit; the same call may pass later."""


class Unavailable(CellworkError):
    """A service or store that is needed does not answer."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'temp'?`` and the known names, for an error's way out."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    listing = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"(there are: {listing or 'none'})"
