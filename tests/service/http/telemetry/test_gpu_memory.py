"""GPU memory is exported when a model runs on a GPU, and absent otherwise."""

from __future__ import annotations

import gc
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort
import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest

from service.http.telemetry import gpu_memory, metrics
from service.http.telemetry.gpu_memory import GpuMemory
from tests.service import onnx_models
from tests.service.web import photo, png, post, serving


@dataclass
class Memory:
    used: int
    total: int


class Driver:
    """A stand-in for pynvml on a host with two GPUs. The last one can be made to fail."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 (NVIDIA's names)
        return 2

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.159"

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"NVIDIA H{handle}"

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        if self.broken and number == 1:
            raise self.NVMLError("GPU is lost")
        return number

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Memory:  # noqa: N802
        return Memory(used=1024 * (handle + 1), total=2**30)


def exposed(collector: GpuMemory) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def test_the_doctor_reads_every_gpu() -> None:
    assert gpu_memory.gpus(Driver()) == [
        "0: NVIDIA H0, 0.0 of 1.1 GB in use, driver 580.159",
        "1: NVIDIA H1, 0.0 of 1.1 GB in use, driver 580.159",
    ]


def test_every_gpu_is_listed_with_its_memory() -> None:
    text = exposed(GpuMemory(lambda: True, Driver))
    assert 'deeplab_gpu_memory_used_bytes{gpu="0",uuid="GPU-0"} 1024.0' in text
    assert 'deeplab_gpu_memory_used_bytes{gpu="1",uuid="GPU-1"} 2048.0' in text
    assert 'deeplab_gpu_memory_total_bytes{gpu="1",uuid="GPU-1"} 1.073741824e+09' in text


class Card(Driver):
    """A GPU on which every live session of ONNX Runtime takes 300 MB."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Memory:  # noqa: N802
        sessions = sum(issubclass(type(each), ort.InferenceSession) for each in gc.get_objects())
        return Memory(used=sessions * 300_000_000, total=2**36)


@pytest.mark.slow
def test_a_cards_memory_does_not_grow_over_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten reloads while a client sends requests, without Python's cycle collector."""
    monkeypatch.setattr(metrics, "GpuMemory", lambda _: GpuMemory(lambda: True, Card))
    onnx_models.save(tmp_path / "tiny.onnx")

    def used(client: TestClient) -> float:
        found = re.search(r"gpu_memory_used_bytes\S+ (\S+)", client.get("/metrics").text)
        assert found is not None
        return float(found[1])

    gc.collect()
    gc.disable()
    try:
        with serving(tmp_path) as client:
            before = used(client)
            for turn in range(10):
                onnx_models.save(tmp_path / "tiny.onnx", brightest=1 + turn % 2)
                assert client.post("/models/tiny/reload").json()["changed"] is True
                assert post(client, png(photo())).status_code == 200
            ends = time.monotonic() + 10
            while used(client) > before and time.monotonic() < ends:
                time.sleep(0.02)  # the last one is retired in the background
            assert used(client) == before > 0
    finally:
        gc.enable()


def test_a_gpu_that_is_lost_leaves_the_others_in(caplog: pytest.LogCaptureFixture) -> None:
    text = exposed(GpuMemory(lambda: True, lambda: Driver(broken=True)))
    assert 'uuid="GPU-0"' in text
    assert 'uuid="GPU-1"' not in text
    assert "GPU is lost" in caplog.text


def test_a_service_on_the_cpu_says_nothing_of_gpus(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path) as client:
        text = client.get("/metrics").text
    assert "gpu_memory" not in text
    assert "process_resident_memory_bytes" in text


def test_a_host_without_the_library_or_its_driver_serves_its_metrics_without_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_memory.nvml() is None
    assert "gpu_memory" not in exposed(GpuMemory(lambda: True))


def test_a_driver_that_is_missing_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is in the gpu extra only")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert gpu_memory.nvml() is None
        assert "no GPU memory in /metrics" in caplog.text
    else:
        assert gpu_memory.nvml() is pynvml
