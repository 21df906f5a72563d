"""Segment a video: `deeplab-client URL clip.mp4 -o out.mp4`.

Frames are decoded, sent, painted and encoded as a stream, in their order. Only the frames in flight
and those in the window of `--steady` are held.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from service.client.errors import BadAnswerError, ClientError, UsageError
from service.client.pace import Pace
from service.client.plain import sentence
from service.client.progress import Progress
from service.client.protocol import ModelInfo
from service.client.transport import AsyncClient
from service.client.video.frames import LOSSLESS_SUFFIXES, Frame, Pixels, Sound, Source, Target
from service.client.video.labels import Paint, Steady

MOST_IN_FLIGHT = 16  # a frame of HD has 6 MB
BACKGROUND = "background"
JPEG_QUALITY = {"qmin": "2", "qmax": "2"}  # FFmpeg's scale: about 95 of 100 elsewhere

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Look:
    """The appearance of the result."""

    output: str = "overlay"  # or color, or mask
    alpha: float = 0.5
    window: int = 1  # frames whose majority decides
    legend: bool = False

    def check(self, out: Path) -> None:
        """Raise UsageError for masks in a container without a lossless codec."""
        if self.output == "mask" and out.suffix.lower() not in LOSSLESS_SUFFIXES:
            raise UsageError(
                f"--output mask: {out.suffix or 'a file without suffix'} cannot keep class ids: "
                f"write -o {out.with_suffix(LOSSLESS_SUFFIXES[0])}, or take --output color"
            )


@dataclass
class Clip:
    """A run over one video. Await `run()` once; an error leaves no file behind."""

    client: AsyncClient
    model: ModelInfo
    options: Mapping[str, object]  # of every request
    source: Source
    out: Path
    look: Look
    pace: Pace
    progress: Progress
    is_here: bool = False  # whether the service runs in this process: then uploads cost nothing

    def __post_init__(self) -> None:
        clear = {number for number, name in enumerate(self.model.classes) if name == BACKGROUND}
        self._paint = Paint(self.model.palette, frozenset(clear))
        self._legend = self._paint.legend(self.model.classes) if self.look.legend else None
        self._target: Target | None = None
        self._early: list[Sound] = []  # before the first picture

    async def run(self) -> None:
        """Segment every frame; raises ClientError."""
        steady: Steady[Frame] = Steady(self.look.window)
        try:
            async with aclosing(self._segmented()) as segmented:
                async for item, labels in segmented:
                    if isinstance(item, Frame):
                        assert labels is not None
                        for ready in steady.add(item, labels):
                            await completed(partial(self._write, *ready))
                    else:
                        await completed(partial(self._write_sound, item))
            for ready in steady.rest():
                await completed(partial(self._write, *ready))
            if self._target is None:
                raise ClientError("no frame of the video can be decoded")
            await completed(self._target.finish)
        except BaseException as error:
            if self._target is not None:
                self._target.discard()
            if isinstance(error, av.FFmpegError | OSError):
                raise ClientError(f"cannot write {self.out}: {sentence(error)}") from error
            raise

    async def _segmented(self) -> AsyncGenerator[tuple[Frame | Sound, Pixels | None], None]:
        """Yield frames with their labels, and sound, in the source's order."""
        items = iter(self.source)
        waiting: deque[tuple[Frame | Sound, asyncio.Task[Pixels] | None]] = deque()
        try:
            while (item := await completed(partial(next, items, None))) is not None:
                task = None
                if isinstance(item, Frame):
                    task = asyncio.create_task(self._labels(item))
                waiting.append((item, task))
                while sum(task is not None for _, task in waiting) >= self.pace.limit:
                    yield await _first(waiting)
            while waiting:
                yield await _first(waiting)
        finally:
            tasks = [task for _, task in waiting if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _labels(self, frame: Frame) -> Pixels:
        encode = bmp if self.is_here else jpeg
        body = await asyncio.to_thread(encode, frame.pixels)
        try:
            answer = await self.client.segment(
                body, "mask", self.model.name, {**self.options, "mask_format": "gray"}
            )
        finally:
            self.pace.answered(asyncio.get_running_loop().time())
        labels = await asyncio.to_thread(decoded, answer.content)
        if labels.shape != frame.pixels.shape[:2]:
            raise BadAnswerError(f"the mask has the size {labels.shape[::-1]}, not the frame's")
        self.progress.counts.sent += 1
        self.progress.update()
        return labels

    def _write(self, frame: Frame, labels: Pixels) -> None:
        picture = labels
        if self.look.output == "color":
            picture = self._paint.colored(labels)
        elif self.look.output == "overlay":
            picture = self._paint.overlaid(frame.pixels, labels, self.look.alpha)
            if self._legend is not None:
                picture = self._legend.drawn(picture, labels)
        if self._target is None:
            is_mask = self.look.output == "mask"
            self._target = Target(self.out, self.source, labels.shape[:2], lossless=is_mask)
            for packet in self._early:
                self._target.sound(packet)
        self._target.picture(picture, frame.pts)

    def _write_sound(self, packet: Sound) -> None:
        if self._target is None:
            self._early.append(packet)
        else:
            self._target.sound(packet)


async def completed(work: Callable[[], Answer]) -> Answer:
    """Do work in a thread; when cancelled, first wait for the thread.

    Closing a file while another thread decodes or writes it could crash the process.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


async def _first(
    waiting: deque[tuple[Frame | Sound, asyncio.Task[Pixels] | None]],
) -> tuple[Frame | Sound, Pixels | None]:
    """Take the oldest item, and wait for its labels; it stays if it fails."""
    item, task = waiting[0]
    labels = None if task is None else await task
    waiting.popleft()
    return item, labels


def bmp(pixels: Pixels) -> bytes:
    """Encode RGB pixels without loss, in little time."""
    return _encoded(pixels, "bmp", "bgr24", {})


def jpeg(pixels: Pixels) -> bytes:
    """Encode RGB pixels in few bytes, with full colour resolution (4:4:4)."""
    return _encoded(pixels, "mjpeg", "yuvj444p", JPEG_QUALITY)


def _encoded(pixels: Pixels, codec: str, pixel_format: str, options: dict[str, str]) -> bytes:
    encoder = cast("VideoCodecContext", av.CodecContext.create(codec, "w"))
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.options = pixel_format, Fraction(1, 25), options
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
    frame.pts = 0
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    return b"".join(map(bytes, packets))


def decoded(png: bytes) -> Pixels:
    """Decode a grey PNG to (H, W); raises BadAnswerError."""
    decoder = av.CodecContext.create("png", "r")
    with suppress(av.FFmpegError):
        for frame in [*decoder.decode(av.Packet(png)), *decoder.decode(None)]:
            return np.ascontiguousarray(frame.to_ndarray(format="gray"))
    raise BadAnswerError("the mask is no PNG that FFmpeg decodes")
