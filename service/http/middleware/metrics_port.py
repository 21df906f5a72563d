"""A separate port for Prometheus: only metrics and probes, without a key."""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http import problems

ON_METRICS_PORT = "on_metrics_port"  # key in the ASGI scope
SERVED = frozenset({"/metrics", "/livez", "/readyz"})


class MetricsPort:
    """ASGI middleware: mark requests on the metrics port, and refuse other paths there."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope.get("server") or ("", 0))[1] != self.port:
            await self.app(scope, receive, send)
            return
        scope[ON_METRICS_PORT] = True
        if scope["path"] in SERVED:
            await self.app(scope, receive, send)
            return
        answer = problems.problem(
            scope,
            status=HTTPStatus.NOT_FOUND,
            code="not-found",
            title="Not Found",
            detail=f"this port serves {', '.join(sorted(SERVED))} only",
        )
        await answer(scope, receive, send)
