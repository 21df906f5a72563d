"""The teachers' answers on disk: what is stored, when it is computed again, and a run with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import checkpoint
from model.data.augment import AugmentConfig
from model.data.dataset import UNLABELLED, DatasetError, find
from model.data.loader import CropDataset, Order, UnlabelledPhotos, photos
from model.data.photo import read_photo
from model.train import __main__ as train
from model.train import distillation, targets, training
from model.train.distributed import World
from model.train.recipe import Recipe
from model.train.run import RunFolder, TrainingError
from model.train.targets import Targets
from model.train.training import Taught
from tests.model import voc_folder
from tests.model.train.test_distillation import teacher
from tests.model.train.test_main import make_recipe, pace


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_folder.make(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(tmp_path: Path, data: Path) -> Recipe:
    """A recipe with two teachers in which half of the samples have no labels."""
    paths = [teacher(tmp_path, data, seed) for seed in (1, 2)]
    return make_recipe(teachers=paths, unlabelled=0.5, temperature=1.0, precision="fp32")


def pictures(data: Path) -> tuple[Path, ...]:
    return photos(find("voc", data, "train"))


def prepare(config: Recipe, data: Path, root: Path) -> Targets:
    teachers = distillation.load(config, World())
    assert teachers is not None
    found = targets.of(config, root)
    targets.prepare(found, teachers, pictures(data), config, World())
    return found


@pytest.mark.slow
def test_stored_answers_are_the_teachers_probabilities(
    config: Recipe, data: Path, tmp_path: Path
) -> None:
    """Only the five likeliest classes are stored, scaled to a sum of 1."""
    kept = prepare(config, data, tmp_path / "targets")
    teachers = distillation.load(config, World())
    assert teachers is not None
    photo = pictures(data)[0]
    wanted = teachers.of_photo(read_photo(photo), 8)
    order = np.argsort(-wanted, axis=0)
    np.put_along_axis(wanted, order[5:], 0.0, 0)
    wanted /= wanted.sum(0)
    found = kept.read(photo)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(found.sum(0) - 1).max() < 1e-5


@pytest.mark.slow
def test_answers_are_computed_once(config: Recipe, data: Path, tmp_path: Path) -> None:
    kept = prepare(config, data, tmp_path / "targets")
    before = {path: path.stat().st_mtime_ns for path in kept.folder.glob("*.npz")}
    assert len(before) == 6
    prepare(config, data, tmp_path / "targets")
    assert {path: path.stat().st_mtime_ns for path in kept.folder.glob("*.npz")} == before


def test_other_teachers_and_other_photos_have_other_answers(
    config: Recipe, data: Path, tmp_path: Path
) -> None:
    """They depend on the weights, the options and the photo's content, but not on its name."""
    first = targets.of(config, tmp_path)
    asked = [item.model_copy(update={"flip": True}) for item in config.teachers]
    changes = {"temperature": 2.0}, {"teachers": asked}, {"teachers": config.teachers[:1]}
    folders = {targets.of(config.model_copy(update=change), tmp_path).folder for change in changes}
    assert len(folders | {first.folder}) == 4
    path = checkpoint.paths(config.teachers[0].checkpoint)[0]
    weights = checkpoint.read_weights(path)
    weights["logits.bias"] += 1
    checkpoint.save(path, weights, checkpoint.read_card(path))
    assert targets.of(config, tmp_path).folder != first.folder
    photo, copy = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (9, 9)).save(photo)
    copy.write_bytes(photo.read_bytes())
    assert first.path(photo) == first.path(copy)
    Image.new("RGB", (9, 9), "white").save(photo)
    assert first.path(photo) != first.path(copy)


@pytest.mark.slow
def test_a_damaged_answer_is_named(config: Recipe, data: Path, tmp_path: Path) -> None:
    kept = prepare(config, data, tmp_path / "targets")
    photo = pictures(data)[0]
    path = kept.path(photo)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=rf"{path.name}.*delete it"):
        kept.read(photo)


@pytest.mark.slow
def test_a_damaged_photo_has_no_answer_and_counts_for_no_class(
    config: Recipe, tmp_path: Path
) -> None:
    broken, whole = tmp_path / "broken.jpg", tmp_path / "whole.jpg"
    broken.write_bytes(b"no picture")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(whole)
    teachers = distillation.load(config, World())
    assert teachers is not None
    kept = targets.of(config, tmp_path / "targets")
    targets.prepare(kept, teachers, (broken, whole), config, World())
    counts = kept.pixels((broken, whole))
    assert counts[0].sum() == 0
    assert counts[1].sum() > 0


MIXED = AugmentConfig(crop=65, min_scale=0.7, max_scale=1.5, strong=0.5, cutmix=0.5)


