"""Distillation: the loss computed by hand, and a whole training with teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from model import checkpoint
from model.checkpoint import CheckpointError
from model.data.dataset import UNLABELLED, VOID, find
from model.data.loader import Batch
from model.network import inference
from model.network.deeplab import DeepLabV3Plus
from model.network.layers import batch_norms
from model.train import __main__ as train
from model.train import assembly, distillation, preflight, training
from model.train.distillation import Teachers
from model.train.distributed import World
from model.train.loss import PixelLoss
from model.train.recipe import Recipe, RecipeError
from model.train.run import Run
from model.train.step import train_step
from model.train.validation import describe
from tests.model import voc_folder
from tests.model.train.test_main import TINY, make_recipe, run
from tests.model.train.test_options import example, step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_folder.make(tmp_path_factory.mktemp("data"))


def teacher(folder: Path, data: Path, seed: int, classes: int = 21) -> str:
    """The path of a checkpoint with random weights."""
    torch.manual_seed(seed)
    config = TINY.model_copy(update={"num_classes": classes})
    card = describe(make_recipe(), find("voc", data, "train"))
    names = (*card.classes, "extra")[:classes]
    palette = (*card.palette, (1, 2, 3))[:classes]
    card = card.model_copy(update={"model": config, "classes": names, "palette": palette})
    net = DeepLabV3Plus(config)
    for norm in batch_norms(net):
        norm.momentum = 1.0
    net(
        torch.randint(0, 256, (4, 3, 65, 65)).float()
    )  # so that activations are as large as a trained network's
    state = net.state_dict()
    state["logits.weight"] *= 30  # a fresh classifier calls everything equally likely
    checkpoint.save(folder / f"teacher{seed}", state, card)
    return str(folder / f"teacher{seed}")


def test_the_divergence_is_that_of_the_formula() -> None:
    """It is half of the loss and leaves out void. NumPy computes it pixel by pixel."""
    rng = np.random.default_rng(0)
    logits, soft = rng.normal(size=(2, 5, 3, 3)), rng.dirichlet(np.ones(5), (2, 3, 3))
    labels = rng.integers(0, 5, (2, 9, 9)).astype(np.uint8)
    labels[0, :3, :3] = VOID  # all labels of the first logit
    heat = 2.0
    expected = 0.0
    for n, y, x in np.ndindex(2, 3, 3):
        if (n, y, x) == (0, 0, 0):
            continue
        raised = np.exp(logits[n, :, y, x] / heat)
        wanted, found = soft[n, y, x], raised / raised.sum()
        expected += 9 * heat**2 * float((wanted * np.log(wanted / found)).sum())
    mixed = Teachers([], 0.5, heat).mix(
        torch.tensor(7.0),
        torch.tensor(logits),
        torch.tensor(soft.transpose(0, 3, 1, 2)).float(),
        torch.tensor(labels),
    )
    assert float(mixed) == pytest.approx(0.5 * 7 + 0.5 * expected, rel=1e-5)


@pytest.mark.slow
def test_several_teachers_have_equal_weight(tmp_path: Path, data: Path) -> None:
    paths = [teacher(tmp_path, data, seed) for seed in (1, 2)]
    images = example().images.float()
    both = distillation.load(make_recipe(teachers=paths), World())
    assert both is not None
    alone = [distillation.load(make_recipe(teachers=[path]), World()) for path in paths]
    each = [one.probabilities(images, (9, 9)) for one in alone if one is not None]
    assert not torch.allclose(each[0], each[1])
    found = both.probabilities(images, (9, 9))
    assert torch.allclose(found, (each[0] + each[1]) / 2, atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(4, 9, 9), atol=1e-5)


@pytest.mark.slow
def test_agreeing_with_the_teacher_gives_no_gradient() -> None:
    """Its own logits as soft labels: the divergence is 0, and so is the gradient."""
    logits = torch.randn(2, 21, 9, 9, requires_grad=True)
    soft = (logits.detach() / 2).softmax(1)
    labels = torch.zeros(2, 33, 33, dtype=torch.uint8)
    loss = Teachers([], 1.0, 2.0).mix(torch.zeros(()), logits, soft, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-3)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-4


@pytest.mark.slow
def test_micro_batches_learn_the_same_from_a_teacher(tmp_path: Path, data: Path) -> None:
    no_dropout = TINY.model_copy(update={"aspp_dropout": 0.0})
    path = teacher(tmp_path, data, 1)
    config = make_recipe(model=no_dropout, freeze_batch_norm=True, teachers=[path])
    _, loss = step(config, teachers=distillation.load(config, World()))
    parts = config.model_copy(update={"accumulate": 4})
    _, again = step(parts, teachers=distillation.load(parts, World()))
    assert again == pytest.approx(loss, rel=1e-5)
    _, without = step(config)
    assert abs(without - loss) > 0.1


def cut_and_resumed(config: Recipe, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a training that was interrupted in its fourth iteration and resumed."""

    def cut(at: Run, *args: Any, **options: Any) -> float:
        if at.iteration == 3:
            raise InterruptedError
        return train_step(at, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", cut)
        with pytest.raises(InterruptedError):
            run(config, data, out)
    return run(config, data, out, resume=True)


@pytest.mark.slow
def test_distillation_changes_the_weights_and_resumes_to_the_same_ones(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run reads the teachers again, and the card names them."""
    path = teacher(tmp_path, data, 1)
    config = make_recipe(teachers=[path], distillation=1.0)
    whole = checkpoint.read_weights(run(config, data, tmp_path / "whole"))

    resumed = cut_and_resumed(config, data, tmp_path / "cut", monkeypatch)
    again = checkpoint.read_weights(resumed)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert checkpoint.read_card(resumed).training["teachers"][0]["checkpoint"] == path
    plain = checkpoint.read_weights(run(make_recipe(), data, tmp_path / "plain"))
    assert not torch.equal(plain["logits.weight"], whole["logits.weight"])


@pytest.mark.slow
def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(RecipeError, match=r"22 classes, model\.num_classes is 21"):
        distillation.load(make_recipe(teachers=[teacher(tmp_path, data, 3, 22)]), World())


def test_a_teacher_for_photos_does_not_teach_a_network_of_bands(tmp_path: Path, data: Path) -> None:
    """Otherwise it would fail at the first batch, after everything is loaded."""
    path = teacher(tmp_path, data, 0)
    wider = TINY.model_dump() | {"channels": 4, "mean": (127.5,) * 4, "std": (127.5,) * 4}
    config = make_recipe(model=wider, teachers=[path])
    with pytest.raises(RecipeError, match=r"takes 3 channels .* model\.channels is 4"):
        distillation.load(config, World())


def test_a_missing_teacher_is_named(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=r"teachers: .*nowhere"):
        distillation.load(make_recipe(teachers=[str(tmp_path / "nowhere")]), World())
    out = ["--data", str(data), "--out", str(tmp_path / "run")]
    options = [f'teachers=["{tmp_path}/nowhere"]', "augment.crop=33", "split=train", "init="]
    sets = [word for option in options for word in ("--set", option)]
    assert train.main(["efficientnet-lite0-voc", *out, *sets]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_teachers_have_their_own_weight_output_stride_and_flip(tmp_path: Path, data: Path) -> None:
    """Three parts of one teacher at stride 8, one part of the other averaged with its mirror."""
    first, second = (teacher(tmp_path, data, seed) for seed in (1, 2))
    config = make_recipe(
        teachers=[
            {"checkpoint": first, "weight": 3, "output_stride": 8},
            {"checkpoint": second, "flip": True},
        ],
        temperature=2.0,
    )
    teachers = distillation.load(config, World())
    assert teachers is not None
    images = example().images.float()

    def softened(logits: torch.Tensor) -> torch.Tensor:
        return (logits / 2).softmax(1)

    with torch.no_grad():
        fine = softened(checkpoint.load(first, 8)(images))
        net = checkpoint.load(second)
        both = (softened(net(images)) + softened(net(images.flip(3)).flip(3))) / 2
        coarse = softened(checkpoint.load(first)(images))
    found = teachers.probabilities(images, (9, 9))
    assert torch.allclose(found, (3 * fine + both) / 4, atol=1e-5)
    assert not torch.allclose(found, (3 * coarse + both) / 4, atol=1e-3)


@pytest.mark.slow
def test_a_whole_photo_is_padded_for_teachers_as_in_evaluation(tmp_path: Path, data: Path) -> None:
    """Padded to the crop size: the answers are `probabilities` at every eighth pixel."""
    path = teacher(tmp_path, data, 1)
    teachers = distillation.load(make_recipe(teachers=[path], temperature=1.0), World())
    assert teachers is not None
    photo = np.random.default_rng(0).integers(0, 256, (50, 41, 3)).astype(np.uint8)
    found = teachers.of_photo(photo, 8)
    wanted = inference.probabilities(checkpoint.load(path), photo)
    assert found.shape == (21, 8, 6)  # rows 0, 8, ..., 56: the last photo row lies between two
    assert np.abs(found[:, :7] - wanted[:, ::8, ::8]).max() < 0.02  # of logits or of probabilities


@pytest.mark.parametrize(
    "options", [{"unlabelled": 0.5}, {"augment": {"mixup": 0.5}}, {"hints": 0.1}]
)
def test_options_of_teachers_need_teachers(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"teachers.*name some, or set"):
        make_recipe(**options)


@pytest.mark.parametrize("options", [{"augment": {"crop": 65, "mixup": 0.5}}, {"hints": 0.1}])
def test_answers_for_whole_photos_do_not_do_for_mixup_and_hints(options: dict[str, Any]) -> None:
    config = make_recipe(teachers=["teacher"], **options)
    preflight.check_taught(config, photos=None, targets=None)
    with pytest.raises(RecipeError, match="the teachers must see each crop"):
        preflight.check_taught(config, photos=None, targets=Path("targets"))


def maps_of(net: DeepLabV3Plus, images: torch.Tensor) -> NDArray[np.float64]:
    """What ASPP returns before dropout, in eval mode: (N, H, W, C)."""
    with torch.no_grad():
        found = net.eval().aspp(net.backbone((images - net.mean) / net.std).high)
    return found.permute(0, 2, 3, 1).double().numpy()  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_loss_of_hints_is_that_of_the_formula(tmp_path: Path, data: Path) -> None:
    """Two teachers, one at a finer stride and asked for mirror images too; NumPy adds up."""
    first, second = (teacher(tmp_path, data, seed) for seed in (1, 2))
    config = make_recipe(
        teachers=[{"checkpoint": first, "weight": 3}, {"checkpoint": second, "flip": True}],
        hints=0.25,
    )
    teachers = distillation.load(config, World())
    assert teachers is not None
    begun = assembly.start(config, World(), teachers)
    images, labels = example().images.float(), example().labels
    labels[0, :4] = VOID
    begun.net.eval()(images)
    teachers.probabilities(images, (9, 9))
    assert begun.hints is not None
    found = begun.hints.sum(labels)

    assert isinstance(begun.net, DeepLabV3Plus)
    own = maps_of(begun.net, images)
    side = own.shape[1]
    area = labels.shape[1] * labels.shape[2] / side**2
    near = torch.nn.functional.interpolate(labels[:, None], (side, side), mode="nearest-exact")
    wanted = 0.0
    for index, (path, weight) in enumerate(((first, 3), (second, 1))):
        theirs = maps_of(checkpoint.load(path), images)
        theirs = theirs - theirs.mean(3, keepdims=True)
        theirs /= np.sqrt((theirs**2).mean(3, keepdims=True) + 1e-5)
        project = begun.hints.maps[index]
        kernel, bias = (value.detach().double().numpy() for value in project.parameters())
        distance = ((own @ kernel[:, :, 0, 0].T + bias - theirs) ** 2).mean(3)
        wanted += 0.25 * weight / 4 * area * float(distance[near[:, 0].numpy() != VOID].sum())
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_a_training_with_hints_and_mixup_resumes_to_the_same_weights(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps to the teachers' features are resumed too, and are not part of the checkpoint."""
    path = teacher(tmp_path, data, 1)
    augment = make_recipe().augment.model_copy(update={"mixup": 0.5})
    config = make_recipe(teachers=[path], hints=1.0, augment=augment, ema_decay=0.5)
    whole = checkpoint.read_weights(run(config, data, tmp_path / "whole"))

    again = checkpoint.read_weights(cut_and_resumed(config, data, tmp_path / "cut", monkeypatch))
    assert whole.keys() == again.keys() == DeepLabV3Plus(TINY).state_dict().keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    without = config.model_copy(update={"hints": 0.0})
    plain = checkpoint.read_weights(run(without, data, tmp_path / "plain"))
    key = "aspp.project.conv.weight"
    assert not torch.equal(plain[key], whole[key])


@pytest.mark.slow
def test_pixels_without_a_label_weigh_as_much_as_labelled_ones(tmp_path: Path, data: Path) -> None:
    """Half of the batch has no labels. Its loss is only the teachers' share, over all pixels."""
    no_dropout = TINY.model_copy(update={"aspp_dropout": 0.0})
    path = teacher(tmp_path, data, 1)
    config = make_recipe(
        model=no_dropout, freeze_batch_norm=True, teachers=[path], distillation=0.75
    )
    teachers = distillation.load(config, World())
    assert teachers is not None
    images, labels, _, _ = example()
    labels[2:] = UNLABELLED
    labels[0, :4] = VOID
    net = assembly.start(config, World()).net
    logits = net(images.float())
    soft = teachers.probabilities(images.float(), (9, 9))
    hard = PixelLoss().sum(logits[:2], labels[:2])
    wanted = teachers.mix(hard, logits, soft, labels) / (labels != VOID).sum()
    assert float(training.weight(PixelLoss(), labels)) == float((labels != VOID).sum())
    _, loss = step(config, Batch(images, labels, []), teachers)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-4)
