"""Read research/deeplab's variables from a TFLite file, 8-bit or float.

TFLite folds each batch norm into its convolution and stores 8-bit weights as
(q - zero_point) * scale. The numbers come back under the names and in the layouts of
the checkpoint, with batch norms that do nothing: gamma 1, mean 0, variance 1 - epsilon,
the folded bias as beta. What is lost is the rounding of activations to 8 bits.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tflite

from model.convert.accounting import ConvertError

Array = np.ndarray[Any, Any]

TYPES: dict[int, np.dtype[Any]] = {  # TensorType of the schema
    tflite.TensorType.FLOAT32: np.dtype("<f4"),
    tflite.TensorType.FLOAT16: np.dtype("<f2"),
    tflite.TensorType.INT32: np.dtype("<i4"),
    tflite.TensorType.INT8: np.dtype("i1"),
    tflite.TensorType.UINT8: np.dtype("u1"),
}
IDENTIFIER = b"TFL3"  # bytes 4 to 7 of the file
CONVOLUTIONS = (tflite.BuiltinOperator.CONV_2D, tflite.BuiltinOperator.DEPTHWISE_CONV_2D)
# A filter keeps the names of all that was fused into it, one of them the variable's:
# `aspp0/Conv2D_Fold;aspp0/weights_quant/FakeQuantWithMinMaxVars`.
FILTER = re.compile(r"(?:^|;)([^;]+?)/(?:depthwise_)?weights(?:_quant/[^;]*)?(?:/read)?(?=;|$)")
CLASSIFIER = "logits/semantic"
BACKBONE_EPSILON, HEAD_EPSILON = 1e-3, 1e-5  # of batch norm in MobileNetV2 and behind it
# What the generated code raises where offsets lead out of the file.
DAMAGE = (
    AttributeError,
    IndexError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)


def read(path: Path) -> dict[str, Array]:
    """The variables by name; raises ConvertError."""
    data = path.read_bytes()
    if data[4:8] != IDENTIFIER:
        raise ConvertError(f"{path} is no TFLite file: it does not begin as one")
    try:
        return _variables(tflite.Model.GetRootAs(data, 0))
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from None
    except DAMAGE as error:
        raise ConvertError(f"{path} is damaged: {error}") from None


def _variables(model: Any) -> dict[str, Array]:
    graph = model.Subgraphs(0)
    found: dict[str, Array] = {}
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        kind = _kind(model.OperatorCodes(operator.OpcodeIndex()))
        if kind in CONVOLUTIONS:
            depthwise = kind == tflite.BuiltinOperator.DEPTHWISE_CONV_2D
            found |= _convolution(model, graph, operator, depthwise=depthwise)
    if not found:
        raise ConvertError("it has no convolutions, so it is no network of research/deeplab")
    return found


def _kind(code: Any) -> int:
    """The operator; files before 2020 have it in another field."""
    return int(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))


def _convolution(model: Any, graph: Any, operator: Any, *, depthwise: bool) -> dict[str, Array]:
    """The variables that a convolution was made of: filter and batch norm, or filter and bias."""
    weights, bias = (graph.Tensors(operator.Inputs(index)) for index in (1, 2))
    scope = _scope(weights.Name().decode())
    kernel = _values(model, weights)
    axes = (1, 2, 3, 0)  # OHWI -> HWIO; depthwise 1HWC -> HWC1
    name = "depthwise_weights" if depthwise else "weights"
    found = {f"{scope}/{name}": np.ascontiguousarray(kernel.transpose(axes))}
    if scope == CLASSIFIER:
        return found | {f"{scope}/biases": _values(model, bias)}
    return found | _batch_norm(scope, _values(model, bias))


def _scope(name: str) -> str:
    """`aspp0` of a filter's name."""
    match = FILTER.search(name)
    if match is None:
        raise ConvertError(
            f"the filter {name!r} is not named as research/deeplab names its weights"
        )
    return match[1]


def _batch_norm(scope: str, bias: Array) -> dict[str, Array]:
    """A batch norm that adds `bias` and does nothing else."""
    epsilon = BACKBONE_EPSILON if scope.startswith("MobilenetV2/") else HEAD_EPSILON
    ones = np.ones_like(bias)
    values = {
        "gamma": ones,
        "beta": bias,
        "moving_mean": np.zeros_like(bias),
        "moving_variance": ones - np.float32(epsilon),
    }
    return {f"{scope}/BatchNorm/{name}": value for name, value in values.items()}


def _values(model: Any, tensor: Any) -> Array:
    """A constant tensor as float32: (q - zero_point) * scale where it is quantised."""
    name = tensor.Name().decode()
    if tensor.Type() not in TYPES:
        raise ConvertError(f"{name} has the data type {tensor.Type()}, which is not supported")
    raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
    if isinstance(raw, int):  # the generated code's way to say "absent"
        raise ConvertError(f"{name} has no numbers: it is computed, not a weight")
    shape = tensor.ShapeAsNumpy()
    numbers: Array = np.frombuffer(raw.tobytes(), TYPES[tensor.Type()]).reshape(shape)
    quantization = tensor.Quantization()
    if quantization is None or quantization.ScaleLength() == 0:
        return numbers.astype(np.float32)
    return _dequantized(numbers, quantization)


def _dequantized(numbers: Array, quantization: Any) -> Array:
    """One scale for all, or one for each index of a dimension."""
    sides = [1] * numbers.ndim
    sides[quantization.QuantizedDimension()] = -1
    scale: Array = quantization.ScaleAsNumpy().astype(np.float32).reshape(sides)
    zero: Array = quantization.ZeroPointAsNumpy().reshape(sides)
    return (numbers.astype(np.int64) - zero).astype(np.float32) * scale
