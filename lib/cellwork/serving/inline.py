"""A compiled model in this process: the quick twin of `Predictor`, with the same answers and the same refusals.

Some hundred rows are computed where they are asked for; more go to a thread, so that the event loop never stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cellwork.errors import BadInput
from cellwork.models import compiled
from cellwork.serving.predictor import NoAnswer
from cellwork.wire.endpoints import Explanation

SCALES: dict[str, Literal["score", "log-odds", "log"]] = {
    "identity": "score", "sigmoid": "log-odds", "sigmoid2": "log-odds", "exp": "log",
}  # fmt: skip
"""What the sum of contributions is, by the program's link."""
MOST_ROWS = 256
"""Rows computed in the event loop itself: at 5 us each about a millisecond."""


class Inline:
    """`start` compiles, or reads what was compiled; after it `how` says what computes."""

    pid = 0
    message = ""

    def __init__(self, folder: Path, digest: str, name: str, kept: Path) -> None:
        self.folder, self.digest, self.name, self.kept = folder, digest, name, kept
        self.machine: compiled.Machine | None = None

    @property
    def how(self) -> str:
        return self.machine.how if self.machine else ""

    @property
    def ready(self) -> bool:
        return self.machine is not None

    def restore(self) -> bool:
        """Take what was compiled before, without a child; says whether there was anything."""
        if (self.kept / f"{self.digest}.program").is_file():
            self.machine = compiled.ensure(self.folder, self.digest, self.kept)
        return self.ready

    async def start(self) -> None:
        """Raises NotCompiled, with why, if scikit-learn must compute this model."""
        self.machine = await asyncio.to_thread(compiled.ensure, self.folder, self.digest, self.kept)

    async def ask(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, seconds: float) -> list[float | None]:
        """Return one score a row.

        Raises
        ------
        NoAnswer
            A row has a value that the model refuses, or the request had waited too long.
        """
        if self.machine is None or seconds <= 0:
            verdict = (
                "is not started" if self.machine is None else "was asked too late: the request had waited too long"
            )
            raise NoAnswer("predictor", self.name, verdict, "ask again, or roll back to the previous version")
        given = [tuple(row) for row in rows]
        try:
            few = len(given) <= MOST_ROWS
            found = self.machine.scores(given) if few else await asyncio.to_thread(self.machine.scores, given)
            return list(found.tolist())
        except (BadInput, ValueError, TypeError, OverflowError) as error:
            raise NoAnswer("predictor", self.name, f"raised {error}", "send what the model was trained on") from None

    async def explain(self, rows: Sequence[Sequence[Any]]) -> list[Explanation]:
        """Return what made each row's score; raises BadInput if this model can't be explained."""
        machine = self.machine
        if machine is None:
            raise BadInput("explain", self.name, "is not started", "ask again")
        names = [column.name for column in machine.program.columns]
        base, parts = await asyncio.to_thread(machine.explain, [tuple(row) for row in rows])
        scale = SCALES[machine.program.link]
        return [
            Explanation(scale=scale, base=base, contributions=dict(zip(names, part, strict=True)))
            for part in parts.tolist()
        ]

    async def close(self) -> None:
        """Nothing runs; may be called twice."""
