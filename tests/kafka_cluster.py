"""A Kafka broker for tests: the mock cluster that is built into librdkafka, held by one producer for as long as it lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kafka_cluster() -> Iterator[tuple[str, Any]]:
    """Yield (bootstrap servers, a producer of it). Topics are made when first used, with four partitions."""
    from confluent_kafka import Producer

    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "replaced:1"})
    metadata = producer.list_topics(timeout=60)
    broker = next(iter(metadata.brokers.values()))
    yield f"{broker.host}:{broker.port}", producer
    producer.flush(10)
