"""Read and write video files with PyAV, a frame at a time; sound is copied as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, TypeAlias, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from service.client.errors import ClientError, UsageError
from service.client.plain import sentence

Pixels = NDArray[np.uint8]

UNKNOWN = 2  # AVCOL_SPC_UNSPECIFIED
HD_ROWS = 720  # videos of at least this height have BT.709's colours unless they say otherwise
BT709 = 1
USUAL_RATE = Fraction(25)  # used if a file names none
LOSSLESS = "ffv1"
LOSSLESS_SUFFIXES = (".mkv", ".avi")  # of containers that hold it
# Codec -> its options: visually close to the source, and fast enough to keep up.
CODECS = {
    ".webm": ("libvpx-vp9", {"crf": "28", "b": "0", "deadline": "realtime", "cpu-used": "6"}),
    "": ("libx264", {"crf": "18", "preset": "veryfast"}),
}


@dataclass(frozen=True)
class Frame:
    """An upright picture, (H, W, 3) RGB, and its time in units of the source."""

    pixels: Pixels
    pts: int


Sound: TypeAlias = "av.Packet[AudioStream]"  # a class that takes arguments in stubs only


class Source:
    """A video file; iterate over it to get frames, and packets of sound, in the file's order."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError if it is not a video."""
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise UsageError(f"{path}: {_reason(error)}") from None
        if not self._container.streams.video:
            self.close()
            raise UsageError(f"{path} has no video in it")
        self.damaged = 0  # packets that could not be decoded
        self._path = path
        self._video: VideoStream = self._container.streams.video[0]
        self._video.thread_type = "AUTO"
        self.sounds: tuple[AudioStream, ...] = tuple(self._container.streams.audio)
        self.rate = self._video.average_rate or USUAL_RATE
        self.time_base = self._video.time_base or 1 / self.rate

    def count(self) -> int | None:
        """Return the number of frames, or an estimate by the duration; None if both are unknown."""
        if self._video.frames:
            return self._video.frames
        if self._container.duration is None:
            return None
        return round(self._container.duration / av.time_base * self.rate)

    def __iter__(self) -> Iterator[Frame | Sound]:
        last = -1
        step = max(1, round(1 / self.rate / self.time_base))
        for packet in self._packets():
            if packet.stream is not self._video:
                if packet.dts is not None:  # the last one of a stream is empty
                    yield packet
                continue
            for frame in self._decoded(packet):
                pts = last + step if frame.pts is None else frame.pts
                last = max(pts, last + 1)
                yield Frame(upright(frame), last)

    def _packets(self) -> Iterator[av.Packet[Any]]:
        packets = self._container.demux(self._video, *self.sounds)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                raise ClientError(f"{self._path}: {_reason(error)}") from None
            if packet is None:
                return
            yield packet

    def _decoded(self, packet: av.Packet[Any]) -> list[av.VideoFrame]:
        try:
            # The last packet is empty; packets of a bare stream (H.264) have no times either.
            return self._video.codec_context.decode(packet if packet.size else None)
        except av.FFmpegError:
            self.damaged += 1
            return []

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Target:
    """A video file that gets its name when it is complete."""

    def __init__(
        self, path: Path, source: Source, size: tuple[int, int], *, lossless: bool
    ) -> None:
        """`size` is (H, W); raises UsageError if the container cannot hold the streams."""
        self._path = path
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container = av.open(str(self._part), "w")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UsageError(f"{path}: {_reason(error)}") from None
        try:
            self._pixel_format = "gray" if lossless else "yuv420p"
            self._stream = self._video(source, size, lossless=lossless)
            self._sounds = {each.index: self._copied(each) for each in source.sounds}
        except BaseException:
            self.discard()
            raise

    def _video(self, source: Source, size: tuple[int, int], *, lossless: bool) -> VideoStream:
        codec, options = CODECS.get(self._path.suffix.lower(), CODECS[""])
        if lossless:
            codec, options = LOSSLESS, {}
        added = self._container.add_stream(codec, rate=source.rate, options=options)
        stream = cast("VideoStream", added)
        height, width = size
        stream.height, stream.width = height + height % 2, width + width % 2
        if lossless:
            stream.height, stream.width = size
        stream.pix_fmt = self._pixel_format
        stream.codec_context.time_base = source.time_base
        if not lossless:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
        self._time_base = source.time_base
        return stream

    def _copied(self, sound: AudioStream) -> AudioStream:
        name = sound.codec_context.codec.canonical_name
        if name not in self._container.supported_codecs:
            raise UsageError(
                f"{self._path}: {self._path.suffix} cannot hold the sound ({name}) unchanged: "
                f"name it {self._path.stem}.mkv"
            )
        return self._container.add_stream_from_template(sound)

    def picture(self, pixels: Pixels, pts: int) -> None:
        """Append a frame: (H, W, 3) RGB, or (H, W) class ids if lossless."""
        if pixels.ndim == 2:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="gray")
        else:
            whole = av.VideoFrame.from_ndarray(_even(pixels), format="rgb24")
            frame = whole.reformat(format=self._pixel_format, dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = pts, self._time_base
        self._container.mux(self._stream.encode(frame))

    def sound(self, packet: Sound) -> None:
        """Append a packet of sound, unchanged."""
        packet.stream = self._sounds[packet.stream.index]
        self._container.mux(packet)

    def finish(self) -> None:
        """Complete the file and give it its name."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._part.replace(self._path)

    def discard(self) -> None:
        """Remove what has been written."""
        with contextlib.suppress(av.FFmpegError, OSError):
            self._container.close()
        self._part.unlink(missing_ok=True)


def upright(frame: av.VideoFrame) -> Pixels:
    """Return a frame as (H, W, 3) RGB, turned as players show it."""
    is_hd = frame.colorspace == UNKNOWN and frame.height >= HD_ROWS
    colors = Colorspace.ITU709 if is_hd else None
    pixels = frame.reformat(format="rgb24", src_colorspace=colors).to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))


def _even(pixels: Pixels) -> Pixels:
    """Repeat the last row or column of odd sizes, because 4:2:0 has colours for 2 x 2 pixels."""
    height, width = pixels.shape[:2]
    if height % 2 == width % 2 == 0:
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _reason(error: Exception) -> str:
    return sentence(getattr(error, "strerror", None) or error)
