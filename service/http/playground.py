"""Serve the page at `/`: one HTML file without a build step or external resources."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException

from service.settings import SAMPLES

PAGE = Path(__file__).with_suffix(".html")
PREFIX = "/samples/"


def add_routes(app: FastAPI) -> None:
    """Serve the page and its sample photos."""
    page = PAGE.read_text(encoding="utf-8")
    headers = security_headers(page)
    samples = {path.name: path for path in SAMPLES.glob("*.jpg")}

    @app.get("/", include_in_schema=False)
    async def get_page() -> Response:
        return HTMLResponse(page, headers=headers)

    @app.get(PREFIX + "{name}", include_in_schema=False)
    async def get_sample(name: str) -> Response:
        if name not in samples:
            raise HTTPException(404, f"the samples are {', '.join(sorted(samples))}")
        return FileResponse(samples[name], headers={"Cache-Control": "max-age=86400"})


def security_headers(page: str, *, assets: bool = False) -> dict[str, str]:
    """Return headers that allow the page only its own script and style, and only this service.

    `assets`: the page also loads scripts and styles from files of this service.
    """
    own = "'self' " if assets else ""
    policy = {
        "default-src": "'none'",
        "script-src": own + _hashes(page, "script"),
        "style-src": (own + _hashes(page, "style")).strip(),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


def _hashes(page: str, tag: str) -> str:
    """Return the digests of the inline elements, which allow them to run."""
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (hashlib.sha256(body.encode()).digest() for body in bodies)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
