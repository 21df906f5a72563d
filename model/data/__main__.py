"""Look at a data set before training on it: `python -m model.data check DIR --dataset voc`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model.data.check import check
from model.data.dataset import DATASETS, DatasetError, find


def main(argv: list[str] | None = None) -> int:
    """Return 0 when a training can use every pair, 1 when it cannot, 2 for no such data set."""
    p = argparse.ArgumentParser(prog="python -m model.data", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True)
    c = commands.add_parser("check", help="read every image and mask and report what is wrong")
    c.add_argument("root", type=Path, metavar="DIR", help="the folder that --data names")
    c.add_argument("--dataset", choices=sorted(DATASETS), help="guessed where left out")
    c.add_argument("--split", default="train")
    c.add_argument("--json", action="store_true", help="print the report as JSON")
    args = p.parse_args(argv)
    try:
        dataset = find(args.dataset or guess(args.root), args.root, args.split)
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = check(dataset)
    print(json.dumps(report.to_json(), indent=2) if args.json else report.to_text())
    return 0 if report.usable else 1


def guess(root: Path) -> str:
    """Name the kind of data set below `root` by the folder that only that kind has."""
    marks = {"folder": "dataset.toml", "voc": "VOCdevkit/VOC2012", "camvid": "CamVid"}
    found = [name for name, mark in marks.items() if (root / mark).exists()]
    if len(found) != 1:
        raise DatasetError(f"{root} holds {' and '.join(found) or 'no known set'}; give --dataset")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
