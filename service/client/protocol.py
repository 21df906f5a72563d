"""The service's HTTP interface as data: requests and answers.

Nothing here sends requests; `transport` does.
"""

from __future__ import annotations

import datetime
import email.utils
import html
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from service.client import archives, pictures
from service.client.errors import BadAnswerError, StatusError, UsageError
from service.client.files import read_photo
from service.client.pictures import Size
from service.client.plain import parse_json, sentence

# Outputs by name: the file in a ZIP answer, which is also the suffix on disk, and the most bytes
# per pixel of the photo: more than a mask of pure noise takes (polygons: five corners of some 20
# bytes per pixel).
OUTPUTS = {
    "mask": ("mask.png", 2),
    "color": ("color.png", 4),
    "overlay": ("overlay.png", 4),
    "json": ("result.json", 0),
    "rle": ("rle.json", 8),
    "polygons": ("polygons.json", 128),
    "npz": ("labels.npz", 5),  # with the numbers of instances, two bytes each
    "confidence": ("confidence.png", 2),
    "probabilities": ("probabilities.npz", 40),  # at a quarter of the sides, of up to 256 classes
    "cutout": ("cutout.png", 6),
    "blur": ("blur.png", 4),
    "replace": ("replace.png", 4),
    "side-by-side": ("side-by-side.png", 8),
    "heatmap": ("heatmap.png", 4),
}
FILES = {output: file for output, (file, _) in OUTPUTS.items()}
PICTURES = frozenset(output for output, file in FILES.items() if file.endswith(".png"))
# Suffix by media type of the pictures that come in several formats.
SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/avif": "avif"}
KINDS = {suffix: kind for kind, suffix in SUFFIXES.items()}
PHOTO_LIKE = frozenset({"overlay", "cutout", "blur", "replace", "side-by-side", "heatmap"})
ALL_FILES = frozenset(
    {*FILES.values(), *(f"{each}.{suffix}" for each in PHOTO_LIKE for suffix in KINDS)}
)
INCLUDABLE = ("mask", "color", "overlay", "confidence")  # as base64 in JSON
WEB_PAGE = re.compile(r"<(!doctype|html|head|body|title)\b", re.IGNORECASE)
ENCODED = "UTF-8''"  # in front of a header's value with percent signs (RFC 8187)
ZIP, JSON = "application/zip", "application/json"
OTHER_SIZE = frozenset({"cutout", "side-by-side"})  # than the photo

SMALLEST_LIMIT = 4 << 20  # for answers without pixels, such as lists of models
UNKNOWN_PIXELS = 50_000_000  # the service's own default limit
MOST_PIXELS = 178_956_970  # no service takes more; a header may claim anything
# Longer JSON is checked at its ends only, because parsing takes ten times its bytes in memory.
LONGEST_PARSED = 16 << 20

