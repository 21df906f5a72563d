"""Move weights between naming schemes and account for every variable.

A converter says, for each convolution with batch norm in our network, where the
source keeps it. A variable of the source that the network does not use is an
error, and so is one that the network needs and the source lacks: a network with
some weights missing would run and segment wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.checkpoint import BackboneCard, Card

SHOWN = 12  # names listed in an error before "and N more"


class ConvertError(ValueError):
    """The source cannot be converted; the message names the variables or options."""


class Converted(NamedTuple):
    """Weights under our names, and the card to write beside them."""

    state: dict[str, Tensor]
    card: Card | BackboneCard


def listed(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def adopt(
    net: nn.Module, name_of: Callable[[str], str], source: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """State dict of `net` from `source`, where `name_of` gives the source's name for a key of ours.

    Batch counters start at zero: published weights have none. Raises ConvertError
    for variables that are missing, left over or of another shape.
    """
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    unused = set(source)
    for key, wanted in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        name = name_of(key)
        if name not in source:
            missing.append(name)
            continue
        unused.discard(name)
        if source[name].shape != wanted.shape:
            raise ConvertError(
                f"{name} has shape {tuple(source[name].shape)}, {key} needs {tuple(wanted.shape)}"
            )
        state[key] = source[name].float().contiguous()
    if missing or unused:
        raise ConvertError(_explain(missing, unused))
    return state


def _explain(missing: Iterable[str], unused: Iterable[str]) -> str:
    parts = [
        f"{len(names)} variables {what}: {listed(names)}"
        for what, names in (("are missing", list(missing)), ("are left over", list(unused)))
        if names
    ]
    return "; ".join(parts)


def summary(converted: Converted) -> str:
    """One line about the network that was found."""
    millions = sum(value.numel() for value in converted.state.values()) / 1e6
    card = converted.card
    if isinstance(card, BackboneCard):
        return f"{card.backbone} without a head, {millions:.2f} M numbers"
    model = card.model
    parts = [
        model.backbone,
        f"{model.num_classes} classes",
        f"output stride {model.output_stride}",
        f"multi-grid {model.multi_grid}",
        f"ASPP rates {model.rates}{' separable' if model.aspp_separable else ''}",
        f"{'with' if model.image_pooling else 'no'} image-level feature",
        f"{'with' if model.decoder else 'no'} decoder{' separable' * model.decoder_separable}",
        f"{millions:.2f} M numbers",
    ]
    return ", ".join(parts)
