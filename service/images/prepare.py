"""Turn the bytes of a photo into the inputs of a model: check, decode, fit or cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from postprocess import windows
from postprocess.windows import Sliding, Window
from service.images import imaging
from service.images.imaging import EncodedPhoto, Fitted, Opened
from service.images.refusals import refusals
from service.inference.contract import InputSize

# Photos with more work than this are decoded separately: about half a second on one core.
HEAVY = 60_000_000


@dataclass(frozen=True)
class Header:
    """The facts about a photo that are known before it is decoded."""

    data: bytes
    size: tuple[int, int]  # (W, H) as stored
    work: int  # work of decoding: the pixels of a JPEG of one scan that take about as long
    memory: int  # the pixels to reserve memory for
    opened: Opened | None = None  # if this process has opened it
    cpu_s: float = 0.0  # processor time that it took to read them

    @property
    def pixels(self) -> int:
        """The number of pixels."""
        return self.size[0] * self.size[1]

    @property
    def heavy(self) -> bool:
        """Whether decoding takes long."""
        return self.work > HEAVY


@dataclass(frozen=True)
class Plan:
    """The inputs and pictures to make from a photo."""

    target: InputSize
    sliding: Sliding | None  # None: shrink a photo that is larger than the model's input
    whole: bool  # the picture is needed too, for an overlay
    decoded: bool = False  # it is also needed as decoded, for smooth labels


@dataclass(frozen=True)
class Prepared:
    """A decoded photo and the model inputs made from it."""

    photo: EncodedPhoto
    inputs: Fitted | list[Window]  # shrunk to fit, or cut into windows
    image: NDArray[np.uint8] | None = None  # the windows are views of it
    cpu_s: float = 0.0  # processor time that decoding took

    @property
    def pixels(self) -> list[NDArray[np.uint8]]:
        """The model inputs, each (H, W, C)."""
        if isinstance(self.inputs, Fitted):
            return [self.inputs.pixels]
        return [window.pixels for window in self.inputs]

    @property
    def valid(self) -> tuple[int, int]:
        """The photo's part (h, w) at the top left of each input; the rest is padding."""
        if isinstance(self.inputs, Fitted):
            return self.inputs.valid
        height, width = self.inputs[0].pixels.shape[:2]
        return min(height, self.photo.size[1]), min(width, self.photo.size[0])


def header(opened: Opened) -> Header:
    """Describe an opened photo."""
    return Header(opened.data, opened.size, opened.work, opened.memory, opened)


def prepare(opened: Opened, plan: Plan) -> Prepared:
    """Decode a photo; raises InvalidImage, or ImageTooLarge if it needs too many windows.

    A JPEG that the model needs at a fraction of its size is decoded again when outputs are made
    of its picture: so the labels do not depend on the outputs, and no picture waits in memory.
    """
    target, sliding = plan.target, plan.sliding
    reduce_to = None if sliding else max(target.height, target.width)
    decoded = imaging.decode(opened, reduce_to=reduce_to)
    photo = EncodedPhoto(
        decoded.size,
        decoded.orientation,
        decoded.photo.picture if plan.whole else None,
        decoded.image if plan.decoded else None,
        opened.data if plan.whole else b"",
    )
    if not sliding or not windows.needed(decoded.size, target):
        return Prepared(photo, imaging.fit(decoded, target))
    with refusals():
        windows.check(decoded.size, target, sliding)
    image = windows.padded(decoded.pixels, target)
    kept = shown(image, decoded.size)  # once, for windows, picture and guide
    photo = replace(
        photo,
        picture=kept if plan.whole else None,
        decoded=kept if plan.decoded else None,
    )
    return Prepared(photo, windows.cut(image, decoded.size, target, sliding.overlap), image)


def fitted(opened: Opened, target: InputSize) -> Fitted:
    """Decode a photo as far as a model needs it, and fit it into the model's input."""
    reduce_to = max(target.height, target.width)
    return imaging.fit(imaging.decode(opened, reduce_to=reduce_to), target)


def shown(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the photo of `size` (W, H) in the top left of an image: (H, W, 3), the same memory."""
    return image[: size[1], : size[0], :3]  # of several bands the first three
