"""Learning from other networks: the mean of their probabilities as soft labels.

Hinton, Vinyals and Dean 2015. Several trainings averaged know more than each of them, at
the cost of all; a network taught by them keeps part of that at its own cost. Soft labels
also say what a photo's pixels resemble, of which a short list of photos shows little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model import checkpoint
from model.checkpoint import CheckpointError
from model.data.dataset import VOID
from model.network.deeplab import DeepLabV3Plus
from model.network.layers import resize
from model.train.distributed import World
from model.train.recipe import Recipe, RecipeError


@dataclass(frozen=True)
class Teachers:
    """Networks to learn from, and how much of the loss is theirs."""

    nets: Sequence[DeepLabV3Plus]
    share: float  # 0..1, of the whole loss
    temperature: float  # above 1: the less likely classes weigh more

    @torch.no_grad()
    def probabilities(self, images: Tensor, logits: Tensor) -> Tensor:
        """Mean softened probabilities: images (N, 3, H, W), 0..255 -> as logits (N, K, h, w)."""
        size = (logits.shape[2], logits.shape[3])
        total = torch.zeros_like(logits, dtype=torch.float32)
        for net in self.nets:
            total += resize(net(images).float(), size).div(self.temperature).softmax(1)
        return total / len(self.nets)

    def mix(self, hard: Tensor, logits: Tensor, soft: Tensor, labels: Tensor) -> Tensor:
        """The loss sum over labels, `hard`, mixed with the divergence from the soft labels.

        logits and soft labels are (N, K, h, w), labels (N, H, W) uint8. The divergence is
        counted at the logits' own resolution, each of their pixels for as many of the
        labels', and not where the label is void. The square of the temperature keeps its
        gradient's size (section 2 there).
        """
        height, width = logits.shape[2:]
        ours = (logits.float() / self.temperature).log_softmax(1)
        divergence = F.kl_div(ours, soft, reduction="none").sum(1)
        near = F.interpolate(labels[:, None], (height, width), mode="nearest-exact")[:, 0]
        area = labels.shape[1] * labels.shape[2] / (height * width)
        taught = (divergence * (near != VOID)).sum() * area * self.temperature**2
        return (1 - self.share) * hard + self.share * taught


def load(config: Recipe, world: World) -> Teachers | None:
    """The recipe's teachers, on this process's device; None where it names none.

    Raises RecipeError where one knows other classes, CheckpointError where one cannot be read.
    """
    if not config.teachers:
        return None
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    nets: list[DeepLabV3Plus] = []
    for path in config.teachers:
        try:
            net = checkpoint.load(path)
        except CheckpointError as error:
            raise CheckpointError(f"teachers: {error}") from error
        classes = net.config.num_classes
        if classes != config.model.num_classes:
            raise RecipeError(
                f"teachers: {path} has {classes} classes, model.num_classes is "
                f"{config.model.num_classes}: teacher and network must tell the same apart"
            )
        net.requires_grad_(False).to(world.device)
        nets.append(net.to(memory_format=layout))
    return Teachers(nets, config.distillation, config.temperature)
