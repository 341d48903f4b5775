"""What a predictor's parent and child say to each other: length-prefixed MessagePack, nothing that can carry code."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

LENGTH = struct.Struct(">I")


class Ready(msgspec.Struct, tag="ready"):
    """The model is loaded; `how` says what computes."""

    how: str


class Ask(msgspec.Struct, tag="ask"):
    """Score `rows` rows; `columns` in the model's order, one list of values each, None where there is no value."""

    number: int
    rows: int
    columns: dict[str, list[Any]]


class Scores(msgspec.Struct, tag="scores"):
    number: int
    scores: list[float | None]
    """None stands for a score that is not finite."""


class Failed(msgspec.Struct, tag="failed"):
    """The model did not load (`number` 0) or raised at an Ask."""

    number: int
    error: str


Answer = Ready | Scores | Failed
_encoder = msgspec.msgpack.Encoder()
_asks = msgspec.msgpack.Decoder(Ask)
_answers = msgspec.msgpack.Decoder(Answer)


def frame(message: Ask | Answer) -> bytes:
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def ask(body: bytes) -> Ask:
    return _asks.decode(body)


def answer(body: bytes) -> Answer:
    decoded: Answer = _answers.decode(body)
    return decoded
