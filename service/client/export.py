"""Write the results of a run as the file of a label tool: `deeplab-client export OUT`.

Photos are read, converted and written one after another, so the memory does not grow with
their number. Needs NumPy, Pillow and pycocotools (the extra `labels`).
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotations.errors import AnnotationError, Notes
from annotations.options import ClassList, add_writing, writing
from annotations.shapes import Color
from annotations.writers import WRITERS, open_writer
from annotations.writing import Finished, Piece, Writing, pieces
from service.client.errors import ClientError, UsageError
from service.client.files import read_photo
from service.client.outputs import inside
from service.client.plain import counted, sentence
from service.client.progress import Counts, Progress
from service.client.records import DONE, Record, Results

MASKS = (".mask.png", ".labels.npz")  # files that labels are read from, the quickest first
ORIENTATION = 0x0112  # the EXIF tag
SHOWN = 20

EXAMPLES = """\
examples:
  deeplab-client export out/ --format coco -o predictions.json
  deeplab-client export out/ --format labelstudio -o tasks.json \\
      --prefix '/data/local-files/?d=photos/' --shapes masks --per class
  deeplab-client export out/ --format cvat -o annotations.xml --tolerance 1 --min-area 50
"""


@dataclass
class Exported:
    """The counts of what was written, and the problems."""

    photos: int = 0
    shapes: int = 0
    notes: Notes = field(default_factory=Notes)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Return the notes and problems as lines of text."""
        yield from (f"note: {line}" for line in self.notes.lines())
        yield from (f"problem: {line}" for line in self.problems[:SHOWN])
        if len(self.problems) > SHOWN:
            yield f"problem: ... and {len(self.problems) - SHOWN} more (--json lists them all)"

    def json(self) -> dict[str, object]:
        """Return all fields for JSON."""
        return {
            "photos": self.photos,
            "shapes": self.shapes,
            "notes": list(self.notes.lines()),
            "problems": self.problems,
        }


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(
        prog="deeplab-client export",
        description="Write the results of a run as the file of a label tool.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("results", metavar="OUT", type=Path, help="folder with the results of a run")
    p.add_argument("--format", choices=list(WRITERS), required=True, help="the label tool")
    p.add_argument(
        "-o", "--out", metavar="FILE", type=Path, required=True, help="the file or folder to write"
    )
    p.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_writing(p)
    return p


def run(options: argparse.Namespace, results: Results) -> Exported:
    """Write the file; raises UsageError for options that do not go together."""
    exported = Exported()
    records = [0, 0]  # done, others
    model = ""
    colors: dict[int, Color] = {}
    for record in results.records():
        records[record.status != DONE] += 1
        model = record.model or model
        if record.status == DONE and not colors:
            colors = palette_of(options.results, record)
    if not records[0]:
        raise UsageError(f"{options.results} holds no result")
    classes = ClassList(results.class_names(), colors)
    if not classes.names:
        raise UsageError(
            f"{options.results} does not name the classes: run the inputs again with this client"
        )
    try:
        wanted = writing(options, options.format, classes, model=model, person=False)
    except AnnotationError as error:
        raise UsageError(str(error)) from None
    if records[1]:
        exported.problems.append(f"without a result: {counted(records[1], 'photo')}")
    progress = Progress(Counts(), sys.stderr)
    progress.total = records[0]
    try:
        with open_writer(options.format, options.out, wanted) as file:
            for record in results.records():
                if record.status == DONE:
                    _add(record, options.results, wanted, exported, file.add)
                    progress.counts.sent += 1
                    progress.update()
    except AnnotationError as error:
        raise UsageError(str(error)) from None
    return exported


def _add(
    record: Record,
    out: Path,
    wanted: Writing,
    exported: Exported,
    add: Callable[[Finished, list[Piece]], None],
) -> None:
    """Write one photo, or add its error to the problems."""
    scores = {
        each.class_id: each.confidence
        for each in record.classes or ()
        if each.confidence is not None
    }
    try:
        ids = _at_full_size(record, label_map(out, record), exported.notes)
        photo = Finished(record.name, ids, scores)
        found = pieces(photo, wanted, exported.notes)
    except (ClientError, OSError, ValueError, KeyError, Image.DecompressionBombError) as error:
        exported.problems.append(f"{record.name}: {sentence(error)}")
        return
    try:
        add(photo, found)
    except ValueError as error:
        exported.problems.append(f"{record.name}: {sentence(error)}")
        return
    exported.photos += 1
    exported.shapes += len(found)


def label_map(out: Path, record: Record) -> NDArray[np.uint8]:
    """Return the class ids of a photo, (H, W); raises ClientError if no output contains them."""
    for suffix in MASKS:
        file = record.stem + suffix
        if file not in record.outputs:
            continue
        content = io.BytesIO(read_photo(inside(out, file)))
        if suffix == ".labels.npz":
            with np.load(content, allow_pickle=False) as arrays:
                return np.asarray(arrays["labels"], np.uint8)
        with Image.open(content, formats=["PNG"]) as picture:
            if picture.mode not in ("P", "L"):
                raise ClientError(f"{file} has mode {picture.mode}: it holds no class ids")
            return np.asarray(picture)
    raise ClientError("it has no mask: run the inputs again with --output mask")


def palette_of(out: Path, record: Record) -> dict[int, Color]:
    """Return the colours of the classes in the mask's palette; none if it has no palette."""
    file = f"{record.stem}.mask.png"
    if file not in record.outputs:
        return {}
    try:
        with Image.open(io.BytesIO(read_photo(inside(out, file))), formats=["PNG"]) as picture:
            colors = picture.getpalette("RGB") or []
    except (OSError, ClientError, Image.DecompressionBombError):
        return {}
    triples = zip(colors[::3], colors[1::3], colors[2::3], strict=True)
    return dict(enumerate((int(r), int(g), int(b)) for r, g, b in triples))


def _at_full_size(record: Record, ids: NDArray[np.uint8], notes: Notes) -> NDArray[np.uint8]:
    """Return the ids at the photo's own size, if it was shrunk before it was sent."""
    if record.max_side is None:
        return ids
    try:
        with Image.open(record.source) as picture:
            turned = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            size = picture.size[::-1] if turned else picture.size
    except (OSError, ValueError, SyntaxError):
        notes.add("photo that was shrunk and is gone: its shapes have the shrunk size", record.name)
        return ids
    if size == ids.shape[::-1]:
        return ids
    return np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
