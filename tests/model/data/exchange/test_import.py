"""Label tools' files become a folder data set; the files are made without our own writers.

`brush.json` is what label-studio-sdk 2.1.2 makes of the square:
`converter.brush.mask2rle(255 * pixels(SQUARE).astype("uint8"))`.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.data.__main__ import main
from model.data.check import check
from model.data.dataset import find, read_pair
from tests.model.data.exchange import files
from tests.model.data.exchange.files import SIZE, SQUARE, TRIANGLE

WRITERS: dict[str, Callable[[Path], Path]] = {
    "coco": lambda folder: files.coco_file(folder / "instances.json"),
    "labelme": lambda folder: files.labelme_file(folder / "a.json").parent,
    "cvat": lambda folder: files.cvat_file(folder / "annotations.xml"),
    "labelstudio": lambda folder: files.labelstudio_file(folder / "export.json"),
    "yolo-seg": files.yolo_folder,
    "voc-colours": files.colors_folder,
    "cityscapes-like": files.cityscapes_folder,
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos; the labels are about a.jpg."""
    files.photo(tmp_path / "photos" / "a.jpg")
    files.photo(tmp_path / "photos" / "other.jpg")
    return tmp_path / "photos"


def run(kind: str, labels: Path, photos: Path, *options: str) -> int:
    out = photos.parent / "set"
    words = ["import", kind, str(labels), "--images", str(photos), "-o", str(out)]
    if not any(option.startswith("--splits") for option in options):
        words.append("--splits=train=1")
    return main([*words, *options])


def mask(photos: Path, name: str = "a", split: str = "train") -> NDArray[np.uint8]:
    with Image.open(photos.parent / "set" / "masks" / split / f"{name}.png") as picture:
        return np.asarray(picture)


def toml_classes(photos: Path) -> tuple[str, ...]:
    return find("folder", photos.parent / "set", "train").classes


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_masks(kind: str, photos: Path, tmp_path: Path) -> None:
    """The same two shapes in seven formats; the square is on top, and class 1."""
    if kind == "cityscapes-like":
        (photos / "a.jpg").rename(photos / "a_leftImg8bit.jpg")
    labels = WRITERS[kind](tmp_path / "labels")
    assert run(kind, labels, photos, "--classes", "background,square,triangle") == 0
    name = "a_leftImg8bit" if kind == "cityscapes-like" else "a"
    assert (mask(photos, name) == files.square_over_triangle()).all()
    dataset = find("folder", tmp_path / "set", "train")
    assert dataset.classes == ("background", "square", "triangle")
    assert check(dataset).usable
    image, _ = read_pair(dataset, dataset.pairs[0])
    assert image.size == SIZE


