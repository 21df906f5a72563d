"""The tasks of a decoder process, and their messages on both sides."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pixels.bands import Samples
from postprocess import windows
from postprocess.grid import Grid
from postprocess.results import outputs
from postprocess.results.outputs import Result, Wish
from postprocess.results.photo import Picture
from postprocess.runs import Ints, Spread
from postprocess.windows import Sliding
from service import errors
from service.decoders.wire import Array, Fields, Message
from service.errors import (
    AnswerTooLarge,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    ServiceError,
)
from service.images import imaging
from service.images.imaging import EncodedPhoto, Fitted
from service.images.prepare import Header, Plan, Prepared, header, prepare, shown
from service.images.refusals import refusals
from service.inference import tensors
from service.inference.contract import Contract, InputSize
from service.inference.tensors import Call, Shape

REFUSALS = (InvalidImage, ImageTooLarge, InvalidRequest, AnswerTooLarge)
OPEN, PREPARE, ENCODE, TENSOR = "open", "prepare", "encode", "tensor"
WISH = TypeAdapter(Wish)
PROBABILITIES = "grid"
CPU_S = "cpu_s"  # of an answer: the processor time that it took


def open_request(max_pixels: int, samples: Samples) -> Fields:
    """Write the request to read a photo's header."""
    return {"do": OPEN, "max_pixels": max_pixels, "samples": samples}


def prepare_request(found: Header, plan: Plan) -> Fields:
    """Write the request to decode a photo and to make a model's inputs."""
    return {
        "do": PREPARE,
        "max_pixels": found.pixels,
        "samples": plan.target.samples,
        "target": plan.target.model_dump(),
        "sliding": asdict(plan.sliding) if plan.sliding else None,
        "whole": plan.whole,
        "decoded": plan.decoded,
    }


def tensor_request(shape: Shape) -> Fields:
    """Write the request to read a tensor."""
    return {"do": TENSOR, **asdict(shape)}


def encode_request(result: Result, wish: Wish) -> tuple[Fields, list[Array]]:
    """Write the request to encode outputs; the photo's data go beside it."""
    photo, grid, contract = result.photo, result.grid, result.contract
    if not isinstance(contract, Contract):
        raise TypeError(f"contract is a {type(contract).__name__}")
    guide = None if photo.decoded is photo.picture else photo.decoded
    arrays = {
        "cells": result.cells,
        "heights": result.spread.heights.view(np.uint8),
        "widths": result.spread.widths.view(np.uint8),
        "sure": result.sure,
        PROBABILITIES: None if grid is None else grid.values,
        "picture": None if photo.picture is None else np.asarray(photo.picture),
        "decoded": None if guide is None else np.asarray(guide),
    }
    kept = {name: array for name, array in arrays.items() if array is not None}
    fields = {
        "do": ENCODE,
        "wish": WISH.dump_python(wish, mode="json"),
        "contract": contract.model_dump(mode="json"),
        "size": photo.size,
        "orientation": photo.orientation,
        "names": list(kept),
        "placed": None if grid is None else [grid.origin, grid.step],
    }
    return fields, list(kept.values())


def run(message: Message) -> tuple[Fields, list[Array]]:
    """Carry out a request; an error of the photo becomes part of the answer."""
    request, data = message.fields, message.data
    try:
        if request["do"] == TENSOR:
            return _tensor(request, data)
        if request["do"] == ENCODE:
            return _encoded(message)
        opened = imaging.open_checked(data, request["max_pixels"], _samples(request))
        if request["do"] == OPEN:
            found = header(opened)
            return {"size": found.size, "work": found.work, "memory": found.memory}, []
        plan = _plan(request)
        return _written(prepare(opened, plan))
    except MemoryError:
        what = "encoding its outputs" if request["do"] == ENCODE else "decoding the image"
        return _refused(ImageTooLarge(f"{what} needs too much memory: send a smaller image"))
    except ServiceError as error:
        return _refused(error)


def _encoded(message: Message) -> tuple[Fields, list[Array]]:
    request = message.fields
    arrays = dict(zip(request["names"], message.arrays, strict=True))
    width, height = request["size"]
    photo = EncodedPhoto(
        (width, height),
        request["orientation"],
        arrays.get("picture"),
        arrays.get("decoded", arrays.get("picture")),
        message.data,
    )
    spread = Spread(_integers(arrays["heights"]), _integers(arrays["widths"]))
    contract = Contract.model_validate(request["contract"])
    grid = None
    if request["placed"]:
        (x, y), (right, down) = request["placed"]
        grid = Grid(arrays[PROBABILITIES], (x, y), (right, down))
    result = Result(photo, arrays["cells"], arrays.get("sure"), spread, contract, grid)
    with refusals():
        files = outputs.encode_each(result, WISH.validate_python(request["wish"]))
    return {"names": list(files)}, [np.frombuffer(body, np.uint8) for body in files.values()]


