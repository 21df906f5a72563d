"""One iteration: forward, backward and update, in micro-batches and over processes.

Training and backbone pretraining share this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.data.dataset import UNLABELLED, VOID
from model.data.loader import Batch
from model.train.distillation import Teachers
from model.train.distributed import World
from model.train.recipe import BaseRecipe
from model.train.run import Run, TrainingError


class Loss(Protocol):
    """A loss over a batch that can be divided into parts: see `model/train/loss.py`."""

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor: ...


def train_step(
    run: Run,
    batch: Batch,
    weight: float,
    *,
    factor: float,
    loss: Loss,
    config: BaseRecipe,
    world: World,
    teachers: Teachers | None = None,
) -> float:
    """Run one iteration; returns the loss of the global batch, which has the weight `weight`.

    The initial learning rates are multiplied by `factor`.
    """
    set_rates(run, factor)
    # Dropout needs different noise in each process; the first one's is that of a single process.
    torch.manual_seed((hash((config.seed, run.iteration)) + world.rank) & 0x7FFF_FFFF)
    run.optimizer.zero_grad(set_to_none=True)
    value = 0.0
    for part, context in micro_batches(run, batch, config.accumulate):
        with context:
            value += backward(
                run, part, weight, loss=loss, config=config, world=world, teachers=teachers
            )
    (value,) = world.sums(value)
    update(run, value, config)
    return value


def set_rates(run: Run, factor: float) -> None:
    """Set each group's learning rate to its initial one times `factor`."""
    for group in run.optimizer.param_groups:
        group["lr"] = group["rate"] * factor


def micro_batches(
    run: Run, batch: Batch, count: int
) -> Iterator[tuple[Batch, AbstractContextManager[Any]]]:
    """Equal parts of a batch, each with the context for its backward pass.

    Processes exchange gradients only in the last part.
    """
    soft = [None] * count if batch.soft is None else batch.soft.chunk(count)
    parts = zip(batch.images.chunk(count), batch.labels.chunk(count), soft, strict=True)
    for index, (images, labels, answers) in enumerate(parts):
        alone = index < count - 1 and run.module is not run.net
        yield Batch(images, labels, [], answers), run.module.no_sync() if alone else nullcontext()  # type: ignore[operator]


def backward(
    run: Run,
    batch: Batch,
    weight: float,
    *,
    loss: Loss,
    config: BaseRecipe,
    world: World,
    teachers: Teachers | None = None,
) -> float:
    """Add a micro-batch's gradients; returns its share of the loss, including the teachers'."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    pixels = batch.images.to(world.device, non_blocking=True)  # as bytes: a quarter of the traffic
    images = pixels.to(next(run.net.parameters()).dtype, memory_format=layout)
    labels = batch.labels.to(world.device)
    kind = torch.float16 if config.precision == "fp16" else torch.bfloat16
    mixed_precision = torch.autocast(world.device.type, kind, enabled=config.precision != "fp32")
    with mixed_precision:
        logits = run.module(images)
    if teachers is None:
        total = loss.sum(logits, labels)
    else:
        soft = batch.soft
        if soft is None:  # the answers for whole photos were not kept
            with mixed_precision:
                soft = teachers.probabilities(images, (logits.shape[2], logits.shape[3]))
        hard = loss.sum(logits, labelled(labels))
        total = teachers.mix(hard, logits, soft.to(world.device), labels)
        if run.hints is not None:
            total = total + run.hints.sum(labels)
    share = total / max(weight, 1.0)
    # Times the number of processes: gradients are averaged over them, but must be summed.
    run.scaler.scale(share * world.size).backward()  # type: ignore[no-untyped-call]
    return float(share.detach())


def labelled(labels: Tensor) -> Tensor:
    """The labels, with void for photos without labels."""
    return labels.masked_fill(labels == UNLABELLED, VOID)


def update(run: Run, loss: float, config: BaseRecipe) -> None:
    """Take an optimizer step; raises TrainingError if the loss is not finite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"loss is {loss} at iteration {run.iteration}: lower learning_rate "
            f"(now {config.rate}), lengthen warmup (now {config.warmup}) or set grad_clip; "
            "no weight was changed, and no file was written"
        )
    if config.grad_clip is not None:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.net.parameters(), config.grad_clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.iteration += 1
    if run.average is not None:
        update_average(run, config.ema_decay)


@torch.no_grad()
def update_average(run: Run, decay: float) -> None:
    """Move the averaged weights towards the current ones, faster in the first iterations."""
    assert run.average is not None
    decay = min(decay, (1 + run.iteration) / (10 + run.iteration))
    now = run.net.state_dict()
    floats = [key for key, value in now.items() if value.is_floating_point()]
    # All tensors in one call: one by one they cost a GPU more time than the step itself.
    move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    move([run.average[key] for key in floats], [now[key] for key in floats], 0)
    for key in now.keys() - floats:
        run.average[key].copy_(now[key])
