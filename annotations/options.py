"""The options of an export, shared by `model.data export` and `deeplab-client export`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from annotations.colors import palette
from annotations.errors import AnnotationError
from annotations.shapes import Color
from annotations.writers import FORMS
from annotations.writing import Writing

VOID, VOID_COLOR = 255, (224, 224, 192)  # VOC's colour
BACKGROUND = "background"


class ClassList(NamedTuple):
    """The classes that label maps can hold."""

    names: Mapping[int, str]
    colors: Mapping[int, Color]  # classes without a colour get VOC's


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to write of a label map."""
    add = parser.add_argument_group("shapes").add_argument
    chosen = "these classes alone, by name (all but background)"
    add("--classes", metavar="A,B", help=chosen)
    forms = "polygons, or masks: run lengths in coco and cvat, brushes in labelstudio"
    add("--shapes", choices=("polygons", "masks"), help=f"{forms} (polygons, for voc masks)")
    add(
        "--per",
        choices=("region", "class"),
        default="region",
        help="one mask for each connected region, or for each class (region)",
    )
    add(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="PX",
        help="simplify polygons; outlines move by at most this many pixels (0: exact)",
    )
    add(
        "--min-area", type=int, default=0, metavar="PX", help="leave smaller regions out, and count"
    )
    add("--prefix", default="", metavar="TEXT", help="what precedes each photo's name in the file")


def writing(
    args: argparse.Namespace, kind: str, classes: ClassList, *, model: str = "", person: bool
) -> Writing:
    """Return what the options request. Raises AnnotationError for what the format lacks.

    `person`: the labels are a person's, not a model's.
    """
    form = args.shapes or FORMS[kind][0]
    if form not in FORMS[kind]:
        raise AnnotationError(f"--shapes {form}: {kind} holds {FORMS[kind][0]} only")
    if not 0 <= args.tolerance < math.inf or args.min_area < 0:
        raise AnnotationError("--tolerance and --min-area are pixels from 0 on")
    if args.tolerance and form == "masks":
        raise AnnotationError("--tolerance is for polygons: leave it out, or --shapes masks")
    labels = chosen(classes.names, args.classes)
    usual = palette(256)
    colors = {
        label: classes.colors.get(number, VOID_COLOR if number == VOID else usual[number])
        for number, label in labels.items()
    }
    return Writing(
        labels,
        colors,
        form=form,
        per="class" if kind == "voc" else args.per,
        tolerance=args.tolerance,
        min_area=args.min_area,
        prefix=args.prefix,
        model=model,
        as_predictions=not person,
    )


def chosen(names: Mapping[int, str], wanted: str | None) -> dict[int, str]:
    """The classes to write: all but background, or those wanted. Raises AnnotationError."""
    if wanted is None:
        return {number: name for number, name in names.items() if name != BACKGROUND}
    words: Sequence[str] = [word.strip() for word in wanted.split(",") if word.strip()]
    if unknown := [word for word in words if word not in names.values()]:
        raise AnnotationError(
            f"--classes {','.join(unknown)}: there are {', '.join(names.values())}"
        )
    return {number: name for number, name in names.items() if name in words}
