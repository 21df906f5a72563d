"""Write docs/studies.md, its plots and its figures from the results of the studies.

`docs/studies/figures.json` keeps the figures of all points: results in --out replace
those of the same name. Verdicts are computed: a claim "held" if it held in every
comparison, and "did not hold" if it held in none. Otherwise, and with a single
comparison, it is "not settled". Rows of a table are told apart, or not, by
`model/paper/studies/statistics.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

from model import checkpoint
from model.evaluate import plots
from model.paper.complexity import measure
from model.paper.studies.plan import (
    BILINEAR,
    BUNDLED,
    BUNDLED_CHECKPOINT,
    COMPARISONS,
    DECODER,
    MULTI_SCALE,
    TABLE_3,
    UPSAMPLING,
    Comparison,
    Net,
    Point,
    Row,
    Strategy,
)
from model.paper.studies.run import StudyError
from model.paper.studies.statistics import difference, percent, points
from model.train import recipe

ROOT = Path(__file__).parents[3]
Figures = dict[str, Any]  # of one point, as model.evaluate writes them
Results = dict[str, Figures]  # by the point's name, without the number of photos
Section = Callable[[Results, Path], str | None]  # None where a point that it needs is missing
KEPT = (
    *("network", "seed", "photos", "images", "miou", "boundary_miou", "trimap"),
    *("training", "measured"),
)
FIGURES = "studies/figures.json"
PICTURES = """\
Pictures like the paper's figures 5b and 6, of any two checkpoints, are drawn by
[model.paper.pictures](evaluation.md#pictures-like-the-papers). They show VOC's photos, so this page
has none.
"""
FIRST_RUN = "2026-11-26"  # the day of all figures that have no date
ENOUGH_CROPS = 10_000  # of the bilinear classifier; below, its training is what is measured
WAYS = {  # of the evaluation: multi-scale, flip
    "one pass": (False, False),
    "flip": (False, True),
    "six scales": (True, False),
    "six scales, flip": (True, True),
}

INTRODUCTION = """\
# Studies

Claims of the paper, tried with small networks on a CPU. Written by `python -m model.studies write`;
the figures are in [studies/figures.json](studies/figures.json). The line below a table says on how
many photos of VOC 2012 val it was measured, and when. The part of val in use here has 344 photos,
which are taken at their own size. mIoU is in percent, ranges are lowest to highest over seeds.

**What can be told apart.** Networks of the same seed see the same crops in the same order, so they
are compared in pairs. *Gain ± x* is the 95 % interval of the mean gain, by Student's t over the
seeds. Where it contains zero, the program writes "not distinguishable". The interval assumes normal
differences, and is not corrected for the number of rows.

```console
$ python -m model.studies boundary --data DATA --out runs/studies       # one; --help lists all
$ python -m model.studies all --data DATA --out runs/studies --dry-run  # what they would train
$ python -m model.studies write --out runs/studies                      # this page
```

## The bundled network

The present `efficientnet-lite0-voc` ([model card](../model/bundled/MODEL_CARD.md)). *Bilinear* is
the same network without its decoder: its backbone and ASPP as they are, and a new classifier on
them, trained once for each seed, whose logits are resized bilinearly (preset `{preset}`:
{iterations} iterations of {batch} crops of {crop} pixels, unless the line below a table says
otherwise). This is not quite the paper's comparison: there both networks are trained alike from the
start, here backbone and ASPP were trained with the decoder behind them.
"""
TRAINED = """\
## Networks trained for the comparison

DeepLabv3+ on EfficientNet-Lite0, preset `{preset}`: the backbone keeps its
ImageNet weights, so that its features favour no head, and a head of 128 channels trains on them.
VOC 2012 trainaug (train and SBD masks), poly policy, averaged weights. Networks that are compared
differ only in the option that is studied; their random first weights differ too. The paper trains
all layers of far larger networks, for 30,000 iterations on crops of 513, so its mIoU is not
comparable. What can be compared is the direction of a change, for heads on fixed features.

**What was abandoned** (2026-11-26). Two earlier recipes were dropped after their first networks,
which were too weak to compare: all layers from ImageNet weights (bilinear upsampling, mIoU 21.2 %),
and a full head on the backbone of the model bundled then, both trained at a quarter of this rate
for 300 iterations (seed 0: 26.3 % with the decoder, 32.8 % with bilinear upsampling; seed 1: 40.0 %
with bilinear upsampling). Rate and width of this recipe were chosen by the training loss of short
runs; two more trials, decoders on that backbone at the old rate, were evaluated on val (30.3 % and
22.4 %). The recipe first had 600 iterations: with seed 0, bilinear upsampling reached 40.6 % and
the decoder 40.2 %, and 21.7 % and 23.5 % in the narrowest band. Some classes were not found at
all yet, so all networks except table 1's got 1500 iterations. On 2026-11-29, before any network of
table 2 was trained, it was given table 1's 600 iterations, so that three seeds could be afforded.
So were the comparisons of separable convolution and of the image-level feature on 2026-11-30,
before any of their networks had been evaluated; their first rows are table 1's networks.
Nothing else was changed.
"""
# Of the sections that are functions, by the name of the study.
TEXTS = {
    "boundary": """\
### Near boundaries: figure 5

The paper (section 4.4): the decoder improves mIoU near boundaries over bilinear upsampling of the
logits, and most where the band around the void label is narrow (by 4.8 points with ResNet-101 and
5.4 with Xception at the narrowest). A band of width w contains the pixels that a dilation of the
void label by a square of side 2w + 1 adds.
""",
    "inference": """\
### Output strides, scales and mirrored photos: table 3

*MS* is six scales from 0.5 to 1.75; *no decoder* is the bilinear network of seed 0. Multiply-adds
are by the paper's rule, for a photo of 513x513. Each row is one network, so nothing says how much
of a difference is chance. All rows are of the same photos; `--photos 86` takes 86, evenly spread.
For the rows of 2026-11-30 ONNX Runtime computed the logits of both networks, once for all rows.
They differ from PyTorch's by at most 0.00004. Three rows that the command repeated have the same
mIoU within 0.0001 points.
""",
    "decoder": """\
### The decoder against bilinear upsampling

The claims of figure 5a again, with both heads trained alike, as in the paper.
""",
    "stride": """\
### Evaluating at output stride 8 instead of 16

The paper (tables 3 and 5): networks trained at output stride 16 gain at 8, ResNet-101 by 1.30
points without the decoder and 0.50 with it, Xception by 0.47 and 0.29.
""",
    "scales": """\
### Several scales and mirrored photos

The paper (tables 3 and 5, output stride 16, decoder): six scales from 0.5 to 1.75 add 1.24 points
with ResNet-101 and 1.45 with Xception, mirrored photos another 0.13 and 0.06. Multiply-adds are
by the paper's rule, for a photo of 513x513. Where it was measured on 2026-11-30, ONNX Runtime
computed the logits as above.
""",
}


def load(out: Path, docs: Path) -> dict[str, Figures]:
    """Figures of all points by name: those kept below `docs`, replaced by the ones in `out`.

    Raises StudyError if `out` has none.
    """
    found = {path.stem: result(path) for path in sorted(out.glob("*.json"))}
    results = {
        name: {key: r.get(key) for key in KEPT} | {"training": portable(r.get("training"))}
        for name, r in found.items()
        if "network" in r
    }
    if not results:
        raise StudyError(f"{out} holds no results; run a study first")
    kept = docs / FIGURES
    before: dict[str, Figures] = {}
    if kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))
    return before | results


def portable(training: Figures | None) -> Figures | None:
    """A recipe without this machine's folders: `init` is told from this repository's root."""
    if training is None or not training.get("init"):
        return training
    init = Path(training["init"])
    return training | {"init": str(init.relative_to(ROOT) if init.is_relative_to(ROOT) else init)}


def result(path: Path) -> Figures:
    """Read one JSON; raises StudyError naming a damaged one."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is damaged ({error}): remove it, run its study again") from None
    return figures if isinstance(figures, dict) else {}


