"""Choose the photos to label next: `python -m model.rank CHECKPOINT PHOTOS`.

`margin`, `entropy` and `disagreement` put the photos first of which the network is least certain;
`diverse` puts those first that differ most from each other. `uncertainty` is `margin`.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from model import arguments, checkpoint, memory
from model.checkpoint import CheckpointError
from model.curate.uncertainty import feature, measured, spread
from model.data.pairs import DatasetError
from model.data.photo import PhotoFile, shown
from model.data.photo_list import find_photos
from model.evaluate.report import picture
from model.network.deeplab import DeepLabV3Plus
from pixels.bands import Samples

BY = ("uncertainty", "margin", "entropy", "disagreement", "diverse")
THUMBNAIL = 200  # pixels
PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1rem }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: .8rem }}
figure {{ margin: 0 }} figcaption {{ overflow-wrap: anywhere }}
</style></head><body><h1>{title}</h1><main>
{figures}</main></body></html>
"""

Ranked = list[tuple[Path, float]]  # photos and their figures, in the order to label them


def rank(
    net: DeepLabV3Plus, photos: Sequence[Path], by: str, count: int | None = None
) -> tuple[Ranked, list[str]]:
    """Return the photos in the order to label them, and those that cannot be read.

    The figure of `diverse` is the place in the order, from 1.
    """
    kind = "margin" if by == "uncertainty" else by
    figures, read, problems = [], [], []
    for path in tqdm(photos, unit="photo", disable=not sys.stderr.isatty()):
        photo = PhotoFile(path, net.config.samples)
        try:
            figures.append(feature(net, photo) if kind == "diverse" else measured(net, photo, kind))
        except OSError as error:
            problems.append(str(error))
            continue
        read.append(path)
    if not read:
        return [], problems
    if kind == "diverse":
        order = spread(np.stack(figures).astype(np.float32), count or len(read))
        return [(read[at], float(place)) for place, at in enumerate(order, start=1)], problems
    found = sorted(
        zip(read, map(float, figures), strict=True), key=lambda each: (-each[1], each[0])
    )
    return found[:count], problems


def write(ranked: Ranked, by: str, figures: str, out: Path) -> list[Path]:
    """Write rank.csv, photos.txt (paths, the first to label first) and rank.html."""
    out.mkdir(parents=True, exist_ok=True)
    table, names, sheet = out / "rank.csv", out / "photos.txt", out / "rank.html"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["rank", "photo", by])
        writer.writerows(
            [n, str(path), f"{figure:.5f}"] for n, (path, figure) in enumerate(ranked, 1)
        )
    names.write_text("".join(f"{path}\n" for path, _ in ranked), encoding="utf-8")
    title = html.escape(f"{len(ranked)} photos by {by}")
    sheet.write_text(PAGE.format(title=title, figures=figures), encoding="utf-8")
    return [table, names, sheet]


def thumbnails(ranked: Ranked, base: Path, samples: Samples) -> str:
    """The figures of the page as HTML; names are relative to `base`."""
    return "".join(
        _figure(number, path, figure, base, samples)
        for number, (path, figure) in enumerate(ranked, start=1)
    )


def _figure(number: int, path: Path, figure: float, base: Path, samples: Samples) -> str:
    pixels, _ = PhotoFile(path, samples).reduced(THUMBNAIL)
    image = shown(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2.0)
    name = path.relative_to(base) if path.is_relative_to(base) else path
    caption = f"{number}. {html.escape(str(name))}<br>{figure:.3f}"
    return (
        f"<figure>{picture(_jpeg(image), 'jpeg', '')}<figcaption>{caption}</figcaption></figure>\n"
    )


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.rank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.rank runs/mine/model photos -o next --by diverse -n 100",
    )
    arguments.add_checkpoint(p)
    p.add_argument(
        "photos",
        type=Path,
        metavar="PHOTOS",
        help="folder of photos, or a text file that lists them",
    )
    p.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the results"
    )
    p.add_argument("--by", choices=BY, default="uncertainty", help="order (default: uncertainty)")
    p.add_argument(
        "-n",
        "--count",
        type=arguments.positive,
        metavar="N",
        help="photos to choose (default: all)",
    )
    p.add_argument(
        "--shown",
        type=arguments.count,
        default=200,
        metavar="N",
        help="photos to show on the page (default: 200)",
    )
    p.add_argument("--json", action="store_true", help="print the order as JSON")
    arguments.add_device(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Write the results; 0 if every photo could be read, 1 if not, 2 for wrong usage."""
    args = parser().parse_args(argv)
    try:
        photos = find_photos(args.photos)
        net = checkpoint.load_on(args.device, args.checkpoint)
        print(f"predicting {len(photos)} photos", file=sys.stderr, flush=True)
        with memory.advising(arguments.SMALLER_CROP):
            ranked, problems = rank(net, photos, args.by, args.count)
        base = args.photos if args.photos.is_dir() else args.photos.parent
        figures = thumbnails(ranked[: args.shown], base, net.config.samples)
        written = write(ranked, args.by, figures, args.out)
    except (CheckpointError, DatasetError, memory.ShortageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if args.json:
        print(json.dumps([{"photo": str(path), args.by: figure} for path, figure in ranked]))
    else:
        print(f"{len(ranked)} photos: {', '.join(map(str, written))}")
    return int(bool(problems))


script = memory.keeping_freed(main)
