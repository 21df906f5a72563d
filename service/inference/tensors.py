"""Read and write tensors of the Open Inference Protocol v2, as JSON or as binary data.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and
Triton's binary tensor data extension: Inference-Header-Content-Length is the length of the
JSON part; the bytes of each tensor follow it, little-endian.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from service.errors import InvalidRequest
from service.inference.contract import INPUT
from service.pydantic_errors import mistakes
from service.text import from_base64

LENGTH_HEADER = "Inference-Header-Content-Length"
DATATYPE = "UINT8"
ENCODED = "BYTES"  # encoded photos of any size, in place of the model's own tensor
LENGTH = struct.Struct("<I")  # before each element of a binary BYTES tensor
MOST_PHOTOS = 1024  # read from a request; --max-files may be less

MAX_JSON_NUMBERS = 2_000_000  # numbers of an answer; writing them delays all requests by 0.1 s

Array = NDArray[np.uint8]


class InputParameters(BaseModel):
    """The size of an input's binary data."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class InputTensor(BaseModel):
    """One input, with its data in the JSON or as bytes after it."""

    name: Literal["image"]  # contract.INPUT
    datatype: Literal["UINT8", "BYTES"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=4)]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(BaseModel):
    """The requested form of an output."""

    binary_data: bool | None = None


class OutputRequest(BaseModel):
    """A requested output."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(BaseModel):
    """The default form of the outputs."""

    binary_data_output: bool = False


class InferRequest(BaseModel):
    """The JSON of an inference request."""

    id: str | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: list[OutputRequest] | None = None
    parameters: RequestParameters = RequestParameters()


class OutputTensor(BaseModel):
    """One output, with its data in the JSON, or as bytes after it if requested."""

    name: str
    datatype: str
    shape: list[int]
    parameters: InputParameters | None = None
    data: list[int] | None = None


class InferAnswer(BaseModel):
    """The JSON of an inference answer."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None


class TensorMetadata(BaseModel):
    """An input or output of a model; -1 in a shape is the number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model as the protocol describes it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """The server as the protocol describes it."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(BaseModel):
    """Whether a model takes requests."""

    name: str
    ready: bool


@dataclass(frozen=True)
class Shape:
    """The shape and outputs that a request must match."""

    header_length: str | None  # of the request: the length of its JSON part
    size: tuple[int, int, int]  # (H, W, C) of the model's input
    valid: tuple[str, ...]  # names of the model's outputs; a request that names none gets all


@dataclass(frozen=True)
class Call:
    """A parsed inference request."""

    id: str | None
    images: Array | None  # (N, H, W, C); None: the photos instead
    outputs: dict[str, bool]  # name -> whether as binary data
    photos: tuple[bytes, ...] = ()  # encoded


def json_length(body: bytes, shape: Shape) -> int:
    """Return the length of the JSON part; raises InvalidRequest."""
    header_length = shape.header_length
    if header_length is None:
        return len(body)
    valid = header_length.isascii() and header_length.isdigit() and len(header_length) < 12
    if not valid or int(header_length) > len(body):
        raise InvalidRequest(f"{LENGTH_HEADER}: {header_length!r}: the body has {len(body)} bytes")
    return int(header_length)


def read(body: bytes, shape: Shape) -> Call:
    """Read a request; raises InvalidRequest."""
    size, valid = shape.size, shape.valid
    text_length = json_length(body, shape)
    text, rest = body[:text_length], body[text_length:]
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        raise InvalidRequest(mistakes(error.errors(), whole="body", values=False)) from None
    tensor = request.inputs[0]
    by_default = request.parameters.binary_data_output
    wanted = request.outputs or [OutputRequest(name=name) for name in valid]
    if unknown := [each.name for each in wanted if each.name not in valid]:
        raise InvalidRequest(f"unknown outputs {unknown}: this model has {list(valid)}")
    asked = {each.name: each.parameters.binary_data for each in wanted}
    binary = {name: by_default if chosen is None else chosen for name, chosen in asked.items()}
    if tensor.datatype == ENCODED:
        return Call(request.id, None, binary, _photos(tensor, rest))
    if tuple(tensor.shape[1:]) != size:
        needed = ", ".join(map(str, size))
        raise InvalidRequest(f"shape {tensor.shape}: {INPUT} must be [N, {needed}]")
    images = _pixels(tensor, rest)
    check_numbers(images[..., 0].size, binary)
    return Call(request.id, images, binary)


