"""Compare an exported file in ONNX Runtime with PyTorch, both on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image

from export.evaluate import predict
from export.graph import LabelGraph
from model.data.dataset import Dataset
from model.evaluate.evaluation import score
from service.images.imaging import DecodedPhoto, decode, fit, open_checked
from service.inference.contract import INPUT, LABELS, InputSize, Parity
from service.settings import SAMPLES

MIN_AGREEMENT = {"fp32": 0.999, "fp16": 0.995, "int8": 0.0}
MAX_MIOU_LOSS = 0.015  # int8 is checked by this instead
BATCHES = (1, 3)  # both unlike the batch that was traced
# (H, W) that a file for any size must take: odd, even, and no multiple of anything.
OTHERS = ((65, 96), (100, 131), (64, 33))


class ParityError(RuntimeError):
    """The exported file and PyTorch disagree."""


def test_images(target: InputSize) -> NDArray[np.uint8]:
    """The sample photos and two pictures of noise, (N, H, W, C) uint8.

    Beyond the third, channels of the photos are the first three again, in another order.
    """
    photos = [decode(open_checked(path.read_bytes(), 10**8)) for path in sorted(SAMPLES.iterdir())]
    shape, channels = (target.height, target.width), target.channels
    noise = np.random.default_rng(0).integers(0, 256, (2, *shape, channels), np.uint8)
    # Noise in blocks of 16 pixels makes more classes appear than white noise does.
    blocks = noise[1, : shape[0] // 16 + 1, : shape[1] // 16 + 1]
    noise[1] = np.stack([_enlarged(band, shape) for band in np.moveaxis(blocks, -1, 0)], axis=-1)
    again = [*range(3), *((place * 2) % 3 for place in range(3, channels))]
    many = [DecodedPhoto.of(photo.pixels[..., again]) for photo in photos]
    return np.concatenate([np.stack([fit(photo, target).pixels for photo in many]), noise])


def _enlarged(band: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(band).resize(shape[::-1], Image.Resampling.BICUBIC))


def batches(target: InputSize) -> Iterator[NDArray[np.uint8]]:
    """Test batches of several sizes, and of several shapes if the graph takes them."""
    images = test_images(target.whole)
    for batch in BATCHES:
        for start in range(0, len(images), batch):
            yield images[start : start + batch]
    for height, width in _others(target):
        yield test_images(target.whole.model_copy(update={"height": height, "width": width}))


def _others(target: InputSize) -> Sequence[tuple[int, int]]:
    """Other sizes (H, W) that a graph must take."""
    if target.policy == "aligned":
        height, width = target.height, target.width
        return [target.around(part) for part in ((1, width), (height, 1), (height, width * 3 // 4))]
    return OTHERS if target.policy == "dynamic" else ()


def compare(graph: LabelGraph, proto: onnx.ModelProto, target: InputSize) -> Parity:
    """Run `graph` and the file on the test images and measure how far they are apart.

    Raises ParityError when the file's scores are not finite.
    """
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    equal = pixels = count = 0
    error, deviations = 0.0, []
    for images in batches(target):
        labels, scores = session.run(None, {INPUT: images})[:2]
        if not np.isfinite(scores).all():
            raise ParityError("the file's scores are not finite: export it as fp32")
        with torch.inference_mode():
            truth, exact = (tensor.numpy() for tensor in graph(torch.from_numpy(images))[:2])
        equal += int((labels == truth).sum())
        pixels += truth.size
        count += len(images)
        error = max(error, float(np.abs(scores - exact).max()))
        deviations.append(float(exact.std()))
    return Parity(
        images=count,
        pixels=pixels,
        agreement=equal / pixels,
        max_logit_error=error,
        logit_std=float(np.mean(deviations)),
    )


def with_miou(
    measured: Parity, graph: LabelGraph, proto: onnx.ModelProto, target: InputSize, data: Dataset
) -> Parity:
    """`measured` with the mIoU of the file minus that of PyTorch on a data set."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def file(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return session.run([LABELS], {INPUT: images})[0]  # type: ignore[no-any-return]

    def exact(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            return graph(torch.from_numpy(images))[0].numpy()  # type: ignore[no-any-return]

    ours, theirs = (score(data, partial(predict, run, target)).miou() for run in (file, exact))
    return measured.model_copy(
        update={"miou_change": ours - theirs, "miou_images": len(data.pairs)}
    )


def require(measured: Parity, precision: str) -> None:
    """Raise ParityError when too few labels agree, or too much mIoU is lost."""
    minimum = MIN_AGREEMENT[precision]
    if not measured.agreement >= minimum:
        raise ParityError(
            f"{measured.agreement:.4%} of labels agree with PyTorch, {minimum:.1%} are required "
            f"(largest logit error {measured.max_logit_error:.3g}): the file was not written"
        )
    if measured.miou_change is not None and measured.miou_change < -MAX_MIOU_LOSS:
        raise ParityError(
            f"mIoU falls by {-measured.miou_change:.4f} on {measured.miou_images} images, "
            f"{MAX_MIOU_LOSS} are allowed: the file was not written"
        )
