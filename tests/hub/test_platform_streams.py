"""Topics of Kafka and Redis into views and raw data sets: late, double and broken messages, and consumers that are killed."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import DAY, definitions, new_state, service, work
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka_cluster import kafka_cluster

from cellwork import clock
from cellwork.cli import main
from cellwork.client import Client
from cellwork.data.delivery import partition_key
from cellwork.errors import BadInput, Conflict, Refused, Unavailable
from cellwork.features import brokers, streams
from cellwork.wire.batches import Check, RawDataset
from cellwork.wire.features import Aggregate, Field, PushRequest
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
    topic.send(event("JFK", 1, 1), b"not json", b'{"origin": "LGA", "flights": 1}', event("LGA", 2, 2))
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


@dataclass
class Given:
    """A broker that has given out `messages`, once each, and is gone then."""

    messages: list[streams.Message]
    acknowledged: list[int] = field(default_factory=list)

    def poll(self, most: int, seconds: float) -> list[streams.Message]:
        if not self.messages:
            raise Unavailable("broker", "", "is gone", "")
        found, self.messages = self.messages[:most], self.messages[most:]
        return found

    def acknowledge(self, messages: Sequence[streams.Message]) -> None:
        self.acknowledged += [message.place for message in messages]

    def close(self) -> None: ...

    def into(self, deliver: Any, **more: Any) -> streams.Count:
        return streams.consume(self, deliver, stop=lambda: not self.messages, **more)


def of_topic(topic: str, *bodies: bytes, partition: int = 0, first: int = 0) -> list[streams.Message]:
    names = streams.stream_name(topic, partition), streams.former_name(topic, partition)
    return [streams.Message(names[0], first + number, DAY, body, former=names[1]) for number, body in enumerate(bodies)]


topics = st.one_of(st.text(min_size=1), st.text("abcXYZ019._-", min_size=1, max_size=80))


@settings(deadline=None)
@given(st.lists(topics, unique=True, max_size=8))
def test_each_stream_has_a_name_that_leaves_room_for_places(topics):
    names = [streams.stream_name(topic, 2**31 - 1) for topic in topics]
    assert len(set(names)) == len(topics)
    assert len({streams.stream_name(topic, number) for topic in topics for number in (0, 1)}) == 2 * len(topics)
    for name in names:
        partition_key(f"{name}.{'z' * 13}.{'z' * 13}")  # the places of Kafka
        partition_key(f"{name.removesuffix(str(2**31 - 1))}0.{'z' * 17}.{'z' * 17}")  # those of Redis
    assert streams.stream_name("clicks", 3) == "clicks-3"


@pytest.mark.parametrize(("partition", "place"), [(2**31 - 1, 2**63 - 2), (0, (2**64 - 1) * 1_000_000)])
def test_messages_of_any_topic_and_place_are_kept(partition, place, client):
    broker = Given(of_topic("9.Warehouse" + "x" * 230, flight(0), flight(1), partition=partition, first=place))
    count = broker.into(streams.to_dataset(client, "air", "flights"))
    assert (count.rows, count.refused, broker.acknowledged) == (2, [], [place, place + 1])
    again = of_topic("9.Warehouse" + "x" * 230, flight(0), flight(1), flight(2), partition=partition, first=place)
    assert streams.to_dataset(client, "air", "flights")(again) == 1
    assert sorted(client.batches.rows("air", "flights")["id"]) == [0, 1, 2]


def test_topics_whose_names_look_alike_are_not_taken_for_each_other(client):
    for number, topic in enumerate(("orders.eu", "orders_eu", "Orders_eu", "o" * 50 + "1", "o" * 50 + "2")):
        assert streams.to_dataset(client, "air", "flights")(of_topic(topic, flight(number))) == 1
    assert sorted(client.batches.rows("air", "flights")["id"]) == list(range(5))


def test_what_another_consumer_of_a_stream_had_in_hand_is_not_behind(client):
    """A killed one had the first messages when another delivered later ones."""
    messages = of_topic("clicks", *map(flight, range(4)))
    assert streams.to_dataset(client, "air", "flights")(messages[2:]) == 2
    assert streams.to_dataset(client, "air", "flights")(messages) == 2
    assert sorted(client.batches.rows("air", "flights")["id"]) == list(range(4))


def test_a_consumer_of_redis_takes_over_what_another_left_before_later_batches(redis_url, client):
    import redis

    topic = Topic("redis", redis_url, redis.Redis.from_url(redis_url), f"left_{uuid.uuid4().hex[:8]}")
    other = topic.open()
    assert other.poll(500, 0.01) == []  # nobody has left anything yet
    killed = topic.open()
    topic.send(flight(0), flight(1))
    assert len(killed.poll(500, 5)) == 2
    topic.send(flight(2), flight(3))
    later = other.poll(500, 5)
    assert streams.to_dataset(client, "air", "flights")(later) == 2
    other.acknowledge(later)
    killed.close()
    assert drain(topic, streams.to_dataset(client, "air", "flights"), 2).rows == 2
    assert sorted(client.batches.rows("air", "flights")["id"]) == list(range(4))


def test_batches_that_are_named_as_they_once_were_are_known(client):
    for topic, number in (("clicks", 0), ("clicks.eu", 10)):
        rows = [msgspec.json.decode(flight(number + place)) for place in range(2)]
        client.batches.ingest("air", "flights", pl.DataFrame(rows), f"{topic.replace('.', '_')}-0-0-1")
        messages = of_topic(topic, *(flight(number + place) for place in range(3)))
        assert streams.to_dataset(client, "air", "flights")(messages) == 1
    assert sorted(client.batches.rows("air", "flights")["id"]) == [0, 1, 2, 10, 11, 12]


def test_a_batch_named_as_it_once_was_has_no_message_that_came_after_it(client, monkeypatch):
    """It may be another topic's: ``clicks.eu`` and ``clicks_eu`` were one name."""
    client.batches.ingest("air", "flights", pl.DataFrame([msgspec.json.decode(flight(0))]), "clicks_eu-0-0-0")
    monkeypatch.setattr(streams, "CLOCKS", -HOUR)  # as if the batch were there for an hour
    message = dataclasses.replace(of_topic("clicks_eu", flight(1))[0], arrived=clock.now())
    assert streams.to_dataset(client, "air", "flights")([message]) == 1
    assert sorted(client.batches.rows("air", "flights")["id"]) == [0, 1]


