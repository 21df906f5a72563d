"""Spoil labels on purpose and count how many `model.audit` finds: a study of its ranking.

    python -m model.curate.spoiled CHECKPOINT --data DIR --split val --photos 300
    python -m model.curate.spoiled CHECKPOINT --data DIR --split train --folds 3 -o spoiled --go

A share of the photos gets one wrong label each: an object of another class, an object that is
background, or an object's box in place of its outline. The audit then ranks the regions of all
photos. A region is a hit if at least half of it is spoiled. Labels that were wrong before count
as misses, so the precision is a lower bound.

With --folds the networks of the audit are trained on spoiled labels too, as in real use: each on
the other parts of the photos, by the checkpoint's recipe. Give --init imagenet if the recipe starts
from weights that were trained on the right labels of these photos.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model import arguments, checkpoint, memory
from model.checkpoint import Card
from model.curate.audit import REFUSALS, Judge, add_folds, audited, cross_validated
from model.curate.suspects import Suspect
from model.data.dataset import VOID, Dataset, DatasetError, Pair, find, read_mask
from model.data.guess import choose
from model.data.pairs import write_mask
from model.evaluate.evaluation import check_classes

KINDS = ("another class", "dropped", "box")
SMALLEST = 0.01  # share of the photo; smaller objects are ignored
TOP = 50  # regions; the audit's page shows as many

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Spoiled:
    """A wrong label that was made on purpose."""

    kind: str
    before: Labels  # (H, W)
    after: Labels

    @property
    def changed(self) -> NDArray[np.bool_]:
        """The pixels whose label is wrong now."""
        return np.asarray(self.before != self.after)


def objects(labels: Labels) -> Iterator[NDArray[np.bool_]]:
    """Connected regions of a class other than 0 that are large enough to be noticed."""
    for label in np.unique(labels[(labels != VOID) & (labels != 0)]).tolist():
        numbered, count = ndimage.label(labels == label)
        sizes = np.bincount(numbered.ravel())
        for number in range(1, count + 1):
            if sizes[number] >= SMALLEST * labels.size:
                yield numbered == number


def spoil(labels: Labels, kind: str, classes: int, rng: np.random.Generator) -> Spoiled | None:
    """Make one label wrong; None where no object can be spoiled so, or the change is too small."""
    found = list(objects(labels))
    if not found:
        return None
    region = found[int(rng.integers(len(found)))]
    after = labels.copy()
    label = int(labels[region][0])
    if kind == "another class":
        others = [c for c in range(1, classes) if c != label]
        if not others:
            return None
        after[region] = rng.choice(others)
    elif kind == "dropped":
        after[region] = 0
    else:
        (box,) = ndimage.find_objects(region.astype(np.int8))
        inside = after[box]
        inside[inside == 0] = label
    result = Spoiled(kind, labels, after)
    return result if result.changed.sum() >= SMALLEST * labels.size else None


def first_possible(
    labels: Labels, number: int, classes: int, rng: np.random.Generator
) -> Spoiled | None:
    """Spoil by the kind whose turn it is, or by the next one that this photo allows."""
    for step in range(len(KINDS)):
        spoiled = spoil(labels, KINDS[(number + step) % len(KINDS)], classes, rng)
        if spoiled is not None:
            return spoiled
    return None


def spoil_dataset(
    dataset: Dataset, share: float, seed: int, folder: Path
) -> tuple[Dataset, dict[str, Spoiled]]:
    """The data set with a share of its masks spoiled, and the wrong labels by photo."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(dataset.pairs))
    wanted = round(share * len(dataset.pairs))
    pairs: list[Pair] = list(dataset.pairs)
    made: dict[str, Spoiled] = {}
    for index in chosen:
        if len(made) == wanted:
            break
        pair = dataset.pairs[index]
        labels = read_mask(pair.mask, classes=len(dataset.classes), void=dataset.void)
        spoiled = first_possible(labels, len(made), len(dataset.classes), rng)
        if spoiled is None:
            continue
        path = folder / f"{index}.png"
        write_mask(path, spoiled.after, dataset.palette)
        pairs[index] = replace(pair, mask=path)
        made[pair.name] = spoiled
    return replace(dataset, pairs=tuple(pairs), void=VOID), made


