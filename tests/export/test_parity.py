"""A file that disagrees, overflows or loses mIoU is refused."""

from __future__ import annotations

import numpy as np
import pytest

from export import parity
from export.parity import ParityError
from service.inference.contract import InputSize, Parity


def measured(**changes: object) -> Parity:
    fields: dict[str, object] = {
        "images": 1,
        "pixels": 100,
        "agreement": 1.0,
        "max_logit_error": 0.1,
        "logit_std": 1.0,
    }
    return Parity.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("precision", "agreement", "passes"),
    [("fp32", 0.9991, True), ("fp32", 0.998, False), ("fp16", 0.998, True), ("fp16", 0.99, False)],
)
def test_each_precision_has_its_own_limit(precision: str, agreement: float, passes: bool) -> None:
    if passes:
        parity.require(measured(agreement=agreement), precision)
    else:
        with pytest.raises(ParityError, match="not written"):
            parity.require(measured(agreement=agreement), precision)


@pytest.mark.parametrize(("change", "passes"), [(0.01, True), (-0.014, True), (-0.016, False)])
def test_int8_must_not_lose_too_much_miou(change: float, passes: bool) -> None:
    result = measured(agreement=0.97, miou_change=change, miou_images=9)
    if passes:
        parity.require(result, "int8")
    else:
        with pytest.raises(ParityError, match=r"mIoU falls by 0\.016"):
            parity.require(result, "int8")


def test_the_test_images_hold_photos_and_every_kind_of_noise() -> None:
    target = InputSize(policy="fixed", height=65, width=97, pad=(1, 2, 3))
    images = parity.test_images(target)
    assert images.shape == (4, 65, 97, 3)
    assert (images[0, :, -1] == (1, 2, 3)).all() or (images[0, -1] == (1, 2, 3)).all()
    assert np.unique(images[2]).size == 256


def test_dynamic_graphs_are_tried_at_other_shapes() -> None:
    """Those of an aligned graph are aligned."""
    target = InputSize(policy="dynamic", height=65, width=97, pad=(1, 2, 3))
    shapes = {images.shape[1:3] for images in parity.batches(target)}
    assert len(shapes) == 4
    alignment = {"policy": "aligned", "multiple": 16, "least": (33, 49)}
    aligned = target.model_copy(update=alignment)
    shapes = {images.shape[1:3] for images in parity.batches(aligned)}
    assert shapes == {(65, 97), (33, 97), (65, 49), (65, 81)}
    assert {images.shape[0] for images in parity.batches(target.whole)} == {1, 3}
