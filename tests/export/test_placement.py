"""ONNX Runtime itself says where it would place the nodes on a host with a GPU.

Its CUDA provider assigns nodes before it touches the device, so a stub of the
CUDA runtime (no_gpu.c) is enough to ask it, with the real registry of kernels.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from export.writer import ExportOptions, export
from service.inference.contract import INPUT
from service.inference.encoding import of_one_size
from tests.export.conftest import PHASED_SIZE

ASK = """
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 0  # verbose: the placements are in the log
options.add_free_dimension_override_by_name("height", int(sys.argv[1]))
options.add_free_dimension_override_by_name("width", int(sys.argv[2]))
for file in sys.argv[3:]:
    print("FILE", file, file=sys.stderr, flush=True)
    try:
        onnxruntime.InferenceSession(file, options, providers=["CUDAExecutionProvider"])
    except Exception as error:
        print("STOPPED", error, file=sys.stderr, flush=True)
"""
PLACED = re.compile(r"\] +(?:All nodes|Node\(s\)) placed on \[(\w+)\]")
NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\] +(\w+) \((\S+)\)")


@pytest.fixture(scope="module")
def libraries() -> list[Path]:
    """Return the folders of NVIDIA's libraries that are installed as wheels."""
    spec = find_spec("nvidia")
    roots = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    folders = [folder for root in roots for folder in root.glob("*/lib")]
    names = {file.name.split(".")[0] for folder in folders for file in folder.glob("lib*.so*")}
    missing = {"libcublas", "libcudart", "libcudnn", "libcurand"} - names
    if missing:
        pytest.skip(f"not installed as wheels: {', '.join(sorted(missing))}")
    return folders


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stub of the CUDA runtime")
    source = Path(__file__).with_name("no_gpu.c")
    target = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{target.name}"]
    subprocess.run([compiler, *flags, "-o", target, source], check=True)
    return target


def placements(files: list[Path], stub: Path, libraries: list[Path]) -> dict[Path, dict[str, str]]:
    """For each file: node name and operator -> provider, as ONNX Runtime logs it."""
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, [stub.parent, *libraries])),
        "LD_PRELOAD": str(stub),
    }
    command = [sys.executable, "-c", ASK, *map(str, [*PHASED_SIZE, *files])]
    log = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[Path, dict[str, str]] = {}
    provider, nodes = "", {}
    for line in log.stderr.splitlines():
        if line.startswith("FILE "):
            provider, nodes = "", found.setdefault(Path(line.removeprefix("FILE ")), {})
        elif match := PLACED.search(line):
            provider = match[1]
            if "All nodes" in line:
                nodes["all"] = provider
        elif match := NODE.search(line):
            nodes[f"{match[1]} {match[2]}"] = provider
    return found


@pytest.mark.slow
def test_cuda_runs_every_node_of_a_file_at_one_size(
    tiny: Path,
    exported: Path,
    phased: Path,
    aligned: Path,
    tmp_path: Path,
    stub: Path,
    libraries: list[Path],
) -> None:
    """An aligned file is given to it as by the engine."""
    variants = {
        "stride": ExportOptions(output_stride=8, confidence=True),
        "average": ExportOptions(scales=(0.5, 1.0), flip=True, confidence=True),
        "half": ExportOptions(precision="fp16"),
        "dynamic": ExportOptions(policy="dynamic"),
    }
    files = {"plain": exported, "phased": phased, "aligned": tmp_path / "aligned.onnx"}
    files["aligned"].write_bytes(of_one_size(aligned.read_bytes(), INPUT, PHASED_SIZE))
    for name, options in variants.items():
        files[name] = tmp_path / f"{name}.onnx"
        export(tiny, files[name], options)
    found = placements(list(files.values()), stub, libraries)
    nodes = {name: found[path] for name, path in files.items()}
    for name in ("plain", "phased", "aligned", "stride", "average", "half"):
        assert nodes[name] == {"all": "CUDAExecutionProvider"}, name
    # In a file for any size, only arithmetic on shapes is on the CPU, where CUDA wants it.
    on_cpu = {node for node, provider in nodes["dynamic"].items() if "CPU" in provider}
    assert on_cpu
    assert not {node.split()[0] for node in on_cpu} & {"Conv", "Resize", "ArgMax", "Relu", "Clip"}
