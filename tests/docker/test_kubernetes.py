"""The Kubernetes manifests: valid against the API's own schemas, and consistent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
FILES = sorted(FOLDER.rglob("*.yaml"))
VERSIONS = ("1.30", "1.37")  # the oldest and the newest version that we support
DEPLOYMENTS = [FOLDER / "deployment.yaml", FOLDER / "gpu" / "deployment.yaml"]


def read(path: Path) -> dict[str, Any]:
    (document,) = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def pod(path: Path) -> dict[str, Any]:
    spec = read(path)["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def in_file(path: Path) -> str:
    return str(path.relative_to(FOLDER))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=in_file)
def test_a_manifest_is_valid_without_unknown_fields(path: Path, version: str) -> None:
    kubernetes_validate.validate(read(path), version, strict=True)


def test_the_schemas_refuse_a_misspelt_field() -> None:
    """Otherwise the test above could not fail."""
    document = read(DEPLOYMENTS[0])
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_all_manifests_share_one_name_and_one_label() -> None:
    label = {"app.kubernetes.io/name": "deeplab"}
    documents = {path: read(path) for path in FILES}
    assert all(d["metadata"]["name"] == "deeplab" for d in documents.values())
    assert documents[FOLDER / "service.yaml"]["spec"]["selector"] == label
    assert documents[FOLDER / "pdb.yaml"]["spec"]["selector"]["matchLabels"] == label
    for path in DEPLOYMENTS:
        spec = documents[path]["spec"]
        assert spec["selector"]["matchLabels"] == label
        assert spec["template"]["metadata"]["labels"] == label


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=in_file)
def test_a_pod_has_no_rights_that_it_does_not_need(path: Path) -> None:
    spec = pod(path)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=in_file)
def test_a_pod_may_finish_its_requests_before_it_is_killed(path: Path) -> None:
    spec = pod(path)
    before = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    needed = before + Settings.model_fields["shutdown_timeout_s"].default
    assert spec["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=in_file)
def test_variables_of_the_cluster_are_not_mistaken_for_settings(path: Path) -> None:
    """A Service named deeplab sets DEEPLAB_PORT=tcp://... in every pod."""
    assert pod(path)["enableServiceLinks"] is False


def test_the_gpu_pod_requests_one_gpu_and_cannot_run_on_the_cpu() -> None:
    container = pod(DEPLOYMENTS[1])["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "DEEPLAB_DEVICE", "value": "cuda"} in container["env"]


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=in_file)
def test_every_variable_is_a_setting(path: Path) -> None:
    names = {entry["name"] for entry in pod(path)["containers"][0]["env"]}
    assert names <= {f"DEEPLAB_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=in_file)
def test_prometheus_scrapes_the_port_that_needs_no_key(path: Path) -> None:
    """If a Secret sets DEEPLAB_API_KEYS, /metrics on the other port answers 401."""
    annotations = read(path)["spec"]["template"]["metadata"]["annotations"]
    container = pod(path)["containers"][0]
    port = annotations["prometheus.io/port"]
    assert {"name": "DEEPLAB_METRICS_PORT", "value": port} in container["env"]
    assert {"name": "metrics", "containerPort": int(port)} in container["ports"]
    (service,) = read(FOLDER / "service.yaml")["spec"]["ports"]
    assert service["targetPort"] == "http"  # so the metrics port is not exposed