def is_hit(suspect: Suspect, made: dict[str, Spoiled]) -> bool:
    """Whether at least half of a region's pixels are spoiled."""
    spoiled = made.get(suspect.photo)
    if spoiled is None:
        return False
    left, top, right, bottom = suspect.box
    box = (slice(top, bottom), slice(left, right))
    wrong = spoiled.changed[box] & (spoiled.after[box] == suspect.label)
    return bool(2 * wrong.sum() >= suspect.pixels)


def figures(found: Sequence[Suspect], made: dict[str, Spoiled], top: int = TOP) -> dict[str, Any]:
    """Precision among the first `top` regions, and the share of each kind that they show."""
    first = found[:top]
    seen = {each.photo for each in first if is_hit(each, made)}
    kinds = {
        kind: {
            "spoiled": sum(each.kind == kind for each in made.values()),
            "found": sum(made[name].kind == kind for name in seen),
        }
        for kind in KINDS
    }
    hits = sum(is_hit(each, made) for each in first)
    return {
        "top": len(first),
        "precision": round(hits / max(1, len(first)), 3),
        "spoiled_photos": len(made),
        "kinds": kinds,
    }


def judges_of(args: argparse.Namespace, card: Card, dataset: Dataset) -> list[Judge]:
    """The networks that audit; with --folds none if only the cost was printed.

    Raises CheckpointError, DatasetError, and what a training raises.
    """
    if args.folds:
        return cross_validated(args, card, dataset)
    return [Judge(checkpoint.load_on(args.device, args.checkpoint), card, dataset)]


def study(args: argparse.Namespace, masks: Path) -> dict[str, Any]:
    """Spoil, audit and count; empty if only the cost of --folds was printed.

    Raises CheckpointError, DatasetError, and what a training raises.
    """
    card = checkpoint.read_card(args.checkpoint)
    kind = choose(args.dataset, args.data, card.training.get("dataset"))
    right = evenly(find(kind, args.data, args.split), args.photos)
    check_classes(card.classes, right)
    dataset, made = spoil_dataset(right, args.share, args.seed, masks)
    judges = judges_of(args, card, dataset)
    if not judges:
        return {}
    found, problems = audited(judges)
    if problems:
        raise DatasetError(problems[0])
    setting = {"share": args.share, "seed": args.seed, "folds": args.folds or 0}
    return {"photos": len(dataset.pairs), **setting, **figures(found, made, args.top)}


def show(result: dict[str, Any]) -> str:
    """The figures as text."""
    kinds = ", ".join(f"{k} {v['found']} of {v['spoiled']}" for k, v in result["kinds"].items())
    return (
        f"{result['photos']} photos, {result['spoiled_photos']} spoiled\n"
        f"precision at {result['top']}: {result['precision']:.2f}\nfound among them: {kinds}"
    )


def evenly(dataset: Dataset, count: int | None) -> Dataset:
    """`count` pairs at even distances through the split, or all."""
    pairs = dataset.pairs
    if count is not None and count < len(pairs):
        places = np.linspace(0, len(pairs) - 1, count).round().astype(int)
        pairs = tuple(pairs[at] for at in places)
    return replace(dataset, pairs=pairs)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.curate.spoiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "checkpoint", help="checkpoint to audit with: NAME of NAME.safetensors and NAME.json"
    )
    arguments.add_dataset(p)
    p.add_argument(
        "--photos", type=arguments.positive, metavar="N", help="photos to audit (default: all)"
    )
    p.add_argument(
        "--share", type=float, default=0.25, help="photos to spoil, 0 to 1 (default: 0.25)"
    )
    p.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="folder for the masks and networks of --folds"
    )
    p.add_argument(
        "--top",
        type=arguments.positive,
        default=TOP,
        metavar="N",
        help=f"regions to look at (default: {TOP})",
    )
    p.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_folds(p)
    arguments.add_device(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """0, or 2 where checkpoint or data cannot be used."""
    p = parser()
    args = p.parse_args(argv)
    if not 0 < args.share <= 1:
        p.error(f"--share {args.share}: give a number above 0, at most 1")
    if args.folds and args.out is None:
        p.error("--folds trains networks: give -o DIR")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as folder:
            masks = Path(folder) if args.out is None else args.out / "masks"
            masks.mkdir(parents=True, exist_ok=True)
            result = study(args, masks)
    except (*REFUSALS, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not result:
        return 0
    print(json.dumps(result, indent=2) if args.json else show(result))
    return 0


script = memory.keeping_freed(main)


if __name__ == "__main__":
    raise SystemExit(script())
