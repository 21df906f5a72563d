"""The throughput model against its simulation, and the page that it fills."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.cluster import scale
from service.cluster.scale import (
    AT_MODEL,
    AT_PIXELS,
    BEGIN,
    END,
    IN_FLIGHT,
    Costs,
    Fleet,
    model,
    simulate,
)
from tests.service import onnx_models
from tests.service.web import photo, png

PAGE = Path(scale.__file__).parents[2] / "docs" / "scale.md"

LIGHT = Costs(decode_ms=2, engine_ms=100, encode_ms=1, bytes_in=60e3, bytes_out=6e3)
HEAVY = Costs(decode_ms=25, engine_ms=100, encode_ms=40, bytes_in=2e6, bytes_out=9e4)
GPU = Fleet("gpu", cores=48, gpus=1, gpu_ms=2)

CASES = [
    (Fleet("core"), LIGHT, AT_MODEL),
    (Fleet("cores", cores=16), HEAVY, AT_MODEL),
    (GPU, LIGHT, "GPU"),
    (replace(GPU, cores=4), HEAVY, AT_PIXELS),
    (replace(GPU, gbit_per_s=5), HEAVY, "network in"),
    (replace(GPU, gbit_per_s=5), replace(HEAVY, bytes_in=1e4, bytes_out=2e6), "network out"),
    (replace(GPU, gpus=16, hosts=4), LIGHT, "storage writes"),
    (replace(GPU, gpus=16, hosts=4, puts_per_s=20_000), LIGHT, "storage reads"),
    (replace(GPU, in_flight=8), LIGHT, IN_FLIGHT),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fleet", "costs", "limit"), CASES, ids=[case[2] for case in CASES])
def test_the_simulation_agrees_with_the_model_and_its_bottleneck(
    fleet: Fleet, costs: Costs, limit: str
) -> None:
    pytest.importorskip("simpy", reason="simpy comes with the extra `dev`")
    predicted, simulated = model(fleet, costs), simulate(fleet, costs, photos=4000)
    assert (predicted.bottleneck, simulated.bottleneck) == (limit, limit)
    # The bound is reached up to chance: 0.5 / sqrt(3000) is 0.9 % of one server's mean.
    assert simulated.photos_per_s == pytest.approx(predicted.photos_per_s, rel=0.04)


@pytest.mark.slow
def test_few_photos_in_flight_leave_the_hardware_idle() -> None:
    """By hand: 8 photos in 60 ms of waiting, 3 ms of cores, 2 ms of GPU and short transfers."""
    fleet = replace(GPU, in_flight=8, gbit_per_s=1000)
    assert model(fleet, LIGHT).photos_per_s == pytest.approx(8 / 0.0655, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "gain"), [({"cores": 32}, 2.0), ({"gbit_per_s": 20.0}, 1.0), ({"hosts": 2}, 2.0)]
)
def test_only_more_of_the_bottleneck_is_faster(change: dict[str, int | float], gain: float) -> None:
    fleet = Fleet("cores", cores=16)
    faster = replace(fleet, **change)  # type: ignore[arg-type] # one field at a time
    assert model(faster, HEAVY).photos_per_s == pytest.approx(
        gain * model(fleet, HEAVY).photos_per_s
    )


@pytest.mark.slow
def test_measured_costs_are_those_of_the_photos_and_masks(tmp_path: Path) -> None:
    path = onnx_models.save(tmp_path / "tiny.onnx")
    images = [png(photo(300, 400)), png(photo(30, 40))]
    costs = scale.measure(path, images)
    assert costs.bytes_in == sum(map(len, images)) / 2
    assert 0 < costs.bytes_out < 300 * 400
    assert costs.core_ms > 0


@pytest.mark.slow
def test_the_command_tells_everything_as_json_and_fills_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("simpy", reason="simpy comes with the extra `dev`")
    monkeypatch.setattr(scale, "PHOTOS", 500)
    path = onnx_models.save(tmp_path / "tiny.onnx")
    (tmp_path / "photo.png").write_bytes(png(photo()))
    page = tmp_path / "scale.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = [str(tmp_path / "photo.png"), "--model", str(path), "--gpu-ms", "7"]
    assert scale.main([*arguments, "--json", "--write", str(page)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["fleet"]["name"] for row in told["rows"]} >= {"1 core", "1 GPU, 4 cores"}
    assert told["costs"]["given"]["bytes_in"] == (tmp_path / "photo.png").stat().st_size
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "7 ms of GPU time a photo is assumed" in text
    assert f"{told['rows'][0]['model']['photos_per_s'] * 3600:,.0f}" in text


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must contain one"):
        scale.write(page, "text")


@pytest.mark.slow
def test_the_documentation_has_its_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    tables = page.split(BEGIN)[1].split(END)[0]
    for fleet in scale.fleets(scale.GPU_MS):
        assert f"| {fleet.name} |" in tables
    assert "assumed, not measured" in tables
