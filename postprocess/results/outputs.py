"""The outputs that a client can request, and their encoders. Runs in a worker thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from postprocess import outlines
from postprocess.errors import InvalidOption, TooComplex, TooLarge, TooManyBytes
from postprocess.grid import Grid, least_for, sets, top
from postprocess.instances import Instances
from postprocess.refine import Refinement
from postprocess.regions import Regions
from postprocess.results import encoders, legend, pictures, png
from postprocess.results.facts import Color, Extras, Facts
from postprocess.results.photo import Photo, limited
from postprocess.results.png import Rows
from postprocess.results.selection import Selection
from postprocess.runs import Ints, Runs, Spread
from postprocess.simplify import simplified
from postprocess.smooth import candidates, smooth_labels

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
    "probabilities": ("application/octet-stream", "probabilities.npz"),
    "cutout": ("image/png", "cutout.png"),
    "blur": ("image/jpeg", "blur.jpg"),
    "replace": ("image/jpeg", "replace.jpg"),
    "side-by-side": ("image/jpeg", "side-by-side.jpg"),
    "heatmap": ("image/jpeg", "heatmap.jpg"),
}
INCLUDABLE = ("mask", "color", "overlay", "confidence")
MOST_RUNS = 200_000  # that regions are counted for: noise has more, and would take a second
UNCALIBRATED = "this model has not been calibrated; use `python -m export.calibrate`"
ZIP = "application/zip"
# Pictures, whose size `max_side` limits; the other outputs are in the photo's own pixels.
PICTURES = {name for name, (kind, _) in OUTPUTS.items() if kind.startswith("image/")}
OF_SUBJECT = {"cutout", "blur", "replace"}  # with a soft edge where there are probabilities
NEEDS_PHOTO = {
    "overlay",
    "side-by-side",
    "heatmap",
    *OF_SUBJECT,
}  # needs the photo at full resolution
LIKE_PHOTO = NEEDS_PHOTO  # their format is `overlay_format`
HAS_LEGEND = {"overlay", "side-by-side"}
NEEDS_PROBABILITIES = {"probabilities", "heatmap"}
# Outputs that contain the confidence; it is not computed for the others.
HAS_CONFIDENCE = {"confidence", "json", "npz", "polygons", "rle"}
OF_SHAPES = {"polygons", "rle", "json"}  # their cost grows with the number of regions

OverlayFormat = Literal["jpeg", "png", "webp", "avif"]
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
    refinement: Refinement = field(default_factory=Refinement)
    instances: bool = False
    simplify: float = 0.0  # tolerance in pixels of the polygons
    fill: Color = (255, 255, 255)  # of output=replace
    smooth: bool = False  # labels along the edges of the photo, at its own size
    top: int = 0  # number of classes whose probabilities to give; 0: all
    coverage: float | None = None
    max_side: int | None = None  # of pictures, in pixels; None: the photo's own
    legend: bool = False  # in overlay and side-by-side
    most_bytes: int = 2**62  # of all encoded outputs together

    @property
    def all_outputs(self) -> set[str]:
        """All outputs to make, including those inside the JSON."""
        return {*self.outputs, *self.include}

    @property
    def finds_regions(self) -> bool:
        """Whether the cost grows with the number of regions."""
        return self.simplify > 0 or self.instances or not OF_SHAPES.isdisjoint(self.all_outputs)

    def kind(self, name: str) -> tuple[str, str]:
        """Return the media type and file name of an output."""
        if name not in LIKE_PHOTO:
            return OUTPUTS[name]
        kind, suffix = encoders.FORMATS[self.format_of(name)]
        return kind, f"{name}.{suffix}"

    def format_of(self, name: str) -> OverlayFormat:
        """Return the format of a picture; a cutout needs one with transparency."""
        opaque = name == "cutout" and self.overlay_format == "jpeg"
        return "png" if opaque else self.overlay_format


@dataclass(frozen=True)
class Result:
    """The labels of a photo: those of the model, and how to enlarge them to the photo's size."""

    photo: Photo
    cells: NDArray[np.uint8]  # (R, C) class ids, 255 for none
    sure: NDArray[np.uint8] | None  # (R, C) confidence
    spread: Spread
    contract: Facts
    grid: Grid | None = None
    max_side: int | None = None  # of `pictures`
    shares: dict[int, float] | None = None  # of the photo's pixels by class, if they are needed

    @property
    def pictures(self) -> Result:
        """The result at the size of pictures: each pixel has the label nearest to its centre."""
        # Not cached: a result that referred to itself would keep its photo until Python looks for
        # such cycles.
        same = limited(self.photo.size, self.max_side) == self.photo.size
        return self if same else self._limited

    @cached_property
    def _limited(self) -> Result:
        size = limited(self.photo.size, self.max_side)
        (rows, heights), (columns, widths) = (
            _kept(lengths, want)
            for lengths, want in zip(
                (self.spread.heights, self.spread.widths), size[::-1], strict=True
            )
        )
        return replace(
            self,
            photo=self.photo.limited(size),
            cells=self.cells[rows][:, columns],
            sure=None if self.sure is None else self.sure[rows][:, columns],
            spread=Spread(heights, widths),
            grid=self.grid and self.grid.scaled(self.photo.size, size),
            max_side=None,
        )

    @cached_property
    def labels(self) -> Rows:
        """The labels at the photo's own size (H, W)."""
        return encoders.enlarged(self.cells, self.spread)

    @cached_property
    def confidence(self) -> Rows | None:
        """The confidence at the photo's own size (H, W)."""
        return None if self.sure is None else encoders.enlarged(self.sure, self.spread)


