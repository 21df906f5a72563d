"""The networks that the studies train and evaluate, the most important first.

A point is one network evaluated in one way; a point that several studies need runs
once. Most networks are the preset `efficientnet-lite0-study` with one option changed,
trained once per seed, and `COMPARISONS` lists the rows that are compared. The bundled
network takes part where no trainings are compared, and `BILINEAR` is the bundled
network without its decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from model import checkpoint

PRESET = "efficientnet-lite0-study"
BUNDLED_CHECKPOINT = checkpoint.BUNDLED / "efficientnet-lite0-voc"
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
LOW_LEVEL_CHANNELS = (8, 16, 32, 48, 64)  # table 1
SHORT_ITERATIONS = 600  # of tables 1 and 2, `separable` and `pooling`


class Net(NamedTuple):
    """A network to train: its name, and how its recipe departs from the preset."""

    name: str
    overrides: tuple[str, ...]
    preset: str = PRESET


DECODER = Net("decoder", ())
UPSAMPLING = Net("upsampling", ("model.decoder=false",))
BUNDLED = Net("bundled", ())  # not trained here
# The bundled backbone and ASPP with a new classifier, and no decoder.
BILINEAR = Net("bilinear", (f"init={BUNDLED_CHECKPOINT}",), "efficientnet-lite0-voc-bilinear")


class Point(NamedTuple):
    """A network of one seed, evaluated in one way."""

    net: Net
    seed: int | None  # None: the bundled network
    output_stride: int = 16
    multi_scale: bool = False
    flip: bool = False
    photos: int | None = None  # of the split, evenly spread; None: all

    @property
    def run(self) -> str:
        """Name of the training run, and of the folder that holds it."""
        return self.net.name if self.seed is None else f"{self.net.name}-{self.seed}"

    @property
    def name(self) -> str:
        """Name of the result, unique among all points."""
        passes = ("-ms" if self.multi_scale else "") + ("-flip" if self.flip else "")
        photos = "" if self.photos is None else f"-{self.photos}photos"
        return f"{self.run}-os{self.output_stride}{passes}{photos}"


class Row(NamedTuple):
    """A row of a table: a network, the output stride of its evaluation, the paper's mIoU."""

    label: str
    net: Net
    paper: float  # percent
    output_stride: int = 16


class Comparison(NamedTuple):
    """Networks that differ in one option; `reference` is the row that others are compared with."""

    title: str
    text: str  # what the paper says
    reference: str  # the label of a row
    rows: tuple[Row, ...]


def changed(name: str, *options: str) -> Net:
    """The preset's network with other options of `model`."""
    return Net(name, tuple(f"model.{option}" for option in options))


def short(name: str, *options: str) -> Net:
    """The preset's network with other options of `model`, trained for fewer iterations."""
    return Net(name, (f"iterations={SHORT_ITERATIONS}", *changed(name, *options).overrides))


def width(channels: int) -> Net:
    """The decoder whose 1x1 convolution leaves that many low-level channels."""
    return short(f"width{channels}", f"low_level_channels={channels}")


PAPER_WIDTHS = {8: 77.61, 16: 77.92, 32: 78.16, 48: 78.21, 64: 77.94}
COARSE = changed("stride32", "output_stride=32")
COARSE_UPSAMPLING = changed("stride32-upsampling", "output_stride=32", "decoder=false")
COMPARISONS = {
    "widths": Comparison(
        "Channels of the low-level feature",
        "The paper (table 1, ResNet-101): 48 channels, or 32, do best. The paper's row has one "
        "3x3 convolution after them, this one has the two of the final decoder.",
        "48",
        tuple(Row(str(c), width(c), PAPER_WIDTHS[c]) for c in LOW_LEVEL_CHANNELS),
    ),
    # 128 and 64 channels where the paper has 256 and 128: the preset's head is half as wide.
    "structure": Comparison(
        "Structure of the decoder",
        "The paper (table 2, ResNet-101): two 3x3 convolutions on Conv2 do best. The heads here "
        "have half of the paper's channels.",
        "two 3x3",
        (
            Row("one 3x3", short("convs1", "decoder_convs=1"), 78.21),
            Row("two 3x3", width(48), 78.85),
            Row("three 3x3", short("convs3", "decoder_convs=3"), 78.02),
            Row(
                "one 3x3, half the channels",
                short("narrow", "decoder_convs=1", "decoder_channels=64"),
                77.25,
            ),
            Row("one 1x1", short("kernel1", "decoder_convs=1", "decoder_kernel=1"), 78.07),
            Row(
                "Conv2 and Conv3, one 3x3 each",
                short("conv3", 'decoder_features="conv2+conv3"'),
                78.61,
            ),
        ),
    ),
    "separable": Comparison(
        "Separable convolution in ASPP and decoder",
        "The paper (table 5, Xception): separable convolutions lose 0.14 points and save 33 to "
        "41 % of the multiply-adds.",
        "separable",
        (
            Row("separable", width(48), 79.79),
            Row("dense", short("dense", "aspp_separable=false", "decoder_separable=false"), 79.93),
        ),
    ),
    "coarse": Comparison(
        "Training at output stride 32",
        "The paper (table 3, ResNet-101): training at 32 is fast, and 1 to 1.5 points worse than "
        "training at 16, also where it is evaluated at 16 or 8.",
        "trained at 16, evaluated at 16",
        (
            Row("trained at 16, evaluated at 16", DECODER, 78.85),
            Row("trained at 32, evaluated at 32", COARSE, 77.37, 32),
            Row("trained at 32, evaluated at 16", COARSE, 77.80, 16),
            Row("trained at 32, evaluated at 8", COARSE, 77.92, 8),
            Row("trained at 32 without the decoder, at 32", COARSE_UPSAMPLING, 75.43, 32),
        ),
    ),
    "pooling": Comparison(
        "The image-level feature",
        "The paper (table 7a, Cityscapes): without the image-level feature mIoU is 0.35 points "
        "higher. It keeps the feature on VOC, and this comparison is made on VOC.",
        "with it",
        (
            Row("with it", width(48), 78.79),
            Row("without it", short("no-pooling", "image_pooling=false"), 79.14),
        ),
    ),
    "labels": Comparison(
        "Logits resized to the labels in training",
        "The paper (section 4.1, without the decoder): resizing the logits instead of reducing "
        "the labels gains 1.2 points.",
        "logits resized",
        (
            Row("logits resized", UPSAMPLING, 77.21),
            Row(
                "labels reduced",
                Net("reduced-labels", (*UPSAMPLING.overrides, "loss_at=logits")),
                76.0,
            ),
        ),
    ),
}