def test_a_topic_that_was_begun_anew_is_told_not_dropped(client, monkeypatch):
    deliver = streams.to_dataset(client, "air", "flights")
    assert deliver(of_topic("clicks", flight(0), flight(1))) == 2
    monkeypatch.setattr(streams, "CLOCKS", -HOUR)  # as if the batch were there for an hour
    now = clock.now()
    anew = [dataclasses.replace(message, arrived=now) for message in of_topic("clicks", flight(8), flight(9))]
    for each in (deliver, streams.to_dataset(client, "air", "flights")):
        broker = Given(list(anew))
        with pytest.raises(Conflict, match="begun anew"):
            broker.into(each)
        assert broker.acknowledged == []
    to_come = [dataclasses.replace(message, arrived=now + 48 * HOUR) for message in anew]
    assert deliver(to_come) == 0  # the sender's clock is wrong, which says nothing of the topic
    assert streams.to_dataset(client, "air", "others")(anew) == 2


ODD = {
    "a number beyond all": b'{"delay": 123456789012345678901234567890123456789012}',
    "nothing within": b'{"delay": {}}',
    "depth": b'{"delay": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=list(ODD))
@pytest.mark.parametrize("into", ["view", "dataset"])
def test_one_odd_message_does_not_stop_a_topic(into, odd, client):
    good = event("JFK", 1, 1) if into == "view" else flight(1)
    deliver = streams.to_view(client, "air", "late") if into == "view" else streams.to_dataset(client, "air", "flights")
    told: list[str] = []
    broker = Given(of_topic("clicks", good, good[:-1] + b", " + odd[1:]))
    count = broker.into(deliver, refused=told.append)
    assert (count.messages, count.rows, count.aside, broker.acknowledged) == (2, 1, 1, [0, 1])
    assert told == count.refused


def test_fields_of_redis_that_are_no_text_and_numbers_of_any_length_are_told(redis_url, client):
    import redis

    topic = Topic("redis", redis_url, redis.Redis.from_url(redis_url), f"odd_{uuid.uuid4().hex[:8]}")
    topic.producer.xadd(topic.name, {b"\xff\xfe": b"1", b"id": b"1"})
    topic.producer.xadd(topic.name, {b"id": b"2", b"phone": b"123456789012345678901234567890123456789012"})
    topic.producer.xadd(topic.name, {b"id": b"7", b"\xff\xfe": b"2"})
    count = drain(topic, streams.to_dataset(client, "air", "odd"), 3)
    assert (count.rows, count.aside) == (2, 1)
    assert "too large" in count.refused[0]
    assert client.batches.rows("air", "odd")["id"].to_list() == [1, 7]


def test_a_column_that_a_message_leaves_out_is_null_whatever_is_polled_with_it(client):
    client.batches.declare("air", RawDataset(name="orders", key=["id"]))
    deliver = streams.to_dataset(client, "air", "orders")
    assert deliver(of_topic("orders", b'{"id": 0, "coupon": "x"}', b'{"id": 1}')) == 2
    bare = b'{"id": 2}', b"not json", b'{"id": 4}', b"{}", b'{"coupon": "y"}', b'{"id": 7, "cupon": "z"}'
    for each in (deliver, streams.to_dataset(client, "air", "orders")):
        assert each(of_topic("orders", b'{"id": 0}')) == 0
        count = Given(of_topic("orders", *bare, first=2)).into(each)
        assert [words.split(":")[0] for words in count.refused] == [f"orders-0 {place}" for place in (3, 5, 6, 7)]
    assert "'id' is null" in count.refused[-2]
    rows = client.batches.rows("air", "orders").sort("id")
    assert rows.select("id", "coupon").rows() == [(0, "x"), (1, None), (2, None), (4, None)]


def test_a_field_that_a_message_leaves_out_is_null_whatever_is_polled_with_it(client):
    def late(**said: Any) -> bytes:
        return msgspec.json.encode({"event_timestamp": DAY.isoformat(), **said})

    deliver = streams.to_view(client, "air", "late")
    broker = Given(of_topic("late", late(origin="JFK", flights=1), late(flights=2), b'{"origin": "EWR", "flights": 3}'))
    count = broker.into(deliver)
    assert (count.rows, count.aside) == (1, 2)
    wider = definitions()
    wider.views[0].fields.append(Field(name="gust", type="Float64"))
    wider.views[0].pipeline.aggregates["gust"] = Aggregate(function="mean", column="delay")
    client.features.apply(wider)
    count = Given(of_topic("late", late(origin="LGA", flights=4), late(origin="LGA", guts=5))).into(deliver)
    assert (count.rows, count.aside) == (1, 1)
    assert "has none of the fields" in count.refused[0]
    assert online(client, "LGA") == 4


def test_a_consumer_asks_for_batches_of_its_own_streams_alone(client):
    for partition in ("a_b-0.0.1", "axb-0.0.1", "a_b-0.2.3", "a_b-01.0.1", "A_b-0.0.1"):
        client.batches.ingest("air", "flights", pl.DataFrame([msgspec.json.decode(flight(1))]), partition)
    found = client.batches.list("air", "flights", current=False, prefix="a_b-0.", page=1)
    assert [batch.partition for batch in found] == ["a_b-0.0.1", "a_b-0.2.3"]


def test_a_time_that_no_calendar_has_is_1970():
    assert streams.moment(10**18) == streams.moment(0) == streams.moment(-(10**18))
    assert streams.moment(1_757_000_000_123).isoformat() == "2025-09-04T15:33:20.123000+00:00"


def test_what_a_check_holds_back_is_told_and_acknowledged_and_known(client):
    client.batches.declare("air", RawDataset(name="checked", checks=[Check(column="delay", least=1.0)]))
    messages = of_topic("clicks", flight(0), flight(1))
    broker = Given(list(messages))
    count = broker.into(streams.to_dataset(client, "air", "checked"))
    assert (count.messages, count.rows, count.aside, broker.acknowledged) == (2, 0, 2, [0, 1])
    assert "cellwork data release" in count.refused[0]
    held = client.batches.held("air", "checked")
    assert [each.rows for each in held] == [2]
    assert streams.to_dataset(client, "air", "checked")([*messages, *of_topic("clicks", flight(2), first=2)]) == 1
    client.batches.release("air", "checked", held[0].id, "they left early")
    assert streams.to_dataset(client, "air", "checked")(messages) == 0
    assert sorted(client.batches.rows("air", "checked")["id"]) == [0, 1, 2]


def test_a_consumer_that_may_not_write_acknowledges_nothing(client, monkeypatch):
    def refused(*_: Any, **__: Any) -> Any:
        raise Refused("token", "", "may not write", "ask an owner")

    monkeypatch.setattr(client.features, "stream", refused)
    broker = Given(of_topic("clicks", flight(0)))
    with pytest.raises(Refused, match="may not write"):
        broker.into(streams.to_dataset(client, "air", "flights"))
    assert broker.acknowledged == []


def test_names_that_are_none_are_said_before_a_message_is_taken(client):
    for project, dataset in (("Air", "flights"), ("air", "my flights")):
        with pytest.raises(BadInput, match="is not a name"):
            streams.to_dataset(client, project, dataset)
    with pytest.raises(BadInput, match="is not a name"):
        streams.to_view(client, "Air", "late")


def test_the_command_tells_what_is_set_aside_as_it_happens(client, monkeypatch):
    broker = Given(of_topic("clicks", b"not json", flight(1)))
    monkeypatch.setattr(brokers, "RedisStream", lambda *_: broker)
    monkeypatch.setattr("cellwork.client.connect", lambda: client)
    asked = ["feature", "consume", "clicks", "--redis", "redis://there", "--dataset", "flights", "--project", "air"]
    answer = CliRunner().invoke(main, asked)
    assert broker.acknowledged == [0, 1]
    assert "set aside: clicks-0 0: message of 'clicks-0'" in answer.stderr
    assert "is gone" in str(answer.exception) + answer.stderr


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
        process.wait(60)
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
