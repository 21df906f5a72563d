"""Build the network, its initial weights and its optimizer from a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import CheckpointError
from model.network import depthwise, recompute
from model.network.backbones.features import BackboneError
from model.network.deeplab import DeepLabV3Plus
from model.network.layers import batch_norms
from model.train import distributed, pretrained
from model.train.distillation import Hints, Teachers
from model.train.distributed import World
from model.train.recipe import BaseRecipe, InitPart, Recipe, RecipeError
from model.train.run import HINTS, Run

FASTEST_NORM = 0.1  # momentum: statistics of fewer than ten batches are noise
COMPILER = "inductor"  # of torch.compile
ADAM_SECOND = 0.99  # decay of AdamW's second moment: runs of a few hundred iterations


def build(config: Recipe) -> DeepLabV3Plus:
    """The network with its initial weights."""
    torch.manual_seed(config.seed)
    try:
        net = DeepLabV3Plus(config.model)
    except BackboneError as error:
        raise RecipeError(f"model.{error}") from None
    if config.init is not None:
        initialise(net, config.init, config.init_part)
    for norm in batch_norms(net):
        norm.momentum = norm_momentum(config, norm.momentum or 0.0)
    return net


def norm_momentum(config: Recipe, own: float) -> float:
    """The momentum of batch norm's running statistics, for a layer whose own one is `own`.

    The reference keeps 0.9997 of them in each iteration (momentum 0.0003). Its 30,000 iterations
    are 9 times the averaging time, 1 / momentum. After a run of 150, the statistics would still be
    96 % those of the start. So a shorter run gets a larger momentum: 9 / iterations.
    """
    if config.batch_norm_momentum is not None:
        return config.batch_norm_momentum
    return momentum_of(config.iterations * config.accumulate, own)


def momentum_of(updates: int, own: float) -> float:
    """The momentum for this number of updates of the running statistics; see `norm_momentum`."""
    return max(own, min(FASTEST_NORM, 30_000 * 0.0003 / updates))


def initialise(net: DeepLabV3Plus, init: str, part: InitPart) -> None:
    """Load the weights to start from; raises CheckpointError saying how to get them."""
    try:
        pretrained.initialise(net, init, part)
    except CheckpointError as error:
        raise CheckpointError(
            f"init={init!r}: {error}; train or convert these weights first (docs/training.md), "
            "or name others with --set init=..."
        ) from error


def parameter_groups(net: DeepLabV3Plus, config: Recipe) -> list[dict[str, Any]]:
    """Parameter groups of backbone and head, each with and without weight decay.

    As in the reference, batch norm, biases and depthwise kernels have no weight decay.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[1] > 1)
        groups.setdefault((name.startswith("backbone."), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "rate": config.rate * (1.0 if backbone else config.head_multiplier),
        }
        for (backbone, decayed), parameters in groups.items()
    ]


def freeze(net: nn.Module, names: list[str]) -> None:
    """Freeze weights and batch-norm statistics of the named modules and of all inside them.

    Raises RecipeError if a name is not the name of a module.
    """
    modules = dict(net.named_modules())
    for part in names:
        if part not in modules:
            raise RecipeError(
                f"frozen: the network has no part {part!r}; it has "
                + ", ".join(name for name in modules if name and name.count(".") < 2)
            )
        modules[part].requires_grad_(False)
        for norm in batch_norms(modules[part]):
            norm.eval()


def keep_depthwise_in_fp32(net: nn.Module) -> None:
    """Take depthwise convolutions out of CPU autocast.

    oneDNN's bfloat16 gradient of a depthwise convolution is up to four times
    slower than its float32 one; every other layer is faster in bfloat16.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.forward = _in_fp32(module.forward)  # type: ignore[method-assign]


def _in_fp32(forward: Any) -> Any:
    def wrapped(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float()).to(x.dtype)  # type: ignore[no-any-return]

    return wrapped


def start(config: Recipe, world: World, teachers: Teachers | None = None) -> Run:
    """A run at iteration 0; `teachers` are those that give hints."""
    net = build(config)
    hints = None
    if teachers is not None and config.hints:
        hints = Hints(net, teachers.each, config.hints)
        net.add_module(HINTS, hints)
    net = net.to(world.device).train()
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if world.device.type == "cpu":
        depthwise.speed_up(net)
        if config.precision == "bf16":
            keep_depthwise_in_fp32(net)
    distributed.synchronise_batch_norm(net, world)
    if config.freeze_batch_norm:
        for norm in batch_norms(net):
            norm.eval()
    freeze(net, config.frozen)
    if config.checkpointing:
        recompute.units(net.backbone)
    if config.compile:
        net.compile(backend=COMPILER)  # in place: the names in the state dict stay
    groups = parameter_groups(net, config)
    if not groups:
        raise RecipeError(f"frozen={config.frozen} leaves nothing to train: freeze fewer parts")
    run = first_run(net, groups, config, world)
    run.hints = hints
    return run


def first_run(
    net: nn.Module, groups: list[dict[str, Any]], config: BaseRecipe, world: World
) -> Run:
    """A run at iteration 0 for a network with the parameter groups `groups`."""
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        betas = (config.momentum, ADAM_SECOND)
        optimizer = torch.optim.AdamW(groups, lr=config.rate, betas=betas)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=config.rate, momentum=config.momentum, nesterov=config.nesterov
        )
    average = {k: v.clone() for k, v in net.state_dict().items()} if config.ema_decay else None
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
    kept = config.model_dump(mode="json")
    return Run(net, optimizer, world.wrap(net), average, scaler, recipe=kept)
