"""Adjust a checkpoint to how often classes occur where it is used: `python -m model.prior`.

A network learns how common each class is among its training samples. If the photos it
will see show the classes more or less often, its probabilities are off by the ratio of
the two (Saerens, Latinne and Decaestecker 2002). This command adds the logarithm of that
ratio to the classifier's bias. --shares is a TOML file with the share of photos that show
each class: `cat = 0.09`.

--margin lowers the background's logit further. The most probable label makes the fewest
pixels wrong, but that does not maximise the IoU: the best threshold for an object is half
its Dice coefficient, not one half (Lipton, Elkan and Naryanaswamy 2014). At an IoU of 0.55,
a Dice of 0.71, that is 0.355, and log(0.645 / 0.355) = 0.6.

Other weights are unchanged. Evaluate the result before you use it.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model import arguments, checkpoint
from model.checkpoint import Card, CheckpointError
from model.data.dataset import DatasetError
from model.data.loader import balanced_weights, pixel_counts
from model.evaluate.options import open_dataset
from model.text import TextError, read_text

BIAS = "logits.bias"


class SharesError(ValueError):
    """The file of shares is missing, or does not fit the classes."""


def read_shares(path: Path, classes: Sequence[str]) -> dict[str, float]:
    """Read the share of photos that show each class but the background; raises SharesError."""
    try:
        table = tomllib.loads(read_text(path))
    except (OSError, TextError, tomllib.TOMLDecodeError) as error:
        raise SharesError(f"{path} cannot be read as TOML: {error}") from None
    wanted = set(classes[1:])
    if table.keys() != wanted:
        missing, unknown = sorted(wanted - table.keys()), sorted(table.keys() - wanted)
        raise SharesError(
            f"{path}: missing {missing}, unknown {unknown}: one line per object class"
        )
    wrong = {name: value for name, value in table.items() if not _is_share(value)}
    if wrong:
        raise SharesError(f"{path}: {wrong}: give shares of photos, above 0 and up to 1")
    return table


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def seen(counts: NDArray[np.int64], sampling: str) -> NDArray[np.float64]:
    """Share of training samples whose photo shows each class, (K,), from pixels (N, K)."""
    weights = balanced_weights(counts) if sampling == "balanced" else np.ones(len(counts))
    return np.asarray((counts > 0).T @ (weights / weights.sum()))


def shifts(
    classes: Sequence[str], trained: NDArray[np.float64], shares: Mapping[str, float], margin: float
) -> NDArray[np.float64]:
    """The amounts to add to the classes' logits, (K,); the first class is the background.

    Raises SharesError for a class that was never seen in training.
    """
    absent = [name for name, share in zip(classes, trained, strict=True) if not share]
    if absent:
        raise SharesError(f"no training photo shows {absent}: their logits cannot be adjusted")
    target = np.array([shares[name] for name in classes[1:]])
    return np.concatenate([[-margin], np.log(target / trained[1:])])


def shifted(card: Card, found: NDArray[np.float64], note: dict[str, object]) -> Card:
    """The card of the adjusted checkpoint; it records what was added to the biases."""
    training = card.training | {"prior": note | {"added": [round(float(x), 4) for x in found]}}
    return card.model_copy(update={"training": training, "metrics": {}})


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.prior",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.prior runs/light/model -o runs/fitted/model "
        "--data DATA --shares shares.toml",
    )
    arguments.add_remade(p)
    p.add_argument(
        "--shares",
        type=Path,
        required=True,
        metavar="FILE",
        help="TOML file with lines `class = share`",
    )
    p.add_argument(
        "--margin", type=float, default=0.0, help="logits to take off the background (default: 0)"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        card = checkpoint.read_card(args.checkpoint)
        classes = card.classes
        shares = read_shares(args.shares, classes)
        args.split = args.split or card.training.get("split", "trainaug")
        dataset = open_dataset(args, classes, card.model.samples, card.training.get("dataset"))
        found = shifts(classes, seen(pixel_counts(dataset), args.sampling), shares, args.margin)
        state = checkpoint.load(args.checkpoint).state_dict()
        state[BIAS] = state[BIAS] + torch.from_numpy(found).to(state[BIAS])
        note: dict[str, object] = {"shares": shares, "margin": args.margin}
        path = checkpoint.save(args.out, state, shifted(card, found, note))
    except (SharesError, CheckpointError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in zip(classes, found, strict=True):
        print(f"{name:16} {value:+.2f}")
    print(f"wrote {path}")
    return 0
