"""Export GPU memory to Prometheus, as NVIDIA's driver reports it; nothing on a CPU."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger("service.metrics")


def nvml() -> Any | None:
    """Load NVIDIA's management library; return None if it or the driver is missing."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        log.info(
            "no GPU memory in /metrics: nvidia-ml-py is not installed; it comes with the gpu extra"
        )
        return None
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        log.warning("no GPU memory in /metrics: %s", error)
        return None
    return library


def gpus(library: Any) -> list[str]:
    """Return a line for each GPU of the driver: name, memory and driver version."""
    driver = library.nvmlSystemGetDriverVersion()
    found = []
    for number in range(library.nvmlDeviceGetCount()):
        handle = library.nvmlDeviceGetHandleByIndex(number)
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        name = library.nvmlDeviceGetName(handle)
        gigabytes = f"{memory.used / 1e9:.1f} of {memory.total / 1e9:.1f} GB in use"
        found.append(f"{number}: {name}, {gigabytes}, driver {driver}")
    return found


class GpuMemory(Collector):
    """Reads the memory of every GPU at each scrape, while a model runs on one.

    The driver numbers GPUs in bus order and ignores CUDA_VISIBLE_DEVICES. Only the
    label `uuid` identifies a GPU for sure.
    """

    def __init__(self, on_gpu: Callable[[], bool], load: Callable[[], Any | None] = nvml) -> None:
        """`on_gpu` returns whether any model runs on a GPU."""
        self._on_gpu = on_gpu
        self._load = load
        self._library: Any | None = None
        self._loaded = False

    def describe(self) -> list[Metric]:
        """Return no metrics: the registry would call `collect` before GPUs are known."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the used and the total memory of each GPU."""
        if not self._on_gpu():
            return
        if not self._loaded:
            self._library, self._loaded = self._load(), True
        if self._library is None:
            return
        used = GaugeMetricFamily(
            "deeplab_gpu_memory_used_bytes",
            "GPU memory in use, by all processes",
            labels=["gpu", "uuid"],
        )
        total = GaugeMetricFamily(
            "deeplab_gpu_memory_total_bytes", "Total GPU memory", labels=["gpu", "uuid"]
        )
        for labels, memory in self._read(self._library):
            used.add_metric(labels, memory.used)
            total.add_metric(labels, memory.total)
        yield from (used, total)

    def _read(self, library: Any) -> Iterator[tuple[list[str], Any]]:
        try:
            for number in range(library.nvmlDeviceGetCount()):
                handle = library.nvmlDeviceGetHandleByIndex(number)
                uuid = library.nvmlDeviceGetUUID(handle)
                yield [str(number), str(uuid)], library.nvmlDeviceGetMemoryInfo(handle)
        except library.NVMLError as error:  # a GPU may fall off the bus
            log.warning("cannot read GPU memory: %s", error)
