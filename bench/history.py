"""Point-in-time join: Cellwork, a hand-written polars join_asof, Feast's duckdb and default offline stores, on the same files.

Each case runs in a process of its own that reports seconds and peak memory; rounds alternate the cases. The table has
medians and ratios, and how many of the observations come out at all: one in a hundred is asked twice, one is of an unknown entity. `--rows 10000000 --observations 1000000` is the full size; `--skip` leaves out slow peers.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VIEWS, FEATURES, ENTITIES = 3, 5, 50_000
START = 1_370_000_000_000_000
YEAR = 365 * 86_400


def make(folder: Path, rows: int, observations: int) -> None:
    """Write `VIEWS` parquet files of feature rows (`rows` in all) and one of observations."""
    import numpy as np
    import polars as pl

    generator = np.random.default_rng(20131101)
    stamp = pl.Datetime("us", "UTC")
    for view in range(VIEWS):
        count = rows // VIEWS
        event = START + generator.integers(0, YEAR, count) * 1_000_000
        columns: dict[str, Any] = {"entity": generator.integers(0, ENTITIES, count)}
        columns |= {f"v{view}_f{n}": generator.random(count) for n in range(FEATURES)}
        columns |= {
            "event_timestamp": event,
            "created_timestamp": event + generator.integers(0, 600, count) * 1_000_000,
        }
        frame = pl.DataFrame(columns).with_columns(pl.col("event_timestamp", "created_timestamp").cast(stamp))
        frame.with_columns(pl.lit("bat_0123456789abcdefghjkmnpqrs").alias("_batch")).write_parquet(
            folder / f"view{view}.parquet"
        )
    asked = {
        "entity": generator.integers(0, ENTITIES, observations),
        "event_timestamp": START + generator.integers(0, YEAR, observations) * 1_000_000,
    }
    frame = pl.DataFrame(asked).with_columns(pl.col("event_timestamp").cast(stamp))
    double = observations // 100  # some are asked twice, some of entities that nobody knows: each is still to come out
    unknown = pl.when(pl.int_range(pl.len()) < double).then(-1).otherwise(pl.col("entity")).alias("entity")
    pl.concat([frame.head(observations - double), frame.head(double)]).with_columns(unknown).write_parquet(
        folder / "asked.parquet"
    )


def cellwork(folder: Path) -> Any:
    import polars as pl

    from cellwork.features.history import JoinView, join
    from cellwork.wire.features import Field, Select, View

    views = []
    for number in range(VIEWS):
        fields = [f"v{number}_f{n}" for n in range(FEATURES)]
        view = View(
            name=f"view{number}", entities=["entity"], fields=[Field(name=name, type="Float64") for name in fields],
            pipeline=Select(rows="r", event="e", known="k"),
        )  # fmt: skip
        views.append(JoinView(view, {"entity": "entity"}, fields, pl.scan_parquet(folder / f"view{number}.parquet")))
    return join(pl.read_parquet(folder / "asked.parquet"), at="event_timestamp", views=views)[0]


def polars(folder: Path) -> Any:
    """What one would write by hand: no arrival, no ttl, no ties, no coverage, no lineage."""
    import polars as pl

    asked = pl.read_parquet(folder / "asked.parquet").with_row_index("row").sort("event_timestamp")
    for number in range(VIEWS):
        fields = [f"v{number}_f{n}" for n in range(FEATURES)]
        view = pl.read_parquet(folder / f"view{number}.parquet", columns=["entity", "event_timestamp", *fields])
        asked = asked.join_asof(
            view.sort("event_timestamp"), on="event_timestamp", by="entity", strategy="backward", check_sortedness=False
        )
    return asked.sort("row")


def feast(folder: Path, kind: str) -> Any:
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.repo_config import RepoConfig
    from feast.types import Float64

    store = FeatureStore(
        config=RepoConfig(
            project="bench", provider="local", registry=str(folder / f"{kind}.db"), offline_store={"type": kind},
            online_store={"type": "sqlite", "path": str(folder / "online.db")}, entity_key_serialization_version=3,
        )
    )  # fmt: skip
    entity = Entity(name="entity", join_keys=["entity"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=f"view{number}", entities=[entity], ttl=None,
            schema=[Field(name=f"v{number}_f{n}", dtype=Float64) for n in range(FEATURES)],
            source=FileSource(
                name=f"source{number}", path=str(folder / f"view{number}.parquet"),
                timestamp_field="event_timestamp", created_timestamp_column="created_timestamp",
            ),
        )
        for number in range(VIEWS)
    ]  # fmt: skip
    store.apply([entity, *views])
    asked = pd.read_parquet(folder / "asked.parquet")
    wanted = [f"view{number}:v{number}_f{n}" for number in range(VIEWS) for n in range(FEATURES)]
    started = time.perf_counter()
    table = store.get_historical_features(asked, wanted).to_arrow()
    return table, time.perf_counter() - started


CASES = {
    "hand-written polars": polars,
    "cellwork": cellwork,
    "feast duckdb": lambda folder: feast(folder, "duckdb"),
    "feast default (dask)": lambda folder: feast(folder, "dask"),
}


def one(folder: Path, case: str) -> None:
    """Run one case in this process and print what it took, without the imports."""
    import polars as pl  # noqa: F401
    import pyarrow as pa  # noqa: F401

    if case == "cellwork":
        import cellwork.features.history  # noqa: F401
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    answer = CASES[case](folder)
    seconds = time.perf_counter() - started
    if isinstance(answer, tuple):
        answer, seconds = answer
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = answer.num_rows if hasattr(answer, "num_rows") else answer.height
    print(json.dumps({"seconds": seconds, "mb": (peak - base) / 1024, "rows": rows}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--observations", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--skip", action="append", default=[])
    arguments.add_argument("--feast-python", default=sys.executable, help="of an environment with feast[duckdb]")
    arguments.add_argument("--one", nargs=2)
    asked = arguments.parse_args()
    if asked.one:
        one(Path(asked.one[0]), asked.one[1])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.rows, asked.observations)
        found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES if case not in asked.skip}
        for turn in range(asked.rounds):
            for case in found:
                if turn and case.startswith("feast"):
                    continue  # minutes each; once is enough for a ratio of tens
                python = asked.feast_python if case.startswith("feast") else sys.executable
                answer = subprocess.run(
                    [python, __file__, "--one", str(folder), case], capture_output=True, text=True, timeout=1800
                )
                if answer.returncode:
                    print(f"{case}: {answer.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                found[case].append(json.loads(answer.stdout.strip().splitlines()[-1]))
    show(found, asked.observations)
    return


def show(found: dict[str, list[dict[str, float]]], observations: int) -> None:
    hand = statistics.median(run["seconds"] for run in found["hand-written polars"])
    print("| case | median s | ratio to hand-written | MB | rows of", observations, "|")
    print("| --- | --- | --- | --- | --- |")
    for case, runs in found.items():
        if runs:
            seconds, mb = (statistics.median(run[key] for run in runs) for key in ("seconds", "mb"))
            print(f"| {case} | {seconds:.2f} | {seconds / hand:.2f} | {mb:.0f} | {runs[0]['rows']:.0f} |")


if __name__ == "__main__":
    main()
