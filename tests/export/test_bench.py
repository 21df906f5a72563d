"""The benchmark compares what it says it compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export import bench
from tests.export.conftest import SIZE


def test_the_tail_is_what_lies_behind_the_last_convolution(exported: Path) -> None:
    model = onnx.load(exported)
    operators = {node.op_type for node in model.graph.node if node.name in bench.tail(model)}
    assert {"Resize", "ArgMax", "Cast"} <= operators
    assert "Conv" not in operators


def test_contestants_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []

    def contestant(name: str) -> bench.Runner:
        return lambda _: turns.append(name)

    candidates = {name: contestant(name) for name in ("a", "b")}
    seconds = bench.medians(candidates, np.zeros((1, 2, 2, 3), np.uint8), rounds=3)
    assert turns == ["a", "b"] * 4
    assert set(seconds) == {"a", "b"}


def test_ratios_are_printed_for_every_contestant(
    exported: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(exported), "--checkpoint", str(tiny), "--other", str(exported)]
    assert bench.main([*arguments, "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1.00 x" in lines[1]
    assert any(line.startswith("PyTorch eager") for line in lines)
    assert any(line.startswith("tiny.onnx ") for line in lines)
    share = float(lines[-1].split(": ")[1].split("%")[0])
    assert 0 < share < 100


def test_engine_pytorch_and_openvino_give_the_same_labels(exported: Path, tiny: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    found = bench.contestants(exported, tiny, [], threads=1)
    labels = {name: np.asarray(run(images)) for name, run in found.items()}
    for name, other in labels.items():
        assert (other == labels["engine"]).mean() > 0.999, name
