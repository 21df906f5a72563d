"""The HTTP application: `create_app(settings, models)`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser

from service import cpus, problems
from service.errors import InvalidRequest, UnsupportedMedia
from service.imaging import MEDIA_TYPES
from service.limits import Admission, BodyLimit
from service.models import Models, ServedModel
from service.segment import OUTPUTS, Answer, Wish, parse_outputs, segment
from service.settings import Settings

RAW_TYPES = (*MEDIA_TYPES, "application/octet-stream")
INCLUDABLE = ("mask", "color", "overlay")
CLIENT_GONE = 499  # as nginx counts them; nobody receives it

REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in RAW_TYPES},
    },
}


def create_app(settings: Settings, models: Models) -> FastAPI:
    """Build the application around loaded models; they are warmed up when it starts."""
    admission = Admission(settings.max_requests, settings.max_pending_pixels)
    pool = ThreadPoolExecutor(cpus.available() + 1, thread_name_prefix="imaging")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await models.start()
        yield
        await models.stop()
        pool.shutdown(wait=False, cancel_futures=True)

    # A form's file stays in memory: its size is bounded, and a hardened container has no disk.
    MultiPartParser.spool_max_size = settings.max_body_bytes
    app = FastAPI(title="DeepLabv3+", lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(problems.RequestId)
    problems.install(app)
    _add_probes(app, models)
    _add_models(app, models)

    @app.post("/segment", openapi_extra={"requestBody": REQUEST_BODY}, response_class=Response)
    async def post_segment(
        request: Request,
        output: Annotated[str, Query(description=f"comma list of {', '.join(OUTPUTS)}")] = "mask",
        model: Annotated[str | None, Query(description="a name from /models")] = None,
        alpha: Annotated[float, Query(ge=0, le=1, description="overlay opacity")] = 0.5,
        include: Annotated[str | None, Query(description="images inside the JSON")] = None,
    ) -> Response:
        """Segment one photo, sent as multipart field `file` or as the body itself."""
        wish = Wish(
            parse_outputs(output, "output", OUTPUTS),
            alpha,
            parse_outputs(include, "include", INCLUDABLE) if include else (),
        )
        served = models.get(model)
        with admission.request():
            work = segment(
                await _image_bytes(request),
                served,
                wish,
                admission=admission,
                pool=pool,
                max_pixels=settings.max_pixels,
                deadline=time.monotonic() + settings.request_timeout_ms / 1000,
            )
            answer = await _unless_gone(request, work)
        if answer is None:
            return Response(status_code=CLIENT_GONE)
        headers = {**_model_headers(served), "Server-Timing": answer.stages.header()}
        return Response(answer.body, 200, headers, answer.media_type)

    return app


def _model_headers(served: ServedModel) -> dict[str, str]:
    return {
        "X-Model": served.name,
        "X-Model-Digest": served.engine.digest,
        "X-Execution-Provider": served.engine.provider,
    }


async def _image_bytes(request: Request) -> bytes:
    """The image of a request: the body itself, or the multipart field `file`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in RAW_TYPES:
        return await request.body()
    if kind != "multipart/form-data":
        raise UnsupportedMedia(
            f"Content-Type {kind or 'missing'!r}: send multipart/form-data with a field `file`, "
            f"or the image itself as {', '.join(RAW_TYPES)}"
        )
    async with request.form(max_files=1, max_fields=10) as form:
        field = form.get("file")
        if not isinstance(field, UploadFile):
            raise InvalidRequest(f"no file in field `file`; the form has {sorted(form)}")
        return await field.read()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer | None:
    """Do `work`, or drop it when the client disconnects first (then None)."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([task, watcher], return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_probes(app: FastAPI, models: Models) -> None:
    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"description": "not ready"}})
    async def readyz(response: Response) -> dict[str, str]:
        """Every model is warmed up and takes requests."""
        if models.healthy:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "not ready"}


def _add_models(app: FastAPI, models: Models) -> None:
    def describe(served: ServedModel) -> dict[str, Any]:
        return {
            "name": served.name,
            "default": served.name == models.default,
            "digest": served.engine.digest,
            "execution_provider": served.engine.provider,
            **served.engine.contract.model_dump(mode="json"),
        }

    @app.get("/models")
    async def list_models() -> dict[str, Any]:
        """What is served, and what it runs on."""
        return {"models": [describe(served) for served in models]}

    @app.get("/models/{name}")
    async def get_model(name: str) -> dict[str, Any]:
        """One model's contract."""
        return describe(models.get(name))
