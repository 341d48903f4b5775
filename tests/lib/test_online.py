"""The online store: the newest value wins, whoever writes and in whatever order."""

from __future__ import annotations

import multiprocessing
import random
import socket
import sqlite3
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput, Unavailable
from cellwork.features import packed
from cellwork.features.online import OnlineStore, open_store
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


@dataclass(frozen=True)
class Place:
    """Where a store is: a new one each test, opened as often as wanted."""

    path: Path
    url: str

    def open(self, *, read_only: bool = False) -> OnlineStore:
        return open_store(self.path, self.url, read_only=read_only)


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Place(tmp_path / f"air{uuid.uuid4().hex[:8]}.sqlite", url)


@pytest.fixture
def store(place: Place) -> OnlineStore:
    made = place.open()
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


def test_of_rows_at_the_same_times_the_value_hash_decides_in_either_order(place):
    winner = max((1, 2, 3), key=lambda temp: value_hash({"temp": temp}))
    for order in ((1, 2, 3), (3, 2, 1), (2, 3, 1)):
        for at_once in (True, False):
            store = place.open()
            store.activate("weather", None)
            store.activate("weather", 1)
            same = [("JFK", temp, 1, 1) for temp in order]
            for part in [same] if at_once else [[each] for each in same]:
                store.write("weather", 1, ["origin"], rows(*part))
            assert temps(store, "JFK") == [winner]


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


def test_a_reader_sees_what_is_written(store, place):
    store.write("weather", 1, ["origin"], rows(("JFK", 54, 10, 10)))
    reader = place.open(read_only=True)
    assert temps(reader, "JFK") == [54]
    store.write("weather", 1, ["origin"], rows(("JFK", 60, 11, 11)))
    assert temps(reader, "JFK") == [60]
    store.write("weather", 2, ["origin"], rows(("JFK", 70, 11, 11)))
    store.activate("weather", 2)
    assert temps(reader, "JFK") == [70]
    store.activate("weather", None)
    assert temps(reader, "JFK") == [None]


def test_a_reader_of_the_file_can_not_write(tmp_path):
    open_store(tmp_path / "air.sqlite").close()
    with pytest.raises(Exception, match="readonly"):
        open_store(tmp_path / "air.sqlite", read_only=True).write("weather", 1, ["origin"], rows(("JFK", 1, 99, 99)))


def test_a_store_that_is_not_there_is_unavailable_not_empty(tmp_path):
    with pytest.raises(Unavailable, match=r"online store 'nowhere\.sqlite'"):
        open_store(tmp_path / "nowhere.sqlite", read_only=True).read("weather", {"origin": ["JFK"]})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = open_store(tmp_path / "air.sqlite", f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        with pytest.raises(Unavailable, match="start Redis"):
            gone.read("weather", {"origin": ["JFK"]})
        with pytest.raises(Unavailable, match="start Redis"):
            gone.write("weather", 1, ["origin"], rows(("JFK", 1, 1, 1)))


def test_counts_are_of_the_active_revision(store):
    store.write("weather", 1, ["origin"], rows(("JFK", 1, 1, 1), ("LGA", 1, 1, 1), ("JFK", 2, 2, 2)))
    store.write("weather", 2, ["origin"], rows(("JFK", 1, 1, 1)))
    assert store.count("weather") == 2
    store.activate("weather", 2)
    assert store.count("weather") == 1
    assert store.count("other") == 0


def test_vectors_have_the_fields_asked_for_in_their_order(store):
    two = rows(("JFK", 1, 1, 1), ("LGA", 2, 1, 1)).with_columns(wind=pl.Series([None, 7.5]), word=pl.lit("é"))
    store.write("weather", 1, ["origin"], two)
    read = {"origin": ["LGA", "XXX", "JFK"]}
    assert store.vectors("weather", ["temp", "wind"], read) == [[2, 7.5], None, [1, None]]
    assert store.vectors("weather", ["word", "temp"], read) == [["é", 2], None, ["é", 1]]
    store.write("weather", 1, ["origin"], rows(("LGA", 3, 2, 2)))
    assert store.vectors("weather", ["temp"], read) == [[3], None, [1]]
    with pytest.raises(BadInput, match="did you mean 'temp'"):
        store.vectors("weather", ["temps"], read)


times = st.integers(-(2**50), 2**50)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(times, times, st.integers(-(2**63), 2**63 - 1)), st.tuples(times, times, st.integers(-(2**63), 2**63 - 1))
)
def test_places_compare_as_bytes_like_what_they_say(one, other):
    assert (packed.place(*one) > packed.place(*other)) == (one > other)
    assert packed.times(packed.place(*one)) == one[:2]


def test_a_file_of_an_older_layout_starts_empty(tmp_path):
    path = tmp_path / "air.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE active (view TEXT PRIMARY KEY, revision INTEGER NOT NULL)")
        old.execute("INSERT INTO active VALUES ('weather', 1)")
        old.execute("CREATE TABLE online (view TEXT, entity BLOB, event INTEGER)")
    store = open_store(path)
    assert store.active("weather") is None
    store.activate("weather", 1)
    store.write("weather", 1, ["origin"], rows(("JFK", 1, 1, 1)))
    assert temps(open_store(path), "JFK") == [1]


def test_keys_of_different_lengths_are_refused(store):
    with pytest.raises(BadInput, match="differ in length"):
        store.read("weather", {"a": [1], "b": [1, 2]})


def _write(place: Place, seed: int, values: list[tuple[str, int, int, int]]) -> None:
    store = place.open()
    shuffled = random.Random(seed).sample(values, len(values))
    for start in range(0, len(shuffled), 7):
        store.write("weather", 1, ["origin"], rows(*shuffled[start : start + 7]))


def test_random_writes_in_random_order_from_several_processes_leave_the_newest_event(place):
    generator = random.Random(20131101)
    values = [(f"n{generator.randrange(20)}", n, generator.randrange(60), generator.randrange(60)) for n in range(900)]
    place.open().activate("weather", 1)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(place, seed, values[seed::3])) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(240)
        assert writer.exitcode == 0
    names = sorted({value[0] for value in values})
    newest = {
        v[0]: max((w for w in values if w[0] == v[0]), key=lambda w: (w[2], w[3], value_hash({"temp": w[1]})))
        for v in values
    }
    assert temps(place.open(read_only=True), *names) == [newest[name][1] for name in names]


def test_what_is_forgotten_is_gone_under_every_revision_and_nothing_else_is(place, store):
    """A changed view may be filled several revisions later, for a revision is the project's."""
    for revision in (1, 7):
        store.write("weather", revision, ["origin"], rows(("JFK", 1, 1, 1), ("LGA", 2, 1, 1)))
    store.forget("weather", packed.entity_keys([["JFK"]]))
    store.forget("weather", packed.entity_keys([["JFK", "EWR"]]))
    for revision in (1, 7):
        store.activate("weather", revision)
        found = store.read("weather", {"origin": ["JFK", "LGA"]})
        assert [value.values.get("temp") for value in found] == [None, 2]
    store.activate("weather", None)
    assert store.count("weather") == 0
    store.activate("weather", 7)
    assert store.count("weather") == 0
