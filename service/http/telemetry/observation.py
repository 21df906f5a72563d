"""The outermost middleware: give each request an id, an access log line and metrics."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from starlette.datastructures import MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.errors import CLIENT_GONE
from service.http.telemetry.metrics import Metrics

log = logging.getLogger("service.access")

ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})


class Observation:
    """ASGI middleware: set the request id, log the request and count it.

    The id is the client's X-Request-ID or a new one. While the service drains, answers
    carry `Connection: close`, so that clients reconnect to another replica.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: Callable[[], bool]) -> None:
        self.app = app
        self.metrics = metrics
        self.draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = given_id(scope) or uuid.uuid4().hex
        token = logs.request_id.set(scope["request_id"])
        traced = logs.trace_id.set(logs.trace_id.get() or callers_trace(scope))
        began = time.monotonic()
        status = 500  # if the application sends no answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = scope["request_id"]
                if self.draining():
                    headers["Connection"] = "close"
            await send(message)

        try:
            with self._in_flight(scope):
                await self.app(scope, receive, watched)
        finally:
            self._note(scope, status, time.monotonic() - began)
            logs.request_id.reset(token)
            logs.trace_id.reset(traced)

    def _in_flight(self, scope: Scope) -> AbstractContextManager[None]:
        """Count a request while it is in progress, except scrapes, which are no load."""
        if scope["path"] in QUIET:
            return nullcontext()
        return self.metrics.in_flight.track_inprogress()

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route, method = route_of(scope), known_method(scope)
        self.metrics.requests.labels(method, route, status).inc()
        self.metrics.duration.labels(route).observe(seconds)
        if status == CLIENT_GONE:
            self.metrics.cancelled.inc()
        if code := scope.get("problem"):
            self.metrics.rejected.labels(code).inc()
        level = logging.DEBUG if scope["path"] in QUIET and status < 400 else logging.INFO
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1000, 1),
            "problem": code or "",
            "client": (scope.get("client") or ("",))[0],
        }
        # %r: a path may hold line breaks
        text = f"{scope['method']} {scope['path']!r} {status} {fields['ms']} ms"
        text += f" {code}" if code else ""
        text += f" from {fields['client']}" if fields["client"] else ""
        log.log(level, "%s", text, extra={logs.FIELDS: fields})


def given_id(scope: Scope) -> str:
    """Return the client's X-Request-ID if it is safe to repeat, else an empty text."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if ACCEPTABLE_ID.fullmatch(given) else ""


def callers_trace(scope: Scope) -> str:
    """Return the trace id of the caller's `traceparent` (W3C Trace Context), or an empty string."""
    given = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
    found = TRACEPARENT.fullmatch(given)
    return found[1] if found and found[1].strip("0") else ""


def known_method(scope: Scope) -> str:
    """Return the method, or `other` for one that HTTP does not define."""
    return scope["method"] if scope["method"] in METHODS else "other"


def route_of(scope: Scope) -> str:
    """Return the route's template: labels must not grow with the number of paths.

    A middleware that refuses a request answers before the router has seen it.
    """
    route = scope.get("route") or next(_matching(scope), None)
    return getattr(route, "path", "none")


def _matching(scope: Scope) -> Iterator[BaseRoute]:
    """Yield the application's routes that have this path, those that take the method first."""
    routes = getattr(scope.get("app"), "routes", ())
    found = [(route.matches(scope)[0], route) for route in routes]
    for wanted in (Match.FULL, Match.PARTIAL):
        yield from (route for match, route in found if match is wanted)
