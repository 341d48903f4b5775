"""The Open Inference protocol v2 over HTTP as one more door to the same endpoints; a model is called ``project.name`` there.

Each column is a tensor of its own, shape [n] or [n, 1]; or all of them, if they are numbers, one tensor of shape [n, columns]. Tensors
come as JSON or as the protocol's binary extension; answers are JSON.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np

from cellwork import __version__, ids
from cellwork.errors import BadInput, Unavailable, near_miss
from cellwork.serving import choose
from cellwork.serving.choose import Served
from cellwork.serving.endpoint import Endpoint
from cellwork.serving.plan import Plan
from cellwork.wire import Struct
from cellwork.wire.endpoints import Answer, Request, Row
from cellwork_hub.inference.deploy import Endpoints
from cellwork_hub.route import Call, Malformed, Route

HEADER = "inference-header-content-length"
TYPES = {
    "BOOL": "?", "FP32": "<f4", "FP64": "<f8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
KINDS = {"number": "FP64", "text": "BYTES", "flag": "BOOL"}


class Tensor(Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class Infer(Struct):
    inputs: list[Tensor]
    id: str = ""


def routes(endpoints: Endpoints) -> list[Route]:
    def own(call: Call) -> Endpoint:
        project, _, name = call.path["model"].partition(".")
        call.enter(project)
        return endpoints.get("/".join(ids.split_name(f"{project}/{name}")))

    def server(call: Call) -> dict[str, Any]:
        return {"name": "cellwork", "version": __version__, "extensions": ["binary_tensor_data"]}

    def model(call: Call) -> dict[str, Any]:
        served = _served(call, own(call))
        return describe(call.path["model"], served.ref.version, served.plan)

    def ready(call: Call) -> dict[str, Any]:
        if not _served(call, own(call)).predictor.ready:
            raise Unavailable("endpoint", call.path["model"], "is not ready yet", "ask again in a second")
        return {"ready": True}

    async def infer(call: Call) -> dict[str, Any]:
        asked, found, version = decode(call.body, call.headers.get(HEADER, "")), own(call), _version(call)
        request = Request(rows=rows(asked, _served(call, found).plan), version=version)
        return answer(asked, call.path["model"], await found.predict(request, call.principal.name))

    kind, one = dict[str, Any], "/v2/models/{model}"
    version = one + "/versions/{version}"
    return [
        Route("GET", "/v2", server, "endpoints:read", None, kind, "Open Inference: this server.", within="platform"),
        Route("GET", one, model, "endpoints:read", None, kind, "Open Inference: a model's tensors."),
        Route("GET", one + "/ready", ready, "endpoints:read", None, kind, "Open Inference: whether a model answers."),
        Route("POST", one + "/infer", infer, "endpoints:predict", bytes, kind, "Open Inference: score rows."),
        Route("GET", version, model, "endpoints:read", None, kind, "Open Inference: the tensors of a version at hand."),
        Route("GET", version + "/ready", ready, "endpoints:read", None, kind, "Open Inference: whether a version at hand answers."),
        Route("POST", version + "/infer", infer, "endpoints:predict", bytes, kind, "Open Inference: score rows by a version at hand."),
    ]  # fmt: skip


def _version(call: Call) -> int | None:
    text = call.path.get("version", "")
    if text and not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise BadInput("version", text, "is not a version's number", "write digits only")
    return int(text) if text else None


def _served(call: Call, endpoint: Endpoint) -> Served:
    """Return the version that the path names, else the live one."""
    version = _version(call)
    return endpoint.current().live if version is None else choose.named(endpoint.current(), version)


def decode(body: bytes, header: str) -> Infer:
    """Return the request of a body; `header` is the length of its JSON part if binary tensors follow it."""
    if header and not (header.isdecimal() and int(header) <= len(body)):
        raise Malformed("header", header, "is not the length of the JSON part", f"send a right {HEADER}")
    length = int(header) if header else len(body)
    try:
        infer = msgspec.json.decode(body[:length], type=Infer)
    except msgspec.ValidationError as error:
        raise BadInput("body", "", str(error), "send an Open Inference request") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed("body", "", f"is not JSON: {error}", "send a JSON document") from None
    position = length
    for tensor in infer.inputs:
        size = tensor.parameters.get("binary_data_size")
        if isinstance(size, int) and 0 <= size <= len(body) - position:
            tensor.data, position = _binary(tensor, body[position : position + size]), position + size
    return infer


def _binary(tensor: Tensor, content: bytes) -> list[Any]:
    if tensor.datatype != "BYTES":
        kind = np.dtype(TYPES.get(tensor.datatype, "?"))
        if len(content) % kind.itemsize:
            raise Malformed(f"tensor {tensor.name!r}", len(content), "bytes are no whole values", "send whole ones")
        return list(np.frombuffer(content, kind).tolist())
    texts, position = [], 0
    while position + 4 <= len(content):
        end = position + 4 + int.from_bytes(content[position : position + 4], "little")
        texts.append(content[position + 4 : end].decode(errors="replace"))
        position = end
    return texts


def rows(infer: Infer, plan: Plan) -> list[Row]:
    """Return the rows of a request; raises BadInput for a tensor that is no column, or of another length than the others."""
    tensors = [(tensor, _flat(tensor)) for tensor in infer.inputs]
    width = len(plan.columns)
    if len(tensors) == 1 and tensors[0][0].shape[1:] == [width] and tensors[0][0].name not in plan.names:
        values = [_plain(value) for value in tensors[0][1]]
        return [
            Row(features=dict(zip(plan.names, values[k : k + width], strict=True)))
            for k in range(0, len(values), width)
        ]
    for tensor, _ in tensors:
        if tensor.name not in plan.names:
            raise BadInput("tensor", tensor.name, "is not a column of the model", near_miss(tensor.name, plan.names))
    lengths = sorted({len(values) for _, values in tensors})
    if len(lengths) > 1:
        raise BadInput("tensors", lengths, "are of different lengths", "send one value a row in each")
    count = lengths[0] if lengths else 0
    return [Row(features={tensor.name: _plain(values[k]) for tensor, values in tensors}) for k in range(count)]


def _plain(value: Any) -> Any:
    """JSON has no NaN; a binary tensor has, and means no value."""
    return None if isinstance(value, float) and value != value else value


def _flat(tensor: Tensor) -> list[Any]:
    if tensor.datatype != "BYTES" and tensor.datatype not in TYPES:
        raise BadInput(
            "datatype", tensor.datatype, "is not one the protocol has", near_miss(tensor.datatype, ["BYTES", *TYPES])
        )
    values = tensor.data or []
    while values and isinstance(values[0], list):
        values = [value for part in values for value in (part if isinstance(part, list) else [part])]
    size = 1
    for extent in tensor.shape:
        size *= extent
    if len(values) != size or not tensor.shape:
        raise BadInput(
            f"tensor {tensor.name!r}", tensor.shape, f"is not the shape of {len(values)} values", "send both alike"
        )
    return values


def answer(infer: Infer, model: str, scored: Answer) -> dict[str, Any]:
    scores = [output.score for output in scored.outputs]
    said: dict[str, Any] = {
        "model_name": model,
        "model_version": str(scored.model.version),
        "parameters": {"route": scored.route, "reason": scored.reason},
        "outputs": [
            {"name": "score", "shape": [len(scores)], "datatype": "FP64", "data": scores},
            {"name": "prediction", "shape": [len(scores)], "datatype": "BYTES", "data": [o.id for o in scored.outputs]},
        ],
    }
    return {**said, "id": infer.id} if infer.id else said


def describe(model: str, version: int, plan: Plan) -> dict[str, Any]:
    inputs = [{"name": column.name, "datatype": KINDS[column.kind], "shape": [-1]} for column in plan.columns]
    outputs = [
        {"name": "score", "datatype": "FP64", "shape": [-1]},
        {"name": "prediction", "datatype": "BYTES", "shape": [-1]},
    ]
    return {"name": model, "versions": [str(version)], "platform": "cellwork", "inputs": inputs, "outputs": outputs}
