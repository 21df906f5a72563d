"""Save memory in training: recompute a backbone's units in the backward pass.

Only the units' inputs are kept. `torch.utils.checkpoint` runs each unit twice,
so that batch norm would count the batch twice (pytorch/pytorch#96136). Here the
second run leaves the running statistics alone, so the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.network.backbones.inverted_residual import InvertedResidual
from model.network.backbones.mobilenet_v3 import ExcitedResidual
from model.network.backbones.resnet import Bottleneck
from model.network.backbones.xception import XceptionModule
from model.network.layers import batch_norms

UNITS = (Bottleneck, ExcitedResidual, InvertedResidual, XceptionModule)


def units(backbone: nn.Module) -> None:
    """Recompute every residual unit of a backbone in the backward pass, in place."""
    for module in backbone.modules():
        if isinstance(module, UNITS):
            module.forward = _recomputed(module)  # type: ignore[assignment, method-assign]


def _recomputed(unit: nn.Module) -> Callable[[Tensor], Any]:
    forward = unit.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_left_alone(unit)

    def wrapped(x: Tensor) -> Any:
        # Nothing in a unit is random, so no generator state has to be kept.
        return checkpoint(
            forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )

    return wrapped


@contextmanager
def _statistics_left_alone(unit: nn.Module) -> Iterator[None]:
    """Freeze the running statistics of batch norm: momentum 0, and a discarded batch counter."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms(unit)]
    for norm, _, count in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked = count
