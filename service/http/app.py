"""The HTTP application: `create_app(settings, models)`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from threading import Barrier
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.formparsers import MultiPartParser
from starlette.middleware.cors import CORSMiddleware

from postprocess.results import encoders, outputs
from service.allow_list import AllowList
from service.decoders.interface import Decoders, Threads
from service.decoders.light import LightInThreads
from service.errors import (
    AnswerTooLarge,
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    EngineUnavailable,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidRequest,
    NotAcceptable,
    Overloaded,
    ShuttingDown,
    UnknownModel,
    UnsupportedMedia,
)
from service.http import (
    answers,
    api_docs,
    catalogue,
    deadlines,
    open_inference,
    packing,
    playground,
    probes,
    problems,
)
from service.http.bodies import json_request
from service.http.bodies.json_request import SegmentRequest
from service.http.bodies.urls import Fetcher
from service.http.jobs import routes
from service.http.jobs.metrics import JobCollector
from service.http.jobs.runner import Jobs
from service.http.middleware.keys import Keys, is_open
from service.http.middleware.limits import BODY_BYTES, Admission, BodyLimit, HeldResponse
from service.http.middleware.metrics_port import MetricsPort
from service.http.middleware.pace import Paced
from service.http.middleware.protocol import AbsoluteForm
from service.http.middleware.shares import Shares
from service.http.middleware.shutdown import ShutdownAnswer
from service.http.operating_point import chosen
from service.http.query import ParameterLimit, SegmentQuery, bounds, refuse_repeats
from service.http.segment import Job, Resources, segment
from service.http.telemetry import metrics
from service.http.telemetry.metrics import DecoderCollector, Metrics
from service.http.telemetry.observation import Observation
from service.http.upload import REQUEST_BODY, Intake, json_options, unless_gone, uploads
from service.inference import cpus
from service.inference.models import Models
from service.inference.tensors import LENGTH_HEADER, InferAnswer, InferRequest
from service.settings import Settings

if TYPE_CHECKING:  # at run time it is loaded only if traces are exported
    from service.http.telemetry.tracing import Tracing

PICTURE_TYPES = tuple(media_type for media_type, _ in encoders.FORMATS.values())
DECODERS_START_S = 10.0  # to load their libraries, which takes less than a second

# Headers that pages of allowed other origins may send and read (CORS).
ASKED_WITH = (
    *("Authorization", "Content-Type", "X-Request-ID", deadlines.HEADER, LENGTH_HEADER),
    *("traceparent", "tracestate", "baggage"),
)
ANSWERED_WITH = (
    *("X-Model", "X-Model-Digest", "X-Execution-Provider", "X-Execution-Precision", "X-Request-ID"),
    *("X-Quality", "Server-Timing", "Retry-After", "Location", LENGTH_HEADER),
)

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the requested output; several outputs as a ZIP, several photos as a ZIP "
        "or multipart/mixed",
        "content": {
            # First: a generated client takes the first type it knows, here any answer as bytes.
            "application/octet-stream": answers.BINARY,
            "application/json": {
                "schema": {
                    "anyOf": [
                        problems.component(answers.JsonResult),
                        problems.component(answers.RleResult),
                    ]
                }
            },
            "application/geo+json": {"schema": problems.component(answers.PolygonsResult)},
            **dict.fromkeys((*PICTURE_TYPES, outputs.ZIP, packing.MULTIPART), answers.BINARY),
        },
    },
    **problems.documented(
        *(InvalidRequest, InvalidImage, UnknownModel, NotAcceptable, BodyTimeout, BodyTooLarge),
        *(
            ImageTooLarge,
            AnswerTooLarge,
            UnsupportedMedia,
            InferenceFailed,
            Overloaded,
            ShuttingDown,
        ),
        *(EngineUnavailable, DeadlineExceeded),
    ),
}


def create_app(
    settings: Settings,
    models: Models,
    tracing: Tracing | None = None,
    processes: Decoders | None = None,
    beside: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Build the application for loaded models, which are warmed up when it starts.

    `processes`: they decode large or unusual photos; None: threads decode all photos. `beside`:
    another server of the application, such as gRPC's, that runs as long as it does.
    """
    pool = _started_pool(cpus.available() + 1)
    threads = Threads(pool)
    decoders: Decoders = LightInThreads(threads, processes) if processes else threads
    models.others_healthy = lambda: decoders.healthy
    measured = Metrics(models)
    measured.registry.register(DecoderCollector(decoders.ended))

    resources = _resources(settings, measured, tracing, pool, decoders)
    fetcher = None
    if settings.allow_url_hosts:
        allowed = AllowList.of(settings.allow_url_hosts)
        fetcher = Fetcher(allowed, settings.max_body_bytes)
    jobs = None
    if settings.jobs is not None:
        jobs = Jobs(settings.jobs, settings, models, resources, fetcher)
        measured.registry.register(JobCollector(jobs))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await models.start()
        await _started(decoders)
        if jobs is not None:
            jobs.start()
        try:
            async with models.watched(), beside(app) if beside else nullcontext():
                yield
        finally:  # an error may end the block: `deeplab-client --local` runs in it
            if jobs is not None:
                await jobs.stop()
            await models.stop()
            decoders.close()
            pool.shutdown(wait=False, cancel_futures=True)
            if tracing:
                await asyncio.to_thread(tracing.close)

    # Uploaded files stay in memory: their size is limited, and a container may have no disk.
    MultiPartParser.spool_max_size = settings.max_body_bytes
    app = FastAPI(
        title="DeepLabv3+",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would follow the Host header, which clients control
        generate_unique_id_function=_operation_id,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(refuse_repeats)],
    )
    _add_middleware(app, settings, models, measured, tracing, admission=resources.admission)
    problems.install(app, bounds)
    _add_routes(app, settings, models, resources, measured, fetcher=fetcher, jobs=jobs)
    return app


