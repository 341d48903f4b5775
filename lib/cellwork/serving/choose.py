"""Who answers: the live version, else the previous one with the reason. Deadlines are kept here, not by the models.

Requests of a micro-batch are asked together. If the model raises at that they are asked one by one, so that one caller's
row can't spoil the others' answers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cellwork.serving import plan as plans
from cellwork.serving.breaker import Breaker
from cellwork.serving.inline import Inline
from cellwork.serving.plan import Filled, Lookup, Plan
from cellwork.serving.predictor import NoAnswer, Predictor
from cellwork.wire.endpoints import RouteKind, Row
from cellwork.wire.evaluations import VersionRef


@dataclass(frozen=True)
class Served:
    """A version that is loaded, and the deployment that brought it here."""

    ref: VersionRef
    deployment: str
    plan: Plan
    predictor: Predictor | Inline


@dataclass(frozen=True)
class Routes:
    revision: int
    live: Served
    previous: Served | None = None


@dataclass(frozen=True)
class Scored:
    """What one request's rows got, and from whom."""

    served: Served
    route: RouteKind
    reason: str
    rows: list[Filled]
    scores: list[float]


async def score(
    routes: Routes,
    requests: Sequence[Sequence[Row]],
    lookup: Lookup,
    now: datetime,
    *,
    seconds: float,
    fallback: float,
    breaker: Breaker,
) -> list[Scored | NoAnswer]:
    """Return what each request got: `seconds` for the live version, then `fallback` seconds for the previous one.

    While `breaker` is open the previous version is asked at once.
    """
    if routes.previous is not None and not breaker.allows():
        reason = f"is taken out for some seconds, it {breaker.reason}"
        return await _by(routes.previous, "fallback", reason, requests, lookup, now, fallback)
    results = await _by(routes.live, "live", "", requests, lookup, now, seconds)
    reasons = {k: result.verdict for k, result in enumerate(results) if isinstance(result, NoAnswer)}
    if len(reasons) < len(results):
        breaker.succeeded()
    if reasons and routes.previous is not None:
        reason = next(iter(reasons.values()))
        again = await _by(routes.previous, "fallback", reason, [requests[k] for k in reasons], lookup, now, fallback)
        for k, result in zip(reasons, again, strict=True):
            if isinstance(result, Scored):
                results[k] = result
                breaker.failed(reason)
    return results


async def _by(
    served: Served,
    route: RouteKind,
    reason: str,
    requests: Sequence[Sequence[Row]],
    lookup: Lookup,
    now: datetime,
    seconds: float,
) -> list[Scored | NoAnswer]:
    filled = await _fill(served.plan, requests, lookup, now)
    answers = await _ask(served, filled, seconds)
    return [
        answer if isinstance(answer, NoAnswer) else Scored(served, route, reason, rows, answer)
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
