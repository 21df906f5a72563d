"""Prometheus metrics at /metrics; each application has a registry of its own."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from typing import Any

from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.routing import BaseRoute

from service.errors import CLIENT_GONE, ServiceError
from service.http.event_loop import MeasuredLoop
from service.http.telemetry.gpu_memory import GpuMemory
from service.inference.models import Models, ServedModel

# Histogram buckets: from a tiny image on a GPU to a large one behind a full queue.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


WORK = ("/segment", "/v2/models/{name}/infer", "/v2/models/{name}/versions/1/infer")
STAGES = ("decode", "queue", "infer", "encode")


def _all_errors(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield base
    for error in base.__subclasses__():
        yield from _all_errors(error)


STATUSES = sorted({200, CLIENT_GONE, *(error.status for error in _all_errors(ServiceError))})
ALERTED = (500, 503, 504)  # alerts read these of every route


class Metrics:
    """The metrics of one application."""

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self.requests = Counter(
            "deeplab_requests", "Answers sent", ["method", "route", "status"], registry=to
        )
        self.in_flight = Gauge("deeplab_requests_in_flight", "Requests in progress", registry=to)
        self.duration = Histogram(
            "deeplab_request_duration_seconds",
            "From the first byte to the last",
            ["route"],
            registry=to,
            buckets=SECONDS,
        )
        self.stages = Histogram(
            "deeplab_stage_duration_seconds",
            "Parts of segmenting: decode, queue, infer, encode",
            ["stage"],
            registry=to,
            buckets=SECONDS,
        )
        self.rejected = Counter(
            "deeplab_rejected",
            "Requests answered with a problem, by its code",
            ["reason"],
            registry=to,
        )
        self.cancelled = Counter(
            "deeplab_cancelled", "Requests whose client disconnected before the answer", registry=to
        )
        self.pixels = Counter("deeplab_pixels", "Pixels of the photos accepted", registry=to)
        self.registry.register(_ModelCollector(models))
        self.registry.register(_LoopCollector())
        self.registry.register(GpuMemory(lambda: any(not model.engine.on_cpu for model in models)))
        self._start_at_zero()
        ProcessCollector(registry=to)
        PlatformCollector(registry=to)

    def _start_at_zero(self) -> None:
        """Make every series that alerts and dashboards read.

        A series that begins with its first error, or its fiftieth between two scrapes, has no
        rate: Prometheus does not know that it was zero before.
        """
        for route in WORK:
            self.duration.labels(route)
            for status in STATUSES:
                self.requests.labels("POST", route, status)
        for error in _all_errors(ServiceError):
            self.rejected.labels(error.code)
        for stage in STAGES:
            self.stages.labels(stage)

    def know(self, routes: Iterable[BaseRoute]) -> None:
        """Also start at 0 the series that alerts read of the application's other routes."""
        for route in routes:
            if isinstance(route, APIRoute) and route.path not in WORK:
                for method, status in product(sorted(route.methods or ()), ALERTED):
                    self.requests.labels(method, route.path, status)

    def stage(self, name: str, seconds: float) -> None:
        """Record the duration of a stage."""
        self.stages.labels(name).observe(seconds)


class DecoderCollector(Collector):
    """Reads how many decoder processes have ended in the middle of a photo."""

    def __init__(self, ended: Counts[str]) -> None:
        self._ended = ended

    def collect(self) -> Iterator[Metric]:
        """Yield the counter."""
        ended = CounterMetricFamily(
            "deeplab_decoders_ended",
            "Decoder processes that ended in the middle of a photo: its time was over (time), its "
            "request was (abandoned), or by a signal",
            labels=["reason"],
        )
        for reason, count in {"time": 0, "abandoned": 0, **self._ended}.items():
            ended.add_metric([reason], count)
        yield ended


class _LoopCollector(Collector):
    """Reads the turns of the event loop that answers the scrape."""

    def describe(self) -> list[Metric]:
        """Return no metrics: the registry would call `collect` outside of a loop."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the histograms; empty in a loop that is not a MeasuredLoop."""
        turns = HistogramMetricFamily(
            "deeplab_event_loop_turn_seconds",
            "How long the event loop runs before it polls for new requests: wall time, and "
            "processor time of its thread",
            labels=["clock"],
        )
        loop = _running_loop()
        if isinstance(loop, MeasuredLoop):
            for clock, found in loop.turns.items():
                turns.add_metric([clock], found.buckets(), found.sum_s)
        yield turns


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _ModelCollector(Collector):
    """Reads the models at each scrape, so that reloads show at once."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def describe(self) -> list[Metric]:
        """Return no metrics: the registry would call `collect` before the models run."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield information, queue depth and batch sizes of each model."""
        info = GaugeMetricFamily(
            "deeplab_model_info",
            "Served models and the execution provider in use; always 1",
            labels=["model", "digest", "execution_provider", "precision", "execution_precision"],
        )
        depth = GaugeMetricFamily(
            "deeplab_queue_depth", "Images waiting for the engine", labels=["model"]
        )
        sessions = GaugeMetricFamily(
            "deeplab_sessions", "Engine sessions that take work", labels=["model"]
        )
        ready = GaugeMetricFamily(
            "deeplab_ready", "1 while /readyz answers 200", self._models.healthy
        )
        for model in self._models:
            engine = model.engine
            precisions = [engine.contract.precision, engine.execution_precision]
            info.add_metric([model.name, engine.digest, engine.provider, *precisions], 1)
            depth.add_metric([model.name], model.batcher.depth)
            sessions.add_metric([model.name], model.batcher.live_sessions)
        yield from (info, depth, sessions, ready, self._batch_sizes(), self._points())
        yield from self._shadows()

    def _points(self) -> Metric:
        points = CounterMetricFamily(
            "deeplab_quality_chosen",
            "Requests with quality=auto, by the model that they were given",
            labels=["model"],
        )
        if self._models.quality is not None:
            for name, count in self._models.quality.chosen.items():
                points.add_metric([name], count)
        return points

    def _shadows(self) -> Iterator[Metric]:
        images = GaugeMetricFamily(
            "deeplab_shadow_images",
            "Images compared with a model's new file that is being tried out",
            labels=["model"],
        )
        agreement = GaugeMetricFamily(
            "deeplab_shadow_agreement",
            "Share of pixels to which that file gives the same label",
            labels=["model"],
        )
        for model in self._models:
            if model.shadow:
                report = model.shadow.report()
                images.add_metric([model.name], report.images)
                if report.agreement is not None:
                    agreement.add_metric([model.name], report.agreement)
        yield from (images, agreement)

    def _batch_sizes(self) -> Metric:
        sizes = HistogramMetricFamily(
            "deeplab_batch_size", "Images in one run of the engine", labels=["model"]
        )
        for model in self._models:
            sizes.add_metric([model.name], _buckets(model), sum(model.batcher.sizes.elements()))
        return sizes


def _buckets(model: ServedModel) -> list[tuple[str, float]]:
    sizes = model.batcher.sizes
    bounds = (0, *BATCHES)
    counts = [
        sum(count for size, count in sizes.items() if low < size <= high)
        for low, high in zip(bounds, BATCHES, strict=False)
    ]
    named = zip(map(str, BATCHES), accumulate(counts), strict=True)
    return [*named, ("+Inf", sizes.total())]


TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}


def add_route(app: FastAPI, metrics: Metrics) -> None:
    """Serve /metrics."""

    @app.get("/metrics", response_class=Response, responses=TEXT)
    async def get_metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
