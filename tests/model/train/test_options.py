"""Each option of a recipe changes what it says, and nothing else."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model import checkpoint
from model.data.dataset import DatasetError, find
from model.data.loader import Batch, CropDataset
from model.network.deeplab import DeepLabV3Plus
from model.network.layers import batch_norms
from model.train import __main__ as train
from model.train import assembly, preflight, recipe, training
from model.train.board import TensorBoard
from model.train.distillation import Teachers
from model.train.distributed import CPU, World
from model.train.loss import PixelLoss
from model.train.recipe import Recipe, RecipeError
from model.train.run import LOG, STATE, Run, RunFolder
from model.train.step import train_step
from model.train.validation import describe
from tests.model import voc_folder
from tests.model.train.test_main import TINY, make_recipe, pace, run

TINY_HEAD = TINY.model_dump(include={"aspp_channels", "atrous_rates", "decoder_channels"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_folder.make(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [30, 150, 1000, 10_000, 29_999])
def test_batch_norm_forgets_its_start_within_a_run_of_any_length(iterations: int) -> None:
    """At the reference's 0.0003, 150 iterations would leave 96 % of the first statistics."""
    momentum = assembly.norm_momentum(
        make_recipe(iterations=iterations, batch_norm_momentum=None), own=0.0003
    )
    assert (1 - momentum) ** iterations < 0.05
    parts = make_recipe(iterations=iterations, batch_norm_momentum=None, accumulate=4)
    assert assembly.norm_momentum(parts, 0.0003) <= momentum  # four updates an iteration


def test_the_papers_runs_keep_the_references_momentum() -> None:
    for iterations in (30_000, 90_000):
        config = make_recipe(iterations=iterations, batch_norm_momentum=None)
        assert assembly.norm_momentum(config, 0.0003) == pytest.approx(0.0003)
        assert assembly.norm_momentum(config, 0.05) == 0.05
    assert assembly.norm_momentum(make_recipe(batch_norm_momentum=0.01), 0.0003) == 0.01


@pytest.mark.slow
def test_a_short_run_is_evaluated_with_the_statistics_of_its_own_photos(
    data: Path, tmp_path: Path
) -> None:
    """The first batch norm keeps the means of its photos and not the zeros it began with."""
    config = make_recipe(iterations=30, batch_norm_momentum=None, ema_decay=0.0, learning_rate=1e-6)
    net = checkpoint.load(run(config, data, tmp_path / "run"))
    seen: list[Tensor] = []
    norm = next(batch_norms(net))
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].mean((0, 2, 3))))
    crops, _ = training.samples(config, find("voc", data, "train"), World())
    with torch.no_grad():
        net(torch.stack([crops[position].image for position in range(24)]).float())
    kept = norm.running_mean
    assert kept is not None
    assert float(torch.corrcoef(torch.stack([seen[0], kept]))[0, 1]) > 0.9
    assert 0.7 < float(kept.norm() / seen[0].norm()) < 1.3


@pytest.mark.slow
def test_a_momentum_too_slow_for_the_run_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    preflight.check_norm_momentum(make_recipe(iterations=150, batch_norm_momentum=0.0003))
    assert "96 % of batch norm's statistics are still those of the start" in caplog.text
    assert "take 0.06" in caplog.text
    caplog.clear()
    preflight.check_norm_momentum(make_recipe(iterations=150, batch_norm_momentum=0.1))
    preflight.check_norm_momentum(make_recipe(batch_norm_momentum=None))
    assert not caplog.text


