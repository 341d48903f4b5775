"""Brokers of `streams`: Kafka by librdkafka, and Redis Streams. Both deliver at least once to a named group of consumers.

Outlets write what such consumers read: when `send` returns, the broker has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import zip_longest
from typing import Any

import msgspec

from cellwork.errors import Unavailable
from cellwork.features.streams import Message, former_name, moment, stream_name

SEND_SECONDS = 20
"""How long Kafka may take to say that it has a message."""


class Kafka:
    """A topic of Kafka. Offsets are committed only by `acknowledge`, and then at once.

    Parameters
    ----------
    servers : ``host:port`` of some brokers, by commas.
    options : more of librdkafka's own settings.
    """

    def __init__(self, servers: str, topic: str, group: str, *, options: Mapping[str, Any] | None = None) -> None:
        from confluent_kafka import Consumer

        own = {
            "bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "error_cb": self._failed,
        }  # fmt: skip
        self.servers, self._down, self._given = servers, "", 0
        self._consumer = Consumer({**own, **(options or {})})
        self._consumer.subscribe([topic], on_assign=self._assigned)

    def poll(self, most: int, seconds: float) -> list[Message]:
        from confluent_kafka import KafkaException

        try:
            found = self._consumer.consume(most, timeout=seconds)
        except KafkaException as error:
            raise self._unavailable(str(error)) from None
        if not found and self._down:
            why, self._down = self._down, ""
            raise self._unavailable(why)
        return [self._message(each) for each in found if each.error() is None]

    def acknowledge(self, messages: Sequence[Message]) -> None:
        from confluent_kafka import KafkaError, KafkaException

        passed_on = KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS
        try:
            if messages:
                self._consumer.commit(message=messages[-1].token, asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() not in passed_on:
                raise self._unavailable(str(error)) from None

    def close(self) -> None:
        self._consumer.close()

    def _message(self, each: Any) -> Message:
        stream, at = stream_name(each.topic(), each.partition()), moment(each.timestamp()[1])
        former = former_name(each.topic(), each.partition())
        return Message(stream, each.offset(), at, each.value() or b"", each, each.key(), self._given, former)

    def _assigned(self, *_: Any) -> None:
        self._given += 1

    def _failed(self, error: Any) -> None:
        from confluent_kafka import KafkaError

        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = error.str()

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable("Kafka", self.servers, f"does not answer ({why})", "start it, or mend --kafka")


class KafkaOutlet:
    """Writes to a topic of Kafka; what librdkafka itself sends again is there once."""

    def __init__(self, servers: str, topic: str, *, options: Mapping[str, Any] | None = None) -> None:
        from confluent_kafka import Producer

        self.servers, self.topic = servers, topic
        own = {"bootstrap.servers": servers, "enable.idempotence": True, "delivery.timeout.ms": SEND_SECONDS * 1000}
        self._producer = Producer({**own, **(options or {})})

    def send(self, bodies: Sequence[bytes], keys: Sequence[bytes | None] = ()) -> None:
        """Append messages, each with its key. Raises Unavailable if the broker does not say that it has all of them."""
        failed: list[str] = []

        def told(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error.str())

        for body, key in zip_longest(bodies, keys):
            self._producer.produce(self.topic, body, key=key, on_delivery=told)
            self._producer.poll(0)
        left = self._producer.flush(2 * SEND_SECONDS)
        if failed or left:
            why = f"does not take messages for {self.topic!r} ({failed[0] if failed else 'no word of it'})"
            raise Unavailable("Kafka", self.servers, why, "start it, or mend --kafka")

    def close(self) -> None:
        self._producer.flush(1)


class RedisStream:
    """A stream of Redis. What a killed consumer of the group left unacknowledged is given out again first.

    Messages have either one field ``row`` with a JSON object, or the row's fields themselves, each a JSON value or a text.
    """

    def __init__(self, url: str, topic: str, group: str, *, consumer: str = "one") -> None:
        import redis

        self.url, self.topic, self.group, self.consumer = url, topic, group, consumer
        self._redis = redis.Redis.from_url(url, socket_timeout=30, socket_connect_timeout=5)
        self._stream, self._former = stream_name(topic, 0), former_name(topic, 0)
        self._claim, self._after, self._given = True, "0", 0
        with self._answering():
            try:
                self._redis.xgroup_create(topic, group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    def poll(self, most: int, seconds: float) -> list[Message]:
        """First what was given out and not acknowledged, then what is new."""
        with self._answering():
            if self._claim:
                found: Any = self._redis.xautoclaim(
                    self.topic, self.group, self.consumer, min_idle_time=0, start_id=self._after, count=most
                )
                self._after = found[0]
                self._claim = found[0] != b"0-0"
                self._given += 1  # another consumer may have delivered these
                if found[1]:
                    return [self._message(*each) for each in found[1]]
            answer = self._redis.xreadgroup(
                self.group, self.consumer, {self.topic: ">"}, count=most, block=max(1, int(seconds * 1000))
            )
        streams: Any = answer or []
        return [self._message(*each) for _, messages in streams for each in messages]

    def acknowledge(self, messages: Sequence[Message]) -> None:
        with self._answering():
            self._redis.xack(self.topic, self.group, *[message.token for message in messages])

    def close(self) -> None:
        self._redis.close()

    def _message(self, token: bytes, fields: dict[bytes, bytes]) -> Message:
        milliseconds, number = (int(part) for part in token.split(b"-"))
        body = fields[b"row"] if set(fields) == {b"row"} else _object(fields)
        place, at = milliseconds * 1_000_000 + number, moment(milliseconds)
        return Message(self._stream, place, at, body, token, given=self._given, former=self._former)

    def _answering(self) -> AbstractContextManager[None]:
        return _answering(self.url)


class RedisOutlet:
    """Writes to a stream of Redis, each message as the field ``row``."""

    def __init__(self, url: str, topic: str) -> None:
        import redis

        self.url, self.topic = url, topic
        self._redis = redis.Redis.from_url(url, socket_timeout=30, socket_connect_timeout=5)

    def send(self, bodies: Sequence[bytes], keys: Sequence[bytes | None] = ()) -> None:
        """Append messages, all or none of them. A stream of Redis has no keys: its order is that of all."""
        with _answering(self.url), self._redis.pipeline() as pipeline:
            for body in bodies:
                pipeline.xadd(self.topic, {"row": body})
            pipeline.execute()

    def close(self) -> None:
        self._redis.close()


@contextmanager
def _answering(url: str) -> Iterator[None]:
    import redis

    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise Unavailable("Redis", url, f"does not answer ({error})", "start it, or mend --redis") from None


def _object(fields: Mapping[bytes, bytes]) -> bytes:
    values: dict[str, Any] = {}
    for name, text in fields.items():
        value: Any = msgspec.Raw(text)
        try:
            msgspec.json.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            value = text.decode(errors="replace")
        values[name.decode(errors="replace")] = value
    return msgspec.json.encode(values)
