"""The doctor reports what is wrong, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import onnxruntime as ort
import pytest

from service import __main__ as cli
from service.doctor import installed_wheels, wheel_problem
from service.http.telemetry import gpu_memory
from tests.service import onnx_models


def install(folder: Path, name: str) -> None:
    """The files of an installed wheel that the doctor reads."""
    info = folder / f"{name.replace('-', '_')}-1.23.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.23.0\n")


def test_a_valid_folder_has_nothing_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    assert cli.main(["doctor", "--models", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "nothing is wrong" in said
    assert "CPUExecutionProvider" in said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the stand-in")
@pytest.mark.parametrize("driver", [12040, 13000])
def test_the_doctor_names_the_image_that_fits_the_driver(tmp_path: Path, driver: int) -> None:
    """The driver's library is a stand-in that is only asked which CUDA it supports."""
    source = f"int cuDriverGetVersion(int *version) {{ *version = {driver}; return 0; }}"
    (tmp_path / "driver.c").write_text(source)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-o", library, tmp_path / "driver.c"], check=True)
    onnx_models.save(tmp_path / "tiny.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "service", "doctor", "--models", tmp_path, "--json"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)["onnxruntime"]
    image = "gpu-cu12" if driver < 13000 else "gpu"
    assert f"use the {image} image or extra" in found["driver"]
    if driver < 13000 and (ort.cuda_version or "").startswith("13."):
        assert "needs CUDA 13" in found["cuda"]
        assert "use the gpu-cu12 image" in found["cuda"]


def test_gpus_that_cannot_be_read_are_reported_as_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Lost:
        class NVMLError(Exception):
            pass

        def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802 (NVIDIA's name)
            raise self.NVMLError("GPU is lost")

    onnx_models.save(tmp_path / "tiny.onnx")
    for library, says in ((None, "none found"), (Lost(), "cannot be read: GPU is lost")):
        monkeypatch.setattr(gpu_memory, "nvml", lambda found=library: found)
        assert cli.main(["doctor", "--models", str(tmp_path)]) == 0
        assert f"gpu          {says}" in capsys.readouterr().out


def test_bad_files_are_named_among_good_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "good.onnx")
    onnx_models.save(tmp_path / "bare.onnx", metadata={})
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "good.onnx").read_bytes()[:-40])
    assert cli.main(["doctor", "--models", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in report["models"]] == ["good"]
    engines = [*report["onnxruntime"]["compiled_in"], "OpenVINO"]
    assert report["models"][0]["runs_on"] in engines
    assert report["models"][0]["computes_in"] in {"fp32", "bf16"}
    bare, cut = report["problems"]
    assert "bare.onnx" in bare
    assert "cut.onnx" in cut


def test_the_doctor_looks_at_what_the_environment_has_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "mine.onnx")
    monkeypatch.setenv("DEEPLAB_MODELS", str(tmp_path))
    monkeypatch.setenv("DEEPLAB_DEVICE", "cpu")
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["folder"], report["device"]) == (str(tmp_path), "cpu")
    assert [model["name"] for model in report["models"]] == ["mine"]


def test_a_variable_that_is_no_setting_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    monkeypatch.setenv("DEEPLAB_PORT", "eighty")
    assert cli.main(["doctor", "--models", str(tmp_path)]) == 1
    assert "--port='eighty'" in capsys.readouterr().out


def test_an_empty_folder_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--models", str(tmp_path)]) == 1
    assert "wrong: --models" in capsys.readouterr().out


def test_two_runtimes_at_once_are_wrong(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime")
    alone = installed_wheels(distributions(path=[str(tmp_path)]))
    assert wheel_problem(alone) is None
    install(tmp_path, "onnxruntime-gpu")
    both = installed_wheels(distributions(path=[str(tmp_path)]))
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in (wheel_problem(both) or "")


def test_a_service_with_two_runtimes_refuses_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        install(tmp_path, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main(["--models", str(tmp_path), "--port", "0"]) == 1
    assert "overwrite each other" in capsys.readouterr().err