@pytest.mark.parametrize(
    ("iterations", "momentum", "says"),
    [
        (5, 0.1, "with them: take more iterations, at least 29"),
        (5, 0.3, "with them: take more iterations, at least 9"),
        (5, 0.01, "with them: take 0.1 and more iterations, at least 29"),
    ],
)
def test_the_advice_on_a_slow_momentum_removes_the_warning(
    iterations: int, momentum: float, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The advice never proposes the value that is set, and names the shortest run that fits."""
    config = make_recipe(iterations=iterations, batch_norm_momentum=momentum)
    preflight.check_norm_momentum(config)
    assert caplog.text.rstrip().endswith(says)
    caplog.clear()
    enough = int(says.rpartition(" ")[2])
    taken = max(momentum, 0.1)
    for length, warned in ((enough, False), (enough - 1, True)):
        caplog.clear()
        preflight.check_norm_momentum(make_recipe(iterations=length, batch_norm_momentum=taken))
        assert bool(caplog.text) == warned


def example(size: int = 33) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, size, size), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 21, (4, size, size), generator=generator).to(torch.uint8)
    return Batch(images, labels, [])


def step(
    config: Recipe, batch: Batch | None = None, teachers: Teachers | None = None
) -> tuple[Run, float]:
    """A run after one iteration, and its loss."""
    batch = batch or example()
    run, loss = assembly.start(config, World()), PixelLoss()
    weight = training.weight(loss, batch.labels)
    value = train_step(
        run,
        batch,
        weight,
        factor=1.0,
        loss=loss,
        config=config,
        world=World(),
        teachers=teachers,
    )
    return run, value


def gradients(run: Run) -> dict[str, Tensor]:
    return {n: p.grad for n, p in run.net.named_parameters() if p.grad is not None}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "no decoder"])
def test_thinned_labels_are_compared_with_the_logits_without_resizing(decoder: bool) -> None:
    """Compare with PyTorch's cross-entropy of the unresized logits, every 4 or 16 pixels."""
    net = TINY.model_copy(update={"decoder": decoder, "aspp_dropout": 0.0})
    config = make_recipe(model=net, freeze_batch_norm=True, loss_at="logits")
    batch = example()
    batch.labels[:, :8] = 255
    _, loss = step(config, training.judged(batch, config))
    with torch.no_grad():
        logits = assembly.start(config, World()).net(batch.images.float())
    stride = 4 if decoder else 16
    thin = batch.labels[:, ::stride, ::stride].long()
    assert logits.shape[2:] == thin.shape[1:]
    assert loss == pytest.approx(float(F.cross_entropy(logits, thin, ignore_index=255)), rel=1e-5)


def test_all_labels_are_used_by_default() -> None:
    batch = example()
    assert training.judged(batch, make_recipe()) is batch


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch() -> None:
    """Batch norm is frozen, so it does not depend on the batch."""
    no_dropout = TINY.model_copy(update={"aspp_dropout": 0.0})
    config = make_recipe(model=no_dropout, freeze_batch_norm=True)
    whole, loss = step(config)
    parts, loss_of_parts = step(config.model_copy(update={"accumulate": 4}))
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients(whole).items():
        assert torch.allclose(gradients(parts)[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "net",
    [TINY, TINY_HEAD | {"backbone": "resnet50"}, TINY_HEAD | {"backbone": "xception_65"}],
    ids=["mobilenet_v2", "resnet50", "xception_65"],
)
def test_recomputed_units_give_the_same_gradients_and_statistics(net: object) -> None:
    config = make_recipe(model=net)
    plain, loss = step(config)
    less, loss_again = step(config.model_copy(update={"checkpointing": True}))
    assert loss_again == loss
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradients(less)[name], gradient), name
    for name, value in plain.net.state_dict().items():
        assert torch.equal(less.net.state_dict()[name], value), name


@pytest.mark.slow
def test_a_recomputed_unit_keeps_only_its_input() -> None:
    """Bytes saved for the backward pass, counted by autograd's own hooks."""

    def saved(config: Recipe) -> int:
        run = assembly.start(config, World())
        total = 0

        def count(x: Tensor) -> Tensor:
            nonlocal total
            total += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            run.net(example(65).images.float())
        return total

    assert saved(make_recipe(checkpointing=True)) < 0.5 * saved(make_recipe())


@pytest.mark.slow
def test_a_clipped_gradient_has_the_norm_asked_for() -> None:
    free, _ = step(make_recipe())
    clipped, _ = step(make_recipe(grad_clip=0.01))
    norms = [
        torch.cat([g.flatten() for g in gradients(run).values()]).norm().item()
        for run in (free, clipped)
    ]
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.slow
def test_contiguous_maps_train_like_channels_last() -> None:
    _, loss = step(make_recipe())
    run, contiguous = step(make_recipe(channels_last=False))
    assert contiguous == pytest.approx(loss, rel=1e-3)
    assert run.net.get_parameter("backbone.blocks.1.expand.conv.weight").is_contiguous()


@pytest.mark.slow
def test_a_compiled_network_trains_the_same_and_keeps_its_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assembly, "COMPILER", "aot_eager")  # all but the code generation
    eager, loss = step(make_recipe())
    compiled, loss_again = step(make_recipe(compile=True))
    assert loss_again == pytest.approx(loss, rel=1e-4)
    assert compiled.net.state_dict().keys() == eager.net.state_dict().keys()


