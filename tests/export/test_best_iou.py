"""Labels of the best expected IoU: against the definition, and in the file against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from export.__main__ import main
from export.best_iou import best, decision
from export.calibrate import segmented
from export.tradeoffs import wish
from export.writer import ExportOptions, export
from model import checkpoint
from model.network.inference import average_probabilities
from model.network.layers import resize
from postprocess.results import outputs
from service.inference.engine import Engine, EngineOptions
from tests.export.conftest import PHASED_SIZE, SIZE

CLASSES = 4


def expected_miou(chances: NDArray[np.float64], labels: NDArray[np.intp]) -> float:
    """The mean over classes of expected intersection by expected union."""
    found = []
    for label, chance in enumerate(chances):
        mine = labels == label
        found.append(chance[mine].sum() / (mine.sum() + chance[~mine].sum()))
    return float(np.mean(found))


def random_chances(points: int) -> NDArray[np.uint8]:
    """A common class and three rare ones, unsure of each other."""
    rng = np.random.default_rng(0)
    drawn = rng.dirichlet([2.0, 0.3, 0.2, 0.1], points).T
    return (drawn * 255).round().astype(np.uint8)


def test_no_other_label_of_a_pixel_has_a_better_expected_iou() -> None:
    chances = random_chances(400)
    weights, margins = decision(chances)
    labels = best(chances, np.array(weights), np.array(margins))
    exact = chances / 255
    reached = expected_miou(exact, labels)
    assert reached > expected_miou(exact, chances.argmax(axis=0)) + 0.01
    for pixel in range(400):
        for label in range(CLASSES):
            changed = labels.copy()
            changed[pixel] = label
            assert expected_miou(exact, changed) < reached + 1e-4


def test_a_class_that_the_photos_do_not_show_is_treated_like_the_others() -> None:
    """Its union would be next to nothing, and it would win wherever it is just possible."""
    chances = random_chances(20_000)
    chances[3] = 1
    weights, margins = decision(chances)
    assert weights[3] == pytest.approx(np.median(weights[:3]), rel=0.05)
    assert not (best(chances, np.array(weights), np.array(margins)) == 3).any()


def blocks(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Smooth noise (H, W, 3), in which a random network sees several classes."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def unsure(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose five logits have mean 0 and deviation 1 on such photos."""
    net = checkpoint.load(tiny)
    x = torch.from_numpy(blocks(SIZE, 0).copy())[None].permute(0, 3, 1, 2).float()
    with torch.no_grad():
        spread, mean = torch.std_mean(net(x), dim=(0, 2, 3))
        net.logits.weight /= spread[:, None, None, None]
        bias = net.logits.bias
        assert bias is not None
        bias.copy_((bias - mean) / spread + torch.tensor([1.0, 0, 0, 0, -1]))
    path = tmp_path_factory.mktemp("checkpoint") / "unsure"
    return checkpoint.save(path, net.state_dict(), checkpoint.read_card(tiny))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate([SIZE, (50, 60), (200, 300)]):
        Image.fromarray(blocks(size, index)).save(folder / f"{index}.png")
    return tuple(sorted(folder.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("size", [SIZE, PHASED_SIZE])
@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.25)])
def test_the_file_takes_the_class_with_the_best_expected_iou(
    unsure: Path,
    tmp_path: Path,
    photos: tuple[Path, ...],
    size: tuple[int, int],
    scales: tuple[float, ...],
) -> None:
    file = tmp_path / "best.onnx"
    options = ExportOptions(size=size, scales=scales, confidence=True, best_iou=photos)
    contract = export(unsure, file, options)
    assert contract.best_iou is not None
    assert contract.best_iou.photos == 3
    net = checkpoint.load(unsure)
    images = np.stack([blocks(size, seed) for seed in (7, 8)])
    with torch.inference_mode():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        if scales == (1.0,):
            chances = resize(F.softmax(net(x), dim=1), size, align_corners=True)
        else:
            chances = average_probabilities(net, x, scales, flip=False)
    weights, margins = (
        np.array(each, np.float32)[:, None, None]
        for each in (contract.best_iou.weights, contract.best_iou.margins)
    )
    engine = Engine(file, EngineOptions("cpu", threads=1))
    plain, sure = (engine.predict(images, extras) for extras in ("labels", "confidence"))
    changed = 0.0
    for index, each in enumerate(sure):
        chance = chances[index].numpy()
        labels = (chance * weights - margins).argmax(axis=0)
        assert (each.labels == labels).mean() > 0.999
        assert (each.labels == plain[index].labels).all()
        assert plain[index].confidence is None
        assert each.confidence is not None
        of_label = np.take_along_axis(chance, each.labels[None].astype(np.intp), axis=0)[0]
        assert np.abs(each.confidence / 255 - of_label).max() < 0.01
        changed += (labels != chance.argmax(axis=0)).mean()
    assert changed > 0


@pytest.mark.slow
def test_smooth_labels_are_of_the_best_expected_iou_too(
    unsure: Path, tmp_path: Path, photos: tuple[Path, ...]
) -> None:
    """At the model's own size smoothing moves borders; it does not undo the choice of classes."""
    photo = Image.fromarray(blocks(SIZE, 7))
    agreements = []
    choices: tuple[tuple[str, tuple[Path, ...]], ...] = (("plain", ()), ("best", photos))
    for name, chosen in choices:
        file = tmp_path / f"{name}.onnx"
        options = ExportOptions(confidence=True, probabilities=True, best_iou=chosen)
        export(unsure, file, options)
        engine = Engine(file, EngineOptions("cpu", threads=1))
        found = segmented(engine, np.asarray(photo))
        asked = wish({"smooth": "true"}, engine.contract)
        assert asked is not None
        agreements.append((outputs.refined(found, asked).labels.image, found.labels.image))
    (smooth_plain, _), (smooth_best, best_labels) = agreements
    assert (smooth_best == best_labels).mean() > (smooth_plain == best_labels).mean()


def test_a_folder_without_photos_is_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny), "-o", str(tmp_path / "x.onnx"), "--best-iou", str(tmp_path)]) == 2
    assert "holds no photo" in capsys.readouterr().err
