"""Data types and shapes in TensorFlow's messages: types.proto and tensor_shape.proto."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from model.convert import wire
from model.convert.wire import WireError

DTYPES: dict[int, np.dtype[Any]] = {  # DataType of types.proto; little-endian, as the files are
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    19: np.dtype("<f2"),
}
STRING = 7
LARGEST = 1 << 31  # bytes, Protocol Buffers' own limit; the largest published variable has 9 MB


def dtype(number: int) -> np.dtype[Any]:
    """The NumPy type of a DataType; raises WireError for one that weights do not have."""
    if number not in DTYPES:
        raise WireError(f"data type {number} is not supported")
    return DTYPES[number]


def shape(message: memoryview) -> tuple[int, ...]:
    """The sizes in a TensorShapeProto; raises WireError for one that is not known."""
    sizes = []
    for number, value in wire.fields(message):
        if number == 3 and value:
            raise WireError("the rank of a tensor is not known")
        if number == 2:
            size = 0  # protobuf leaves zeros out
            for inner, inner_value in wire.fields(wire.content(value)):
                if inner == 1:
                    size = wire.signed(inner_value)
            if size < 0:
                raise WireError("a side of a tensor is not known")
            sizes.append(size)
    return tuple(sizes)


def nbytes(kind: np.dtype[Any], sizes: tuple[int, ...]) -> int:
    """How many bytes a tensor takes; raises WireError for more than any file can hold."""
    size = kind.itemsize * math.prod(sizes)
    if size > LARGEST:
        raise WireError(f"a tensor of shape {sizes} would have {size / 1e9:.0f} GB")
    return size