@pytest.mark.slow
def test_fp16_is_refused_on_the_cpu() -> None:
    with pytest.raises(RecipeError, match=r"needs a CUDA device; .* precision=bf16"):
        preflight.check(make_recipe(precision="fp16"), World(CPU))


@pytest.mark.slow
def test_fp16_scales_the_loss_and_keeps_the_scale_in_the_state(data: Path, tmp_path: Path) -> None:
    """The scaler works on the CPU too, only slowly."""
    config = make_recipe(precision="fp16", iterations=2)
    whole = run(config, data, tmp_path / "whole")
    state = torch.load(tmp_path / "whole" / STATE, weights_only=True)
    assert state["scaler"]["scale"] > 1
    assert checkpoint.load(whole)(torch.zeros(1, 3, 33, 33)).isfinite().all()


def test_the_rate_follows_the_batch_where_a_reference_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_recipe(learning_rate=0.008, batch_size=4, reference_batch=16)
    groups = assembly.parameter_groups(assembly.build(config), config)
    assert {group["rate"] for group in groups} == {0.002}
    with caplog.at_level("INFO"):
        preflight.log_rate(config)
    assert "learning rate 0.002 = 0.008 * batch 4 / 16" in caplog.text


@pytest.mark.slow
def test_balanced_class_weights_are_measured_on_the_masks(data: Path) -> None:
    config = make_recipe(class_weights="balanced", sampling="balanced")
    crops, loss = training.samples(config, find("voc", data, "train"), World())
    assert isinstance(crops, CropDataset)
    assert loss.class_weights is not None
    background, cat, person = loss.class_weights[[0, 8, 15]].tolist()
    assert background < cat == pytest.approx(person, rel=0.1)
    assert crops.order.chances is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_weights": [1.0]}, "class_weights has 1 entries, model.num_classes is 21"),
        ({"validate_every": 5}, "belong together"),
        ({"patience": 5}, "set validation_split and validate_every"),
        ({"compile": True, "checkpointing": True}, "leave one out"),
        ({"optimizer": "adamw", "nesterov": True}, "set nesterov=false"),
        ({"nesterov": True, "momentum": 0.0}, "needs a momentum above 0"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"seed": 2**64}, "less than"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_recipe(**changes)


def test_a_network_that_is_frozen_whole_is_refused() -> None:
    """Otherwise PyTorch's optimizer would fail without naming the option."""
    config = make_recipe(frozen=["backbone", "aspp", "decoder", "logits"])
    with pytest.raises(RecipeError, match=r"frozen=\['backbone', .*leaves nothing to train"):
        assembly.start(config, World())


@pytest.mark.slow
def test_rules_over_several_keys_do_not_print_the_whole_recipe() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.read("efficientnet-lite0-voc", ["patience=3"])
    assert len(str(caught.value)) < 200


@pytest.mark.slow
def test_classes_that_do_not_fit_are_refused_before_training(data: Path) -> None:
    config = make_recipe(model=TINY.model_copy(update={"num_classes": 5}))
    with pytest.raises(RecipeError, match=r"set model\.num_classes=21"):
        preflight.check_classes(config, find("voc", data, "train"))


