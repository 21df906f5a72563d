"""Learning from other networks: the loss by hand, and a whole training with teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import checkpoint
from model.checkpoint import CheckpointError
from model.data.dataset import VOID, find
from model.network.deeplab import DeepLabV3Plus
from model.train import __main__ as train
from model.train import distillation, training
from model.train.distillation import Teachers
from model.train.distributed import World
from model.train.recipe import RecipeError
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
    checkpoint.save(folder / f"teacher{seed}", DeepLabV3Plus(config).state_dict(), card)
    return str(folder / f"teacher{seed}")


def test_the_divergence_is_that_of_the_formula() -> None:
    """In numpy, pixel by pixel; half of the loss, void left out, each pixel as its labels."""
    rng = np.random.default_rng(0)
    logits, soft = rng.normal(size=(2, 5, 3, 3)), rng.dirichlet(np.ones(5), (2, 3, 3))
    labels = rng.integers(0, 5, (2, 9, 9)).astype(np.uint8)
    labels[0, :3, :3] = VOID  # all that the first pixel stands for
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


def test_several_teachers_count_alike(tmp_path: Path, data: Path) -> None:
    paths = [teacher(tmp_path, data, seed) for seed in (1, 2)]
    images = example().images.float()
    logits = torch.zeros(4, 21, 9, 9)
    both = distillation.load(make_recipe(teachers=paths), World())
    assert both is not None
    alone = [distillation.load(make_recipe(teachers=[path]), World()) for path in paths]
    each = [one.probabilities(images, logits) for one in alone if one is not None]
    assert not torch.allclose(each[0], each[1])
    found = both.probabilities(images, logits)
    assert torch.allclose(found, (each[0] + each[1]) / 2, atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(4, 9, 9), atol=1e-5)


def test_who_agrees_with_the_teacher_learns_nothing() -> None:
    """Its own logits as soft labels: the divergence is 0, and so is the gradient."""
    logits = torch.randn(2, 21, 9, 9, requires_grad=True)
    soft = (logits.detach() / 2).softmax(1)
    labels = torch.zeros(2, 33, 33, dtype=torch.uint8)
    loss = Teachers([], 1.0, 2.0).mix(torch.zeros(()), logits, soft, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-3)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-4


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


def test_a_taught_run_is_taught_and_resumes_to_the_same_weights(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teachers are read anew, and the card names them."""
    path = teacher(tmp_path, data, 1)
    config = make_recipe(teachers=[path], distillation=1.0)
    whole = checkpoint.read_weights(run(config, data, tmp_path / "whole"))

    def cut(at: Run, *args: Any, **options: Any) -> float:
        if at.iteration == 3:
            raise InterruptedError
        return train_step(at, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", cut)
        with pytest.raises(InterruptedError):
            run(config, data, tmp_path / "cut")
    resumed = run(config, data, tmp_path / "cut", resume=True)
    again = checkpoint.read_weights(resumed)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert checkpoint.read_card(resumed).training["teachers"] == [path]
    plain = checkpoint.read_weights(run(make_recipe(), data, tmp_path / "plain"))
    assert not torch.equal(plain["logits.weight"], whole["logits.weight"])


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(RecipeError, match=r"22 classes, model\.num_classes is 21"):
        distillation.load(make_recipe(teachers=[teacher(tmp_path, data, 3, 22)]), World())


def test_a_teacher_that_is_not_there_is_named(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=r"teachers: .*nowhere"):
        distillation.load(make_recipe(teachers=[str(tmp_path / "nowhere")]), World())
    out = ["--data", str(data), "--out", str(tmp_path / "run")]
    options = [f'teachers=["{tmp_path}/nowhere"]', "augment.crop=33", "split=train", "init="]
    sets = [word for option in options for word in ("--set", option)]
    assert train.main(["efficientnet-lite0-voc", *out, *sets]) == 1
    assert "nowhere" in capsys.readouterr().err
