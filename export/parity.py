"""PyTorch against ONNX Runtime, on the CPU, before a file gets its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image

import service
from export.graph import LabelGraph
from service.contract import INPUT, Color, InputSize, Parity
from service.imaging import decode, fit, open_checked

MIN_AGREEMENT_FP32 = 0.999
BATCHES = (1, 3)  # both unlike the batch that was traced
SAMPLES = Path(service.__file__).parent / "samples"


class ParityError(RuntimeError):
    """The exported file and PyTorch disagree."""


def test_images(size: tuple[int, int], pad: Color) -> NDArray[np.uint8]:
    """The sample photos and two pictures of noise, (N, H, W, 3) uint8."""
    target = InputSize(policy="fixed", height=size[0], width=size[1], pad=pad)
    paths = sorted(SAMPLES.glob("*.jpg"))
    photos = [decode(open_checked(path.read_bytes(), 10**8)) for path in paths]
    noise = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    # Noise of 16-pixel blocks: every class has a chance, which white noise does not give.
    blocks = Image.fromarray(noise[1, : size[0] // 16 + 1, : size[1] // 16 + 1])
    noise[1] = np.asarray(blocks.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.concatenate([np.stack([fit(photo, target).pixels for photo in photos]), noise])


def compare(
    graph: LabelGraph, proto: onnx.ModelProto, size: tuple[int, int], *, pad: Color
) -> Parity:
    """Run both on the test images in batches of several sizes."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    images = test_images(size, pad)
    equal = pixels = count = 0
    error, deviations = 0.0, []
    for batch in BATCHES:
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            labels, logits = session.run(None, {INPUT: part})
            with torch.inference_mode():
                truth, exact = (tensor.numpy() for tensor in graph(torch.from_numpy(part)))
            equal += int((labels == truth).sum())
            pixels += truth.size
            count += len(part)
            error = max(error, float(np.abs(logits - exact).max()))
            deviations.append(float(exact.std()))
    return Parity(
        images=count,
        pixels=pixels,
        agreement=equal / pixels,
        max_logit_error=error,
        logit_std=float(np.mean(deviations)),
    )


def require(measured: Parity, minimum: float) -> None:
    """Raise ParityError when too few labels agree."""
    if not measured.agreement >= minimum:
        raise ParityError(
            f"{measured.agreement:.4%} of labels agree with PyTorch, {minimum:.1%} are required "
            f"(largest logit error {measured.max_logit_error:.3g}): the file was not written"
        )
