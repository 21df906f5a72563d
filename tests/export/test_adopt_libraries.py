"""Networks that other libraries export give, once adopted, the labels of the library itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.models import segmentation

from export import adopt
from service.inference.engine import Engine, EngineOptions
from service.settings import SAMPLES

pytestmark = [
    pytest.mark.slow,
    # PyTorch's older exporter, which these libraries' users still have.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

HEIGHT, WIDTH = 96, 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETWORKS: dict[str, Callable[[], Any]] = {
    "smp-unet": lambda: smp.Unet("mobilenet_v2", encoder_weights=None, classes=5),
    "smp-deeplab": lambda: smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=5),
    "torchvision-lraspp": lambda: segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    ),
}


class Balanced(nn.Module):
    """A network of random weights whose classes are all found: its scores are standardised."""

    def __init__(self, network: nn.Module, pixels: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.eval()  # all of it: the exporter restores the mode of this module
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        with torch.no_grad():
            scores = self(pixels)
        self.mean, self.std = (f((0, 2, 3), keepdim=True) for f in (scores.mean, scores.std))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, 5, H, W) scores."""
        given = self.network(pixels)
        scores: torch.Tensor = given["out"] if isinstance(given, dict) else given
        return (scores - self.mean) / self.std


def photos() -> NDArray[np.uint8]:
    return np.stack(
        [
            np.asarray(Image.open(path).convert("RGB").resize((WIDTH, HEIGHT)))
            for path in sorted(SAMPLES.glob("*.jpg"))
        ]
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = photos()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    network = Balanced(NETWORKS[name](), pixels)
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    torch.onnx.export(network, (pixels[:1],), str(theirs), dynamo=False, opset_version=17)
    numbers = [",".join(map(str, each)) for each in (MEAN, STD)]
    arguments = ["--classes", "a,b,c,d,e", "--mean", numbers[0], "--std", numbers[1]]
    assert adopt.main([str(theirs), "-o", str(ours), *arguments]) == 0
    engine = Engine(ours, EngineOptions(device="cpu", threads=1))
    found = np.stack([engine.predict(each[None], "labels")[0].labels for each in images])
    with torch.no_grad():
        expected = network(pixels).argmax(1).numpy()
    assert len(np.unique(expected)) == 5
    assert (found == expected).mean() > 0.999