@pytest.mark.slow
def test_the_best_weights_are_kept_and_a_run_without_gains_ends(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = iter([0.1, 0.3, 0.2, 0.3])
    monkeypatch.setattr("model.evaluate.metrics.Confusion.miou", lambda self: next(judged))
    config = make_recipe(
        iterations=40, ema_decay=0.0, validation_split="train", validate_every=2, patience=2
    )
    run(config, data, tmp_path / "run")
    validations = [line for line in lines(tmp_path / "run") if "miou" in line]
    assert [line["miou"] for line in validations] == [0.1, 0.3, 0.2, 0.3]
    card = checkpoint.read_card(tmp_path / "run" / "best")
    assert (card.metrics["miou"], card.metrics["iteration"]) == (0.3, 4)
    best = checkpoint.read_weights(tmp_path / "run" / "best")
    last = checkpoint.read_weights(tmp_path / "run" / "model")
    assert not torch.equal(best["logits.weight"], last["logits.weight"])
    # An ended run stays ended.
    run(config, data, tmp_path / "run", resume=True)
    assert lines(tmp_path / "run")[-1]["iteration"] == 8


@pytest.mark.slow
def test_mIoU_in_training_is_that_of_the_evaluator(data: Path, tmp_path: Path) -> None:  # noqa: N802
    from functools import partial

    from model.evaluate.evaluation import score
    from model.network.inference import served_map

    config = make_recipe(iterations=2, validation_split="train", validate_every=2)
    run(config, data, tmp_path)
    confusion = score(
        find("voc", data, "train"), partial(served_map, checkpoint.load(tmp_path / "best"))
    )
    assert lines(tmp_path)[-1]["miou"] == pytest.approx(confusion.miou(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "value", "says"),
    [((9, 7), 0, r"\.png is 9 x 7: make them equal"), ((48, 40), 255, "no pixel was evaluated")],
)
def test_a_failing_validation_says_why(
    tmp_path: Path, size: tuple[int, int], value: int, says: str
) -> None:
    data = voc_folder.make(tmp_path / "data")
    voc_folder.make(tmp_path / "held_out", count=1, split="val")
    held_out = find("voc", tmp_path / "held_out", "val")
    Image.new("L", size, value).save(str(held_out.pairs[0].mask))
    config = make_recipe(validation_split="val", validate_every=1)
    with pytest.raises(DatasetError, match=says):
        training.train(
            config,
            find("voc", data, "train"),
            RunFolder(tmp_path, World()),
            pace(config),
            resume=False,
            workers=0,
            validated_on=held_out,
        )


@pytest.mark.slow
def test_a_damaged_photo_gives_no_overlay_and_does_not_end_the_training(tmp_path: Path) -> None:
    data = voc_folder.make(tmp_path / "data")
    dataset = find("voc", data, "train")
    dataset.pairs[1].image.write_bytes(dataset.pairs[1].image.read_bytes()[:400])
    config = make_recipe()
    net = DeepLabV3Plus(config.model).eval()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with closing(TensorBoard(tmp_path)) as board:
        board.overlays(1, net, dataset, describe(config, dataset))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["2007_000000", "2007_000002", "2007_000003"]


@pytest.mark.slow
def test_tensorboard_shows_curves_and_overlays(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe_file = tmp_path / "tiny.toml"
    recipe_file.write_text(
        'split = "train"\niterations = 3\nbatch_size = 4\nvalidation_split = "train"\n'
        'validate_every = 2\n[augment]\ncrop = 33\n[model]\nbackbone = "mobilenet_v2"\n'
        "depth_multiplier = 0.25\naspp_channels = 16\ncrop_size = [65, 65]\n"
    )
    arguments = [str(recipe_file), "--data", str(data), "--out", str(tmp_path / "run")]
    assert train.main([*arguments, "--workers", "0", "--log-every", "1", "--tensorboard"]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "learning_rate", "crops_per_second", "miou", "iou/person"} <= set(
        tags["scalars"]
    )
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert len(tags["images"]) == 4
    (image,) = events.Images(tags["images"][0])
    assert (image.step, image.width, image.height) == (2, 2 * 48, 40)
