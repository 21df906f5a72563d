"""Weights of TFLite files become floats within half a quantization step, under their names."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from model import checkpoint
from model.convert.__main__ import main
from model.convert.accounting import ConvertError
from model.convert.variables import read
from tests.model.convert import tflites
from tests.model.convert.test_from_tensorflow import variables_of
from tests.model.nets import batch, tiny, worst
from tests.shared import SHARED

TEACHERS = SHARED / "teachers"
FILES = sorted(TEACHERS.glob("*.tflite"))
HEADLESS = {"decoder": False, "decoder_channels": 256, "atrous_rates": ()}


@pytest.mark.parametrize("precision", ["uint8", "int8 by channel", "float32"])
def test_weights_come_back_within_half_a_step(precision: tflites.Precision, tmp_path: Path) -> None:
    """Compare with the folded floats before rounding, with one scale or one for each channel."""
    variables = variables_of(tiny(21, **HEADLESS))
    tflites.write(tmp_path / "net.tflite", variables, precision)
    found = read(tmp_path / "net.tflite")
    for name, (kernel, bias) in tflites.folded(variables).items():
        if precision == "float32":
            step = np.zeros(1, np.float32)
        elif precision == "uint8":
            step = np.array([(max(kernel.max(), 0) - min(kernel.min(), 0)) / 255])
        else:
            axes = (0, 1, 3) if name.endswith("depthwise_weights") else (0, 1, 2)
            step = np.abs(kernel).max(axes, keepdims=True) / 127
        assert found[name].shape == kernel.shape
        assert (np.abs(found[name] - kernel) <= step * 0.501 + 1e-6).all(), name
        scope = name.rsplit("/", 1)[0]
        leaf = "biases" if scope == "logits/semantic" else "BatchNorm/beta"
        assert np.allclose(found[f"{scope}/{leaf}"], bias, atol=1e-5)


def test_a_file_becomes_a_network_with_the_same_logits(tmp_path: Path) -> None:
    """The file's weights contain the batch norms, so the converted batch norms do nothing."""
    net = tiny(21, **HEADLESS)
    tflites.write(tmp_path / "net.tflite", variables_of(net), "float32")
    assert main(["tf", str(tmp_path / "net.tflite"), str(tmp_path / "net")]) == 0
    loaded = checkpoint.load(tmp_path / "net")
    with torch.inference_mode():
        assert worst(loaded(batch(65, 65)), net(batch(65, 65))) < 1e-4


@pytest.mark.slow
def test_damage_is_an_error_of_conversion(tmp_path: Path) -> None:
    """Any wrong byte gives an error or other numbers, but never a traceback."""
    path = tmp_path / "net.tflite"
    tflites.write(path, variables_of(tiny(21, **HEADLESS)))
    good = path.read_bytes()
    generator = random.Random(0)
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(5):
            bad[generator.randrange(len(good))] = generator.randrange(256)
        path.write_bytes(bad)
        with suppress(ConvertError):
            read(path)
    for content in (b"", b"TFL3", good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(ConvertError, match=r"net\.tflite"):
            read(path)


def test_a_convolution_of_another_name_is_refused(tmp_path: Path) -> None:
    """Only its variable's name says where it belongs."""
    path = tmp_path / "net.tflite"
    tflites.write(path, variables_of(tiny(21, **HEADLESS)))
    path.write_bytes(path.read_bytes().replace(b"aspp0/weights_quant", b"aspp0/wonderlands__"))
    with pytest.raises(ConvertError, match="is not named as research/deeplab"):
        read(path)


@pytest.mark.skipif(not FILES, reason=f"{TEACHERS} has no .tflite files; set DEEPLAB_SHARED")
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_published_weights_are_those_that_tflites_interpreter_holds(path: Path) -> None:
    """Every filter and bias, dequantised from the interpreter's own tensors."""
    interpreter_of = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    interpreter = interpreter_of(str(path), num_threads=1)
    found = read(path)
    compared = 0
    for detail in interpreter.get_tensor_details():
        scope, _, rest = detail["name"].rpartition(";")[2].partition("/weights_quant")
        if not rest:
            continue
        scale, zero = detail["quantization"]
        raw = interpreter.get_tensor(detail["index"]).astype(np.float64)
        name = f"{scope}/depthwise_weights" if scope.endswith("depthwise") else f"{scope}/weights"
        expected = ((raw - zero) * scale).transpose(1, 2, 3, 0)
        assert np.array_equal(found[name], expected.astype(np.float32)), name
        compared += 1
    assert compared == sum(name.endswith("weights") for name in found) == 55
