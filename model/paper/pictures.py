"""Draw figures 5b and 6: `python -m model.paper.pictures DECODER BILINEAR --data DIR -o DIR`.

Takes two checkpoints of the same classes: one with the decoder, and one without it, whose
logits are resized bilinearly. `figure5b.jpg` has a photo, its true mask and both predictions
in each row: the photos where the decoder gains most within 3 pixels of the void label.
`figure6.jpg` has photos and predictions of the first checkpoint: photos of middling to high
IoU, evenly spread, and in the last row its worst ones. IoU is each photo's own, over the
classes in its mask or prediction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from model import arguments, checkpoint, memory
from model.checkpoint import Card, CheckpointError
from model.data.dataset import Dataset, DatasetError, Pair, read_source
from model.data.photo import open_photo
from model.evaluate.metrics import Confusion
from model.evaluate.morphology import dilate
from model.evaluate.options import open_dataset
from model.evaluate.pictures import colored, overlaid
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import Labels, served_map

BAND = 3  # pixels
CELL = (250, 188)  # width and height of a picture on the sheet: VOC's 500 x 375, halved
GAP = 6
TITLE = 20  # height of the line above a column
COLUMNS_5B = ("photo", "true mask", "bilinear upsampling", "decoder")
ACROSS_6 = 3  # photos in a row of figure 6, each beside its prediction
VOID_COLOR = (255, 255, 255)


class Judged(NamedTuple):
    """A photo with both predictions and how good they are."""

    pair: Pair
    truth: Labels
    bilinear: Labels
    decoder: Labels
    gain: float  # of the decoder, in the share of right pixels near the void label
    miou: float  # with the decoder


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.paper.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.paper.pictures model/bundled/efficientnet-lite0-voc "
        "runs/studies/bilinear-0/model --data DATA -o docs/studies",
    )
    p.add_argument("decoder", type=Path, help="checkpoint of a network with the decoder")
    p.add_argument("bilinear", type=Path, help="checkpoint of a network without it")
    p.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder for both pictures"
    )
    arguments.add_dataset(p)
    arguments.add_photos(p, "choose among")
    p.add_argument(
        "--rows",
        type=arguments.positive,
        default=4,
        metavar="N",
        help="rows of each picture (default: 4)",
    )
    arguments.add_device(p)
    return p


def judged(dataset: Dataset, decoder: DeepLabV3Plus, bilinear: DeepLabV3Plus) -> Iterator[Judged]:
    """Predict each photo twice."""
    for pair in tqdm(dataset.pairs, unit="photo", disable=not sys.stderr.isatty()):
        photo, truth = read_source(dataset, pair)
        with_it, without = (served_map(net, photo) for net in (decoder, bilinear))
        confusion = Confusion(len(dataset.classes))
        confusion.add(truth, with_it)
        gain = near_void(truth, with_it) - near_void(truth, without)
        yield Judged(pair, truth, without, with_it, gain, confusion.miou())


def near_void(truth: Labels, labels: Labels) -> float:
    """The share of right pixels within BAND pixels of the void label; 0 without any."""
    void = truth == 255
    band = dilate(void, BAND) & ~void
    return float((truth == labels)[band].mean()) if band.any() else 0.0


def figure_5b(photos: Sequence[Judged], card: Card, rows: int) -> Image.Image:
    """The photos where the decoder gains most near borders."""
    best = sorted(photos, key=lambda seen: seen.gain, reverse=True)[:rows]
    lines = [
        [
            photo_of(seen),
            *(mask(labels, card) for labels in (seen.truth, seen.bilinear, seen.decoder)),
        ]
        for seen in best
    ]
    return sheet(lines, COLUMNS_5B)


def figure_6(photos: Sequence[Judged], card: Card, rows: int) -> Image.Image:
    """Photos of the better half, evenly spread over their IoU, and the worst in the last row."""
    ranked = sorted(photos, key=lambda seen: seen.miou, reverse=True)
    better = ranked[: max(1, len(ranked) // 2)]
    wanted = min(len(better), (rows - 1) * ACROSS_6)
    shown = [better[i * len(better) // wanted] for i in range(wanted)] if wanted else []
    worst = ranked[-ACROSS_6:]
    pictures = [
        [photo_of(seen), overlaid(np.asarray(photo_of(seen)), seen.decoder, card)]
        for seen in [*shown, *worst]
    ]
    lines = [
        [picture for pair in pictures[start : start + ACROSS_6] for picture in pair]
        for start in range(0, len(pictures), ACROSS_6)
    ]
    return sheet(lines, ("photo", "prediction") * ACROSS_6)


def photo_of(seen: Judged) -> Image.Image:
    """The photo of a pair, upright, as RGB."""
    return open_photo(seen.pair.image)


def mask(labels: Labels, card: Card) -> Image.Image:
    """A mask in the palette's colours, void in white."""
    picture = colored(labels, card.palette).convert("RGB")
    white = Image.new("RGB", picture.size, VOID_COLOR)
    return Image.composite(white, picture, Image.fromarray((labels == 255).astype(np.uint8) * 255))


def sheet(lines: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Pictures in rows, each shrunk into a cell, below the titles of the columns."""
    width, height = CELL
    size = (len(titles) * (width + GAP) + GAP, TITLE + len(lines) * (height + GAP) + GAP)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=14)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (width + GAP), 2), title, fill="black", font=font)
    for row, pictures in enumerate(lines):
        for column, picture in enumerate(pictures):
            fitted = picture.copy()
            fitted.thumbnail(CELL, Image.Resampling.LANCZOS)
            left = GAP + column * (width + GAP) + (width - fitted.width) // 2
            top = TITLE + GAP + row * (height + GAP) + (height - fitted.height) // 2
            page.paste(fitted, (left, top))
    return page


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        card, other = (checkpoint.read_card(path) for path in (args.decoder, args.bilinear))
        expect_pair(card, other, args)
        dataset = open_dataset(args, card.classes, card.model.samples, card.training.get("dataset"))
        dataset = dataset.thinned(args.photos or len(dataset.pairs))
        nets = (checkpoint.load_on(args.device, path) for path in (args.decoder, args.bilinear))
        with memory.advising("take fewer --photos, or --device cpu where a GPU is too small"):
            photos = list(judged(dataset, *nets))
        args.out.mkdir(parents=True, exist_ok=True)
        for name, draw in (("figure5b", figure_5b), ("figure6", figure_6)):
            path = args.out / f"{name}.jpg"
            draw(photos, card, args.rows).save(path, quality=88)
            print(f"wrote {path}")
    except (CheckpointError, DatasetError, memory.ShortageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def expect_pair(card: Card, other: Card, args: argparse.Namespace) -> None:
    """Raise CheckpointError unless the first has the decoder and the second none."""
    if not card.model.decoder:
        raise CheckpointError(f"{args.decoder} has no decoder: give the one that has it first")
    if other.model.decoder:
        raise CheckpointError(
            f"{args.bilinear} has the decoder: train one with model.decoder=false"
        )
    if card.classes != other.classes:
        raise CheckpointError(f"{args.decoder} and {args.bilinear} have different classes")


script = memory.keeping_freed(main)


if __name__ == "__main__":
    raise SystemExit(script())
