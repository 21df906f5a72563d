"""DeepLabv3+: the network, its data, its training and its evaluation.

Segment a photo with a checkpoint:

    import model

    net = model.load("model/bundled/efficientnet-lite0-voc")
    labels = model.predict(net, "service/samples/cat.jpg")  # (H, W) uint8 class ids
    names = model.read_card("model/bundled/efficientnet-lite0-voc").classes

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
    from postprocess.refine import Below

__all__ = ["load", "predict", "read_card"]


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
    overlap: float | None = None,
    whole: bool = False,
    min_confidence: float | str | Mapping[str, float] = 0,
    below: Below = "background",
    min_area: float | str = 0,
    fill_holes: float | str = 0,
    smooth: bool = False,
) -> NDArray[np.uint8]:
    """Segment a photo of any size: (H, W) uint8, the class id of each pixel, 255 for none.

    `photo` is a file, a Pillow image, or (H, W, 3) uint8 in RGB. Files and Pillow images
    are turned upright as their EXIF orientation says, so H and W are those of the upright
    photo; transparent pixels count as white, and 16-bit grey is scaled to 8 bits. An array
    is taken as it is. The result is what `python -m model.predict` writes.

    `scales` and `flip` average the class probabilities of the photo at several sizes, and of
    its mirror images; the paper uses 0.5, 0.75, 1, 1.25, 1.5, 1.75 with flip. A photo larger
    than the network's crop size is shrunk to it, as the service does. `overlap`, a share from 0
    to below 1, cuts it into windows that overlap by that much instead; `whole` takes it whole.

    `min_confidence` (0.6, or {"person": 0.8}), `below`, `min_area` (64 pixels, or 0.001 of the
    photo), `fill_holes` and `smooth` are the service's options, with the same result: docs/api.md.

    Raises OSError for a file that is missing or no picture; ValueError for an array of another
    form, options out of range and a network in training mode; TypeError for any other photo.
    """
    from model.data.photo import as_photo  # noqa: PLC0415 - loads NumPy and Pillow
    from model.network.refined import refined_map, refinement  # noqa: PLC0415 - loads torch

    names = net.classes or [""] * net.config.num_classes
    refine = refinement(
        names,
        min_confidence=min_confidence,
        below=below,
        min_area=min_area,
        fill_holes=fill_holes,
    )
    return refined_map(
        net, as_photo(photo), refine, scales, flip, overlap=overlap, whole=whole, smooth=smooth
    )
