"""From a topic to the platform: rows for a feature view (pushed) or for a raw data set (a batch at a time, which starts its pipelines).

A consumer is a client like any other: it may be killed at any moment. Messages are acknowledged only after the platform has
answered, so none is lost; what is delivered twice changes nothing, because a push of a consumer is `distinct` (rows that the
view has are left out), and a batch is named by its stream, the first message in it and the last: before it takes messages for a raw data
set, a consumer asks the platform which ones it has, and again whenever the broker has given out messages anew. Between the first and
the last of a batch nothing is open: what brokers give out at once is, within a stream, all that was not acknowledged there. So a
message is known by its place within a batch, wherever other batches end.

One consumer a partition of a topic, as Kafka arranges it in a group. Of a stream of Redis, which arranges nothing, a second consumer
takes over what the first one has in hand: no message is lost, but one that both deliver in the same moment may be in a raw data set twice.

A message is a JSON object, one row; what it leaves out of the fields of the view, or of the columns that the data set has since its first
batch, is null. One that is no row, or has none of them, is set aside: counted, reported, and acknowledged. So are messages that
a declared check holds back: the platform has them until somebody releases or discards them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cellwork import clock, ids
from cellwork.errors import BadInput, Conflict, Refused, near_miss
from cellwork.features import references
from cellwork.features.row import CREATED
from cellwork.wire.features import PushRequest

if TYPE_CHECKING:
    import polars as pl

    from cellwork.client import Client

AT_ONCE = 500
"""Messages in one delivery, at most."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
LONGEST = 24
"""Letters of a topic's name in names of batches: with any partition and any two places it fits into a partition key."""
CLOCKS = timedelta(minutes=1)
"""By so much the clocks of the platform, of brokers and of senders may differ."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    former: str = ""
    """What the stream was called in names of batches before topics had names of their own there."""


class Aside(Refused):
    """The platform does not publish the messages, but it holds them: they need not come again."""


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
    aside: int = 0
    """Messages that were set aside."""

    def set_aside(self, messages: Sequence[Message], error: Exception) -> str:
        """Count messages as set aside; return the words for it."""
        first, last = messages[0], messages[-1]
        places = str(first.place) if first is last else f"{first.place} to {last.place}"
        self.refused = [*self.refused[-99:], f"{first.stream} {places}: {error}"]
        self.aside += len(messages)
        return self.refused[-1]


def consume(
    broker: Broker,
    deliver: Callable[[Sequence[Message]], int],
    *,
    stop: Callable[[], bool],
    seconds: float = 1.0,
    tell: Callable[[Count], None] | None = None,
    refused: Callable[[str], None] = lambda words: None,
) -> Count:
    """Hand messages to `deliver` until `stop`, and acknowledge what it took.

    Parameters
    ----------
    deliver : returns how many rows it took. It raises BadInput only for what messages say: each is then tried alone, and set aside if it is to blame;
        and `Aside` for what is set aside as it is.
    tell : called after each poll that brought messages.
    refused : called with the reason whenever something is set aside.

    Raises
    ------
    CellworkError
        Whatever else `deliver` raises, for example Unavailable; nothing is acknowledged, and the messages come again.
    """
    count = Count()
    while not stop():
        messages = broker.poll(AT_ONCE, seconds)
        for part in _of_one_stream(messages):
            try:
                count.rows += deliver(part)
            except Aside as error:
                refused(count.set_aside(part, error))
            except BadInput:  # one of them is to blame: the others must not wait for it
                for message in part:
                    try:
                        count.rows += deliver([message])
                    except (BadInput, Aside) as error:
                        refused(count.set_aside([message], error))
            broker.acknowledge(part)
            count.messages += len(part)
        if messages and tell:
            tell(count)
    return count


def _of_one_stream(messages: Sequence[Message]) -> Iterator[list[Message]]:
    streams = dict.fromkeys(message.stream for message in messages)
    for stream in streams:
        yield [message for message in messages if message.stream == stream]


def to_view(client: Client, project: str, view: str) -> Callable[[Sequence[Message]], int]:
    """Return what pushes messages to a view; a row without `created_timestamp` arrived when the broker took it."""
    ids.name(project, "project")

    def deliver(messages: Sequence[Message]) -> int:
        known = references.view_of(client.features.definitions(project), view)
        fields = [each.name for each in known.fields]
        rows = [{CREATED: message.arrived.isoformat(), **_filled(message, fields)} for message in messages]
        try:
            return client.features.push(view, PushRequest(project=project, rows=rows, distinct=True))
        except (OverflowError, RecursionError) as error:
            raise _no_rows(messages, error) from None

    return deliver


@dataclass(frozen=True)
class _Taken:
    """The places from `first` to `last` of a stream are in a batch, or held back, since `at`."""

    first: int
    last: int
    at: datetime
    former: bool = False
    """Its name is of the kind that several topics had in common."""

    def has(self, message: Message) -> bool:
        """Raises Conflict if it has the message's place, but can't have the message."""
        if not self.first <= message.place <= self.last:
            return False
        if not self.at + CLOCKS < message.arrived <= clock.now():  # a time to come tells of a clock, not of the message
            return True
        if self.former:
            return False
        verdict = f"arrived at {message.arrived:%Y-%m-%d %H:%M:%S}Z, but its place is in a batch of {self.at:%Y-%m-%d %H:%M:%S}Z: the topic was begun anew"
        raise Conflict(f"message of {message.stream!r}", message.place, verdict, "take it into another data set")


def to_dataset(client: Client, project: str, dataset: str) -> Callable[[Sequence[Message]], int]:
    """Return what ingests messages as batches of a raw data set, which count online at once; each message once, whatever is delivered again.

    It raises Aside for what a declared check holds back, and Conflict where a topic was begun anew: its places are those of other messages.
    """
    ids.name(project, "project")
    ids.name(dataset, "data set")
    known: dict[str, tuple[int, list[_Taken]]] = {}
    columns: list[str] = []

    def deliver(messages: Sequence[Message]) -> int:
        import polars as pl

        first = messages[0]
        if first.stream not in known or known[first.stream][0] != first.given:
            known[first.stream] = first.given, _taken(client, project, dataset, first)
        taken = known[first.stream][1]
        near = [each for each in taken if each.first <= messages[-1].place and each.last >= first.place]
        fresh = [message for message in messages if not any(each.has(message) for each in near)]
        if not fresh:
            return 0
        partition = f"{first.stream}.{_base36(fresh[0].place)}.{_base36(fresh[-1].place)}"
        columns[:] = columns or _columns(client, project, dataset)
        try:
            frame = _frame(fresh, columns)
            batch = client.features.stream(project, dataset, frame, delivery=partition).batch
        except (pl.exceptions.PolarsError, RecursionError) as error:  # a frame that can't be sent
            raise _no_rows(fresh, error) from None
        except Refused as error:
            held = [each for each in client.batches.held(project, dataset) if each.partition == partition]
            if not held:
                raise
            taken.append(_Taken(fresh[0].place, fresh[-1].place, held[0].at))
            raise Aside(error.subject, error.value, error.verdict, error.way_out) from None
        taken.append(_Taken(fresh[0].place, fresh[-1].place, batch.at))
        return batch.rows

    return deliver


def _columns(client: Client, project: str, dataset: str) -> list[str]:
    """Return the columns that every batch of the data set has; none before the first."""
    batch = next(client.batches.list(project, dataset, page=1), None)
    return [column.name for column in batch.columns] if batch else []


def _taken(client: Client, project: str, dataset: str, message: Message) -> list[_Taken]:
    """Return which places of the stream of `message` are in batches of the data set, or held back from it."""
    stream, former = message.stream, message.former or message.stream
    new = re.compile(re.escape(stream) + r"\.([0-9a-z]+)\.([0-9a-z]+)")
    old = re.compile(re.escape(former) + r"-(\d+)-(\d+)")
    there = [(each.partition, each.at) for each in client.batches.held(project, dataset)]
    for prefix in (f"{stream}.", f"{former}-"):
        batches = client.batches.list(project, dataset, current=False, prefix=prefix)
        there += [(each.partition, each.at) for each in batches]
    found = list[_Taken]()
    for partition, at in there:
        if named := new.fullmatch(partition):
            found.append(_Taken(int(named[1], 36), int(named[2], 36), at))
        elif named := old.fullmatch(partition):
            found.append(_Taken(int(named[1]), int(named[2]), at, former=True))
    return found


def _frame(messages: Sequence[Message], columns: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    try:
        return pl.DataFrame([_filled(message, columns) for message in messages], infer_schema_length=None)
    except (TypeError, ValueError, OverflowError, RecursionError, pl.exceptions.PolarsError) as error:
        raise _no_rows(messages, error) from None


def _no_rows(messages: Sequence[Message], error: Exception) -> BadInput:
    return BadInput(
        f"messages of {messages[0].stream!r}",
        messages[0].place,
        f"do not make a frame: {error}",
        "give each field one type",
    )


def _filled(message: Message, names: Sequence[str]) -> dict[str, Any]:
    """Return what a message says, and None for those of `names` that it leaves out. Raises BadInput if it has none of them."""
    said = row(message)
    if names and said.keys().isdisjoint(names):
        way_out = f"send one at least {near_miss('', names)}"
        raise BadInput(f"message of {message.stream!r}", message.place, "has none of the fields", way_out)
    return {**dict.fromkeys(names), **said}


def row(message: Message) -> dict[str, Any]:
    """Return what a message says. Raises BadInput unless it is a JSON object."""
    try:
        return msgspec.json.decode(message.body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadInput(
            f"message of {message.stream!r}", message.place, f"is not a JSON object: {error}", "send one row a message"
        ) from None


def stream_name(topic: str, partition: int) -> str:
    """Return the name of a partition of a topic; it goes into names of batches, and no other topic has it."""
    if len(topic) <= LONGEST and ids.NAME.fullmatch(topic) and not re.search("-[0-9a-f]{8}$", topic):
        return f"{topic}-{partition}"
    slug = re.sub(r"[^a-z0-9_-]", "_", topic.lower()).lstrip("_-0123456789") or "topic"
    return f"{slug[:11]}-{hashlib.sha256(topic.encode()).hexdigest()[:8]}-{partition}"


def former_name(topic: str, partition: int) -> str:
    """Return what `stream_name` once was: not one topic's alone."""
    return f"{re.sub(r'[^a-z0-9_-]', '_', topic.lower())[:50]}-{partition}"


def _base36(number: int) -> str:
    digits = ""
    while number >= 36:
        number, digit = divmod(number, 36)
        digits = DIGITS[digit] + digits
    return DIGITS[number] + digits


def moment(milliseconds: int) -> datetime:
    """Return the time so long after 1970, in UTC; 1970 itself for a time that can't be told, which a sender may have set."""
    try:
        return EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return EPOCH


__all__ = [
    "Aside", "Broker", "Count", "Message", "consume", "former_name", "moment", "row", "stream_name", "to_dataset", "to_view",
]  # fmt: skip
