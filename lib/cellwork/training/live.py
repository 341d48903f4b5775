"""A search that runs in a thread of this process and can be looked at from anywhere in it, by its name.

States: ``running``, then ``done``, ``cancelled`` or ``failed``. A view keeps nothing of its own: made again after a reload of the
page it finds the search by its name and shows what is true now. A name is free again when its search has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from cellwork.errors import CellworkError, Conflict
from cellwork.training.candidates import Candidate, Step, leaderboard
from cellwork.training.search import Search

if TYPE_CHECKING:
    import polars as pl

State = Literal["running", "done", "cancelled", "failed"]
_LIVE: dict[str, Live] = {}


class Live:
    """One search that was started; `listeners` are called after every step and at the end, in the search's thread."""

    def __init__(self, name: str, find: Callable[..., Search]) -> None:
        self.name, self.state, self.error = name, "running", ""
        self.result: Search | None = None
        self.steps: list[Step] = []
        self.listeners: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(find,), name=f"search {name}", daemon=True)

    def _run(self, find: Callable[..., Search]) -> None:
        try:
            self.result = find(progress=self._step, stop=self._stop)
            self.state = "cancelled" if self.result.ended == "cancelled" else "done"
        except CellworkError as error:
            self.error, self.state = str(error), "cancelled" if self._stop.is_set() else "failed"
        except Exception as error:
            # the thread's end is nobody's traceback: whoever looks is told
            self.error, self.state = f"{type(error).__name__}: {error}", "failed"
        self._tell()

    def _step(self, step: Step) -> None:
        self.steps.append(step)
        self._tell()

    def _tell(self) -> None:
        for listener in list(self.listeners):
            listener()

    def cancel(self) -> None:
        """End it with what is done; may be called twice."""
        self._stop.set()

    @property
    def cancelling(self) -> bool:
        """Whether it was told to end and has not ended yet."""
        return self.state == "running" and self._stop.is_set()

    def wait(self, timeout: float | None = None) -> Search | None:
        """Return the result when it has ended; None where it failed or is not over after `timeout` seconds."""
        self._thread.join(timeout)
        return self.result

    @property
    def candidates(self) -> list[Candidate]:
        return [step.last for step in list(self.steps)]

    def leaderboard(self) -> pl.DataFrame | None:
        """Return the leaderboard as far as it is known; None before the first candidate."""
        steps = list(self.steps)
        return leaderboard([step.last for step in steps], steps[0].metric) if steps else None

    def curve(self) -> list[tuple[float, float]]:
        """Return the candidates' scores and the best so far, in the order in which they were done; those that failed are left out."""
        return [(step.last.score, step.best.score) for step in list(self.steps) if step.best and not step.last.error]


def start(name: str, find: Callable[..., Search]) -> Live:
    """Start `find`, which is given `progress` and `stop`, under `name`; raises Conflict while one of that name runs.

    >>> live = training.start("delay", functools.partial(training.best, X, y, budget=60))  # doctest: +SKIP
    """
    if get(name) is not None and _LIVE[name].state == "running":
        raise Conflict("search", name, "runs already", "cancel it, wait for it, or give another name")
    live = _LIVE[name] = Live(name, find)
    live._thread.start()
    return live


def get(name: str) -> Live | None:
    """Return the last search of that name in this process, if there was one."""
    return _LIVE.get(name)