def views(results: dict[str, Figures]) -> list[Results]:
    """The results by the number of photos asked for: only equal numbers are compared.

    All photos come first, then the largest number.
    """
    counts = {r.get("photos") for r in results.values()}
    order = sorted(counts, key=lambda count: (count is not None, -(count or 0)))
    return [
        {
            name.removesuffix(f"-{count}photos"): r
            for name, r in results.items()
            if r.get("photos") == count
        }
        for count in order
    ]


def write(out: Path, docs: Path) -> Path:
    """Write the page, its plots and the figures below `docs`; returns the page's path."""
    results = load(out, docs)
    kept = docs / FIGURES
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")
    page = docs / "studies.md"
    page.write_text("\n".join(parts(views(results), docs)), encoding="utf-8")
    return page


def parts(seen: list[Results], docs: Path) -> list[str]:
    """The parts of the page in order."""
    trained: dict[str, Section] = {
        "decoder": decoder_section,
        "stride": stride_section,
        "scales": scales_section,
    }
    trained |= {name: partial(comparison_section, name) for name in COMPARISONS}
    folder = docs / "studies"
    return [
        introduction(),
        section("boundary", boundary_section, seen, folder),
        PICTURES,
        section("inference", inference_section, fullest(seen), folder),
        TRAINED.format(preset=DECODER.preset),
        *(section(name, written, seen, folder) for name, written in trained.items()),
    ]


