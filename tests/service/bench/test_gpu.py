"""The measurement on a GPU: tried in full on the CPU, and its page."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from service.bench import gpu, gpu_page
from service.inference.cuda import cuda_problem
from tests.service import onnx_models

CASE = {
    "name": "cuda fp32",
    "file": "light.onnx",
    "device": "cuda",
    "precision": "fp32",
    "provider": "CUDAExecutionProvider",
    "runs_in": "fp32",
    "agreement": 0.9991,
    "ready_s": 4.2,
    "rss_mib": 900,
    "exit_code": 0,
    "problems": [],
    "loads": [
        {
            "in_flight": n,
            "photos_per_s": 100.0 + n,
            "latency_ms": 9.5,
            "infer_ms": 3.25,
            "cpu_ms": 6.1,
            "failures": 0,
            "gpu_mib_peak": 1500.0,
        }
        for n in gpu.CONCURRENCY
    ],
}
FIGURES: dict[str, Any] = {
    "format": gpu.FORMAT,
    "date": "2026-12-01",
    "seconds": 480.0,
    "gpu": {
        "name": "NVIDIA L4",
        "memory_mib": 23034,
        "driver": "550.90.07",
        "driver_cuda": "12.4",
    },
    "host": {"cpu": "a Xeon", "cpus": 8, "system": "Linux"},
    "versions": {"onnxruntime": "1.26.0"},
    "cases": [CASE, {"name": "TensorRT fp32", "problems": ["not run: the time was over"]}],
    "reload": {
        "reload_s": [1.5, 1.25],
        "failures": 0,
        "gpu_mib_before": 1500.0,
        "gpu_mib_after": 1510.0,
        "problems": [],
    },
    "kill": {"released_s": 0.4, "ready_again_s": 4.5, "problems": []},
    "problems": ["TensorRT fp32: not run: the time was over"],
}


def case(folder: Path, device: str = "cpu") -> gpu.Case:
    file = onnx_models.save(folder / "tiny.onnx")
    return gpu.Case(f"{device} fp32", file, device, "fp32")  # type: ignore[arg-type]


@pytest.mark.slow
def test_one_run_measures_loads_a_reload_and_a_kill(tmp_path: Path) -> None:
    """Each step saves its measurements, so that a later failure does not lose them."""
    noted: list[dict[str, Any]] = []
    options = gpu.GpuOptions((case(tmp_path),), seconds=0.3)
    result = gpu.run(options, lambda figures: noted.append(copy.deepcopy(figures)))
    assert result["problems"] == []
    (found,) = result["cases"]
    assert found["provider"] == "CPUExecutionProvider"
    assert found["agreement"] == 1
    assert [load["in_flight"] for load in found["loads"]] == [1, 16, 64]
    assert all(load["photos_per_s"] > 0 for load in found["loads"])
    assert found["exit_code"] == 0
    assert len(result["reload"]["reload_s"]) == gpu.RELOADS
    assert result["kill"]["ready_again_s"] > 0
    assert ["reload" in figures for figures in noted] == [False, True, True]
    assert json.loads(json.dumps(result)) == result


@pytest.mark.slow
@pytest.mark.skipif(cuda_problem() is None, reason="a working GPU is present")
def test_a_case_that_cannot_run_is_a_problem_and_the_others_continue(tmp_path: Path) -> None:
    options = gpu.GpuOptions((case(tmp_path, "cuda"),), seconds=0.1)
    result = gpu.run(options, lambda _: None)
    assert [problem.partition(":")[0] for problem in result["problems"]] == [
        "cuda fp32",
        "reload",
        "kill",
    ]
    assert "--device cuda" in result["problems"][0]


def test_no_case_starts_after_the_time_limit(tmp_path: Path) -> None:
    result = gpu.run(gpu.GpuOptions((case(tmp_path),), budget_s=0), lambda _: None)
    assert all(problem.endswith("not run: the time was over") for problem in result["problems"])
    assert len(result["problems"]) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"provider": "CPUExecutionProvider"}, "ran on CPU"),
        ({"agreement": 0.95}, "only 95.000% of the labels"),
        ({"exit_code": 1}, "code 1"),
        ({"loads": [{"in_flight": 64, "failures": 3}]}, "3 failures with 64 in flight"),
    ],
)
def test_each_wrong_result_is_a_problem(change: dict[str, Any], says: str) -> None:
    asked = gpu.Case("cuda fp32", Path("light.onnx"), "cuda", "fp32")
    assert list(gpu.case_problems(asked, CASE)) == []
    (problem,) = gpu.case_problems(asked, {**CASE, **change})
    assert says in problem


def test_the_page_has_every_figure_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(FIGURES))
    target = tmp_path / "gpu.md"
    assert gpu_page.main([str(tmp_path / "gpu.json"), "-o", str(target)]) == 0
    text = target.read_text()
    assert "NVIDIA L4" in text
    assert "driver 550.90.07 (CUDA 12.4)" in text
    assert "| cuda fp32 | 64 | 164.0 | 9.5 | 3.2 | 6.1 | 1500 |" in text
    assert "| TensorRT fp32 |  | did not run |" in text
    assert "| 1.5, 1.2 | 0 | 1500 | 1510 |" in text
    assert "- TensorRT fp32: not run: the time was over" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [({"gpu": None}, "measured without a GPU"), ({"format": 0}, "format 0")],
)
def test_no_page_is_made_from_a_trial_on_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({**FIGURES, **change}))
    target = tmp_path / "gpu.md"
    assert gpu_page.main([str(tmp_path / "gpu.json"), "-o", str(target)]) == 1
    assert says in capsys.readouterr().err
    assert not target.exists()


def test_the_page_in_the_documentation_is_up_to_date() -> None:
    """If this fails, run `python -m service.bench.gpu_page`."""
    figures = gpu_page.load(gpu_page.FIGURES) if gpu_page.FIGURES.exists() else None
    assert gpu_page.PAGE.read_text(encoding="utf-8") == gpu_page.page(figures)
