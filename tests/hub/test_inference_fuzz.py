"""Requests made from the service's own description, right ones and wrong ones: each gets an answer, and none is the service's fault."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import requests
import serving_world as world
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cellwork.client import Client
from cellwork.features.packed import entity_key
from cellwork.serving.plan import Key
from cellwork.wire.endpoints import ArmWish, Deploy, Request, Row
from cellwork.wire.features import OnlineValue
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

SEED = int(os.environ.get("CELLWORK_TEST_SEED", "2013"))
HANG_SECONDS = 60
"""Long, because the machine may be busy; the figure that is printed is the longest that was seen."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
COLUMN = st.sampled_from(["visits", "plan", "customer__age", "customer_id", ""]) | st.text(max_size=5)
RECORDS = st.lists(st.dictionaries(COLUMN, JSON, max_size=4), max_size=4)
INVOCATION = st.dictionaries(
    st.sampled_from(["dataframe_split", "dataframe_records", "inputs", "instances", "params"]),
    RECORDS | JSON | st.fixed_dictionaries({}, optional={"columns": st.lists(COLUMN, max_size=4), "data": JSON, "index": JSON}),
    max_size=2,
)  # fmt: skip
TENSOR = st.fixed_dictionaries(
    {
        "name": COLUMN, "datatype": st.sampled_from(["FP64", "FP32", "INT64", "BOOL", "BYTES", "FP16", ""]),
        "shape": st.lists(st.integers(-1, 5), max_size=3),
    },
    optional={"data": JSON | st.lists(st.floats(allow_nan=False), max_size=5), "parameters": st.dictionaries(
        st.just("binary_data_size"), st.integers(-2, 99) | JSON, max_size=1)},
)  # fmt: skip
INFER = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=3) | JSON}, optional={"id": st.text(max_size=9) | JSON}
)

ODD = [
    1 << 63, -(1 << 63) - 1, 10**30, 1e308, -0.0, True, None, [], {}, "", "\0", "x" * 601, "é" * 600, "2024-01-01T00:00:00Z", "2024-01-01T00:00:00",
    "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:00",
]  # fmt: skip
IN_ROW = [
    ("entities", "customer_id"), ("features", "visits"), ("features", "plan"), ("feature_events", "customer"), ("feature_batches", "customer"),
    ("observation",), ("key",), ("at",),
]  # fmt: skip
IN_REQUEST = ["id", "unit", "batch_run", "version", "deadline_ms", "explain"]


def look_up(_: str, needed: dict[str, list[Key]]) -> dict[str, dict[Key, OnlineValue]]:
    """Find the same for all, by the keys that the online store has."""
    found = OnlineValue(values={"age": 3.0}, event=datetime(2020, 1, 1, tzinfo=UTC), batch="bat_1")
    return {view: {key: found for key in keys if entity_key(key)} for view, keys in needed.items()}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder, folders = tmp_path_factory.mktemp("models"), world.Folders()
    for version in (1, 2):
        folders.add(world.saved(version, folder / str(version)), version)
    context = world.context(tmp_path_factory.mktemp("home"))

    def service() -> FrontDoor:
        return build(context, authorise=world.authorise, registry=folders, lookup=look_up, deadline=world.DEADLINE)

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        client.endpoints.put_arm(world.MODEL, 2, ArmWish(weight=0.3))
        yield client


def real(name: str, prediction: str) -> str:
    """Return what a path's parameter may be, so that a request comes further than its name."""
    known = {"project": "shop", "name": "churn", "model": world.MODEL.replace("/", "."), "prediction": prediction}
    return known.get(name, "1")


def bodies(path: str) -> st.SearchStrategy[Any]:
    """Return bodies of routes that the description says nothing of but that they are bytes."""
    return INFER if path.endswith("/infer") else INVOCATION if "invocations" in path else st.none()


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_no_request_is_answered_with_a_fault_of_the_service_and_none_hangs(client: Client, count: int) -> None:
    import schemathesis

    url, row = client.connection.url, Row(features={"visits": 3.0, "plan": "free"})
    prediction = client.endpoints.predict(world.MODEL, Request(rows=[row])).outputs[0].id
    http = requests.Session()
    http.trust_env, http.headers["authorization"] = False, "Bearer admin"
    schema = schemathesis.openapi.from_dict(http.get(f"{url}/openapi.json", timeout=HANG_SECONDS).json())
    statuses: Counter[int] = Counter()
    longest, faults = [0.0], list[str]()
    operations = [found.ok() for found in schema.get_all_operations()]

    def ask(case: Any, named: bool, body: Any) -> None:
        if named and case.path_parameters:
            case.path_parameters = {name: real(name, prediction) for name in case.path_parameters}
        more: dict[str, Any] = {}
        if body is not None:  # as bytes: NaN and Infinity are sent too, which are no JSON
            more = {"data": json.dumps(body).encode(), "headers": {"content-type": "application/json"}}
        answer = case.call(base_url=url, session=http, timeout=HANG_SECONDS, **more)
        statuses[answer.status_code] += 1
        longest[0] = max(longest[0], answer.elapsed)
        if answer.status_code >= 500:
            faults.append(f"{answer.status_code} {case.as_curl_command()}: {answer.text[:300]}")

    examples = settings(
        max_examples=max(1, count // len(operations)), deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for operation in operations:
        cases = st.one_of([operation.as_strategy(mode) for mode in schemathesis.GenerationMode])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seed(SEED)(examples(given(cases, st.booleans(), bodies(operation.path))(ask)))()
    print(
        f"{statuses.total()} requests to {len(operations)} routes: {dict(statuses)}; the longest took {longest[0]:.2f} s; seed {SEED}"
    )
    assert faults == []
    assert statuses.total() >= count // 2
    assert client.endpoints.predict(world.MODEL, Request(rows=[row])).outputs


def test_an_odd_value_in_any_one_place_is_answered_and_the_log_is_read_to_its_end(client: Client) -> None:
    statuses: Counter[int] = Counter()
    with httpx.Client(
        base_url=client.connection.url, headers={"authorization": "Bearer admin"}, trust_env=False, timeout=HANG_SECONDS
    ) as http:
        for body in odd_bodies():
            answer = http.post(f"/predict/{world.MODEL}", content=json.dumps(body).encode())
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, f"{body}: {answer.text}"
    assert statuses[200] > 10
    seq, read = 0, 0
    while page := client.endpoints.predictions(after=seq):
        seq, read = page[-1].seq, read + len(page)
    assert read > statuses[200] // 2, "those with a key are there once"


def odd_bodies() -> Iterator[dict[str, Any]]:
    """Yield right requests with one odd value each, some for the lane and some not."""
    for odd in ODD:
        for path in IN_ROW:
            row: dict[str, Any] = {"entities": {"customer_id": "c1"}, "features": {"visits": 3.0}}
            place = row if len(path) == 1 else row.setdefault(path[0], {})
            place[path[-1]] = odd
            yield {"rows": [row]}
            yield {"rows": [{"observation": "o1", **row}]}
        for name in IN_REQUEST:
            yield {"rows": [{"entities": {"customer_id": "c1"}}], name: odd}