def _kept(lengths: Ints, want: int) -> tuple[Ints, Ints]:
    """Return the cells that `want` pixels are nearest to, and how many pixels each gets.

    `lengths`: how many pixels of the photo each cell stands for.
    """
    ends = lengths.cumsum()
    nearest = ends.searchsorted(png.nearest(int(ends[-1]), want), "right")
    used, counts = np.unique(nearest, return_counts=True)
    return used, counts


def extras(wish: Wish, contract: Facts) -> Extras:
    """Return what an output or an option needs besides the labels."""
    if needs_probabilities(wish):
        return "probabilities"
    if contract.probability_grid and not OF_SUBJECT.isdisjoint(wish.outputs):
        return "probabilities"  # for a soft edge
    needed = not HAS_CONFIDENCE.isdisjoint(wish.all_outputs) or wish.refinement.needs_confidence
    return "confidence" if contract.confidence and needed else "labels"


def needs_probabilities(wish: Wish) -> bool:
    """Return whether an output or an option needs the probabilities of all classes."""
    return bool(_in_need(wish))


def _in_need(wish: Wish) -> str:
    """Return the option that needs the probabilities, as in the query; empty if none does."""
    named = ", ".join(sorted(NEEDS_PROBABILITIES & wish.all_outputs))
    return f"output={named}" if named else "smooth=true" if wish.smooth else ""


