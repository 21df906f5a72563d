"""Read the images of a request, and notice clients that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.errors import InvalidRequest, UnsupportedMedia
from service.images.imaging import MEDIA_TYPES

RAW_TYPES = (*MEDIA_TYPES, "application/octet-stream")
ALIASES = {"image/jpg": "image/jpeg", "image/tif": "image/tiff", "image/x-ms-bmp": "image/bmp"}

PLAIN = ("binary", "8bit", "7bit")  # Content-Transfer-Encoding, RFC 2045

ONE_OR_MORE = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "format": "binary"},
    "description": "a photo; repeat the field to send several",
}
REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": ONE_OR_MORE},
                "additionalProperties": False,
            }
        },
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in RAW_TYPES},
    },
}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Upload:
    """An encoded image, as received."""

    data: bytes
    name: str = ""  # the client's file name, if the image came in a form


async def uploads(request: Request, max_files: int) -> list[Upload]:
    """Return the images of a request: the body itself, or every multipart field `file`."""
    refuse_encoding(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if ALIASES.get(kind, kind) in RAW_TYPES:
        return [Upload(await request.body())]
    if kind != "multipart/form-data":
        raise UnsupportedMedia(
            f"Content-Type {kind or 'is missing'}: send multipart/form-data with a field `file`, "
            f"or the image itself as {', '.join(RAW_TYPES)}"
        )
    try:
        async with request.form(max_files=max_files, max_fields=10) as form:
            return await _files(form)
    except HTTPException as error:  # raised by the parser for a broken form
        raise InvalidRequest(error.detail) from None
    except UnicodeError:  # some of Python's codecs refuse every text
        raise InvalidRequest("the form does not match its charset: leave charset out") from None


def refuse_encoding(request: Request) -> None:
    """Raise UnsupportedMedia for a body that is compressed on its way."""
    encodings = ", ".join(request.headers.getlist("content-encoding"))
    if encodings.strip().lower() not in {"", "identity"}:
        raise UnsupportedMedia(f"Content-Encoding {encodings}: send the body as it is")


async def _files(form: FormData) -> list[Upload]:
    found = [field for field in form.getlist("file") if isinstance(field, UploadFile)]
    if not found and form.getlist("file"):
        raise InvalidRequest(
            "field `file` is text, not a file: add a filename, as curl -F file=@photo.jpg does"
        )
    if not found:
        raise InvalidRequest(f"the form has no field `file`, but {sorted(form)}")
    if options := sorted(name for name, field in form.multi_items() if isinstance(field, str)):
        raise InvalidRequest(
            f"form fields {options} are not read: put options into the query string"
        )
    files = sum(isinstance(field, UploadFile) for _, field in form.multi_items())
    if files > len(found):
        raise InvalidRequest(f"every file must be in a field `file`; the form has {sorted(form)}")
    for field in found:
        encoding = field.headers.get("content-transfer-encoding", "binary").strip().lower()
        if encoding not in PLAIN:
            raise UnsupportedMedia(f"Content-Transfer-Encoding {encoding}: send the file as it is")
    return [Upload(await field.read(), field.filename or "") for field in found]


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work`; if the client disconnects first, cancel it and raise ClientDisconnect."""
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
