"""Data sets become label tools' files; other programs' code reads them, and so does the import."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import cvat_sdk.masks
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from model.data.__main__ import main
from model.data.pairs import write_mask
from model.data.shapes import PALETTE, draw
from tests.annotations.test_runs import decode_rle

FORMATS = ("coco", "cvat", "labelstudio", "labelme", "yolo-seg", "voc")
BOTH = [(kind, form) for kind in FORMATS[:4] for form in ("polygons", "masks")]
EVERY = [*BOTH, ("yolo-seg", "polygons"), ("voc", "masks")]
NAMES = ("background", "disc", "square", "triangle")
COUNT = 3
Ids = NDArray[np.uint8]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three photos of shapes, one with a hole and an island in it, and a strip of void."""
    rng = np.random.default_rng(1)
    root = tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for index in range(COUNT):
        photo, ids = draw(rng)
        ids = ids.copy()
        ids[5:30, 5:30] = 1
        ids[10:25, 10:25] = 0
        ids[15:20, 15:20] = 2
        ids[60:63, 40:90] = 255
        Image.fromarray(photo).save(root / "images" / "train" / f"{index}.jpg")
        write_mask(root / "masks" / "train" / f"{index}.png", ids, PALETTE)
    names = ", ".join(f'"{name}"' for name in NAMES)
    colors = ", ".join(str(list(color)) for color in PALETTE)
    (root / "dataset.toml").write_text(f"classes = [{names}]\npalette = [{colors}]\n")
    return root


def export(data: Path, kind: str, *options: str) -> Path:
    out = data.parent / ("out" if kind in FORMATS[3:] else "out.json")
    assert main(["export", kind, str(data), "-o", str(out), *options]) == 0
    return out


def truth(data: Path) -> list[Ids]:
    return [ids_of(data / "masks" / "train" / f"{index}.png") for index in range(COUNT)]


def ids_of(path: Path) -> Ids:
    with Image.open(path) as picture:
        return np.asarray(picture)


def reimported(data: Path, kind: str, labels: Path) -> list[Ids]:
    """Import what was exported and return its masks."""
    source = "voc-colours" if kind == "voc" else kind
    out = data.parent / "again"
    options = ["--images", str(data / "images"), "-o", str(out), "--splits", "train=1"]
    options += ["--classes", ",".join(NAMES), "--unlabelled", "background"]
    assert main(["import", source, str(labels), *options]) == 0
    return [ids_of(out / "masks" / "train" / f"{index}.png") for index in range(COUNT)]


@pytest.mark.parametrize(("kind", "form"), EVERY)
def test_export_and_import_give_the_same_masks(kind: str, form: str, data: Path) -> None:
    """Holes, islands and void are exact too, because corners lie on pixel edges."""
    labels = export(data, kind, "--shapes", form)
    for before, after in zip(truth(data), reimported(data, kind, labels), strict=True):
        assert (after == before).all()


@pytest.mark.parametrize("kind", ["coco", "cvat", "labelstudio", "labelme", "yolo-seg"])
def test_simplified_polygons_stay_close_and_neighbours_keep_their_border(
    kind: str, data: Path
) -> None:
    """IoU of each class above 0.95 on pictures of 96 x 72, and no pixel between classes is lost."""
    labels = export(data, kind, "--tolerance", "1")
    for before, after in zip(truth(data), reimported(data, kind, labels), strict=True):
        for number in (*range(len(NAMES)), 255):
            one, other = before == number, after == number
            assert (one & other).sum() / (one | other).sum() > 0.95


def mask_of(annotation: Any, coco: COCO) -> NDArray[np.bool_]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0 with NumPy 2
        return np.asarray(coco.annToMask(annotation), bool)


