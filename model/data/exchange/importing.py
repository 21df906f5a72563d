"""Write the folder data set that a plan describes: masks, photos, lists and dataset.toml."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotations.draw import Drawn, draw
from annotations.errors import AnnotationError
from model.data.check import each
from model.data.exchange.plan import Item, Plan
from model.data.folder import DESCRIPTION
from model.data.pairs import VOID, write_mask
from pixels.exif import ON_THEIR_SIDE, TURNS

RECORD, LIST = "import.json", "photos.csv"


def write(plan: Plan) -> list[str]:
    """Write the data set; returns lines about it. Photos whose shapes are broken become problems.

    `dataset.toml` comes last: a folder without it is unfinished.
    """
    wish = plan.wish
    for split in {item.split for item in plan.items}:
        for kind in ("images", "masks"):
            (wish.out / kind / split).mkdir(parents=True, exist_ok=True)
    pixels, contested = np.zeros(256, np.int64), 0
    for item, result in zip(
        plan.items, each(partial(_write_one, plan), plan.items, "photo"), strict=True
    ):
        if isinstance(result, str):
            plan.problems.append(f"{item.labelled.photo}: {result}")
            continue
        pixels += result[0]
        contested += result[1]
    _write_lists(plan, pixels, contested)
    toml = wish.out / DESCRIPTION
    toml.write_text(_description(plan), encoding="utf-8")
    shares = [
        f"{name} {100 * pixels[number] / max(1, pixels.sum()):.1f} %"
        for number, name in enumerate(plan.choice.classes)
    ]
    return [
        f"pixels: {', '.join(shares)}, void {100 * pixels[VOID] / max(1, pixels.sum()):.1f} %",
        f"pixels that shapes of several classes claim: {contested}",
        f"wrote {toml}",
    ]


def _write_one(plan: Plan, item: Item) -> tuple[NDArray[np.int64], int] | str:
    """Draw one mask and put the photo beside it; returns pixels by id and contested ones."""
    try:
        drawn = label_map(plan, item)
        base = plan.wish.out
        write_mask(base / "masks" / item.split / f"{item.name}.png", drawn.ids, plan.palette)
        photo = base / "images" / item.split / f"{item.name}{item.path.suffix}"
        photo.unlink(missing_ok=True)
        if item.content and item.labelled.content is not None:
            photo.write_bytes(item.labelled.content())
        elif plan.wish.link:
            photo.symlink_to(item.path.resolve())
        else:
            shutil.copyfile(item.path, photo)
    except (AnnotationError, ValueError) as error:
        return str(error)
    return np.bincount(drawn.ids.ravel(), minlength=256), drawn.contested


def label_map(plan: Plan, item: Item) -> Drawn:
    """The class ids of a photo, upright and of its size."""
    declared = item.labelled.size or item.size
    if item.labelled.size is None and item.turn in ON_THEIR_SIDE:
        declared = (declared[1], declared[0])
    drawn = draw(
        item.labelled.regions,
        plan.choice.ids,
        declared,
        fill=plan.choice.fill,
        order=plan.order,
    )
    picture = Image.fromarray(drawn.ids)
    if item.turn in TURNS:
        picture = picture.transpose(TURNS[item.turn])
    if picture.size != item.size:
        picture = picture.resize(item.size, Image.Resampling.NEAREST)
    return Drawn(np.asarray(picture), drawn.contested)


def _write_lists(plan: Plan, pixels: NDArray[np.int64], contested: int) -> None:
    out = plan.wish.out
    with (out / LIST).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["name", "split", "group", "photo", "labelled_as"])
        for item in plan.items:
            writer.writerow(
                [item.name, item.split, item.group, str(item.path), item.labelled.photo]
            )
    report = plan.to_json() | {
        "contested_pixels": contested,
        "pixels": {name: int(pixels[number]) for number, name in enumerate(plan.choice.classes)},
    }
    (out / RECORD).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _description(plan: Plan) -> str:
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in plan.choice.classes)
    colors = ", ".join(str(list(color)) for color in plan.palette)
    return f"classes = [{names}]\npalette = [{colors}]\n"
