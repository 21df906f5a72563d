"""Draw the network with the shapes of its maps: `python -m model.paper.diagram`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple, get_args

from model.network.config import PUBLISHED, BackboneName, ModelConfig
from model.paper.complexity import PAPER_SIZE, BlockRow, add_size, build, shape_table

WIDTH, HEIGHT = 1180, 640
BY = "\N{MULTIPLICATION SIGN}"
ONE_BY_ONE = f"1{BY}1"
STYLE = """\
  text { font-family: Helvetica, Arial, sans-serif; fill: #1f2933; text-anchor: middle; }
  .title { font-size: 19px; font-weight: bold; }
  .band { font-size: 15px; font-weight: bold; text-anchor: start; }
  .label { font-size: 13px; }
  .shape { font-size: 11px; fill: #52606d; }
  .line { fill: none; stroke: #52606d; stroke-width: 1.6; marker-end: url(#tip); }
  .box { stroke-width: 1.2; }
  .plain { fill: #ffffff; stroke: #7b8794; }
  .encoder { fill: #d3e4fd; stroke: #3d7edb; }
  .atrous { fill: #d5f2dd; stroke: #2f9e58; }
  .decoder { fill: #ffe8cc; stroke: #e08a1e; }
"""
FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" role="img" aria-label="The DeepLabv3+ network">
<style>
{style}</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#52606d"/></marker></defs>
<rect width="{width}" height="{height}" fill="#ffffff"/>
<rect x="16" y="48" width="1148" height="306" rx="12" fill="#f5f9ff"/>
<rect x="16" y="390" width="1148" height="234" rx="12" fill="#fffaf2"/>
<text class="title" x="590" y="30">DeepLabv3+</text>
<text class="band" x="32" y="74">Encoder</text>
<text class="band" x="32" y="416">Decoder</text>
{parts}
</svg>
"""


class Box(NamedTuple):
    """A labelled rectangle, placed by its centre."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    lines: tuple[str, ...]
    below: str = ""  # a shape, written under the box

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2

    def svg(self) -> str:
        place = f'x="{self.left:g}" y="{self.top:g}" width="{self.width:g}"'
        drawn = [f'<rect class="box {self.kind}" {place} height="{self.height:g}" rx="5"/>']
        first = self.y + 4.5 - 8 * (len(self.lines) - 1)
        drawn += [text(self.x, first + 16 * index, line) for index, line in enumerate(self.lines)]
        if self.below:
            drawn.append(text(self.x, self.bottom + 15, self.below, "shape"))
        return "\n".join(drawn)


def text(x: float, y: float, words: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def arrow(*points: tuple[float, float]) -> str:
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="line" d="M {path}"/>'


def size_text(shape: Sequence[int]) -> str:
    """The shape of a map as text, channels first: 256 x 33 x 33."""
    return f" {BY} ".join(str(side) for side in shape)


class Encoder(NamedTuple):
    """Positions in the drawn backbone where arrows start."""

    drawn: list[str]
    low: tuple[float, float]  # behind the stage that gives the low-level feature
    end: tuple[float, float]  # right of the last stage


def stages(rows: Sequence[BlockRow]) -> list[tuple[BlockRow, int]]:
    """The backbone's last row at each size, with how many blocks run at that size."""
    backbone = [row for row in rows if row.name.startswith("backbone.")]
    groups = [list(group) for _, group in groupby(backbone, key=lambda row: row.shape[1:])]
    return [(group[-1], len(group)) for group in groups]


def draw_encoder(
    rows: Sequence[BlockRow], size: tuple[int, int], low_height: int, centre: float
) -> Encoder:
    """Image and backbone: a bar per resolution, as high as the map, as wide as its channels."""
    image = Box(82, centre, 84, 84, "plain", ("image",), size_text((3, *size)))
    drawn, previous, low = [image.svg()], image, (0.0, 0.0)
    found = stages(rows)
    for index, (row, blocks) in enumerate(found):
        side = 190 * (row.shape[1] / size[0]) ** 0.45
        width = 15 + row.shape[0] ** 0.5
        box = Box(190 + 125 * index, centre, width, side, "encoder", (), size_text(row.shape))
        drawn += [box.svg(), arrow((previous.right, centre), (box.left - 3, centre))]
        rates = f", rate {max(row.rates)}" if row.rates else ""
        words = f"{blocks} block{'s' * (blocks > 1)}{rates}"
        drawn.append(text(box.x, box.top - 9, words, "shape"))
        if row.shape[1] >= low_height:  # the feature is taken behind the last such stage
            low = (box.x + 62, centre)
        previous = box
    return Encoder(drawn, low, (previous.right, centre))


def draw_aspp(
    rows: dict[str, BlockRow], config: ModelConfig, start: tuple[float, float], centre: float
) -> tuple[list[str], Box]:
    """The parallel branches, their concatenation and the projection; returns the last box."""
    kernel = f"3{BY}3 separable" if config.aspp_separable else f"3{BY}3"
    labels = ["image pooling"] if config.image_pooling else []
    labels += [ONE_BY_ONE, *(f"{kernel}, rate {rate}" for rate in config.rates)]
    drawn = []
    project = Box(
        1000, centre, 92, 46, "atrous", (ONE_BY_ONE,), size_text(rows["aspp.project"].shape)
    )
    concat = Box(915, centre, 14, 46 * len(labels) - 10, "plain", ())
    for index, label in enumerate(labels):
        y = centre + 46 * (index - (len(labels) - 1) / 2)
        box = Box(800, y, 176, 34, "atrous", (label,))
        drawn += [
            box.svg(),
            arrow(start, (start[0] + 22, centre), (start[0] + 22, y), (box.left - 3, y)),
            arrow((box.right, y), (concat.left - 3, y)),
        ]
    drawn += [concat.svg(), text(concat.x, concat.bottom + 15, "concat", "shape"), project.svg()]
    drawn.append(arrow((concat.right, centre), (project.left - 3, centre)))
    return drawn, project


def draw_decoder(
    rows: dict[str, BlockRow], config: ModelConfig, size: tuple[int, int], low: tuple[float, float]
) -> tuple[list[str], Box]:
    """Decoder, from low-level feature to label map; returns the box of the encoder's output."""
    centre = 520.0
    reduced = rows["decoder.conv2.reduce"].shape
    reduce = Box(low[0], centre, 92, 46, "decoder", (ONE_BY_ONE,), size_text(reduced))
    concat = Box(475, centre, 14, 96, "plain", ())
    upsample = Box(concat.x, 418, 92, 34, "plain", ("bilinear",))
    chain = [concat, *_refinement(rows, config)]
    x, logits = chain[-1].x, size_text(rows["logits"].shape)
    chain += [
        Box(x + 130, centre, 92, 46, "decoder", (ONE_BY_ONE, "logits"), logits),
        Box(x + 245, centre, 80, 46, "plain", ("bilinear", "argmax")),
        Box(x + 365, centre, 84, 84, "plain", ("label map",), size_text(size)),
    ]
    upsampled = size_text((config.aspp_channels, *reduced[1:]))
    drawn = [box.svg() for box in (reduce, upsample, *chain)]
    drawn += [
        text(upsample.right + 56, upsample.y + 4, upsampled, "shape"),
        text(concat.x, concat.bottom + 15, "concat", "shape"),
        arrow((upsample.x, upsample.bottom), (concat.x, concat.top - 3)),
        arrow(low, (low[0], reduce.top - 3)),
        arrow((reduce.right, centre), (concat.left - 3, centre)),
    ]
    for before, after in pairwise(chain):
        drawn.append(arrow((before.right, centre), (after.left - 3, centre)))
    return drawn, upsample


def _refinement(rows: dict[str, BlockRow], config: ModelConfig) -> list[Box]:
    kernel = f"{config.decoder_kernel}{BY}{config.decoder_kernel}"
    words = (kernel, "separable") if config.decoder_separable else (kernel,)
    return [
        Box(575 + 130 * index, 520, 92, 46, "decoder", words,
            size_text(rows[f"decoder.conv2.convs.{index}"].shape))
        for index in range(config.decoder_convs)
    ]  # fmt: skip


def draw(config: ModelConfig, size: tuple[int, int] = PAPER_SIZE) -> str:
    """The network as SVG text, for one image of `size` (H, W); `config` has a decoder."""
    net = build(config)
    table = shape_table(net, size)
    rows = {row.name: row for row in table}
    centre = 215.0
    low_size = rows["decoder.conv2.reduce"].shape[1:]
    encoder = draw_encoder(table, size, low_size[0], centre)
    aspp, projected = draw_aspp(rows, config, encoder.end, centre)
    decoder, upsample = draw_decoder(rows, config, size, encoder.low)
    low = size_text((net.backbone.channels.conv2, *low_size))
    lane = 372.0  # between the two bands
    bridge = arrow(
        (projected.x, projected.bottom + 22),
        (projected.x, lane),
        (upsample.x, lane),
        (upsample.x, upsample.top - 3),
    )
    parts = [
        *encoder.drawn,
        *aspp,
        *decoder,
        bridge,
        text(encoder.low[0] + 54, 300, low, "shape"),
        text(encoder.low[0] + 54, 316, "low-level feature", "shape"),
        text(encoder.low[0], 74, f"{config.backbone}, output stride {config.output_stride}"),
        text(800, 74, "atrous spatial pyramid pooling"),
    ]
    return FRAME.format(width=WIDTH, height=HEIGHT, style=STYLE, parts="\n".join(parts))


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m model.paper.diagram", description=__doc__)
    p.add_argument(
        "--backbone",
        choices=get_args(BackboneName),
        default="xception_65",
        help="default: xception_65",
    )
    p.add_argument("--output-stride", type=int, choices=(8, 16, 32), default=16, help="default: 16")
    add_size(p)
    p.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("docs/network.svg"),
        metavar="FILE.svg",
        help="picture to write (default: docs/network.svg)",
    )
    args = p.parse_args(argv)
    config = ModelConfig.model_validate(
        {
            **PUBLISHED[args.backbone],
            "backbone": args.backbone,
            "output_stride": args.output_stride,
            "aspp_separable": True,
            "decoder_separable": True,
        }
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(draw(config, args.size), encoding="utf-8")
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