def introduction() -> str:
    """The top of the page."""
    config = recipe.read(BILINEAR.preset, [])
    return INTRODUCTION.format(
        preset=BILINEAR.preset,
        iterations=config.iterations,
        batch=config.batch_size,
        crop=config.augment.crop,
    )


def section(name: str, written: Section, seen: list[Results], folder: Path) -> str:
    """A study's part of the page, from the most photos that have all that it needs."""
    comparison = COMPARISONS.get(name)
    head = TEXTS[name] if comparison is None else heading(comparison)
    found = next((text for view in seen if (text := written(view, folder)) is not None), None)
    text = found or f"Not run yet: `python -m model.studies {name}`."
    return f"{head}\n{text.rstrip()}\n"


def heading(comparison: Comparison) -> str:
    """Title of a comparison, and what the paper says."""
    return f"### {comparison.title}\n\n{comparison.text}\n"


def source(figures: Sequence[Figures]) -> str:
    """The line below a table: photos, trainings and days of the figures in it."""
    photos = " and ".join(map(str, sorted({r["images"] for r in figures})))
    days = sorted({r.get("measured") or FIRST_RUN for r in figures})
    lengths = sorted(
        {
            (t["iterations"], t["batch_size"], t["augment"]["crop"])
            for r in figures
            if r["seed"] is not None and (t := r["training"])
        }
    )
    trained = [f"{n} iterations of {batch} crops of {crop} pixels" for n, batch, crop in lengths]
    return f"*{'; '.join([f'{photos} photos', *trained, ' and '.join(days)])}*\n"


def seeds_of(results: Results, *wanted: Point) -> list[int]:
    """The seeds with which all of the points were run."""
    seeds = sorted({r["seed"] for r in results.values() if r["seed"] is not None})
    return [s for s in seeds if all(p._replace(seed=s).name in results for p in wanted)]


def of_seeds(results: Results, point: Point, seeds: Sequence[int]) -> list[Figures]:
    """The figures of a point, one for each seed."""
    return [results[point._replace(seed=seed).name] for seed in seeds]


