"""What a decoder process does for the service, and how both sides write it as a message."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from PIL import Image

from service import errors
from service.decoders.wire import Array, Fields
from service.errors import ImageTooLarge, InvalidImage, InvalidRequest, ServiceError
from service.images import imaging, windows
from service.images.imaging import Fitted, Photo, Picture
from service.images.prepare import Header, Plan, Prepared, header, prepare
from service.images.windows import Sliding
from service.inference import tensors
from service.inference.contract import InputSize
from service.inference.tensors import Call, Shape

REFUSALS = (InvalidImage, ImageTooLarge, InvalidRequest)
OPEN, PREPARE, TENSOR = "open", "prepare", "tensor"


def open_request(max_pixels: int) -> Fields:
    """Write the request to read a photo's header."""
    return {"do": OPEN, "max_pixels": max_pixels}


def prepare_request(found: Header, plan: Plan) -> Fields:
    """Write the request to decode a photo and to make a model's inputs."""
    return {
        "do": PREPARE,
        "max_pixels": found.pixels,
        "target": plan.target.model_dump(),
        "sliding": asdict(plan.sliding) if plan.sliding else None,
        "whole": plan.whole,
        "decoded": plan.decoded,
    }


def tensor_request(shape: Shape) -> Fields:
    """Write the request to read a tensor."""
    return {"do": TENSOR, **asdict(shape)}


def run(request: Fields, data: bytes) -> tuple[Fields, list[Array]]:
    """Do what a request asks for; an error of the photo becomes part of the answer."""
    try:
        if request["do"] == TENSOR:
            return _tensor(request, data)
        opened = imaging.open_checked(data, request["max_pixels"])
        if request["do"] == OPEN:
            found = header(opened)
            return {"size": found.size, "work": found.work, "memory": found.memory}, []
        plan = _plan(request)
        return _written(prepare(opened, plan), plan)
    except MemoryError:
        return _refused(
            ImageTooLarge("decoding the image needs too much memory: send a smaller one")
        )
    except ServiceError as error:
        return _refused(error)


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


def _plan(request: Fields) -> Plan:
    sliding = request["sliding"]
    target = InputSize.model_validate(request["target"])
    return Plan(
        target, Sliding(**sliding) if sliding else None, request["whole"], request["decoded"]
    )


def _written(prepared: Prepared, plan: Plan) -> tuple[Fields, list[Array]]:
    """Write the inputs, and the photo unless the inputs contain it unchanged."""
    photo, inputs = prepared.photo, prepared.inputs
    fields: Fields = {"size": photo.size, "orientation": photo.orientation}
    arrays: list[Array] = []
    if isinstance(inputs, Fitted):
        fields["valid"] = inputs.valid
        arrays.append(inputs.pixels)
    elif prepared.image is not None:
        arrays.append(prepared.image)
    if plan.whole and not _contains_photo(inputs, photo.size):
        fields["whole"] = len(arrays)
        arrays.append(np.asarray(photo.whole))
    if plan.decoded:
        fields["decoded"] = len(arrays)
        arrays.append(np.asarray(photo.image))
    return fields, arrays


def _contains_photo(inputs: Fitted | list[windows.Window], size: tuple[int, int]) -> bool:
    return not isinstance(inputs, Fitted) or inputs.valid == size[::-1]


def read_header(data: bytes, fields: Fields) -> Header:
    """Read the answer to an `open_request`; raises the error that it contains."""
    _raise_error(fields)
    width, height = fields["size"]
    return Header(data, (width, height), fields["work"], fields["memory"])


def read_prepared(plan: Plan, fields: Fields, arrays: list[Array]) -> Prepared:
    """Read the answer to a `prepare_request`; raises the error that it contains."""
    _raise_error(fields)
    width, height = fields["size"]
    if "valid" in fields:
        valid_height, valid_width = fields["valid"]
        pixels = arrays[0] if len(arrays) == 1 else arrays[0].copy()  # frees the shared memory
        fitted = Fitted(pixels, (valid_height, valid_width))
        return Prepared(_photo(plan, fields, arrays), fitted)
    if plan.sliding is None:
        raise ValueError("a decoder sent windows that were not asked for")
    inputs = windows.cut(arrays[0], (width, height), plan.target, plan.sliding.overlap)
    return Prepared(_photo(plan, fields, arrays), inputs, arrays[0])


def _photo(plan: Plan, fields: Fields, arrays: list[Array]) -> Photo:
    width, height = fields["size"]
    whole: Picture | None = None
    if "whole" in fields:
        whole = Image.fromarray(arrays[fields["whole"]])  # frees the shared memory
    elif plan.whole:
        whole = arrays[0][:height, :width]
    decoded = Image.fromarray(arrays[fields["decoded"]]) if "decoded" in fields else None
    return Photo((width, height), fields["orientation"], whole, decoded)


def _raise_error(fields: Fields) -> None:
    if "error" in fields:
        known = {error.__name__: error for error in REFUSALS}
        raise known.get(fields["error"], errors.ServiceError)(fields["detail"])
