"""The Open Inference protocol v2 over gRPC: every call is asked of the service's own HTTP door, within the process.

So both protocols have one core: the same callers and rights (`authorization` in the metadata), limits, errors, metrics and log. An answer
that is no success becomes gRPC's status for it, with the error's sentence. Several processes share the port, as they share that of HTTP.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import ASGIApp, Message, Scope

from cellwork.errors import Unavailable
from cellwork.wire import Problem
from cellwork_hub.inference.open_inference import HEADER

if TYPE_CHECKING:
    import grpc

SERVICE = "inference.GRPCInferenceService"
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
    413: "RESOURCE_EXHAUSTED", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE",
}  # fmt: skip
GRACE_SECONDS = 10.0


class GrpcDoor:
    """Answers on `address` (``host:port``) what `app` says."""

    def __init__(self, app: ASGIApp, address: str, most_bytes: int) -> None:
        self.app, self.address, self.most_bytes = app, address, most_bytes
        self._server: Any = None

    async def open(self) -> None:
        """Raises Unavailable if gRPC is not installed or the port is another's."""
        try:
            import grpc
            import grpc.aio
        except ModuleNotFoundError:
            raise Unavailable("gRPC", "", "is not installed", "run: pip install 'cellwork[serve]'") from None
        options = [("grpc.max_receive_message_length", self.most_bytes), ("grpc.max_send_message_length", -1)]
        self._server = grpc.aio.server(options=options)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                handler, request_deserializer=request.FromString, response_serializer=_bytes
            )
            for name, (handler, request) in self._methods().items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise Unavailable("gRPC", self.address, f"can't be listened on ({error})", "choose another port") from None
        await self._server.start()

    async def close(self) -> None:
        """Take no new calls and finish those that have begun."""
        if self._server is not None:
            await self._server.stop(GRACE_SECONDS)

    def _methods(self) -> dict[str, tuple[Callable[[Any, Any], Awaitable[Any]], Any]]:
        from cellwork_hub.inference.generated import open_inference_pb2 as pb

        async def live(request: Any, context: grpc.aio.ServicerContext) -> Any:
            return pb.ServerLiveResponse(live=(await self._get("/health/live", context))[0] == 200)

        async def ready(request: Any, context: grpc.aio.ServicerContext) -> Any:
            return pb.ServerReadyResponse(ready=(await self._get("/health/ready", context))[0] == 200)

        async def server(request: Any, context: grpc.aio.ServicerContext) -> Any:
            return pb.ServerMetadataResponse(**await self._said("/v2", context))

        async def model_ready(request: Any, context: grpc.aio.ServicerContext) -> Any:
            status, body = await self._get(f"{path_of(request.name, request.version)}/ready", context)
            if status not in (200, 503):
                await fail(context, status, body)
            return pb.ModelReadyResponse(ready=status == 200)

        async def model(request: Any, context: grpc.aio.ServicerContext) -> Any:
            said = await self._said(path_of(request.name, request.version), context)
            inputs, outputs = ([pb.TensorMetadata(**tensor) for tensor in said[kind]] for kind in ("inputs", "outputs"))
            return pb.ModelMetadataResponse(
                name=said["name"], versions=said["versions"], platform=said["platform"], inputs=inputs, outputs=outputs
            )

        async def infer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            head, parts = asked(request)
            headers = [*_credentials(context), (HEADER.encode(), str(len(head)).encode())]
            path = f"{path_of(request.model_name, request.model_version)}/infer"
            status, body = await ask(self.app, "POST", path, headers, b"".join([head, *parts]))
            if status != 200:
                await fail(context, status, body)
            return answered(msgspec.json.decode(body), raw=bool(request.raw_input_contents))

        return {
            "ServerLive": (live, pb.ServerLiveRequest), "ServerReady": (ready, pb.ServerReadyRequest),
            "ServerMetadata": (server, pb.ServerMetadataRequest), "ModelReady": (model_ready, pb.ModelReadyRequest),
            "ModelMetadata": (model, pb.ModelMetadataRequest), "ModelInfer": (infer, pb.ModelInferRequest),
        }  # fmt: skip

    async def _get(self, path: str, context: grpc.aio.ServicerContext) -> tuple[int, bytes]:
        return await ask(self.app, "GET", path, _credentials(context), b"")

    async def _said(self, path: str, context: grpc.aio.ServicerContext) -> dict[str, Any]:
        status, body = await self._get(path, context)
        if status != 200:
            await fail(context, status, body)
        said: dict[str, Any] = msgspec.json.decode(body)
        return said