def check_numbers(pixels: int, outputs: dict[str, bool]) -> None:
    """Raise InvalidRequest if the answer would have too many numbers as JSON."""
    numbers = pixels * list(outputs.values()).count(False)
    if numbers > MAX_JSON_NUMBERS:
        raise InvalidRequest(
            f"{numbers} numbers as JSON, the limit is {MAX_JSON_NUMBERS}: ask for binary data"
        )


def _photos(tensor: InputTensor, rest: bytes) -> tuple[bytes, ...]:
    """Read encoded photos: base64 in the JSON, or bytes after it, each behind its length."""
    count = tensor.shape[0]
    if tensor.shape[1:] not in ([], [1]) or count > MOST_PHOTOS:
        raise InvalidRequest(
            f"shape {tensor.shape}: {INPUT} of type {ENCODED} must be [N] or [N, 1], N at most "
            f"{MOST_PHOTOS}"
        )
    size = tensor.parameters.binary_data_size
    if size is None:
        return _from_texts(tensor.data, count)
    if size != len(rest):
        raise InvalidRequest(f"binary_data_size {size}, but {len(rest)} bytes follow the JSON")
    return elements(rest, count)


def elements(data: bytes, count: int) -> tuple[bytes, ...]:
    """Split a binary BYTES tensor of `count` elements; raises InvalidRequest."""
    found, at = [], 0
    for number in range(count):
        end = at + LENGTH.size
        end += LENGTH.unpack_from(data, at)[0] if end <= len(data) else 0
        if end > len(data):
            raise InvalidRequest(f"element {number} of {INPUT} is cut off: {count} were declared")
        found.append(data[at + LENGTH.size : end])
        at = end
    if at < len(data):
        raise InvalidRequest(f"{len(data) - at} bytes follow the {count} elements of {INPUT}")
    return tuple(found)


def _from_texts(values: list[Any] | None, count: int) -> tuple[bytes, ...]:
    flat = [text for each in values or () for text in (each if isinstance(each, list) else [each])]
    if len(flat) != count or not all(isinstance(text, str) for text in flat):
        raise InvalidRequest(
            f"inputs.0.data: send {count} texts of base64, or parameters.binary_data_size and the "
            "bytes"
        )
    try:
        return tuple(from_base64(text.encode("ascii", "replace")) for text in flat)
    except ValueError as error:
        raise InvalidRequest(f"inputs.0.data: {error}") from None


def _pixels(tensor: InputTensor, rest: bytes) -> Array:
    count = math.prod(tensor.shape)
    size = tensor.parameters.binary_data_size
    if size is not None:
        if not size == len(rest) == count:
            raise InvalidRequest(
                f"binary_data_size {size} with {len(rest)} bytes: shape {tensor.shape} has {count}"
            )
        return np.frombuffer(rest, np.uint8).reshape(tensor.shape)
    if tensor.data is None:
        raise InvalidRequest(
            "inputs.0 has no data: send `data`, or parameters.binary_data_size and the bytes"
        )
    try:
        values = np.array(tensor.data)
        if values.dtype.kind not in "iu" or values.size != count:
            raise ValueError(f"{values.size} values of type {values.dtype}")
        if values.min() < 0 or values.max() > 255:
            raise ValueError("values outside 0 to 255")
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"inputs.0.data: {error}; send {count} integers from 0 to 255"
        ) from None
    return values.astype(np.uint8).reshape(tensor.shape)


def write(model: str, call: Call, results: dict[str, Array]) -> tuple[bytes, int | None]:
    """Return the body of the answer, and the length of its JSON part if bytes follow it."""
    outputs, tail = [], []
    for name, binary in call.outputs.items():
        array = results[name]
        entry: dict[str, Any] = {"name": name, "datatype": DATATYPE, "shape": list(array.shape)}
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.tobytes())
        else:
            entry["data"] = array.ravel().tolist()
        outputs.append(entry)
    answer = {"model_name": model, "model_version": "1", "outputs": outputs}
    if call.id is not None:
        answer["id"] = call.id
    text = json.dumps(answer, separators=(",", ":")).encode()
    return b"".join([text, *tail]), len(text) if tail else None
