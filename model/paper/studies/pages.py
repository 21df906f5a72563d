"""Write docs/studies.md, its plots and its figures from the results of the studies.

Verdicts are computed: a claim "held" if it held in every comparison, and "did not
hold" if it held in none. Otherwise, and with a single comparison, it is "not settled".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from model import checkpoint
from model.evaluate import plots
from model.paper.complexity import measure
from model.paper.studies.plan import (
    BUNDLED,
    BUNDLED_CHECKPOINT,
    DECODER,
    LOW_LEVEL_CHANNELS,
    MULTI_SCALE,
    PRESET,
    UPSAMPLING,
    WIDTH_ITERATIONS,
    Net,
    Point,
    width,
)
from model.paper.studies.run import StudyError
from model.train import recipe

Figures = dict[str, Any]  # of one point, as model.evaluate writes them
Results = dict[str, Figures]  # by the point's name
KEPT = ("network", "seed", "images", "miou", "boundary_miou", "trimap", "training")
PAPER_WIDTHS = {8: 77.61, 16: 77.92, 32: 78.16, 48: 78.21, 64: 77.94}  # table 1
NOTHING = "Not run yet.\n"
WIDTHS = {width(channels).name for channels in LOW_LEVEL_CHANNELS}  # networks of table 1
WAYS = {  # of judging: multi-scale, flip
    "one pass": (False, False),
    "flip": (False, True),
    "six scales": (True, False),
    "six scales, flip": (True, True),
}

INTRODUCTION = """\
# Studies

Claims of the paper, tried on one CPU core with a small network. Written by `python -m
model.studies write`; the figures are in [studies/figures.json](studies/figures.json).

**What was trained.** DeepLabv3+ on EfficientNet-Lite0, preset `{preset}`: the backbone
keeps its ImageNet weights, so that its features favour no head, and a head of 128 channels trains
on them for {iterations} iterations on batches of {batch} crops of {crop} pixels, VOC 2012 trainaug
(train and SBD masks), poly policy, averaged weights. Recipes of one comparison differ only in the
option that is studied: the order and crops of the photos are the same for all networks of a seed,
the random first weights are not. The paper trains all layers of far larger networks, for 30,000
iterations on crops of 513, so its mIoU is not comparable. What can be compared is the direction of
a change, for heads on fixed features.

**What was evaluated.** {images} photos of VOC 2012 val, a part of the published set, at their own
size. Seeds and options were fixed beforehand, the length was not (see below). *bundled* is the
model bundled until 2026-11-27, before its second training (its files are those of commit 9629a77;
[model card](../model/bundled/MODEL_CARD.md)). All figures are percent; ranges are lowest to
highest over seeds.

**What was abandoned.** Two earlier recipes were dropped after their first networks, which were too
weak to compare: all layers from ImageNet weights (bilinear upsampling, mIoU 21.2 %), and a full
head on the bundled model's backbone, both trained at a quarter of this rate for 300 iterations
(seed 0: 26.3 % with the decoder, 32.8 % with bilinear upsampling; seed 1: 40.0 % with
bilinear upsampling). Rate and width of this recipe were chosen by the training loss of short runs;
two more trials, decoders on the bundled backbone at the old rate, were evaluated on val (30.3 % and
22.4 %). The recipe first had 600 iterations: with seed 0, bilinear upsampling reached 40.6 % and
the decoder 40.2 %, and 21.7 % and 23.5 % in the narrowest band. Some classes were not found at
all yet, so all networks except table 1's got 1500 iterations. Nothing was changed after that.

```console
$ python -m model.studies all --data DATA --out runs/studies{options}
$ python -m model.studies write --out runs/studies
```
"""

DECODER_TEXT = """\
## The decoder against bilinear upsampling

The paper (section 4.4, figure 5a): the decoder improves mIoU near boundaries over bilinear
upsampling of the logits, and most where the band around the void label is narrow (by 4.8
points with ResNet-101 and 5.4 with Xception at the narrowest). A band of width w contains the
pixels that a dilation of the void label by a square of side 2w + 1 adds.
"""
STRIDE_TEXT = """\
## Evaluating at output stride 8 instead of 16

The paper (tables 3 and 5): networks trained at output stride 16 gain at 8, ResNet-101 by 1.30
points without the decoder and 0.50 with it, Xception by 0.47 and 0.29.
"""
SCALES_TEXT = """\
## Several scales and mirrored photos

The paper (tables 3 and 5, output stride 16, decoder): six scales from 0.5 to 1.75 add 1.24 points
with ResNet-101 and 1.45 with Xception, mirrored photos another 0.13 and 0.06. Multiply-adds are
by the paper's rule, for a photo of 513x513.
"""
WIDTHS_TEXT = """\
## Channels of the low-level feature

