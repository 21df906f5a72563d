"""The Helm chart, rendered by Helm itself: equal to docker/kubernetes, and its options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from tests.docker import helm
from tests.docker.test_kubernetes import FOLDER as MANIFESTS
from tests.docker.test_kubernetes import VERSIONS, read

CHART = MANIFESTS.parent / "helm"
KEYS = {"apiKeys": {"secret": "deeplab-keys"}}
ALL = {
    **KEYS,
    "image": {"repository": "registry.example/deeplab", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "env": {"DEEPLAB_MAX_BATCH": 8, "DEEPLAB_CORS_ORIGINS": "https://a.example,https://b.example"},
    "models": {"claim": "models", "subPath": "voc"},
    "service": {"type": "LoadBalancer", "annotations": {"example.org/internal": "true"}},
    "autoscaling": {"enabled": False},
    "replicas": 1,
    "nodeSelector": {"kubernetes.io/arch": "arm64"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}


@cache
def process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"))


@pytest.fixture(scope="module", autouse=True)
def _end_process() -> Iterator[None]:
    yield
    process().shutdown()


def rendered(values: dict[str, Any] | None = None, name: str = "deeplab") -> dict[str, Any]:
    """Render the chart; return each object by its kind."""
    files = process().submit(helm.render, CHART, values or {}, name).result()
    found = [document for text in files.values() for document in yaml.safe_load_all(text)]
    return {document["kind"]: document for document in found if document}


def plain(value: Any) -> Any:
    """Leave out the labels that Helm adds, so that objects compare with manifests."""
    if isinstance(value, dict):
        added = {"app.kubernetes.io/instance", "app.kubernetes.io/managed-by"}
        return {key: plain(each) for key, each in value.items() if key not in added}
    return [plain(each) for each in value] if isinstance(value, list) else value


def gpu() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "gpu.yaml").read_text(encoding="utf-8"))
    return values


def container(objects: dict[str, Any]) -> Any:
    return objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("values", "deployment"),
    [({}, "deployment.yaml"), (gpu(), "gpu/deployment.yaml")],
    ids=["cpu", "gpu"],
)
def test_the_chart_makes_the_objects_of_the_manifests(
    values: dict[str, Any], deployment: str
) -> None:
    found = {kind: plain(each) for kind, each in rendered(values).items()}
    assert found["Service"]["spec"].pop("type") == "ClusterIP"  # the default, in the manifest too
    paths = (deployment, "service.yaml", "hpa.yaml", "pdb.yaml")
    assert found == {each["kind"]: each for each in map(read, (MANIFESTS / path for path in paths))}


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [{}, gpu(), ALL], ids=["cpu", "gpu", "all"])
def test_every_object_is_valid_without_unknown_fields(values: dict[str, Any], version: str) -> None:
    for document in rendered(values).values():
        kubernetes_validate.validate(document, version, strict=True)


def test_every_value_reaches_its_object() -> None:
    found = rendered(ALL, name="second")
    assert found.keys() == {"Deployment", "Service", "PodDisruptionBudget"}
    spec = found["Deployment"]["spec"]
    pod, service = spec["template"]["spec"], found["Service"]
    assert spec["replicas"] == 1
    assert container(found)["image"] == f"registry.example/deeplab@sha256:{'0' * 64}"
    assert pod["imagePullSecrets"] == ALL["imagePullSecrets"]
    assert (pod["nodeSelector"], pod["tolerations"]) == (ALL["nodeSelector"], ALL["tolerations"])
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["metadata"]["annotations"] == {"example.org/internal": "true"}
    variables = {each["name"]: each.get("value") for each in container(found)["env"]}
    assert variables["DEEPLAB_MAX_BATCH"] == "8"
    assert variables["DEEPLAB_CORS_ORIGINS"] == "https://a.example,https://b.example"
    assert variables.keys() <= {f"DEEPLAB_{each.upper()}" for each in Settings.model_fields}


def test_keys_come_from_a_secret_and_never_stand_in_the_deployment() -> None:
    (keys,) = [each for each in container(rendered(KEYS))["env"] if each["name"].endswith("KEYS")]
    reference = {"secretKeyRef": {"name": "deeplab-keys", "key": "api-keys"}}
    assert keys == {"name": "DEEPLAB_API_KEYS", "valueFrom": reference}
    assert "DEEPLAB_API_KEYS" not in json.dumps(rendered())


def test_models_of_a_volume_are_mounted_read_only() -> None:
    found = rendered({"models": {"claim": "models", "subPath": "voc"}})
    (mount,) = container(found)["volumeMounts"]
    (volume,) = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert mount == {"name": "models", "mountPath": "/models", "readOnly": True, "subPath": "voc"}
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}


def test_two_releases_do_not_select_each_others_pods() -> None:
    first, second = (rendered(name=name) for name in ("first", "second"))
    for found, name in ((first, "first"), (second, "second")):
        labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == name
        assert found["Service"]["spec"]["selector"] == labels
        assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
        assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == name


def test_helm_finds_nothing_to_complain_about() -> None:
    """Messages of severity 1 are advice: an icon."""
    found = process().submit(helm.lint, CHART).result()
    assert found["errors"] == []
    assert [each for each in found["messages"] if each["severity"] > 1] == []
