"""The lock files are complete and hashed, and those of the images contain nothing forbidden."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.inference.cuda import IMAGES, Image

ROOT = Path(__file__).parents[2]
TRAINING_ONLY = {"torch", "torchvision", "onnx", "onnxscript", "tensorflow", "pytest"}


RIVALS = ROOT / "service" / "bench" / "rivals"


OF_RIVALS = sorted(path.stem for path in RIVALS.glob("*.in"))


def lock_file(name: str) -> Path:
    """Return the lock file of an image, of the development environment, or of a rival."""
    if (RIVALS / f"{name}.in").exists():
        return RIVALS / f"{name}.txt"
    return ROOT / ("" if name == "dev" else "docker") / f"requirements-{name}.txt"


def entries(name: str) -> list[tuple[str, str, int]]:
    """Package, version and number of hashes of each entry of a lock file."""
    found = re.findall(
        r"^([\w.-]+)==(\S+)(?: ; [^\\\n]+)?((?:\s+\\\n\s+--hash=sha256:[0-9a-f]{64})*)$",
        lock_file(name).read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [
        (canonicalize_name(each), version, hashes.count("--hash="))
        for each, version, hashes in found
    ]


def locked(name: str) -> dict[str, str]:
    """The version of each package in a lock file; if it has several, the last."""
    return {package: version for package, version, _ in entries(name)}


def requirements(*extras: str) -> list[Requirement]:
    """The requirements in pyproject.toml of these extras, and of the extras that they name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    for extra in extras:
        for text in project["optional-dependencies"][extra]:
            requirement = Requirement(text)
            own = requirement.name == project["name"]
            found += requirements(*requirement.extras) if own else [requirement]
    return found


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("cpu", ["cpu"]),
        ("cpu-extras", ["cpu", "heic", "grpc"]),
        ("openvino", ["openvino"]),
        ("gpu", ["gpu"]),
        ("gpu-cu12", ["gpu-cu12"]),
        ("train", ["train", "gpu"]),
        ("dev", ["dev"]),
    ],
)
def test_a_lock_contains_what_pyproject_requires(name: str, extras: list[str]) -> None:
    """If this fails, pyproject.toml has changed: run docker/lock.sh."""
    lock = locked(name)
    for requirement in requirements(*extras):
        version = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


@pytest.mark.parametrize(
    "name", ["cpu", "cpu-extras", "openvino", "gpu", "gpu-cu12", "train", "sbom", "dev", *OF_RIVALS]
)
def test_every_line_is_a_pinned_package_with_hashes(name: str) -> None:
    text = lock_file(name).read_text(encoding="utf-8")
    starts = [line for line in text.splitlines() if line and line[0] not in "# "]
    assert len(starts) == len(entries(name))
    assert all(hashes for _, _, hashes in entries(name))
    assert "://" not in text


@pytest.mark.parametrize("name", OF_RIVALS)
def test_rivals_run_the_versions_that_the_cpu_image_ships(name: str) -> None:
    """Otherwise the benchmark would compare versions of libraries."""
    shipped, theirs = locked("cpu"), locked(name)
    assert {"numpy", "pillow"} <= theirs.keys() & shipped.keys()
    assert all(shipped[each] == theirs[each] for each in theirs.keys() & shipped.keys())


def test_the_image_with_extras_is_the_cpu_image_and_two_libraries() -> None:
    shipped, more = locked("cpu"), locked("cpu-extras")
    assert {name: more[name] for name in shipped} == shipped
    assert more.keys() - shipped.keys() == {"grpcio", "pi-heif"}


def test_tests_run_the_versions_that_the_cpu_image_ships() -> None:
    shipped, tested = locked("cpu"), locked("dev")
    assert {name: tested[name] for name in shipped} == shipped


@pytest.mark.parametrize(
    ("name", "shipped", "excluded"),
    [
        ("cpu", "onnxruntime", "onnxruntime-gpu"),
        ("gpu", "onnxruntime-gpu", "onnxruntime"),
        ("gpu-cu12", "onnxruntime-gpu", "onnxruntime"),
    ],
)
def test_each_image_has_one_engine_and_no_training_packages(
    name: str, shipped: str, excluded: str
) -> None:
    packages = locked(name).keys()
    assert shipped in packages
    assert packages.isdisjoint({excluded, *TRAINING_ONLY})
    assert any(package.startswith("nvidia-") for package in packages) == (name != "cpu")


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_each_gpu_image_has_the_libraries_of_its_cuda_version(image: Image) -> None:
    """cuDNN 9 for CUDA 12 or 13; no library of the other version can be loaded by mistake."""
    lock = locked(image.name)
    assert lock[f"nvidia-cudnn-cu{image.cuda}"].startswith("9.")
    versions = {lock[name] for name in lock if "cuda-runtime" in name}
    assert [version.split(".")[0] for version in versions] == [str(image.cuda)]
    dockerfile = (ROOT / "docker" / "serve.Dockerfile").read_text(encoding="utf-8")
    assert f" AS {image.name}\n" in dockerfile


@pytest.mark.parametrize("name", ["cpu", "cpu-extras", "openvino", "gpu", "gpu-cu12"])
def test_the_licence_of_every_shipped_package_is_listed(name: str) -> None:
    """If this fails, the lock has changed: add what docker/sbom.sh lists."""
    text = (ROOT / "docker" / "licences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w.-]+) \| (.+) \| ([\w, -]+) \|$", text, re.MULTILINE)
    listed = {
        canonicalize_name(package): licence
        for package, licence, where in rows
        if name in where.split(", ")
    }
    assert listed.keys() == locked(name).keys()
    strict = {name for name, licence in listed.items() if "GPL" in licence or "General" in licence}
    assert strict == ({"pi-heif"} if name == "cpu-extras" else set())  # libheif: the Lesser GPL
