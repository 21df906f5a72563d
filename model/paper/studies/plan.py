"""The networks that the studies train and evaluate, the most important first.

Every network is the preset `efficientnet-lite0-study` with one option changed,
trained once per seed. Every point is one network evaluated in one way; a point
that several studies need runs once. The bundled network, which was trained longer,
takes part where no trainings are compared. Table 1 has the most networks and the
smallest differences: its networks all train for the same shorter time, and
`everything` gives them two seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from model import checkpoint

PRESET = "efficientnet-lite0-study"
BUNDLED_CHECKPOINT = Path(checkpoint.__file__).parent / "bundled" / "efficientnet-lite0-voc"
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
LOW_LEVEL_CHANNELS = (8, 16, 32, 48, 64)  # table 1
WIDTH_ITERATIONS = 600


class Net(NamedTuple):
    """A network to train: its name, and how its recipe departs from the preset."""

    name: str
    overrides: tuple[str, ...]


DECODER = Net("decoder", ())
UPSAMPLING = Net("upsampling", ("model.decoder=false",))
BUNDLED = Net("bundled", ())  # not trained here


class Point(NamedTuple):
    """A network of one seed, evaluated in one way."""

    net: Net
    seed: int | None  # None: the bundled network
    output_stride: int = 16
    multi_scale: bool = False
    flip: bool = False

    @property
    def run(self) -> str:
        """Name of the training run, and of the folder that holds it."""
        return self.net.name if self.seed is None else f"{self.net.name}-{self.seed}"

    @property
    def name(self) -> str:
        """Name of the result, unique among all points."""
        passes = ("-ms" if self.multi_scale else "") + ("-flip" if self.flip else "")
        return f"{self.run}-os{self.output_stride}{passes}"


def width(channels: int) -> Net:
    """The decoder whose 1x1 convolution leaves that many low-level channels."""
    overrides = (f"iterations={WIDTH_ITERATIONS}", f"model.low_level_channels={channels}")
    return Net(f"width{channels}", overrides)


def decoder(seeds: Sequence[int]) -> list[Point]:
    """The decoder against bilinear upsampling (section 4.4, figure 5a)."""
    return [Point(net, seed) for seed in seeds for net in (UPSAMPLING, DECODER)]


def stride(seeds: Sequence[int]) -> list[Point]:
    """Evaluation at output stride 8 of networks trained at 16 (tables 3 and 5)."""
    nets = [Point(BUNDLED, None), *decoder(seeds)]
    return [point._replace(output_stride=stride) for point in nets for stride in (16, 8)]


def scales(seeds: Sequence[int]) -> list[Point]:
    """Averaging over scales and mirrored photos (tables 3 and 5)."""
    nets = [Point(BUNDLED, None), *(Point(DECODER, seed) for seed in seeds)]
    return [
        point._replace(multi_scale=multi_scale, flip=flip)
        for point in nets
        for multi_scale, flip in ((False, False), (False, True), (True, False), (True, True))
    ]


def widths(seeds: Sequence[int]) -> list[Point]:
    """Channels that the decoder takes of the low-level feature (table 1)."""
    return [Point(width(channels), seed) for seed in seeds for channels in LOW_LEVEL_CHANNELS]


def everything(seeds: Sequence[int]) -> list[Point]:
    """All studies, ordered so that an interrupted run leaves the most useful results."""
    first, others = seeds[:1], seeds[1:]
    points = [
        *decoder(first),
        *stride(first),
        *scales([]),
        *decoder(others),
        *stride(others),
        *widths(seeds[:2]),
        *scales(first),
    ]
    return list(dict.fromkeys(points))


STUDIES: dict[str, Callable[[Sequence[int]], list[Point]]] = {
    "decoder": decoder,
    "stride": stride,
    "scales": scales,
    "widths": widths,
    "all": everything,
}
