"""A file is described, or refused with one clear error."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path

import onnx
import pytest

from export import describe
from model import checkpoint
from model.paper.complexity import measure
from service.inference.contract import METADATA_KEY
from tests.export.conftest import CONFIG, SIZE
from tests.service import onnx_models


@pytest.mark.slow
def test_the_figures_are_those_of_the_network(
    exported: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert describe.main([str(exported), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # The exported graph projects the image-level feature before it is spread over the map.
    height, width = (ceil(side / CONFIG.output_stride) for side in SIZE)
    saved = CONFIG.aspp_channels**2 * (height * width - 1)
    assert found["multiply_adds"] == measure(CONFIG, size=SIZE).multiply_adds_logical - saved
    assert found["bytes"] == exported.stat().st_size
    assert found["contract"]["checkpoint_sha256"] == checkpoint.digest(tiny)
    assert found["operators"]["ArgMax"] == 1


@pytest.mark.slow
def test_the_description_has_network_size_agreement_and_cost(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert describe.main([str(exported)]) == 0
    text = capsys.readouterr().out
    for part in ("mobilenet_v2, output stride 16", "65 x 96", "labels as PyTorch", "multiply-adds"):
        assert part in text


def small(folder: Path) -> Path:
    """A file that the service would serve, made without PyTorch."""
    return onnx_models.save(folder / "small.onnx")


def tampered(exported: Path, target: Path, contract: str | None) -> Path:
    model = onnx.load(exported)
    onnx.helper.set_model_props(model, {} if contract is None else {METADATA_KEY: contract})
    onnx.save(model, target)
    return target


@pytest.mark.parametrize(
    ("contract", "says"),
    [
        (None, "python -m export"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "is not valid"),
        ("{", "not JSON"),
    ],
)
def test_an_invalid_contract_is_one_clear_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    contract: str | None,
    says: str,
) -> None:
    assert describe.main([str(tampered(small(tmp_path), tmp_path / "x.onnx", contract))]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("kept", [0, 100, -1000])
def test_a_truncated_file_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: int
) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(small(tmp_path).read_bytes()[:kept])
    assert describe.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert "cut.onnx" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_an_altered_weight_is_one_clear_error(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(exported)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    at = exported.read_bytes().index(weights.raw_data) + len(weights.raw_data) // 2
    data = bytearray(exported.read_bytes())
    data[at] ^= 1
    path = tmp_path / "altered.onnx"
    path.write_bytes(data)
    assert describe.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert "altered.onnx was changed" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_an_altered_contract_is_one_clear_error(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (prop,) = onnx.load(exported).metadata_props
    fields = json.loads(prop.value) | {"metrics": {"miou": 0.99}}
    path = tampered(exported, tmp_path / "better.onnx", json.dumps(fields))
    assert describe.main([str(path)]) == 1
    assert "better.onnx was changed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("text", [b"permute", b"classes"])
def test_a_broken_name_is_one_clear_error(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    """In a node's name the checker quotes it; in the contract the text cannot be decoded."""
    data = exported.read_bytes()
    assert text in data
    path = tmp_path / "broken.onnx"
    path.write_bytes(data.replace(text, b"\xff" + text[1:], 1))
    assert describe.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert "broken.onnx" in error
    assert error.count("\n") == 1


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe.main([str(tmp_path / "none.onnx")]) == 1
    assert "none.onnx does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_a_missing_external_file_is_named(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "split.onnx"
    onnx.save_model(onnx.load(exported), path, save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()
    assert describe.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert "weights.bin" in error
    assert error.count("\n") == 1
