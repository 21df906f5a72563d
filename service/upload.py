"""The image of a request, and the watch for clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from service.errors import InvalidRequest, UnsupportedMedia
from service.imaging import MEDIA_TYPES

RAW_TYPES = (*MEDIA_TYPES, "application/octet-stream")

REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in RAW_TYPES},
    },
}

Result = TypeVar("Result")


async def image_bytes(request: Request) -> bytes:
    """The image of a request: the body itself, or the multipart field `file`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in RAW_TYPES:
        return await request.body()
    if kind != "multipart/form-data":
        raise UnsupportedMedia(
            f"Content-Type {kind or 'missing'!r}: send multipart/form-data with a field `file`, "
            f"or the image itself as {', '.join(RAW_TYPES)}"
        )
    async with request.form(max_files=1, max_fields=10) as form:
        field = form.get("file")
        if not isinstance(field, UploadFile):
            raise InvalidRequest(f"no file in field `file`; the form has {sorted(form)}")
        return await field.read()


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do `work`; when the client disconnects first, drop it and raise ClientDisconnect."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([task, watcher], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
