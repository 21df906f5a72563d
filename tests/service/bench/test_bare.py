"""The bare engine runs on the service's photos, in the service's environment."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service import launch
from service.bench import bare
from service.errors import StartupError
from service.inference.engine import Engine, EngineOptions
from service.settings import SAMPLES
from tests.service import onnx_models

pytestmark = pytest.mark.slow  # starts processes

Images = NDArray[np.uint8]
PHOTOS = sorted(SAMPLES.glob("*.jpg"))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(onnx_models.save(tmp_path / "tiny.onnx"), EngineOptions("cpu", threads=1))


def test_the_bare_engine_runs_whole_batches(engine: Engine) -> None:
    images = list(np.zeros((4, *engine.input_size, 3), np.uint8))
    found = bare.timed([engine.predict], images, 4, seconds=0.05)
    assert found.answers % 4 == 0
    assert found.seconds >= 0.05
    assert found.server_cpu_s is not None


def test_the_bare_engine_can_run_several_batches_at_a_time() -> None:
    threads: list[int] = []

    def run(_: Images) -> None:
        threads.append(threading.get_ident())
        time.sleep(0.001)

    found = bare.timed([run, run], list(np.zeros((4, 2, 2, 3), np.uint8)), 1, seconds=0.1)
    assert len(set(threads) - {threading.get_ident()}) == 2
    assert found.answers == len(threads) - 2  # each has warmed up


def test_the_engine_gets_the_photos_as_the_service_decodes_them(engine: Engine) -> None:
    photos = sorted(SAMPLES.glob("*.jpg"))
    images = bare.decoded(engine, photos)
    assert [each.shape for each in images] == [(*engine.input_size, 3)] * len(photos)
    assert (images[0] != images[1]).any()


def test_a_batch_has_photos_of_one_size() -> None:
    images = [np.full((size, 2, 3), value, np.uint8) for value, size in enumerate((4, 4, 5, 4))]
    values = [bare.together(images, first, 4)[:, 0, 0, 0].tolist() for first in range(4)]
    assert values == [[0, 1, 3, 0], [1, 3, 0, 1], [2, 2, 2, 2], [3, 0, 1, 3]]


def test_the_engine_is_that_of_the_serving_environment(tmp_path: Path) -> None:
    """Its version of ONNX Runtime is the one that the service's interpreter imports."""
    file = onnx_models.save(tmp_path / "tiny.onnx")
    code = "import onnxruntime; print(onnxruntime.__version__, onnxruntime.__file__)"
    served, path = subprocess.check_output([launch.python(), "-c", code], text=True).split()
    with bare.started(file, "cpu", PHOTOS) as running:
        assert running.facts.onnxruntime == served
        libraries = Path(f"/proc/{running.pid}/maps")
        if libraries.exists():
            assert str(Path(path).parent) in libraries.read_text(encoding="utf-8")
        for every_lane in (False, True):
            report = running.run(2, 0.05, every_lane=every_lane)
            assert report.answers >= 2
            assert report.seconds >= 0.05


def test_a_file_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StartupError, match=r"none\.onnx"),
        bare.started(tmp_path / "none.onnx", "cpu", PHOTOS),
    ):
        pass