def parse_outputs(text: str, what: str, valid: Iterable[str]) -> tuple[str, ...]:
    """Split comma-separated output names; raises InvalidOption for unknown ones."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [name for name in names if name not in valid]
    if wrong or not names:
        raise InvalidOption(f"{what}={text!r}: choose from {', '.join(valid)}")
    return names


def check(wish: Wish, contract: Facts) -> None:
    """Raise InvalidOption for outputs that the model lacks, and for a useless `include`."""
    if wish.include and "json" not in wish.outputs:
        raise InvalidOption(
            f"include={','.join(wish.include)} needs output=json, which it adds images to"
        )
    if wish.legend and HAS_LEGEND.isdisjoint(wish.all_outputs):
        raise InvalidOption("legend=true needs output=overlay or output=side-by-side")
    if wish.overlay_format not in encoders.writable():
        raise InvalidOption(
            f"overlay_format={wish.overlay_format}: Pillow is installed here without its encoder: "
            f"choose from {', '.join(encoders.writable())}"
        )
    if "confidence" in wish.all_outputs and not contract.confidence:
        raise InvalidOption(
            "output=confidence: this model has no confidence; export it with --confidence"
        )
    if needs_probabilities(wish) and contract.probability_grid is None:
        raise InvalidOption(
            f"{_in_need(wish)}: this model has no probabilities; export it with --probabilities"
        )
    chosen = wish.selection.named or contract.background is not None
    if not chosen and (subject := sorted(OF_SUBJECT & set(wish.outputs))):
        raise InvalidOption(
            f"output={', '.join(subject)}: this model has no class `background`: choose classes"
        )
    if "heatmap" in wish.outputs and (not wish.selection.named or len(wish.selection.ids) != 1):
        raise InvalidOption("output=heatmap shows one class: choose it, as in classes=person")
    if "probabilities" not in wish.outputs and (wish.top or wish.coverage is not None):
        raise InvalidOption("top and coverage need output=probabilities, which they change")
    if wish.coverage is not None:
        _least(wish.coverage, contract)
    if wish.refinement.needs_confidence and not contract.confidence:
        raise InvalidOption(
            "min_confidence: this model has no confidence; export it with --confidence"
        )


def _least(coverage: float, contract: Facts) -> int:
    """Return the threshold of the sets; raises InvalidOption if the model has none."""
    calibration = contract.calibration
    if calibration is None or calibration.missed is None:
        raise InvalidOption(f"coverage={coverage}: {UNCALIBRATED}")
    least = least_for(coverage, calibration.missed, calibration.images)
    if least is None:
        most = calibration.images / (calibration.images + 1)
        raise InvalidOption(
            f"coverage={coverage}: this model was calibrated on {calibration.images} photos, which "
            f"are enough for at most {most:.3f}"
        )
    return least


def encode(result: Result, wish: Wish) -> tuple[bytes, str]:
    """Return the body of the answer and its media type; several outputs become a ZIP."""
    return joined(encode_each(result, wish), wish)


def joined(files: dict[str, bytes], wish: Wish) -> tuple[bytes, str]:
    """Return the body of the answer to encoded outputs and its media type."""
    if len(files) == 1:
        ((name, body),) = files.items()
        return body, wish.kind(name)[0]
    return encoders.archive({wish.kind(name)[1]: body for name, body in files.items()}), ZIP


def encode_each(result: Result, wish: Wish) -> dict[str, bytes]:
    """Encode all requested outputs, by name; raises TooLarge or TooManyBytes."""
    result = replace(refined(result, wish), max_side=wish.max_side)
    if wish.legend:
        result = replace(result, shares=_shares(result))
    files: dict[str, bytes] = {}
    for name in wish.outputs:
        files[name] = _encode_one(name, result, wish)
        _check_total(files.values(), wish)
    return files


def _check_total(bodies: Iterable[bytes | str], wish: Wish) -> None:
    """Raise TooManyBytes before more outputs are encoded, which would only take memory."""
    size = sum(map(len, bodies))
    if size > wish.most_bytes:
        raise TooManyBytes(size, wish.most_bytes)


def refined(result: Result, wish: Wish) -> Result:
    """Refine the labels as requested; raises TooLarge."""
    if wish.smooth and result.grid is not None:
        result = _smoothed(result, result.grid)
    with _limited("leave out min_area and fill_holes, use fit=resize, or send a smaller image"):
        background = result.contract.background
        cells = wish.refinement.apply(result.cells, result.sure, background, result.spread)
    return result if cells is result.cells else replace(result, cells=cells)


def label_map(result: Result, wish: Wish) -> NDArray[np.uint8]:
    """Return the labels as requested, at the photo's own size (H, W); raises TooLarge."""
    return _selected(refined(result, wish), wish).image


def _smoothed(result: Result, grid: Grid) -> Result:
    """Return the result with labels along the edges of the photo."""
    height, width = result.cells.shape
    guide = result.photo.guide((width, height))
    classes = candidates(result.cells)
    best = result.contract.best_iou
    decision = None if best is None else (best.weights, best.margins)
    labels = smooth_labels(grid, classes, guide, result.photo.size, decision)
    sure = None if result.confidence is None else result.confidence.image
    return replace(result, cells=labels, sure=sure, spread=Spread.none(labels.shape))


