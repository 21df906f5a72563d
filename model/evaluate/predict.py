"""Write the label maps of photos: `python -m model.predict CKPT IMAGES...`.

A photo smaller than the crop size is padded with the mean pixel. A larger one is shrunk
to it as the service does, or runs with --whole as it is, or with --sliding in overlapping
windows of the crop size whose probabilities are averaged. With several scales or --flip,
the class probabilities of all passes are averaged. `model/network/inference.py` has the
details.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from model import arguments, checkpoint, memory
from model.checkpoint import Card, CheckpointError
from model.data.dataset import find
from model.data.photo import PhotoFile
from model.evaluate import submission
from model.evaluate.pictures import colored, overlaid
from model.evaluate.submission import SubmissionError
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import Labels, Photo, Source
from model.network.results import NetFacts, Passes, label_map
from postprocess.errors import InvalidOption, TooLarge
from postprocess.grid import Placing
from postprocess.results import options
from postprocess.results.facts import Facts
from postprocess.results.outputs import Wish

Target = tuple[Path, Path]  # a photo and its output
EXAMPLES = """\
examples:
  python -m model.predict runs/light/model photos/*.jpg -o masks --overlay
  python -m model.predict runs/light/model --submission voc --data DATA --split test -o voc-test
"""


def targets(images: Sequence[Path], out: Path) -> Iterator[Target]:
    """Each image with the stem of its outputs.

    Raises ValueError if two would share one, or if an image would be written over.
    """
    seen: dict[str, Path] = {}
    for image in images:
        if image.stem in seen:
            raise ValueError(f"{image} and {seen[image.stem]} would both become {image.stem}.png")
        if image.suffix.lower() == ".png" and image.parent.resolve() == out.resolve():
            raise ValueError(f"{image} would be replaced by its mask; name another folder by -o")
        seen[image.stem] = image
    return ((image, out / stem) for stem, image in seen.items())


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.predict",
        description="Write the class-id mask (palette PNG) of each photo.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    arguments.add_checkpoint(p)
    p.add_argument("images", nargs="*", type=Path, metavar="PHOTO", help="photos to segment")
    p.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the masks"
    )
    arguments.add_passes(p)
    arguments.add_windows(p)
    p.add_argument("--overlay", action="store_true", help="also write PHOTO_overlay.jpg")
    add_refinement(p)
    arguments.add_device(p)
    server = p.add_argument_group("for a test server")
    server.add_argument(
        "--submission",
        choices=sorted(submission.CLASSES),
        help="write DIR/results in the layout of this test server, and the archive to upload",
    )
    server.add_argument(
        "--data", type=Path, metavar="DIR", help="segment this data set instead of PHOTOs"
    )
    server.add_argument(
        "--split", default="test", help="part of --data, also named in the archive (default: test)"
    )
    return p


def add_refinement(p: argparse.ArgumentParser) -> None:
    """Add the options that the service has by the same names."""
    add = p.add_argument_group("clean masks, as in the service").add_argument
    kept = "only these classes, by name or id, separated by commas (default: all)"
    add("--classes", metavar="LIST", help=kept)
    sure = "pixels below this confidence get no class: 0.6, or person:0.8,car:0.5 (default: 0)"
    add("--min-confidence", metavar="P", help=sure)
    best = "take the calibrated confidence for classes that --min-confidence does not name"
    add("--threshold", choices=("best",), help=best)
    what = "what these pixels become: the class background, or void (default: %(default)s)"
    add("--below", choices=("background", "void"), default="background", help=what)
    edges = "make labels follow the edges of the photo at its own size"
    add("--smooth", action="store_true", help=edges)
    small = "give smaller regions the class around them: pixels, or 0.1%% of the photo (default: 0)"
    add("--min-area", metavar="AREA", default="0", help=small)
    holes = "fill holes of up to this area inside one class with that class (default: 0)"
    add("--fill-holes", metavar="AREA", default="0", help=holes)


def photos(args: argparse.Namespace) -> list[Path]:
    """The photos of a command line, in order; raises DatasetError or ValueError."""
    if args.overlay and args.submission:
        raise ValueError("--overlay is not part of a submission: write the overlays in another run")
    if args.data is not None and args.submission and not args.images:
        return [pair.image for pair in find(args.submission, args.data, args.split).pairs]
    if args.data is not None or not args.images:
        raise ValueError("give photos, or --submission with --data DIR")
    return list(args.images)


def write(labels: Labels, image: Photo | None, card: Card, target: Path) -> None:
    """Write the mask of a photo, and with its `image` the overlay, under the stem `target`."""
    colored(labels, card.palette).save(target.with_name(f"{target.name}.png"))
    if image is not None:
        overlaid(image, labels, card).save(target.with_name(f"{target.name}_overlay.jpg"))


def chosen(args: argparse.Namespace, facts: Facts) -> Wish:
    """Return the changes to the masks that the command line requests; raises InvalidOption."""
    return options.wish(
        facts,
        None,
        classes=args.classes,
        min_confidence=args.min_confidence,
        threshold=args.threshold,
        below=args.below,
        smooth=args.smooth,
        min_area=args.min_area,
        fill_holes=args.fill_holes,
    )


def described(path: Path, card: Card) -> NetFacts:
    """Describe a checkpoint as `NetFacts.of` does, without reading its weights."""
    placing: Placing = "corners" if card.model.align_corners else "centres"
    return NetFacts(card.classes, card.palette, placing, checkpoint.read_calibration(path))


def predictor(
    net: DeepLabV3Plus, args: argparse.Namespace, overlap: float | None
) -> Callable[[Source], Labels]:
    """A function that predicts a photo as the options of the command line say."""
    wish = chosen(args, NetFacts.of(net))
    passes = Passes(tuple(args.scales), args.flip, overlap=overlap, whole=args.whole)
    return lambda source: label_map(net, source, wish, passes)


def run(
    net: DeepLabV3Plus,
    card: Card,
    pairs: Sequence[Target],
    args: argparse.Namespace,
    overlap: float | None,
) -> int:
    """Predict and write all photos; returns how many could not be read."""
    failures = 0
    predict = predictor(net, args, overlap)
    for path, target in tqdm(pairs, disable=not sys.stderr.isatty()):
        source = PhotoFile(path, net.config.samples)
        try:
            labels = predict(source)
            image = source.pixels if args.overlay else None
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            failures += 1
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if args.submission:
            submission.picture(args.submission, labels).save(target)
        else:
            write(labels, image, card, target)
    return failures


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_intermixed_args(argv)  # IMAGES may follow options
    server, overlap = args.submission, arguments.overlap(p, args)
    try:
        pairs = list(targets(photos(args), args.out))
        if server:
            places = [submission.place(server, photo, args.split) for photo, _ in pairs]
            pairs = [(pair[0], args.out / at) for pair, at in zip(pairs, places, strict=True)]
    except ValueError as error:
        p.error(str(error))
    try:
        card = checkpoint.read_card(args.checkpoint)
        if server:
            submission.check(server, card.classes)
        chosen(args, described(args.checkpoint, card))  # before the weights are read
        net = checkpoint.load_on(args.device, args.checkpoint, args.output_stride)
        args.out.mkdir(parents=True, exist_ok=True)
        if server:
            submission.archive(server, args.out).unlink(missing_ok=True)  # of an earlier run
        with memory.advising(arguments.LESS_MEMORY):
            if run(net, card, pairs, args, overlap):
                return 1
        if server:
            print(f"wrote {submission.pack(server, args.out, places)}: {len(places)} results")
    except (
        CheckpointError,
        SubmissionError,
        InvalidOption,
        TooLarge,
        memory.ShortageError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


script = memory.keeping_freed(main)
