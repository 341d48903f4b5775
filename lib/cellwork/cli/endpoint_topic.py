"""`cellwork endpoint consume`: an endpoint answers the messages of a topic."""

from __future__ import annotations

import contextlib
import time

import click

from cellwork.cli import show


@click.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.argument("topic")
@click.option("--kafka", default="", help="Brokers of Kafka, host:port by commas.")
@click.option("--redis", default="", help="Address of a Redis, redis://host:port/db; topics are streams of it.")
@click.option("--to", required=True, metavar="TOPIC", help="Where the answers go.")
@click.option(
    "--refused", metavar="TOPIC", help="Where messages go that can't be answered. [default: --to and .refused]"
)
@click.option("--group", help="Name under which the broker remembers what was taken. [default: the endpoint's]")
@click.option("--seconds", type=float, default=0, help="Stop after that long; default never.")
@show.as_json
def consume(
    name: str, topic: str, kafka: str, redis: str, to: str, refused: str | None, group: str | None, seconds: float, json: bool
) -> None:  # fmt: skip
    """Answer the messages of TOPIC, one row of a request each ({"features": {…}, "entities": {…}}), into another topic.

    Each message is in the endpoint's log once, however often it is delivered; its answer may be sent twice, under the same id.

    Example: cellwork endpoint consume flights/delay departures --kafka localhost:9092 --to delays
    """
    from cellwork.client import connect
    from cellwork.features import brokers, streams
    from cellwork.serving.topic import Scoring

    if bool(kafka) == bool(redis):
        raise click.UsageError("name one of --kafka and --redis")
    group, refused, address = group or f"cellwork-{name.replace('/', '-')}", refused or f"{to}.refused", kafka or redis
    if len({topic, to, refused}) < 3:
        raise click.UsageError("the messages, their answers and those refused are three topics; name them differently")
    reads, writes = (brokers.Kafka, brokers.KafkaOutlet) if kafka else (brokers.RedisStream, brokers.RedisOutlet)
    with contextlib.ExitStack() as opened:
        outlets = [opened.enter_context(contextlib.closing(writes(address, each))) for each in (to, refused)]
        broker = opened.enter_context(contextlib.closing(reads(address, topic, group)))
        scoring = Scoring(connect(), name, topic, *outlets)
        end = time.monotonic() + seconds if seconds else float("inf")
        count = streams.consume(broker, scoring, stop=lambda: time.monotonic() > end)
    if json:
        return show.document({"messages": count.messages, "answered": count.rows, "refused": scoring.refused})
    click.echo(f"{count.messages} messages, {count.rows} answered, {len(scoring.refused)} refused")
    for why in scoring.refused:
        click.echo(f"  {why}")
    return None
