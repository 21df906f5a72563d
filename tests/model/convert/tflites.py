"""Write TFLite files like those of research/deeplab's 8-bit networks, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import flatbuffers
import numpy as np
import tflite

from model.convert.variables import Variables

Precision = Literal["uint8", "int8 by channel", "float32"]
Array = np.ndarray[Any, Any]


class Stored(NamedTuple):
    """A tensor as TFLite keeps it."""

    name: str
    numbers: Array
    scale: Array
    zero: Array
    axis: int = 0


TYPES = {
    "uint8": tflite.TensorType.UINT8,
    "int8": tflite.TensorType.INT8,
    "int32": tflite.TensorType.INT32,
    "float32": tflite.TensorType.FLOAT32,
}


def folded(variables: Variables) -> dict[str, tuple[Array, Array]]:
    """Return kernel and bias by scope, with batch norms folded in as TFLite's converter does."""
    found = {}
    for name, kernel in variables.items():
        scope, leaf = name.rsplit("/", 1)
        if leaf not in ("weights", "depthwise_weights"):
            continue
        if scope == "logits/semantic":
            found[name] = kernel, variables[f"{scope}/biases"]
            continue
        gamma, beta, mean, variance = (
            variables[f"{scope}/BatchNorm/{leaf}"]
            for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        epsilon = 1e-3 if scope.startswith("MobilenetV2") else 1e-5
        factor = gamma / np.sqrt(variance + epsilon)
        sides = (1, 1, -1, 1) if leaf == "depthwise_weights" else (1, 1, 1, -1)
        found[name] = kernel * factor.reshape(sides), beta - mean * factor
    return found


def write(path: Path, variables: Variables, precision: Precision = "uint8") -> None:
    """Write one convolution after another; the reader needs nothing else of such a file."""
    builder = flatbuffers.Builder(1 << 16)
    stored = []
    for name, (kernel, bias) in folded(variables).items():
        scope, leaf = name.rsplit("/", 1)
        depthwise = leaf == "depthwise_weights"
        turned = kernel.transpose(3, 0, 1, 2)  # HWIO -> OHWI; depthwise HWC1 -> 1HWC
        fused = f"{scope}/Conv2D_Fold;{scope}/weights_quant/FakeQuantWithMinMaxVars"
        weights = quantized(fused, turned, precision, axis=3 if depthwise else 0)
        stored += [(weights, depthwise), (biased(f"{scope}/bias", bias, precision), depthwise)]
    builder.Finish(model(builder, stored), b"TFL3")
    path.write_bytes(builder.Output())


def quantized(name: str, values: Array, precision: Precision, axis: int) -> Stored:
    if precision == "float32":
        return Stored(name, values.astype(np.float32), np.zeros(0), np.zeros(0))
    if precision == "uint8":
        low, high = min(values.min(), 0), max(values.max(), 0)
        scale = np.float32((high - low) / 255)
        zero = round(float(-low / scale))
        numbers = np.clip(np.round(values / scale) + zero, 0, 255).astype(np.uint8)
        return Stored(name, numbers, np.array([scale]), np.array([zero]))
    others = tuple(index for index in range(values.ndim) if index != axis)
    scales = (np.abs(values).max(others, keepdims=True) / 127).astype(np.float32)
    numbers = np.round(values / scales).astype(np.int8)
    return Stored(name, numbers, scales.ravel(), np.zeros(scales.size, int), axis)


def biased(name: str, values: Array, precision: Precision) -> Stored:
    if precision == "float32":
        return Stored(name, values.astype(np.float32), np.zeros(0), np.zeros(0))
    scale = np.float32(1e-5)
    numbers = np.round(values / scale).astype(np.int32)
    return Stored(name, numbers, np.array([scale]), np.array([0]))


def model(builder: Any, stored: list[tuple[Stored, bool]]) -> int:
    """The table at the root: buffers, tensors, operators, one graph."""
    buffers = [buffer(builder, np.zeros(0, np.uint8))]  # the first one is empty by convention
    tensors = [tensor(builder, Stored("input", np.zeros(0), np.zeros(0), np.zeros(0)), 0)]
    operators = []
    for index, (each, depthwise) in enumerate(stored):
        buffers.append(buffer(builder, each.numbers))
        tensors.append(tensor(builder, each, index + 1))
        if index % 2:
            operators.append(operator(builder, int(depthwise), [0, index, index + 1]))
    codes = [code(builder, tflite.BuiltinOperator.CONV_2D),
             code(builder, tflite.BuiltinOperator.DEPTHWISE_CONV_2D)]  # fmt: skip
    graph = subgraph(builder, tensors, operators)
    vectors = [tables(builder, each) for each in (codes, [graph], buffers)]
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, vectors[0])
    tflite.ModelAddSubgraphs(builder, vectors[1])
    tflite.ModelAddBuffers(builder, vectors[2])
    return int(tflite.ModelEnd(builder))


def tables(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def buffer(builder: Any, numbers: Array) -> int:
    content = numbers.tobytes()
    data = builder.CreateByteVector(content) if content else None
    tflite.BufferStart(builder)
    if data is not None:
        tflite.BufferAddData(builder, data)
    return int(tflite.BufferEnd(builder))


def tensor(builder: Any, each: Stored, index: int) -> int:
    name = builder.CreateString(each.name)
    shape = builder.CreateNumpyVector(np.array(each.numbers.shape, np.int32))
    scale = builder.CreateNumpyVector(each.scale.astype(np.float32))
    zero = builder.CreateNumpyVector(each.zero.astype(np.int64))
    tflite.QuantizationParametersStart(builder)
    tflite.QuantizationParametersAddScale(builder, scale)
    tflite.QuantizationParametersAddZeroPoint(builder, zero)
    tflite.QuantizationParametersAddQuantizedDimension(builder, each.axis)
    quantization = tflite.QuantizationParametersEnd(builder)
    tflite.TensorStart(builder)
    tflite.TensorAddName(builder, name)
    tflite.TensorAddShape(builder, shape)
    tflite.TensorAddType(builder, TYPES.get(str(each.numbers.dtype), 0))
    tflite.TensorAddBuffer(builder, index)
    tflite.TensorAddQuantization(builder, quantization)
    return int(tflite.TensorEnd(builder))


def operator(builder: Any, opcode: int, inputs: list[int]) -> int:
    vector = builder.CreateNumpyVector(np.array(inputs, np.int32))
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, opcode)
    tflite.OperatorAddInputs(builder, vector)
    return int(tflite.OperatorEnd(builder))


def code(builder: Any, kind: int) -> int:
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, kind)
    tflite.OperatorCodeAddBuiltinCode(builder, kind)
    return int(tflite.OperatorCodeEnd(builder))


def subgraph(builder: Any, tensors: list[int], operators: list[int]) -> int:
    vectors = [tables(builder, tensors), tables(builder, operators)]
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, vectors[0])
    tflite.SubGraphAddOperators(builder, vectors[1])
    return int(tflite.SubGraphEnd(builder))
