"""`python -m model.data import` and `export`: their options."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from annotations.draw import ORDERS
from annotations.errors import AnnotationError, Notes
from annotations.formats import READERS
from annotations.options import add_writing, writing
from annotations.writers import WRITERS
from model.data.dataset import DATASETS, find
from model.data.exchange.classes import AS_VOID
from model.data.exchange.exporting import class_list, export
from model.data.exchange.importing import write
from model.data.exchange.plan import Wish, make_plan
from model.data.folder import DESCRIPTION
from model.data.guess import guess
from model.data.pairs import DatasetError

SOURCE = "source"
IMPORT_EXAMPLES = """\
examples:
  python -m model.data import coco instances.json --images photos -o DIR --dry-run
  python -m model.data import labelme labels/ --images photos -o DIR --group-by folder
  python -m model.data import cvat annotations.xml --images photos -o DIR --splits source
  python -m model.data import labelstudio export.json --images photos -o DIR \\
      --map car=vehicle,truck=vehicle --classes person,vehicle
"""
EXPORT_EXAMPLES = """\
examples:
  python -m model.data export coco DIR -o instances.json
  python -m model.data export labelstudio DIR --split train,val --shapes masks -o tasks.json \\
      --prefix '/data/local-files/?d=photos/'
  python -m model.data export cvat DIR --tolerance 1 --min-area 20 -o annotations.xml
