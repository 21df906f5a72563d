"""Write a report of a training run: `python -m model.report RUN_DIR [--data DIR]`.

The page contains all its pictures, loads nothing and runs no script, so it can be
mailed, archived and opened offline. With --data the trained network is evaluated,
which adds the confusion matrix and sample photos. Without it, the page shows the
training's curves and the figures kept in the checkpoint.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from model import arguments, checkpoint, memory
from model.checkpoint import Card, CheckpointError
from model.data.dataset import DATASETS, Dataset, DatasetError, Pair, read_source
from model.data.photo import shown
from model.data.survey import expect_classes, survey
from model.evaluate import plots
from model.evaluate.evaluation import COLUMNS, Predictor, figures, score
from model.evaluate.options import open_dataset
from model.evaluate.pictures import overlaid
from model.network.inference import served_map

LOG = "log.jsonl"  # of model.train
CHECKPOINT = "model"
SAMPLE_WIDTH = 420  # pixels, of each picture of a sample

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }}
h1 {{ font-size: 1.6rem; margin-bottom: 0 }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }}
img {{ max-width: 100%; height: auto; display: block }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
td, th {{ text-align: left; padding: .1rem 1.2rem .1rem 0; vertical-align: top;
  overflow-wrap: anywhere }}
.big {{ font-size: 2rem }}
.sample {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem; margin: 1rem 0 }}
.sample p {{ grid-column: 1 / -1; margin: 0 }}
.legend span {{ display: inline-block; margin-right: .9rem }}
.legend i {{ display: inline-block; width: .9em; height: .9em; margin-right: .3em;
  border: 1px solid #888 }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{subtitle}</p>
{sections}
</body>
</html>
"""


class ReportError(ValueError):
    """The run has nothing to report; the message says what is missing."""


def read_log(path: Path) -> dict[str, dict[int, float]]:
    """The curves of a run's log: value by iteration, by name.

    If a resumed run wrote an iteration again, the later line counts. An incomplete
    last line (the run was killed) is ignored.
    """
    curves: dict[str, dict[int, float]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("iteration"), int):
            continue
        for name, value in row.items():
            if name != "iteration" and isinstance(value, int | float):
                curves.setdefault(name, {})[row["iteration"]] = float(value)
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


def section(title: str, *parts: str) -> str:
    """A part of the page; the parts are HTML."""
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *parts])


def picture(data: bytes, kind: str, alt: str) -> str:
    """An image element that holds its own file."""
    text = base64.b64encode(data).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{text}">'


