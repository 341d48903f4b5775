"""A topic in, predictions out: each message is in the log once, poison goes aside with a reason, and a killed consumer goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import serving_world as world
from kafka_cluster import kafka_cluster
from ports import free_port
from running import wait_for

from cellwork.client import Client
from cellwork.errors import NotFound, Unavailable
from cellwork.features import brokers, streams
from cellwork.serving import topic as topics
from cellwork.serving.topic import Scoring
from cellwork.wire.endpoints import Deploy, Prediction
from cellwork.wire.topics import TopicAnswer, TopicRefusal
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

SHAKY = "shop/shaky"
T = TypeVar("T")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("topic")
    context, folders = world.context(home / "home"), world.Folders()
    folders.add(world.saved(1, home / "1"), 1)
    folders.add(world.save(world.fragile(), world.FRAME[["visits"]], home / "9"), 9)

    def service() -> FrontDoor:
        return build(context, authorise=world.authorise, registry=folders, lookup=lambda project, needed: {})

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        client.endpoints.deploy(SHAKY, Deploy(version=9, model=world.MODEL))
        yield client


@pytest.fixture(scope="module")
def kafka() -> Iterator[tuple[str, Any]]:
    with kafka_cluster() as cluster:
        yield cluster


@dataclass
class Topics:
    """Three topics of their own, on one of the brokers: what comes, what was answered, what was refused."""

    kind: str
    address: str
    name: str

    @property
    def of_answers(self) -> str:
        return f"{self.name}.answers"

    @property
    def of_refusals(self) -> str:
        return f"{self.name}.answers.refused"

    def writes(self, name: str) -> Any:
        return (brokers.KafkaOutlet if self.kind == "kafka" else brokers.RedisOutlet)(self.address, name)

    def reads(self, name: str, group: str = "tests") -> Any:
        opened = brokers.Kafka if self.kind == "kafka" else brokers.RedisStream
        return opened(self.address, name, f"{group}-{name}")

    def send(self, *bodies: bytes) -> None:
        self.writes(self.name).send(bodies)

    def scoring(self, client: Client, endpoint: str = world.MODEL) -> Scoring:
        return Scoring(client, endpoint, self.name, self.writes(self.of_answers), self.writes(self.of_refusals))

    def answered(self, expected: int, of: frozenset[str] = frozenset()) -> list[TopicAnswer]:
        """Return the answers when there are as many as expected, and one to each prediction `of`."""
        return self._all(
            self.of_answers, TopicAnswer, lambda a: len(a) >= expected and of <= {each.prediction for each in a}
        )

    def refused(self, expected: int) -> list[TopicRefusal]:
        return self._all(self.of_refusals, TopicRefusal, lambda found: len(found) >= expected)

    def _all(self, name: str, kind: type[T], enough: Callable[[list[T]], bool]) -> list[T]:
        def decoded(messages: list[streams.Message]) -> list[T]:
            return [msgspec.json.decode(message.body, type=kind) for message in messages]

        return decoded(self.messages(name, lambda found: enough(decoded(found))))

    def messages(self, name: str, enough: Callable[[list[streams.Message]], bool]) -> list[streams.Message]:
        broker, found, end = self.reads(name, uuid.uuid4().hex[:6]), list[streams.Message](), time.monotonic() + 60
        while not enough(found) and time.monotonic() < end:
            found += broker.poll(500, 0.2)
        broker.close()
        return found


@pytest.fixture(params=["kafka", "redis"])
def topic(request: pytest.FixtureRequest) -> Topics:
    name = f"rows_{uuid.uuid4().hex[:8]}"
    address = request.getfixturevalue("kafka")[0] if request.param == "kafka" else request.getfixturevalue("redis_url")
    return Topics(request.param, address, name)


def body(visits: float | None, **more: Any) -> bytes:
    return msgspec.json.encode({"features": {"visits": visits, "plan": "free"}, **more})


def consumed(topic: Topics, scoring: Scoring, expected: int) -> streams.Count:
    """Consume until `expected` messages were acknowledged."""
    broker, end, seen = topic.reads(topic.name), time.monotonic() + 60, streams.Count()

    def tell(count: streams.Count) -> None:
        seen.messages = count.messages

    try:
        done = lambda: seen.messages >= expected or time.monotonic() > end  # noqa: E731
        return streams.consume(broker, scoring, stop=done, seconds=0.2, tell=tell)
    finally:
        broker.close()


def logged(client: Client, endpoint: str, after: int) -> list[Prediction]:
    return client.endpoints.predictions(endpoint, after=after, limit=10_000)


def newest(client: Client, endpoint: str) -> int:
    found = client.endpoints.predictions(endpoint, after=-1)
    return found[0].seq if found else 0


def test_each_message_is_answered_into_the_other_topic_and_is_in_the_log(topic: Topics, client: Client) -> None:
    before = newest(client, world.MODEL)
    topic.send(*(body(float(visits), observation=f"o{visits}") for visits in range(30)))
    count = consumed(topic, topic.scoring(client), 30)
    assert (count.messages, count.rows, count.refused) == (30, 30, [])
    answers, log = topic.answered(30), logged(client, world.MODEL, before)
    assert sorted(a.observation for a in answers) == sorted(f"o{visits}" for visits in range(30))
    assert {a.prediction: (a.score, a.observation, a.version.version) for a in answers} == {
        p.id: (p.score, p.observation, 1) for p in log
    }
    assert len(log) == 30


def test_what_is_given_out_again_is_in_the_log_once_and_gets_its_answer_again(topic: Topics, client: Client) -> None:
    before, scoring = newest(client, world.MODEL), topic.scoring(client)
    topic.send(*(body(float(visits)) for visits in range(6)))
    broker, messages, end = topic.reads(topic.name), list[streams.Message](), time.monotonic() + 60
    while len(messages) < 6 and time.monotonic() < end:
        messages += broker.poll(6, 0.2)
    broker.close()
    assert scoring(messages[:4]) == 4
    assert scoring(messages[2:]) == 4
    assert scoring(messages) == 6
    answers = {(a.place, a.prediction, a.score, a.version.version, a.route) for a in topic.answered(14)}
    assert len(answers) == 6
    assert {a[1] for a in answers} == {p.id for p in logged(client, world.MODEL, before)}


def test_a_message_of_a_topic_that_was_made_anew_is_not_taken_for_an_old_one(client: Client) -> None:
    now = streams.moment(0)
    sent: list[bytes] = []

    class Kept:
        def send(self, bodies: Any, keys: Any = ()) -> None:
            sent.extend(bodies)

    scoring = Scoring(client, world.MODEL, "rows", Kept(), Kept())
    for visits in (1.0, 30.0, 1.0):
        assert scoring([streams.Message("rows-0", 0, now, body(visits))]) == 1
    first, other, again = (msgspec.json.decode(each, type=TopicAnswer).prediction for each in sent)
    assert first == again != other


def test_an_answer_bears_the_key_of_its_message(kafka: tuple[str, Any], client: Client) -> None:
    topic = Topics("kafka", kafka[0], f"rows_{uuid.uuid4().hex[:8]}")
    sent = {f"customer-{k % 3}-{k}".encode(): body(float(k), observation=f"o{k}") for k in range(6)}
    topic.writes(topic.name).send([*sent.values(), b"no row"], [*sent, b"broken"])
    consumed(topic, topic.scoring(client), 7)
    answers = topic.messages(topic.of_answers, lambda found: len(found) >= 6)
    found = {each.key: msgspec.json.decode(each.body, type=TopicAnswer).observation for each in answers}
    assert found == {key: msgspec.json.decode(each)["observation"] for key, each in sent.items()}
    assert [each.key for each in topic.messages(topic.of_refusals, bool)] == [b"broken"]


def test_poison_goes_aside_with_its_reason_and_holds_up_nobody(
    topic: Topics, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no row, what the endpoint does not know, and a row that the model itself raises at."""
    monkeypatch.setattr(topics, "REST_SECONDS", 0.01)
    good = [b'{"features": {"visits": %d}}' % visits for visits in range(8)]
    poison = [
        b"not json",
        b"[1]",
        b'{"features": {}}',
        b'{"features": {"vists": 1}}',
        b'{"features": {"visits": null}}',
        b"\xff",
    ]
    topic.send(*good[:3], *poison, *good[3:])
    scoring = topic.scoring(client, SHAKY)
    count = consumed(topic, scoring, 14)
    assert (count.messages, count.rows, len(scoring.refused)) == (14, 8, 6)
    assert sorted(a.score for a in topic.answered(8)) == pytest.approx([1e306 * visits for visits in range(8)])
    reasons = {refusal.message: str(refusal.problem.verdict) for refusal in topic.refused(6)}
    assert set(reasons) == {each.decode(errors="replace") for each in poison}
    for words, part in (("not json", "is not a row"), ("[1]", "is not a row"), ("\ufffd", "is not a row"),
        ('{"features": {}}', "has neither"), ('{"features": {"vists": 1}}', "is not one the model takes"),
        ('{"features": {"visits": null}}', "raised")):  # fmt: skip
        assert part in reasons[words]