@pytest.mark.parametrize("kind", WRITERS)
def test_a_dry_run_writes_nothing(
    kind: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "cityscapes-like":
        (photos / "a.jpg").rename(photos / "a_leftImg8bit.jpg")
    labels = WRITERS[kind](tmp_path / "labels")
    assert run(kind, labels, photos, "--dry-run") == 0
    assert not (tmp_path / "set").exists()
    told = capsys.readouterr().out
    assert "would write 1 photos" in told
    assert "square" in told


def test_labels_are_merged_chosen_and_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`square` becomes `shape`. The triangle is not chosen, so it is reported, not drawn."""
    labels = files.coco_file(tmp_path / "instances.json")
    assert run("coco", labels, photos, "--map", "square=shape", "--classes", "shape") == 0
    assert (mask(photos) == files.pixels(SQUARE)).all()
    assert toml_classes(photos) == ("background", "shape")
    told = capsys.readouterr().out
    assert "class 1 shape: 1 regions of square" in told
    assert "not drawn: triangle (1 regions)" in told


def test_labels_that_are_not_chosen_can_be_void(photos: Path, tmp_path: Path) -> None:
    labels = files.coco_file(tmp_path / "instances.json")
    assert run("coco", labels, photos, "--classes", "square", "--others", "void") == 0
    expected = np.array([0, 1, 255], np.uint8)[files.square_over_triangle()]
    assert (mask(photos) == expected).all()


def test_two_labels_become_one_class(photos: Path, tmp_path: Path) -> None:
    labels = files.coco_file(tmp_path / "instances.json")
    assert run("coco", labels, photos, "--map", "square=shape,triangle=shape") == 0
    assert (mask(photos) == (files.square_over_triangle() > 0)).all()


def test_pixels_without_a_label_can_be_void(photos: Path, tmp_path: Path) -> None:
    labels = files.coco_file(tmp_path / "instances.json")
    assert run("coco", labels, photos, "--unlabelled", "void") == 0
    expected = np.array([255, 0, 1], np.uint8)[files.square_over_triangle()]
    assert (mask(photos) == expected).all()


@pytest.mark.parametrize(("option", "told"), [("--map", "sqare=x"), ("--classes", "sqare")])
def test_misspelt_labels_are_usage_errors(
    option: str, told: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = files.coco_file(tmp_path / "instances.json")
    assert run("coco", labels, photos, option, told) == 2
    assert "sqare: no such label; there are square, triangle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("order", "top"), [("file", "square"), ("area", "square"), ("class", "triangle")]
)
def test_the_order_of_shapes_is_stated_and_kept(
    order: str, top: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = files.coco_file(tmp_path / "instances.json")
    assert run("coco", labels, photos, "--order", order) == 0
    both = files.pixels(SQUARE) & files.pixels(TRIANGLE)
    assert both.any()
    assert (mask(photos)[both] == ("background", "square", "triangle").index(top)).all()
    told = capsys.readouterr().out
    assert "where shapes overlap: a" in told
    assert f"several classes claim: {both.sum()}" in told


def test_cvats_z_order_beats_the_order_of_the_file(photos: Path, tmp_path: Path) -> None:
    """The triangle follows the square in the file, and lies below it."""
    assert run("cvat", files.cvat_file(tmp_path / "a.xml"), photos) == 0
    assert (mask(photos) == files.square_over_triangle()).all()


def test_uncompressed_run_lengths_of_coco(photos: Path, tmp_path: Path) -> None:
    flat = files.pixels(SQUARE).T.ravel().astype(int)
    counts = np.diff(np.flatnonzero(np.diff(flat, prepend=2, append=2))).tolist()
    counts = counts if flat[0] == 0 else [0, *counts]
    annotation: dict[str, Any] = {"image_id": 7, "category_id": 1, "iscrowd": 1}
    annotation |= {"segmentation": {"size": [SIZE[1], SIZE[0]], "counts": counts}}
    labels = files.coco_file(tmp_path / "instances.json", annotations=[annotation])
    assert run("coco", labels, photos) == 0
    assert (mask(photos) == files.pixels(SQUARE)).all()


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        ({"category_id": 9}, "category_id 9, which the file does not name"),
        ({"image_id": 99}, "an image that the file does not list"),
        ({"segmentation": [], "bbox": [1, 1, 5, 5]}, "a box and no outline"),
        ({"segmentation": [[1, 2, 3, 4]]}, "a polygon of 4 numbers"),
        ({"segmentation": {"size": [5, 5], "counts": [25]}}, "a photo of another size"),
        ({"segmentation": {"size": [48, 64], "counts": [25]}}, "do not make the photo's pixels"),
        ({"segmentation": {"size": [48, 64], "counts": "\x01"}}, "not COCO's"),
    ],
)
def test_annotations_that_cannot_be_used_are_named(
    annotation: dict[str, Any],
    told: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = {"image_id": 7, "category_id": 1, "segmentation": [files.flat(SQUARE)]}
    labels = files.coco_file(tmp_path / "a.json", annotations=[good, good | annotation])
    assert run("coco", labels, photos) == 0
    assert told in capsys.readouterr().out
    assert (mask(photos) == files.pixels(SQUARE)).all()


def test_boxes_are_imported_on_request(photos: Path, tmp_path: Path) -> None:
    box = {"image_id": 7, "category_id": 1, "bbox": [8, 6, 20, 20]}
    labels = files.coco_file(tmp_path / "a.json", annotations=[box])
    assert run("coco", labels, photos, "--boxes") == 0
    assert (mask(photos) == files.pixels(SQUARE)).all()


def test_shapes_without_an_area_are_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = '<polyline label="lane" points="1,1;5,5" z_order="0"/><tag label="rain"/>'
    unknown = '<blob label="square"/>'
    assert run("cvat", files.cvat_file(tmp_path / "a.xml", line + unknown), photos) == 0
    told = capsys.readouterr().out
    assert "polyline of lane: it has no area (first in a.jpg)" in told
    assert "tag of rain" in told
    assert "blob of square: this kind of shape is unknown" in told


def test_boxes_and_ellipses_of_cvat_turn_clockwise(photos: Path, tmp_path: Path) -> None:
    """A box of 20 x 4 that is turned by 90 degrees is a box of 4 x 20; cvat-sdk agrees."""
    turned = '<box label="square" xtl="20" ytl="20" xbr="40" ybr="24" rotation="90"/>'
    document = files.cvat_file(tmp_path / "a.xml", turned)
    text = document.read_text()
    kept = text[: text.index("<mask")] + turned + "</image></annotations>"
    document.write_text(kept)
    assert run("cvat", document, photos) == 0
    expected = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    expected[12:32, 28:32] = 1
    assert (mask(photos) == expected).all()


def test_rectangles_of_label_studio_turn_around_their_corner(photos: Path, tmp_path: Path) -> None:
    """Label Studio turns a rectangle around its upper left corner."""
    value = {"x": 50, "y": 25, "width": 25, "height": 12.5, "rotation": 90}
    rectangle = files.result("rectanglelabels", value | {"rectanglelabels": ["box"]}, "z")
    labels = files.labelstudio_file(tmp_path / "a.json", rectangle)
    assert run("labelstudio", labels, photos, "--classes", "box") == 0
    expected = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    expected[12:28, 26:32] = 1  # 16 x 6 pixels at (32, 12), turned
    assert (mask(photos) == expected).all()


def test_a_circle_of_labelme_has_the_area_of_a_circle(photos: Path, tmp_path: Path) -> None:
    shapes = [{"label": "disc", "shape_type": "circle", "points": [[30, 24], [30, 34]]}]
    shapes += [{"label": "tip", "shape_type": "point", "points": [[3, 3]]}]
    labels = files.labelme_file(tmp_path / "labels" / "a.json", shapes=shapes)
    assert run("labelme", labels.parent, photos) == 0
    rows, columns = np.indices((SIZE[1], SIZE[0])) + 0.5
    inside = np.hypot(columns - 30, rows - 24) < 10
    assert (mask(photos) == inside).mean() > 0.998


def test_the_photo_inside_labelmes_file_is_used_if_there_is_no_other(
    photos: Path, tmp_path: Path
) -> None:
    content = (photos / "a.jpg").read_bytes()
    labels = files.labelme_file(
        tmp_path / "labels" / "a.json",
        imagePath="..\\gone\\inner.jpg",  # as on Windows
        imageData=base64.b64encode(content).decode(),
    )
    assert run("labelme", labels.parent, photos) == 0
    assert (mask(photos, "inner") == files.square_over_triangle()).all()
    assert (tmp_path / "set" / "images" / "train" / "inner.jpg").read_bytes() == content


def test_label_studios_separate_labels_name_their_shapes(photos: Path, tmp_path: Path) -> None:
    """With <Labels> and <Polygon>, the label is a result of its own with the same id."""
    shape = {"points": files.percent(SQUARE)}
    results = [
        files.result("polygon", shape, "one"),
        files.result("labels", shape | {"labels": ["square"]}, "one"),
        {"type": "choices", "value": {"choices": ["rain"]}},
    ]
    annotations = [{"result": results, "was_cancelled": False}]
    labels = files.labelstudio_file(tmp_path / "a.json", annotations=annotations)
    assert run("labelstudio", labels, photos) == 0
    assert (mask(photos) == files.pixels(SQUARE)).all()


def test_the_latest_of_several_annotations_is_used(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def annotation(shape: files.Corners, **changes: Any) -> dict[str, Any]:
        value = {"points": files.percent(shape), "polygonlabels": ["thing"]}
        return {"result": [files.result("polygonlabels", value)], "was_cancelled": False} | changes

    labels = files.labelstudio_file(
        tmp_path / "a.json",
        annotations=[
            annotation(SQUARE, updated_at="2026-02-01"),
            annotation(TRIANGLE, updated_at="2026-01-01"),
            annotation(TRIANGLE, updated_at="2026-03-01", was_cancelled=True),
        ],
    )
    assert run("labelstudio", labels, photos) == 0
    assert (mask(photos) == files.pixels(SQUARE)).all()
    told = capsys.readouterr().out
    assert "task with several annotations" in told
    assert "skipped in the tool" in told


def test_classes_of_yolo_may_count_from_one(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted from 0, class 2 has no name, and the import says so. Counted from 1, all is right."""
    labels = files.yolo_folder(tmp_path / "labels", first=1)
    assert run("yolo-seg", labels, photos, "--dry-run") == 0
    assert "class number 2, which has no name (--first-class 1" in capsys.readouterr().out
    assert run("yolo-seg", labels, photos, "--first-class", "1") == 0
    assert (mask(photos) == files.square_over_triangle()).all()


def test_coordinates_may_count_from_one(photos: Path, tmp_path: Path) -> None:
    moved = [number + 1 for number in files.flat(SQUARE)]
    annotation = {"image_id": 7, "category_id": 1, "segmentation": [moved]}
    labels = files.coco_file(tmp_path / "a.json", annotations=[annotation])
    assert run("coco", labels, photos, "--first-pixel", "1") == 0
    assert (mask(photos) == files.pixels(SQUARE)).all()


def test_unknown_colours_are_named_and_become_void(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files.colors_folder(tmp_path / "labels")
    path = folder / "SegmentationClass" / "a.png"
    with Image.open(path) as picture:
        picture.putpixel((2, 3), (1, 2, 3))
        picture.save(path)
    assert run("voc-colours", folder, photos) == 0
    assert "colour 1 2 3 that has no name (first in a.png: 1 pixels)" in capsys.readouterr().out
    assert np.argwhere(mask(photos) == 255).tolist() == [[3, 2]]


def test_missing_photos_stop_an_import_unless_they_are_skipped(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for number, name in ((7, "a.jpg"), (8, "gone.jpg"))
    ]
    annotations = [
        {"image_id": number, "category_id": 1, "segmentation": [files.flat(SQUARE)]}
        for number in (7, 8)
    ]
    labels = files.coco_file(tmp_path / "a.json", images=images, annotations=annotations)
    assert run("coco", labels, photos) == 1
    assert not (tmp_path / "set").exists()
    assert "problem: gone.jpg: no such photo" in capsys.readouterr().out
    assert run("coco", labels, photos, "--on-problem", "skip") == 1
    assert [path.name for path in (tmp_path / "set/masks/train").iterdir()] == ["a.png"]
    record = json.loads((tmp_path / "set" / "import.json").read_text())
    assert record["problems"][0].startswith("gone.jpg: no such photo")


def test_sizes_that_disagree_are_named_and_can_be_scaled(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.photo(photos / "a.jpg", (2 * SIZE[0], 2 * SIZE[1]))
    labels = files.coco_file(tmp_path / "a.json")
    assert run("coco", labels, photos) == 1
    told = capsys.readouterr().out
    assert "its labels are for 64 x 48 pixels, the photo has 128 x 96 (--rescale" in told
    assert run("coco", labels, photos, "--rescale") == 0
    assert (mask(photos) == files.square_over_triangle().repeat(2, 0).repeat(2, 1)).all()


def test_another_aspect_ratio_cannot_be_scaled(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.photo(photos / "a.jpg", (90, 48))
    assert run("coco", files.coco_file(tmp_path / "a.json"), photos, "--rescale") == 1
    assert "--rescale" not in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_drawn_on_the_photo_as_stored_are_turned_with_it(
    orientation: int, photos: Path, tmp_path: Path
) -> None:
    """The oracle turns the mask as Pillow turns a photo with that orientation."""
    files.photo(photos / "a.jpg", SIZE, orientation)
    assert run("coco", files.coco_file(tmp_path / "a.json"), photos) == 0
    picture = Image.fromarray(files.square_over_triangle())
    exif = picture.getexif()
    exif[0x0112] = orientation
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(picture))
    assert expected.shape == (SIZE[0], SIZE[1])
    assert (mask(photos) == expected).all()


def test_labels_drawn_on_the_turned_photo_are_unchanged(photos: Path, tmp_path: Path) -> None:
    files.photo(photos / "a.jpg", (SIZE[1], SIZE[0]), 6)
    assert run("coco", files.coco_file(tmp_path / "a.json"), photos) == 0
    assert (mask(photos) == files.square_over_triangle()).all()


def test_an_orientation_that_the_size_cannot_show_is_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.photo(photos / "a.jpg", SIZE, 3)
    labels = files.coco_file(tmp_path / "a.json")
    assert run("coco", labels, photos) == 0
    assert "EXIF orientation 3, whose size does not tell" in capsys.readouterr().out
    assert (mask(photos) == files.square_over_triangle()).all()
    (tmp_path / "set" / "dataset.toml").unlink()
    assert run("coco", labels, photos, "--exif", "stored") == 0
    assert (mask(photos) == files.square_over_triangle()[::-1, ::-1]).all()


def many(folder: Path, names: list[str]) -> Path:
    """A COCO file about photos of these names."""
    for name in names:
        files.photo(folder / "photos" / name)
    return files.coco_file(
        folder / "a.json",
        images=[
            {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
            for number, name in enumerate(names)
        ],
        annotations=[
            {"image_id": number, "category_id": 1, "segmentation": [files.flat(SQUARE)]}
            for number in range(len(names))
        ],
    )


@pytest.mark.parametrize(
    ("how", "group"),
    [("folder", lambda name: name.split("/")[0]), (r"/(v\d)-", lambda name: name[2:4])],
)
def test_photos_of_a_group_stay_in_one_split(
    how: str, group: Callable[[str], str], tmp_path: Path
) -> None:
    names = [f"{folder}/v{folder}-{frame}.jpg" for folder in "12345" for frame in range(4)]
    labels = many(tmp_path, names)
    photos = tmp_path / "photos"
    options = ("--splits", "train=0.6,val=0.2,test=0.2", "--group-by", how)
    assert run("coco", labels, photos, *options) == 0
    rows = (tmp_path / "set" / "photos.csv").read_text().splitlines()[1:]
    found: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for _, split, _, _, name in (row.split(",") for row in rows):
        found.setdefault(group(name), set()).add(split)
        sizes[split] = sizes.get(split, 0) + 1
    assert all(len(splits) == 1 for splits in found.values())
    assert sizes == {"train": 12, "val": 4, "test": 4}


def test_frames_of_a_video_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = many(tmp_path, [f"drive_{frame:04}.jpg" for frame in range(6)])
    options = ("--splits", "train=0.5,val=0.5", "--dry-run")
    assert run("coco", labels, tmp_path / "photos", *options) == 0
    assert "frames of one video" in capsys.readouterr().out


def test_too_few_groups_for_the_splits_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = many(tmp_path, ["one/a.jpg", "one/b.jpg"])
    options = ("--splits", "train=0.8,val=0.2", "--group-by", "folder")
    assert run("coco", labels, tmp_path / "photos", *options) == 2
    assert "val would be empty: 1 groups" in capsys.readouterr().err


def test_the_splits_of_the_labels_can_be_kept(photos: Path, tmp_path: Path) -> None:
    labels = files.colors_folder(tmp_path / "labels")
    assert run("voc-colours", labels, photos, "--splits=source") == 0
    assert (mask(photos, split="train") == files.square_over_triangle()).all()


def test_photos_with_the_same_name_are_distinguished_by_their_folders(tmp_path: Path) -> None:
    labels = many(tmp_path, ["x/a.jpg", "y/a.jpg"])
    assert run("coco", labels, tmp_path / "photos") == 0
    found = {path.name for path in (tmp_path / "set" / "masks" / "train").iterdir()}
    assert found == {"x__a.png", "y__a.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not distinguish them")
def test_photos_whose_names_differ_only_in_case_are_told_apart(tmp_path: Path) -> None:
    labels = many(tmp_path, ["x/a.jpg", "x/A.JPG", "X/a.jpg"])
    assert run("coco", labels, tmp_path / "photos") == 0
    assert len(list((tmp_path / "set" / "masks" / "train").iterdir())) == 3


def test_a_name_without_a_folder_that_fits_two_photos_is_a_problem(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.photo(photos / "x" / "a.jpg")
    assert run("coco", files.coco_file(tmp_path / "a.json"), photos) == 1
    assert "The labels name no folder" in capsys.readouterr().out


def test_photos_without_regions_are_left_out_and_counted(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for number, name in ((7, "a.jpg"), (8, "other.jpg"))
    ]
    labels = files.coco_file(tmp_path / "a.json", images=images)
    assert run("coco", labels, photos) == 0
    assert "photo without a region (--empty keep" in capsys.readouterr().out
    (tmp_path / "set" / "dataset.toml").unlink()
    assert run("coco", labels, photos, "--empty", "keep") == 0
    assert not mask(photos, "other").any()


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_another_tool_are_refused_with_a_clear_message(
    kind: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    files.write_json(wrong / "x.json", {"hello": 1})
    (wrong / "x.xml").write_text("<a><b/></a>")
    assert run(kind, wrong, photos) == 2
    assert str(wrong) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("yolo-seg", "a.txt", b"0 \xff\xfe"),
        ("yolo-seg", "classes.txt", b"\xff\xfe"),
        (
            "labelstudio",
            "a.json",
            b'[{"data": {"image": "http://[x"}, "annotations": [{"result": []}]}]',
        ),
        (
            "cityscapes-like",
            "a_polygons.json",
            b'{"imgWidth": "wide", "imgHeight": 1, "objects": []}',
        ),
        ("cityscapes-like", "a_polygons.json", b"{"),
    ],
)
def test_broken_files_are_named(
    kind: str,
    name: str,
    content: bytes,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "classes.txt").write_text("square\n")
    (folder / "a.txt").write_text("0 0 0 1 0 1 1\n")
    (folder / name).write_bytes(content)
    assert run(kind, folder, photos) == 2
    told = capsys.readouterr().err
    assert str(folder / name) in told
    assert told.count(str(folder)) == 1


def test_a_declared_size_of_nothing_is_a_problem_of_its_photo(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "width": 0, "height": 0}]
    labels = files.coco_file(tmp_path / "a.json", images=images)
    assert run("coco", labels, photos, "--rescale") == 1
    assert "its labels are for 0 x 0 pixels" in capsys.readouterr().out


def test_a_second_import_does_not_overwrite_the_first(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = files.coco_file(tmp_path / "a.json")
    assert run("coco", labels, photos) == 0
    assert run("coco", labels, photos) == 2
    assert "name another folder by -o" in capsys.readouterr().err


def test_photos_can_be_linked(photos: Path, tmp_path: Path) -> None:
    assert run("coco", files.coco_file(tmp_path / "a.json"), photos, "--link") == 0
    photo = tmp_path / "set" / "images" / "train" / "a.jpg"
    assert photo.is_symlink()
    assert photo.resolve() == photos / "a.jpg"
