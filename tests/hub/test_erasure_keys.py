"""A subject is erased by its key: where the author's SQL makes another one of it, under whatever key a revision had, and of whatever type."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from feature_world import DAY, work

from cellwork.client import Client
from cellwork.errors import BadInput
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import Aggregate, Definitions, Entity, Field, Prepared, Rolling, Select, View
from cellwork_hub.platform import feature_online, feature_tables
from cellwork_hub.platform.state import State

ADA = "Ada@x.org"
LOW = Prepared(name="low", sources=["orders"], sql='SELECT lower(email) AS email, "at", paid FROM orders')
WHO = Entity(name="who", join_keys=["email"])
LAST = View(
    name="last",
    entities=["who"],
    pipeline=Select(rows="low", event="at", known="at"),
    fields=[Field(name="paid", type="Float64")],
)
SPENT = {"spent": Aggregate(function="sum", column="paid")}
WEEK = View(
    name="week",
    entities=["who"],
    pipeline=Rolling(rows="low", event="at", known="at", window="7d", every="1h", aggregates=SPENT),
    fields=[Field(name="spent", type="Float64")],
)


def orders(emails: list[str]) -> pl.DataFrame:
    """Return an order an hour, of 1, 2, 3, …"""
    return pl.DataFrame(
        {
            "email": emails,
            "at": [DAY + timedelta(hours=hour) for hour in range(len(emails))],
            "paid": [1.0 + hour for hour in range(len(emails))],
        },
        schema_overrides={"at": pl.Datetime("us", "UTC")},
    )


@pytest.mark.parametrize("erased_before", [False, True])
def test_a_subject_whose_key_the_sql_makes_of_it_is_erased_from_views_and_online(
    client: Client, state: State, erased_before: bool
) -> None:
    rows = orders([ADA, "Bob@x.org", ADA])
    client.batches.declare("shop", RawDataset(name="orders", subject="email"))
    client.batches.ingest("shop", "orders", rows, "day0")
    client.batches.ingest("shop", "orders", rows.head(2), "day0")  # one only in what was corrected
    client.features.apply(Definitions(project="shop", prepared=[LOW], entities=[WHO], views=[LAST, WEEK]))
    work(state)
    if erased_before:
        client.batches.erase("shop", "nobody", "asked for it")
    done = client.batches.erase("shop", ADA, "asked for it")
    assert (done.views, done.aggregates) == (["last", "week"], [])
    assert {place.what: place.names for place in done.rewritten}["feature views"] == ["last", "week"]
    for view, field in (("last", "paid"), ("week", "spent")):
        assert set(client.features.rows("shop", view)["email"]) == {"bob@x.org"}
        read = client.features.online("shop", [view], {"email": [ADA.lower(), "bob@x.org"]})
        assert [value.values.get(field) for value in read.views[view]] == [None, 2.0]


def test_a_key_that_sql_makes_of_several_subjects_is_not_one_ones_to_erase(client: Client, state: State) -> None:
    """What the other one counts for stays, and the tombstone says so."""
    client.batches.declare("shop", RawDataset(name="orders", subject="email"))
    client.batches.ingest("shop", "orders", orders([ADA, ADA.upper()]), "day0")
    client.features.apply(Definitions(project="shop", prepared=[LOW], entities=[WHO], views=[WEEK]))
    work(state)
    done = client.batches.erase("shop", ADA, "asked for it")
    assert (done.views, done.aggregates) == ([], ["week"])
    assert {place.what: place.names for place in done.untouched}["rolling aggregates"] == ["week"]
    assert set(client.features.rows("shop", "week")["email"]) == {ADA.lower()}


def test_a_key_that_can_not_be_the_subject_does_not_stop_its_erasure(client: Client, state: State) -> None:
    numbered = 'SELECT CAST(hash(email) % 1000 AS BIGINT) AS email, "at", paid FROM orders'
    low = Prepared(name="low", sources=["orders"], sql=numbered)
    client.batches.declare("shop", RawDataset(name="orders", subject="email"))
    client.batches.ingest("shop", "orders", orders([ADA, "Bob@x.org"]), "day0")
    client.features.apply(Definitions(project="shop", prepared=[low], entities=[WHO], views=[LAST, WEEK]))
    work(state)
    done = client.batches.erase("shop", ADA, "asked for it")
    assert (done.state, done.views, done.aggregates) == ("done", ["last", "week"], [])
    assert client.features.rows("shop", "last")["paid"].to_list() == [2.0]
    assert client.features.rows("shop", "week")["email"].n_unique() == 1


# Two kinds of identifiers


def test_a_subject_is_erased_where_it_can_be_and_data_of_another_type_stays(client: Client, state: State) -> None:
    known = LOW.sql + " WHERE (SELECT count(*) FROM customers) > 0"
    low = Prepared(name="low", sources=["orders", "customers"], sql=known)
    client.batches.declare("shop", RawDataset(name="customers", subject="user_id"))
    client.batches.declare("shop", RawDataset(name="orders", subject="email"))
    client.batches.ingest("shop", "customers", pl.DataFrame({"user_id": [7, 8]}), "day0")
    client.batches.ingest("shop", "orders", orders([ADA, "7", "007", "9" * 30, "Bob@x.org"]), "day0")
    client.features.apply(Definitions(project="shop", prepared=[low], entities=[WHO], views=[LAST]))
    work(state)
    erased = [client.batches.erase("shop", value, "asked for it").rows for value in (ADA, "7", "007", "9" * 30)]
    assert erased == [{"orders": 1}, {"customers": 1, "orders": 1}, {"orders": 1}, {"orders": 1}]
    assert client.batches.rows("shop", "customers")["user_id"].to_list() == [8]
    assert client.features.rows("shop", "last")["email"].to_list() == ["bob@x.org"]


@pytest.mark.parametrize("value", ["bob@x.org", "007", "1_0", "9" * 30])
def test_a_value_that_no_subject_can_have_is_refused(client: Client, value: str) -> None:
    client.batches.declare("shop", RawDataset(name="customers", subject="user_id"))
    client.batches.ingest("shop", "customers", pl.DataFrame({"user_id": [7, 8, 10]}), "day0")
    with pytest.raises(BadInput, match=r"is of no type that a subject has here \(customers.user_id: int64\)"):
        client.batches.erase("shop", value, "asked for it")
    assert client.batches.erasures("shop") == []


# Revisions with other keys, and views that are gone

ODD = Prepared(
    name="odd", sources=["orders"], sql='SELECT email, CAST(paid AS BIGINT) % 2 AS odd, "at", paid FROM orders'
)
OFTEN = View(
    name="week",
    entities=["who"],
    pipeline=Rolling(rows="odd", event="at", known="at", window="7d", every="1h", aggregates=SPENT),
    fields=[Field(name="spent", type="Float64")],
)
FIRST = View(
    name="last",
    entities=["who"],
    pipeline=Select(rows="odd", event="at", known="at"),
    fields=[Field(name="paid", type="Float64")],
)
FOUR = ["bob@x.org", ADA, "eve@x.org", ADA]


def applied(client: Client, state: State, key: str) -> None:
    """Key both views by `key`."""
    entity = Entity(name="who", join_keys=[key])
    client.features.apply(Definitions(project="shop", prepared=[ODD], entities=[entity], views=[FIRST, OFTEN]))
    work(state)


def begun(client: Client) -> None:
    client.batches.declare("shop", RawDataset(name="orders", subject="email"))
    client.batches.ingest("shop", "orders", orders(FOUR), "day0")
    client.batches.ingest("shop", "orders", orders(["eve@x.org"]), "day1")


def kept(state: State, view: View, revision: int) -> pl.DataFrame:
    return feature_tables.read(state, "shop", view, revision, sealed=True)


@pytest.mark.parametrize("keys", [("odd", "email"), ("email", "odd"), ("email", "odd", "email")])
def test_each_revision_of_a_view_loses_the_subject_by_the_keys_that_it_had(
    client: Client, state: State, keys: tuple[str, ...]
) -> None:
    begun(client)
    for key in keys:
        applied(client, state, key)
    done = client.batches.erase("shop", ADA, "asked for it")
    assert (done.state, done.views) == ("done", ["last", "week"])
    counted = [("week" if number == len(keys) else f"week@{number}", key) for number, key in enumerate(keys, 1)]
    assert done.aggregates == [name for name, key in counted if key == "odd"]
    for number, key in enumerate(keys, 1):
        rows = kept(state, FIRST, number)
        if key == "email":
            assert set(rows["email"]) == set(kept(state, OFTEN, number)["email"]) == {"bob@x.org", "eve@x.org"}
        else:
            assert set(rows["paid"]) == ({1.0, 3.0} if number == len(keys) else {1.0})
        assert {2.0, 4.0} & set(rows["paid"]) == set()
    online = client.features.online("shop", ["last"], {keys[-1]: [ADA] if keys[-1] == "email" else [0]})
    assert online.views["last"][0].values.get("paid") is None


def test_views_that_were_removed_lose_the_subject_too(client: Client, state: State) -> None:
    begun(client)
    applied(client, state, "email")
    client.features.apply(Definitions(project="shop"))
    done = client.batches.erase("shop", ADA, "asked for it")
    rewritten = {place.what: place.names for place in done.rewritten}
    assert (done.views, rewritten["online values"]) == (["last", "week"], ["last", "week"])
    assert set(kept(state, FIRST, 1)["email"]) == set(kept(state, OFTEN, 1)["email"]) == {"bob@x.org", "eve@x.org"}
    with feature_online.opened(state, "shop") as store:
        found = [store.read(view, {"email": [ADA, "bob@x.org"]}) for view in ("last", "week")]
    assert [[bool(value.values) for value in values] for values in found] == [[False, True]] * 2


def test_an_online_value_that_came_from_the_subject_goes_back_to_what_is_left(client: Client, state: State) -> None:
    begun(client)
    client.batches.ingest("shop", "orders", orders(["eve@x.org", "bob@x.org"]), "day2")
    applied(client, state, "odd")
    asked = {"odd": [0, 1]}
    before = client.features.online("shop", ["last"], asked).views["last"]
    assert [value.values["paid"] for value in before] == [4.0, 3.0]
    client.batches.erase("shop", ADA, "asked for it")
    after = client.features.online("shop", ["last"], asked).views["last"]
    assert [value.values["paid"] for value in after] == [2.0, 3.0]


# What was read before


def test_prepared_rows_read_before_an_erasure_are_not_kept_after_it(client: Client, state: State) -> None:
    """The joined source was read with the first batch; what the second one makes of it still has the subject."""
    joined = "SELECT day, (SELECT string_agg(email, ' ' ORDER BY email) FROM orders) AS emails FROM days"
    paired = Prepared(name="paired", sources=["days", "orders"], sql=joined)
    known = Definitions(project="shop", prepared=[paired])
    client.batches.declare("shop", RawDataset(name="orders", subject="email"))
    client.batches.ingest("shop", "orders", orders([ADA, "bob@x.org"]), "day0")
    for day in range(2):
        client.batches.ingest("shop", "days", pl.DataFrame({"day": [day]}), f"day{day}")
    done: list[str] = []

    def erasing(rows: pl.DataFrame) -> pl.DataFrame:
        if not done:
            done.append(client.batches.erase("shop", ADA, "asked for it").state)
        return rows

    feature_tables.prepared_rows(state, known, "paired", only=erasing)
    assert done == ["done"]
    assert feature_tables.prepared_rows(state, known, "paired")["emails"].to_list() == ["bob@x.org"] * 2
    kept = state.home.prepared("shop", "paired").glob("*.parquet")
    assert [pl.read_parquet(file)["emails"].to_list() for file in kept] == [["bob@x.org"]] * 2
