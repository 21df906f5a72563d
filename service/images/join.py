"""Join the model's predictions for a photo's inputs into the photo's result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from postprocess.grid import Grid
from postprocess.runs import Spread
from service.images import imaging, windows
from service.images.imaging import Fitted
from service.images.outputs import Result
from service.images.prepare import Prepared
from service.inference.contract import Contract
from service.inference.engine import Prediction


def result(prepared: Prepared, predictions: Sequence[Prediction], contract: Contract) -> Result:
    """Return the result of a photo, from one prediction for each of its inputs."""
    photo, inputs = prepared.photo, prepared.inputs
    labels = _joined(prepared, [each.labels for each in predictions])
    sure = [each.confidence for each in predictions if each.confidence is not None]
    confidence = _joined(prepared, sure) if sure else None
    if not isinstance(inputs, Fitted):
        return Result(photo, labels, confidence, Spread.none(labels.shape), contract)
    spread = imaging.spread(inputs, photo.size)
    grid = _grid(prepared, inputs, predictions[0], contract)
    return Result(photo, labels, confidence, spread, contract, grid)


def _grid(
    prepared: Prepared, fitted: Fitted, prediction: Prediction, contract: Contract
) -> Grid | None:
    values, placing = prediction.probabilities, contract.probability_grid
    if values is None or placing is None:
        return None
    size = contract.input.height, contract.input.width
    return Grid.of(values, placing, size, fitted.valid, prepared.photo.size)


def _joined(prepared: Prepared, maps: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join maps (H, W) of the model to a map of the photo."""
    inputs = prepared.inputs
    if isinstance(inputs, Fitted):
        h, w = inputs.valid
        return maps[0][:h, :w]
    return windows.merge(maps, inputs, prepared.photo.size)
