"""The service's HTTP interface as data: what is asked, what comes back.

Nothing here sends anything; the transport does, in a blocking and an asyncio form.
"""

from __future__ import annotations

import datetime
import email.utils
import io
import math
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service.client.errors import BadAnswerError, ServiceError, UsageError

# Output -> the file that carries it: the entry in a ZIP answer, the suffix on disk.
FILES = {
    "mask": "mask.png",
    "color": "color.png",
    "overlay": "overlay.png",
    "json": "result.json",
    "rle": "rle.json",
    "polygons": "polygons.json",
    "npz": "labels.npz",
    "confidence": "confidence.png",
}
JPEG_OVERLAY = "overlay.jpg"
ZIP = "application/zip"

# First bytes -> media type; the service refuses what none of these is.
SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The answer for one photo: one output as it is, several as a ZIP."""

    content: bytes = field(repr=False)
    content_type: str
    outputs: tuple[str, ...]
    model: str | None
    digest: str | None  # sha256 of the model file
    provider: str | None  # the execution provider that ran it
    request_id: str | None
    timing: dict[str, float]  # stage -> milliseconds, from Server-Timing

    def files(self) -> dict[str, bytes]:
        """File name -> bytes, e.g. {"mask.png": ...}; BadAnswerError if one is missing."""
        if len(self.outputs) == 1:
            return {_file_name(self.outputs[0], self.content_type): self.content}
        entries = _unzip(self.content)
        stems = {name.partition(".")[0] for name in entries}
        missing = [o for o in self.outputs if FILES[o].partition(".")[0] not in stems]
        if missing:
            raise BadAnswerError(f"the ZIP answer lacks {', '.join(missing)}")
        return entries


@dataclass(frozen=True, slots=True)
class Model:
    """One model that the service offers."""

    name: str
    digest: str | None
    default: bool
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    max_side: int | None


def parse_outputs(text: str) -> tuple[str, ...]:
    """`"mask,overlay"` -> `("mask", "overlay")`, in the given order, without repeats."""
    outputs = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [output for output in outputs if output not in FILES]
    if unknown or not outputs:
        raise UsageError(f"output={text!r}: choose from {', '.join(FILES)}")
    return outputs


def check_url(url: str) -> str:
    """The service's address without a trailing slash; UsageError unless it is http(s)."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"URL {url!r}: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UsageError(f"URL {url!r}: write it as http://HOST:PORT")
    return url.rstrip("/")


def media_type(image: bytes) -> str:
    """What the bytes say they are; `application/octet-stream` lets the service judge."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    for signature, name in SIGNATURES:
        if image.startswith(signature):
            return name
    return "application/octet-stream"


def image_bytes(image: bytes | Path | str) -> bytes:
    """The image itself, or the content of the file that a path names."""
    return image if isinstance(image, bytes) else Path(os.fspath(image)).read_bytes()


def segmentation(response: httpx.Response, outputs: tuple[str, ...]) -> Segmentation:
    """A 200 answer of `/segment`, its headers read; BadAnswerError if it is something else."""
    headers = response.headers
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    _check_type(outputs, content_type)
    return Segmentation(
        content=response.content,
        content_type=content_type,
        outputs=outputs,
        model=headers.get("x-model"),
        digest=headers.get("x-model-digest"),
        provider=headers.get("x-execution-provider"),
        request_id=headers.get("x-request-id"),
        timing=parse_timing(headers.get("server-timing", "")),
    )


def models(response: httpx.Response) -> tuple[Model, ...]:
    """The answer of `GET /models`."""
    try:
        return tuple(_model(entry) for entry in response.json()["models"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadAnswerError(f"GET /models answered no list of models: {error!r}") from error


def refusal(response: httpx.Response) -> ServiceError:
    """An error answer as an exception; tolerates bodies that are no problem+json (proxies)."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    fields: dict[str, Any] = problem if isinstance(problem, dict) else {}
    detail = fields.get("detail") or fields.get("title") or response.text[:200].strip()
    return ServiceError(
        response.status_code,
        str(fields.get("code") or f"http-{response.status_code}"),
        str(detail or response.reason_phrase),
        fields.get("request_id") or response.headers.get("x-request-id"),
    )


def parse_timing(header: str) -> dict[str, float]:
    """`decode;dur=1.5, infer;dur=20` -> `{"decode": 1.5, "infer": 20.0}`."""
    timing: dict[str, float] = {}
    for metric in header.split(","):
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur" and (duration := _number(value.strip('"'))) is not None:
                timing[name] = duration
    return timing


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds to wait by the Retry-After header (RFC 9110: seconds or a date), if it is there."""
    value = response.headers.get("retry-after", "").strip()
    if (seconds := _number(value)) is not None:
        return max(0.0, seconds)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_type(outputs: tuple[str, ...], content_type: str) -> None:
    """A proxy's login page also comes with 200; it must not end up as a mask."""
    if len(outputs) > 1:
        is_fitting = content_type == ZIP
    elif outputs[0] in {"mask", "color", "overlay", "confidence"}:
        is_fitting = content_type.startswith("image/")
    elif outputs[0] == "npz":
        is_fitting = content_type.startswith("application/")
    else:
        is_fitting = content_type.endswith("json")
    if not is_fitting:
        asked = ",".join(outputs)
        raise BadAnswerError(f"output={asked} was answered with {content_type or 'no type'}")


def _file_name(output: str, content_type: str) -> str:
    return JPEG_OVERLAY if (output, content_type) == ("overlay", "image/jpeg") else FILES[output]


def _unzip(content: bytes) -> dict[str, bytes]:
    known = {*FILES.values(), JPEG_OVERLAY}  # nothing else may become a file name here
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name in known}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadAnswerError(f"the answer is no readable ZIP: {error}") from error


def _model(entry: dict[str, Any]) -> Model:
    max_side = entry.get("max_side")
    return Model(
        name=str(entry["name"]),
        digest=entry.get("digest"),
        default=bool(entry.get("default", False)),
        classes=tuple(map(str, entry.get("classes", ()))),
        palette=tuple((r, g, b) for r, g, b in entry.get("palette", ())),
        max_side=None if max_side is None else int(max_side),
    )
