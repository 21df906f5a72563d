"""Learn from other networks: the mean of their probabilities serves as soft labels.

Hinton, Vinyals and Dean 2015. An average of several networks is better than each of them but
costs as much as all of them; a network that learns from it keeps part of the gain at its own
cost. Soft labels also say which classes a pixel resembles. They need no labelled photos, so
photos without labels can be used as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model import checkpoint
from model.checkpoint import CheckpointError
from model.data.dataset import VOID
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import pad
from model.network.layers import resize
from model.train.distributed import World
from model.train.recipe import Recipe, RecipeError, TeacherConfig

GRID = 16  # pixels: a canvas of a multiple of it plus one aligns at output strides 8 and 16


@dataclass(frozen=True)
class Teacher:
    """A network to learn from, and how it is asked."""

    net: DeepLabV3Plus
    weight: float = 1.0  # of its probabilities in the mean
    flip: bool = False  # the mean of the image and its mirror image

    def probabilities(self, images: Tensor, size: tuple[int, int], temperature: float) -> Tensor:
        """Softened probabilities: images (N, 3, H, W), 0..255 -> (N, K, *size) float32."""
        mirrored = self.net(images.flip(3)).flip(3) if self.flip else None
        total = self._softened(self.net(images), size, temperature)  # last: hints are taken here
        if mirrored is not None:
            total = (total + self._softened(mirrored, size, temperature)) / 2
        return total

    def _softened(self, logits: Tensor, size: tuple[int, int], temperature: float) -> Tensor:
        return resize(logits.float(), size).div(temperature).softmax(1)


@dataclass(frozen=True)
class Teachers:
    """Networks to learn from, and how much of the loss is theirs."""

    each: Sequence[Teacher]
    share: float  # 0..1, of the whole loss
    temperature: float  # above 1: the less likely classes weigh more

    @torch.no_grad()
    def probabilities(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Weighted mean of softened probabilities: (N, 3, H, W), 0..255 -> (N, K, *size)."""
        parts = [
            teacher.weight * teacher.probabilities(images, size, self.temperature)
            for teacher in self.each
        ]
        return torch.stack(parts).sum(0) / sum(teacher.weight for teacher in self.each)

    def of_photo(self, photo: NDArray[np.uint8], spacing: int) -> NDArray[np.float32]:
        """Probabilities of a whole photo, laid out as evaluation does, every `spacing` pixels.

        (H, W, 3) -> (K, h, w), as far as the photo reaches.
        """
        height, width = photo.shape[:2]
        canvas = tuple(
            -(-(max(side, *(teacher.net.config.crop_size[axis] for teacher in self.each)) - 1)
              // GRID) * GRID + 1
            for axis, side in enumerate((height, width))
        )  # fmt: skip
        size = ((canvas[0] - 1) // spacing + 1, (canvas[1] - 1) // spacing + 1)
        total: Tensor | None = None
        for teacher in self.each:
            weight = teacher.net.logits.weight
            x = torch.from_numpy(np.array(photo)).to(weight.device).permute(2, 0, 1)[None]
            padded = pad(x.to(weight.dtype), teacher.net, (canvas[0], canvas[1]))
            with torch.inference_mode():
                found = teacher.weight * teacher.probabilities(padded, size, self.temperature)
            total = found if total is None else total + found
        assert total is not None
        mean = total / sum(teacher.weight for teacher in self.each)
        rows, columns = (-(-(side - 1) // spacing) + 1 for side in (height, width))
        return mean[0, :, :rows, :columns].float().cpu().numpy()

    def dismissed(self) -> Teachers:
        """Return a copy without the networks, for a training whose soft labels are stored."""
        return replace(self, each=())

    def mix(self, hard: Tensor, logits: Tensor, soft: Tensor, labels: Tensor) -> Tensor:
        """The loss sum over labels, `hard`, mixed with the divergence from the soft labels.

        logits and soft labels are (N, K, h, w), labels (N, H, W) uint8. The divergence is
        computed at the logits' resolution, each logit weighted by the number of labels it
        stands for, and left out where the label is void. The factor of the squared
        temperature keeps the size of its gradient (section 2 of the paper).
        """
        ours = (logits.float() / self.temperature).log_softmax(1)
        divergence = F.kl_div(ours, soft, reduction="none").sum(1)
        taught = _sum(divergence, labels) * self.temperature**2
        return (1 - self.share) * hard + self.share * taught


class Hints(nn.Module):
    """Learnt linear maps from a network's ASPP to those of its teachers, and their loss.

    FitNets (Romero et al. 2015, "Hints"). Probabilities say little about a pixel that is surely
    background; what the teacher's last map holds there says much more. The maps are parameters
    of the training alone: they are part of its state, not of the checkpoint.
    """

    def __init__(self, net: DeepLabV3Plus, teachers: Sequence[Teacher], factor: float) -> None:
        super().__init__()
        width = net.config.aspp_channels
        self.maps = nn.ModuleList(
            nn.Conv2d(width, teacher.net.config.aspp_channels, 1) for teacher in teachers
        )
        self.factor = factor
        self.weights = [teacher.weight for teacher in teachers]
        self._own = _Tap(net.aspp.project)
        self._theirs = [_Tap(teacher.net.aspp.project) for teacher in teachers]

    def sum(self, labels: Tensor) -> Tensor:
        """The loss summed over labels (N, H, W) uint8, of the images that the networks saw last.

        At each position it is the mean square difference over the channels from the teacher's
        map, which is normalised to mean 0 and variance 1 there, so that all teachers and
        positions count alike. Void is left out.
        """
        own = self._own.last.float()
        total = own.new_zeros(())
        for project, tap, weight in zip(self.maps, self._theirs, self.weights, strict=True):
            theirs = resize(tap.last.float(), (own.shape[2], own.shape[3]))
            wanted = F.layer_norm(theirs.movedim(1, 3), theirs.shape[1:2]).movedim(3, 1)
            total = total + weight * _sum((project(own) - wanted).square().mean(1), labels)
        return self.factor * total / sum(self.weights)


class _Tap:
    """Keeps what a module returned last."""

    last: Tensor

    def __init__(self, module: nn.Module) -> None:
        module.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: object, output: Tensor) -> None:
        self.last = output


def _sum(values: Tensor, labels: Tensor) -> Tensor:
    """Sum over all labels (N, H, W) but void; each of the values (N, h, w) stands for some."""
    height, width = values.shape[1:]
    near = F.interpolate(labels[:, None], (height, width), mode="nearest-exact")[:, 0]
    area = labels.shape[1] * labels.shape[2] / (height * width)
    return (values * (near != VOID)).sum() * area


def load(config: Recipe, world: World) -> Teachers | None:
    """The recipe's teachers, on this process's device; None if it names none.

    Raises RecipeError if a teacher has other classes, CheckpointError if it cannot be read.
    """
    if not config.teachers:
        return None
    each = [_load(teacher, config, world) for teacher in config.teachers]
    return Teachers(each, config.distillation, config.temperature)


def _load(teacher: TeacherConfig, config: Recipe, world: World) -> Teacher:
    path = teacher.checkpoint
    try:
        net = checkpoint.load(path, teacher.output_stride)
    except CheckpointError as error:
        raise CheckpointError(f"teachers: {error}") from error
    samples = net.config.samples
    if samples != config.model.samples:
        raise RecipeError(
            f"teachers: {path} takes {samples.channels} channels (sample_range "
            f"{samples.range}), model.channels is {config.model.channels} (sample_range "
            f"{config.model.sample_range}): teacher and network must see the same"
        )
    classes = net.config.num_classes
    if classes != config.model.num_classes:
        raise RecipeError(
            f"teachers: {path} has {classes} classes, model.num_classes is "
            f"{config.model.num_classes}: teacher and network must have the same classes"
        )
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    net.requires_grad_(False).to(world.device)
    return Teacher(net.to(memory_format=layout), teacher.weight, teacher.flip)
