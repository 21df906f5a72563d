"""The Open Inference Protocol v2 of Triton and KServe: tensors in, tensors out.

The input tensor has the size of the model, (N, H, W, C) uint8, and the caller resizes the photo.
Or it is of type BYTES and contains encoded photos, which are segmented as at /segment.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Header, Request, Response
from starlette.exceptions import HTTPException

import service
from postprocess.results.outputs import Result
from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    EngineUnavailable,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
    UnknownModel,
    UnsupportedMedia,
    check_answer,
)
from service.http import answers, catalogue, deadlines
from service.http.middleware.limits import HeldResponse
from service.http.problems import component, documented
from service.http.query import SegmentQuery
from service.http.segment import BYTES_PER_PIXEL, Job, Resources, segment_each
from service.http.upload import refuse_encoding, unless_gone
from service.inference import tensors
from service.inference.batcher import Share
from service.inference.contract import CONFIDENCE, INPUT, LABELS
from service.inference.models import Models, ServedModel
from service.inference.tensors import (
    DATATYPE,
    LENGTH_HEADER,
    Array,
    Call,
    InferAnswer,
    InferRequest,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
    Shape,
    TensorMetadata,
)
from service.settings import Settings

INFER_ERRORS = documented(
    *(InvalidRequest, InvalidImage, UnknownModel, BodyTimeout, BodyTooLarge, ImageTooLarge),
    *(
        UnsupportedMedia,
        InferenceFailed,
        Overloaded,
        ShuttingDown,
        EngineUnavailable,
        DeadlineExceeded,
    ),
)
BINARY = "application/octet-stream"
ANSWERS = {"application/json": {"schema": component(InferAnswer)}, BINARY: answers.BINARY}
MODEL = "/v2/models/{name}"
VERSION = "/versions/1"  # the only version of a model; optional in the path

LONG_JSON = 64 * 1024  # bytes
# Bytes of memory for each byte of JSON: the 3 bytes `[],` become a list and an entry in another.
MEMORY_OF_JSON = 24

EXTENSIONS = {"stats": "statistics", "config": "model configuration"}


@dataclass(frozen=True)
class Asked:
    """A request, and the model that answers it."""

    served: ServedModel
    settings: Settings
    resources: Resources
    deadline: float  # on the monotonic clock


def add_routes(app: FastAPI, settings: Settings, models: Models, resources: Resources) -> None:
    """Serve the paths below /v2."""
    _add_metadata(app, models)
    _add_extensions(app, models)

    serve = partial(
        app.post,
        response_class=Response,
        responses={200: {"content": ANSWERS}, **INFER_ERRORS},
        openapi_extra={"requestBody": _body_schema()},
    )

    @serve(MODEL + "/infer")
    @serve(MODEL + VERSION + "/infer")
    async def infer(
        request: Request,
        name: str,
        inference_header_content_length: Annotated[
            str | None, Header(description="length of the JSON part, if binary tensors follow it")
        ] = None,
        x_request_timeout_ms: Annotated[
            str | None, Header(description="deadline in milliseconds; beyond it 504")
        ] = None,
    ) -> Response:
        """Run the model on tensors."""
        refuse_encoding(request)
        limit_ms = deadlines.milliseconds(x_request_timeout_ms, settings.request_timeout_ms)
        with models.get(name).used() as served:
            resources.admission.check()
            async with deadlines.enforced(limit_ms) as deadline:
                sent = await request.body()
                with resources.admission.request():
                    asked = Asked(served, settings, resources, deadline)
                    work = _infer(sent, inference_header_content_length, asked)
                    body, length = await unless_gone(request, work)
            headers = catalogue.headers(served) | (
                {} if length is None else {LENGTH_HEADER: str(length)}
            )
        media_type = "application/json" if length is None else BINARY
        return HeldResponse(body, headers, media_type, resources.admission, request.scope)


async def _infer(body: bytes, header_length: str | None, asked: Asked) -> tuple[bytes, int | None]:
    engine, resources = asked.served.engine, asked.resources
    size = (*engine.input_size, engine.contract.input.channels)
    shape = Shape(header_length, size, tuple(engine.outputs))
    with resources.admission.claim(_pixels(body, shape)) as claim:
        call = await claim.result(_read(body, shape, resources))
        if call.images is not None:
            results = await infer_tensor(call.images, call, asked)
            write = partial(tensors.write, asked.served.name, call, results)
            return await claim.work(resources.pool, write)
    del body
    results = await infer_photos(call, asked)
    write = partial(tensors.write, asked.served.name, call, results)
    return await asyncio.wrap_future(resources.pool.submit(write))


async def infer_tensor(images: Array, call: Call, asked: Asked) -> dict[str, Array]:
    """Run the model on its own tensor (N, H, W, C); return the outputs by name."""
    pixels = images[..., 0].size
    _check_size(pixels, asked.resources.max_pixels)
    asked.resources.on_pixels(pixels)
    extras = CONFIDENCE if CONFIDENCE in call.outputs else LABELS
    batcher = asked.served.batcher
    share = Share(several=len(images) > 1)
    submitted = [
        batcher.submit(image, extras, deadline=asked.deadline, share=share) for image in images
    ]
    predictions = [prediction for prediction, _ in await asyncio.gather(*submitted)]
    results: dict[str, Array] = {LABELS: np.stack([each.labels for each in predictions])}
    if CONFIDENCE in call.outputs:
        results[CONFIDENCE] = np.stack([each.confidence for each in predictions])  # type: ignore[misc]
    return results


async def infer_photos(call: Call, asked: Asked) -> dict[str, Array]:
    """Decode photos and segment them at their own size, as /segment does."""
    settings, resources = asked.settings, asked.resources
    if len(call.photos) > settings.max_files:
        raise InvalidRequest(
            f"{len(call.photos)} photos in one request, the limit is {settings.max_files}"
        )
    query = SegmentQuery(output=["npz" if CONFIDENCE in call.outputs else "mask"])
    wish = query.wish(asked.served.engine.contract, "")
    job = Job(asked.served, wish, "", resources, asked.deadline, query.sliding(settings))
    unpacked = sum(map(len, call.photos))
    with resources.admission.held(unpacked, unpacked):
        maps = await segment_each(call.photos, job, _maps)
    if len({each[LABELS].shape for each in maps}) > 1:
        raise InvalidRequest("the photos have different sizes: send each in a request of its own")
    pixels = sum(each[LABELS].size for each in maps)
    tensors.check_numbers(pixels, call.outputs)
    check_answer(pixels * len(call.outputs), resources.admission.max_bytes)
    # In a thread: 200 megabytes would hold the event loop up for a third of a second.
    stack = partial(_stacked, maps, tuple(call.outputs))
    return await asyncio.wrap_future(resources.pool.submit(stack))


def _stacked(maps: list[dict[str, Array]], names: tuple[str, ...]) -> dict[str, Array]:
    """Join the maps of photos of one size, by name."""
    return {name: np.stack([each[name] for each in maps]) for name in names}


def _maps(result: Result) -> dict[str, Array]:
    """Return labels and confidence of a photo at its own size."""
    maps: dict[str, Array] = {LABELS: result.labels.image}
    if result.confidence is not None:
        maps[CONFIDENCE] = result.confidence.image
    return maps


def _pixels(body: bytes, shape: Shape) -> int:
    """Return the pixels to reserve: 3 binary bytes are one, JSON counts by the memory it takes."""
    text_length = tensors.json_length(body, shape)
    binary_length = len(body) - text_length
    return binary_length // 3 + text_length * MEMORY_OF_JSON // BYTES_PER_PIXEL


def _read(body: bytes, shape: Shape, resources: Resources) -> Future[Call]:
    """Read the tensor. A decoder reads long JSON, which would delay all requests here."""
    if tensors.json_length(body, shape) > LONG_JSON:
        return resources.decoders.read_tensor(body, shape)
    return resources.pool.submit(tensors.read, body, shape)


def _check_size(pixels: int, limit: int) -> None:
    if pixels > limit:
        raise ImageTooLarge(
            f"the request has {pixels} pixels, the limit is {limit}: send fewer images"
        )


def _body_schema() -> dict[str, Any]:
    tensor = {"type": "string", "format": "binary"}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": component(InferRequest)},
            BINARY: {"schema": tensor},
        },
    }


def _add_metadata(app: FastAPI, models: Models) -> None:
    @app.get("/v2")
    async def server_metadata() -> ServerMetadata:
        """Describe the server."""
        return ServerMetadata(
            name="deeplab", version=service.version(), extensions=["binary_tensor_data"]
        )

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Answer 200 while the process runs."""
        return {"live": True}

    @app.get("/v2/health/ready", responses={503: {"description": "not ready"}})
    async def ready(response: Response) -> dict[str, bool]:
        """Answer 200 while every model takes requests."""
        response.status_code = 200 if models.healthy else 503
        return {"ready": models.healthy}

    @app.get(MODEL, responses=documented(UnknownModel))
    @app.get(MODEL + VERSION, responses=documented(UnknownModel))
    async def model_metadata(name: str) -> ModelMetadata:
        """Describe a model's inputs and outputs."""
        if name == "stats" and name not in {model.name for model in models}:
            raise _not_offered(name)  # Triton's path for the statistics of all models
        engine = models.get(name).engine
        height, width = engine.input_size
        outputs = [_tensor(output, [-1, height, width]) for output in engine.outputs]
        inputs = [_tensor(INPUT, [-1, height, width, engine.contract.input.channels])]
        return ModelMetadata(
            name=name,
            versions=["1"],
            platform="onnxruntime_onnx",
            inputs=inputs,
            outputs=outputs,
        )

    unready = {503: {"description": "not ready"}, **documented(UnknownModel)}

    @app.get(MODEL + "/ready", responses=unready)
    @app.get(MODEL + VERSION + "/ready", responses=unready)
    async def model_ready(name: str, response: Response) -> ModelReady:
        """Answer 200 while this model takes requests."""
        is_ready = models.get(name).batcher.alive and models.healthy
        response.status_code = 200 if is_ready else 503
        return ModelReady(name=name, ready=is_ready)


def _add_extensions(app: FastAPI, models: Models) -> None:
    """Answer 404 on the paths of Triton's extensions, which are not offered here."""

    async def refuse(name: str, extension: str) -> Response:
        models.get(name)
        raise _not_offered(extension)

    for extension in EXTENSIONS:
        for path in (MODEL, MODEL + VERSION):
            app.get(f"{path}/{extension}", include_in_schema=False)(
                partial(refuse, extension=extension)
            )


def _not_offered(extension: str) -> HTTPException:
    return HTTPException(
        404,
        f"Triton's extension {EXTENSIONS[extension]!r} is not offered: GET /v2 lists those that "
        "are; /metrics has numbers, /models/NAME describes a model",
    )


def _tensor(name: str, shape: list[int]) -> TensorMetadata:
    return TensorMetadata(name=name, datatype=DATATYPE, shape=shape)
