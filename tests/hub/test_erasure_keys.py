"""A subject is erased where the author's SQL makes another key of it: that key is the subject's, or one that it shares."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from feature_world import DAY, work

from cellwork.client import Client
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import Aggregate, Definitions, Entity, Field, Prepared, Rolling, Select, View
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
