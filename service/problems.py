"""Every error as application/problem+json (RFC 9457), and a request id on every answer."""

from __future__ import annotations

import json
import logging
import re
import uuid
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InvalidRequest, ServiceError

log = logging.getLogger("service.http")

MEDIA_TYPE = "application/problem+json"
ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def problem(request: Request, *, status: int, code: str, title: str, detail: str) -> Response:
    """The answer to a request that failed."""
    request_id = request.scope.get("request_id", "")
    body = {
        "type": f"urn:deeplab:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    return Response(json.dumps(body), status, {"X-Request-ID": request_id}, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Have every failure of `app` answered with a problem."""

    @app.exception_handler(ServiceError)
    async def known(request: Request, error: ServiceError) -> Response:
        answer = problem(
            request,
            status=error.status,
            code=error.code,
            title=error.title,
            detail=error.detail,
        )
        if error.retry_after_s is not None:
            answer.headers["Retry-After"] = str(error.retry_after_s)
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        details = (
            f"{item['loc'][-1]}={item.get('input')!r}: {item['msg']}" for item in error.errors()
        )
        return await known(request, InvalidRequest("; ".join(details)))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        title = HTTPStatus(error.status_code).phrase
        answer = problem(
            request,
            status=error.status_code,
            code=title.lower().replace(" ", "-"),
            title=title,
            detail=str(error.detail),
        )
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        log.error("request %s failed", request.scope.get("request_id"), exc_info=error)
        detail = "the service failed on this request; its log says why, under the request id"
        return await known(request, ServiceError(detail))


class RequestId:
    """ASGI middleware: takes X-Request-ID from the client or makes one; sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self.app(scope, receive, tagged)
