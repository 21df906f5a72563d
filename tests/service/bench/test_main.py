"""The benchmark of the service measures what it claims."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from service.bench import __main__ as bench
from service.bench import measure
from service.bench.generator import LoadReport
from service.settings import SAMPLES
from tests.service import onnx_models


def report(answers: int, stages: dict[str, float] | None = None) -> LoadReport:
    return LoadReport(answers, 0, 2.0, 100.0, stages or {}, 0.1, 0.5)


def test_contestants_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    turns: list[str] = []

    def contestant(name: str) -> measure.Contestant:
        def run() -> LoadReport:
            turns.append(name)
            return report(1)

        return run

    found = measure.take_turns({name: contestant(name) for name in ("a", "b")}, rounds=3)
    assert turns == ["a", "b"] * 3
    assert {name: len(reports) for name, reports in found.items()} == {"a": 3, "b": 3}
    told = capsys.readouterr().err
    assert re.findall(r"^round (\d) of 3 took \d+ s$", told, re.MULTILINE) == ["1", "2", "3"]


def test_medians_are_taken_over_the_rounds() -> None:
    figures = measure.medians([report(n, {"infer": float(n)}) for n in (10, 90, 20)])
    assert figures["rate"] == 10
    assert figures["cpu_ms"] == 25
    assert figures["client_cpu_ms"] == 5
    assert figures["stages_ms"] == {"infer": 20}


def test_the_large_photo_is_as_hard_to_decode_as_a_real_one(tmp_path: Path) -> None:
    path = measure.large_photo(SAMPLES / "cat.jpg", tmp_path / "large.jpg", 0.48)
    with Image.open(path) as image:
        assert image.size == (800, 600)
    assert 0.1 < path.stat().st_size / (800 * 600) < 0.7  # phones: 2 to 5 MB at 12 megapixels


def test_ratios_are_to_the_fastest_engine() -> None:
    names = ("engine, batch 1", "engine, 2 at a time", "service at 16")
    figures = {
        name: measure.medians([report(n)]) for name, n in zip(names, (10, 20, 19), strict=True)
    }
    rows = {row[0]: row for row in measure.throughput(figures).rows}
    assert [rows[name][2] for name in names] == ["0.500", "1.000", "0.950"]


def test_added_latency_adds_up() -> None:
    stages = {"decode": 3.0, "queue": 2.0, "infer": 85.0, "encode": 1.0}
    figures = {
        "engine, batch 1": {**measure.medians([report(1)]), "latency_ms": 80.0},
        "service at 1": measure.medians([report(1, stages)]),
    }
    rows = {name: float(ms) for name, ms in measure.added_latency(figures).rows}
    assert rows["infer"] == 5
    assert rows["HTTP, event loop, client"] == 9
    assert rows["total"] == 20
    assert sum(rows.values()) == 2 * rows["total"]


@pytest.mark.slow
def test_one_run_has_every_figure(tmp_path: Path) -> None:
    file = onnx_models.save(tmp_path / "tiny.onnx")
    photos = tuple(sorted(SAMPLES.glob("*.jpg")))
    result = measure.run(measure.BenchOptions(file, photos, rounds=1, seconds=0.1, megapixels=0.1))
    found = result["contestants"]
    for n in (1, 4, 16):
        figures = found[f"service at {n}"]
        assert figures["rate"] > 0
        assert figures["failures"] == 0
        assert set(figures["stages_ms"]) == {"decode", "queue", "infer", "encode"}
    text = measure.shown(measure.tables(result), markdown=False)
    assert "not the model" in text
    assert "Added latency" in text
    assert len(result["start_ms"][measure.SERVICE]) == measure.STARTS
    assert "From start to ready" in text
    assert json.loads(json.dumps(result)) == result


@pytest.mark.slow
def test_a_missing_model_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([str(tmp_path / "none.onnx")]) == 1
    assert "error: cannot read the model" in capsys.readouterr().err
