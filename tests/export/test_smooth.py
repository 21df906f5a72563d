"""Smooth labels are the same from Python and from an exported file in the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

import model
from export.calibrate import segmented
from export.tradeoffs import wish
from export.writer import ExportOptions, export
from model import checkpoint
from postprocess.errors import InvalidOption
from postprocess.results import outputs
from service.inference.engine import Engine, EngineOptions

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [(50, 40), (260, 190)])  # smaller and larger than the model
def test_smooth_labels_are_the_same_from_python_and_in_the_service(
    tiny: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    export(tiny, tmp_path / "tiny.onnx", ExportOptions(confidence=True, probabilities=True))
    engine = Engine(tmp_path / "tiny.onnx", EngineOptions("cpu", threads=1))
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)), float)
    noise = Image.fromarray(((blurred - 128) * 8 + 128).clip(0, 255).astype(np.uint8))
    net = checkpoint.load(tiny)
    for options in (
        {"smooth": "true"},
        {"smooth": "true", "min_area": "30", "min_confidence": "0.3"},
    ):
        asked = wish(options, engine.contract)
        assert asked is not None
        served = outputs.refined(segmented(engine, np.asarray(noise)), asked).labels.image
        chosen: dict[str, Any] = {**options, "smooth": True}
        ours = model.predict(net, np.asarray(noise), **chosen)
        assert served.shape == ours.shape == size[::-1]
        assert (served == ours).mean() > 0.99
    assert (ours != model.predict(net, np.asarray(noise))).any()


def test_smooth_is_refused_for_whole_photos(tiny: Path) -> None:
    with pytest.raises(InvalidOption, match="smooth"):
        model.predict(
            checkpoint.load(tiny), np.zeros((99, 99, 3), np.uint8), smooth=True, whole=True
        )