def test_nothing_is_refused_while_the_service_is_away(redis_url: str) -> None:
    topic = Topics("redis", redis_url, f"rows_{uuid.uuid4().hex[:8]}")
    topic.send(body(1.0))
    with Client(f"http://127.0.0.1:{free_port()}", "deployer") as nowhere:
        nowhere.connection.attempts = 1
        with pytest.raises(Unavailable):
            consumed(topic, topic.scoring(nowhere), 1)
    assert len(topic.reads(topic.name).poll(5, 0.1)) == 1
    assert topic.reads(topic.of_refusals).poll(5, 0.1) == []


def test_an_endpoint_that_is_not_there_is_named_and_the_messages_wait(redis_url: str, client: Client) -> None:
    topic = Topics("redis", redis_url, f"rows_{uuid.uuid4().hex[:8]}")
    topic.send(body(1.0))
    with pytest.raises(NotFound, match="shop/none"):
        consumed(topic, topic.scoring(client, "shop/none"), 1)
    assert len(topic.reads(topic.name).poll(5, 0.1)) == 1


def test_a_broker_that_takes_nothing_is_named() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        brokers.RedisOutlet("redis://127.0.0.1:1/0", "t").send([b"x"])
    outlet = brokers.KafkaOutlet("127.0.0.1:1", "t", options={"delivery.timeout.ms": 1500, "log_level": 0})
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        outlet.send([b"x"])


