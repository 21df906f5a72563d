"""Get, check, import and export data sets: `python -m model.data --help`."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from model.data.check import check, convert
from model.data.dataset import DATASETS, DatasetError, find
from model.data.exchange.command import EXPORT_EXAMPLES, IMPORT_EXAMPLES, add_export, add_import
from model.data.folder import DESCRIPTION
from model.data.guess import IMAGE_FOLDER, guess
from model.data.imagefolder import FolderReport, check_images
from model.data.prepare import SOURCES, prepare
from model.data.report import Report
from model.data.shapes import RECIPE_FILE
from pixels.bands import PHOTO, Samples


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m model.data", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True)
    _add_check(
        commands.add_parser(
            "check",
            help="read every image and mask and report what is wrong",
            description="Read every image and mask of a data set and report what is wrong.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="examples: python -m model.data check DATA --dataset voc --split trainaug\n"
            "          python -m model.data check photos --convert photos/ids/train",
        )
    )
    _add_prepare(
        commands.add_parser(
            "prepare",
            help="say how to get a data set; with --data, unpack or generate it",
            description="Say how to get a data set; with --data, unpack or generate it.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="examples: python -m model.data prepare voc\n"
            "          python -m model.data prepare voc --archives Downloads --data DATA",
        )
    )
    audit = "find wrong labels with a network; its options: python -m model.audit --help"
    commands.add_parser("audit", help=audit, add_help=False)
    add_import(
        commands.add_parser(
            "import",
            help="make a data set of a label tool's files",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=IMPORT_EXAMPLES,
        )
    )
    add_export(
        commands.add_parser(
            "export",
            help="write a data set as a label tool's file",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=EXPORT_EXAMPLES,
        )
    )
    return p


def _add_check(p: argparse.ArgumentParser) -> None:
    p.add_argument("root", type=Path, metavar="DIR", help="folder of the data set")
    p.add_argument(
        "--dataset", choices=[*DATASETS, IMAGE_FOLDER], help="kind of data set (default: guessed)"
    )
    p.add_argument("--split", default="train", help="part of the data set (default: train)")
    p.add_argument(
        "--convert",
        type=Path,
        metavar="OUT",
        help="write every mask as class ids into OUT, translating known colours, and check those",
    )
    p.add_argument(
        "--crop",
        type=int,
        default=513,
        metavar="N",
        help="crop size in pixels to compare the photos' sizes with (default: 513)",
    )
    p.add_argument("--json", action="store_true", help="print the report as JSON")
    p.set_defaults(run=run_check)


def _add_prepare(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "set", nargs="?", choices=list(SOURCES), help="data set to prepare (default: list them)"
    )
    p.add_argument("--archives", type=Path, metavar="DIR", help="folder of the downloaded archives")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder to write the data set to")
    p.set_defaults(run=run_prepare)


def main(argv: list[str] | None = None) -> int:
    """Return 0 on success, 1 for a set that a training cannot use, 2 for no such set."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["audit"]:
        return _run_audit(words[1:])
    args = parser().parse_args(words)
    try:
        return int(args.run(args))
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run_audit(words: list[str]) -> int:
    """Run model.audit as a command, because it imports this package and not the other way round."""
    return subprocess.run([sys.executable, "-m", "model.audit", *words], check=False).returncode


def run_check(args: argparse.Namespace) -> int:
    """Check a set and print the report; with --convert, the report of the converted masks."""
    kind = args.dataset or guess(args.root, args.split)
    report: Report | FolderReport
    if kind == IMAGE_FOLDER:
        if args.convert:
            raise DatasetError("--convert: folders of classes have no masks")
        report = check_images(args.root, args.split)
    else:
        report = check(find(kind, args.root, args.split))
        if args.convert:
            report = converted(report, args.convert)
        report.crop = args.crop
    print(json.dumps(report.to_json(), indent=2) if args.json else report.to_text())
    proposes = kind == "folder" and report.usable and not args.json
    if isinstance(report, Report) and proposes and not _is_held_out(kind, args.root, args.split):
        print(f"to train: {training_line(report, args.root)}")
    return 0 if report.usable else 1


def _is_held_out(kind: str, root: Path, split: str) -> bool:
    """Return whether a set has a split `train`, and this is another one."""
    try:
        return split != find(kind, root, "train").split
    except DatasetError:
        return False


def training_line(report: Report, root: Path) -> str:
    """A command that trains on a set of one's own, by its recipe.toml if there is one.

    Otherwise a preset is trained for as many iterations as the photos are good for.
    """
    data = shlex.quote(str(root))
    if (own := root / RECIPE_FILE).is_file():
        return f"python -m model.train {shlex.quote(str(own))} --data {data} --out runs/mine"
    batch = 16  # of the preset
    iterations = max(100, round(50 * len(report.dataset.pairs) / batch))
    # The preset's momentum of 0.02 would leave a shorter run with the statistics of its start.
    short = f" --set batch_norm_momentum={9 / iterations:.2g}" if iterations < 450 else ""
    return (
        f"python -m model.train efficientnet-lite0-voc --data {data} --out runs/mine "
        f"--set dataset=folder --set split={report.dataset.split} "
        f"--set model.num_classes={len(report.dataset.classes)} --set iterations={iterations}"
        f"{_channels(report.dataset.samples)}{short}"
    )


def _channels(samples: Samples) -> str:
    """The options for more than three channels."""
    if samples == PHOTO:
        return ""
    limits = ""
    if samples.range is not None:
        limits = f" --set 'model.sample_range={[*samples.range]}'"
    return f" --set model.channels={samples.channels}{limits}"


def run_prepare(args: argparse.Namespace) -> int:
    """Explain; or unpack and make what a training needs. 1 where its photos are still missing."""
    if args.set is None:
        for name, source in SOURCES.items():
            print(f"{name:12} {source.title}")
        return 0
    if args.data is None:
        if args.archives is not None:
            raise DatasetError("--archives needs --data DIR, the folder to write the data set to")
        print(SOURCES[args.set].guide, end="")
        return 0
    log, ready = prepare(args.set, args.archives, args.data)
    print("\n".join(log))
    return 0 if ready else 1


def converted(report: Report, out: Path) -> Report:
    """Write the masks as class ids and check what was written."""
    masks = {str(pair.mask) for pair in report.dataset.pairs}
    if any(str(out / f"{pair.name}.png") in masks for pair in report.dataset.pairs):
        raise DatasetError(f"--convert {out} would overwrite the masks; name another folder")
    print(f"as they are: {report.verdict() or 'usable'}", file=sys.stderr)
    again = check(convert(report, out))
    if report.dataset.name == "folder":
        print(
            f"{out} holds class ids: set `masks` in {DESCRIPTION} to it, and take `values`, `void` "
            "and `mask_suffix` out",
            file=sys.stderr,
        )
    return again


if __name__ == "__main__":
    sys.exit(main())
