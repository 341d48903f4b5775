"""The quick lane: plain requests to a compiled version. It answers as the general way does, and logs before it answers."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import serving_world as world
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork import clock
from cellwork.client import Client
from cellwork.serving.plan import Column, Key, Plan
from cellwork.wire.endpoints import Answer, Deploy, Request, Row
from cellwork.wire.features import OnlineValue
from cellwork_hub.inference import open_inference
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

NOW = datetime.now(UTC)
ONLINE = {
    "c1": OnlineValue(values={"age": 3.0}, event=NOW - timedelta(hours=1), batch="bat_1"),
    "gap": OnlineValue(values={"age": None}, event=NOW - timedelta(hours=2)),
    "old": OnlineValue(values={"age": 3.0}, event=NOW - timedelta(days=30), batch="bat_0"),
}


class Lookup:
    quick = True

    def __call__(self, project: str, needed: dict[str, list[Key]]) -> dict[str, dict[Key, OnlineValue]]:
        asked = {key[0] for keys in needed.values() for key in keys}
        if "slow" in asked:
            time.sleep(0.5)
        if "broken" in asked:
            raise ArithmeticError("no such key can be looked up")
        return {view: {key: ONLINE[key[0]] for key in keys if key[0] in ONLINE} for view, keys in needed.items()}


class House:
    """A service with one endpoint of a compiled version, in this process, so that its lane can be seen."""

    def __init__(self, home: Path, folders: world.Folders) -> None:
        self.context, self.folders = world.context(home), folders
        self.door: FrontDoor | None = None

    def build(self) -> FrontDoor:
        self.door = build(self.context, authorise=world.authorise, registry=self.folders, lookup=Lookup())
        return self.door

    @property
    def quick(self) -> int:
        """How many requests the quick lane answered."""
        assert self.door is not None
        return sum(self.door.counts.values())


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("models")
    folders = world.Folders()
    folders.add(world.saved(1, folder / "1"), 1)
    return House(tmp_path_factory.mktemp("home"), folders)


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[Client]:
    with world.running(house.build, house.context.ports["inference"]) as address, world.caller(address) as client:
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        yield client


def post(client: Client, path: str, body: Any, token: str = "deployer") -> httpx.Response:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = {"authorization": f"Bearer {token}"}
    return httpx.post(client.connection.url + path, content=content, headers=headers, trust_env=False, timeout=60)


FEATURES = {"visits": 3.0, "plan": "free"}


def test_a_plain_request_takes_the_quick_lane_and_is_in_the_log(house: House, client: Client) -> None:
    before = house.quick
    answer = post(
        client, f"/predict/{world.MODEL}", {"rows": [{"features": FEATURES, "entities": {"customer_id": "c1"}}]}
    )
    assert (answer.status_code, house.quick) == (200, before + 1)
    said = msgspec.json.decode(answer.content, type=Answer)
    logged = client.endpoints.prediction(said.outputs[0].id)
    assert (logged.score, logged.version, logged.caller) == (said.outputs[0].score, said.model, "deployer")
    assert logged.features == {**FEATURES, "customer__age": 3.0}
    assert (logged.entities, logged.feature_batches) == ({"customer_id": "c1"}, {"customer": "bat_1"})
    assert logged.feature_events == {"customer": ONLINE["c1"].event}
    assert said.outputs[0].feature_age_s == pytest.approx((datetime.now(UTC) - NOW).total_seconds() + 3600, abs=60)


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "visits": st.none() | st.floats(-1e9, 1e9) | st.integers(-5, 50),
        "plan": st.none() | st.sampled_from(["free", "paid", "vip", 'a"b', "é"]),
        "customer__age": st.none() | st.floats(0, 99),
    },
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"features": VALUES}, optional={"entities": st.fixed_dictionaries({"customer_id": st.sampled_from([*ONLINE, "new", 7])})}
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_both_ways_give_the_same_answer_and_the_same_log(
    house: House, client: Client, rows: list[dict[str, Any]]
) -> None:
    before = house.quick
    quick = post(client, f"/predict/{world.MODEL}", {"rows": rows})
    assert (quick.status_code, house.quick) == (200, before + 1), quick.text
    general = post(client, f"/predict/{world.MODEL}", {"rows": [{**row, "observation": ""} for row in rows]})
    assert (general.status_code, house.quick) == (200, before + 1), general.text
    one, two = (msgspec.json.decode(answer.content, type=Answer) for answer in (quick, general))
    assert [(o.score, o.defaults, o.repeated) for o in one.outputs] == [
        (o.score, o.defaults, o.repeated) for o in two.outputs
    ]
    assert [o.feature_age_s is None for o in one.outputs] == [o.feature_age_s is None for o in two.outputs]
    for a, b in zip(one.outputs, two.outputs, strict=True):
        left, right = (client.endpoints.prediction(output.id) for output in (a, b))
        for name in (
            "features",
            "entities",
            "feature_events",
            "feature_batches",
            "defaults",
            "score",
            "route",
            "version",
        ):
            assert getattr(left, name) == getattr(right, name), name


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["visits", "plan", "customer__age"], "data": [[1.0, "paid", 2.0], [None, None, None]]}},
        {"dataframe_records": [{"visits": 1.0, "plan": "paid", "customer__age": 2.0}, {}]},
        {"instances": [{"visits": 1.0, "plan": "paid", "customer__age": 2.0}, {"plan": None}]},
        {"inputs": [{"customer__age": 2.0, "visits": 1.0, "plan": "paid"}, {}]},
    ],
)  # fmt: skip
def test_mlflows_formats_take_the_quick_lane_and_agree(house: House, client: Client, body: dict[str, Any]) -> None:
    rows = [Row(features={"visits": 1.0, "plan": "paid", "customer__age": 2.0}), Row(observation="o")]
    expected = [output.score for output in client.endpoints.predict(world.MODEL, Request(rows=rows)).outputs]
    before = house.quick
    answer = post(client, f"/invocations/{world.MODEL}", body).json()
    assert (answer["predictions"], len(answer["ids"]), house.quick) == (expected, 2, before + 1)


def test_the_open_inference_protocol_gives_the_same_scores_as_json_and_in_binary(client: Client) -> None:
    rows = [Row(features={"visits": 1.0, "plan": "paid", "customer__age": 2.0}), Row(features={"plan": "é"})]
    expected = [output.score for output in client.endpoints.predict(world.MODEL, Request(rows=rows)).outputs]
    model = world.MODEL.replace("/", ".")
    tensors = [
        {"name": "visits", "shape": [2], "datatype": "FP64", "data": [1.0, None]},
        {"name": "plan", "shape": [2, 1], "datatype": "BYTES", "data": [["paid"], ["é"]]},
        {"name": "customer__age", "shape": [2], "datatype": "FP32", "data": [2.0, None]},
    ]
    said = post(client, f"/v2/models/{model}/infer", {"inputs": tensors, "id": "mine"}).json()
    assert (said["id"], said["model_name"], said["outputs"][0]["data"]) == ("mine", model, expected)
    assert client.endpoints.prediction(said["outputs"][1]["data"][0]).score == expected[0]
    texts = b"".join(len(text).to_bytes(4, "little") + text for text in (b"paid", "é".encode()))
    parts = [struct.pack("<2d", 1.0, float("nan")), texts, struct.pack("<2f", 2.0, float("nan"))]
    for tensor, part in zip(tensors, parts, strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": len(part)}
    head = msgspec.json.encode({"inputs": tensors})
    headers = {"authorization": "Bearer deployer", "inference-header-content-length": str(len(head))}
    url = f"{client.connection.url}/v2/models/{model}/infer"
    binary = httpx.post(url, content=head + b"".join(parts), headers=headers, trust_env=False, timeout=60)
    assert binary.json()["outputs"][0]["data"] == expected


def test_a_nan_means_no_value_in_one_tensor_of_all_columns_too() -> None:
    plan = Plan(project="shop", columns=[Column(name="a", kind="number"), Column(name="b", kind="number")])
    content = struct.pack("<4d", 1.0, float("nan"), 3.0, 4.0)
    size = {"binary_data_size": len(content)}
    head = msgspec.json.encode({"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP64", "parameters": size}]})
    found = open_inference.rows(open_inference.decode(head + content, str(len(head))), plan)
    assert [row.features for row in found] == [{"a": 1.0, "b": None}, {"a": 3.0, "b": 4.0}]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([{"name": "visit", "shape": [1], "datatype": "FP64", "data": [1.0]}], "did you mean 'visits'"),
        ([{"name": "visits", "shape": [2], "datatype": "FP64", "data": [1.0]}], "is not the shape of 1 values"),
        ([{"name": "visits", "shape": [1], "datatype": "FP65", "data": [1.0]}], "did you mean 'FP64'"),
        ([{"name": "visits", "shape": [], "datatype": "FP64"}], "is not the shape"),
        ([], "send at least one row"),
    ],
)
def test_a_wrong_tensor_is_refused_with_its_fault(client: Client, tensors: list[dict[str, Any]], message: str) -> None:
    answer = post(client, f"/v2/models/{world.MODEL.replace('/', '.')}/infer", {"inputs": tensors})
    assert (answer.status_code, message in answer.text) == (422, True), answer.text


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{", 400, "is not JSON"),
        (b"\xff\xfe", 400, "is not JSON"),
        (b'{"rows": []}', 422, "send at least one row"),
        (b'{"rows": [{"features": {"visit": 1}}]}', 422, "did you mean 'visits'"),
        (b'{"rows": [{"features": {"visits": "1"}}]}', 422, "is not a number"),
        (b'{"rows": [{"features": {"visits": 1e400}}]}', 422, "range"),
        (b'{"rows": [{"features": {"visits": NaN}}]}', 400, "is not JSON"),
        (b'{"rows": [{"entities": {"customer": 1}}]}', 422, "did you mean 'customer_id'"),
        (b'{"rows": [{"entities": {"customer_id": 1000000000000000000000000000000}}]}', 422, "send it as text"),
        (b'{"rows": [{"at": "2024-01-01T00:00:00"}]}', 422, "has no time zone"),
        (b'{"rows": [{"at": "9999-12-31T23:59:59-23:00"}]}', 422, "outside the years"),
        (b'{"rows": [{"feature_events": {"customer": "2024-01-01T00:00:00"}}]}', 422, "has no time zone"),
        (b'{"rows": [{}], "unit": "a\\u0000b"}', 422, "holds a NUL"),
        (b'{"rows": [{"observation": "\\u0000"}]}', 422, "holds a NUL"),
        (b'{"rows": [{}], "unit": "' + b"u" * 601 + b'"}', 422, "send at most 600"),
    ],
)
def test_a_wrong_request_gets_its_own_answer(client: Client, content: bytes, status: int, said: str) -> None:
    answer = post(client, f"/predict/{world.MODEL}", content)
    assert answer.status_code == status, answer.text
    assert said in answer.text


def test_a_request_that_raises_where_nobody_thought_of_it_fails_alone(client: Client) -> None:
    """Those that wait are looked up and scored together: the fault of one was everybody's answer."""
    names = ["slow"] * 2 + [f"n{k}" for k in range(4)] + ["broken"] + [f"n{k}" for k in range(4, 8)]

    def ask(name: str) -> int:
        row = {"entities": {"customer_id": name}, "observation": f"o-{name}"}  # not for the lane
        return post(client, f"/predict/{world.MODEL}", {"rows": [row]}).status_code

    with ThreadPoolExecutor(len(names)) as pool:
        asked = []
        for name in names:
            asked.append((name, pool.submit(ask, name)))
            time.sleep(0.02)
        assert {name: future.result() for name, future in asked} == {
            name: 500 if name == "broken" else 200 for name in names
        }