@pytest.mark.parametrize("form", ["polygons", "masks"])
def test_pycocotools_reads_the_coco_file(form: str, data: Path) -> None:
    """Categories count from 1; areas and boxes are those of the pixels."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(export(data, "coco", "--shapes", form)))
    names = {key: each["name"] for key, each in coco.cats.items()}
    assert names == {1: "disc", 2: "square", 3: "triangle", 4: "void"}
    number = {"disc": 1, "square": 2, "triangle": 3, "void": 255}
    for image, ids in zip(coco.imgs.values(), truth(data), strict=True):
        found = np.zeros_like(ids)
        for annotation in coco.imgToAnns[image["id"]]:
            pixels = mask_of(annotation, coco)
            assert not found[pixels].any()
            assert pixels.sum() == annotation["area"]
            rows, columns = np.nonzero(pixels)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box
            found[pixels] = number[names[annotation["category_id"]]]
        assert (found == ids).all()


def test_cvats_own_decoder_reads_the_masks(data: Path) -> None:
    document = ET.parse(export(data, "cvat", "--shapes", "masks", "--per", "class"))
    labels = [each.text for each in document.findall("meta/task/labels/label/name")]
    assert labels == ["disc", "square", "triangle", "void"]
    for image, ids in zip(document.findall("image"), truth(data), strict=True):
        masks = image.findall("mask")
        assert len(masks) == len({*np.unique(ids)} - {0})
        for mask in masks:
            left, top, width, height = (
                int(mask.attrib[key]) for key in ("left", "top", "width", "height")
            )
            runs = [int(text) for text in mask.attrib["rle"].split(",")]
            pixels = cvat_sdk.masks.decode_mask(
                [*runs, left, top, left + width - 1, top + height - 1],
                image_width=ids.shape[1],
                image_height=ids.shape[0],
            )
            number = {"disc": 1, "square": 2, "triangle": 3, "void": 255}[mask.attrib["label"]]
            assert (pixels == (ids == number)).all()


def test_label_studios_own_decoder_reads_the_brushes(data: Path) -> None:
    out = export(data, "labelstudio", "--shapes", "masks", "--per", "class", "--prefix", "/p/")
    tasks = json.loads(out.read_text())
    for index, (task, ids) in enumerate(zip(tasks, truth(data), strict=True)):
        assert task["data"]["image"] == f"/p/{index}.jpg"
        (annotation,) = task["annotations"]
        for result in annotation["result"]:
            width, height = result["original_width"], result["original_height"]
            brush = decode_rle(result["value"]["rle"]).reshape(height, width, 4)[..., 3] > 0
            (label,) = result["value"]["brushlabels"]
            number = {"disc": 1, "square": 2, "triangle": 3, "void": 255}[label]
            assert (brush == (ids == number)).all()
    config = ET.parse(out.with_suffix(".config.xml"))
    values = [each.attrib["value"] for each in config.iter("Label")]
    assert values == ["disc", "square", "triangle", "void"]
    (tag,) = config.iter("BrushLabels")
    result = tasks[0]["annotations"][0]["result"][0]
    assert (tag.attrib["name"], tag.attrib["toName"]) == (result["from_name"], result["to_name"])


def test_labelmes_masks_are_pngs_of_their_boxes(data: Path) -> None:
    """As labelme.utils.shapes_to_label reads them: both corners belong to the box."""
    out = export(data, "labelme", "--shapes", "masks")
    for index, ids in enumerate(truth(data)):
        document = json.loads((out / f"{index}.json").read_text())
        found = np.zeros_like(ids)
        for shape in document["shapes"]:
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
                pixels = np.asarray(picture).astype(bool)
            (x1, y1), (x2, y2) = shape["points"]
            number = {"disc": 1, "square": 2, "triangle": 3, "void": 255}[shape["label"]]
            found[y1 : y2 + 1, x1 : x2 + 1][pixels] = number
        assert (found == ids).all()
        assert document["imagePath"] == f"{index}.jpg"


def test_small_regions_are_left_out_and_counted(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each photo has one small region, an island of 25 pixels."""
    out = export(data, "coco", "--min-area", "26")
    told = capsys.readouterr().out
    assert f"{COUNT} x region of less than 26 pixels" in told
    annotations = json.loads(out.read_text())["annotations"]
    assert min(annotation["area"] for annotation in annotations) >= 26


def test_classes_are_chosen_by_name(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(export(data, "coco", "--classes", "square").read_text())
    assert [each["name"] for each in document["categories"]] == ["square"]
    capsys.readouterr()
    wrong = ["export", "coco", str(data), "-o", str(data.parent / "x.json"), "--classes", "sqare"]
    assert main(wrong) == 2
    assert "--classes sqare: there are background, disc, square" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("yolo-seg", ["--shapes", "masks"], "yolo-seg holds polygons only"),
        ("coco", ["--shapes", "masks", "--tolerance", "1"], "--tolerance is for polygons"),
        ("coco", ["--min-area", "-1"], "pixels from 0 on"),
        ("coco", ["--tolerance", "inf"], "pixels from 0 on"),
        ("coco", ["--tolerance", "nan"], "pixels from 0 on"),
    ],
)
def test_options_that_a_format_lacks_are_usage_errors(
    kind: str, options: list[str], told: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.parent / "out"
    assert main(["export", kind, str(data), "-o", str(out), *options]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_a_broken_mask_is_named_and_the_others_are_written(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "masks" / "train" / "1.png").write_bytes(b"broken")
    out = data.parent / "out.json"
    assert main(["export", "coco", str(data), "-o", str(out)]) == 1
    assert "problem: 1: " in capsys.readouterr().out
    images = json.loads(out.read_text())["images"]
    assert [image["file_name"] for image in images] == ["0.jpg", "2.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_name_that_is_no_utf8_can_be_exported(kind: str, data: Path) -> None:
    """`caf\\xe9.jpg` of an old disk; JSON holds it as an escape, which our import reads again."""
    photo, name = data / "images" / "train" / "1.jpg", "caf\udce9"
    photo.rename(photo.with_name(f"{name}.jpg"))
    mask = data / "masks" / "train" / "1.png"
    mask.rename(mask.with_name(f"{name}.png"))
    target = export(data, kind)
    if kind == "coco":
        images = json.loads(target.read_text(encoding="utf-8"))["images"]
        assert f"{name}.jpg" in {image["file_name"] for image in images}
    if kind == "voc":
        listed = target / "ImageSets" / "Segmentation" / "train.txt"
        assert b"caf\xe9\n" in listed.read_bytes()


def test_a_folder_with_files_in_it_is_not_overwritten(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.parent / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(["export", "labelme", str(data), "-o", str(out)]) == 2
    assert "needs a new folder" in capsys.readouterr().err


def test_splits_are_kept(data: Path) -> None:
    """Two splits in one file, which CVAT calls subsets, and back."""
    for kind in ("images", "masks"):
        (data / kind / "val").mkdir()
        for path in sorted((data / kind / "train").iterdir())[2:]:
            path.rename(data / kind / "val" / path.name)
    out = export(data, "cvat", "--split", "train,val")
    assert [each.get("subset") for each in ET.parse(out).findall("image")] == [
        "train",
        "train",
        "val",
    ]
    again = data.parent / "again"
    words = ["--images", str(data / "images"), "-o", str(again), "--splits", "source"]
    assert main(["import", "cvat", str(out), *words]) == 0
    assert [path.name for path in (again / "masks" / "val").iterdir()] == ["2.png"]