The paper (table 1, ResNet-101): 48 channels, or 32, do best. The paper's row has one 3x3
convolution after them, this one has the two of the final decoder, and its networks were trained for
{iterations} iterations.
"""


def load(out: Path) -> Results:
    """Read all results below `out`; raises StudyError for none, or for mixed recipes."""
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(out.glob("*.json"))
    }
    trained = [r for r in results.values() if r["seed"] is not None]
    if not trained:
        raise StudyError(f"{out} holds no result of a trained network; run a study first")
    for of_table_1 in (False, True):
        together = [r for r in trained if (r["network"] in WIDTHS) == of_table_1]
        for key in ("iterations", "batch_size", "augment"):
            if len({json.dumps(r["training"][key]) for r in together}) > 1:
                raise StudyError(f"results below {out} differ in {key}: they cannot be compared")
    if len({r["images"] for r in results.values()}) > 1:
        raise StudyError(f"results below {out} were evaluated on different numbers of photos")
    return results


def write(out: Path, docs: Path) -> Path:
    """Write the page, its plots and the figures below `docs`; returns the page's path."""
    results = load(out)
    folder = docs / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        introduction(results),
        decoder_section(results, folder),
        stride_section(results, folder),
        scales_section(results),
        widths_section(results, folder),
    ]
    figures = {name: {key: r[key] for key in KEPT} for name, r in results.items()}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    page = docs / "studies.md"
    page.write_text("\n".join(sections), encoding="utf-8")
    return page


def introduction(results: Results) -> str:
    """The top of the page: the trainings, the evaluations and their commands."""
    nets = [r for r in results.values() if r["seed"] is not None]
    trained = next((r for r in nets if r["network"] not in WIDTHS), nets[0])
    training = trained["training"]
    seeds = sorted({r["seed"] for r in nets})
    options = f" --seeds {','.join(map(str, seeds))}"
    if training["iterations"] != recipe.read(PRESET, []).iterations:
        options += f" --set iterations={training['iterations']}"
    return INTRODUCTION.format(
        preset=PRESET,
        iterations=training["iterations"],
        batch=training["batch_size"],
        crop=training["augment"]["crop"],
        images=trained["images"],
        options=options,
    )


def seeds_of(results: Results, *points: Point) -> list[int]:
    """The seeds with which all of the points were run."""
    seeds = sorted({r["seed"] for r in results.values() if r["seed"] is not None})
    return [s for s in seeds if all(p._replace(seed=s).name in results for p in points)]


def of_seeds(results: Results, net: Net, seeds: Sequence[int]) -> list[Figures]:
    """The figures of a network at output stride 16, one for each seed."""
    return [results[Point(net, seed).name] for seed in seeds]


def percent(values: Sequence[float]) -> str:
    """The mean of values in 0..1 as percent, and the range of several."""
    shown = f"{100 * mean(values):.2f}"
    if len(values) == 1:
        return shown
    return f"{shown} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def verdict(gains: Sequence[float], claim: str) -> str:
    """The verdict on a claim, from its gain (in 0..1) in each comparison."""
    held = sum(gain > 0 for gain in gains)
    word = {len(gains): "Held", 0: "Did not hold"}.get(held, "Not settled")
    if len(gains) == 1:  # one seed may be luck
        word = "Not settled"
    points = ", ".join(f"{100 * gain:+.2f}" for gain in gains)
    return f"**{word}**: {claim} ({held} of {len(gains)} comparisons; points: {points})."


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


def decoder_section(results: Results, folder: Path) -> str:
    """Both networks by band width, and what the decoder gains."""
    seeds = seeds_of(results, Point(UPSAMPLING, 0), Point(DECODER, 0))
    if not seeds:
        return DECODER_TEXT + "\n" + NOTHING
    before, after = (of_seeds(results, net, seeds) for net in (UPSAMPLING, DECODER))
    lines = {"with decoder": after, "bilinear upsampling": before}
    plots.trimap(
        {name: [curve(r) for r in runs] for name, runs in lines.items()}, folder / "decoder.svg"
    )
    pairs = [(measures(a), measures(b)) for a, b in zip(before, after, strict=True)]
    gains = {name: [b[name] - a[name] for a, b in pairs] for name in pairs[0][0]}
    rows = [
        [
            name,
            percent([a[name] for a, _ in pairs]),
            percent([b[name] for _, b in pairs]),
            f"{100 * mean(gain):+.2f}",
        ]
        for name, gain in gains.items()
    ]
    header = ["mIoU (%)", "bilinear upsampling", "decoder", "gain"]
    plot = "![mIoU by trimap width](studies/decoder.svg)\n"
    return "\n".join([DECODER_TEXT, table(header, rows), plot, *decoder_verdicts(gains)])


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


