"""Submissions contain the evaluated labels in the test servers' format, and can be read back."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import checkpoint
from model.checkpoint import Card
from model.data import cityscapes
from model.data.dataset import VOC_CLASSES, find, read_mask, voc_palette
from model.evaluate import __main__ as evaluate
from model.evaluate import submission
from model.evaluate.metrics import Confusion
from model.evaluate.predict import main
from model.evaluate.submission import SubmissionError
from model.network.inference import label_map
from tests.model import voc_folder
from tests.model.nets import photo, tiny
from tests.shared import SHARED

VOC_VAL = SHARED / "data" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"


def save(path: Path, classes: tuple[str, ...]) -> Path:
    net = tiny(len(classes))
    card = Card(model=net.config, classes=classes, palette=voc_palette(len(classes)))
    return checkpoint.save(path / "net", net.state_dict(), card)


def part_of(data: Path, root: Path, count: int) -> Path:
    """The first photos of a VOC val set, linked below `root`."""
    source, target = (folder / "VOCdevkit" / "VOC2012" for folder in (data, root))
    lists = target / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClass"):
        (target / folder).symlink_to((source / folder).resolve())
    names = (source / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:count]
    (lists / "val.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture(
    params=[
        "made",
        pytest.param(
            "shared", marks=pytest.mark.skipif(not VOC_VAL.exists(), reason=f"{VOC_VAL} is missing")
        ),
    ]
)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two VOC val sets of three photos: a generated one, and the first three of the real set."""
    if request.param == "made":
        return voc_folder.make(tmp_path / "data", count=3, split="val")
    return part_of(SHARED / "data", tmp_path / "data", 3)


@pytest.mark.slow
def test_a_voc_submission_scores_what_evaluation_says(data: Path, tmp_path: Path) -> None:
    """Read as the server reads it: ids from palette PNGs of the photo's size."""
    source = save(tmp_path, VOC_CLASSES)
    out = tmp_path / "out"
    options = ["--submission", "voc", "--data", str(data), "--split", "val", "-o", str(out)]
    assert main([str(source), *options]) == 0
    folder = out / "results" / "VOC2012" / "Segmentation" / "comp6_val_cls"
    confusion = Confusion(21)
    dataset = find("voc", data, "val")
    for pair in dataset.pairs:
        with Image.open(folder / f"{pair.name}.png") as ours, Image.open(str(pair.mask)) as theirs:
            assert ours.mode == "P"
            assert ours.size == theirs.size
            assert ours.getpalette() == theirs.getpalette()
        labels = read_mask(folder / f"{pair.name}.png", classes=21)
        confusion.add(read_mask(pair.mask, classes=21), labels)
    target = tmp_path / "figures.json"
    assert evaluate.main([str(source), "--data", str(data), "--json", str(target)]) == 0
    assert json.loads(target.read_text())["miou"] == pytest.approx(confusion.miou(), abs=1e-6)
    with tarfile.open(out / "results.tgz") as archive:
        names = archive.getnames()
    prefix = "results/VOC2012/Segmentation/comp6_val_cls"
    assert sorted(names) == sorted(f"{prefix}/{pair.name}.png" for pair in dataset.pairs)


@pytest.mark.slow
def test_a_cityscapes_submission_holds_label_ids(tmp_path: Path) -> None:
    """Names keep city, sequence and frame; reading them with the label table gives the classes."""
    source = save(tmp_path, cityscapes.CLASSES)
    pixels = photo(64, 96)
    name = "berlin_000000_000019"
    Image.fromarray(pixels).save(tmp_path / f"{name}_leftImg8bit.png")
    out = tmp_path / "out"
    photos = [str(tmp_path / f"{name}_leftImg8bit.png")]
    options = ["--whole", "--submission", "cityscapes", "-o", str(out)]
    assert main([str(source), *photos, *options]) == 0
    with zipfile.ZipFile(out / "results.zip") as archive:
        assert archive.namelist() == [f"{name}_labelIds.png"]
        with archive.open(f"{name}_labelIds.png") as file, Image.open(file) as picture:
            assert picture.mode == "L"
            ids = np.asarray(picture)
    train_ids = {label.id: label.train_id for label in cityscapes.LABELS}
    back = np.vectorize(train_ids.__getitem__)(ids)
    assert (back == label_map(checkpoint.load(source), pixels)).all()
    assert len(np.unique(back)) > 1


@pytest.mark.slow
def test_a_photo_that_cannot_be_read_leaves_no_archive(tmp_path: Path) -> None:
    """The server would score an incomplete archive, or one that an earlier run left."""
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    Image.fromarray(photo(20, 20)).save(tmp_path / "good.png")
    photos = [str(tmp_path / "bad.jpg"), str(tmp_path / "good.png")]
    source = save(tmp_path, VOC_CLASSES)
    command = [str(source), "--submission", "voc", "-o", str(tmp_path / "out")]
    assert main([*command, photos[1]]) == 0
    assert (tmp_path / "out" / "results.tgz").exists()
    assert main([*command, *photos]) == 1
    assert not (tmp_path / "out" / "results.tgz").exists()


@pytest.mark.parametrize(
    ("server", "classes", "says"),
    [
        ("voc", VOC_CLASSES[::-1], "'tvmonitor' where the server has 'background'"),
        ("voc", VOC_CLASSES[:20], "has 20: another number"),
        ("cityscapes", VOC_CLASSES, "needs the 19 classes"),
    ],
)
def test_other_classes_are_refused(server: str, classes: tuple[str, ...], says: str) -> None:
    with pytest.raises(SubmissionError, match=says):
        submission.check(server, classes)


def test_the_command_refuses_a_network_of_other_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path, tuple("abcde"))
    command = [str(source), "x.png", "--submission", "voc", "-o", str(tmp_path)]
    assert main(command) == 1
    assert "needs the 21 classes" in capsys.readouterr().err