def _resources(
    settings: Settings,
    measured: Metrics,
    tracing: Tracing | None,
    pool: ThreadPoolExecutor,
    decoders: Decoders,
) -> Resources:
    """Return the resources that all requests share; stages are reported to metrics and traces."""

    def on_stage(name: str, seconds: float, ended_ago_s: float) -> None:
        measured.stage(name, seconds)
        if tracing:
            tracing.stage(name, seconds, ended_ago_s)

    return Resources(
        Admission(settings.max_requests, settings.max_pending_pixels, settings.max_pending_bytes),
        pool,
        decoders,
        settings.max_pixels,
        on_stage=on_stage,
        on_pixels=measured.pixels.inc,
        on_problem=lambda code: measured.rejected.labels(code).inc(),
    )


def _started_pool(threads: int) -> ThreadPoolExecutor:
    """All threads start at once: more threads later on then always mean a leak."""
    pool, all_started = ThreadPoolExecutor(threads, thread_name_prefix="imaging"), Barrier(threads)
    for _ in range(threads):
        pool.submit(all_started.wait)
    return pool


async def _started(decoders: Decoders) -> None:
    """Wait until photos can be decoded; after the time limit, /readyz reports that they cannot."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DECODERS_START_S):
            while not decoders.healthy:
                await asyncio.sleep(0.01)


def _add_middleware(
    app: FastAPI,
    settings: Settings,
    models: Models,
    measured: Metrics,
    tracing: Tracing | None,
    *,
    admission: Admission,
) -> None:
    """Add the middleware. A request passes the one added last first."""
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.body_timeout_s,
        admission=admission,
        stored={} if settings.jobs is None else {routes.PATH: settings.max_job_bytes},
        min_bytes_per_s=settings.min_bytes_per_s,
    )
    if settings.max_requests_per_client:
        app.add_middleware(
            Shares, most=settings.max_requests_per_client, by_key=bool(settings.api_keys)
        )
    if settings.api_keys:
        app.add_middleware(
            Keys,
            digests=settings.api_keys,
            admins=settings.admin_keys,
            per_minute=settings.rate_limit_per_minute,
        )
    if settings.metrics_port:
        app.add_middleware(MetricsPort, port=settings.metrics_port)
    app.add_middleware(ParameterLimit)
    if settings.refusals_per_s:
        app.add_middleware(
            Paced, refusals_per_s=settings.refusals_per_s, metrics_port=settings.metrics_port
        )
    app.add_middleware(ShutdownAnswer, draining=lambda: models.draining)
    if settings.cors_origins:  # outside of what answers, so that a page can read every error
        _allow_origins(app, settings.cors_origins)
    app.add_middleware(Observation, metrics=measured, draining=lambda: models.draining)
    if tracing:
        app.add_middleware(tracing.middleware, tracing=tracing)
    app.add_middleware(AbsoluteForm)


def _add_routes(
    app: FastAPI,
    settings: Settings,
    models: Models,
    resources: Resources,
    measured: Metrics,
    *,
    fetcher: Fetcher | None,
    jobs: Jobs | None,
) -> None:
    """Add every endpoint, then the schema of them all."""
    playground.add_routes(app)
    api_docs.add_routes(app)
    probes.add_routes(app, models)
    catalogue.add_routes(app, settings, models, resources.admission)
    metrics.add_route(app, measured)
    _add_segment(app, settings, models, resources, fetcher)
    if jobs is not None:
        routes.add_routes(app, jobs)
    else:
        routes.add_refusals(app)
    open_inference.add_routes(app, settings, models, resources)
    problems.describe(
        app,
        (
            *answers.RESULTS,
            SegmentRequest,
            InferRequest,
            InferAnswer,
            *(routes.BODIES if jobs else ()),
        ),
        needs_key=lambda path: bool(settings.api_keys) and not is_open(path),
    )
    measured.know(app.routes)
    _answer_head(app)


def _operation_id(route: APIRoute) -> str:
    """Name an operation for generated clients: `post_segment`, `list_models`."""
    return route.name + ("_of_version" if open_inference.VERSION in route.path else "")


def _allow_origins(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Allow pages of other origins to send requests and to read the response headers."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=ASKED_WITH,
        expose_headers=ANSWERED_WITH,
    )


def _answer_head(app: FastAPI) -> None:
    """Answer HEAD wherever GET is answered, as `curl -I` and many probes expect.

    The server omits the body. The OpenAPI schema does not list HEAD.
    """
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


def _add_segment(
    app: FastAPI,
    settings: Settings,
    models: Models,
    resources: Resources,
    fetcher: Fetcher | None,
) -> None:
    intake = Intake(settings.max_files, settings.max_body_bytes, resources.pool, fetcher)

    @app.post(
        "/segment",
        openapi_extra={"requestBody": REQUEST_BODY},
        response_class=Response,
        responses=ANSWERS,
    )
    async def post_segment(
        request: Request,
        query: Annotated[SegmentQuery, Query()],
        x_request_timeout_ms: Annotated[
            str | None, Header(description="deadline in milliseconds; beyond it 504")
        ] = None,
    ) -> Response:
        """Segment a photo, sent as multipart field `file` or as the body itself.

        Repeat the field `file`, or send a ZIP, for several photos. The answer is then a ZIP or
        multipart/mixed: `results.json` with a status for each photo, then the outputs. Or send
        JSON: the photo as base64 in `image`, and options beside it.
        """
        limit_ms = deadlines.milliseconds(x_request_timeout_ms, settings.request_timeout_ms)
        accept = ", ".join(request.headers.getlist("accept"))
        async with deadlines.enforced(limit_ms) as deadline:
            parsed = await json_options(request, resources.admission)
            if parsed is not None:
                query = json_request.merged(request, parsed.options)
            served, quality = chosen(query, models, resources.admission, deadline)
            with served.used():
                wish = query.wish(served.engine.contract, accept)
                resources.admission.check()
                sent = await uploads(request, intake, parsed)  # slow bodies occupy no slot
                body = request.scope.get(BODY_BYTES, 0)
                held = resources.admission.held(sent.unpacked, own=body)
                with held, resources.admission.request():
                    sliding = query.sliding(settings)
                    own = body + sent.unpacked
                    job = Job(served, wish, accept, resources, deadline, sliding, own)
                    work = segment(sent.photos, job, several=sent.several)
                    answer = await unless_gone(request, work)
                headers = {
                    **catalogue.headers(served),
                    **quality,
                    "Server-Timing": answer.stages.header(),
                }
        return HeldResponse(
            answer.body, headers, answer.media_type, resources.admission, request.scope
        )