# First bytes -> media type; the service refuses all others.
SIGNATURES = (
    (pictures.JPEG, "image/jpeg"),
    (pictures.PNG, "image/png"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
# The first brand of photos in the container of HEIC and AVIF -> media type.
HEIF_BRANDS = dict.fromkeys((b"heic", b"heix", b"heim", b"heis"), "image/heic")
HEIF_BRANDS |= {b"mif1": "image/heif", b"avif": "image/avif", b"avis": "image/avif"}


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The answer for a photo: one output, or several as a ZIP."""

    content: bytes = field(repr=False)
    content_type: str
    outputs: tuple[str, ...]
    model: str | None
    digest: str | None  # sha256 of the model file
    provider: str | None  # the execution provider that ran it
    request_id: str | None
    timing: dict[str, float]  # stage -> milliseconds, from Server-Timing

    _files: dict[str, bytes] = field(repr=False)

    def files(self) -> dict[str, bytes]:
        """Return file name -> bytes, such as {"mask.png": ...}; each file has been checked."""
        return dict(self._files)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of the service."""

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


def parameters(
    outputs: tuple[str, ...], model: str | None, options: Mapping[str, object]
) -> dict[str, str]:
    """Return the query of a request for these outputs."""
    asked = {"output": ",".join(outputs)}
    asked |= {name: str(value) for name, value in options.items()}
    return asked if model is None else asked | {"model": model}


def check_url(url: str) -> str:
    """Return the URL without a trailing slash; raises UsageError unless it is http(s)."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"URL {url!r}: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UsageError(f"URL {url!r}: write it as http://HOST:PORT")
    return url.rstrip("/")


def media_type(image: bytes) -> str:
    """Return the media type by the first bytes, or `application/octet-stream`."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    if image[4:8] == b"ftyp":
        return HEIF_BRANDS.get(image[8:12], "application/octet-stream")
    for signature, name in SIGNATURES:
        if image.startswith(signature):
            return name
    return "application/octet-stream"


def image_bytes(image: bytes | Path | str) -> bytes:
    """Return the image, or read the file that a path names."""
    return image if isinstance(image, bytes) else read_photo(Path(os.fspath(image)))


def most_bytes(outputs: tuple[str, ...], size: Size | None) -> int:
    """Return the most bytes of an answer with these outputs for a photo of this size."""
    pixels = UNKNOWN_PIXELS if size is None else min(size[0] * size[1], MOST_PIXELS)
    each = [OUTPUTS[output][1] for output in outputs]
    if "json" in outputs:
        each.append(2 * sum(OUTPUTS[output][1] for output in INCLUDABLE))
    return SMALLEST_LIMIT + pixels * sum(each)


def segmentation(
    response: httpx.Response,
    outputs: tuple[str, ...],
    size: Size | None = None,
    max_side: int | None = None,
) -> Segmentation:
    """Parse a 200 answer of `/segment`, and check it against the photo's `size` if known.

    `max_side`: the requested longest side of pictures. Raises BadAnswerError if it is not what was
    requested, or not complete.
    """
    headers = response.headers
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    _check_type(outputs, content_type)
    return Segmentation(
        content=response.content,
        content_type=content_type,
        outputs=outputs,
        model=_text(_model_name(headers.get("x-model"))),
        digest=_text(headers.get("x-model-digest")),
        provider=_text(headers.get("x-execution-provider")),
        request_id=_text(headers.get("x-request-id")),
        timing=parse_timing(headers.get("server-timing", "")),
        _files=_files(response.content, content_type, outputs, size, max_side),
    )


def _files(
    content: bytes,
    content_type: str,
    outputs: tuple[str, ...],
    size: Size | None,
    max_side: int | None,
) -> dict[str, bytes]:
    """Return the files of an answer; raises BadAnswerError if one is missing or broken."""
    limit = most_bytes(outputs, size)
    if len(outputs) == 1:
        files = {_file_name(outputs[0], content_type): content}
    else:
        files = archives.unpack(content, ALL_FILES, limit)  # no other file names are accepted
    by_stem = {name.partition(".")[0]: name for name in files}
    for output in outputs:
        name = by_stem.get(FILES[output].partition(".")[0])
        if name is None:
            raise BadAnswerError(f"the ZIP answer lacks {output}")
        try:
            wanted = limited(size, max_side) if output in PICTURES else size
            _check_file(output, name, files[name], wanted, limit)
        except BadAnswerError as error:
            raise BadAnswerError(f"output={output} is not usable: {error}") from error
    return files


def limited(size: Size | None, max_side: int | None) -> Size | None:
    """Return a size shrunk until no side is longer than `max_side`."""
    if size is None or max_side is None or max(size) <= max_side:
        return size
    width, height = (max(1, round(side * max_side / max(size))) for side in size)
    return width, height


def _check_file(output: str, name: str, content: bytes, size: Size | None, limit: int) -> None:
    """Raise BadAnswerError unless this is a complete file of the photo's size, if known."""
    if output in PICTURES:
        pictures.check_whole(content, KINDS[name.rpartition(".")[2]])
        found = pictures.size_of(content)
    elif output == "npz":
        height, width = archives.label_shape(content, limit)
        found = (width, height)
    elif output == "probabilities":
        archives.unpack(content, {"transform.npy"}, limit)
        return
    else:
        found = _json_size(content)
    if size is None or output in OTHER_SIZE or (found is None and output not in PICTURES):
        return
    if found not in {size, size[::-1]}:  # EXIF rotation may have turned it
        told = "no size" if found is None else f"{found[0]} x {found[1]} pixels"
        raise BadAnswerError(f"it has {told}, not {size[0]} x {size[1]}")


def _json_size(content: bytes) -> Size | None:
    """Return (W, H) of a JSON answer; raises BadAnswerError if it is not a JSON object."""
    if len(content) > LONGEST_PARSED and content.startswith(b"{") and content.endswith(b"}"):
        return None
    try:
        answer = parse_json(content)
        if not isinstance(answer, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise BadAnswerError(f"it is not JSON: {sentence(error)}") from error
    width, height = answer.get("width"), answer.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _model_name(header: str | None) -> str | None:
    """Decode the name, which is encoded unless it is plain ASCII."""
    if header is None or not header.startswith(ENCODED):
        return header
    return unquote(header.removeprefix(ENCODED))


def models(response: httpx.Response) -> tuple[ModelInfo, ...]:
    """Parse the answer of `GET /models`."""
    try:
        return tuple(_model(entry) for entry in parse_json(response.content)["models"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadAnswerError(
            f"GET /models did not answer a list of models: {sentence(error)}"
        ) from error


def refusal(response: httpx.Response) -> StatusError:
    """Convert an error answer to an exception; the body may be a proxy's and not problem+json."""
    try:
        problem = parse_json(response.content)
    except ValueError:
        problem = None
    fields: dict[str, Any] = problem if isinstance(problem, dict) else {}
    detail = fields.get("detail") or fields.get("title") or _page(response.content)
    return StatusError(
        response.status_code,
        sentence(fields.get("code") or f"http-{response.status_code}"),
        sentence(detail or response.reason_phrase),
        _text(fields.get("request_id")) or _text(response.headers.get("x-request-id")),
    )


def _page(content: bytes) -> str:
    """Return the text of an answer from another program; of a web page, its title or text."""
    text = content[:2000].decode("utf-8", "replace").strip()
    if not WEB_PAGE.match(text):
        return text[:200]
    title = re.search(r"<title>([^<]*)", text, re.IGNORECASE)
    words = html.unescape(title[1] if title else re.sub(r"<[^>]*>", " ", text)).strip()
    return f"{words[:200] or 'no words'} (a web page, probably of a proxy before the service)"


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
    """Return the seconds to wait by Retry-After (RFC 9110: seconds or a date), or None."""
    value = response.headers.get("retry-after", "").strip()
    if (seconds := _number(value)) is not None:
        return max(0.0, seconds)
    try:
        when = email.utils.parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):  # invalid dates
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_type(outputs: tuple[str, ...], content_type: str) -> None:
    """Check the media type: a proxy's login page also has status 200."""
    if len(outputs) > 1:
        is_fitting = content_type == ZIP
    elif outputs[0] in PICTURES:
        is_fitting = content_type.startswith("image/")
    elif outputs[0] in {"npz", "probabilities"}:
        is_fitting = content_type.startswith("application/")
    else:
        is_fitting = content_type.endswith("json")
    if not is_fitting:
        asked = ",".join(outputs)
        raise BadAnswerError(f"output={asked} was answered with {content_type or 'no type'}")


def _file_name(output: str, content_type: str) -> str:
    suffix = SUFFIXES.get(content_type)
    return f"{output}.{suffix}" if output in PHOTO_LIKE and suffix else FILES[output]


def _text(value: object) -> str | None:
    """Return a header or JSON field if it is text."""
    return sentence(value) if isinstance(value, str) and value else None


def _model(entry: dict[str, Any]) -> ModelInfo:
    max_side = entry.get("max_side")
    return ModelInfo(
        name=sentence(entry["name"]),
        digest=_text(entry.get("digest")),
        default=bool(entry.get("default", False)),
        classes=tuple(sentence(name) for name in entry.get("classes", ())),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in entry.get("palette", ())),
        max_side=None if max_side is None else int(max_side),
    )
