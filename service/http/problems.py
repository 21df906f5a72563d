"""Answer every error with application/problem+json (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import Scope

from service.errors import CLIENT_GONE, InvalidRequest, RateLimited, ServiceError, Unauthorized
from service.pydantic_errors import Location, mistakes

log = logging.getLogger("service.http")

MEDIA_TYPE = "application/problem+json"
COMPONENTS = "#/components/schemas/"


class Problem(BaseModel):
    """The body of an error response."""

    type: str
    title: str
    status: int
    detail: str  # what to change
    code: str  # stable, for programs
    request_id: str
    error: str | None = None  # the detail again, as the Open Inference Protocol requires


def answer(scope: Scope, error: ServiceError) -> Response:
    """Return the response for an error of this service."""
    response = problem(
        scope, status=error.status, code=error.code, title=error.title, detail=error.detail
    )
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT}:
        response.headers["Connection"] = "close"  # the rest of a slow body may still arrive
    return response


def http_problem(scope: Scope, status: HTTPStatus, detail: str) -> Response:
    """Return a problem that is known by its HTTP status alone."""
    title = status.phrase
    code = title.lower().replace(" ", "-")
    return problem(scope, status=status, code=code, title=title, detail=detail)


def fields(error: ServiceError) -> dict[str, str | int]:
    """Return an error as part of a larger answer: a problem without a request id."""
    return {
        "type": _type(error.code),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }


def problem(scope: Scope, *, status: int, code: str, title: str, detail: str) -> Response:
    """Return a problem response, and note its code for the metrics."""
    scope["problem"] = code
    request_id = scope.get("request_id", "")
    body = Problem(
        type=_type(code),
        title=title,
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
    )
    if scope["path"].startswith("/v2/"):
        body.error = detail
    text = body.model_dump_json(exclude_none=True)
    return Response(text, status, {"X-Request-ID": request_id}, MEDIA_TYPE)


def _type(code: str) -> str:
    return f"urn:deeplab:problem:{code}"


def install(app: FastAPI, bounds: Callable[[Location], str] = lambda _: "") -> None:
    """Answer every failure of `app` with a problem.

    `bounds` says for the place of an error which numbers are allowed there, see `mistakes`.
    """

    @app.exception_handler(ServiceError)
    async def known(request: Request, error: ServiceError) -> Response:
        return answer(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = mistakes(
            error.errors(),
            name=lambda where: str(where[-1]),
            kind="parameter",
            known=lambda where: _parameters(request, str(where[0])),
            bounds=bounds,
        )
        return answer(request.scope, InvalidRequest(found))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        has_no_detail = error.detail == status.phrase
        detail = _not_served(request, error) if has_no_detail else str(error.detail)
        response = http_problem(request.scope, status, detail)
        response.headers.update(error.headers or {})
        if "Allow" in response.headers:
            response.headers["Allow"] = ", ".join(_methods(request))
        return response

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        log.error("request %s failed", request.scope.get("request_id"), exc_info=error)
        detail = "internal error: look for the request id in the log of the service"
        response = answer(request.scope, ServiceError(detail))
        response.headers["Connection"] = "close"  # the server closes it after an exception
        return response


def _parameters(request: Request, place: str) -> list[str]:
    """Return the documented parameters of the request's path in "query", "header" or "path"."""
    route = getattr(request.scope.get("route"), "path_format", "")
    operation = request.app.openapi()["paths"].get(route, {}).get(request.method.lower(), {})
    return [each["name"] for each in operation.get("parameters", ()) if each["in"] == place]


def _methods(request: Request) -> list[str]:
    """Return the methods of all routes with this path: Starlette only names those of the first."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    with_path = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in with_path for method in route.methods or ()} - {"HEAD"})


def _not_served(request: Request, error: HTTPException) -> str:
    if (error.headers or {}).get("Allow"):
        allowed = ", ".join(_methods(request))
        return f"{request.url.path} does not take {request.method}: send {allowed}"
    return f"{request.method} {request.url.path} does not exist: see /docs"


def documented(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for the errors of a path."""
    documents: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        known = documents.get(error.status, {"description": ""})["description"]
        documents[error.status] = {
            "description": f"{known}, `{error.code}`".removeprefix(", "),
            "content": {MEDIA_TYPE: {"schema": component(Problem)}},
        }
    return documents


def component(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to a schema by its name, so that generated clients have one type of it."""
    return {"$ref": COMPONENTS + model.__name__}


def _schemas(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the schemas of a model and of those inside it, by name."""
    schema = model.model_json_schema(mode="serialization", ref_template=COMPONENTS + "{model}")
    inside: dict[str, dict[str, Any]] = schema.pop("$defs", {})
    return {**inside, model.__name__: schema}


def describe(
    app: FastAPI, models: Iterable[type[BaseModel]], *, needs_key: Callable[[str], bool]
) -> None:
    """Add API keys and `models` to the OpenAPI schema; remove FastAPI's 422: it is never sent."""
    schema = app.openapi()
    refusals = documented(Unauthorized, RateLimited)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if needs_key(path):
                operation["security"] = [{"key": []}]
                operation["responses"] |= {str(status): each for status, each in refusals.items()}
    components = schema.setdefault("components", {})
    listed: list[type[BaseModel]] = [Problem, *models]
    for model in listed:
        for name, defined in _schemas(model).items():
            components.setdefault("schemas", {}).setdefault(name, defined)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for name in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(name, None)