"""


def names(text: str) -> tuple[str, ...]:
    """`person, car` -> ("person", "car")."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def pairs(text: str) -> dict[str, str]:
    """`car=vehicle,truck=vehicle` -> {"car": "vehicle", "truck": "vehicle"}."""
    words = [word.partition("=") for word in names(text)]
    if any(not key or not value for key, _, value in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of LABEL=CLASS")
    return {key.strip(): value.strip() for key, _, value in words}


def shares(text: str) -> dict[str, float] | None:
    """`train=0.8,val=0.2` -> {"train": 0.8, "val": 0.2}; `source` -> None."""
    if text == SOURCE:
        return None
    try:
        found = {split: float(share) for split, share in pairs(text).items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of SPLIT=SHARE") from None
    if not all(share > 0 for share in found.values()) or abs(sum(found.values()) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r}: shares are above 0, and their sum is 1")
    return found


def add_import(p: argparse.ArgumentParser) -> None:
    """Add the options of the import."""
    p.add_argument(
        "format", choices=list(READERS), metavar="FORMAT", help=f"one of {', '.join(READERS)}"
    )
    p.add_argument(
        "labels",
        type=Path,
        metavar="LABELS",
        help="labels as the tool exports them: a file or a folder",
    )
    p.add_argument(
        "--images", type=Path, required=True, metavar="PHOTOS", help="folder of the photos"
    )
    p.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the data set"
    )
    p.add_argument("--dry-run", action="store_true", help="print what would be done, and exit")
    p.add_argument("--json", action="store_true", help="print the report as JSON")
    p.add_argument(
        "--on-problem",
        choices=("stop", "skip"),
        default="stop",
        help="photos that are missing or do not fit their labels: write nothing, or leave "
        "them out (default: stop)",
    )
    p.add_argument("--link", action="store_true", help="link to the photos instead of copying")
    _add_classes(p.add_argument_group("classes"))
    _add_splits(p.add_argument_group("splits"))
    _add_reading(p.add_argument_group("reading the labels"))
    p.set_defaults(run=run_import)


def _add_classes(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--classes",
        type=names,
        default=(),
        metavar="A,B",
        help="only these classes, in this order (default: all)",
    )
    add(
        "--map",
        type=pairs,
        default={},
        metavar="A=B,C=B",
        help="rename labels, or merge several into one class",
    )
    void = ",".join(AS_VOID)
    add(
        "--void",
        type=names,
        default=AS_VOID,
        metavar="A,B",
        help=f"labels whose pixels become void (default: {void})",
    )
    usual = "background; void for voc-colours and cityscapes-like"
    rest = ("background", "void")
    add("--unlabelled", choices=rest, help=f"what pixels without a label become (default: {usual})")
    add(
        "--others",
        choices=("unlabelled", "void"),
        default="unlabelled",
        help="what the labels left out by --classes become: pixels without a label, or void "
        "(default: unlabelled)",
    )


def _add_splits(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--splits",
        type=shares,
        default="train=0.8,val=0.2",
        metavar="A=SHARE,B=SHARE",
        help="splits and their shares of the photos, or `source` for the splits in the labels "
        "(default: %(default)s)",
    )
    add(
        "--group-by",
        default="none",
        metavar="HOW",
        help="keep photos in one split: those of a `folder`, or those for which the first group of "
        "this regular expression on the path agrees (default: none)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the random splits (default: 0)")
    empty = "photos without a label: leave them out, or keep them as unlabelled (default: skip)"
    add("--empty", choices=("skip", "keep"), default="skip", help=empty)


def _add_reading(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    usual = "area for coco and yolo-seg, else file"
    orders = "; ".join(f"{name}: {text}" for name, text in ORDERS.items())
    add(
        "--order",
        choices=list(ORDERS),
        help=f"which shape wins where shapes overlap. {orders} (default: {usual})",
    )
    add(
        "--names",
        type=names,
        default=(),
        metavar="A,B",
        help="names of the class numbers or colours",
    )
    first = "number of the first class in yolo-seg and in label pictures (default: 0)"
    add("--first-class", type=int, choices=(0, 1), default=0, help=first)
    pixel = "coordinate of the outer corner of the first pixel (default: 0)"
    add("--first-pixel", type=int, choices=(0, 1), default=0, help=pixel)
    add("--boxes", action="store_true", help="use the box of a shape that has no outline")
    drafts = "use Label Studio's predictions for tasks that nobody has labelled"
    add("--predictions", action="store_true", help=drafts)
    add(
        "--exif",
        choices=("auto", "upright", "stored"),
        default="auto",
        help="whether photos with an EXIF rotation were labelled upright or as stored; auto tells "
        "by the size (default: auto)",
    )
    add(
        "--rescale",
        action="store_true",
        help="scale labels that were drawn on a smaller or larger copy of the photo",
    )


def run_import(args: argparse.Namespace) -> int:
    """Print the plan; write it if it is not a dry run. 1 where photos cannot be used."""
    if (args.out / DESCRIPTION).exists():
        raise DatasetError(f"{args.out / DESCRIPTION} exists: name another folder by -o")
    fields = Wish.__dataclass_fields__
    plan = make_plan(Wish(**{key: value for key, value in vars(args).items() if key in fields}))
    stopped = bool(plan.problems) and args.on_problem == "stop"
    lines = []
    if not plan.items:
        lines.append("nothing to write: no photo can be used")
    elif args.dry_run:
        lines.append(f"dry run: would write {len(plan.items)} photos and masks to {args.out}")
    elif stopped:
        lines.append(
            f"nothing written: {len(plan.problems)} photos cannot be used; correct them, or leave "
            "them out by --on-problem skip"
        )
    else:
        known = len(plan.problems)
        lines += write(plan)
        lines += [f"problem: {problem}" for problem in plan.problems[known:]]
        lines.append(f"next: python -m model.data check {args.out}")
    if args.json:
        print(json.dumps(plan.to_json(), indent=2))
        print("\n".join(lines), file=sys.stderr)
    else:
        print("\n".join([plan.to_text(), *lines]))
    return int(not plan.items or bool(plan.problems))


def add_export(p: argparse.ArgumentParser) -> None:
    """Add the options of the export."""
    p.add_argument("format", choices=list(WRITERS), metavar="FORMAT", help=", ".join(WRITERS))
    p.add_argument("root", type=Path, metavar="DIR", help="the data set, as --data names it")
    p.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="the file or folder to write"
    )
    p.add_argument(
        "--dataset", choices=list(DATASETS), help="kind of data set (default: found in the folder)"
    )
    p.add_argument(
        "--split", default="train", metavar="A,B", help="one split or several (default: train)"
    )
    p.add_argument("--no-void", action="store_true", help="leave out pixels without a class")
    p.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_writing(p)
    p.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> int:
    """Write the file and print its summary. Return 1 if a mask cannot be read."""
    splits = names(args.split)
    kind = args.dataset or guess(args.root, splits[0])
    sets = [find(kind, args.root, split) for split in splits]
    notes = Notes()
    try:
        classes = class_list(sets[0], void=not args.no_void)
        wanted = writing(args, args.format, classes, person=True)
        photos, shapes, problems = export(sets, args.format, wanted, args.out, notes)
    except AnnotationError as error:
        raise DatasetError(str(error)) from None
    left_out = list(notes.lines())
    if args.json:
        summary = {"photos": photos, "shapes": shapes, "notes": left_out, "problems": problems}
        print(json.dumps(summary, indent=2))
    else:
        lines = [f"note: {line}" for line in left_out] + [f"problem: {line}" for line in problems]
        print("\n".join([*lines, f"wrote {args.out}: {photos} photos, {shapes} shapes"]))
    return int(bool(problems))
