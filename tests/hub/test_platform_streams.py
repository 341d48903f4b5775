"""Topics of Kafka and Redis into views and raw data sets: late, double and broken messages, and consumers that are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from feature_world import DAY, definitions, new_state, service, work
from kafka_cluster import kafka_cluster

from cellwork.client import Client
from cellwork.errors import Unavailable
from cellwork.features import brokers, streams
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import PushRequest
from cellwork_hub.platform import feature_online
from cellwork_hub.platform.state import State

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def kafka() -> Iterator[tuple[str, Any]]:
    with kafka_cluster() as cluster:
        yield cluster


@pytest.fixture
def state(tmp_path: Path) -> State:
    return new_state(tmp_path / "home")


@pytest.fixture
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        connected.batches.declare("air", RawDataset(name="flights"))
        connected.features.apply(definitions())
        yield connected


@dataclass
class Topic:
    """A topic of its own, on one of the brokers."""

    kind: str
    address: str
    producer: Any
    name: str

    def send(self, *bodies: bytes) -> None:
        for body in bodies:
            if self.kind == "kafka":
                self.producer.produce(self.name, body, partition=0)
            else:
                self.producer.xadd(self.name, {"row": body})
        if self.kind == "kafka":
            assert self.producer.flush(20) == 0

    def open(self) -> streams.Broker:
        if self.kind == "kafka":
            return brokers.Kafka(self.address, self.name, f"tests-{self.name}")
        return brokers.RedisStream(self.address, self.name, f"tests-{self.name}")

    def arguments(self) -> list[str]:
        return [self.name, f"--{self.kind}", self.address, "--group", f"tests-{self.name}"]


@pytest.fixture(params=["kafka", "redis"])
def topic(request: pytest.FixtureRequest) -> Topic:
    name = f"clicks_{uuid.uuid4().hex[:8]}"
    if request.param == "kafka":
        return Topic("kafka", *request.getfixturevalue("kafka"), name)
    import redis

    url = request.getfixturevalue("redis_url")
    return Topic("redis", url, redis.Redis.from_url(url), name)


def event(origin: str, hour: float, count: int) -> bytes:
    at = (DAY + hour * HOUR).isoformat()
    return msgspec.json.encode(
        {"origin": origin, "flights": count, "delay": 1.0, "event_timestamp": at, "created_timestamp": at}
    )


def drain(topic: Topic, deliver: Any, expected: int, seconds: float = 120) -> streams.Count:
    """Consume until `expected` messages were taken."""
    broker, end, seen = topic.open(), time.monotonic() + seconds, streams.Count()

    def tell(count: streams.Count) -> None:
        seen.messages = count.messages

    try:
        return streams.consume(
            broker, deliver, stop=lambda: seen.messages >= expected or time.monotonic() > end, seconds=0.3, tell=tell
        )
    finally:
        broker.close()


def online(client: Client, origin: str) -> Any:
    return client.features.online("air", ["late"], {"origin": [origin]}).views["late"][0].values["flights"]


def test_late_and_double_events_change_nothing_and_all_are_in_the_history(topic, client):
    topic.send(event("JFK", 5, 5), event("JFK", 3, 3), event("JFK", 5, 5), event("LGA", 1, 1), event("JFK", 5, 5))
    count = drain(topic, streams.to_view(client, "air", "late"), 5)
    assert (count.messages, count.refused) == (5, [])
    assert (online(client, "JFK"), online(client, "LGA")) == (5, 1)
    rows = client.features.rows("air", "late").sort("origin", "event_timestamp")
    assert rows.select("origin", "flights").rows() == [("JFK", 3), ("JFK", 5), ("LGA", 1)]


def test_a_broken_message_is_set_aside_and_the_others_do_not_wait(topic, client):
    topic.send(event("JFK", 1, 1), b"not json", b'{"origin": "LGA"}', event("LGA", 2, 2))
    count = drain(topic, streams.to_view(client, "air", "late"), 4)
    assert count.messages == 4
    assert len(count.refused) == 2
    no_object, no_time = sorted(count.refused, key=lambda words: "event_timestamp" in words)
    assert "is not a JSON object" in no_object
    assert "event_timestamp" in no_time
    assert (online(client, "JFK"), online(client, "LGA")) == (1, 2)


def flight(number: int) -> bytes:
    planned = (DAY + number * HOUR).isoformat()
    return msgspec.json.encode(
        {"id": number, "origin": "JFK" if number % 2 else "LGA", "planned": planned, "delay": float(number)}
    )


def test_a_topic_becomes_batches_that_start_their_pipelines(topic, client, state):
    definition = definitions()
    definition.prepared[0].sql = (
        definition.prepared[0]
        .sql.replace("*, planned + ", "* REPLACE (planned::TIMESTAMPTZ AS planned), planned::TIMESTAMPTZ + ")
        .replace("planned - INTERVAL", "planned::TIMESTAMPTZ - INTERVAL")
    )
    client.features.apply(definition)
    topic.send(*(flight(number) for number in range(20)))
    assert drain(topic, streams.to_dataset(client, "air", "flights"), 20).messages == 20
    counted = client.features.online("air", ["late"], {"origin": ["JFK", "LGA"]})
    assert all(value.values["flights"] for value in counted.views["late"]), counted  # before any pipeline run
    work(state)
    assert client.features.online("air", ["late"], {"origin": ["JFK", "LGA"]}) == counted
    assert client.features.rows("air", "late").height > 0
    assert sorted(client.batches.rows("air", "flights")["id"]) == list(range(20))


def test_what_is_given_out_again_is_not_ingested_again(client):
    message = [streams.Message("t-0", place, DAY, flight(place)) for place in range(6)]
    assert streams.to_dataset(client, "air", "flights")(message[:4]) == 4
    assert streams.to_dataset(client, "air", "flights")(message[2:]) == 2
    assert streams.to_dataset(client, "air", "flights")(message) == 0
    assert sorted(client.batches.rows("air", "flights")["id"]) == list(range(6))


def taken(broker: streams.Broker, expected: int) -> list[streams.Message]:
    found, end = list[streams.Message](), time.monotonic() + 120
    while len(found) < expected and time.monotonic() < end:
        found += broker.poll(expected, 0.3)
    return found


def test_a_partition_that_another_consumer_had_meanwhile_loses_and_doubles_nothing(kafka, client):
    """The first one is silent for so long that the broker gives its partition to the second, which ingests and ends before it acknowledges."""
    topic = Topic("kafka", *kafka, f"passed_{uuid.uuid4().hex[:8]}")
    silent = {"max.poll.interval.ms": 6000, "session.timeout.ms": 6000, "log_level": 0}
    first = brokers.Kafka(topic.address, topic.name, "tests", options=silent)
    deliver = streams.to_dataset(client, "air", "flights")
    topic.send(*map(flight, range(3)))
    old = taken(first, 3)
    assert deliver(old) == 3
    first.acknowledge(old)
    topic.send(*map(flight, range(3, 6)))
    second = brokers.Kafka(topic.address, topic.name, "tests", options=silent)
    passed = taken(second, 3)
    assert [message.place for message in passed] == [3, 4, 5]
    assert streams.to_dataset(client, "air", "flights")(passed) == 3
    first.acknowledge(old)  # it does not know yet that they are no longer its own
    second.close()
    again = taken(first, 3)
    first.acknowledge(again)
    first.close()
    assert [message.place for message in again] == [3, 4, 5]
    assert deliver(again) == 0
    assert sorted(client.batches.rows("air", "flights")["id"]) == list(range(6))


def test_a_distinct_push_leaves_out_what_is_there_but_offers_it_online(client, state):
    rows = [msgspec.json.decode(event("JFK", hour, hour)) for hour in (1, 2)]
    client.features.push("late", PushRequest(project="air", rows=rows, distinct=True))
    with feature_online.opened(state, "air") as store:
        store.activate("late", None)
    client.features.push("late", PushRequest(project="air", rows=[*rows, *rows], distinct=True))
    assert online(client, "JFK") == 2
    assert client.features.rows("air", "late").height == 2


def test_a_broker_that_is_not_there_is_named():
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        brokers.RedisStream("redis://127.0.0.1:1/0", "t", "g")


def consumer(topic: Topic, client: Client, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "CELLWORK_URL": client.connection.url, "CELLWORK_TOKEN": "token"}
    command = [
        str(Path(sys.executable).with_name("cellwork")),
        "feature",
        "consume",
        *topic.arguments(),
        "--project",
        "air",
        *more,
    ]
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("into", ["view", "dataset"])
def test_a_consumer_killed_at_random_moments_loses_and_doubles_nothing(into, redis_url, client, tmp_path):
    import redis

    generator = random.Random(20131101)
    topic = Topic("redis", redis_url, redis.Redis.from_url(redis_url), f"killed_{uuid.uuid4().hex[:8]}")
    make = (lambda n: event(f"n{n % 7}", n, n)) if into == "view" else flight
    more = ["--view", "late"] if into == "view" else ["--dataset", "flights"]
    sent = 0
    for _ in range(4):
        process = consumer(topic, client, tmp_path, *more)
        until = time.monotonic() + 2.5 + 2 * generator.random()
        while time.monotonic() < until:
            topic.send(*(make(sent + n) for n in range(3)))
            sent += 3
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    deliver = streams.to_view(client, "air", "late") if into == "view" else streams.to_dataset(client, "air", "flights")
    broker = topic.open()
    idle = iter(range(10_000))
    streams.consume(broker, deliver, stop=lambda: next(idle) > 3 and _pending(topic) == 0, seconds=0.2)
    broker.close()
    column = (
        client.features.rows("air", "late")["flights"]
        if into == "view"
        else client.batches.rows("air", "flights")["id"]
    )
    assert column.sort().to_list() == list(range(sent))


def _pending(topic: Topic) -> int:
    group = topic.producer.xinfo_groups(topic.name)[0]
    return int(group["pending"]) + int(group["lag"] or 0)