def _integers(data: Array) -> Ints:
    integers: NDArray[np.int64] = data.view(np.int64)
    return integers


def read_outputs(fields: Fields, arrays: list[Array]) -> dict[str, bytes]:
    """Read the answer to an `encode_request`; raises the error that it contains."""
    _raise_error(fields)
    return dict(zip(fields["names"], map(bytes, arrays), strict=True))


def _tensor(request: Fields, data: bytes) -> tuple[Fields, list[Array]]:
    shape = Shape(request["header_length"], tuple(request["size"]), tuple(request["valid"]))
    call = tensors.read(data, shape)
    fields: Fields = {"id": call.id, "outputs": call.outputs, "encoded": call.images is None}
    arrays = [np.frombuffer(photo, np.uint8) for photo in call.photos]
    return fields, arrays if call.images is None else [call.images]


def read_call(fields: Fields, arrays: list[Array]) -> Call:
    """Read the answer to a `tensor_request`; raises the error that it contains."""
    _raise_error(fields)
    if fields["encoded"]:
        photos = tuple(array.tobytes() for array in arrays)
        return Call(fields["id"], None, fields["outputs"], photos)
    return Call(fields["id"], arrays[0], fields["outputs"])


def _refused(error: ServiceError) -> tuple[Fields, list[Array]]:
    return {"error": type(error).__name__, "detail": error.detail}, []


def _samples(request: Fields) -> Samples:
    channels, limits = request["samples"]
    return Samples(channels, None if limits is None else (limits[0], limits[1]))


def _plan(request: Fields) -> Plan:
    sliding = request["sliding"]
    target = InputSize.model_validate(request["target"])
    return Plan(
        target, Sliding(**sliding) if sliding else None, request["whole"], request["decoded"]
    )


def _written(prepared: Prepared) -> tuple[Fields, list[Array]]:
    """Return the inputs as a message, and the photo unless the inputs contain it unchanged."""
    photo, inputs = prepared.photo, prepared.inputs
    fields: Fields = {"size": photo.size, "orientation": photo.orientation}
    arrays: list[Array] = []
    if isinstance(inputs, Fitted):
        fields["valid"] = inputs.valid
        arrays.append(inputs.pixels)
    elif prepared.image is not None:
        arrays.append(prepared.image)
    if photo.picture is not None and not _contains_photo(inputs, photo.size):
        fields["whole"] = len(arrays)
        arrays.append(np.asarray(photo.picture))
    if photo.decoded is not None and isinstance(inputs, Fitted):
        fields["decoded"] = len(arrays)
        arrays.append(np.asarray(photo.decoded))
    return fields, arrays


def _contains_photo(inputs: Fitted | list[windows.Window], size: tuple[int, int]) -> bool:
    return not isinstance(inputs, Fitted) or inputs.valid == size[::-1]


def read_header(data: bytes, fields: Fields) -> Header:
    """Read the answer to an `open_request`; raises the error that it contains."""
    _raise_error(fields)
    width, height = fields["size"]
    return Header(data, (width, height), fields["work"], fields["memory"], cpu_s=fields[CPU_S])


def read_prepared(data: bytes, plan: Plan, fields: Fields, arrays: list[Array]) -> Prepared:
    """Read the answer to a `prepare_request`; raises the error that it contains."""
    _raise_error(fields)
    photo = _photo(data, plan, fields, arrays)
    width, height = fields["size"]
    if "valid" in fields:
        valid_height, valid_width = fields["valid"]
        fitted = Fitted(arrays[0], (valid_height, valid_width))
        return Prepared(photo, fitted, cpu_s=fields[CPU_S])
    if plan.sliding is None:
        raise ValueError("a decoder sent windows that were not requested")
    inputs = windows.cut(arrays[0], (width, height), plan.target, plan.sliding.overlap)
    return Prepared(photo, inputs, arrays[0], fields[CPU_S])


def _photo(data: bytes, plan: Plan, fields: Fields, arrays: list[Array]) -> EncodedPhoto:
    width, height = fields["size"]
    whole: Picture | None = None
    if "whole" in fields:
        whole = arrays[fields["whole"]]
    elif plan.whole and _contains_photo_of(fields, (width, height)):
        whole = shown(arrays[0], (width, height))
    decoded: Picture | None = None
    if "decoded" in fields:
        decoded = arrays[fields["decoded"]]
    elif plan.decoded:
        decoded = shown(arrays[0], (width, height)) if whole is None else whole
    kept = data if plan.whole else b""
    return EncodedPhoto((width, height), fields["orientation"], whole, decoded, kept)


def _contains_photo_of(fields: Fields, size: tuple[int, int]) -> bool:
    return "valid" not in fields or tuple(fields["valid"]) == size[::-1]


def _raise_error(fields: Fields) -> None:
    if "error" in fields:
        known = {error.__name__: error for error in REFUSALS}
        raise known.get(fields["error"], errors.ServiceError)(fields["detail"])
