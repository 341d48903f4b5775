"""Statistics come from sketches that are made once, and declared checks stand between a delivery and everybody who reads."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import DAY, definitions, flights, work

from cellwork import clock, data
from cellwork.cli import main
from cellwork.client import Client
from cellwork.data import sketches
from cellwork.errors import BadInput, NotFound, Refused
from cellwork.wire.batches import Check, RawDataset, Seal
from cellwork.wire.statistics import Description
from cellwork_hub import records
from cellwork_hub.platform.state import State


def by_name(found: Description) -> dict[str, object]:
    return {column.name: column for column in found.columns}


def test_statistics_of_a_data_set_are_those_of_its_current_rows_and_no_row_is_read_for_them(
    client: Client, state: State
) -> None:
    client.batches.declare("air", RawDataset(name="flights", owner="ada", description="departures"))
    first = client.batches.ingest("air", "flights", flights(0), "day0").batch
    moment = clock.now()
    client.batches.ingest("air", "flights", flights(1, delay=99.0), "day1")
    client.batches.ingest("air", "flights", flights(0, delay=-5.0), "day0")
    for path in state.home.raw_table("air", "flights").rglob("*.parquet"):
        path.rename(path.with_suffix(".away"))
    found = client.batches.describe("air", "flights")
    assert (found.rows, found.batches, found.owner, found.description) == (48, 2, "ada", "departures")
    rows = pl.concat([flights(1, delay=99.0), flights(0, delay=-5.0)])
    delay, planned, origin = (by_name(found)[name] for name in ("delay", "planned", "origin"))
    assert (delay.min, delay.max, delay.distinct, delay.exact) == (-5.0, 122.0, 48, True)
    assert delay.mean == pytest.approx(rows["delay"].mean())
    assert delay.deviation == pytest.approx(rows["delay"].std())
    assert (planned.min, planned.max) == ("2013-06-01T00:00:00Z", "2013-06-02T23:00:00Z")
    assert [(f.text, f.rows) for f in origin.frequent] == [("JFK", 24), ("LGA", 24)]
    for past in (moment.isoformat(), first.id):
        assert by_name(client.batches.describe("air", "flights", as_of=past))["delay"].max == 33.0
    assert client.batches.describe("air", "flights", as_of="2001-01-01T00:00:00Z").rows == 0
    assert client.batches.describe("air", "flights", batch=first.id).rows == 24
    assert client.batches.sketch("air", "flights")["delay"].ranks.rank(98.0) == 24
    with pytest.raises(NotFound, match="did you mean 'flights'"):
        client.batches.describe("air", "flihgts")


def test_a_sketch_that_was_lost_is_made_again_and_sealed_values_are_in_none(client: Client, state: State) -> None:
    seal = Seal(holdout="late", partitions=["day1"], columns=["delay"])
    client.batches.declare("air", RawDataset(name="flights", seals=[seal]))
    for day in (0, 1):
        client.batches.ingest("air", "flights", flights(day, delay=10.0 + 1000 * day), f"day{day}")
    before = client.batches.describe("air", "flights")
    delay = by_name(before)["delay"]
    assert (delay.nulls, delay.max) == (24, 33.0)
    kept = sorted(state.home.sketches("air", "raw", "flights").iterdir())
    assert len(kept) == 2
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:50])
    assert client.batches.describe("air", "flights") == before
    assert not any(b"1010" in path.read_bytes() for path in kept)


def test_a_view_is_described_from_its_readable_rows_and_a_new_batch_adds_to_it(client: Client, state: State) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    client.features.apply(definitions())
    work(state)
    first = client.features.describe("air", "plan")
    assert (first.rows, first.batches, first.kind) == (24, 1, "features")
    client.batches.ingest("air", "flights", flights(1), "day1")
    work(state)
    rows = client.features.rows("air", "plan")
    found = client.features.describe("air", "plan")
    assert (found.rows, found.batches, found.bytes > first.bytes) == (48, 2, True)
    assert by_name(found)["delay"].mean == pytest.approx(rows["delay"].mean())
    assert client.batches.describe("air", "flights").used_by == ["view:late", "view:plan", "observations:departures"]
    assert len(list(state.home.sketches("air", "features", "plan").iterdir())) == 2


def test_a_batch_that_fails_a_check_is_held_back_until_somebody_says_why_it_may_pass(
    client: Client, state: State
) -> None:
    limit = Check(column="delay", greatest=100, tolerance=0.1)
    client.batches.declare("air", RawDataset(name="flights", checks=[limit]))
    few = flights(0).with_columns(delay=pl.when(pl.col("id") < 2).then(500.0).otherwise("delay"))
    taken = client.batches.ingest("air", "flights", few, "day0").batch
    assert (taken.rows, taken.rejected) == (22, 2)
    assert taken.checks[0].failed == 2
    assert client.batches.rejected(taken.id)["_reason"].unique().to_list() == [
        "check failed: column 'delay' is at most 100"
    ]
    bad = flights(1, delay=500.0)
    with pytest.raises(Refused, match=r"day1.*held back: column 'delay' is at most 100 \(not so in 24 rows\)"):
        client.batches.ingest("air", "flights", bad, "day1")
    with pytest.raises(Refused, match="held back"):
        client.batches.ingest("air", "flights", bad, "day1")
    assert client.batches.rows("air", "flights").height == 22
    assert [b.partition for b in client.batches.list("air", "flights")] == ["day0"]
    waiting = client.batches.held("air", "flights")
    assert [(h.partition, h.rows, h.checks[0].failed) for h in waiting] == [("day1", 24, 24)]
    assert [e.data["held"] for e in records.events(state.engine, 0, "batch.rejected")] == [waiting[0].id] * 2
    with pytest.raises(BadInput, match="reason to release"):
        client.batches.release("air", "flights", waiting[0].id, " ")
    released = client.batches.release("air", "flights", waiting[0].id, "a storm").batch
    assert (released.id, released.rows, released.checks[0].passed) == (waiting[0].id, 24, False)
    assert client.batches.held("air", "flights") == []
    with state.engine.connect() as db:
        said = db.exec_driver_sql("SELECT action, reason FROM audit ORDER BY seq DESC LIMIT 1").one()
    assert tuple(said) == ("batch.release", "a storm")


def test_what_is_held_goes_when_a_better_delivery_comes_or_when_it_is_discarded(client: Client) -> None:
    checks = [Check(column="id", unique=True), Check(rows_near_mean=0.5)]
    client.batches.declare("air", RawDataset(name="flights", checks=checks))
    for day in range(3):
        client.batches.ingest("air", "flights", flights(day), f"day{day}")
    with pytest.raises(Refused, match=r"2 rows are within 50% of the mean of the last 3 batches, 24"):
        client.batches.ingest("air", "flights", flights(3, count=2), "day3")
    client.batches.ingest("air", "flights", flights(3), "day3")
    assert client.batches.held("air", "flights") == []
    with pytest.raises(Refused, match="unique"):
        client.batches.ingest("air", "flights", pl.concat([flights(4), flights(4, delay=1.0)]), "day4")
    (one,) = data.held("air/flights")
    data.discard("air/flights", one.id, "wrong file")
    with pytest.raises(NotFound, match="held delivery"):
        data.release("air/flights", one.id, "too late")


def test_a_check_that_does_not_fit_the_schema_is_refused_before_it_can_stop_anything(client: Client) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    wrong = RawDataset(name="flights", checks=[Check(column="origin", greatest=3)])
    with pytest.raises(BadInput, match="does not fit the type string"):
        client.batches.declare("air", wrong)
    unseen = RawDataset(name="trips", checks=[Check(column="gone", not_null=True)])
    client.batches.declare("air", unseen)
    with pytest.raises(BadInput, match=r"'gone'.*is not in its schema"):
        client.batches.ingest("air", "trips", flights(0), "day0")


def test_the_sketch_of_many_batches_answers_like_one_of_all_rows(client: Client) -> None:
    dice = np.random.default_rng(7)
    parts = [pl.DataFrame({"x": dice.lognormal(size=3000)}) for _ in range(6)]
    for number, part in enumerate(parts):
        client.batches.ingest("air", "draws", part, f"p{number}")
    one, whole = client.batches.sketch("air", "draws")["x"], sketches.of(pl.concat(parts))["x"]
    at = np.quantile(pl.concat(parts)["x"], [0.01, 0.3, 0.5, 0.99])
    assert np.abs(one.ranks.cdf(at) - whole.ranks.cdf(at)).max() < 1e-3
    assert one.distinct.count == pytest.approx(18_000, rel=0.12)


def test_the_command_line_describes_and_decides(client: Client) -> None:
    def run(*words: str, code: int = 0) -> str:
        answer = CliRunner().invoke(main, ["data", *words])
        assert answer.exit_code == code, answer.output
        return answer.output

    client.batches.declare(
        "air", RawDataset(name="flights", owner="ada", checks=[Check(column="delay", not_null=True)])
    )
    client.batches.ingest("air", "flights", flights(0), "day0")
    said = run("describe", "air/flights")
    assert "air/flights: 24 rows in 1 batches" in said
    assert "JFK (12), LGA (12)" in said
    assert json.loads(run("describe", "air/flights", "--json"))["columns"][3]["quantiles"][2] == pytest.approx(
        21.5, abs=1
    )
    assert "nothing is held back" in run("held", "air/flights")
    empty = flights(1).with_columns(delay=pl.lit(None, dtype=pl.Float64))
    with pytest.raises(Refused):
        client.batches.ingest("air", "flights", empty, "day1")
    listed = json.loads(run("held", "air/flights", "--json"))
    assert "not in 24" in run("held", "air/flights")
    assert "is published: day1, 24 rows" in run("release", "air/flights", listed[0]["id"], "--reason", "known gap")
    assert "is not there" in run("discard", "air/flights", listed[0]["id"], "--reason", "gone", code=1)
    assert DAY + timedelta(days=1) in client.batches.rows("air", "flights")["planned"].to_list()
