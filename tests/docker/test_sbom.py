"""The bill of materials of the cpu image, made as docker/sbom.sh makes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.docker import containers
from tests.docker.test_locks import locked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(containers.BUILD_TIMEOUT_S * 2)]


def test_the_bill_of_materials_is_the_lock_file(tmp_path: Path) -> None:
    engine = containers.skip_without(containers.builder)
    options = ("--target=sbom-cpu", f"--output={tmp_path}")
    engine.build("docker/serve.Dockerfile", "localhost/deeplab-test:sbom", *options)
    bill = json.loads((tmp_path / "sbom-cpu.cdx.json").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    found = {canonicalize_name(part["name"]): part["version"] for part in bill["components"]}
    assert found == locked("cpu")
    assert (tmp_path / "licences-cpu.md").exists()
