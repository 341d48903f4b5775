"""`%%features`: a cell that lists features, joined point in time to a frame of the notebook. A thin shell of `cellwork.features.joins`."""

from __future__ import annotations

import html
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import HTML, DisplayHandle, display

from cellwork import errors
from cellwork.features import joins
from cellwork.wire.features import HistoryStatus


@magics_class
class FeatureMagics(Magics):
    @magic_arguments()
    @argument("--project", default="", help="default: that of the current folder")
    @argument("--memory", type=int, default=None, metavar="MB", help="what the join may take")
    @argument(
        "--no-arrival", action="store_true", help="take values as known from their event on, whenever they arrived"
    )
    @argument("--late", action="store_true", help="report values that came too late")
    @argument("--estimate", action="store_true", help="say what it will take, and join nothing")
    @argument("--at", default="event_timestamp", help="the column of the time")
    @argument("--into", default="", metavar="NAME", help="the variable for the result; default: the frame's own")
    @argument("frame", help="the variable with the rows: a polars or pandas frame with the join keys and a time")
    @cell_magic
    def features(self, line: str, cell: str) -> joins.Joined | None:
        """Join the features that the cell names, one a line, to a frame: as they were known at each row's time.

        What it will take is said before the first feature is read; an interrupt (or --estimate) leaves it at that.

        Example: %%features departures --at asked --into training
        """
        asked = parse_argstring(self.features, line)
        wanted = [name for text in cell.splitlines() if (name := text.partition("#")[0].strip())]
        rows = self.shell.user_ns.get(asked.frame)
        if rows is None:
            raise UsageError(f"variable {asked.frame!r} is not there: make the frame first")
        shown, terms = Shown(), {"at": asked.at, "project": asked.project, "memory_mb": asked.memory}
        try:
            if asked.estimate:
                shown.say(joins.say_estimate(joins.estimate(rows, wanted, **terms)))
                return None
            joined = joins.join(rows, wanted, arrival=not asked.no_arrival, late=asked.late, tell=shown.tell, **terms)
        except errors.CellworkError as error:
            raise UsageError(str(error)) from None
        except KeyboardInterrupt:
            shown.say("cancelled: nothing was kept")
            raise
        kept = joined.frame if type(rows).__module__.startswith("polars") else joined.frame.to_pandas()
        self.shell.user_ns[asked.into or asked.frame] = kept
        return joined


class Shown:
    """One line under the cell that is renewed: estimate, then progress."""

    def __init__(self) -> None:
        self._handle: DisplayHandle | None = None

    def tell(self, status: HistoryStatus) -> None:
        step = f"step {status.done} of {status.steps}" + (f", {status.view}" if status.view else "")
        self.say(f"{joins.say_estimate(status.estimate)}: {step}", share=status.done / max(status.steps, 1))

    def say(self, text: str, share: float | None = None) -> None:
        bar = "" if share is None else f"<progress max=1 value={share:.3f}></progress> "
        shown = HTML(f"{bar}{html.escape(text)}")
        if self._handle is None:
            self._handle = _displayed(shown)
        else:
            self._handle.update(shown)


def _displayed(shown: Any) -> DisplayHandle:
    return display(shown, display_id=True)
