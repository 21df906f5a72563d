"""Average the weights of several trainings: `python -m model.average CKPT CKPT -o OUT`.

Trainings of one network that start from the same weights and differ in their samples
often end in one basin, where the mean of their weights is better than each of them
("model soup", Wortsman et al. 2022). The mean of trainings with different starts is
useless. Evaluate the result before you use it.

--half stores convolution kernels as float16, which halves the file; they are float32
again when loaded. It also works on a single checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model import checkpoint
from model.checkpoint import Card, CheckpointError

KERNEL = 4  # dimensions of a convolution's weight

Weights = dict[str, Tensor]


def mean(parts: Sequence[Weights]) -> Weights:
    """The mean of each tensor, summed in float64; integer counters are the first network's.

    Raises CheckpointError where names or shapes differ.
    """
    first = parts[0]
    for other in parts[1:]:
        if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in other.items()}:
            raise CheckpointError(
                "the checkpoints hold different networks: name trainings of one network"
            )
    return {
        name: torch.stack([part[name].double() for part in parts]).mean(0).float()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def halve(weights: Weights) -> Weights:
    """Convert convolution kernels to float16; batch norm and biases stay float32.

    Raises CheckpointError where a kernel has values that float16 cannot hold.
    """
    halved = {k: v.half() if v.ndim == KERNEL else v for k, v in weights.items()}
    for name, tensor in halved.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} has values beyond float16: leave out --half")
    return halved


def card_of(names: Sequence[str]) -> Card:
    """The first checkpoint's card, naming all trainings; raises CheckpointError if they differ."""
    cards = [checkpoint.read_card(name) for name in names]
    for name, card in zip(names, cards, strict=True):
        if (card.model, card.classes) != (cards[0].model, cards[0].classes):
            raise CheckpointError(f"{name} has another network or other classes than {names[0]}")
    if len(cards) == 1:
        return cards[0].model_copy(update={"metrics": {}})
    return cards[0].model_copy(
        update={
            "training": {"mean_of": [card.training for card in cards]},
            "metrics": {},
            "source": f"mean of {len(cards)} trainings: {'; '.join(card.source for card in cards)}",
        }
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.average",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.average runs/a/model runs/b/model -o runs/mean/model",
    )
    p.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CKPT",
        help="checkpoints to average: NAME of NAME.safetensors and NAME.json",
    )
    p.add_argument(
        "-o", "--out", type=Path, required=True, metavar="CKPT", help="checkpoint to write"
    )
    p.add_argument("--half", action="store_true", help="store convolution kernels as float16")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        card = card_of(args.checkpoints)
        weights = mean([checkpoint.load(name).state_dict() for name in args.checkpoints])
        path = checkpoint.save(args.out, halve(weights) if args.half else weights, card)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {path}")
    return 0