def verdict(gains: Sequence[float], claim: str) -> str:
    """The verdict on a claim, from its gain (in 0..1) in each comparison."""
    held = sum(gain > 0 for gain in gains)
    word = {len(gains): "Held", 0: "Did not hold"}.get(held, "Not settled")
    if len(gains) == 1:  # one seed may be luck
        word = "Not settled"
    shown = ", ".join(f"{100 * gain:+.2f}" for gain in gains)
    return f"**{word}**: {claim} ({held} of {len(gains)} comparisons; points: {shown})."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def curve(figures: Figures) -> dict[int, float]:
    """The trimap curve of a point: mIoU by width."""
    return {int(width): value for width, value in figures["trimap"].items()}


def measures(figures: Figures) -> dict[str, float]:
    """mIoU of a point in each band, the narrowest first, on the whole photo and at boundaries."""
    bands = {f"band of {width} px": value for width, value in curve(figures).items()}
    return bands | {"whole photo": figures["miou"], "boundary IoU": figures["boundary_miou"]}


def boundary_section(results: Results, folder: Path) -> str | None:
    """The bundled network by band width, with and without its decoder."""
    seeds = seeds_of(results, Point(BILINEAR, 0))
    bundled = results.get(Point(BUNDLED, None).name)
    if not seeds or bundled is None:
        return None
    before = of_seeds(results, Point(BILINEAR, 0), seeds)
    text = bands(before, [bundled] * len(seeds), folder / "boundary.svg")
    crops = min(r["training"]["iterations"] * r["training"]["batch_size"] for r in before)
    return text if crops >= ENOUGH_CROPS else text + "\n" + too_short(crops)


def too_short(crops: int) -> str:
    """Say that a bilinear classifier with little training does not show the paper's gain."""
    return (
        f"**Not the paper's gain**: the bilinear classifier saw only {crops} crops, so most of the "
        "gain may be\nmissing training. The full preset takes hours on a busy CPU.\n"
    )


def decoder_section(results: Results, folder: Path) -> str | None:
    """Both trained heads by band width, and what the decoder gains."""
    seeds = seeds_of(results, Point(UPSAMPLING, 0), Point(DECODER, 0))
    if not seeds:
        return None
    before, after = (of_seeds(results, Point(net, 0), seeds) for net in (UPSAMPLING, DECODER))
    return bands(before, after, folder / "decoder.svg")


def bands(before: Sequence[Figures], after: Sequence[Figures], plot: Path) -> str:
    """Bilinear upsampling against the decoder by band width, one pair for each seed."""
    lines = {"decoder": after, "bilinear upsampling": before}
    plots.trimap({name: [curve(r) for r in runs] for name, runs in lines.items()}, plot)
    pairs = [(measures(a), measures(b)) for a, b in zip(before, after, strict=True)]
    gains = {name: [b[name] - a[name] for a, b in pairs] for name in pairs[0][0]}
    rows = []
    for name in gains:
        ours = [[figures[name] for figures in side] for side in zip(*pairs, strict=True)]
        gain = difference(*ours)
        shown = [percent(sorted(set(values))) for values in ours]
        rows.append([name, *shown, points(gain), gain.verdict])
    header = ["mIoU (%)", "bilinear upsampling", "decoder", "gain", "the decoder is"]
    picture = f"![mIoU by trimap width](studies/{plot.name})\n"
    text = [table(header, rows), source([*before, *after]), picture, *decoder_verdicts(gains)]
    return "\n".join(text)


def decoder_verdicts(gains: dict[str, list[float]]) -> list[str]:
    """The verdicts from the gains of each seed; the first gain is the narrowest band's."""
    narrow, whole = next(iter(gains.values())), gains["whole photo"]
    more = [n - w for n, w in zip(narrow, whole, strict=True)]
    most = max(gains, key=lambda name: mean(gains[name]))
    return [
        verdict(whole, "the decoder is better on the whole photo") + "\n",
        verdict(narrow, "it is better in the narrowest band") + "\n",
        verdict(more, "it gains more in the narrowest band than on the whole photo") + "\n",
        f"In the mean of the seeds its gain is largest here: {most}.\n",
    ]


