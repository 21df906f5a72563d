"""`python -m model.data check` finds what would waste a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from model.data.__main__ import main
from model.data.check import check
from model.data.dataset import DatasetError, find, read_mask
from model.data.guess import choose, guess
from model.data.survey import expect_classes, survey
from tests.model import voc_folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "dataset.toml").write_text('classes = ["ground", "tree"]\n')
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (4, 3)).save(tmp_path / "images" / "train" / f"{name}.png")
        ids = np.array([[0, 0, 1, 255]] * 3, np.uint8)
        Image.fromarray(ids).save(tmp_path / "masks" / "train" / f"{name}.png")
    return tmp_path


def test_valid_set_is_usable_and_counted(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(own), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["classes"]["ground"] == {"share": 0.5, "images": 2}
    assert report["void_share"] == 0.25
    assert report["values"] == {"0": 12, "1": 6, "255": 6}
    assert report["verdict"] == "usable"


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_truncated_file_is_named(own: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = own / kind / "train" / "a.png"
    path.write_bytes(path.read_bytes()[:45])
    assert main(["check", str(own)]) == 1
    out = capsys.readouterr().out
    assert str(path) in out
    assert "1 of 2 pairs" in out


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Image.new("RGB", (4, 3)), "mode RGB"),
        (Image.new("L", (3, 4)), "(3, 4)"),
        (Image.new("L", (4, 3), 7), "no class: [7]"),
        (None, "is missing"),
    ],
)
def test_wrong_mask_fails_the_check(
    own: Path, capsys: pytest.CaptureFixture[str], mask: Image.Image | None, says: str
) -> None:
    path = own / "masks" / "train" / "b.png"
    path.unlink()
    if mask:
        mask.save(path)
    assert main(["check", str(own)]) == 1
    assert says in capsys.readouterr().out


def test_a_picture_too_large_to_be_safe_is_named(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's DecompressionBombError is neither an OSError nor a ValueError."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind, name in (("images", "a"), ("masks", "b")):
        Image.new("L", (30, 20)).save(own / kind / "train" / f"{name}.png")
    assert main(["check", str(own)]) == 1
    out = capsys.readouterr().out
    for path in (own / "images/train/a.png", own / "masks/train/b.png"):
        assert f"{path} cannot be read: Image size (600 pixels) exceeds limit" in out


def test_a_mask_that_was_not_turned_with_its_photo_is_explained(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (4, 3)).save(own / "images" / "train" / "a.png", exif=exif)
    assert main(["check", str(own)]) == 1
    assert "image is (3, 4) pixels, mask (4, 3) (width, height): the photo's EXIF" in (
        capsys.readouterr().out
    )


def test_a_mask_in_another_format_is_reported(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "masks" / "train" / "a.png").rename(own / "masks" / "train" / "a.jpg")
    assert main(["check", str(own)]) == 1
    assert "is missing; a.jpg is there: masks are PNG" in capsys.readouterr().out


def test_photos_and_masks_in_one_folder_get_a_hint_to_their_suffix(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The photo itself is no mask in another format, and `a2.png` belongs to another photo."""
    folder = own / "images" / "train"
    Image.new("RGB", (4, 3)).save(folder / "a.jpg")
    (folder / "a.png").unlink()
    (own / "masks" / "train" / "a.png").rename(folder / "a_mask.png")
    Image.new("L", (4, 3)).save(folder / "a2.png")
    with (own / "dataset.toml").open("a", encoding="utf-8") as file:
        file.write('\nmasks = "images/{split}"\n')
    assert main(["check", str(own)]) == 1
    told = capsys.readouterr().out
    assert "a.png is missing; a_mask.png is there: then give `mask_suffix = '_mask.png'`" in told


