"""OpenTelemetry tracing: a span for each request, and one for each of its stages.

This module is imported only when tracing is on, so that the libraries are optional. The
exporter speaks OTLP over HTTP and reads its own OTEL_* variables.
"""

from __future__ import annotations

import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.http import header_text
from service.http.telemetry.observation import QUIET, known_method, route_of


class TraceRequests:
    """ASGI middleware: create a server span for each request, as a child of the caller's span."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self._tracer = tracing.tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        caller = self._propagator.extract(headers)
        method = known_method(scope)
        with self._tracer.start_as_current_span(
            method,
            caller,
            SpanKind.SERVER,
            {"http.request.method": method, "url.path": scope["path"]},
        ) as span:
            traced = logs.trace_id.set(format(span.get_span_context().trace_id, "032x"))

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note(span, scope, message)
                await send(message)

            try:
                await self.app(scope, receive, watched)
            finally:
                logs.trace_id.reset(traced)


class Tracing:
    """Creates spans and exports them."""

    middleware = TraceRequests

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """`processor` receives the spans; by default they go to the OTLP endpoint in batches."""
        named = Resource.create().merge(Resource({"service.name": "deeplab"}))
        # Merged last: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
        resource = named.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self._provider.get_tracer("deeplab")

    def stage(self, name: str, seconds: float, ended_ago_s: float) -> None:
        """Record a stage of the current request that has already ended."""
        end = time.time_ns() - round(ended_ago_s * 1e9)
        span = self.tracer.start_span(name, start_time=end - round(seconds * 1e9))
        span.end(end)

    def close(self, timeout_s: float = 2.0) -> None:
        """Export the remaining spans, but do not delay shutdown if the endpoint is down."""
        sender = threading.Thread(target=self._provider.shutdown, name="last-traces", daemon=True)
        sender.start()
        sender.join(timeout_s)


def _note(span: Span, scope: Scope, start: Message) -> None:
    """Set the attributes that are known when the answer starts."""
    route = route_of(scope)
    span.update_name(f"{known_method(scope)} {route}")
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", start["status"])
    span.set_attribute("deeplab.request_id", scope.get("request_id", ""))
    headers = dict(start["headers"])
    if model := headers.get(b"x-model"):
        span.set_attribute("deeplab.model", header_text.decoded(model.decode("ascii")))
    if problem := scope.get("problem"):
        span.set_attribute("error.type", problem)
    if start["status"] >= 500:
        span.set_status(StatusCode.ERROR)
