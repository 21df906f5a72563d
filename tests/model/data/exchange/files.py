"""A small photo and the files that each tool would write for it, made without our writers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cvat_sdk.masks
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

SIZE = (64, 48)  # (W, H)
SQUARE = [(8, 6), (28, 6), (28, 26), (8, 26)]  # corners on pixel edges
TRIANGLE = [(20, 10), (54.5, 10), (20, 44.5)]  # no pixel's centre is near its long side

Corners = Sequence[tuple[float, float]]


def pixels(corners: Corners) -> NDArray[np.bool_]:
    """The pixels whose centre is in a polygon."""
    y, x = np.indices((SIZE[1], SIZE[0])) + 0.5
    inside: NDArray[np.bool_] = shapely.contains_xy(shapely.Polygon(corners), x, y)
    return inside


def square_over_triangle() -> NDArray[np.uint8]:
    """Class ids: triangle 2, square 1 on top of it."""
    ids = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    ids[pixels(TRIANGLE)] = 2
    ids[pixels(SQUARE)] = 1
    return ids


def photo(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    """Write a photo of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)
    return path


def flat(corners: Corners) -> list[float]:
    return [number for corner in corners for number in corner]


def write_json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def coco_file(path: Path, **changes: Any) -> Path:
    """The triangle as polygon, the square as compressed run lengths; ids from 1."""
    runs = coco.encode(np.asfortranarray(pixels(SQUARE), np.uint8))
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": SIZE[0], "height": SIZE[1]}],
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "triangle"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "segmentation": [flat(TRIANGLE)]},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 1,
                "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
            },
        ],
    }
    return write_json(path, document | changes)


def labelme_file(path: Path, **changes: Any) -> Path:
    """The triangle as polygon, the square as mask with a bounding box, as LabelMe writes both."""
    crop = pixels(SQUARE)[6:26, 8:28]
    stream = io.BytesIO()
    Image.fromarray(crop.astype(np.uint8) * 255).save(stream, "PNG")
    document: dict[str, Any] = {
        "version": "6.3.1",
        "flags": {},
        "shapes": [
            {"label": "triangle", "points": TRIANGLE, "shape_type": "polygon", "group_id": None},
            {
                "label": "square",
                "points": [[8, 6], [27, 25]],
                "shape_type": "mask",
                "mask": base64.b64encode(stream.getvalue()).decode(),
            },
        ],
        "imagePath": "a.jpg",
        "imageData": None,
        "imageHeight": SIZE[1],
        "imageWidth": SIZE[0],
    }
    return write_json(path, document | changes)


def cvat_file(path: Path, shapes: str = "", attributes: str = "") -> Path:
    """The square as mask, the triangle as polygon behind it by its z_order."""
    encoded = [int(n) for n in cvat_sdk.masks.encode_mask(pixels(SQUARE), [8, 6, 28, 26])]
    rle = ", ".join(map(str, encoded[:-4]))
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in TRIANGLE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><job><labels>
<label><name>square</name><color>#ff0000</color><type>any</type></label>
<label><name>triangle</name><color>#00ff7f</color><type>any</type></label>
</labels></job></meta>
<image id="0" name="a.jpg" width="{SIZE[0]}" height="{SIZE[1]}" {attributes}>
<mask label="square" source="manual" occluded="0" rle="{rle}" left="8" top="6" width="20" \
height="20" z_order="1"></mask>
<polygon label="triangle" source="manual" occluded="0" points="{points}" z_order="0"></polygon>
{shapes}</image></annotations>""",
        encoding="utf-8",
    )
    return path


def result(kind: str, value: dict[str, Any], identity: str = "x") -> dict[str, Any]:
    """One result of a Label Studio annotation."""
    return {
        "id": identity,
        "type": kind,
        "value": value,
        "original_width": SIZE[0],
        "original_height": SIZE[1],
        "image_rotation": 0,
        "from_name": "label",
        "to_name": "image",
    }


def percent(corners: Corners) -> list[list[float]]:
    return [[100 * x / SIZE[0], 100 * y / SIZE[1]] for x, y in corners]


def labelstudio_file(path: Path, *more: dict[str, Any], **task: Any) -> Path:
    """The triangle as polygon, the square as brush by the SDK's own encoder (a golden file)."""
    brush = json.loads((Path(__file__).parent / "brush.json").read_text())
    results = [
        result("polygonlabels", {"points": percent(TRIANGLE), "polygonlabels": ["triangle"]}),
        result("brushlabels", {"format": "rle", "rle": brush, "brushlabels": ["square"]}, "y"),
        *more,
    ]
    annotation = {"id": 1, "was_cancelled": False, "result": results}
    document = {
        "id": 1,
        "data": {"image": "/data/upload/1/0123abcd-a.jpg"},
        "annotations": [annotation],
    }
    return write_json(path, [document | task])


def yolo_folder(folder: Path, first: int = 0) -> Path:
    """The square after the triangle, as shares of the sides."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text("names:\n  0: square\n  1: triangle\n", encoding="utf-8")
    lines = [
        " ".join([str(index + first), *(f"{x / SIZE[0]:.6f} {y / SIZE[1]:.6f}" for x, y in shape)])
        for index, shape in ((1, TRIANGLE), (0, SQUARE))
    ]
    labels = folder / "labels" / "train" / "a.txt"
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def colors_folder(folder: Path) -> Path:
    """What CVAT exports as Segmentation mask 1.1."""
    (folder / "SegmentationClass").mkdir(parents=True, exist_ok=True)
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nsquare:250,50,83::\n"
        "triangle:51,221,255::\n",
        encoding="utf-8",
    )
    colors = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
    Image.fromarray(colors[square_over_triangle()]).save(folder / "SegmentationClass" / "a.png")
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("a\n", encoding="utf-8")
    return folder


def cityscapes_folder(folder: Path) -> Path:
    """The polygons of a photo `city/a`, the square drawn after the triangle."""
    whole = [(0, 0), (SIZE[0], 0), SIZE, (0, SIZE[1])]
    objects = [("background", whole), ("triangle", TRIANGLE), ("square", SQUARE)]
    write_json(
        folder / "gtFine" / "train" / "city" / "a_gtFine_polygons.json",
        {
            "imgHeight": SIZE[1],
            "imgWidth": SIZE[0],
            "objects": [{"label": label, "polygon": shape} for label, shape in objects],
        },
    )
    return folder