def test_files_that_are_not_used_cause_a_warning(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json_report(own, capsys)["warnings"] == []
    (own / "images" / "train" / "c.heic").touch()
    (own / "masks" / "train" / "c.png").touch()
    assert json_report(own, capsys)["warnings"] == [
        f"1 files in {own / 'images/train'} are not used: c.heic is no image by its suffix",
        f"1 files in {own / 'masks/train'} are not used: c.png has no image",
    ]


def json_report(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The report of a set that is usable."""
    assert main(["check", str(root), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_class_without_pixels_is_a_warning_and_a_single_class_an_error(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If binary masks of 0 and 255 are read with void = 255, the foreground is lost silently."""
    for name in "ab":
        ids = np.array([[0, 0, 255, 255]] * 3, np.uint8)
        Image.fromarray(ids).save(own / "masks" / "train" / f"{name}.png")
    assert main(["check", str(own)]) == 1
    out = capsys.readouterr().out
    assert "warning: no pixel of tree; is the value of void really a class?" in out
    assert "give `values = [0, 255]` in dataset.toml" in out
    assert "verdict: every labelled pixel is ground: nothing to tell" in out
    (own / "dataset.toml").write_text('classes = ["ground", "tree"]\nvalues = [0, 255]\n')
    assert main(["check", str(own), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["classes"]["tree"] == {"share": 0.5, "images": 2}
    assert report["warnings"] == []


def test_values_of_no_class_are_answered_with_the_key_that_names_them(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (4, 3), 7).save(own / "masks" / "train" / "b.png")
    assert main(["check", str(own)]) == 1
    out = capsys.readouterr().out
    assert "mask values: 0, 1, 7, 255\n" in out
    assert "no class: [7] (7 in 12 pixels), which are ignored; say which values mean" in out


def test_ids_that_start_at_one_are_answered_with_the_line_that_fixes_them(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        ids = np.array([[1, 1, 2, 2]] * 3, np.uint8)
        Image.fromarray(ids).save(own / "masks" / "train" / f"{name}.png")
    assert main(["check", str(own)]) == 1
    out = capsys.readouterr().out
    assert "no class: [2] (2 in 12 pixels)" in out
    assert "give `values = [1, 2]` in dataset.toml" in out


def test_smoothed_masks_and_jpeg_masks_are_not_mistaken_for_wrong_ids(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many values in few pixels mean smoothed borders. JPEG is detected by content, not by name."""
    square = np.zeros((64, 64), np.uint8)
    square[20:44, 20:44] = 255
    smooth = Image.fromarray(square).filter(ImageFilter.GaussianBlur(1))
    (own / "dataset.toml").write_text('classes = ["ground", "tree"]\nvalues = [0, 255]\n')
    for name in "ab":
        Image.new("RGB", (64, 64)).save(own / "images" / "train" / f"{name}.png")
        smooth.save(own / "masks" / "train" / f"{name}.png")
    assert main(["check", str(own)]) == 1
    assert "come from smoothed borders (antialiasing" in capsys.readouterr().out
    Image.fromarray(square).save(own / "masks" / "train" / "a.png", "JPEG")
    assert main(["check", str(own)]) == 1
    assert "a: the mask is a JPEG file by its content, whatever its name" in capsys.readouterr().out
    with pytest.raises(DatasetError, match=r"a\.png is a JPEG file by its content"):
        read_mask(own / "masks" / "train" / "a.png", classes=2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("square", [True, False])
def test_a_mask_drawn_on_the_photo_as_stored_is_found_at_every_orientation(
    tmp_path: Path, orientation: int, square: bool
) -> None:
    """A mask that is upside down or mirrored has the right size; only its content is wrong."""
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 40 if square else 56), np.uint8)
    mask[3:15, 5:21] = 1
    stored = (mask[..., None] * 90 + rng.integers(60, 90, (*mask.shape, 3))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    (tmp_path / "dataset.toml").write_text('classes = ["ground", "tree"]\n')
    Image.fromarray(stored).save(tmp_path / "images/train/a.jpg", exif=exif, quality=95)
    target = tmp_path / "masks/train/a.png"
    Image.fromarray(mask).save(target)
    report = check(find("folder", tmp_path, "train"))
    assert bool(report.problems) == (orientation != 1)
    assert not report.problems or "EXIF orientation turns" in report.problems[0]
    with Image.open(tmp_path / "images/train/a.jpg") as photo:
        turned = Image.fromarray(mask)
        turned.getexif()[0x0112] = photo.getexif()[0x0112]
        ImageOps.exif_transpose(turned).save(target)
    assert not check(find("folder", tmp_path, "train")).problems


def test_every_kind_of_set_is_recognised_by_its_folders(tmp_path: Path) -> None:
    voc_folder.make(tmp_path / "voc")
    for name, mark in (
        ("camvid", "CamVid"),
        ("cityscapes", "cityscapes/leftImg8bit"),
        ("coco", "coco/train2017"),
        ("imagefolder", "train/cat"),
    ):
        (tmp_path / name / mark).mkdir(parents=True)
    for name in ("voc", "camvid", "cityscapes", "coco", "imagefolder"):
        assert guess(tmp_path / name, "train") == name
    assert guess(tmp_path / "voc" / "VOCdevkit" / "VOC2012", "train") == "voc"
    (tmp_path / "voc" / "CamVid").mkdir()
    with pytest.raises(DatasetError, match="voc and camvid; give --dataset"):
        guess(tmp_path / "voc", "train")
    (tmp_path / "voc" / "dataset.toml").touch()  # a set that describes itself is not guessed
    assert guess(tmp_path / "voc", "train") == "folder"


def test_evaluation_uses_the_set_in_the_folder_or_the_one_trained_on(tmp_path: Path) -> None:
    """No command assumes VOC if the folder or the checkpoint says otherwise."""
    assert choose(None, tmp_path, "coco") == "coco"
    assert choose(None, tmp_path, None) == "voc"
    assert choose(None, tmp_path, ["odd"]) == "voc"
    (tmp_path / "CamVid").mkdir()
    assert choose(None, tmp_path, "coco") == "camvid"
    (tmp_path / "train2017").mkdir()
    assert choose(None, tmp_path, "coco") == "coco"
    assert choose(None, tmp_path, "folder") == "folder"
    (tmp_path / "dataset.toml").touch()
    assert choose(None, tmp_path, "coco") == "folder"
    assert choose("voc", tmp_path, "coco") == "voc"


def test_the_report_on_a_usable_set_has_the_command_that_trains_on_it(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Iterations follow from the number of photos; large photos are compared with the crop."""
    assert main(["check", str(own)]) == 0
    out = capsys.readouterr().out
    assert "--set model.num_classes=2 --set iterations=100" in out
    assert "photos are large" not in out
    assert main(["check", str(own), "--crop", "1"]) == 0
    assert "a side of 4 pixels or more. With a crop of 1 a network" in capsys.readouterr().out


def test_photos_that_a_list_names_twice_cause_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In `check`, and before a training or an evaluation, which counts them twice."""
    data = voc_folder.make(tmp_path, count=2)
    names = data / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    names.write_text("2007_000000\n2007_000001\n2007_000001\n")
    assert main(["check", str(data)]) == 0
    says = "1 photos are listed more than once, such as 2007_000001 (2 times)"
    assert says in capsys.readouterr().out
    expect_classes(survey(find("voc", data, "train")))
    assert says in caplog.text


def test_unknown_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "give --dataset" in capsys.readouterr().err
