"""The outputs that a client can request, and their encoders. Runs in a worker thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from service.errors import InvalidRequest
from service.images import imaging, outlines
from service.images.imaging import DecodedPhoto
from service.images.png import Rows
from service.images.selection import Selection
from service.inference.contract import Contract

# Outputs by name: media type, and file name in a ZIP.
OUTPUTS = {
    "mask": ("image/png", "mask.png"),
    "color": ("image/png", "color.png"),
    "overlay": ("image/jpeg", "overlay.jpg"),
    "json": ("application/json", "result.json"),
    "rle": ("application/json", "rle.json"),
    "polygons": ("application/geo+json", "polygons.json"),
    "npz": ("application/octet-stream", "labels.npz"),
    "confidence": ("image/png", "confidence.png"),
}
INCLUDABLE = ("mask", "color", "overlay", "confidence")
PNG_OVERLAY = ("image/png", "overlay.png")
ZIP = "application/zip"
NEEDS_PHOTO = {"overlay"}  # needs the photo at full resolution
# Outputs that contain the confidence; it is not computed for the others.
HAS_CONFIDENCE = {"confidence", "json", "npz", "polygons", "rle"}

OverlayFormat = Literal["jpeg", "png"]
MaskFormat = Literal["palette", "gray"]  # OpenCV, FiftyOne and ffmpeg take a palette for colours


@dataclass(frozen=True)
class Wish:
    """The outputs that a client requested, and their options."""

    outputs: tuple[str, ...]
    selection: Selection
    alpha: float = 0.5
    contour: int = 0  # width in pixels
    overlay_format: OverlayFormat = "jpeg"
    mask_format: MaskFormat = "palette"
    include: tuple[str, ...] = ()  # images to include in the JSON, as base64

    @property
    def all_outputs(self) -> set[str]:
        """All outputs to make, including those inside the JSON."""
        return {*self.outputs, *self.include}

    def kind(self, name: str) -> tuple[str, str]:
        """Return the media type and file name of an output."""
        if name == "overlay" and self.overlay_format == "png":
            return PNG_OVERLAY
        return OUTPUTS[name]


@dataclass(frozen=True)
class Result:
    """The labels of a photo, at the photo's own size."""

    photo: DecodedPhoto
    labels: Rows  # of (H, W)
    confidence: Rows | None  # of (H, W)
    contract: Contract


def wants_confidence(wish: Wish, contract: Contract) -> bool:
    """Compute the confidence only if an output contains it and the model has it."""
    return contract.confidence and not HAS_CONFIDENCE.isdisjoint(wish.all_outputs)