def test_the_log_gives_back_the_last_moment_that_it_takes(client: Client) -> None:
    last = clock.MOST - timedelta(microseconds=1)
    answer = client.endpoints.predict(world.MODEL, Request(rows=[Row(features=FEATURES, at=last)]))
    assert client.endpoints.prediction(answer.outputs[0].id).at == last


def test_without_a_right_to_predict_there_is_no_answer(client: Client) -> None:
    body = {"rows": [{"features": FEATURES}]}
    assert post(client, f"/predict/{world.MODEL}", body, "viewer").status_code == 403
    assert post(client, f"/predict/{world.MODEL}", body, "nobody").status_code == 401
    assert post(client, "/predict/shop/nothing", body).status_code == 404


def test_a_log_that_can_not_be_written_answers_nothing_and_the_service_lives_on(
    house: House, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert house.door is not None
    writer = house.door.endpoints.segments
    writer.close()
    with monkeypatch.context() as patch:
        patch.setattr(writer, "folder", Path("/proc/nowhere"))
        answer = post(client, f"/predict/{world.MODEL}", {"rows": [{"features": FEATURES}]})
    assert (answer.status_code, "can't be written" in answer.text) == (503, True)
    assert post(client, f"/predict/{world.MODEL}", {"rows": [{"features": FEATURES}]}).status_code == 200


def test_a_caller_over_its_rate_is_told_so_and_the_next_second_is_a_new_one(house: House, client: Client) -> None:
    assert house.door is not None
    house.door.most_per_second = 20
    try:
        statuses = [post(client, f"/predict/{world.MODEL}", {"rows": [{}]}, "admin").status_code for _ in range(60)]
    finally:
        house.door.most_per_second = 0
    assert {200, 429} >= set(statuses) >= {200}
    assert statuses.count(200) >= 20
