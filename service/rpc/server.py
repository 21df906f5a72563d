"""Answer gRPC calls beside HTTP: each becomes a request to the application under /v2.

So keys, limits, deadlines, metrics and logs are those of HTTP. The tensors of a call become the
binary tensors of the HTTP form, and back.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp, Message

from service.inference.tensors import ENCODED, LENGTH, LENGTH_HEADER
from service.rpc.messages import SERVICE, message
from service.settings import Settings

HEALTH = "grpc.health.v1.Health"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse.status
OVERHEAD = 64 * 1024  # bytes of a message besides its tensors
AHEAD = 512 * 1024  # bytes of a message that a client may send before it is read
STOP_S = 5.0
FORWARDED = ("authorization", "x-request-id", "traceparent", "tracestate")
STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Method = Callable[[bytes, Any], Coroutine[Any, Any, bytes]]


@dataclass
class Answer:
    """The application's answer."""

    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Calls:
    """The methods of the gRPC service."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def server_live(self, _: bytes, context: Any) -> bytes:
        """Answer that the process runs."""
        answer = await self._ask(context, "GET", "/v2/health/live")
        return _written("ServerLiveResponse", live=answer.status == 200)

    async def server_ready(self, _: bytes, context: Any) -> bytes:
        """Answer whether every model takes requests."""
        answer = await self._ask(context, "GET", "/v2/health/ready")
        return _written("ServerReadyResponse", ready=answer.status == 200)

    async def health(self, _: bytes, context: Any) -> bytes:
        """Answer gRPC's own health check, of the service as a whole."""
        answer = await self._ask(context, "GET", "/v2/health/ready")
        return SERVING if answer.status == 200 else NOT_SERVING

    async def server_metadata(self, _: bytes, context: Any) -> bytes:
        """Describe the server."""
        answer = await self._good(context, "GET", "/v2")
        return _written("ServerMetadataResponse", **json.loads(answer.body))

    async def model_ready(self, data: bytes, context: Any) -> bytes:
        """Answer whether a model takes requests."""
        path = await self._model_path(data, "ModelReadyRequest", context)
        answer = await self._ask(context, "GET", f"{path}/ready")
        if answer.status not in {200, 503}:
            await _abort(context, answer)
        return _written("ModelReadyResponse", ready=answer.status == 200)

    async def model_metadata(self, data: bytes, context: Any) -> bytes:
        """Describe a model."""
        path = await self._model_path(data, "ModelMetadataRequest", context)
        answer = await self._good(context, "GET", path)
        return _written("ModelMetadataResponse", **json.loads(answer.body))

    async def model_infer(self, data: bytes, context: Any) -> bytes:
        """Run a model."""
        request = await _parsed("ModelInferRequest", data, context)
        path = _path(request.model_name, request.model_version)
        try:
            text, tail = _http_form(request)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        del data, request
        headers = {"content-type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
        answer = await self._good(context, "POST", f"{path}/infer", headers, text + tail)
        return _grpc_form(answer)

    async def _model_path(self, data: bytes, kind: str, context: Any) -> str:
        request = await _parsed(kind, data, context)
        return _path(request.name, request.version)

    async def _good(self, context: Any, *request: Any) -> Answer:
        answer = await self._ask(context, *request)
        if answer.status != 200:
            await _abort(context, answer)
        return answer

    async def _ask(
        self,
        context: Any,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send a request to the application; a call that is cancelled cancels it."""
        answer, parts, sent = Answer(), list[bytes](), False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # the client is still there
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(given: Message) -> None:
            if given["type"] == "http.response.start":
                answer.status = given["status"]
                pairs = given.get("headers", ())
                answer.headers = {name.decode().lower(): value.decode() for name, value in pairs}
            else:
                parts.append(given.get("body", b""))

        await self._app(_scope(context, method, path, headers or {}), receive, send)
        answer.body = b"".join(parts)
        return answer


def _scope(context: Any, method: str, path: str, own: dict[str, str]) -> dict[str, Any]:
    given = {key: value for key, value in context.invocation_metadata() or () if key in FORWARDED}
    headers = {"host": "grpc", **own, **given}
    left_s = context.time_remaining()
    if left_s is not None and own:
        headers["x-request-timeout-ms"] = str(min(3_600_000, max(1, int(left_s * 1000))))
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), text.encode()) for name, text in headers.items()],
        "client": (client_address(context.peer()), 0),
        "server": None,
    }


def client_address(peer: str) -> str:
    """Return the address in gRPC's name of a client, such as `ipv6:%5B::1%5D:50000`.

    The port is left out: connections of one client have different ones.
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return peer
    return rest.rpartition(":")[0].removeprefix("[").removesuffix("]")


def _path(name: str, version: str) -> str:
    return f"/v2/models/{name}" + (f"/versions/{version}" if version else "")


async def _parsed(kind: str, data: bytes, context: Any) -> Any:
    request = message(kind)
    try:
        request.ParseFromString(data)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no {kind}")
    return request


def _http_form(request: Any) -> tuple[bytes, bytes]:
    """Return the JSON and the bytes after it; raises ValueError."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise ValueError(f"{len(request.inputs)} inputs, but {len(raw)} raw_input_contents")
    tails = raw or [_contents(each) for each in request.inputs]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(tail)},
        }
        for tensor, tail in zip(request.inputs, tails, strict=True)
    ]
    body: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if request.outputs:
        body["outputs"] = [{"name": each.name} for each in request.outputs]
    if request.id:
        body["id"] = request.id
    return json.dumps(body).encode(), b"".join(tails)


def _contents(tensor: Any) -> bytes:
    """Return a tensor whose values are in the message one by one, as bytes."""
    if tensor.datatype == ENCODED:
        each = tensor.contents.bytes_contents
        return b"".join(LENGTH.pack(len(photo)) + photo for photo in each)
    return bytes(tensor.contents.uint_contents)  # a ValueError for a value above 255


def _grpc_form(answer: Answer) -> bytes:
    length = int(answer.headers[LENGTH_HEADER.lower()])
    text, at, raw = json.loads(answer.body[:length]), length, []
    outputs = []
    for tensor in text["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        raw.append(answer.body[at : at + size])
        at += size
        outputs.append({key: tensor[key] for key in ("name", "datatype", "shape")})
    return _written(
        "ModelInferResponse",
        model_name=text["model_name"],
        model_version=text["model_version"],
        id=text.get("id", ""),
        outputs=outputs,
        raw_output_contents=raw,
    )


def _written(kind: str, /, **fields: Any) -> bytes:
    written: bytes = message(kind, **fields).SerializeToString()
    return written


async def _abort(context: Any, answer: Answer) -> NoReturn:
    """End the call with the status and the text of a problem."""
    if after := answer.headers.get("retry-after"):
        context.set_trailing_metadata((("retry-after", after),))
    try:
        detail = json.loads(answer.body)["detail"]
    except (ValueError, KeyError):
        detail = f"status {answer.status}"
    status = STATUSES.get(answer.status, grpc.StatusCode.INTERNAL)
    await context.abort(status, detail)
    raise AssertionError("abort returned")


class Arrivals:
    """Limits the messages that arrive at a time, as gRPC keeps each in memory until it is complete.

    Other calls wait. A client, by its address, takes all places but one at most.
    """

    def __init__(self, places: int, timeout_s: float) -> None:
        """`timeout_s`: how long a message may take to arrive, with the time that it waits."""
        self._places = asyncio.Semaphore(places)
        self._each = max(1, places - 1)
        self._timeout_s = timeout_s
        self._clients: dict[str, asyncio.Semaphore] = {}
        self._calls = Counter[str]()  # by client

    async def read(self, context: Any) -> bytes:
        """Return the message of a call; ends the call if it does not arrive in time."""
        try:
            async with asyncio.timeout(self._timeout_s), self._place(context.peer()):
                given: Any = await context.read()
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the message took more than {self._timeout_s:g} s to arrive",
            )
        if given is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        return bytes(given)

    @asynccontextmanager
    async def _place(self, peer: str) -> AsyncIterator[None]:
        client = client_address(peer)
        own = self._clients.setdefault(client, asyncio.Semaphore(self._each))
        self._calls[client] += 1
        try:
            async with own, self._places:
                yield
        finally:
            self._calls[client] -= 1
            if not self._calls[client]:
                del self._calls[client], self._clients[client]


def _handlers(calls: Calls, arrivals: Arrivals) -> list[grpc.GenericRpcHandler]:
    def unary(method: Method) -> grpc.RpcMethodHandler:
        async def answered(_: object, context: Any) -> bytes:
            return await method(await arrivals.read(context), context)

        # gRPC reads the one message of a unary call before the handler is called; this one is
        # called first. Clients see no difference.
        return grpc.stream_unary_rpc_method_handler(answered)  # bytes in, bytes out

    ours = {
        "ServerLive": unary(calls.server_live),
        "ServerReady": unary(calls.server_ready),
        "ServerMetadata": unary(calls.server_metadata),
        "ModelReady": unary(calls.model_ready),
        "ModelMetadata": unary(calls.model_metadata),
        "ModelInfer": unary(calls.model_infer),
    }
    return [
        grpc.method_handlers_generic_handler(SERVICE, ours),
        grpc.method_handlers_generic_handler(HEALTH, {"Check": unary(calls.health)}),
    ]


@asynccontextmanager
async def serving(app: ASGIApp, settings: Settings) -> AsyncIterator[None]:
    """Answer calls on --grpc-port while the block runs."""
    longest = settings.max_body_bytes + OVERHEAD
    places = max(1, settings.max_pending_bytes // 2 // longest)
    arrivals = Arrivals(places, settings.body_timeout_s)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", longest),
            ("grpc.http2.bdp_probe", 0),  # else a fast connection is let send all of its message
            ("grpc.http2.lookahead_bytes", AHEAD),
            ("grpc.max_send_message_length", -1),  # answers have a limit of their own
            ("grpc.so_reuseport", 0),  # else a second service could take the same port
        ],
        maximum_concurrent_rpcs=settings.max_requests,
    )
    for handler in _handlers(Calls(app), arrivals):
        server.add_generic_rpc_handlers((handler,))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    server.add_insecure_port(f"{host}:{settings.grpc_port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(STOP_S)
