"""When and where a photo was taken, as its EXIF data say. Needs Pillow."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

EXIF, GPS = 0x8769, 0x8825  # the directories
ORIGINAL, CHANGED = 0x9003, 0x0132  # DateTimeOriginal, DateTime
REMEMBERED = 100_000  # photos: the tables and the page each ask once


@dataclass(frozen=True, slots=True)
class Moment:
    """Date and place of a photo; None for what is not known."""

    taken: datetime | None = None  # by the camera's clock, without a zone
    latitude: float | None = None  # degrees, north is positive
    longitude: float | None = None  # degrees, east is positive


UNKNOWN = Moment()


@lru_cache(maxsize=REMEMBERED)
def moment(source: str) -> Moment:
    """Read a photo's header; UNKNOWN for files that are missing, in a tar or no photo."""
    if importlib.util.find_spec("PIL") is None:
        return UNKNOWN
    from PIL import Image  # noqa: PLC0415 - an extra

    try:
        if not Path(source).is_file():  # a pipe would block
            return UNKNOWN
        with Image.open(source) as photo:
            exif = photo.getexif()
            date = exif.get_ifd(EXIF).get(ORIGINAL) or exif.get(CHANGED)
            place = exif.get_ifd(GPS)
    except Exception:  # Pillow raises many kinds for broken files
        return UNKNOWN
    latitude, longitude = _degrees(place, 1, "S", 90), _degrees(place, 3, "W", 180)
    known = latitude is not None and longitude is not None
    return Moment(_date(date), latitude if known else None, longitude if known else None)


def _date(text: Any) -> datetime | None:
    """Parse `2024:05:01 10:00:00`; None for anything else."""
    try:
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _degrees(place: dict[int, Any], tag: int, negative: str, most: int) -> float | None:
    """Return degrees of a direction (tag) and degrees, minutes, seconds (the next tag)."""
    try:
        degrees, minutes, seconds = (float(part) for part in place[tag + 1])
        found = degrees + minutes / 60 + seconds / 3600
        found = -found if str(place[tag]).strip("\0 ").upper() == negative else found
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return round(found, 7) if math.isfinite(found) and abs(found) <= most else None
