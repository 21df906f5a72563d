"""Join the model's predictions for a photo's inputs into the photo's result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from postprocess import windows
from postprocess.grid import Grid
from postprocess.results.outputs import Result
from postprocess.runs import Spread
from service.images import imaging
from service.images.imaging import Fitted
from service.images.prepare import Prepared
from service.inference.contract import Contract
from service.inference.engine import Prediction


def result(prepared: Prepared, predictions: Sequence[Prediction], contract: Contract) -> Result:
    """Return the result of a photo, from one prediction for each of its inputs."""
    photo, inputs = prepared.photo, prepared.inputs
    labels = _joined(prepared, [each.labels for each in predictions])
    sure = [each.confidence for each in predictions if each.confidence is not None]
    confidence = _joined(prepared, sure) if sure else None
    spread = (
        imaging.spread(inputs, photo.size)
        if isinstance(inputs, Fitted)
        else Spread.none(labels.shape)
    )
    return Result(
        photo, labels, confidence, spread, contract, _grid(prepared, predictions, contract)
    )


def _grid(prepared: Prepared, predictions: Sequence[Prediction], contract: Contract) -> Grid | None:
    values = [each.probabilities for each in predictions if each.probabilities is not None]
    placing, target, size = contract.probability_grid, contract.input, prepared.photo.size
    if not values or placing is None:
        return None
    if isinstance(prepared.inputs, Fitted):
        height, width = prepared.inputs.pixels.shape[:2]
        return Grid.of(values[0], placing, (height, width), prepared.inputs.valid, size)
    return windows.merge_grids(values, prepared.inputs, placing, target, size)


def _joined(prepared: Prepared, maps: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join maps (H, W) of the model to a map of the photo."""
    inputs = prepared.inputs
    if isinstance(inputs, Fitted):
        h, w = inputs.valid
        return maps[0][:h, :w]
    return windows.merge(maps, inputs, prepared.photo.size)