@contextmanager
def _limited(cure: str) -> Iterator[None]:
    """Turn TooComplex into TooLarge, and add what to do."""
    try:
        yield
    except TooComplex as error:
        raise TooLarge(f"{error}: {cure}") from None


def _encode_one(name: str, result: Result, wish: Wish) -> bytes:
    makers: dict[str, Callable[[Result, Wish], bytes]] = {
        "mask": _mask,
        "color": lambda r, w: encoders.color_png(_selected(r, w), r.contract.palette),
        "overlay": _overlay,
        "json": _json,
        "rle": _rle,
        "polygons": _polygons,
        "npz": _npz,
        "confidence": _confidence,
        "probabilities": _probabilities,
        "cutout": _cutout,
        "blur": _blur,
        "replace": _replace,
        "side-by-side": _side_by_side,
        "heatmap": _heatmap,
    }
    return makers[name](result.pictures if name in PICTURES else result, wish)


def _selected(result: Result, wish: Wish) -> Rows:
    return replace(result.labels, different=wish.selection.apply(result.labels.different))


def _mask(result: Result, wish: Wish) -> bytes:
    labels = _selected(result, wish)
    if wish.mask_format == "gray":
        return encoders.grey_png(labels)
    return encoders.mask_png(labels, result.contract.palette)


def _overlay(result: Result, wish: Wish) -> bytes:
    return _photo_like(_blended(result, wish), wish)


def _photo_like(picture: Image.Image, wish: Wish) -> bytes:
    return encoders.picture(picture, wish.overlay_format)


def _shares(result: Result) -> dict[int, float]:
    """Return the share of the photo's pixels that each class has."""
    sums = np.zeros(256)
    for row, height in zip(result.cells, result.spread.heights.tolist(), strict=True):
        sums += height * np.bincount(row, weights=result.spread.widths, minlength=256)
    return {label: float(sums[label] / sums.sum()) for label in np.flatnonzero(sums).tolist()}


def _side_by_side(result: Result, wish: Wish) -> bytes:
    whole = result.photo.whole
    return _photo_like(pictures.beside(whole, _blended(result, wish)), wish)


def _heatmap(result: Result, wish: Wish) -> bytes:
    grid = result.grid
    if grid is None:  # `check` refuses such requests
        raise InvalidOption("output=heatmap: this model has no probabilities")
    (label,) = wish.selection.ids
    whole = result.photo.whole
    return _photo_like(pictures.heatmap(whole, grid, label, result.photo.size), wish)


def _cutout(result: Result, wish: Wish) -> bytes:
    """Return the selected classes; by default all but the background."""
    whole = result.photo.whole
    ids = wish.selection.ids
    if not wish.selection.named:
        ids -= {result.contract.background}
    mask = pictures.opacity(result.cells, ids, result.grid, result.photo.size)
    return encoders.picture(pictures.cut_out(whole, mask), wish.format_of("cutout"))


def _blur(result: Result, wish: Wish) -> bytes:
    whole = result.photo.whole
    return _photo_like(pictures.blurred(whole, _hidden(result, wish)), wish)


def _replace(result: Result, wish: Wish) -> bytes:
    whole = result.photo.whole
    return _photo_like(pictures.filled(whole, _hidden(result, wish), wish.fill), wish)


def _hidden(result: Result, wish: Wish) -> Image.Image:
    """Return the area to blur or fill: the selected classes, by default the background."""
    ids = wish.selection.ids
    if wish.selection.named:
        return pictures.opacity(result.cells, ids, result.grid, result.photo.size, generous=True)
    ids -= {result.contract.background}
    shown = pictures.opacity(result.cells, ids, result.grid, result.photo.size)
    return ImageChops.invert(shown)


