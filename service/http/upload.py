"""Read the images of a request, and notice clients that disconnect."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.errors import InvalidRequest, UnsupportedMedia
from service.http.bodies import json_request, zip_request
from service.http.bodies.json_request import Parsed, SegmentRequest
from service.http.bodies.urls import Fetcher
from service.http.middleware.limits import Admission
from service.http.problems import component
from service.images.imaging import MEDIA_TYPES

RAW_TYPES = (*MEDIA_TYPES, "application/octet-stream")
ALIASES = {"image/jpg": "image/jpeg", "image/tif": "image/tiff", "image/x-ms-bmp": "image/bmp"}

PLAIN = ("binary", "8bit", "7bit")  # Content-Transfer-Encoding, RFC 2045

BINARY = {"type": "string", "format": "binary"}
ONE_OR_MORE = {
    "type": "array",
    "minItems": 1,
    "items": BINARY,
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
        json_request.MEDIA_TYPE: {"schema": component(SegmentRequest)},
        **{kind: {"schema": BINARY} for kind in (*RAW_TYPES, zip_request.MEDIA_TYPES[0])},
    },
}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Upload:
    """An encoded image, as received."""

    data: bytes
    name: str = ""  # the client's file name, if the image came in a form


@dataclass(frozen=True)
class Sent:
    """The images of a request."""

    photos: list[Upload]
    several: bool = (
        False  # sent as a collection, which is answered as one even if it has a single photo
    )
    unpacked: int = 0  # bytes of the photos that the body itself does not contain


@dataclass(frozen=True)
class Intake:
    """How to read bodies: the limits and the threads."""

    max_files: int
    max_bytes: int  # of a body, and of the photos that it unpacks to
    pool: Executor
    fetcher: Fetcher | None = None  # None: fetch no URLs


def media_type(request: Request) -> str:
    """Return the type of the body without parameters; empty if the request has none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return ALIASES.get(kind, kind)


async def json_options(request: Request, admission: Admission) -> Parsed | None:
    """Read a JSON body, whose options are needed first; return None for other bodies."""
    if media_type(request) != json_request.MEDIA_TYPE:
        return None
    refuse_encoding(request)
    admission.check()
    return json_request.parse(await request.body())


async def uploads(request: Request, intake: Intake, parsed: Parsed | None = None) -> Sent:
    """Return the images: the body itself, those of a form or a ZIP, or that of `parsed` JSON."""
    refuse_encoding(request)
    if parsed is not None and parsed.url is not None:
        photo = await unless_gone(request, fetched(intake.fetcher, parsed.url))
        return Sent([Upload(photo)], unpacked=len(photo))
    if parsed is not None:
        decode = partial(json_request.decode, parsed.image)
        photo = await _in_thread(intake, decode)
        return Sent([Upload(photo)], unpacked=len(photo))
    kind = media_type(request)
    if kind in RAW_TYPES:
        return Sent([Upload(await request.body())])
    if kind in zip_request.MEDIA_TYPES:
        body = await request.body()
        photos = await _in_thread(intake, partial(_unpacked, body, intake))
        unpacked = sum(len(each.data) for each in photos)
        return Sent(photos, several=True, unpacked=unpacked)
    if kind != "multipart/form-data":
        raise UnsupportedMedia(
            f"Content-Type {kind or 'is missing'}: send multipart/form-data with a field `file` "
            f"(curl -F file=@photo.jpg), the image itself as {', '.join(RAW_TYPES)}, "
            "a ZIP of images as application/zip, or "
            'application/json with {"image": "BASE64"}'
        )
    return Sent(await _form(request, intake.max_files))


async def fetched(fetcher: Fetcher | None, url: str) -> bytes:
    """Fetch a photo; raises InvalidRequest, also if the service fetches no URLs."""
    if fetcher is None:
        raise InvalidRequest(
            "url: this service fetches no URLs; send the photo itself, or start the service with "
            "--allow-url-hosts"
        )
    return await fetcher.fetch(url)


async def _in_thread(intake: Intake, work: Callable[[], Result]) -> Result:
    return await asyncio.wrap_future(intake.pool.submit(work))


def _unpacked(body: bytes, intake: Intake) -> list[Upload]:
    limits = zip_request.Limits(intake.max_files, intake.max_bytes)
    found = zip_request.photos(io.BytesIO(body), limits)
    return [Upload(content, name) for name, content in found]


async def _form(request: Request, max_files: int) -> list[Upload]:
    """Return every multipart field `file`."""
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
    if len(found) < len(form.getlist("file")):
        raise InvalidRequest(
            "field `file` is text, not a file: add a filename, as curl -F file=@photo.jpg does"
        )
    if not found:
        others = f"; it has {', '.join(map(repr, sorted(form)))}" if form else ""
        raise InvalidRequest(f"the form has no field `file`{others}")
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
