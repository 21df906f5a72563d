"""Find wrong labels in a data set: `python -m model.audit CHECKPOINT --data DIR`.

A network predicts every labelled photo. Regions in which it confidently disagrees with the label
come first in a page, a table and a list of photos for the label tool. A network has also learned
the mistakes in its own training labels, so audit a split with a network that was not trained on
it. With --folds N other networks predict: the photos are divided into N parts, and for each part
one is trained on the other parts, with the checkpoint's recipe. The command prints what that costs;
--go starts it.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import html
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from model import arguments, checkpoint, memory
from model.checkpoint import Card, CheckpointError
from model.curate.suspects import Recalls, Suspect, suspects, weighted
from model.data.dataset import Dataset, DatasetError, Pair, read_source
from model.data.loader import LoaderError
from model.data.photo import shown
from model.evaluate.options import open_dataset
from model.evaluate.pictures import overlaid
from model.evaluate.report import jpeg, legend, picture
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import Photo, Source, fitted, nearest, probabilities
from model.train.recipe import RecipeError
from model.train.run import TrainingError

log = logging.getLogger("model.audit")

REFUSALS = (CheckpointError, DatasetError, RecipeError, TrainingError, LoaderError)
KEPT = 1000  # suspects in the table
CANDIDATES = 20_000  # before they are weighted by their classes' recall
PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Suspect labels</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto }}
.row {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem; margin: 1.2rem 0 }}
.row p {{ grid-column: 1 / -1; margin: 0 }} img {{ max-width: 100%; height: auto; display: block }}
.legend span {{ display: inline-block; margin-right: .9rem }}
.legend i {{ display: inline-block; width: .9em; height: .9em; margin-right: .3em }}
</style></head><body><h1>Suspect labels</h1>
<p>{subtitle}: photo, label (void is dark) and prediction, the most suspicious first.</p>
{rows}</body></html>
"""


@dataclass(frozen=True)
class Judge:
    """A network, its description, and the part of the data set to audit with it."""

    net: DeepLabV3Plus
    card: Card
    dataset: Dataset


def full_probabilities(
    net: DeepLabV3Plus, photo: Photo | Source
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return class probabilities at the photo's own size, computed as the service does."""
    image, (width, height) = fitted(photo, net.config.crop_size)
    found = probabilities(net, image)
    rows = nearest(found.shape[1], height)
    return found[:, rows][:, :, nearest(found.shape[2], width)]


def audit(judge: Judge, recalls: Recalls) -> tuple[list[Suspect], list[str]]:
    """Return the worst regions of a split, not weighted yet, and photos that cannot be read.

    What the network recognises is added to `recalls`.
    """
    heap: list[Suspect] = []
    problems = []
    dataset = judge.dataset
    for pair in tqdm(dataset.pairs, unit="photo", disable=not sys.stderr.isatty()):
        try:
            photo, truth = read_source(dataset, pair)
            found = full_probabilities(judge.net, photo)
        except (DatasetError, OSError) as error:
            problems.append(str(error))
            continue
        recalls.add(truth, found.argmax(axis=0).astype(np.uint8))
        for suspect in suspects(pair.name, truth, found):
            heapq.heappush(heap, suspect)
            if len(heap) > CANDIDATES:
                heapq.heappop(heap)
    return heap, problems


def write(found: Sequence[Suspect], judges: Sequence[Judge], out: Path, count: int) -> list[Path]:
    """Write audit.csv, photos.txt (the worst first) and audit.html with `count` regions."""
    dataset = judges[0].dataset
    out.mkdir(parents=True, exist_ok=True)
    table, names, sheet = out / "audit.csv", out / "photos.txt", out / "audit.html"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["photo", "score", "label", "predicted", "pixels", "margin", "box"])
        for each in found:
            label, predicted = dataset.classes[each.label], dataset.classes[each.predicted]
            box = " ".join(map(str, each.box))
            figures = [each.pixels, f"{each.margin:.3f}", box]
            writer.writerow([each.photo, f"{each.score:.4f}", label, predicted, *figures])
    listed = dict.fromkeys(each.photo for each in found)
    names.write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    by_photo = {pair.name: (pair, judge) for judge in judges for pair in judge.dataset.pairs}
    rows = "".join(_rows(found[:count], by_photo))
    subtitle = f"{dataset.name} {dataset.split}, {len(found)} regions"
    sheet.write_text(PAGE.format(subtitle=html.escape(subtitle), rows=rows), encoding="utf-8")
    return [table, names, sheet]


def _rows(found: Sequence[Suspect], by_photo: Mapping[str, tuple[Pair, Judge]]) -> Iterator[str]:
    for rank, each in enumerate(found, start=1):
        yield _row(rank, each, *by_photo[each.photo])


def _row(rank: int, each: Suspect, pair: Pair, judge: Judge) -> str:
    dataset, card = judge.dataset, judge.card
    photo, truth = read_source(dataset, pair)
    predicted = full_probabilities(judge.net, photo).argmax(axis=0).astype(np.uint8)
    maps = truth, predicted
    drawn = [shown(photo.pixels), *(overlaid(photo.pixels, labels, card) for labels in maps)]
    images = "".join(
        picture(jpeg(_framed(image, each)), "jpeg", kind)
        for image, kind in zip(drawn, ("photo", "label", "prediction"), strict=True)
    )
    label, other = dataset.classes[each.label], dataset.classes[each.predicted]
    text = (
        f"{rank}. {html.escape(pair.name)}: labelled <b>{html.escape(label)}</b>, predicted "
        f"<b>{html.escape(other)}</b> ({each.pixels} pixels, margin {each.margin:.2f})"
    )
    colors = legend(card, {each.label, each.predicted})
    return f'<div class="row"><p>{text}</p>{images}{colors}</div>\n'


