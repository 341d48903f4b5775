"""What a version must show in its own predictor before it gets traffic: loads, fits its schema, scores, keeps time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import polars as pl
from anyio import to_thread

from cellwork.errors import BadInput, Refused
from cellwork.models import sandbox
from cellwork.models.compiled.build import TOLERANCE
from cellwork.models.compiled.child import ROWS
from cellwork.serving.inline import Inline
from cellwork.serving.predictor import NoAnswer, Predictor
from cellwork_hub.inference.registry import Copy

WARM_CALLS = 20
SLOW_SECONDS = 1.0
"""Half the deadline: a version that takes longer for one row is refused."""
PARITY = 1e-6


async def check(predictor: Predictor | Inline, copy: Copy, subject: str, expected: Sequence[float] = ()) -> list[str]:
    """Start `predictor` if it does not run yet, score the example rows, warm it; return what was seen, one line each.

    `expected` are the example's scores from a clean process; without them one is started. A compiled model was compared
    with scikit-learn's in a clean process when it was compiled.

    Raises
    ------
    Refused
        It does not load, raises, gives a score that is not finite or not what a clean process gave, or is slow.
    """
    columns = {c.name: [row.get(c.name) for row in copy.manifest.example] for c in copy.manifest.columns}
    rows, began = len(copy.manifest.example), time.perf_counter()
    if not rows:
        raise Refused(subject, "", "has no example rows to try it on", "register it with an example")
    clean = asyncio.create_task(_expected(predictor, copy, columns, expected))
    try:
        if not predictor.ready:
            await predictor.start()
        lines = [f"loads: in {time.perf_counter() - began:.1f} s, {predictor.how}"]
        table = list(zip(*columns.values(), strict=True))
        scores = await predictor.ask(list(columns), table, seconds=SLOW_SECONDS * 10)
        lines += [f"schema: {len(columns)} columns, {rows} example rows", _finite(scores, subject)]
        lines += [_same(scores, await clean, subject), await _warm(predictor, list(columns), table[:1], subject)]
    except (NoAnswer, BadInput) as error:
        raise Refused(subject, "", error.verdict, "it got no traffic; mend the model and register it again") from None
    finally:
        await asyncio.wait([clean])
        _ = (
            clean.cancelled() or clean.exception()
        )  # one that nobody came to await is told by the verdict on the predictor
    return lines


async def _expected(
    predictor: Predictor | Inline, copy: Copy, columns: dict[str, list[Any]], expected: Sequence[float]
) -> Sequence[float] | None:
    if isinstance(predictor, Inline):
        return None
    return expected or await to_thread.run_sync(_clean_scores, copy, columns)


def _clean_scores(copy: Copy, columns: dict[str, list[Any]]) -> list[float]:
    """Return the example's scores from the evaluator's sandbox, a process that never served."""
    text = {column.name for column in copy.manifest.columns if column.kind == "text"}
    types = {name: pl.String() if name in text else pl.Float64() for name in columns}
    scores: list[float] = sandbox.score(copy.folder, pl.DataFrame(columns, types, strict=False), timeout=60).tolist()
    return scores


def _finite(scores: Sequence[float | None], subject: str) -> str:
    good = [score for score in scores if score is not None and math.isfinite(score)]
    if len(good) < len(scores):
        raise Refused(
            subject, f"{len(scores) - len(good)} of {len(scores)} scores", "are not finite", "look at its example rows"
        )
    return f"finite: scores from {min(good, default=0):.4f} to {max(good, default=0):.4f}"


def _same(scores: Sequence[float | None], expected: Sequence[float] | None, subject: str) -> str:
    if expected is None:
        return f"parity: at most {TOLERANCE:.0e} from scikit-learn's scores on the example and {ROWS} rows like it"
    worst = max((abs((a or 0.0) - b) / max(1.0, abs(b)) for a, b in zip(scores, expected, strict=True)), default=0.0)
    if not worst <= PARITY:
        raise Refused(subject, f"{worst:.2e}", "is how far its scores are from a clean process's", "look at its state")
    return f"parity: at most {worst:.0e} from a clean process"


async def _warm(predictor: Predictor | Inline, columns: list[str], one: list[tuple[Any, ...]], subject: str) -> str:
    seconds = []
    for _ in range(WARM_CALLS):
        began = time.perf_counter()
        await predictor.ask(columns, one, seconds=SLOW_SECONDS * 10)
        seconds.append(time.perf_counter() - began)
    median = sorted(seconds)[len(seconds) // 2]
    if median > SLOW_SECONDS:
        raise Refused(
            subject, f"{median:.2f} s", f"is its time for one row (at most {SLOW_SECONDS} s)", "make it faster"
        )
    return f"latency: {median * 1e3:.3g} ms a row"
