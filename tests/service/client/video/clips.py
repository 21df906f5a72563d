"""Small videos with sound, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
MILLISECONDS = Fraction(1, 1000)


def save(
    path: Path,
    pictures: Sequence[Picture],
    *,
    times_ms: Sequence[int] | None = None,
    codec: str = "ffv1",
    sound: str | None = None,
) -> Path:
    """Write RGB pictures, without loss by default, 40 ms apart; `sound`: a codec."""
    with av.open(str(path), "w") as container:
        stream = cast("av.VideoStream", container.add_stream(codec, rate=25))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.codec_context.time_base = MILLISECONDS
        voice = None
        if sound is not None:
            voice = cast("av.AudioStream", container.add_stream(sound, rate=48000, layout="mono"))
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number * 40 if times_ms is None else times_ms[number]
            frame.time_base = MILLISECONDS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice is not None:
            _speak(container, voice)
    return path


def _speak(container: av.container.OutputContainer, voice: av.AudioStream) -> None:
    """A tone of half a second."""
    tone = np.sin(np.arange(24000) * 2 * np.pi * 440 / 48000) * 0.3
    resampler = av.AudioResampler(voice.codec_context.format, "mono", 48000)
    for start in range(0, 24000, 960):
        part = tone[None, start : start + 960].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, start
        for ready in resampler.resample(frame):
            container.mux(voice.encode(ready))
    container.mux(voice.encode(None))


def load(path: Path, form: str = "rgb24") -> tuple[list[Picture], list[float]]:
    """The pictures of a video, and their times in seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pictures = [cast("Picture", frame.to_ndarray(format=form)) for frame in frames]
    return pictures, [frame.time for frame in frames]


def sounds(path: Path) -> list[tuple[float, bytes]]:
    """The packets of sound: their times in seconds, and their bytes."""
    with av.open(str(path)) as container:
        packets = [each for each in container.demux(audio=0) if each.dts is not None]
        return [(float((each.pts or 0) * each.time_base), bytes(each)) for each in packets]
