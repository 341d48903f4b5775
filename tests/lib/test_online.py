"""The online store: the newest value wins, whoever writes and in whatever order."""

from __future__ import annotations

import multiprocessing
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cellwork.errors import BadInput, Unavailable
from cellwork.features.online import OnlineStore
from cellwork.features.row import value_hash

START = datetime(2013, 6, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")
TYPES = {"origin": pl.String, "temp": pl.Int64, "event_timestamp": TIME, "created_timestamp": TIME, "_batch": pl.String}


def rows(*values: tuple[str, int, int, int]) -> pl.DataFrame:
    """Rows (origin, temp, event second, created second)."""
    second = timedelta(seconds=1)
    records = [
        (o, temp, START + event * second, START + created * second, f"batch{temp}")
        for o, temp, event, created in values
    ]
    return pl.DataFrame(records, TYPES, orient="row")


@pytest.fixture
def store(tmp_path: Path) -> OnlineStore:
    made = OnlineStore(tmp_path / "air.sqlite")
    made.activate("weather", 1)
    return made


def temps(store: OnlineStore, *origins: str) -> list[Any]:
    return [value.values.get("temp") for value in store.read("weather", {"origin": list(origins)})]


def test_an_older_value_does_not_overwrite_a_newer_one(store):
    assert store.write("weather", 1, ["origin"], rows(("JFK", 54, 10, 10))) == 1
    assert store.write("weather", 1, ["origin"], rows(("JFK", 31, 5, 99))) == 0
    assert temps(store, "JFK") == [54]


def test_a_correction_of_the_same_event_wins_by_its_arrival(store):
    store.write("weather", 1, ["origin"], rows(("JFK", 31, 10, 20)))
    store.write("weather", 1, ["origin"], rows(("JFK", 54, 10, 10)))
    assert temps(store, "JFK") == [31]


def test_of_rows_at_the_same_times_the_value_hash_decides_in_either_order(store, tmp_path):
    winner = max((1, 2, 3), key=lambda temp: value_hash({"temp": temp}))
    for order in ((1, 2, 3), (3, 2, 1), (2, 3, 1)):
        other = OnlineStore(tmp_path / f"{order}.sqlite")
        other.activate("weather", 1)
        other.write("weather", 1, ["origin"], rows(*(("JFK", temp, 1, 1) for temp in order)))
        assert temps(other, "JFK") == [winner]


def test_a_read_keeps_the_order_asked_and_says_nothing_of_the_unknown(store):
    store.write("weather", 1, ["origin"], rows(("JFK", 1, 1, 2), ("LGA", 2, 1, 1)))
    found = store.read("weather", {"origin": ["LGA", "XXX", "JFK", "LGA"]})
    assert [value.values for value in found] == [{"temp": 2}, {}, {"temp": 1}, {"temp": 2}]
    assert found[2].event == START + timedelta(seconds=1)
    assert found[2].created == START + timedelta(seconds=2)
    assert found[2].batch == "batch1"
    assert found[1].event is None


def test_thousands_of_entities_are_read_at_once(store):
    names = [f"n{number}" for number in range(3000)]
    store.write("weather", 1, ["origin"], rows(*((name, n, 1, 1) for n, name in enumerate(names))))
    assert temps(store, *reversed(names)) == list(reversed(range(3000)))


def test_a_changed_view_is_filled_beside_the_one_that_serves(store):
    store.write("weather", 1, ["origin"], rows(("JFK", 54, 10, 10)))
    store.write("weather", 2, ["origin"], rows(("JFK", 12, 1, 1)))
    assert temps(store, "JFK") == [54]
    store.activate("weather", 2)
    assert temps(store, "JFK") == [12]
    store.activate("weather", None)
    assert temps(store, "JFK") == [None]
    assert store.active("weather") is None


def test_a_reader_sees_what_is_written_and_can_not_write(store, tmp_path):
    store.write("weather", 1, ["origin"], rows(("JFK", 54, 10, 10)))
    reader = OnlineStore(tmp_path / "air.sqlite", read_only=True)
    assert temps(reader, "JFK") == [54]
    store.write("weather", 1, ["origin"], rows(("JFK", 60, 11, 11)))
    assert temps(reader, "JFK") == [60]
    with pytest.raises(Exception, match="readonly"):
        reader.write("weather", 1, ["origin"], rows(("JFK", 1, 99, 99)))


def test_a_store_that_is_not_there_is_unavailable_not_empty(tmp_path):
    with pytest.raises(Unavailable, match=r"online store 'nowhere\.sqlite'"):
        OnlineStore(tmp_path / "nowhere.sqlite", read_only=True).read("weather", {"origin": ["JFK"]})


def test_keys_of_different_lengths_are_refused(store):
    with pytest.raises(BadInput, match="differ in length"):
        store.read("weather", {"a": [1], "b": [1, 2]})


def _write(path: Path, seed: int, values: list[tuple[str, int, int, int]]) -> None:
    store = OnlineStore(path)
    shuffled = random.Random(seed).sample(values, len(values))
    for start in range(0, len(shuffled), 7):
        store.write("weather", 1, ["origin"], rows(*shuffled[start : start + 7]))


def test_random_writes_in_random_order_from_several_processes_leave_the_newest_event(tmp_path):
    generator = random.Random(20131101)
    values = [(f"n{generator.randrange(20)}", n, generator.randrange(60), generator.randrange(60)) for n in range(900)]
    path = tmp_path / "air.sqlite"
    OnlineStore(path).activate("weather", 1)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(path, seed, values[seed::3])) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    names = sorted({value[0] for value in values})
    newest = {
        v[0]: max((w for w in values if w[0] == v[0]), key=lambda w: (w[2], w[3], value_hash({"temp": w[1]})))
        for v in values
    }
    assert temps(OnlineStore(path, read_only=True), *names) == [newest[name][1] for name in names]
