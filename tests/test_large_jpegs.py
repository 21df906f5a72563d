"""All that measures a network on files reads a large JPEG as the service does: at a fraction."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import model
from export import evaluate as export_evaluate
from export import quantize
from model.checkpoint import Card
from model.curate import rank
from model.curate.audit import full_probabilities
from model.curate.uncertainty import feature, measured
from model.data.dataset import Dataset, DatasetError, find, read_pair, read_source, voc_palette
from model.data.pairs import write_mask
from model.data.photo import PhotoFile, read_photo
from model.evaluate import evaluation, report
from model.evaluate.metrics import Confusion
from model.finish import recalibrate, temperature
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import label_map, nearest, served_map
from model.train.distributed import World
from model.train.validation import judge
from service.images.imaging import fit, open_checked, restore
from service.images.prepare import Plan, Prepared, fitted, prepare
from service.inference.contract import InputSize
from tests.model.nets import photo as patches
from tests.model.nets import tiny

Labels = NDArray[np.uint8]

SIDE = 65  # of the network's input
TARGET = InputSize(policy="fixed", height=SIDE, width=SIDE, pad=(128, 128, 128))
LARGE = ("upright.jpg", "turned.jpg")  # decoded at a quarter
NAMES = (*LARGE, "large.png", "small.jpg")
TURNED = 6  # the EXIF orientation of a photo that is stored on its side


@pytest.fixture(scope="module")
def net() -> DeepLabV3Plus:
    return tiny()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Photos of both orientations and formats, and one that needs no shrinking."""
    root = tmp_path_factory.mktemp("large")
    for seed, name in enumerate(NAMES):
        width, height = (60, 45) if name == "small.jpg" else (300, 220)
        exif = Image.Exif()
        if name == "turned.jpg":
            exif[0x0112] = TURNED
        path = root / "images" / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patches(height, width, seed)).save(path, exif=exif, quality=90)
        upright = (width, height) if name == "turned.jpg" else (height, width)
        write(root, Path(name).stem, np.random.default_rng(seed).integers(0, 5, upright, np.uint8))
    return described(root)


def write(root: Path, stem: str, mask: Labels) -> None:
    folder = root / "masks" / "val"
    folder.mkdir(parents=True, exist_ok=True)
    write_mask(folder / f"{stem}.png", mask, voc_palette(5))


def described(root: Path) -> Dataset:
    (root / "dataset.toml").write_text('classes = ["background", "a", "b", "c", "d"]\n')
    return find("folder", root, "val")


