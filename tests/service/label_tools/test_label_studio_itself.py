"""A running Label Studio fetches predictions from the backend; its own converter reads them.

Label Studio brings some 150 packages in versions of its own, so it stands in another environment:
LABEL_STUDIO_PYTHON=/path/to/its/python make test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.launch import free_port

SCRIPT = Path(__file__).with_name("studio.py")
PYTHON = os.environ.get("LABEL_STUDIO_PYTHON", "")
TOKEN = "0123456789abcdef0123456789abcdef01234567"  # as in studio.py
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not PYTHON, reason="LABEL_STUDIO_PYTHON names no Python with label-studio installed"
    ),
]


@pytest.fixture(scope="module")
def studio_port() -> int:
    return free_port()


def wait_for_health(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the backend ended"
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the backend does not answer")


@pytest.fixture(scope="module")
def backend(url: str, studio_port: int) -> Iterator[str]:
    """The real command, with exact shapes of every size."""
    port = free_port()
    words = [url, "--label-studio", f"http://127.0.0.1:{studio_port}", "--port", str(port)]
    words += ["--tolerance", "0", "--min-area", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "service.label_studio", *words],
        env=os.environ | {"LABEL_STUDIO_API_KEY": TOKEN},
    )
    address = f"http://127.0.0.1:{port}"

    try:
        wait_for_health(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def answers(
    backend: str, studio_port: int, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    from tests.service.label_tools.conftest import PHOTO

    folder = tmp_path_factory.mktemp("studio")
    Image.fromarray(PHOTO).save(folder / "photo.png")
    words = [str(studio_port), backend, str(folder / "photo.png"), str(folder)]
    done = subprocess.run([PYTHON, SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text()), folder


def test_label_studio_connects_and_stores_a_prediction_that_fits_its_interface(
    answers: tuple[dict[str, Any], Path],
) -> None:
    """`/health`, `/setup` and `/predict` are called by Label Studio's own client."""
    found, _ = answers
    assert found["model_version"].startswith("tiny ")
    assert found["predictions"] == [1, 1]
    assert found["errors"] == {"BrushLabels": [], "PolygonLabels": []}


def test_brushes_decoded_by_label_studio_are_the_services_mask(
    answers: tuple[dict[str, Any], Path], expected: NDArray[np.uint8]
) -> None:
    for number, label in ((1, "dim"), (2, "bright")):
        assert (np.load(answers[1] / f"{label}.npy") == (expected == number)).all()


def test_polygons_of_label_studios_coco_file_are_the_services_mask(
    answers: tuple[dict[str, Any], Path], expected: NDArray[np.uint8]
) -> None:
    """Drawn ten times as large: Pillow paints the outline too, which is half a pixel more."""
    for number, label in ((1, "dim"), (2, "bright")):
        size = (10 * expected.shape[1], 10 * expected.shape[0])
        drawn = Image.new("1", size)
        pen = ImageDraw.Draw(drawn)
        for name, outlines in answers[0]["polygons"]:
            if name == label:
                pen.polygon([10 * value for value in outlines[0]], fill=1)
        found = np.asarray(drawn)[5::10, 5::10]
        assert (found == (expected == number)).mean() > 0.999
