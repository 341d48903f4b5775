"""A prediction log of some days, with all that can stand in one, and everything that its readers ask of it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from cellwork import db, ids
from cellwork.serving import archive, log
from cellwork.serving.log import PredictionLog
from cellwork.wire.endpoints import Prediction
from cellwork.wire.evaluations import VersionRef

MIGRATIONS = [
    log.MIGRATION, log.SEGMENTS_MIGRATION, log.ROUTES_MIGRATION, log.OBSERVATIONS_MIGRATION, archive.MIGRATION,
    log.ERASED_MIGRATION,
]  # fmt: skip
START = datetime(2024, 5, 1, tzinfo=UTC)
ENDPOINTS = ("shop/churn", "shop/worth")
GROUP_ROWS, DELETED_ROWS, MOST_ROWS = 16, 25, 60
"""Small, so that a small log has many files, row groups and commits."""


def opened(folder: Path, url: str = "") -> PredictionLog:
    engine = db.open_database(url or f"sqlite:///{folder}/inference.sqlite", MIGRATIONS)
    return PredictionLog(engine, folder / "segments", folder / "days")


def filled(log: PredictionLog, dice: random.Random, *, count: int, days: int) -> list[Prediction]:
    """Write predictions of so many days, not quite in the order of their times, and return them as the log has them."""
    for number in range(count):
        hours = number * days * 24 / count + dice.uniform(-1, 1) * (number > 0)
        log.write([prediction(dice, START + timedelta(hours=max(hours, 0)), number)])
    return log.after(0, limit=count)


def prediction(dice: random.Random, at: datetime, number: int) -> Prediction:
    kind, endpoint = dice.choice(("plain", "keyed", "batch")), dice.choice(ENDPOINTS)
    batch = kind == "batch"
    return Prediction(
        id=_ulid(at, dice) if kind == "plain" else ids.of_key("pred", str(number)), seq=0,
        at=at - timedelta(days=2) * batch, logged_at=at, endpoint=endpoint, revision=1, deployment=f"dep_{dice.randrange(2)}", route="live",
        version=VersionRef(name=endpoint, version=1, digest="d"), reason="", entities={"id": number},
        features={"visits": dice.random(), "plan": dice.choice(["free", "it's ünlimited", None])}, feature_events={"v": at, "w": None},
        feature_batches={"v": "bat_1"}, defaults=["plan"] * (number % 2), score=dice.random(), latency_us=number, caller="ada",
        observation=f"o{dice.randrange(20)}" if batch else "", batch_run="run_1" * batch,
        request_id=str(number) if kind == "keyed" else "", tried=dice.choice(["", "", "dep_0"]),
    )  # fmt: skip


def _ulid(at: datetime, dice: random.Random) -> str:
    """The id that a prediction of this time has."""
    number = round(at.timestamp() * 1000) << 80 | dice.getrandbits(80)
    return "pred_" + "".join(ids.ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def answers(log: PredictionLog, known: list[Prediction], dice: random.Random, rounds: int = 8) -> list[Any]:
    """Return what the log says to all the questions that there are, chosen by `dice`."""
    said: list[Any] = [log.after(0, limit=len(known) + 1)]
    for _ in range(rounds):
        one = dice.choice(known)
        asked: dict[str, Any] = {
            "limit": dice.randint(1, len(known)), "endpoint": dice.choice(("", *ENDPOINTS)), "deployment": dice.choice(("", "dep_1")),
            "brief": dice.random() < 0.3,
        }  # fmt: skip
        said += [log.after(one.seq, **asked), log.after(0, **asked), log.after(-dice.randint(1, len(known)), **asked)]
        said += [log.get(one.id), log.find(one.endpoint, [*[p.id for p in known if p.request_id][:5], "pred_none"])]
        said += [log.scored(one.endpoint, [f"o{n}" for n in range(25)])]
        seen = log.seen("dep_0", "live", one.logged_at)
        said += [(seen.answered, seen.failed, seen.milliseconds.tolist(), seen.scores.tolist())]
    return said


def encoded(predictions: list[Prediction]) -> bytes:
    return msgspec.json.encode(predictions)
