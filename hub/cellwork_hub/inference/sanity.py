"""What a version must show in its own predictor before it gets traffic: loads, fits its schema, scores, keeps time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from cellwork.errors import Refused
from cellwork.serving.predictor import NoAnswer, Predictor

from cellwork_hub.inference.registry import Copy

WARM_CALLS = 20
SLOW_SECONDS = 1.0
"""Half the deadline: a version that takes longer for one row is refused."""
TOLERANCE = 1e-6


async def check(predictor: Predictor, copy: Copy, subject: str) -> list[str]:
    """Start `predictor`, score the example rows, warm it; return what was seen, one line each.

    Raises
    ------
    Refused
        It does not load, raises, gives a score that is not finite or not what a clean process gave, or is slow.
    """
    columns = {c.name: [row.get(c.name) for row in copy.manifest.example] for c in copy.manifest.columns}
    rows, began = len(copy.manifest.example), time.perf_counter()
    if not rows:
        raise Refused(subject, "", "has no example rows to try it on", "register it with an example")
    try:
        await predictor.start()
        lines = [f"loads: in {time.perf_counter() - began:.1f} s, {predictor.how}"]
        scores = await predictor.ask(columns, rows, seconds=SLOW_SECONDS * 10)
        lines += [f"schema: {len(columns)} columns, {rows} example rows", _finite(scores, subject)]
        lines += [_same(scores, copy.expected, subject), await _warm(predictor, columns, subject)]
    except NoAnswer as error:
        raise Refused(subject, "", error.verdict, "it got no traffic; mend the model and register it again") from None
    return lines


def _finite(scores: Sequence[float | None], subject: str) -> str:
    good = [score for score in scores if score is not None and math.isfinite(score)]
    if len(good) < len(scores):
        raise Refused(
            subject, f"{len(scores) - len(good)} of {len(scores)} scores", "are not finite", "look at its example rows"
        )
    return f"finite: scores from {min(good, default=0):.4f} to {max(good, default=0):.4f}"


def _same(scores: Sequence[float | None], expected: Sequence[float], subject: str) -> str:
    worst = max((abs((a or 0.0) - b) for a, b in zip(scores, expected, strict=True)), default=0.0)
    if not worst <= TOLERANCE:
        raise Refused(subject, f"{worst:.2e}", "is how far its scores are from a clean process's", "look at its state")
    return f"parity: at most {worst:.0e} from a clean process"


async def _warm(predictor: Predictor, example: dict[str, list[Any]], subject: str) -> str:
    one = {name: values[:1] for name, values in example.items()}
    seconds = []
    for _ in range(WARM_CALLS):
        began = time.perf_counter()
        await predictor.ask(one, 1, seconds=SLOW_SECONDS * 10)
        seconds.append(time.perf_counter() - began)
    median = sorted(seconds)[len(seconds) // 2]
    if median > SLOW_SECONDS:
        raise Refused(subject, f"{median:.2f} s", f"is its time for one row (at most {SLOW_SECONDS} s)", "make it faster")
    return f"latency: {median * 1e3:.1f} ms a row"