def _blended(result: Result, wish: Wish) -> Image.Image:
    shown = wish.selection.ids - {result.contract.background}
    blended = encoders.overlay(
        result.photo,
        result.labels,
        result.contract.palette,
        alpha=wish.alpha,
        shown=shown,
        contour=wish.contour,
        spare=NEEDS_PHOTO & wish.all_outputs == {"overlay"},
    )
    if wish.legend and result.shares is not None:
        found = {label: share for label, share in result.shares.items() if label in shown}
        legend.draw(blended, result.labels, found, result.contract)
    return blended


def _confidence(result: Result, _: Wish) -> bytes:
    if result.confidence is None:  # `check` refuses such requests
        raise InvalidOption("output=confidence: this model has no confidence")
    return encoders.grey_png(result.confidence)


def _probabilities(result: Result, wish: Wish) -> bytes:
    grid = result.grid
    if grid is None:  # `check` refuses such requests
        raise InvalidOption("output=probabilities: this model has no probabilities")
    arrays: dict[str, NDArray[Any]] = {
        "transform": grid.transform,
        "classes": np.array(result.contract.classes),
    }
    if wish.top:
        classes, values = top(grid.values, wish.top)
        arrays |= {"top_classes": classes, "top_probabilities": values}
    else:
        arrays["probabilities"] = grid.values
    if wish.coverage is not None:
        arrays["sets"] = sets(grid.values, _least(wish.coverage, result.contract))
    return encoders.npz(arrays)


def _npz(result: Result, wish: Wish) -> bytes:
    arrays: dict[str, NDArray[Any]] = {"labels": _selected(result, wish).image}
    if result.confidence is not None:
        arrays["confidence"] = result.confidence.image
    if wish.instances:
        numbers = _instances(result, wish).map().astype(np.uint16)  # below MAX_INSTANCES
        arrays["instances"] = numbers.repeat(result.spread.heights, axis=0).repeat(
            result.spread.widths, axis=1
        )
    return encoders.npz(arrays)


def _found(result: Result, wish: Wish) -> list[dict[str, Any]]:
    """Return the entry of every class in the JSON."""
    found = encoders.summary(
        result.labels.image,
        result.contract.classes,
        shown=wish.selection.ids,
        confidence=None if result.confidence is None else result.confidence.image,
    )
    regions = _count_regions(result)
    for entry in found:
        entry["regions"] = None if regions is None else regions[entry["id"]]
    return found


def _count_regions(result: Result) -> list[int] | None:
    """Return the number of connected regions of each label; None if there are too many."""
    try:
        runs = Runs.of(result.cells, result.spread)
    except TooComplex:
        return None
    if len(runs.starts) > MOST_RUNS:
        return None
    counts: list[int] = np.bincount(Regions.joined(runs).labels, minlength=256).tolist()
    return counts


def _instances(result: Result, wish: Wish) -> Instances:
    """Find the instances of the selected classes; background only if it is named."""
    ids = wish.selection.ids
    if not wish.selection.named:
        ids -= {result.contract.background}
    with _limited("set min_area, request fewer classes, or send a smaller image"):
        return Instances.of(result.cells, ids, result.spread)


def _entries(result: Result, instances: Instances) -> list[dict[str, Any]]:
    """Return the entry of every instance in the JSON."""
    regions, total = instances.regions, result.photo.size[0] * result.photo.size[1]
    entries = [
        {
            "id": number,
            "class_id": label,
            "name": result.contract.classes[label],
            "pixels": pixels,
            "fraction": round(pixels / total, 6),
            "box": box,
        }
        for number, label, pixels, box in zip(
            range(1, len(instances.chosen) + 1),
            regions.labels[instances.chosen].tolist(),
            regions.areas[instances.chosen].tolist(),
            regions.boxes[instances.chosen].tolist(),
            strict=True,
        )
    ]
    if result.sure is not None:
        means = instances.mean_confidence(result.sure).tolist()
        for entry, mean in zip(entries, means, strict=True):
            entry["confidence"] = round(mean / 255, 4)
    return entries


