"""OpenTelemetry traces: a span for each request, and one for each of its stages.

Imported only where traces are asked for, so that nobody else needs the libraries. The
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

from service.http.telemetry.observation import QUIET, known_method, route_of


class TraceRequests:
    """ASGI middleware: a server span around each request, a child of the caller's span."""

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

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note(span, scope, message)
                await send(message)

            await self.app(scope, receive, watched)


class Tracing:
    """Makes spans and sends them off."""

    middleware = TraceRequests

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """`processor`: where spans go; by default in batches to the OTLP endpoint."""
        named = Resource.create().merge(Resource({"service.name": "deeplab"}))
        # Last, so that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        resource = named.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self._provider.get_tracer("deeplab")

    def stage(self, name: str, seconds: float, ended_ago_s: float) -> None:
        """Note a stage of the current request that is over already."""
        end = time.time_ns() - round(ended_ago_s * 1e9)
        span = self.tracer.start_span(name, start_time=end - round(seconds * 1e9))
        span.end(end)

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is left, or give it up: an endpoint that is down must not hold up a stop."""
        sender = threading.Thread(target=self._provider.shutdown, name="last-traces", daemon=True)
        sender.start()
        sender.join(timeout_s)


def _note(span: Span, scope: Scope, start: Message) -> None:
    """What is known once the answer begins."""
    route = route_of(scope)
    span.update_name(f"{known_method(scope)} {route}")
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", start["status"])
    span.set_attribute("deeplab.request_id", scope.get("request_id", ""))
    headers = dict(start["headers"])
    if model := headers.get(b"x-model"):
        span.set_attribute("deeplab.model", model.decode("latin-1"))
    if problem := scope.get("problem"):
        span.set_attribute("error.type", problem)
    if start["status"] >= 500:
        span.set_status(StatusCode.ERROR)