class Strategy(NamedTuple):
    """A row of table 3: a way to evaluate a network trained at output stride 16."""

    output_stride: int
    decoder: bool
    multi_scale: bool
    flip: bool
    paper: float  # percent, ResNet-101

    @property
    def point(self) -> Point:
        """The point with the bundled network, or with the bundled network without its decoder."""
        net, seed = (BUNDLED, None) if self.decoder else (BILINEAR, 0)
        return Point(net, seed, self.output_stride, self.multi_scale, self.flip)


TABLE_3 = (
    Strategy(16, False, False, False, 77.21),
    Strategy(8, False, False, False, 78.51),
    Strategy(8, False, True, False, 78.45),
    Strategy(8, False, True, True, 79.77),
    Strategy(16, True, False, False, 78.85),
    Strategy(16, True, True, False, 80.09),
    Strategy(16, True, True, True, 80.22),
    Strategy(8, True, False, False, 79.35),
    Strategy(8, True, True, False, 80.43),
    Strategy(8, True, True, True, 80.57),
)


def boundary(seeds: Sequence[int]) -> list[Point]:
    """The bundled network with its decoder, and with bilinear upsampling (figure 5a)."""
    return [Point(BUNDLED, None), *(Point(BILINEAR, seed) for seed in seeds)]


def inference(_seeds: Sequence[int]) -> list[Point]:
    """Output strides, scales and mirrored photos with the bundled network (table 3)."""
    return [row.point for row in sorted(TABLE_3, key=lambda row: not row.decoder)]


def decoder(seeds: Sequence[int]) -> list[Point]:
    """The decoder against bilinear upsampling (section 4.4, figure 5a)."""
    return [Point(net, seed) for seed in seeds for net in (UPSAMPLING, DECODER)]


def stride(seeds: Sequence[int]) -> list[Point]:
    """Evaluation at output stride 8 of networks trained at 16 (tables 3 and 5)."""
    nets = [Point(BUNDLED, None), *decoder(seeds)]
    return [point._replace(output_stride=stride) for point in nets for stride in (16, 8)]


def scales(seeds: Sequence[int]) -> list[Point]:
    """Averaging over scales and mirrored photos (tables 3 and 5)."""
    return [
        Point(DECODER, seed, multi_scale=multi_scale, flip=flip)
        for seed in seeds
        for multi_scale, flip in ((False, False), (False, True), (True, False), (True, True))
    ]


def compared(name: str, seeds: Sequence[int]) -> list[Point]:
    """All rows of a comparison with every seed."""
    return [
        Point(row.net, seed, row.output_stride) for seed in seeds for row in COMPARISONS[name].rows
    ]


def everything(seeds: Sequence[int]) -> list[Point]:
    """All studies, ordered so that an interrupted run leaves the most useful results."""
    first, others = seeds[:1], seeds[1:]
    points = [
        *boundary(seeds),
        *inference(seeds),
        *decoder(first),
        *stride(first),
        *decoder(others),
        *stride(others),
        *(point for name in COMPARISONS for point in compared(name, seeds)),
        *scales(seeds),
    ]
    return list(dict.fromkeys(points))


def _of(name: str) -> Callable[[Sequence[int]], list[Point]]:
    return lambda seeds: compared(name, seeds)


STUDIES: dict[str, Callable[[Sequence[int]], list[Point]]] = {
    "boundary": boundary,
    "inference": inference,
    "decoder": decoder,
    "stride": stride,
    "scales": scales,
    **{name: _of(name) for name in COMPARISONS},
    "all": everything,
}
