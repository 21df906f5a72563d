"""Pictures of figures, drawn without a display: PNG, SVG or whatever the file's name says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def curves(
    lines: Mapping[str, Mapping[int, float]], path: Path, *, x: str, y: str, title: str = ""
) -> None:
    """Draw one line for each name, x value to y value, and write the picture."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(list(points), list(points.values()), marker="o", markersize=4, label=name)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def trimap(lines: Mapping[str, Mapping[int, float]], path: Path, *, title: str = "") -> None:
    """Draw mIoU (0 to 1) by band width as figure 5a of the paper does."""
    percent = {name: {w: 100 * v for w, v in points.items()} for name, points in lines.items()}
    curves(percent, path, x="trimap width (pixels)", y="mIoU (%)", title=title)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; raises ValueError for unknown ones."""
    FigureCanvasAgg(figure)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    # The text of an SVG stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "deeplab"}):
        figure.savefig(path, metadata=metadata, dpi=120)
