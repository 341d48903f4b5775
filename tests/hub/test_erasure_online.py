"""Erasing a subject reaches the online store, SQLite and Redis: no value is read, and no byte of it is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from feature_world import DAY, new_state, service, work

from cellwork.client import Client
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import Definitions, Entity, Field, MaterializeRequest, Prepared, Select, View
from cellwork_hub.platform.state import State

WHO, OTHER = "ada.lovelace@example.org", "bob@example.org"


@pytest.fixture(params=["sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    made = new_state(tmp_path / "home")
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    settings = replace(made.context.settings, online_url=url)
    return replace(made, context=replace(made.context, settings=settings))


@pytest.fixture
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        yield connected


def definitions(project: str) -> Definitions:
    view = View(
        name="visits", entities=["person"], fields=[Field(name="count", type="Int64")],
        pipeline=Select(rows="visits", event="at", known="at"),
    )  # fmt: skip
    return Definitions(
        project=project,
        prepared=[Prepared(name="visits", sources=["visits"], sql="SELECT * FROM visits")],
        entities=[Entity(name="person", join_keys=["who"])],
        views=[view],
    )


def stored(state: State) -> bytes:
    """Return all that the online store has."""
    url = state.context.settings.online_url
    if not url:
        return b"".join(path.read_bytes() for path in (state.home.root / "online").glob("*"))
    import redis

    there: Any = redis.Redis.from_url(url)
    keys = list(there.scan_iter())
    texts = [key for key in keys if there.type(key) == b"string"]
    return b"".join([*keys, *there.mget(texts)])


def test_an_erased_subject_is_in_no_online_value(client: Client, state: State, tmp_path: Path) -> None:
    project = f"shop{abs(hash(tmp_path)) % 10**9}"
    client.batches.declare(project, RawDataset(name="visits", subject="who"))
    frame = pl.DataFrame({"who": [WHO, OTHER], "count": [3, 4], "at": [DAY, DAY + timedelta(hours=1)]})
    client.batches.ingest(project, "visits", frame.with_columns(pl.col("at").dt.convert_time_zone("UTC")), "d0")
    client.features.apply(definitions(project))
    work(state)

    def read() -> list[Any]:
        found = client.features.online(project, ["visits"], {"who": [WHO, OTHER]}).views["visits"]
        return [value.values["count"] for value in found]

    assert read() == [3, 4]
    assert WHO.encode() in stored(state)
    for _ in range(2):
        client.batches.erase(project, WHO, "asked")
        assert read() == [None, 4]
        assert WHO.encode() not in stored(state)
    assert OTHER.encode() in stored(state)
    work(state)
    client.features.materialize(MaterializeRequest(project=project))
    assert read() == [None, 4]
