"""Read a photo and its options from JSON: `{"image": "BASE64", "output": "json", ...}`.

The JSON may have the photo's URL in `url` instead.

The base64 text is cut out before the rest is parsed. The rest must be short, so that no body delays
other requests: parsing 32 MB of nested lists would take seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Request
from pydantic import ConfigDict, Field, ValidationError

from service.errors import InvalidRequest
from service.http.query import REPEATABLE, SegmentQuery, bounds
from service.pydantic_errors import mistakes
from service.text import STEP, from_base64

MEDIA_TYPE = "application/json"
IMAGE, URL = "image", "url"
LONGEST_REST = 64 * 1024  # bytes of the JSON without the image
# A key of this name. Inside a string, its quotes would have backslashes.
BEFORE_IMAGE = re.compile(rb'"image"[ \t\r\n]*:[ \t\r\n]*"')
# JSON escapes of base64's characters, as PHP (`\/`) and .NET (`\u002B`) write them.
ESCAPES = (
    *((rb"\/", b"/"), (rb"\n", b""), (rb"\r", b""), (rb"\t", b"")),
    *((rb"\u002B", b"+"), (rb"\u002b", b"+"), (rb"\u002F", b"/"), (rb"\u002f", b"/")),
    *((rb"\u003D", b"="), (rb"\u003d", b"="), (rb"\u000A", b""), (rb"\u000a", b"")),
    *((rb"\u000D", b""), (rb"\u000d", b"")),
)
LONGEST_ESCAPE = 6  # \\u002B


def _without_defaults(schema: dict[str, Any]) -> None:
    """Leave defaults out: generated clients would send them, against those in the query."""
    for option in schema["properties"].values():
        option.pop("default", None)


class SegmentRequest(SegmentQuery):
    """The JSON body of POST /segment: a photo, and the options of the query beside it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_defaults)

    image: Annotated[
        str | None, Field(description="base64 of the encoded photo, or a data: URL with base64")
    ] = None
    url: Annotated[
        str | None,
        Field(description="where to fetch the photo instead, if the service allows its host"),
    ] = None


@dataclass(frozen=True)
class Parsed:
    """A JSON body whose base64 is not yet decoded."""

    image: bytes  # base64, with the escapes of JSON
    url: str | None  # of the photo, instead of `image`
    options: dict[str, Any]  # fields of SegmentQuery, as in a query string


def parse(body: bytes) -> Parsed:
    """Split a body into photo and options; raises InvalidRequest."""
    found = BEFORE_IMAGE.search(body)
    end = body.find(b'"', found.end()) if found else -1
    if found and end < 0:
        raise InvalidRequest("the body is not JSON: the text of `image` has no end")
    start = found.end() if found else 0
    length = len(body) - (end - start if found else 0)
    if length > LONGEST_REST:
        raise InvalidRequest(
            f"the JSON has {length} bytes besides `image`, the limit is {LONGEST_REST}; the "
            'body is {"image": "BASE64", ...} with the options of the query'
        )
    rest = b"".join((body[:start], body[end:])) if found else body
    values = _values(rest)
    image, url = values.pop(IMAGE, None), values.pop(URL, None)
    if image is None and isinstance(url, str) and url:
        return Parsed(b"", url, _options(values))
    if image != "" or not found or url is not None:
        raise InvalidRequest(
            'the JSON has no text `image`: send {"image": "BASE64"}, or {"url": "https://..."}'
        )
    return Parsed(body[start:end], None, _options(values))


def decode(text: bytes) -> bytes:
    """Decode the base64 of a body; raises InvalidRequest. Takes 0.1 s for 32 MB: call in a thread.

    Escapes other than ESCAPES are not decoded and so refused: base64 never needs them.
    """
    if b"\\" in text:
        text = b"".join(map(_unescaped, _pieces(text)))
    if not text.strip():
        raise InvalidRequest("image is empty: send the photo as base64")
    try:
        return from_base64(text)
    except ValueError as error:
        raise InvalidRequest(f"image: {error}") from None


def _pieces(text: bytes) -> Iterator[bytes]:
    """Cut a text into pieces of at most STEP bytes, never inside an escape.

    Other threads can run between the pieces; a call on the whole text would block them.
    """
    start = 0
    while start < len(text):
        end = start + STEP
        before = text.rfind(b"\\", end - LONGEST_ESCAPE + 1, end)
        end = end if before < 0 else before
        yield text[start:end]
        start = end


def _unescaped(text: bytes) -> bytes:
    for escape, character in ESCAPES:
        text = text.replace(escape, character)
    return text


def merged(request: Request, options: Mapping[str, Any]) -> SegmentQuery:
    """Return the options of query and body together; raises InvalidRequest if they differ."""
    query = request.query_params
    given = {key: query.getlist(key) if key in REPEATABLE else query[key] for key in query}
    both = sorted(options.keys() & given.keys())
    if differing := [key for key in both if _joined(options[key]) != _joined(given[key])]:
        raise InvalidRequest(
            f"{', '.join(differing)}: in the query and in the JSON, send it in one of them"
        )
    try:
        return SegmentQuery.model_validate({**given, **options})
    except ValidationError as error:
        fields = SegmentQuery.model_fields
        known = (IMAGE, URL, *fields)
        found = mistakes(error.errors(), kind="option", known=lambda _: known, bounds=bounds)
        raise InvalidRequest(found) from None


def _joined(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(value)


def _values(text: bytes) -> dict[str, Any]:
    """Parse the outermost object; numbers stay text, as in a query string."""
    try:
        parsed = json.loads(
            text.decode(),
            parse_int=str,
            parse_float=str,
            parse_constant=_refuse,
            object_pairs_hook=_without_repeats,
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest('the JSON is not an object: send {"image": "BASE64"}')
    return parsed


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(repeated)} is repeated, send it once")
    return made


def _options(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _option(key, value) for key, value in values.items() if value is not None}


def _option(key: str, value: object) -> object:
    """Write an option as in a query string."""
    if key in REPEATABLE:
        return [_text(key, each) for each in (value if isinstance(value, list) else [value])]
    return _text(key, value)


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    raise InvalidRequest(f"{key}: send text, a number, true or false, as in the query string")
