"""Choose the output from the Accept header when the query names none (RFC 9110, 12.5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from postprocess.results.encoders import FORMATS, Format
from service.errors import InvalidRequest, NotAcceptable

MAX_ACCEPT = 4096  # characters; browsers send about 150. Each entry is compared several times

# The output for each media type; the first is the default.
BY_TYPE = {
    "image/png": "mask",
    "image/jpeg": "overlay",
    "application/json": "json",
    "application/geo+json": "polygons",
    "application/octet-stream": "npz",
    "image/webp": "overlay",
    "image/avif": "overlay",
}


@dataclass(frozen=True)
class _Range:
    """One entry of an Accept header."""

    kind: str
    quality: float

    def precision(self, media_type: str) -> int:
        """How specifically the entry matches a media type; 0: not at all."""
        if self.kind == media_type:
            return 3
        if self.kind == media_type.partition("/")[0] + "/*":
            return 2
        return 1 if self.kind == "*/*" else 0


def output_for(accept: str) -> str:
    """Return the output for the preferred media type; raises NotAcceptable if none is allowed."""
    preferences = {kind: quality(accept, kind) for kind in BY_TYPE}
    best = max(preferences, key=lambda kind: preferences[kind])  # the first of equals
    if preferences[best] == 0:
        raise NotAcceptable(
            f"Accept: {accept}: the service has {', '.join(BY_TYPE)}; or set `output`"
        )
    return BY_TYPE[best]


def preferred_format(accept: str) -> Format:
    """Return the preferred format of pictures; JPEG if others are not preferred to it.

    Browsers send `image/avif,image/webp,image/*`, which prefers none.
    """
    return max(FORMATS, key=lambda kind: quality(accept, FORMATS[kind][0]))  # the first of equals


def quality(accept: str, media_type: str) -> float:
    """Return the q value of a media type, 0 to 1: the most specific entry counts.

    Raises InvalidRequest if the header is longer than MAX_ACCEPT.
    """
    ranges = _ranges(accept)
    if not ranges:
        return 1.0
    best = max(ranges, key=lambda entry: (entry.precision(media_type), entry.quality))
    return best.quality if best.precision(media_type) else 0.0


@lru_cache(maxsize=64)  # one request asks for several media types; 64 headers are at most 256 KB
def _ranges(accept: str) -> tuple[_Range, ...]:
    if len(accept) > MAX_ACCEPT:
        raise InvalidRequest(f"Accept has {len(accept)} characters, the limit is {MAX_ACCEPT}")
    ranges = []
    for part in filter(None, (part.strip() for part in accept.split(","))):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        values = [value[2:] for value in parameters if value.startswith("q=")]
        ranges.append(_Range(kind, _number(values[0]) if values else 1.0))
    return tuple(ranges)


def _number(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
