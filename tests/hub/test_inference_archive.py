"""Old days of a running service's log become Parquet without anybody's doing, and callers see no difference."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import polars as pl
import serving_world as world

from cellwork import db
from cellwork.client import Client
from cellwork.wire.endpoints import Deploy, Request, Row
from cellwork_hub.context import Context
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

DAY = 86_400 * 1_000_000


def test_the_keeper_archives_old_days_and_every_route_answers_as_before(tmp_path: Path) -> None:
    context, folders = world.context(tmp_path / "home"), world.Folders()
    folders.add(world.saved(1, tmp_path / "1"), 1)

    def service() -> FrontDoor:
        return build(context, authorise=world.authorise, registry=folders, lookup=lambda project, needed: {})

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        keyed = client.endpoints.predict(world.MODEL, Request(rows=[_row(3.0)], id="order-1")).outputs[0]
        batch = Row(features=_row(4.0).features, observation="o1", key="o1@1")
        client.endpoints.predict(world.MODEL, Request(rows=[batch], batch_run="run_1"))
        _plainly(client, 5)
        assert len(client.endpoints.predictions(world.MODEL)) == 7
    _age(context)
    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        _plainly(client, 2)
        before = client.endpoints.predictions(world.MODEL)
        _wait_until_archived(context, 7)
        assert client.endpoints.predictions(world.MODEL) == before
        assert client.endpoints.predictions(world.MODEL, after=-3) == before[-3:]
        assert [client.endpoints.prediction(p.id) for p in before] == before
        again = client.endpoints.predict(world.MODEL, Request(rows=[_row(9.0)], id="order-1")).outputs[0]
        assert (again.id, again.score, again.repeated) == (keyed.id, keyed.score, True)
        answer = client.endpoints.predict(world.MODEL, Request(rows=[Row(observation="o1")]))
        assert (answer.route, answer.outputs[0].id) == ("precomputed", before[1].id)
        assert client.endpoints.predictions(world.MODEL) == before
    frame = pl.read_parquet(context.home.archived_predictions() / "**" / "*.parquet", hive_partitioning=True)
    assert frame["id"].to_list() == [p.id for p in before[:7]]


def _row(visits: float) -> Row:
    return Row(features={"visits": visits, "plan": "free"})


def _plainly(client: Client, count: int) -> None:
    """Ask with nothing but features: the answers go through segments."""
    for number in range(count):
        body = {"rows": [{"features": _row(float(number)).features}]}
        headers = {"authorization": "Bearer deployer"}
        url = f"{client.connection.url}/predict/{world.MODEL}"
        answer = httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60)
        answer.raise_for_status()


def _age(context: Context) -> None:
    """Let what is in the log be a month old, of one noon."""
    noon = (time.time_ns() // 1000 // DAY - 30) * DAY + DAY // 2
    engine = db.attach(context.database_url("inference"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE predictions SET at = {noon} + seq, logged_at = {noon} + seq")
    engine.dispose()


def _wait_until_archived(context: Context, count: int) -> None:
    engine, end = db.attach(context.database_url("inference")), time.monotonic() + 90
    left, named = count, 0
    while (left or not named) and time.monotonic() < end:
        time.sleep(0.05)
        with engine.connect() as connection:
            left = connection.exec_driver_sql(f"SELECT count(*) FROM predictions WHERE seq <= {count}").scalar_one()
            named = connection.exec_driver_sql("SELECT count(*) FROM archived_parts").scalar_one()
    engine.dispose()
    assert (left, named) == (0, 1)
