"""DeepLabv3+: the network, its data, its training and its evaluation.

Segment a photo with a checkpoint:

    import model

    net = model.load("model/bundled/efficientnet-lite0-voc")
    labels = model.predict(net, "service/samples/cat.jpg")  # (H, W) uint8 class ids
    names = model.read_card("model/bundled/efficientnet-lite0-voc").classes

`model.segment(net, photo, "overlay,polygons")` gives the result files of the service: pictures,
polygons, JSON, probabilities.

`import model` itself loads neither torch nor NumPy; the first call of a function does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from model.checkpoint import Card
    from model.network.deeplab import DeepLabV3Plus
    from model.network.results import Fit
    from postprocess.refine import Below
    from postprocess.results.options import Names
    from postprocess.results.outputs import MaskFormat, OverlayFormat

__all__ = ["load", "predict", "read_card", "segment"]


def load(path: Path | str, output_stride: int | None = None) -> DeepLabV3Plus:
    """Rebuild the network of a checkpoint, in eval mode and on the CPU.

    `path` is NAME of NAME.safetensors and NAME.json. The network is a torch module:
    `.to("cuda")` moves it, and called with (N, 3, H, W) float32 in [0, 255], RGB, it
    returns logits. `output_stride` (8, 16 or 32) is by default the checkpoint's own;
    a smaller one gives finer features for more time.

    Raises model.checkpoint.CheckpointError, a ValueError, for a missing or damaged file,
    and ValueError for another output stride.
    """
    from model import checkpoint  # noqa: PLC0415 - loads torch

    return checkpoint.load(path, output_stride)


def read_card(path: Path | str) -> Card:
    """Read the JSON beside a checkpoint's weights: `.classes` and `.palette` by class id.

    Raises model.checkpoint.CheckpointError, a ValueError.
    """
    from model import checkpoint  # noqa: PLC0415 - loads torch

    return checkpoint.read_card(path)


def predict(
    net: DeepLabV3Plus,
    photo: Path | str | Image.Image | NDArray[np.uint8],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit: Fit = "resize",
    overlap: float | None = None,
    whole: bool = False,
    classes: Names | None = None,
    min_confidence: float | str | Mapping[str, float] | None = None,
    threshold: str | None = None,
    below: Below = "background",
    smooth: bool = False,
    min_area: float | str = 0,
    fill_holes: float | str = 0,
) -> NDArray[np.uint8]:
    """Segment a photo of any size: (H, W) uint8, the class id of each pixel, 255 for none.

    `photo` is a file, a Pillow image, or (H, W, 3) uint8 in RGB. Files and Pillow images
    are turned upright as their EXIF orientation says, so H and W are those of the upright
    photo; transparent pixels count as white, and 16-bit grey is scaled to 8 bits. An array
    is taken as it is. A large JPEG file is decoded at a fraction of its size if the network needs
    no more, as in the service. The result is what `python -m model.predict` writes.

    `scales` and `flip` average the class probabilities of the photo at several sizes, and of
    its mirror images; the paper uses 0.5, 0.75, 1, 1.25, 1.5, 1.75 with flip. A photo larger
    than the network's crop size is shrunk to it, as the service does; with `fit="sliding"` it is
    cut into windows, as the service does, which overlap by `overlap`. `overlap` alone, a share
    from 0 to below 1, averages the probabilities of windows as the reference does; `whole` takes
    the photo whole.

    `classes`, `min_confidence` (0.6, or {"person": 0.8}), `threshold` ("best"), `below`, `smooth`,
    `min_area` (64 pixels, or 0.001 of the photo) and `fill_holes` are the service's options, with
    the same result: docs/api.md. `segment` has all of them.

    Raises OSError for a file that is missing or no picture; ValueError for an array of another
    form, options out of range and a network in training mode; TypeError for any other photo.
    """
    from model.data.photo import as_source  # noqa: PLC0415 - loads NumPy and Pillow
    from model.network.results import NetFacts, Passes, label_map  # noqa: PLC0415 - loads torch
    from postprocess.results import options  # noqa: PLC0415 - loads NumPy and Pillow

    wish = options.wish(
        NetFacts.of(net),
        None,
        classes=classes,
        min_confidence=min_confidence,
        threshold=threshold,
        below=below,
        smooth=smooth,
        min_area=min_area,
        fill_holes=fill_holes,
    )
    passes = Passes(tuple(scales), flip, fit, overlap, whole)
    return label_map(net, as_source(photo, net.config.samples), wish, passes)


def segment(
    net: DeepLabV3Plus,
    photo: Path | str | Image.Image | NDArray[np.uint8],
    output: Names = "mask",
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit: Fit = "resize",
    overlap: float = 0.25,
    classes: Names | None = None,
    alpha: float = 0.5,
    contour: int = 0,
    legend: bool = False,
    overlay_format: OverlayFormat = "jpeg",
    max_side: int | None = None,
    mask_format: MaskFormat = "palette",
    include: Names = (),
    min_confidence: float | str | Mapping[str, float] | None = None,
    threshold: str | None = None,
    below: Below = "background",
    smooth: bool = False,
    min_area: float | str = 0,
    fill_holes: float | str = 0,
    instances: bool = False,
    simplify: float = 0,
    fill: str = "ffffff",
    top: int = 0,
    coverage: float | None = None,
) -> dict[str, bytes]:
    """Segment a photo and return result files by name, as `POST /segment` answers.

    `output`: one name or several, such as "polygons" or "mask,json"; the files are called
    `mask.png`, `result.json` and so on. All other options are those of the service, with its
    defaults: docs/api.md. `scales`, `flip` and the photo are those of `predict`.

        files = model.segment(net, "cat.jpg", "overlay,polygons", min_area="0.1%", simplify=2)

    Errors are those of `predict`.
    """
    from model.data.photo import as_source, orientation  # noqa: PLC0415 - loads NumPy and Pillow
    from model.network.results import NetFacts, Passes, files  # noqa: PLC0415 - loads torch
    from postprocess.results import options  # noqa: PLC0415 - loads NumPy and Pillow

    wish = options.wish(
        NetFacts.of(net),
        output,
        classes=classes,
        alpha=alpha,
        contour=contour,
        legend=legend,
        overlay_format=overlay_format,
        max_side=max_side,
        mask_format=mask_format,
        include=include,
        min_confidence=min_confidence,
        threshold=threshold,
        below=below,
        smooth=smooth,
        min_area=min_area,
        fill_holes=fill_holes,
        instances=instances,
        simplify=simplify,
        fill=fill,
        top=top,
        coverage=coverage,
    )
    options.expect_within("overlap", overlap)  # also if unused, as the service does
    windows = overlap if fit == "sliding" else None
    passes = Passes(tuple(scales), flip, fit, windows)
    samples = net.config.samples
    turned = orientation(photo, samples)
    return files(net, as_source(photo, samples), wish, passes, turned)
