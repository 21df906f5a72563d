"""The benchmark runs the contestants that it names, in turn and on the same images."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from export import bench, plain_handler
from service.inference.engine import Engine, EngineOptions
from tests.export.conftest import SIZE
from tests.service.web import opened, photo, png


@pytest.fixture(autouse=True)
def _without_litert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with nothing that only some hosts have: the published file takes 513 x 513."""
    monkeypatch.setattr(bench, "PUBLISHED", Path("none.tflite"))


@pytest.mark.slow
def test_contestants_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []

    def contestant(name: str) -> bench.Runner:
        return lambda _: turns.append(name)

    candidates = {name: contestant(name) for name in ("a", "b")}
    found = bench.timings(candidates, np.zeros((1, 2, 2, 3), np.uint8), rounds=3)
    assert turns == ["a", "b"] * 4
    assert set(found) == {"a", "b"}


@pytest.mark.slow
def test_processor_time_is_that_of_all_threads() -> None:
    def work(_: bench.Images) -> None:
        threads = [threading.Thread(target=sum, args=(range(1_000_000),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = bench.timings({"two": work, "none": time.sleep}, 0.02, rounds=2)  # type: ignore[arg-type]
    assert found["two"].cpu_s > 0.005
    assert found["none"].cpu_s < found["two"].cpu_s / 2
    assert found["none"].seconds >= 0.02


@pytest.mark.slow
def test_ratios_are_printed_for_every_contestant(
    exported: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(exported), "--checkpoint", str(tiny), "--other", str(exported)]
    assert bench.main([*arguments, "--rounds", "1", "--no-service"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("engine") and line.count("1.00 x") == 2 for line in lines)
    assert any(line.startswith("PyTorch eager") for line in lines)
    assert any(line.startswith("exported.onnx ") for line in lines)
    share = float(lines[-1].split(": ")[1].split("%")[0])
    assert 0 < share < 100


@pytest.mark.slow
def test_engine_pytorch_and_openvino_give_the_same_labels(exported: Path, tiny: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    found = bench.contestants(exported, tiny, [], threads=1)
    labels = {name: np.asarray(run(images)) for name, run in found.items()}
    for name, other in labels.items():
        assert (other == labels["engine"]).mean() > 0.999, name


@pytest.mark.slow
def test_the_plain_handler_gives_the_masks_that_the_engine_gives(
    exported: Path, tiny: Path
) -> None:
    pixels = photo(*SIZE)
    client = TestClient(plain_handler.create_app(tiny, SIZE))
    answer = client.post("/segment", files={"file": ("photo.png", png(pixels), "image/png")})
    labels = Engine(exported, EngineOptions("cpu", threads=1)).run(pixels[None])[0]
    assert answer.status_code == 200
    assert (opened(answer.content) == labels).mean() > 0.999


@pytest.mark.slow
def test_the_service_and_the_plain_handler_get_the_same_requests(
    exported: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    arguments = [str(exported), "--checkpoint", str(tiny), "--rounds", "1", "--seconds", "0.1"]
    arguments += ["--service-rounds", "1", "--megapixels", "0.1"]
    arguments += ["--json", str(figures), "--markdown", "--no-rivals"]
    assert bench.main(arguments) == 0
    assert f"**Against a {bench.PLAIN}**" in capsys.readouterr().out
    contestants = json.loads(figures.read_text())["service"]["contestants"]
    for name in ("service", bench.PLAIN):
        for n in (1, 4, 16):
            assert contestants[f"{name} at {n}"]["rate"] > 0
            assert contestants[f"{name} at {n}"]["failures"] == 0
