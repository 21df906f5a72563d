"""Rewrite the convolution that enlarges logits, for OpenVINO.

`python -m export` writes the bilinear enlargement of logits as a convolution of 2 x 2 logits
to r x r pixels for each class, which is fast in ONNX Runtime. OpenVINO computes it with the
channels last, and then brings 5.6 million results back into the order that argmax reads. The
same sums of four shifted maps, written as products and sums, keep that order: OpenVINO
turns them into one loop. docs/performance.md has the times.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rewrite(model: Any) -> bool:
    """Replace the convolution in an `openvino.Model`; return whether it had one."""
    found = [node for node in model.get_ordered_ops() if _enlarges(node)]
    for node in found:
        sums = _sums(node.input_value(0), _weights(node)[0])
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(sums.output(0))
    if found:
        model.validate_nodes_and_infer_types()
    return bool(found)


def _enlarges(node: Any) -> bool:
    """Return whether a node computes several pixels per class from 2 x 2 logits, alike for all."""
    if node.get_type_name() != "GroupConvolution" or node.input_value(0).partial_shape.is_dynamic:
        return False
    wanted = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1]}
    attributes = node.get_attributes()
    if any(list(attributes[name]) != value for name, value in wanted.items()):
        return False
    weights = _weights(node)
    return (
        weights is not None and weights.shape[2:] == (2, 2) and bool((weights == weights[0]).all())
    )


def _weights(node: Any) -> Any:
    """Return the constant weights of a convolution, (K, r * r, h, w); None for other nodes."""
    groups, pixels, channels, height, width = node.input_value(1).get_shape()
    source = node.input_value(1).get_node()
    while source.get_type_name() in {"Reshape", "Convert"}:
        source = source.input_value(0).get_node()
    if source.get_type_name() != "Constant" or channels != 1:
        return None
    return source.get_data().astype(np.float32).reshape(groups, pixels, height, width)


def _sums(logits: Any, weights: NDArray[np.float32]) -> Any:
    """(1, K, h, w) logits, (P, 2, 2) weights -> (1, K * P, h + 1, w + 1)."""
    from openvino import opset13 as ops  # noqa: PLC0415 - an extra

    batch, classes, height, width = logits.get_shape()
    pixels = len(weights)
    around = np.array([0, 0, 1, 1])
    padded = ops.pad(logits, around, around, "constant", np.float32(0))
    total = None
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        first, last = np.array([down, right]), np.array([down + height + 1, right + width + 1])
        shifted = ops.slice(padded, first, last, np.array([1, 1]), np.array([2, 3]))
        share = weights[:, down, right].reshape(1, 1, pixels, 1, 1)
        term = ops.multiply(ops.unsqueeze(shifted, np.array([2])), ops.constant(share))
        total = term if total is None else ops.add(total, term)
    shape = np.array([batch, classes * pixels, height + 1, width + 1])
    return ops.reshape(total, shape, special_zero=False)