@pytest.fixture(scope="module")
def twins(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same photos as PNGs of the pixels that the service gives the network."""
    root = tmp_path_factory.mktemp("twins")
    for pair in data.pairs:
        prepared = served(pair.image)
        height, width = prepared.valid
        path = root / "images" / "val" / f"{pair.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(prepared.pixels[0][:height, :width]).save(path)
        _, mask = read_pair(data, pair)
        rows, columns = nearest(mask.shape[0], height), nearest(mask.shape[1], width)
        write(root, pair.name, mask[rows][:, columns])
    return described(root)


def served(path: Path) -> Prepared:
    """Prepare a photo with the service's own code."""
    opened = open_checked(path.read_bytes(), 10**7)
    return prepare(opened, Plan(TARGET, sliding=None, whole=False))


def served_labels(net: DeepLabV3Plus, path: Path) -> Labels:
    """Run a network on a photo between the service's own steps before and after."""
    prepared = served(path)
    height, width = prepared.valid
    labels = label_map(net, prepared.pixels[0][:height, :width])
    return enlarged(labels, prepared)


def enlarged(labels: Labels, prepared: Prepared) -> Labels:
    assert not isinstance(prepared.inputs, list)
    return restore(labels, prepared.inputs, prepared.photo.size).image


def bright(images: NDArray[np.uint8]) -> Labels:
    """An engine's `run` whose labels depend on every pixel alone."""
    return (images[..., 1] // 52).astype(np.uint8)


def test_evaluation_prediction_and_service_give_the_same_labels(
    net: DeepLabV3Plus, data: Dataset
) -> None:
    """No label differs; pixels of a large JPEG that were decoded whole give other labels."""
    for pair in data.pairs:
        expected = served_labels(net, pair.image)
        source, truth = read_source(data, pair)
        assert expected.shape == truth.shape
        assert (served_map(net, source) == expected).all(), pair.name
        assert (model.predict(net, pair.image) == expected).all(), pair.name
        from_pixels = served_map(net, read_photo(pair.image))
        assert (from_pixels != expected).any() == (pair.image.name in LARGE), pair.name


def test_an_exported_file_is_evaluated_on_the_pixels_of_the_service(data: Dataset) -> None:
    for pair in data.pairs:
        prepared = served(pair.image)
        expected = enlarged(bright(prepared.pixels[0][None])[0], prepared)
        source, _ = read_source(data, pair)
        assert (export_evaluate.predict(bright, TARGET, source) == expected).all(), pair.name
        whole = export_evaluate.predict(bright, TARGET, read_photo(pair.image), overlap=0.25)
        windows = export_evaluate.predict(bright, TARGET, source, overlap=0.25)
        assert (windows == whole).all(), pair.name


def test_the_figures_of_evaluation_and_validation_are_those_of_the_service(
    net: DeepLabV3Plus, data: Dataset
) -> None:
    expected, of_pixels = Confusion(5), Confusion(5)
    for pair in data.pairs:
        photo, truth = read_pair(data, pair)
        expected.add(truth, served_labels(net, pair.image))
        of_pixels.add(truth, served_map(net, np.asarray(photo)))
    assert (expected.counts != of_pixels.counts).any()
    for found in (judge(net, data, World()), evaluation.score(data, partial(served_map, net))):
        assert (found.counts == expected.counts).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_photo_is_decoded_whole_twice(net: DeepLabV3Plus, data: Dataset, name: str) -> None:
    """A large JPEG not even once. `pixels` keeps what was decoded, for a picture of the result."""
    pair = next(pair for pair in data.pairs if pair.image.name == name)
    source, _ = read_source(data, pair)
    served_map(net, source)
    assert ("pixels" in vars(source)) == (name not in LARGE)
    if name not in LARGE:
        assert source.reduced(SIDE)[0] is source.pixels
    assert (source.pixels == read_photo(pair.image)).all()
    assert source.reduced(SIDE)[1] == source.size == source.pixels.shape[1::-1]


@pytest.mark.slow
def test_other_measurements_see_the_pixels_of_the_service(
    net: DeepLabV3Plus, data: Dataset, twins: Dataset
) -> None:
    """Uncertainty, suspect labels, calibration and batch norm's statistics."""
    for pair, twin in zip(data.pairs, twins.pairs, strict=True):
        source, pixels = PhotoFile(pair.image), read_photo(twin.image)
        assert measured(net, source, "margin") == measured(net, pixels, "margin")
        assert (feature(net, source) == feature(net, pixels)).all()
        labels = full_probabilities(net, source).argmax(axis=0)
        assert (labels == served_labels(net, pair.image)).all()
        opened = open_checked(pair.image.read_bytes(), 10**7)
        expected = served(pair.image).pixels[0]
        assert (fitted(opened, TARGET).pixels == expected).all()
        assert (quantize.photos([pair.image], 1, TARGET)[0] == expected).all()
        for photo in (source, read_photo(pair.image)):
            same = fit(export_evaluate.decoded(photo, TARGET), TARGET).pixels == expected
            assert same.all() == (photo is source or pair.image.name not in LARGE)
    order = np.arange(len(data.pairs))
    both = (recalibrate.whole(each, order, net) for each in (data, twins))
    assert all((ours == theirs).all() for ours, theirs in zip(*both, strict=True))
    draws = (temperature.drawn(net, each, 200, np.random.default_rng(0)) for each in (data, twins))
    for ours, theirs in zip(*draws, strict=True):
        assert (ours.logits == theirs.logits).all()
        assert (ours.truth == theirs.truth).all()


@pytest.mark.slow
def test_ranking_needs_no_more_of_a_photo(
    net: DeepLabV3Plus, data: Dataset, twins: Dataset, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(data.pairs[0].image.read_bytes()[:3000])
    paths = [pair.image for pair in data.pairs]
    ranked, problems = rank.rank(net, [*paths, broken], "margin")
    expected, _ = rank.rank(net, [pair.image for pair in twins.pairs], "margin")
    assert [(path.stem, figure) for path, figure in ranked] == [
        (path.stem, figure) for path, figure in expected
    ]
    (problem,) = problems
    assert "broken.jpg cannot be read" in problem
    page = rank.thumbnails(ranked, data.pairs[0].image.parent, net.config.samples)
    assert page.count("<figure>") == len(NAMES)


@pytest.mark.slow
def test_a_report_shows_the_photo_at_its_own_size(net: DeepLabV3Plus, data: Dataset) -> None:
    """Beside the masks, although the network has seen less of it."""
    card = Card(model=net.config, classes=data.classes, palette=tuple(voc_palette(5)))
    for pair in data.pairs:
        text, classes = report.sample(pair, data, partial(served_map, net), card)
        assert text.count("<img") == 3
        assert classes >= {*np.unique(served_labels(net, pair.image)).tolist()}


@pytest.mark.parametrize("name", ["upright.jpg", "turned.jpg", "large.png"])
def test_a_mask_of_another_size_is_refused(data: Dataset, name: str, tmp_path: Path) -> None:
    """Before the photo is decoded, with the message that training has."""
    pair = next(pair for pair in data.pairs if pair.image.name == name)
    size = (300, 220) if name == "turned.jpg" else (220, 300)
    write(tmp_path, pair.name, np.zeros(size[::-1], np.uint8))
    odd = type(pair)(pair.name, pair.image, tmp_path / "masks" / "val" / f"{pair.name}.png")
    says = rf"{name} is {size[1]} x {size[0]} pixels, its mask .* is {size[0]} x {size[1]}: make"
    for read in (read_source, read_pair):
        with pytest.raises(DatasetError, match=says):
            read(data, odd)


@pytest.mark.parametrize("cut", [40, 3000])
def test_evaluation_names_a_damaged_jpeg(
    net: DeepLabV3Plus, data: Dataset, cut: int, tmp_path: Path
) -> None:
    """In its header, or only in its pixels."""
    pair = data.pairs[0]
    path = tmp_path / "cut.jpg"
    path.write_bytes(pair.image.read_bytes()[:cut])
    damaged = Dataset(
        "own", "val", (type(pair)("cut", path, pair.mask),), data.classes, data.palette
    )
    with pytest.raises(OSError, match=r"cut\.jpg cannot be read"):
        evaluation.score(damaged, partial(served_map, net))
