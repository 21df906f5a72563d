"""Int8 files use integer kernels wherever these do not lower the mIoU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export import __main__ as cli
from export import quantize
from export.options import calibration
from export.quantize import QuantizationError
from export.saturation import largest_pairs
from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, voc_palette
from model.network.deeplab import DeepLabV3Plus
from service.inference.contract import InputSize
from service.inference.engine import Engine, EngineOptions
from tests.export.conftest import CONFIG, SIZE
from tests.model import voc_folder


@pytest.mark.slow
def test_a_quantized_file_is_8_bit_and_reports_its_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes minutes, so every step is reported as it begins."""
    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"num_classes": 21})
    card = Card(model=config, classes=VOC_CLASSES, palette=voc_palette(21))
    source = checkpoint.save(tmp_path / "net", DeepLabV3Plus(config).state_dict(), card)
    data = voc_folder.make(tmp_path / "data", split="val")
    photos = data / "VOCdevkit" / "VOC2012" / "JPEGImages"
    target = tmp_path / "int8.onnx"
    arguments = [str(source), "-o", str(target), "--precision", "int8"]
    assert cli.main([*arguments, "--calibration", str(photos), "--data", str(data)]) == 0
    steps = [record.message for record in caplog.records if record.name == "export"]
    assert steps[0] == "calibrating on 6 photos"
    assert sum("each convolution alone" in step for step in steps) > 3
    assert steps[-2:] == ["comparing the file with PyTorch", "measuring mIoU of both on 6 photos"]
    model = onnx.load(target)
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    eight_bit = [tensor for tensor in weights if tensor.data_type == onnx.TensorProto.INT8]
    assert len(eight_bit) > len(weights) / 2
    dense = [numpy_helper.to_array(each).astype(int) for each in eight_bit if each.dims[1] > 1]
    assert max(largest_pairs(each).max() for each in dense) <= 128  # 255 * 128 fits in 16 bits
    engine = Engine(target, EngineOptions("cpu"))
    assert engine.contract.precision == "int8"
    assert engine.contract.parity.miou_change is not None
    assert engine.contract.parity.miou_images == 6
    assert engine.run(np.zeros((3, *SIZE, 3), np.uint8)).shape == (3, *SIZE)


def test_calibration_photos_are_spread_over_the_folder(tmp_path: Path) -> None:
    data = voc_folder.make(tmp_path, count=9)
    folder = data / "VOCdevkit" / "VOC2012" / "JPEGImages"
    target = InputSize(policy="fixed", height=33, width=33, pad=(0, 0, 0))
    paths = quantize.photos_in(folder)
    assert len(quantize.photos(paths, 3, target)) == 3
    assert len(quantize.photos(paths, 100, target)) == 9
    with pytest.raises(QuantizationError, match="no photo"):
        quantize.photos_in(tmp_path / "VOCdevkit")


def test_by_default_the_training_photos_calibrate(tmp_path: Path) -> None:
    root = voc_folder.make(tmp_path, split="train")
    bundled = Path(__file__).parents[2] / "model" / "bundled" / "efficientnet-lite0-voc"
    arguments = [str(bundled), "-o", "x.onnx", "--precision", "int8", "--data", str(root)]
    paths = calibration(cli.parser().parse_args(arguments))
    assert {path.parent.name for path in paths} == {"JPEGImages"}
    assert len(paths) == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--precision", "int8"], "--data"),
        (["--data", "DATA"], "--precision"),
        (["--precision", "fp16", "--calibration", "PHOTOS"], "--calibration"),
    ],
)
def test_missing_and_misplaced_int8_options_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert cli.main([str(tmp_path), "-o", "x.onnx", *arguments]) == 2
    assert says in capsys.readouterr().err
