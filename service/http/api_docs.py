"""Serve the page at `/docs`: Swagger UI for the OpenAPI schema, with its files.

FastAPI's own page loads Swagger UI from a CDN, which a cluster without internet cannot reach
and a strict Content-Security-Policy forbids. The package fastapi-offline contains the files.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from service.http.playground import security_headers

# The files that the page needs: name and media type.
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
EMPTY_ICON = "data:,"


def add_routes(app: FastAPI) -> None:
    """Serve the page and its files; FastAPI's own documentation pages must be turned off."""
    assets = _assets()
    page = bytes(
        get_swagger_ui_html(
            # Relative URLs also work behind a proxy that adds a path prefix.
            openapi_url="openapi.json",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url=EMPTY_ICON,
            title=app.title,
            swagger_ui_parameters={
                "validatorUrl": None
            },  # else the page sends the schema to a validator elsewhere
        ).body
    ).decode()
    headers = security_headers(page, assets=True)

    @app.get("/docs", include_in_schema=False)
    async def get_docs() -> Response:
        return HTMLResponse(page, headers=headers)

    @app.get("/docs/{name}", include_in_schema=False)
    async def get_asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404, f"the files are {', '.join(assets)}")
        caching = {"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"}
        return Response(assets[name], headers=caching, media_type=ASSETS[name])


def _assets() -> dict[str, bytes]:
    folder = files("fastapi_offline") / "static"
    return {name: (folder / name).read_bytes() for name in ASSETS}
