"""The client's benchmark measures the client's speed and memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service import launch
from service.bench import client as bench_client
from service.settings import SAMPLES
from tests.service import onnx_models

PHOTOS = tuple(sorted(SAMPLES.glob("*.jpg")))


def test_the_tree_has_as_many_photos_as_asked_and_takes_little_space(tmp_path: Path) -> None:
    folder = bench_client.plant(tmp_path / "in", PHOTOS, 1003)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 1003
    assert {path.read_bytes() for path in files} == {path.read_bytes() for path in PHOTOS}
    assert len({path.stat().st_ino for path in files}) == 2 * len(PHOTOS)


@pytest.mark.slow
def test_the_client_run_is_counted_and_its_memory_seen(tmp_path: Path) -> None:
    folder = bench_client.plant(tmp_path / "in", PHOTOS, 30)
    with launch.module("service.bench.stub") as server:
        ran = bench_client.client(server.url, folder, tmp_path / "out")
        with pytest.raises(RuntimeError, match="the client ended with"):
            bench_client.client(server.url, tmp_path / "none", tmp_path / "out")
    assert ran.photos == 30
    assert len(list((tmp_path / "out").rglob("*.mask.png"))) == 30
    assert 10 < ran.peak_rss_mib < 500
    assert ran.cpu_s > 0


@pytest.mark.slow
def test_one_run_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    out = tmp_path / "figures.json"
    arguments = ["--model-dir", str(tmp_path), "--rounds", "1", "--seconds", "0.3"]
    assert bench_client.main([*arguments, "--inputs", "3,5", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["busy"]["share"] > 0
    assert [each["inputs"] for each in result["memory"]] == [3, 5]
    assert all(each["peak_rss_mib"] > 10 for each in result["memory"])
    text = capsys.readouterr().out
    assert "How busy the client keeps the service" in text
    assert "peak RSS MiB" in text
