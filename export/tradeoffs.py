"""Measure what each option for clean masks gains and costs: `python -m export.tradeoffs FILE.onnx`.

It runs an exported file once on each photo of a data set and applies the service's options to the
result. It prints two tables in Markdown: by option mIoU, mIoU within 3 pixels of the void rims of
borders, and boundary IoU for a distance of 3 pixels; and the processor time that each option adds
for a usual photo and for one of 12 megapixels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from export.calibrate import segmented
from model import arguments
from model.data.dataset import DATASETS, Dataset, DatasetError, read_source
from model.data.survey import expect_classes, survey
from model.evaluate.boundary import BoundaryIoU
from model.evaluate.metrics import Confusion
from model.evaluate.options import open_dataset
from model.evaluate.trimap import Trimap
from postprocess.results import outputs
from postprocess.results.outputs import NEEDS_PHOTO, Result, Wish
from service.errors import InvalidRequest, StartupError
from service.http.query import SegmentQuery
from service.inference import cpus
from service.inference.contract import Contract
from service.inference.engine import Engine, EngineOptions
from service.settings import SAMPLES

Options = dict[str, str]

BAND = 3  # pixels
LARGE = (4000, 3000)
USUAL = (500, 375)
REPEATS = 5
LABELS: tuple[Options, ...] = (  # options that change the labels, evaluated on masks
    {},
    {"min_area": "0.05%"},
    {"min_area": "0.1%"},
    {"min_area": "0.5%"},
    {"fill_holes": "1%"},
    {"min_area": "0.1%", "fill_holes": "1%"},
    {"min_confidence": "0.4"},
    {"min_confidence": "0.5"},
    {"min_confidence": "0.6"},
    {"threshold": "best"},
    {"smooth": "true"},
    {"smooth": "true", "min_area": "0.1%"},
)
OF_OTHERS: tuple[Options, ...] = ({}, {"smooth": "true"})  # evaluated for --best-iou
COSTS: tuple[Options, ...] = (  # options and outputs, measured beside the mask
    {"output": "mask"},
    {"output": "mask", "min_area": "0.1%"},
    {"output": "mask", "fill_holes": "1%"},
    {"output": "mask", "min_confidence": "0.5"},
    {"output": "mask", "smooth": "true"},
    {"output": "json"},
    {"output": "json", "instances": "true"},
    {"output": "rle"},
    {"output": "rle", "instances": "true"},
    {"output": "polygons"},
    {"output": "polygons", "min_area": "0.1%"},
    {"output": "polygons", "min_area": "0.1%", "simplify": "2"},
    {"output": "polygons", "min_area": "0.1%", "simplify": "2", "instances": "true"},
    {"output": "probabilities"},
    {"output": "probabilities", "top": "3"},
)


def wish(options: Options, contract: Contract) -> Wish | None:
    """Parse a query; None if the model cannot give what it requests."""
    asked = {**options, "output": [options.get("output", "mask")]}
    try:
        query = SegmentQuery.model_validate(asked)
        return query.wish(contract, accept="")
    except InvalidRequest:
        return None


def named(options: Options) -> str:
    """`min_area=0.1%, fill_holes=1%`."""
    return ", ".join(f"`{name}={value}`" for name, value in options.items()) or "plain"


@dataclass(frozen=True)
class Contestant:
    """One row of the first table: an option of a file, and its measures."""

    name: str
    engine: Engine
    wish: Wish
    measures: tuple[Confusion, Trimap, BoundaryIoU]

    def row(self) -> str:
        """The row in Markdown."""
        confusion, trimap, boundary = self.measures
        found = (confusion.miou(), trimap.miou()[BAND], boundary.miou())
        return f"| {self.name} | " + " | ".join(f"{figure:.4f}" for figure in found) + " |"


def contestants(engine: Engine, prefix: str, rows: Sequence[Options]) -> list[Contestant]:
    """The rows that the file of an engine can give."""
    classes = len(engine.contract.classes)
    found = []
    for options in rows:
        asked = wish(options, engine.contract)
        if asked is not None:
            name = ", ".join(
                filter(None, (prefix, named(options) if options or not prefix else ""))
            )
            measures = (
                Confusion(classes),
                Trimap(classes, [BAND]),
                BoundaryIoU(classes, pixels=BAND),
            )
            found.append(Contestant(name, engine, asked, measures))
    return found


def judged(engines: dict[str, Engine], dataset: Dataset) -> list[str]:
    """The rows of the first table. Of engines with a name only some rows."""
    rows = [
        each
        for prefix, engine in engines.items()
        for each in contestants(engine, prefix, OF_OTHERS if prefix else LABELS)
    ]
    for pair in tqdm(dataset.pairs, unit="photo", disable=not sys.stderr.isatty()):
        photo, truth = read_source(dataset, pair)
        results = {id(engine): segmented(engine, photo) for engine in engines.values()}
        for row in rows:
            found = outputs.refined(results[id(row.engine)], row.wish).labels.image
            labels = with_a_class(found, len(row.engine.contract.classes))
            for measure in row.measures:
                measure.add(truth, labels)
    return [row.row() for row in rows]


def with_a_class(labels: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """Void pixels as class 0: the measures count them as an error there."""
    return np.where(labels < classes, labels, 0).astype(np.uint8)


def measured(engine: Engine, photo: Path) -> list[str]:
    """The rows of the second table."""
    with Image.open(photo) as image:
        sizes = [image.convert("RGB").resize(size) for size in (USUAL, LARGE)]
    found = [segmented(engine, np.asarray(each)) for each in sizes]
    rows = []
    for options in COSTS:
        each = wish(options, engine.contract)
        if each is not None and NEEDS_PHOTO.isdisjoint(each.all_outputs):
            spent = [_ms(partial(encoded, one, each)) for one in found]
            rows.append(f"| {named(options)} | {spent[0]:.1f} | {spent[1]:.1f} |")
    return rows


def encoded(found: Result, asked: Wish) -> None:
    """Refine and encode a result, of which nothing has been computed yet."""
    outputs.encode_each(fresh(found), asked)


def fresh(found: Result) -> Result:
    """Return the same result without its cached values."""
    return Result(found.photo, found.cells, found.sure, found.spread, found.contract, found.grid)


def _ms(function: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.tradeoffs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("file", type=Path, metavar="FILE.onnx", help="exported file")
    p.add_argument(
        "--data", type=Path, help="folder of the data set; without it, only times are measured"
    )
    p.add_argument(
        "--dataset", choices=sorted(DATASETS), help="kind of data set (default: found in --data)"
    )
    p.add_argument("--split", default="val", help="part of the data set (default: val)")
    p.add_argument(
        "--photos",
        type=arguments.count,
        metavar="N",
        help="number of photos, evenly spread (default: all)",
    )
    p.add_argument(
        "--best-iou",
        type=Path,
        metavar="BEST.onnx",
        help="the same network exported with --best-iou, for rows of its own",
    )
    p.add_argument("--photo", type=Path, default=SAMPLES / "astronaut.jpg", help="for the times")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        options = EngineOptions("cpu", threads=cpus.available())
        engine = Engine(args.file, options)
        if args.data is not None:
            dataset = open_dataset(args, engine.contract.classes, engine.contract.input.samples)
            expect_classes(survey(dataset))
            dataset = dataset.thinned(args.photos or len(dataset.pairs))
            engines = {"": engine}
            if args.best_iou is not None:
                engines["`--best-iou`"] = Engine(args.best_iou, options)
            heads = "mIoU", f"{BAND} px around borders", f"boundary IoU, {BAND} px"
            print(f"| {len(dataset.pairs)} photos | {' | '.join(heads)} |\n|---|---|---|---|")
            print("\n".join(judged(engines, dataset)) + "\n")
        print("| ms of processor time | 500 x 375 | 4000 x 3000 |\n|---|---|---|")
        print("\n".join(measured(engine, args.photo)))
    except (StartupError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
