"""Draw plots without a display, as PNG, SVG or PDF by the file's suffix."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Curve = Mapping[int, float]


def curves(
    lines: Mapping[str, Sequence[Curve]], path: Path, *, x: str, y: str, title: str = ""
) -> None:
    """Draw the mean of each name's curves with their range shaded, and write the picture.

    The curves of one name (its runs) share their x values.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in lines.items():
        values = np.array([list(run.values()) for run in runs])  # (runs, points)
        (line,) = axes.plot(list(runs[0]), values.mean(0), marker="o", markersize=4, label=name)
        if len(runs) > 1:
            axes.fill_between(
                list(runs[0]), values.min(0), values.max(0), alpha=0.2, color=line.get_color()
            )
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def trimap(lines: Mapping[str, Sequence[Curve]], path: Path, *, title: str = "") -> None:
    """Draw mIoU (0 to 1) by band width as figure 5a of the paper does."""
    percent = {
        name: [{width: 100 * value for width, value in run.items()} for run in runs]
        for name, runs in lines.items()
    }
    curves(percent, path, x="trimap width (pixels)", y="mIoU (%)", title=title)


def series(rows: Mapping[str, Curve]) -> Figure:
    """Draw one panel for each name, value by iteration, above each other."""
    figure = Figure(figsize=(8, 2.2 * max(1, len(rows))), layout="constrained")
    panels = figure.subplots(max(1, len(rows)), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, points) in zip(panels, rows.items(), strict=False):
        axes.plot(list(points), list(points.values()), linewidth=1, marker="." * (len(points) < 40))
        axes.set_ylabel(literal(name))
        axes.grid(alpha=0.3)
        if min(points.values(), default=-1.0) >= 0:
            axes.set_ylim(bottom=0)  # else noise of a percent looks like a trend
    panels[-1].set_xlabel("iteration")
    return figure


def bars(values: Mapping[str, float | None]) -> Figure:
    """Draw IoU by class, the best at the top; a class without a value has no bar."""
    ordered = sorted(values.items(), key=lambda item: -1.0 if item[1] is None else item[1])
    figure = Figure(figsize=(8, 1 + 0.27 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    shares = [100 * (value or 0.0) for _, value in ordered]
    drawn = axes.barh([literal(name) for name, _ in ordered], shares)
    labels = ["absent" if value is None else f"{100 * value:.1f}" for _, value in ordered]
    axes.bar_label(drawn, labels, padding=3, fontsize=8)
    axes.set(xlabel="IoU (%)", xlim=(0, 108))
    axes.margins(y=0.01)
    axes.grid(axis="x", alpha=0.3)
    return figure


def matrix(counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Draw a confusion matrix (K, K), truth by row, as shares of each true class."""
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = 2.5 + 0.32 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axes.set_xticks(ticks, [literal(name) for name in names], rotation=90)
    axes.set_yticks(ticks, [literal(name) for name in names])
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        ink = "white" if share > 0.5 else "black"
        text = f"{100 * share:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    return figure


def literal(text: str) -> str:
    """Escape text for matplotlib, where dollar signs would start a formula."""
    return text.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; raises ValueError for unknown ones."""
    FigureCanvasAgg(figure)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    # The text of an SVG stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "deeplab"}):
        figure.savefig(path, metadata=metadata, dpi=120)