def fullest(seen: list[Results]) -> list[Results]:
    """The results by the number of photos, first those with the most rows of table 3."""
    return sorted(seen, key=lambda view: -sum(row.point.name in view for row in TABLE_3))


def inference_section(results: Results, _folder: Path) -> str | None:
    """Table 3 with the bundled network; rows that are missing say so."""
    used = [results[row.point.name] for row in TABLE_3 if row.point.name in results]
    if len(used) < 2:
        return None
    head = ["OS", "decoder", "MS", "flip", "paper, ResNet-101", "here", "boundary IoU"]
    rows = [strategy_row(row, results) for row in TABLE_3]
    return "\n".join([table([*head, "multiply-adds (billions)"], rows), source(used)])


def strategy_row(row: Strategy, results: Results) -> list[str]:
    """The cells of one row of table 3."""
    point = row.point
    marks = ["x" if on else "" for on in (row.decoder, row.multi_scale, row.flip)]
    found = results.get(point.name)
    shown = ["not run", ""]
    if found is not None:
        shown = [percent([found["miou"]]), percent([found["boundary_miou"]])]
    cost = _cost(point.net, row.output_stride, row.multi_scale) * (2 if row.flip else 1)
    return [str(row.output_stride), *marks, f"{row.paper:.2f}", *shown, f"{cost:.1f}"]


def stride_section(results: Results, folder: Path) -> str | None:
    """Each network at both output strides."""
    candidates = [Point(BUNDLED, None)] + [
        Point(net, seed)
        for net in (DECODER, UPSAMPLING)
        for seed in seeds_of(results, Point(net, 0, 16), Point(net, 0, 8))
    ]
    pairs = [
        (point.run, results[point.name], results[point._replace(output_stride=8).name])
        for point in candidates
        if {point.name, point._replace(output_stride=8).name} <= results.keys()
    ]
    if not pairs:
        return None
    rows, gains = [], []
    for name, coarse, fine in pairs:
        gains.append(fine["miou"] - coarse["miou"])
        edge = fine["boundary_miou"] - coarse["boundary_miou"]
        cells = [percent([r["miou"]]) for r in (coarse, fine)]
        rows.append([name, *cells, f"{100 * gains[-1]:+.2f}", f"{100 * edge:+.2f}"])
    header = ["network", "mIoU at 16 (%)", "at 8", "gain", "gain in boundary IoU"]
    text = [table(header, rows), source([r for pair in pairs for r in pair[1:]])]
    if pairs[0][0] == BUNDLED.name:
        lines = {f"output stride {n}": [curve(r)] for n, r in ((8, pairs[0][2]), (16, pairs[0][1]))}
        plots.trimap(lines, folder / "stride.svg", title="bundled network")
        text.append("![mIoU by trimap width](studies/stride.svg)\n")
    return "\n".join([*text, verdict(gains, "mIoU is higher at output stride 8") + "\n"])


def scales_section(results: Results, _folder: Path) -> str | None:
    """The four ways of evaluating, each with its cost."""
    text: list[str] = []
    several: list[float] = []
    mirrored: list[float] = []
    used: list[Figures] = []
    for point in (Point(DECODER, s) for s in seeds_of(results)):
        ways = {
            label: point._replace(multi_scale=scales, flip=flip)
            for label, (scales, flip) in WAYS.items()
        }
        if any(way.name not in results for way in ways.values()):
            continue
        used += [results[way.name] for way in ways.values()]
        miou = {label: float(results[way.name]["miou"]) for label, way in ways.items()}
        several.append(miou["six scales"] - miou["one pass"])
        mirrored.append(miou["six scales, flip"] - miou["six scales"])
        text.append(_scales_table(point.run, ways, results))
    if not several:
        return None
    text += [source(used), verdict(several, "six scales raise mIoU") + "\n"]
    return "\n".join([*text, verdict(mirrored, "mirrored photos raise it further") + "\n"])


