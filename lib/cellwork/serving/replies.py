"""The quick lane's answers, written straight from a turn: the same bytes that the general way's records become."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cellwork.serving.segments import Turn
from cellwork.serving.shape import Door
from cellwork.wire.evaluations import VersionRef


def tails(ref: VersionRef, revision: int, route: str, reason: str) -> dict[Door, bytes]:
    """Return what every answer of a version by one route ends with, up to the time it took."""
    model, said, why = msgspec.json.encode(ref), route.encode(), msgspec.json.encode(reason)
    return {
        "predict": b'],"model":%b,"revision":%d,"route":"%b","reason":%b,"latency_ms":' % (model, revision, said, why),
        "invocations": b'],"model":%b,"route":"%b"}' % (model, said),
    }


def _own(turn: Turn, start: int, end: int, tail: bytes, seconds: float) -> bytes:
    outputs = [
        f'{{"id":"{turn.ids[k]}","score":{turn.scores[k]!r},"defaults":{_defaults(turn, k)},"feature_age_s":{_age(turn, k)},"repeated":false,"explanation":null}}'
        for k in range(start, end)
    ]
    return b'{"outputs":[' + ",".join(outputs).encode() + tail + b"%.3f}" % (seconds * 1e3)


def _mlflow(turn: Turn, start: int, end: int, tail: bytes, seconds: float) -> bytes:
    scores = ",".join(map(repr, turn.scores[start:end]))
    names = '","'.join(turn.ids[start:end])
    return f'{{"predictions":[{scores}],"ids":["{names}"'.encode() + tail


def _defaults(turn: Turn, k: int) -> str:
    return msgspec.json.encode(turn.defaults[k]).decode() if k in turn.defaults else "[]"


def _age(turn: Turn, k: int) -> str:
    found = turn.looked_up.get(k)
    return str((turn.at - min(found.events.values())) / 1e6) if found and found.events else "null"


BODIES: dict[Door, Callable[[Turn, int, int, bytes, float], bytes]] = {"predict": _own, "invocations": _mlflow}