def stride_section(results: Results, folder: Path) -> str:
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
        return STRIDE_TEXT + "\n" + NOTHING
    rows, gains = [], []
    for name, coarse, fine in pairs:
        gains.append(fine["miou"] - coarse["miou"])
        edge = fine["boundary_miou"] - coarse["boundary_miou"]
        cells = [percent([r["miou"]]) for r in (coarse, fine)]
        rows.append([name, *cells, f"{100 * gains[-1]:+.2f}", f"{100 * edge:+.2f}"])
    parts = [
        STRIDE_TEXT,
        table(["network", "mIoU at 16 (%)", "at 8", "gain", "gain in boundary IoU"], rows),
    ]
    if pairs[0][0] == BUNDLED.name:
        lines = {f"output stride {n}": [curve(r)] for n, r in ((8, pairs[0][2]), (16, pairs[0][1]))}
        plots.trimap(lines, folder / "stride.svg", title="bundled network")
        parts.append("![mIoU by trimap width](studies/stride.svg)\n")
    parts.append(verdict(gains, "mIoU is higher at output stride 8") + "\n")
    return "\n".join(parts)


def scales_section(results: Results) -> str:
    """The four ways of evaluating, each with its cost."""
    parts = [SCALES_TEXT]
    several: list[float] = []
    mirrored: list[float] = []
    for point in (Point(BUNDLED, None), *(Point(DECODER, s) for s in seeds_of(results))):
        ways = {
            label: point._replace(multi_scale=scales, flip=flip)
            for label, (scales, flip) in WAYS.items()
        }
        if any(way.name not in results for way in ways.values()):
            continue
        miou = {label: float(results[way.name]["miou"]) for label, way in ways.items()}
        several.append(miou["six scales"] - miou["one pass"])
        mirrored.append(miou["six scales, flip"] - miou["six scales"])
        parts.append(_scales_table(point.run, ways, results))
    if not several:
        return SCALES_TEXT + "\n" + NOTHING
    parts.append(verdict(several, "six scales raise mIoU") + "\n")
    parts.append(verdict(mirrored, "mirrored photos raise it further") + "\n")
    return "\n".join(parts)


@cache
def _cost(net: Net, multi_scale: bool) -> float:
    """Billions of multiply-adds of a network, without flip."""
    if net == BUNDLED:
        config = checkpoint.read_card(BUNDLED_CHECKPOINT).model
    else:
        config = recipe.read(PRESET, list(net.overrides)).model
    scales = MULTI_SCALE if multi_scale else (1.0,)
    return measure(config, scales=scales).multiply_adds / 1e9


def _scales_table(name: str, ways: dict[str, Point], results: Results) -> str:
    plain = results[ways["one pass"].name]["miou"]
    rows = []
    for label, way in ways.items():
        figures = results[way.name]
        cost = _cost(way.net, way.multi_scale) * (2 if way.flip else 1)
        rows.append(
            [
                label,
                percent([figures["miou"]]),
                f"{100 * (figures['miou'] - plain):+.2f}",
                percent([figures["boundary_miou"]]),
                f"{cost:.1f}",
            ]
        )
    header = [name, "mIoU (%)", "gain", "boundary IoU (%)", "multiply-adds (billions)"]
    return table(header, rows)


def widths_section(results: Results, folder: Path) -> str:
    """Table 1 on small networks, and whether widths differ more than seeds do."""
    seeds = seeds_of(results, *(Point(width(channels), 0) for channels in LOW_LEVEL_CHANNELS))
    if not seeds:
        return WIDTHS_TEXT.format(iterations=WIDTH_ITERATIONS) + "\n" + NOTHING
    miou = {
        channels: [float(r["miou"]) for r in of_seeds(results, width(channels), seeds)]
        for channels in LOW_LEVEL_CHANNELS
    }
    iterations = results[Point(width(48), seeds[0]).name]["training"]["iterations"]
    rows = [
        [str(channels), f"{PAPER_WIDTHS[channels]:.2f}", percent(values)]
        for channels, values in miou.items()
    ]
    runs = [{c: 100 * values[i] for c, values in miou.items()} for i in range(len(seeds))]
    name = "mean of seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    axis = "channels of the low-level feature"
    plots.curves({name: runs}, folder / "widths.svg", x=axis, y="mIoU (%)")
    return "\n".join(
        [
            WIDTHS_TEXT.format(iterations=iterations),
            table(["channels", "paper, mIoU (%)", f"ours, mean of {len(seeds)}"], rows),
            "![mIoU by channels](studies/widths.svg)\n",
            widths_verdict(miou) + "\n",
        ]
    )


def widths_verdict(miou: dict[int, list[float]]) -> str:
    """Whether the best width is one of the paper's, by more than the seeds differ."""
    means = {channels: mean(values) for channels, values in miou.items()}
    best = max(means, key=lambda channels: means[channels])
    between = 100 * (max(means.values()) - min(means.values()))
    seeds = [100 * (max(values) - min(values)) for values in miou.values()]
    text = f"{best} channels are best in the mean; widths differ by up to {between:.2f} points"
    if len(next(iter(miou.values()))) == 1:
        return f"**Not settled**: {text}, and one seed cannot say how much of that is chance."
    if between <= max(seeds):
        return f"**Not settled**: {text}, seeds of one width by up to {max(seeds):.2f}."
    word = "Held" if best in (32, 48) else "Did not hold"
    return f"**{word}**: {text}, seeds of one width by at most {max(seeds):.2f}."
