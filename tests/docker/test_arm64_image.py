"""The cpu image for arm64 answers as the service does on this machine. Run by `make check-arm64`.

QEMU may emulate the processor, which takes about 100 times as long. So the model is the bundled
network exported at 129 x 129 pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.settings import BUNDLED, SAMPLES
from tests.docker import containers
from tests.docker.containers import Container
from tests.service.processes import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(containers.BUILD_TIMEOUT_S * 2)]

IMAGE = "localhost/deeplab-test:cpu-arm64"
BASE_VARIABLE = "DEEPLAB_ARM64_BASE"
PLATFORM = "--platform=linux/arm64"
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp")
START_TIMEOUT_S = 600
CHECKPOINT = BUNDLED.parents[1] / "model" / "bundled" / "efficientnet-lite0-voc"
PHOTOS = sorted(SAMPLES.glob("*.jpg"))
# Another processor may round single border pixels differently, and then each output differs.
SAME_LABELS = 0.9995
OUTPUTS = ("mask", "overlay", "overlay&overlay_format=webp", "polygons&simplify=2", "cutout", "rle")
# Prints how many decoders it killed: the processes whose parent is also one.
KILL_DECODERS = """
import os, pathlib, signal
lines = {}
for path in pathlib.Path("/proc").glob("[0-9]*"):
    if b"service.decoders" in (path / "cmdline").read_bytes():
        lines[int(path.name)] = (path / "stat").read_text().rpartition(")")[2].split()
forked = [pid for pid, fields in lines.items() if int(fields[1]) in lines]
for pid in forked:
    os.kill(pid, signal.SIGKILL)
print(len(forked))
"""


@pytest.fixture(scope="module")
def engine() -> containers.Engine:
    base = os.environ.get(BASE_VARIABLE)
    if not base:
        pytest.skip(f"{BASE_VARIABLE} names no base image for arm64; docker/README.md says how")

    def starter() -> containers.Engine:
        found = containers.engine()
        found.check_start([*HARDENED, PLATFORM], base)
        return found

    found = containers.skip_without(starter)
    target = ["--target=cpu", f"--build-arg=BASE={base}"]
    found.build("docker/serve.Dockerfile", IMAGE, PLATFORM, *target)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled network at a size that an emulator computes in seconds."""
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-m", "export", str(CHECKPOINT), "--size", "129,129"]
    subprocess.run([*command, "-o", str(folder / "small.onnx")], check=True)
    for path in (folder, *folder.iterdir()):
        path.chmod(path.stat().st_mode | 0o055)  # the image's user is another one
    return folder


@pytest.fixture(scope="module")
def container(engine: containers.Engine, models: Path) -> Iterator[Container]:
    name = f"deeplab-test-arm64-{os.getpid()}"
    # The QEMU_CPU of an emulator: its default has instructions that it emulates slowly.
    settings = ("--env=QEMU_CPU=cortex-a76", "--env=DEEPLAB_REQUEST_TIMEOUT_MS=300000")
    options = (*HARDENED, PLATFORM, *settings, f"--volume={models}:/models:ro", "--stop-timeout=0")
    started = engine.start(name, IMAGE, *options)
    try:
        started.wait_until_ready(START_TIMEOUT_S)
        yield started
    finally:
        started.remove()


@pytest.fixture(scope="module")
def here(models: Path) -> Iterator[str]:
    """The URL of a service on this machine with the same model."""
    with running(models, "--precision=fp32") as (url, _):
        yield url


def segment(url: str, photo: Path, output: str) -> httpx.Response:
    """Return the answer, which must be a result."""
    file = {"file": photo.read_bytes()}
    answer = httpx.post(f"{url}/segment?output={output}", files=file, timeout=600)
    assert answer.status_code == 200, answer.text
    return answer


def labels(url: str, photo: Path) -> NDArray[np.uint8]:
    with np.load(io.BytesIO(segment(url, photo, "npz").content)) as arrays:
        found: NDArray[np.uint8] = arrays["labels"]
    return found


def test_the_container_runs_on_arm64(container: Container) -> None:
    assert container.python("import platform; print(platform.machine())") == "aarch64"


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.name)
def test_labels_are_those_of_this_machine(container: Container, here: str, photo: Path) -> None:
    same = labels(container.url, photo) == labels(here, photo)
    print(f"{photo.name}: {same.mean():.4%} of {same.size} labels are equal")
    assert same.mean() > SAME_LABELS


@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_are_equal_where_the_labels_are(
    container: Container, here: str, output: str
) -> None:
    """Decoding, resizing, drawing and compression do not depend on the processor."""
    photo = PHOTOS[0]
    if (labels(container.url, photo) != labels(here, photo)).any():
        pytest.skip("this processor rounds single labels differently")
    answer = segment(container.url, photo, output)
    assert answer.content == segment(here, photo, output).content


def test_a_photo_is_answered_after_all_decoders_were_killed(container: Container) -> None:
    """Decoders are forked and share memory with the service; a lost one is replaced."""
    assert int(container.python(KILL_DECODERS)) >= 1
    assert segment(container.url, PHOTOS[0], "json").json()["classes"]


def test_the_client_runs_the_engine_in_its_own_process(container: Container) -> None:
    name = PHOTOS[0].name
    command = ["python", "-m", "service.client", "--local", f"service/samples/{name}"]
    command += ["--models=/models", "--output=mask", "-o", "/tmp/out", "--timeout=600"]
    container.execute(*command, timeout_s=600)
    found = container.python(
        "import hashlib, pathlib\n"
        "for path in pathlib.Path('/tmp/out').glob('*.mask.png'):\n"
        "    print(hashlib.sha256(path.read_bytes()).hexdigest())"
    )
    served = segment(container.url, PHOTOS[0], "mask").content
    assert found == hashlib.sha256(served).hexdigest()


def test_sigterm_ends_the_service_without_an_error(container: Container) -> None:
    """Keep this test the last one: it ends the container."""
    container.signal(signal.SIGTERM.name.removeprefix("SIG"))
    assert container.wait() == 0
