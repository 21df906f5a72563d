"""compose.yaml agrees with the service and with the files of Prometheus and Grafana."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.inference import models
from service.settings import Settings
from tests.service import onnx_models

FOLDER = Path(__file__).parents[2] / "docker"
BY_OTHERS = {"up"}  # Prometheus itself adds it
ON_A_GPU = {"deeplab_gpu_memory_used_bytes", "deeplab_gpu_memory_total_bytes"}


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read("compose.yaml")["services"]
    return found


def dashboard() -> dict[str, Any]:
    text = (FOLDER / "grafana" / "dashboards" / "deeplab.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def expressions() -> Iterator[str]:
    """Every PromQL expression of the dashboard and the alerts."""
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in read("prometheus/alerts.yaml")["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def metrics_in(expression: str) -> set[str]:
    """Names before a selector, a range or a closing bracket; label values are left out."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:deeplab|process)_\w+|\bup\b", bare))


def test_one_of_two_services_runs_with_the_same_monitoring(
    services: dict[str, dict[str, Any]],
) -> None:
    profiles = {name: service["profiles"] for name, service in services.items()}
    assert profiles == {
        "service": ["cpu"],
        "service-gpu": ["gpu"],
        "prometheus": ["cpu", "gpu"],
        "grafana": ["cpu", "gpu"],
    }


def test_everything_is_hardened_and_listens_on_this_host_only(
    services: dict[str, dict[str, Any]],
) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_built_and_mounted_paths_exist(services: dict[str, dict[str, Any]]) -> None:
    named = set(read("compose.yaml")["volumes"])
    for service in services.values():
        if build := service.get("build"):
            dockerfile = FOLDER / build["context"] / build["dockerfile"]
            assert f" AS {build['target']}\n" in dockerfile.read_text(encoding="utf-8")
        sources = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert all((FOLDER / source).is_dir() for source in sources - named)


def test_every_variable_is_a_setting(services: dict[str, dict[str, Any]]) -> None:
    known = {f"DEEPLAB_{name.upper()}" for name in Settings.model_fields}
    for service in services.values():
        names = {name for name in service.get("environment", {}) if name.startswith("DEEPLAB_")}
        assert names <= known


def test_docker_waits_longer_than_the_service_drains(services: dict[str, dict[str, Any]]) -> None:
    drains = Settings.model_fields["shutdown_timeout_s"].default
    for name in ("service", "service-gpu"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > drains


def test_prometheus_scrapes_the_service_and_grafana_queries_prometheus(
    services: dict[str, dict[str, Any]],
) -> None:
    (job,) = read("prometheus/prometheus.yaml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    alias, port = target.split(":")
    for name in ("service", "service-gpu"):
        assert services[name]["networks"]["default"]["aliases"] == [alias]
        # This port needs no key and cannot be reached from outside this network.
        assert int(port) == services[name]["environment"]["DEEPLAB_METRICS_PORT"]
        assert not any(each.endswith(f":{port}") for each in services[name]["ports"])
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    panels = dashboard()["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert max(x for x, _ in taken) == 23  # Grafana's grid is 24 wide
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_grafana_finds_the_dashboard(services: dict[str, dict[str, Any]]) -> None:
    (provider,) = read("grafana/provisioning/dashboards/deeplab.yaml")["providers"]
    mount = f"./grafana/dashboards:{provider['options']['path']}:ro"
    assert mount in services["grafana"]["volumes"]


@pytest.fixture(scope="module")
def metric_types(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> type of every metric that the service has on a CPU."""
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    settings = Settings(models=folder, device="cpu", threads=1, jobs=folder / "jobs")
    with TestClient(create_app(settings, models.load(settings))) as client:
        text = client.get("/metrics").text
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))


def test_every_metric_of_the_dashboard_and_the_alerts_exists(
    metric_types: dict[str, str],
) -> None:
    histograms = {name for name, kind in metric_types.items() if kind == "histogram"}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    used = set().union(*map(metrics_in, expressions()))
    assert used <= metric_types.keys() | parts | BY_OTHERS | ON_A_GPU


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert(
    metric_types: dict[str, str],
) -> None:
    used = " ".join(sorted(set().union(*map(metrics_in, expressions()))))
    own = {name for name in metric_types if name.startswith("deeplab_")} | ON_A_GPU
    assert {name for name in own if name.removesuffix("_created") not in used} == set()