@pytest.mark.parametrize("augment", [AugmentConfig(crop=65, min_scale=1.0, max_scale=1.0), MIXED])
def test_soft_labels_follow_their_photo(augment: AugmentConfig, tmp_path: Path) -> None:
    """Except at edges, answers made from masks agree with the masks after every augmentation."""
    data = voc_folder.make(tmp_path, size=(64, 56))
    dataset = find("voc", data, "train")
    kept = Targets(tmp_path / "targets", 21, 17, spacing=1)
    kept.folder.mkdir()
    for pair in dataset.pairs:
        ids = np.asarray(Image.open(str(pair.mask)))
        kept.write(pair.image, np.eye(21, dtype=np.float32)[ids % 255].transpose(2, 0, 1))
    crops = CropDataset(dataset, Order(6, seed=3), augment, (127.5,) * 3, kept)
    agreed, judged, objects = 0, 0, 0
    for position in range(60):
        sample = crops[position]
        assert sample.soft is not None
        assert sample.soft.shape == (21, 17, 17)
        labels = sample.label[::4, ::4]
        known = labels != 255
        agreed += int((sample.soft.argmax(0) == labels)[known].sum())
        judged += int(known.sum())
        objects += int((labels[known] > 0).sum())
    assert objects > 0.05 * judged
    assert agreed > 0.98 * judged


def test_unlabelled_photos_have_void_only_beyond_their_edges(data: Path) -> None:
    config = AugmentConfig(crop=65, min_scale=1.0, max_scale=1.0)
    crops = CropDataset(UnlabelledPhotos(pictures(data)), Order(6, seed=0), config, (127.5,) * 3)
    labels = crops[0].label
    assert (labels[:40, :48] == UNLABELLED).all()
    assert (labels[40:] == 255).all()
    assert (labels[:, 48:] == 255).all()


def run(config: Recipe, data: Path, folder: Path, extra: Taught, *, resume: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    return training.train(
        config,
        find("voc", data, "train"),
        RunFolder(folder, World()),
        pace(config),
        resume=resume,
        workers=0,
        extra=extra,
    )


@pytest.mark.slow
def test_a_run_on_stored_answers_resumes_to_the_same_weights(
    config: Recipe, data: Path, tmp_path: Path
) -> None:
    """The run has photos with and without labels, AdamW, and the teachers' answers from disk."""
    extra = Taught(pictures(data), tmp_path / "targets")
    config = config.model_copy(update={"optimizer": "adamw", "learning_rate": 1e-3})
    whole = checkpoint.read_weights(run(config, data, tmp_path / "whole", extra))
    half = config.model_copy(update={"iterations": 3, "power": 0.0})
    steady = config.model_copy(update={"power": 0.0})
    run(half, data, tmp_path / "cut", extra)
    cut = checkpoint.read_weights(run(steady, data, tmp_path / "cut", extra, resume=True))
    straight = checkpoint.read_weights(run(steady, data, tmp_path / "straight", extra))
    assert all(torch.equal(cut[key], straight[key]) for key in cut)
    assert not torch.equal(whole["logits.weight"], straight["logits.weight"])


@pytest.mark.slow
def test_a_run_cannot_be_resumed_with_another_optimizer(data: Path, tmp_path: Path) -> None:
    run(make_recipe(iterations=1), data, tmp_path / "run", Taught())
    with pytest.raises(TrainingError, match=r"does not fit.*optimizer='adamw' \(before: 'sgd'\)"):
        run(make_recipe(optimizer="adamw"), data, tmp_path / "run", Taught(), resume=True)


@pytest.mark.slow
def test_stored_answers_equal_those_for_the_crop(
    config: Recipe, data: Path, tmp_path: Path
) -> None:
    """Photos are not cropped. Every second logit lies on a stored answer; those are compared."""
    whole = AugmentConfig(crop=65, min_scale=1.0, max_scale=1.0, flip=0.0)
    config = config.model_copy(update={"augment": whole})
    kept = prepare(config, data, tmp_path / "targets")
    teachers = distillation.load(config, World())
    assert teachers is not None
    sample = CropDataset(find("voc", data, "train"), Order(6, 0), whole, config.model.mean, kept)[1]
    assert sample.soft is not None
    assert sample.soft.dtype == torch.float32
    image = sample.image.float()
    image[:, 40:] = image[:, :, 48:] = 127.5  # integers cannot hold the mean pixel beyond the photo
    wanted = teachers.probabilities(image[None], (17, 17))[0, :, ::2, ::2]
    likeliest = wanted.topk(5, dim=0)
    wanted = torch.zeros_like(wanted).scatter(0, likeliest.indices, likeliest.values)
    wanted = wanted / wanted.sum(0)
    difference = (sample.soft[:, ::2, ::2] - wanted).abs()
    assert float(difference[:, :5, :6].max()) < 0.01  # within the photo of 48 x 40


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "unlabelled=0.5"], "only teachers can teach"),
        (["--photos", "HERE"], "takes none of them"),
        (["--targets", "HERE"], "names no teachers"),
        (["--set", "unlabelled=0.5", "--set", 'teachers=["x"]'], "--photos DIR"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [str(tmp_path) if option == "HERE" else option for option in options]
    base = ["--set", "split=train", "--set", "init=", "--data", str(data)]
    assert train.main(["efficientnet-lite0-voc", *base, "--out", str(tmp_path / "run"), *here]) == 2
    assert words in capsys.readouterr().err
