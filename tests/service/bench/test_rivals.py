"""The rivals of `make bench` do what the service does, and the table says which is faster."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.bench import measure, vitals
from service.bench.generator import LoadReport
from service.bench.rivals import environments, fastapi_server
from service.inference.engine import Engine, EngineOptions
from service.settings import BUNDLED, SAMPLES
from tests.service import onnx_models
from tests.service.web import opened, photo, png

FOLDER = Path(environments.__file__).parent
ROOT = Path(__file__).parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_models.save(tmp_path / "tiny.onnx")


def test_the_fastapi_handler_gives_the_masks_that_the_engine_gives(model: Path) -> None:
    engine = Engine(model, EngineOptions("cpu", threads=1))
    pixels = photo(*engine.input_size)
    client = TestClient(fastapi_server.create_app(str(model)))
    answer = client.post("/segment", files={"file": ("photo.png", png(pixels), "image/png")})
    assert answer.status_code == 200
    assert (opened(answer.content) == engine.run(pixels[None])[0]).all()


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended may still wait for its parent."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(
    environments.program("litserve") is None, reason="no build/rivals: `make bench` makes it"
)
def test_every_rival_answers_the_same_request_with_the_same_mask() -> None:
    """With the bundled file; a photo that is smaller than the model's input is not resized."""
    file = min(BUNDLED.glob("*.onnx"))
    sent = min(SAMPLES.glob("*.jpg")).read_bytes()
    with environments.servers(file, threads=2) as servers:
        masks = {}
        for name, server in servers.items():
            answer = httpx.post(
                f"{server.url}/segment?output=mask", files={"file": sent}, timeout=120
            )
            answer.raise_for_status()
            masks[name] = opened(answer.content)
        workers = [pid for server in servers.values() for pid in vitals.descendants(server.pid)]
    first, *others = masks.values()
    assert len(others) == 2
    assert all((first == other).all() for other in others)
    assert workers
    deadline = time.monotonic() + 10
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))


def test_rivals_that_are_not_installed_are_named_and_left_out(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "none")
    with environments.servers(model, threads=1) as servers:
        assert servers == {}
    assert "LitServe is not installed" in capsys.readouterr().err


def test_processor_time_counts_a_server_and_its_workers() -> None:
    """LitServe runs inference in child processes; without them, its photos would look cheap."""
    work = "sum(range(3_000_000)); input()"
    start = f"subprocess.Popen([sys.executable, '-c', '{work}'], stdin=subprocess.PIPE)"
    code = f"import subprocess, sys; worker = {start}; print(worker.pid, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as server:  # type: ignore[call-overload]
        worker = int(server.stdout.readline())
        assert vitals.descendants(server.pid) == [worker]
        alone, together = vitals.read(server.pid).cpu_s, vitals.tree_cpu_s(server.pid)
        own = vitals.read(worker).cpu_s
        assert alone <= together <= vitals.read(server.pid).cpu_s + own + 0.05
        server.communicate("\n")


@pytest.mark.parametrize(
    ("rates", "fastest"),
    [((10.0, 20.0), "service with OpenVINO"), ((10.0, 12.0), "**LitServe**")],
)
def test_the_table_says_where_a_rival_wins(rates: tuple[float, float], fastest: str) -> None:
    speeds = {
        "service": rates[0],
        "service with OpenVINO": rates[1],
        "LitServe": 16.0,
        "FastAPI handler": 8.0,
    }
    figures = {
        f"{name} at {n}": measure.medians([LoadReport(int(rate), 0, 1.0, 1.0, {}, 0.1, 0.5)])
        for name, rate in speeds.items()
        for n in measure.CONCURRENCY
    }
    table = measure.against_rivals(figures, ["LitServe", "FastAPI handler"])
    for row in table.rows:
        assert row[1:3] == ("LitServe", "16.00")
        assert row[3:] == (f"{rates[0] / 16:.2f} x", f"{rates[1] / 16:.2f} x", fastest)


def test_each_environment_of_a_rival_is_made_by_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = (line for line in makefile.splitlines() if line.startswith("RIVALS :="))
    made = set(line.rpartition(",")[2].rstrip(")").split())
    assert made == {path.stem for path in FOLDER.glob("*.txt")}
    assert {rival.environment for rival in environments.rivals(2)} | {"litert"} == made


@pytest.mark.parametrize(
    "alignment", [{"policy": "fixed"}, {"policy": "aligned", "multiple": 16, "least": (193, 193)}]
)
def test_photos_are_fitted_as_in_the_service(alignment: dict[str, Any]) -> None:
    from service.bench.rivals.pictures import model_input
    from service.images import imaging
    from service.inference.contract import InputSize

    path = SAMPLES / "cat.jpg"  # wider than high
    target = InputSize(height=321, width=321, pad=(0, 0, 0), **alignment)
    with path.open("rb") as file:
        pixels, own, (w, h) = model_input(file, target.model_dump())
    photo = imaging.decode(imaging.open_checked(path.read_bytes(), 10**8), reduce_to=321)
    ours = imaging.fit(photo, target)
    assert pixels.shape[1:] == ours.pixels.shape
    assert own == photo.size
    assert (h, w) == ours.valid
    assert np.abs(pixels[0, :h, :w].astype(int) - ours.pixels[:h, :w]).mean() < 3