def parse_outputs(text: str, what: str, valid: Iterable[str]) -> tuple[str, ...]:
    """Split comma-separated output names; raises InvalidRequest for unknown ones."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [name for name in names if name not in valid]
    if wrong or not names:
        raise InvalidRequest(f"{what}={text!r}: choose from {', '.join(valid)}")
    return names


def check(wish: Wish, contract: Contract) -> None:
    """Raise InvalidRequest for outputs that the model lacks, and for a useless `include`."""
    if wish.include and "json" not in wish.outputs:
        raise InvalidRequest(
            f"include={','.join(wish.include)} needs output=json, which it adds images to"
        )
    if "confidence" in wish.all_outputs and not contract.confidence:
        raise InvalidRequest(
            "output=confidence: this model has no confidence; export it with --confidence"
        )


def encode(result: Result, wish: Wish) -> tuple[bytes, str]:
    """Return the body of the answer and its media type; several outputs become a ZIP."""
    files = encode_each(result, wish)
    if len(files) == 1:
        ((name, body),) = files.items()
        return body, wish.kind(name)[0]
    return imaging.archive({wish.kind(name)[1]: body for name, body in files.items()}), ZIP


def encode_each(result: Result, wish: Wish) -> dict[str, bytes]:
    """Encode all requested outputs, by name."""
    return {name: _encode_one(name, result, wish) for name in wish.outputs}


def _encode_one(name: str, result: Result, wish: Wish) -> bytes:
    encoders: dict[str, Callable[[Result, Wish], bytes]] = {
        "mask": _mask,
        "color": lambda r, w: imaging.color_png(_selected(r, w), r.contract.palette),
        "overlay": _overlay,
        "json": _json,
        "rle": _rle,
        "polygons": _polygons,
        "npz": _npz,
        "confidence": _confidence,
    }
    return encoders[name](result, wish)


def _selected(result: Result, wish: Wish) -> Rows:
    return replace(result.labels, different=wish.selection.apply(result.labels.different))


def _mask(result: Result, wish: Wish) -> bytes:
    labels = _selected(result, wish)
    if wish.mask_format == "gray":
        return imaging.grey_png(labels)
    return imaging.mask_png(labels, result.contract.palette)


def _overlay(result: Result, wish: Wish) -> bytes:
    blended = imaging.overlay(
        result.photo,
        result.labels.image,
        result.contract.palette,
        alpha=wish.alpha,
        shown=wish.selection.ids - {result.contract.background},
        contour=wish.contour,
    )
    return imaging.lossless(blended) if wish.overlay_format == "png" else imaging.jpeg(blended)


def _confidence(result: Result, _: Wish) -> bytes:
    if result.confidence is None:  # `check` refuses such requests
        raise InvalidRequest("output=confidence: this model has no confidence")
    return imaging.grey_png(result.confidence)


def _npz(result: Result, wish: Wish) -> bytes:
    confidence = None if result.confidence is None else result.confidence.image
    return imaging.npz(_selected(result, wish).image, confidence)


def _found(result: Result, wish: Wish) -> list[dict[str, Any]]:
    return imaging.summary(
        result.labels.image,
        result.contract.classes,
        shown=wish.selection.ids,
        confidence=None if result.confidence is None else result.confidence.image,
    )


def _json(result: Result, wish: Wish) -> bytes:
    answer: dict[str, Any] = {**_size(result), "classes": _found(result, wish)}
    for name in wish.include:
        body = _encode_one(name, result, wish)
        answer[name] = {"media_type": wish.kind(name)[0], "base64": imaging.as_text(body)}
    return json.dumps(answer).encode()


def _rle(result: Result, wish: Wish) -> bytes:
    present = _found(result, wish)
    by_column = np.asfortranarray(result.labels.image)
    for entry in present:
        entry["segmentation"] = imaging.rle(by_column, entry["id"])
    return json.dumps({**_size(result), "classes": present}).encode()


def _polygons(result: Result, wish: Wish) -> bytes:
    features, left = [], outlines.MAX_CORNERS
    for entry in _found(result, wish):
        shapes = _shapes(result, entry, left)
        left -= outlines.count_corners(shapes)
        features.append(_feature(result, entry, shapes))
    collection = {"type": "FeatureCollection", **_size(result), "features": features}
    return json.dumps(collection, separators=(",", ":")).encode()


def _shapes(result: Result, entry: dict[str, Any], max_corners: int) -> list[outlines.Polygon]:
    """Return the polygons of a class; only its bounding box is traced."""
    x0, y0, x1, y1 = entry["box"]
    mask = result.labels.image[y0:y1, x0:x1] == entry["id"]
    shapes = outlines.polygons(mask, max_corners)
    return [[[(x + x0, y + y0) for x, y in ring] for ring in rings] for rings in shapes]


def _feature(
    result: Result, entry: dict[str, Any], shapes: list[outlines.Polygon]
) -> dict[str, Any]:
    """Return a class as a GeoJSON MultiPolygon."""
    return {
        "type": "Feature",
        "id": entry["id"],
        "bbox": entry["box"],
        "properties": {**entry, "color": result.contract.palette[entry["id"]]},
        "geometry": {"type": "MultiPolygon", "coordinates": shapes},
    }


def _size(result: Result) -> dict[str, int]:
    """The photo's size and EXIF orientation; coordinates are those of the upright photo."""
    width, height = result.photo.size
    return {"width": width, "height": height, "orientation": result.photo.orientation}