def _framed(image: Image.Image, suspect: Suspect) -> Image.Image:
    """The picture with a frame around the region."""
    pen = ImageDraw.Draw(image)
    x0, y0, x1, y1 = suspect.box
    width = max(2, image.width // 150)
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=(255, 0, 255), width=width)
    return image


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.audit runs/mine/model --data DIR --split train -o audit",
    )
    arguments.add_checkpoint(p)
    arguments.add_dataset(p, "train")
    p.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the results"
    )
    p.add_argument(
        "--shown",
        type=arguments.count,
        default=50,
        metavar="N",
        help="regions to show on the page (default: 50)",
    )
    p.add_argument("--json", action="store_true", help="print the suspects as JSON")
    add_folds(p)
    arguments.add_device(p)
    return p


def add_folds(p: argparse.ArgumentParser) -> None:
    """The options of cross-validation, which `cross_validated` reads."""
    group = p.add_argument_group("cross-validation")
    add = group.add_argument
    add(
        "--folds",
        type=folds_count,
        metavar="N",
        help="audit each of N parts of the photos with a network trained on the others; prints the "
        "cost and stops, unless --go is given",
    )
    add("--go", action="store_true", help="start the trainings of --folds, or continue them")
    add(
        "--iterations",
        type=arguments.positive,
        metavar="N",
        help="iterations of each training (default: the recipe's)",
    )
    add("--init", metavar="WEIGHTS", help="weights to start from (default: the recipe's)")
    add("--seed", type=int, default=0, help="seed of all random choices (default: 0)")
    add(
        "--workers",
        type=arguments.count,
        default=0,
        metavar="N",
        help="processes that load photos (default: 0, the training's own)",
    )


def folds_count(text: str) -> int:
    """Parse a number of at least 2."""
    value = arguments.positive(text)
    if value < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a part needs others to train on, give 2 or more"
        )
    return value


def judges_of(args: argparse.Namespace) -> list[Judge]:
    """Return the networks, each with its photos to audit; none if only the cost was printed.

    Raises CheckpointError, DatasetError, and what a training raises.
    """
    card = checkpoint.read_card(args.checkpoint)
    dataset = open_dataset(args, card.classes, card.model.samples, card.training.get("dataset"))
    if args.folds:
        return cross_validated(args, card, dataset)
    return [Judge(checkpoint.load_on(args.device, args.checkpoint), card, dataset)]


def cross_validated(args: argparse.Namespace, card: Card, dataset: Dataset) -> list[Judge]:
    """Print the cost; with --go also train a network for each fold, else return none.

    Networks lie in `fold1`, `fold2`... of `args.out`; those that are trained are loaded.
    Raises CheckpointError, DatasetError, and what a training raises.
    """
    from model.curate import folds  # noqa: PLC0415 - the training is not loaded for a plain audit

    config = folds.recipe_of(card, args.iterations)
    if args.init is not None:
        config = config.model_copy(update={"init": args.init or None})
    divided = folds.divide(dataset, args.folds, args.seed, args.data)
    print(folds.cost(config, divided, args.device), file=sys.stderr, flush=True)
    folds.warn_of_start(config)
    if not args.go:
        print("add --go to start", file=sys.stderr)
        return []
    judges = []
    for number, fold in enumerate(divided, start=1):
        log.info(
            "fold %d of %d: %d photos to train on", number, args.folds, len(fold.trained.pairs)
        )
        path = folds.trained(config, fold, args.out / f"fold{number}", args.workers)
        net = checkpoint.load_on(args.device, path)
        judges.append(Judge(net, checkpoint.read_card(path), fold.judged))
    return judges


def audited(judges: Sequence[Judge]) -> tuple[list[Suspect], list[str]]:
    """The worst regions of all networks' photos, worst first, and photos that cannot be read."""
    recalls = Recalls(len(judges[0].dataset.classes))
    answers = [audit(judge, recalls) for judge in judges]
    found = weighted((each for some, _ in answers for each in some), recalls)
    return found[:KEPT], [problem for _, problems in answers for problem in problems]


def main(argv: list[str] | None = None) -> int:
    """Write the results; 0 if every photo could be read, 1 if not, 2 for wrong usage."""
    p = parser()
    args = p.parse_args(argv)
    if args.go and not args.folds:
        p.error("--go starts the trainings of --folds N: give both")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with memory.advising(arguments.SMALLER_CROP):
            judges = judges_of(args)
            if not judges:
                return 0
            found, problems = audited(judges)
            written = write(found, judges, args.out, args.shown)
    except (*REFUSALS, memory.ShortageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([vars(each) for each in found]))
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if not args.json:
        print(f"{len(found)} suspect regions: {', '.join(map(str, written))}")
    return int(bool(problems))


script = memory.keeping_freed(main)
