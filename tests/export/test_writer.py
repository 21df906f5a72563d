"""An exported file does what the checkpoint does, or does not exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import __main__ as cli
from export import writer
from export.graph import LabelGraph
from export.parity import ParityError
from export.writer import ExportOptions, export
from model import checkpoint
from service.contract import INPUT, LABELS, METADATA_KEY, parse
from service.engine import Engine, EngineOptions
from tests.export.conftest import SIZE, save_random


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_labels_are_pytorchs_at_batch_sizes_unseen_at_export(
    tiny: Path, exported: Path, batch: int
) -> None:
    images = np.random.default_rng(batch).integers(0, 256, (batch, *SIZE, 3), np.uint8)
    labels = Engine(exported, EngineOptions("cpu")).run(images)
    with torch.inference_mode():
        truth, _ = LabelGraph(checkpoint.load(tiny))(torch.from_numpy(images))
    assert len(np.unique(labels)) > 1
    assert (labels == truth.numpy()).mean() > 0.999


def test_the_file_is_one_uint8_graph_with_its_contract(tiny: Path, exported: Path) -> None:
    model = onnx.load(exported)
    (image,), (labels,) = model.graph.input, model.graph.output
    assert (image.name, labels.name) == (INPUT, LABELS)
    for value, last in ((image, 3), (labels, SIZE[1])):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert value.type.tensor_type.shape.dim[0].dim_param
        assert value.type.tensor_type.shape.dim[-1].dim_value == last
    contract = parse({prop.key: prop.value for prop in model.metadata_props})
    assert (contract.input.height, contract.input.width) == SIZE
    assert contract.input.pad == (128, 128, 128)
    assert contract.checkpoint_sha256 == checkpoint.digest(tiny)
    assert contract.parity.agreement > 0.999
    assert contract.classes == checkpoint.read_card(tiny).classes


def test_the_file_says_nothing_of_the_machine_that_made_it(exported: Path) -> None:
    data = exported.read_bytes()
    assert b".py" not in data
    assert {prop.key for prop in onnx.load(exported).metadata_props} == {METADATA_KEY}


def test_equal_exports_are_equal_bytes(tiny: Path, exported: Path, tmp_path: Path) -> None:
    export(tiny, tmp_path / "again.onnx", ExportOptions())
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_a_file_that_disagrees_with_pytorch_is_never_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = LabelGraph(checkpoint.load(save_random(tmp_path / "other", seed=1))).eval()
    build = writer.build
    monkeypatch.setattr(writer, "build", lambda _, size: build(other, size))  # the wrong weights
    with pytest.raises(ParityError, match=r"99\.9% are required"):
        export(tiny, tmp_path / "bad.onnx", ExportOptions())
    assert not list(tmp_path.glob("*bad*"))


def test_the_output_stride_can_be_chosen_at_export(tiny: Path, tmp_path: Path) -> None:
    code = cli.main([str(tiny), "-o", str(tmp_path / "os8.onnx"), "--output-stride", "8"])
    assert code == 0
    assert Engine(tmp_path / "os8.onnx", EngineOptions("cpu")).contract.output_stride == 8


def test_mistakes_are_named(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(tmp_path / "none"), "-o", str(tmp_path / "x.onnx")]) == 1
    assert "none.json does not exist" in capsys.readouterr().err
    for size, says in (("20,20", "at least 33"), ("513", "write H,W")):
        with pytest.raises(SystemExit, match="2"):
            cli.main([str(tiny), "-o", str(tmp_path / "x.onnx"), "--size", size])
        assert says in capsys.readouterr().err
