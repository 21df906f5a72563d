"""Export every inference strategy of the paper's tables 3 and 5: `python -m export.matrix`.

Each row (evaluation output stride x multi-scale x flip x decoder x separable
convolution) is exported with random weights and the checks of any export, and
listed with size, multiply-adds and label agreement. Files are deleted again
unless --keep names a folder for them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from export.options import size
from export.writer import ExportOptions, Size, export
from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, voc_palette
from model.network.config import PUBLISHED, ModelConfig
from model.network.deeplab import DeepLabV3Plus
from model.paper.complexity import PAPER_SCALES
from model.paper.tables import TABLE_3, TABLE_5, Setting, count
from service.inference.contract import Contract

HEADER = """\
| network | OS | decoder | MS | flip | SC | file MB | B multiply-adds at 513 | agreement | seconds |
|---|---:|:---:|:---:|:---:|:---:|---:|---:|---:|---:|"""


def rows() -> Iterator[tuple[str, Setting]]:
    """The backbone and setting of every row of both tables."""
    for table in (TABLE_3, TABLE_5):
        for setting in table.settings:
            yield table.backbone, setting


def make_checkpoint(folder: Path, backbone: str, setting: Setting) -> Path:
    """A network of a row with random weights; one serves all of its strategies."""
    kind = f"{backbone}-{'dec' if setting.decoder else 'nodec'}-{'sc' if setting.separable else ''}"
    path, _ = checkpoint.paths(folder / kind)
    if not path.exists():
        fields = {
            **PUBLISHED[backbone],
            "backbone": backbone,
            "decoder": setting.decoder,
            "aspp_separable": setting.separable,
            "decoder_separable": setting.separable,
        }
        config = ModelConfig.model_validate(fields)
        torch.manual_seed(0)
        net = DeepLabV3Plus(config)
        torch.nn.init.normal_(net.logits.weight)  # labels that vary over the image
        settle(net)
        card = Card(model=config, classes=VOC_CLASSES, palette=voc_palette(len(VOC_CLASSES)))
        checkpoint.save(path, net.state_dict(), card)
    return path


def settle(net: DeepLabV3Plus) -> None:
    """Set batch norm's running statistics from noise, as training would from photos.

    Without this, activations fade through a deep network until all classes are
    equally probable and rounding decides the label.
    """
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the one batch below
    with torch.no_grad():
        net.train()(torch.rand(2, 3, 129, 129) * 255)
    net.eval()


def export_row(source: Path, target: Path, setting: Setting, side: Size) -> Contract:
    """Export one row; raises ParityError if the file disagrees with PyTorch."""
    options = ExportOptions(
        output_stride=setting.output_stride,
        size=side,
        scales=PAPER_SCALES if setting.multi_scale else (1.0,),
        flip=setting.flip,
    )
    return export(source, target, options)


def line(
    backbone: str, setting: Setting, contract: Contract, file_bytes: int, seconds: float
) -> str:
    """One row of the table."""
    options = (setting.decoder, setting.multi_scale, setting.flip, setting.separable)
    marks = " | ".join("x" if option else "" for option in options)
    cost = count(backbone, setting).multiply_adds / 1e9
    return (
        f"| {backbone} | {setting.output_stride} | {marks} | {file_bytes / 1e6:.1f} "
        f"| {cost:.2f} | {contract.parity.agreement:.4%} | {seconds:.0f} |"
    )


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m export.matrix", description=__doc__)
    p.add_argument(
        "--size",
        type=size,
        default=(129, 129),
        metavar="H,W",
        help="size of the exported inputs in pixels (default: 129,129)",
    )
    p.add_argument("--keep", type=Path, metavar="DIR", help="keep the files in this folder")
    args = p.parse_args(argv)
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for index, (backbone, setting) in enumerate(rows(), 1):
            source = make_checkpoint(Path(scratch), backbone, setting)
            target = folder / f"{index:02}-{backbone}-os{setting.output_stride}.onnx"
            began = time.monotonic()
            contract = export_row(source, target, setting, args.size)
            seconds = time.monotonic() - began
            print(line(backbone, setting, contract, target.stat().st_size, seconds), flush=True)
            if args.keep is None:
                target.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