def rows(values: Mapping[str, object]) -> str:
    """A table of names and values."""
    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_shown(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{''.join(cells)}</table>"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def curves_section(curves: Mapping[str, Mapping[int, float]]) -> str:
    """The curves of the log, the loss first."""
    ordered = dict(sorted(curves.items(), key=lambda item: item[0] != "loss"))
    last = max(iteration for points in curves.values() for iteration in points)
    drawn = plots.png(plots.series({_title(name): points for name, points in ordered.items()}))
    return section(
        "Training", picture(drawn, "png", f"{', '.join(ordered)} by iteration, up to {last}")
    )


def _title(name: str) -> str:
    return name.replace("_", " ").replace("crops per second", "crops/s")


def figures_section(result: Mapping[str, Any]) -> str:
    """mIoU, where it comes from, and IoU by class."""
    known = ("dataset", "split", "images", "pixels", "output_stride", "scales", "flip", "iteration")
    parts = [f'<p class="big">mIoU {100 * result["miou"]:.2f} %</p>']
    parts.append(rows({key: result[key] for key in known if key in result}))
    if "pixel_accuracy" in result:
        parts.append(f"<p>{100 * result['pixel_accuracy']:.2f} % of the pixels are right.</p>")
    if result.get("iou"):
        drawn = plots.png(plots.bars(result["iou"]))
        parts.append(picture(drawn, "png", "IoU by class"))
        parts.append(class_table(result))
    return section("Quality", *parts)


def class_table(result: Mapping[str, Any]) -> str:
    """IoU, F1, precision and recall by class; a dash where a class never occurs."""
    columns = {"IoU": "iou"} | {title: key for key, title in COLUMNS.items() if key in result}
    head = "".join(f"<th>{title}</th>" for title in ("class", *columns))
    body = ""
    for name in result["iou"]:
        values = (result[key][name] for key in columns.values())
        shown = "".join(f"<td>{'-' if v is None else f'{v:.4f}'}</td>" for v in values)
        body += f"<tr><th>{html.escape(name)}</th>{shown}</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def matrix_section(counts: np.ndarray[Any, np.dtype[np.int64]], names: Sequence[str]) -> str:
    """The confusion matrix: which classes are mistaken for which."""
    drawn = plots.png(plots.matrix(counts, names))
    note = "<p>Percent of the pixels of each true class (rows); below 0.5 left empty.</p>"
    return section("Confusion", note, picture(drawn, "png", "confusion matrix"))


def samples_section(dataset: Dataset, predict: Predictor, card: Card, count: int) -> str:
    """Photos at even distances through the split, with the true mask and the network's."""
    places = np.linspace(0, len(dataset.pairs) - 1, min(count, len(dataset.pairs))).round()
    pairs = [dataset.pairs[int(place)] for place in places]
    shown, seen = [], set()
    for pair in tqdm(pairs, unit="sample", disable=not sys.stderr.isatty()):
        text, classes = sample(pair, dataset, predict, card)
        shown.append(text)
        seen |= classes
    note = "<p>Photo, true mask (void is dark) and prediction.</p>"
    return section("Samples", note, legend(card, seen), *shown)


def sample(pair: Pair, dataset: Dataset, predict: Predictor, card: Card) -> tuple[str, set[int]]:
    """One photo's three pictures as HTML, and the classes in them."""
    photo, truth = read_source(dataset, pair)
    labels = predict(photo)
    judged = truth < len(dataset.classes)
    right = float((truth == labels)[judged].mean()) if judged.any() else 0.0
    drawn = [shown(photo.pixels), *(overlaid(photo.pixels, ids, card) for ids in (truth, labels))]
    images = "".join(
        picture(jpeg(image), "jpeg", f"{kind} of {pair.name}")
        for image, kind in zip(drawn, ("photo", "true mask", "prediction"), strict=True)
    )
    caption = f"<p>{html.escape(pair.name)}: {100 * right:.1f} % of its pixels are right</p>"
    classes = {int(label) for label in np.union1d(truth[judged], labels)}
    return f'<div class="sample">{caption}{images}</div>', classes


def jpeg(image: Image.Image) -> bytes:
    """A picture of at most SAMPLE_WIDTH columns as a JPEG file."""
    image.thumbnail((SAMPLE_WIDTH, SAMPLE_WIDTH))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()


def legend(card: Card, classes: Iterable[int]) -> str:
    """The colours of some classes."""
    entries = (
        '<span><i style="background: rgb({},{},{})"></i>{}</span>'.format(
            *card.palette[label], html.escape(card.classes[label])
        )
        for label in sorted(classes)
    )
    return f'<p class="legend">{"".join(entries)}</p>'


def recipe_section(card: Card) -> str:
    """The recipe of the training and the network's configuration."""
    network = card.model.model_dump(mode="json")
    return section("Recipe", rows(card.training)) + section("Network", rows(network))


def judged_sections(dataset: Dataset, predict: Predictor, card: Card, samples: int) -> list[str]:
    """The sections that need the data: figures, confusion matrix, samples."""
    confusion = score(dataset, predict)
    parts = [
        figures_section(figures(confusion, dataset)),
        matrix_section(confusion.counts, dataset.classes),
    ]
    return parts + ([samples_section(dataset, predict, card, samples)] if samples else [])


def build(args: argparse.Namespace) -> str:
    """The page; raises ReportError, CheckpointError or DatasetError."""
    source = args.checkpoint or args.run / CHECKPOINT
    curves = read_log(args.run / LOG)
    finished = checkpoint.paths(source)[1].exists()
    if not finished and (args.checkpoint or args.data or not curves):
        raise ReportError(
            f"{checkpoint.paths(source)[1]} does not exist"
            + ("" if curves else f", nor has {args.run / LOG} any line: is this a run's folder?")
        )
    sections = [curves_section(curves)] if curves else []
    if not finished:
        return page(args.run, "The run has not finished: no checkpoint yet.", sections)
    card = checkpoint.read_card(source)
    if args.data is not None:
        net = checkpoint.load_on(args.device, source)
        dataset = open_dataset(args, card.classes, card.model.samples, card.training.get("dataset"))
        expect_classes(survey(dataset))
        sections += judged_sections(dataset, partial(served_map, net), card, args.samples)
    elif "miou" in card.metrics:
        sections.append(figures_section(card.metrics))
    return page(args.run, card.source, [*sections, recipe_section(card)])


def page(run: Path, subtitle: str, sections: Sequence[str]) -> str:
    """The whole document."""
    return PAGE.format(
        title=html.escape(f"Training run {run.resolve().name}"),
        subtitle=html.escape(subtitle),
        sections="\n".join(sections),
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.report runs/light --data DATA --samples 8",
    )
    p.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="folder of the run: --out of model.train"
    )
    p.add_argument(
        "--checkpoint", type=Path, metavar="NAME", help="checkpoint (default: RUN_DIR/model)"
    )
    p.add_argument("--dataset", choices=sorted(DATASETS), help=arguments.DATASET_HELP)
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set")
    p.add_argument("--split", default="val", help="part of the data set (default: val)")
    p.add_argument(
        "--samples",
        type=arguments.count,
        default=6,
        metavar="N",
        help="photos to show (default: 6)",
    )
    p.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="page (default: RUN_DIR/report.html)"
    )
    arguments.add_device(p)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        with memory.advising(arguments.SMALLER_CROP):
            text = build(args)
        out = args.out or args.run / "report.html"
        out.write_text(text, encoding="utf-8")
    except (ReportError, CheckpointError, DatasetError, memory.ShortageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


script = memory.keeping_freed(main)