@cache
def _cost(net: Net, output_stride: int, multi_scale: bool) -> float:
    """Billions of multiply-adds of a network, without flip."""
    if net == BUNDLED:
        config = checkpoint.read_card(BUNDLED_CHECKPOINT).model
    else:
        config = recipe.read(net.preset, list(net.overrides)).model
    config = config.model_copy(update={"output_stride": output_stride})
    scales = MULTI_SCALE if multi_scale else (1.0,)
    return measure(config, scales=scales).multiply_adds / 1e9


def _scales_table(name: str, ways: dict[str, Point], results: Results) -> str:
    plain = results[ways["one pass"].name]["miou"]
    rows = []
    for label, way in ways.items():
        figures = results[way.name]
        cost = _cost(way.net, way.output_stride, way.multi_scale) * (2 if way.flip else 1)
        cells = [percent([figures["miou"]]), f"{100 * (figures['miou'] - plain):+.2f}"]
        rows.append([label, *cells, percent([figures["boundary_miou"]]), f"{cost:.1f}"])
    header = [name, "mIoU (%)", "gain", "boundary IoU (%)", "multiply-adds (billions)"]
    return table(header, rows)


def comparison_section(name: str, results: Results, folder: Path) -> str | None:
    """The rows of a comparison, and which of them can be told from its reference."""
    comparison = COMPARISONS[name]
    seeds = seeds_of(results, *(Point(r.net, 0, r.output_stride) for r in comparison.rows))
    if not seeds:
        return None
    found = {
        row.label: of_seeds(results, Point(row.net, 0, row.output_stride), seeds)
        for row in comparison.rows
    }
    miou = {label: [float(r["miou"]) for r in figures] for label, figures in found.items()}
    rows = [compared_row(row, miou, comparison.reference) for row in comparison.rows]
    ours = "ours" if len(seeds) == 1 else f"ours, mean of {len(seeds)}"
    against = f"against “{comparison.reference}”"
    header = ["", "paper, mIoU (%)", ours, "gain", against, "multiply-adds (billions)"]
    used = [r for figures in found.values() for r in figures]
    text = [table(header, rows), source(used), summary(comparison, miou) + "\n"]
    if name == "widths":
        text.insert(2, widths_plot(miou, folder / "widths.svg"))
    return "\n".join(text)


def compared_row(row: Row, miou: dict[str, list[float]], reference: str) -> list[str]:
    """The cells of one row."""
    gain = difference(miou[reference], miou[row.label])
    against = ["", ""] if row.label == reference else [points(gain), gain.verdict]
    cost = _cost(row.net, row.output_stride, False)
    return [row.label, f"{row.paper:.2f}", percent(miou[row.label]), *against, f"{cost:.1f}"]


def summary(comparison: Comparison, miou: dict[str, list[float]]) -> str:
    """Say which rows differ from the reference by more than chance."""
    others = [row.label for row in comparison.rows if row.label != comparison.reference]
    verdicts = {
        label: difference(miou[comparison.reference], miou[label]).verdict for label in others
    }
    lists = {
        word: [label for label, found in verdicts.items() if found == word]
        for word in dict.fromkeys(verdicts.values())
    }
    told = "; ".join(f"{word}: {', '.join(labels)}" for word, labels in lists.items())
    best = max(miou, key=lambda label: mean(miou[label]))
    return f"Against “{comparison.reference}”, {told}. Best in the mean: {best}."


def widths_plot(miou: dict[str, list[float]], path: Path) -> str:
    """Draw table 1."""
    count = len(next(iter(miou.values())))
    runs = [{int(c): 100 * values[i] for c, values in miou.items()} for i in range(count)]
    name = "mean of seeds" if count > 1 else "one seed"
    axis = "channels of the low-level feature"
    plots.curves({name: runs}, path, x=axis, y="mIoU (%)")
    return f"![mIoU by channels](studies/{path.name})\n"
