"""One score, whoever asks: curl, MLflow's client, an Open Inference client over HTTP and gRPC, and the pipeline as the notebook has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import serving_world as world
from alone_world import Served
from need import need
from ports import free_port

FRAME = pd.DataFrame(
    {"visits": [3.0, 17.5, np.nan], "plan": ["free", "paid", "vip"], "customer__age": [2.0, np.nan, 6.0]}
)
MODEL = world.MODEL.replace("/", ".")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return world.estimator(1)


@pytest.fixture(scope="module")
def expected(pipeline: Any) -> list[float]:
    """The scores in the notebook."""
    scores: list[float] = pipeline.predict_proba(FRAME)[:, 1].tolist()
    return scores


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def served(pipeline: Any, grpc_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("protocols")
    world.save(pipeline, world.FRAME, folder / "model")
    served = Served(folder / "home", f"{world.MODEL}={folder / 'model'}", "--grpc-port", str(grpc_port))
    yield served
    served.end()


def records() -> list[dict[str, Any]]:
    """The rows as JSON can say them."""
    found: list[dict[str, Any]] = json.loads(FRAME.to_json(orient="records"))
    return found


def test_curl_gets_the_notebooks_score(served: Served, expected: list[float]) -> None:
    curl = shutil.which("curl") or ""
    need(bool(curl), "curl")
    body = json.dumps({"rows": [{"features": row} for row in records()]})
    url, header = f"{served.url}/predict/{world.MODEL}", f"Authorization: Bearer {served.token}"
    said = subprocess.run(
        [curl, "-sS", "--noproxy", "*", "-H", header, "-d", body, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [output["score"] for output in json.loads(said.stdout)["outputs"]] == expected


def test_mlflows_own_client_gets_the_notebooks_score(
    served: Served, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.deployments import get_deploy_client

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", served.token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = get_deploy_client(served.url)
    assert client is not None
    split = json.loads(FRAME.to_json(orient="split"))
    del split["index"]
    for inputs in ({"dataframe_split": split}, {"dataframe_records": records()}):
        assert client.predict(endpoint=MODEL, inputs=inputs)["predictions"] == expected


def test_mlflows_formats_come_through_its_path_and_ours_alike(served: Served, expected: list[float]) -> None:
    with served.caller() as http:
        for path in (f"/invocations/{world.MODEL}", f"/endpoints/{MODEL}/invocations"):
            for key in ("dataframe_records", "instances", "inputs"):
                assert http.post(path, json={key: records()}).json()["predictions"] == expected


def tensors(client: Any) -> list[Any]:
    """The rows as tensors of a `tritonclient` module."""
    found = []
    for name, kind in (("visits", "FP64"), ("plan", "BYTES"), ("customer__age", "FP64")):
        values = FRAME[name].to_numpy(dtype=np.object_ if kind == "BYTES" else np.float64)
        found.append(client.InferInput(name, [len(FRAME)], kind))
        found[-1].set_data_from_numpy(values)
    return found


def test_an_open_inference_client_over_http_gets_the_notebooks_score(served: Served, expected: list[float]) -> None:
    from tritonclient import http

    client = http.InferenceServerClient(served.url.removeprefix("http://"))
    headers = {"Authorization": f"Bearer {served.token}"}
    answer = client.infer(MODEL, tensors(http), headers=headers, request_id="mine")
    assert answer.as_numpy("score").tolist() == expected
    assert answer.get_response()["id"] == "mine"
    client.close()


def test_an_open_inference_client_over_grpc_gets_the_notebooks_score(
    served: Served, grpc_port: int, expected: list[float]
) -> None:
    from tritonclient import grpc

    client = grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
    key = {"authorization": f"Bearer {served.token}"}
    assert (client.is_server_live(), client.is_server_ready()) == (True, True)
    answer = client.infer(MODEL, tensors(grpc), headers=key, request_id="mine")
    assert answer.as_numpy("score").tolist() == expected
    assert (answer.get_response().id, answer.get_response().model_version) == ("mine", "1")
    same = client.infer(MODEL, tensors(grpc), model_version="1", headers=key)
    assert same.as_numpy("score").tolist() == expected
    client.close()


def test_grpc_takes_values_one_by_one_too_and_answers_alike(
    served: Served, grpc_port: int, expected: list[float]
) -> None:
    """As clients in other languages send them, with the specification's messages."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    request = service_pb2.ModelInferRequest(model_name=MODEL, id="mine")
    for name, kind in (("visits", "FP64"), ("plan", "BYTES"), ("customer__age", "FP64")):
        tensor = request.inputs.add(name=name, datatype=kind, shape=[len(FRAME)])
        values = FRAME[name].tolist()
        if kind == "BYTES":
            tensor.contents.bytes_contents.extend(value.encode() for value in values)
        else:
            tensor.contents.fp64_contents.extend(values)
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, metadata=[("authorization", f"Bearer {served.token}")], timeout=60)
    assert list(answer.outputs[0].contents.fp64_contents) == expected
    assert (answer.id, answer.parameters["route"].string_param) == ("mine", "live")


def test_grpc_answers_what_it_refuses_with_its_own_status_and_the_services_sentence(
    served: Served, grpc_port: int
) -> None:
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    client = grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
    key = {"authorization": f"Bearer {served.token}"}
    wrong = grpc.InferInput("visit", [1], "FP64")
    wrong.set_data_from_numpy(np.array([1.0]))
    cases = [
        (MODEL, [wrong], key, "", "INVALID_ARGUMENT", "did you mean 'visits'"),
        (MODEL, tensors(grpc), {}, "", "UNAUTHENTICATED", "carries no valid credential"),
        ("other.churn", tensors(grpc), key, "", "NOT_FOUND", "does not exist"),
        (MODEL, tensors(grpc), key, "9", "NOT_FOUND", "is not at hand"),
    ]
    for model, inputs, headers, version, status, sentence in cases:
        with pytest.raises(InferenceServerException) as told:
            client.infer(model, inputs, model_version=version, headers=headers)
        assert (told.value.status(), sentence in told.value.message()) == (f"StatusCode.{status}", True), told.value
    client.close()


def test_the_generated_messages_are_what_the_protocols_file_says(tmp_path: Any) -> None:
    from pathlib import Path

    from grpc_tools import protoc

    from cellwork_hub.inference import grpc_door

    folder = Path(grpc_door.__file__).parent
    words = ["protoc", f"-I{folder}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "open_inference.proto"]
    assert protoc.main(words) == 0
    for name in ("open_inference_pb2.py", "open_inference_pb2.pyi"):
        assert (folder / "generated" / name).read_text() == (tmp_path / name).read_text(), f"run: {' '.join(words)}"
