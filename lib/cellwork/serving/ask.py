"""Asks those of a choice in their order, each with its time: "better wrong than late". Deadlines are kept here, not by the models.

Requests of a micro-batch are asked together. If the model raises at that they are asked one by one, so that one caller's
row can't spoil the others' answers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cellwork.serving import plan as plans
from cellwork.serving.breaker import Breaker
from cellwork.serving.choose import Served
from cellwork.serving.plan import Filled, Lookup, Plan
from cellwork.serving.predictor import NoAnswer
from cellwork.wire.endpoints import Row


@dataclass(frozen=True)
class Scored:
    """What one request's rows got, and from whom; `reason` says why the first one did not answer, if another did."""

    served: Served
    rows: list[Filled]
    scores: list[float]
    reason: str = ""


async def score(
    chain: Sequence[Served],
    requests: Sequence[Sequence[Row]],
    lookup: Lookup,
    now: datetime,
    *,
    seconds: float,
    fallback: float,
    breaker: Callable[[Served], Breaker],
) -> list[Scored | NoAnswer]:
    """Return what each request got: `seconds` for the first of `chain`, `fallback` seconds for each after it.

    One whose breaker is open is passed over while there is another.
    """
    first, rest = chain[0], chain[1:]
    watch = breaker(first) if rest else None
    if watch is not None and not watch.allows():
        found = await score(rest, requests, lookup, now, seconds=fallback, fallback=fallback, breaker=breaker)
        return _because(found, f"is taken out for some seconds, it {watch.reason}")
    results = await by(first, requests, lookup, now, seconds)
    late = {k: result.verdict for k, result in enumerate(results) if isinstance(result, NoAnswer)}
    if watch is None:
        return results
    if len(late) < len(results):
        watch.succeeded()
    if late:
        reason = next(iter(late.values()))
        again = await score(
            rest, [requests[k] for k in late], lookup, now, seconds=fallback, fallback=fallback, breaker=breaker
        )
        for k, result in zip(late, _because(again, reason), strict=True):
            if isinstance(result, Scored):
                results[k] = result
                watch.failed(reason)
    return results


def _because(results: list[Scored | NoAnswer], reason: str) -> list[Scored | NoAnswer]:
    return [replace(result, reason=reason) if isinstance(result, Scored) else result for result in results]


async def by(
    served: Served, requests: Sequence[Sequence[Row]], lookup: Lookup, now: datetime, seconds: float
) -> list[Scored | NoAnswer]:
    """Return what each request got from `served` alone."""
    filled = await _fill(served.plan, requests, lookup, now)
    answers = await _ask(served, filled, seconds)
    return [
        answer if isinstance(answer, NoAnswer) else Scored(served, rows, answer)
        for rows, answer in zip(filled, answers, strict=True)
    ]


async def _fill(plan: Plan, requests: Sequence[Sequence[Row]], lookup: Lookup, now: datetime) -> list[list[Filled]]:
    needed = plans.needs(plan, (row for rows in requests for row in rows))
    found = await asyncio.to_thread(lookup, plan.project, needed) if needed else {}
    return [[plans.fill(plan, row, found, now) for row in rows] for rows in requests]


async def _ask(served: Served, requests: list[list[Filled]], seconds: float) -> list[list[float] | NoAnswer]:
    end = time.monotonic() + seconds
    together = [row for rows in requests for row in rows]
    try:
        scores = await served.predictor.ask(served.plan.names, [row.values for row in together], seconds=seconds)
    except NoAnswer as error:
        if len(requests) == 1 or not error.verdict.startswith("raised"):
            return [error] * len(requests)
        return [(await _ask(served, [rows], end - time.monotonic()))[0] for rows in requests]
    parts, start = [], 0
    for rows in requests:
        parts.append(_finite(served, scores[start : start + len(rows)]))
        start += len(rows)
    return parts


def _finite(served: Served, scores: list[float | None]) -> list[float] | NoAnswer:
    good = [score for score in scores if score is not None and math.isfinite(score)]
    if len(good) == len(scores):
        return good
    name = f"{served.ref.name}@{served.ref.version}"
    return NoAnswer("predictor", name, "gave a score that is not finite", "roll back to the previous version")