def _json(result: Result, wish: Wish) -> bytes:
    answer: dict[str, Any] = {**_size(result), "classes": _found(result, wish)}
    if wish.instances:
        answer["instances"] = _entries(result, _instances(result, wish))
    texts: list[str] = []
    for name in wish.include:
        texts.append(encoders.as_text(_encode_one(name, result, wish)))
        _check_total(texts, wish)
        answer[name] = {"media_type": wish.kind(name)[0], "base64": texts[-1]}
    return json.dumps(answer).encode()


def _rle(result: Result, wish: Wish) -> bytes:
    answer: dict[str, Any] = {**_size(result), "classes": _found(result, wish)}
    by_column = np.asfortranarray(result.labels.image)
    for entry in answer["classes"]:
        entry["segmentation"] = encoders.rle(by_column, entry["id"])
    if wish.instances:
        instances = _instances(result, wish)
        answer["instances"] = _entries(result, instances)
        for entry, runs in zip(answer["instances"], instances.run_lengths(), strict=True):
            entry["segmentation"] = encoders.compressed(runs, result.photo.size)
    return json.dumps(answer).encode()


def _polygons(result: Result, wish: Wish) -> bytes:
    with _limited(
        "use output=mask or output=rle, request fewer classes, set min_area, "
        "or send a smaller image"
    ):
        exact = _exact(result, wish)
        shapes = _shapes(result, wish, exact)
    make = _features_of_instances if wish.instances else _features_of_classes
    features = make(result, wish, exact, shapes)
    collection = {"type": "FeatureCollection", **_size(result), "features": features}
    return json.dumps(collection, separators=(",", ":")).encode()


Shapes = dict[int, list[outlines.Polygon]]  # by class


def _exact(result: Result, wish: Wish) -> Shapes:
    """Return the polygons of the selected classes in cells; of all labels to simplify them."""
    present = map(int, np.flatnonzero(np.bincount(result.cells.ravel(), minlength=256)))
    shapes, left = {}, outlines.MAX_CORNERS
    for label in present:
        if label in wish.selection.ids or wish.simplify:
            shapes[label] = outlines.of_class(result.cells, label, left)
            left -= outlines.count_corners(shapes[label])
    return shapes


def _shapes(result: Result, wish: Wish, exact: Shapes) -> Shapes:
    """Return the polygons in pixels, simplified if requested."""
    if wish.simplify:
        return simplified(exact, result.cells, wish.simplify, result.spread)
    return {label: outlines.placed(each, result.spread) for label, each in exact.items()}


def _features_of_classes(
    result: Result, wish: Wish, _: Shapes, shapes: Shapes
) -> list[dict[str, Any]]:
    return [
        _feature(result, entry, entry["id"], shapes[entry["id"]]) for entry in _found(result, wish)
    ]


def _features_of_instances(
    result: Result, wish: Wish, exact: Shapes, shapes: Shapes
) -> list[dict[str, Any]]:
    instances = _instances(result, wish)
    by_number: dict[int, list[outlines.Polygon]] = {}
    for label, polygons in exact.items():
        numbers = instances.numbers_of(polygons)
        for number, polygon in zip(numbers, shapes[label], strict=True):
            by_number.setdefault(number, []).append(polygon)
    return [
        _feature(result, entry, entry["class_id"], by_number[entry["id"]])
        for entry in _entries(result, instances)
    ]


def _feature(
    result: Result, entry: dict[str, Any], label: int, shapes: Collection[outlines.Polygon]
) -> dict[str, Any]:
    """Return a class or an instance as a GeoJSON MultiPolygon."""
    return {
        "type": "Feature",
        "id": entry["id"],
        "bbox": entry["box"],
        "properties": {**entry, "color": result.contract.palette[label]},
        "geometry": {"type": "MultiPolygon", "coordinates": shapes},
    }


def _size(result: Result) -> dict[str, int]:
    """The photo's size and EXIF orientation; coordinates are those of the upright photo."""
    width, height = result.photo.size
    return {"width": width, "height": height, "orientation": result.photo.orientation}
