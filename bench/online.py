"""Online reads of 20 features: the bare call on the store, our reader, Feast's own stores by `get_online_features`.

All in one process, alternating; medians of `--rounds`. A Redis of its own is started if `redis-server` is there.
"""

from __future__ import annotations

import argparse
import random
import shutil
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from cellwork.features.online import open_store
from cellwork.features.online_store import entity_keys

FEATURES = [f"f{number:02}" for number in range(20)]
NOW = datetime(2013, 11, 1, tzinfo=UTC)


def feature_rows(count: int) -> pl.DataFrame:
    generator = random.Random(1)
    columns: dict[str, Any] = {
        "entity": range(count),
        **{f: [generator.random() for _ in range(count)] for f in FEATURES},
    }
    stamp = pl.lit(NOW).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame(columns).with_columns(event_timestamp=stamp, created_timestamp=stamp, _batch=pl.lit("bat_1"))


@contextmanager
def redis_server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    )
    time.sleep(1)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


def ours(folder: Path, url: str, rows: pl.DataFrame) -> tuple[Callable[[list[int]], Any], Callable[[list[int]], Any]]:
    """Return (bare call, our reader) on a store with `rows`."""
    store = open_store(folder / "bench.sqlite", url)
    store.activate("view", 1)
    store.write("view", 1, ["entity"], rows)

    keys = dict(zip(rows["entity"], entity_keys({"entity": rows["entity"].to_list()}), strict=True))

    def read(entities: list[int]) -> Any:
        return store.vectors("view", FEATURES, {"entity": entities})

    if url:
        import redis

        client = redis.Redis.from_url(url)
        whole = {entity: b"cw:{bench}:value:view:1:" + key for entity, key in keys.items()}
        return lambda entities: client.mget([whole[entity] for entity in entities]), read
    connection = sqlite3.connect(folder / "bench.sqlite")

    def bare(entities: list[int]) -> Any:
        marks = ",".join("?" * len(entities))
        query = f"SELECT entity, packed FROM online WHERE view = ? AND revision = ? AND entity IN ({marks})"
        return connection.execute(query, ("view", 1, *[keys[entity] for entity in entities])).fetchall()

    return bare, read


def feast(folder: Path, url: str, rows: pl.DataFrame, store_type: dict[str, Any]) -> Callable[[list[int]], Any]:
    """Return a read by Feast of the same values in a store of `store_type`."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.repo_config import RepoConfig
    from feast.types import Float64

    parquet = folder / "rows.parquet"
    rows.write_parquet(parquet)
    config = RepoConfig(
        project=f"bench{len(list(folder.iterdir()))}", provider="local", registry=str(folder / f"{store_type['type'].split('.')[-1]}{bool(url)}.db"),
        online_store=store_type, offline_store={"type": "dask"}, entity_key_serialization_version=3,
    )  # fmt: skip
    store = FeatureStore(config=config)
    entity = Entity(name="entity", join_keys=["entity"], value_type=ValueType.INT64)
    source = FileSource(name="source", path=str(parquet), timestamp_field="event_timestamp")
    view = FeatureView(
        name="view", entities=[entity], schema=[Field(name=f, dtype=Float64) for f in FEATURES], source=source
    )
    store.apply([entity, view])
    store.write_to_online_store("view", df=rows.drop("created_timestamp", "_batch").to_pandas())
    wanted = [f"view:{name}" for name in FEATURES]
    return lambda entities: store.get_online_features(wanted, [{"entity": each} for each in entities])


def measure(cases: dict[str, Callable[[list[int]], Any]], size: int, entities: int, rounds: int) -> dict[str, float]:
    generator, taken = random.Random(2), {case: [] for case in cases}
    for turn in range(rounds + 5):
        wanted = generator.sample(range(entities), size)
        for case, call in cases.items():
            started = time.perf_counter()
            call(wanted)
            if turn >= 5:
                taken[case].append(time.perf_counter() - started)
    return {case: statistics.median(each) * 1000 for case, each in taken.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--entities", type=int, default=5000)
    arguments.add_argument("--rounds", type=int, default=200)
    asked = arguments.parse_args()
    warnings.filterwarnings("ignore")
    rows = feature_rows(asked.entities)
    print("| store | case | 1 entity ms | 100 entities ms | ratio to bare, 100 | Feast is slower by, 100 |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report("SQLite", folder, "", {"type": "sqlite", "path": str(folder / "feast.db")}, rows, asked)
        if shutil.which("redis-server"):
            with redis_server() as url:
                address = url.removeprefix("redis://").removesuffix("/0")
                report("Redis", folder, url, {"type": "redis", "connection_string": address}, rows, asked)


def report(
    store: str, folder: Path, url: str, own: dict[str, Any], rows: pl.DataFrame, asked: argparse.Namespace
) -> None:
    bare, read = ours(folder, url, rows)
    here = {"type": "cellwork.features.feast.OnlineStore", "path": str(folder / "plugin.sqlite"), "url": url}
    cases = {"bare call": bare, "cellwork": read, "Feast on its own store": feast(folder, url, rows, own)}
    cases["Feast on ours"] = feast(folder, url, rows, here)
    one, many = (measure(cases, size, asked.entities, asked.rounds) for size in (1, 100))
    for case in cases:
        ratio, slower = many[case] / many["bare call"], many[case] / many["cellwork"]
        print(f"| {store} | {case} | {one[case]:.3f} | {many[case]:.3f} | {ratio:.1f} | {slower:.1f} |")


if __name__ == "__main__":
    main()
