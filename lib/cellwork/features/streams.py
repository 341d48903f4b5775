"""From a topic to the platform: rows for a feature view (pushed) or for a raw data set (a batch at a time, which starts its pipelines).

A consumer is a client like any other: it may be killed at any moment. Messages are acknowledged only after the platform has
answered, so none is lost; what is delivered twice changes nothing, because a push of a consumer is `distinct` (rows that the
view has are left out), and a batch is named by its topic and the first message in it: before it takes messages for a raw data
set, a consumer asks the platform which ones it has, and again whenever the broker has given out the partitions anew. One consumer a partition of a topic, as brokers arrange it in a group.

A message is a JSON object, one row. One that is not is set aside: counted, reported, and acknowledged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cellwork import ids
from cellwork.errors import BadInput
from cellwork.features.row import CREATED
from cellwork.wire.features import PushRequest

if TYPE_CHECKING:
    from cellwork.client import Client

AT_ONCE = 500
"""Messages in one delivery, at most."""


@dataclass(frozen=True)
class Message:
    """One message: where it stands in its stream, when the broker took it, what it says."""

    stream: str
    """Topic and partition, as a name."""
    place: int
    """Ascending within the stream."""
    arrived: datetime
    body: bytes
    token: Any = None
    """What the broker wants back to acknowledge it."""
    key: bytes | None = None
    """What the sender named it by: messages of one key are in one stream."""
    given: int = 0
    """How often the consumer has been given streams. Between two times another may have had them: what was known of a stream is old."""


class Broker(Protocol):
    """What a broker does for a consumer."""

    def poll(self, most: int, seconds: float) -> list[Message]:
        """Return messages that were not acknowledged, in order, as soon as there are some; none after `seconds`."""

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Never give out these again; unless another consumer has got their stream meanwhile, and they come there."""

    def close(self) -> None: ...


@dataclass
class Count:
    """What a consumer has done."""

    messages: int = 0
    rows: int = 0
    """Rows the platform took."""
    refused: list[str] = field(default_factory=list)
    """Why messages were set aside, the latest hundred."""


def consume(
    broker: Broker,
    deliver: Callable[[Sequence[Message]], int],
    *,
    stop: Callable[[], bool],
    seconds: float = 1.0,
    tell: Callable[[Count], None] | None = None,
) -> Count:
    """Hand messages to `deliver` until `stop`, and acknowledge what it took.

    Raises
    ------
    Unavailable
        The platform does not answer; nothing is acknowledged, and the messages come again.
    """
    count = Count()
    while not stop():
        messages = broker.poll(AT_ONCE, seconds)
        for part in _of_one_stream(messages):
            try:
                count.rows += deliver(part)
            except BadInput:  # one of them is to blame: the others must not wait for it
                count.rows += _singly(part, deliver, count)
            broker.acknowledge(part)
            count.messages += len(part)
        if messages and tell:
            tell(count)
    return count


def _singly(messages: Sequence[Message], deliver: Callable[[Sequence[Message]], int], count: Count) -> int:
    taken = 0
    for message in messages:
        try:
            taken += deliver([message])
        except BadInput as error:
            count.refused = [*count.refused[-99:], f"{message.stream} {message.place}: {error}"]
    return taken


def _of_one_stream(messages: Sequence[Message]) -> Iterator[list[Message]]:
    streams = dict.fromkeys(message.stream for message in messages)
    for stream in streams:
        yield [message for message in messages if message.stream == stream]


def to_view(client: Client, project: str, view: str) -> Callable[[Sequence[Message]], int]:
    """Return what pushes messages to a view; a row without `created_timestamp` arrived when the broker took it."""

    def deliver(messages: Sequence[Message]) -> int:
        rows = [{CREATED: message.arrived.isoformat(), **row(message)} for message in messages]
        return client.features.push(view, PushRequest(project=project, rows=rows, distinct=True))

    return deliver


def to_dataset(client: Client, project: str, dataset: str) -> Callable[[Sequence[Message]], int]:
    """Return what ingests messages as batches of a raw data set, which count online at once; each message once, whatever is delivered again."""
    reached: dict[tuple[str, int], int] = {}

    def deliver(messages: Sequence[Message]) -> int:
        import polars as pl

        stream = messages[0].stream
        known = stream, messages[0].given
        if known not in reached:
            reached[known] = _last(client, project, dataset, stream)
        fresh = [message for message in messages if message.place > reached[known]]
        if not fresh:
            return 0
        try:
            frame = pl.DataFrame([row(message) for message in fresh], infer_schema_length=None)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise BadInput(
                f"messages of {stream!r}", fresh[0].place, f"do not make a frame: {error}", "give each field one type"
            ) from None
        partition = f"{stream}-{fresh[0].place}-{fresh[-1].place}"
        rows: int = client.features.stream(project, dataset, frame, delivery=partition).batch.rows
        reached[known] = fresh[-1].place
        return rows

    return deliver


def _last(client: Client, project: str, dataset: str, stream: str) -> int:
    """Return the place of the last message of `stream` that a batch of the data set has; -1 if none has."""
    mark = re.compile(re.escape(stream) + r"-(\d+)-(\d+)")
    found = (mark.fullmatch(batch.partition) for batch in client.batches.list(project, dataset, current=False))
    return max((int(each[2]) for each in found if each), default=-1)


def row(message: Message) -> dict[str, Any]:
    """Return what a message says. Raises BadInput unless it is a JSON object."""
    try:
        return msgspec.json.decode(message.body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadInput(
            f"message of {message.stream!r}", message.place, f"is not a JSON object: {error}", "send one row a message"
        ) from None


def stream_name(topic: str, partition: int) -> str:
    """Return the name of a partition of a topic; it goes into names of batches."""
    return ids.name(f"{re.sub(r'[^a-z0-9_-]', '_', topic.lower())[:50]}-{partition}", "topic")


def moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


__all__ = ["Broker", "Count", "Message", "consume", "moment", "row", "stream_name", "to_dataset", "to_view"]