def test_a_consumer_killed_at_random_moments_answers_each_message_once_in_the_log(
    redis_url: str, client: Client, tmp_path: Path
) -> None:
    """As users run it: the command, killed while messages come; the next one goes on."""
    dice, topic = random.Random(2013), Topics("redis", redis_url, f"rows_{uuid.uuid4().hex[:8]}")
    before, sent = newest(client, world.MODEL), 0
    for _ in range(3):
        process, start = _command(topic, client, tmp_path), newest(client, world.MODEL)
        for number in range(dice.randint(5, 25)):
            topic.send(*(body(float((sent + n) % 40), observation=str(sent + n)) for n in range(5)))
            sent += 5
            if number == 0:
                wait_for(lambda start=start: newest(client, world.MODEL) > start, 60, "the first answer")  # type: ignore[misc]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    topic.send(b"poison")
    process, end = _command(topic, client, tmp_path), time.monotonic() + 90
    while _left(topic) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    words = _words(topic, "--seconds", "0.1", "--json")
    told = subprocess.run(words, env=_environment(client), cwd=tmp_path, capture_output=True, timeout=120, check=True)
    assert msgspec.json.decode(told.stdout) == {"messages": 0, "answered": 0, "refused": []}
    assert {refusal.message for refusal in topic.refused(1)} == {"poison"}
    log = logged(client, world.MODEL, before)
    assert sorted(int(p.observation) for p in log) == list(range(sent))
    answers = topic.answered(sent, frozenset(p.id for p in log))
    assert {(a.prediction, a.observation) for a in answers} == {(p.id, p.observation) for p in log}
    print(f"{sent} messages, {len(answers)} answers sent")


def _words(topic: Topics, *more: str) -> list[str]:
    cellwork = str(Path(sys.executable).with_name("cellwork"))
    return [cellwork, "endpoint", "consume", world.MODEL, topic.name, "--redis", topic.address, "--to", topic.of_answers, *more]  # fmt: skip


def _environment(client: Client) -> dict[str, str]:
    return {**os.environ, "CELLWORK_URL": client.connection.url, "CELLWORK_TOKEN": "deployer"}


def _command(topic: Topics, client: Client, folder: Path) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(_words(topic), env=_environment(client), cwd=folder, stdout=quiet, stderr=quiet)


def _left(topic: Topics) -> int:
    """Return how many messages were not acknowledged."""
    import redis

    with redis.Redis.from_url(topic.address) as connection:
        group: Any = connection.xinfo_groups(topic.name)
        return int(group[0]["pending"]) + int(group[0]["lag"] or 0)
