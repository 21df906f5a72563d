"""Pictures of figures, drawn without a display: PNG, SVG or PDF as the file's name says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = Mapping[int, float]


def curves(
    lines: Mapping[str, Sequence[Curve]], path: Path, *, x: str, y: str, title: str = ""
) -> None:
    """Draw the mean of each name's curves, their range shaded, and write the picture.

    The curves of one name, its runs, share their x values.
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


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; raises ValueError for unknown ones."""
    FigureCanvasAgg(figure)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    # The text of an SVG stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "deeplab"}):
        figure.savefig(path, metadata=metadata, dpi=120)