def path_of(model: str, version: str) -> str:
    return f"/v2/models/{model}/versions/{version}" if version else f"/v2/models/{model}"


def asked(request: Any) -> tuple[bytes, Sequence[bytes]]:
    """Return a ModelInferRequest as the HTTP protocol's JSON part, and the binary tensors behind it."""
    raw, parts = list(request.raw_input_contents), []
    tensors: list[dict[str, Any]] = []
    for number, tensor in enumerate(request.inputs):
        said: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if raw:
            parts.append(raw[number] if number < len(raw) else b"")
            said["parameters"] = {"binary_data_size": len(parts[-1])}
        elif tensor.datatype == "BYTES":  # as JSON they would have to be text; what they are is for one place to say
            parts.append(_texts(tensor.contents.bytes_contents))
            said["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            said["data"] = list(getattr(tensor.contents, CONTENTS.get(tensor.datatype, "fp64_contents")))
        tensors.append(said)
    return msgspec.json.encode({"inputs": tensors, "id": request.id}), parts


def answered(said: dict[str, Any], *, raw: bool) -> Any:
    """Return the ModelInferResponse of the HTTP protocol's answer; `raw` as the question was: numbers as bytes, not one by one."""
    from cellwork_hub.inference.generated import open_inference_pb2 as pb

    outputs, parts = [], []
    for tensor in said["outputs"]:
        kind = tensor["datatype"]
        values = [value.encode() for value in tensor["data"]] if kind == "BYTES" else tensor["data"]
        contents = None if raw else pb.Contents(**{CONTENTS[kind]: values})
        outputs.append(pb.Tensor(name=tensor["name"], datatype=kind, shape=tensor["shape"], contents=contents))
        parts.append(_texts(values) if kind == "BYTES" else struct.pack(f"<{len(values)}d", *values))
    parameters = {name: pb.Parameter(string_param=value) for name, value in said["parameters"].items()}
    return pb.ModelInferResponse(
        model_name=said["model_name"], model_version=said["model_version"], id=said.get("id", ""), parameters=parameters,
        outputs=outputs, raw_output_contents=parts if raw else [],
    )  # fmt: skip


def _texts(texts: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


async def fail(context: grpc.aio.ServicerContext, status: int, body: bytes) -> None:
    """End the call with the status and the sentence of a problem."""
    import grpc

    problem = msgspec.json.decode(body, type=Problem)
    code = getattr(grpc.StatusCode, STATUS.get(status, "INTERNAL"))
    await context.abort(code, f"{problem.subject} {problem.value!r} {problem.verdict}; {problem.way_out}")


async def ask(
    app: ASGIApp, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> tuple[int, bytes]:
    """Return status and body of what `app` answers."""
    said: list[Message] = []
    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "2", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": headers, "client": None, "server": None,
    }  # fmt: skip
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return given.pop() if given else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        said.append(message)

    await app(scope, receive, send)
    return said[0]["status"], b"".join(message.get("body", b"") for message in said[1:])


def _credentials(context: grpc.aio.ServicerContext) -> list[tuple[bytes, bytes]]:
    given = context.invocation_metadata() or ()
    return [
        (b"authorization", str(value).encode("latin-1", "replace")) for key, value in given if key == "authorization"
    ]


def _bytes(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content
