"""The cpu image, built and run with the hardening options of production."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Barrier

import httpx
import numpy as np
import pytest
from PIL import Image

from export.evaluate import predict
from service.inference.engine import Engine, EngineOptions
from service.settings import BUNDLED
from tests.docker import containers
from tests.docker.containers import Container

pytestmark = [pytest.mark.slow, pytest.mark.timeout(containers.BUILD_TIMEOUT_S * 2)]

IMAGE = "localhost/deeplab-test:cpu"
MAX_IMAGE_MB = 450
HARDENED = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=1g",
    "--pids-limit=256",
)
MODEL = BUNDLED / "efficientnet-lite0-voc.onnx"
CAT = BUNDLED.parent / "samples" / "cat.jpg"

Run = Callable[..., Container]


@pytest.fixture(scope="module")
def engine() -> containers.Engine:
    found = containers.skip_without(lambda: containers.starter(*HARDENED))
    found.build("docker/serve.Dockerfile", IMAGE, "--target=cpu")
    return found


@pytest.fixture(scope="module")
def run(engine: containers.Engine) -> Iterator[Run]:
    """Start hardened containers with additional options; remove all of them at the end."""
    numbers = itertools.count()
    started = []

    def start(*options: str) -> Container:
        # Unlike docker, podman gives a read-only container a writable /tmp by default.
        strict = [] if "docker" in engine.manage("--version").lower() else ["--read-only-tmpfs=0"]
        name = f"deeplab-test-{os.getpid()}-{next(numbers)}"
        # podman's rm first stops the container, and fails if that ends just at the timeout.
        container = engine.start(name, IMAGE, "--stop-timeout=0", *HARDENED, *strict, *options)
        started.append(container)
        container.wait_until_ready()
        return container

    yield start
    for container in started:
        container.remove()


@pytest.fixture(scope="module")
def container(run: Run) -> Container:
    return run()


def segment(url: str, photo: bytes) -> httpx.Response:
    return httpx.post(f"{url}/segment", files={"file": photo}, timeout=60)


def test_a_photo_gets_the_mask_that_the_engine_gives(container: Container) -> None:
    """Another build of ONNX Runtime may round single border pixels differently."""
    answer = segment(container.url, CAT.read_bytes())
    assert answer.status_code == 200, answer.text
    mask = np.asarray(Image.open(io.BytesIO(answer.content)))
    engine = Engine(MODEL, EngineOptions(device="cpu"))
    photo = np.asarray(Image.open(CAT).convert("RGB"))
    expected = predict(engine.run, engine.contract.input, photo)
    assert mask.shape == expected.shape
    assert (mask == expected).mean() > 0.9995


def test_the_service_inside_knows_its_version(container: Container) -> None:
    """The build's default is that of the package."""
    project = tomllib.loads((containers.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    told = container.execute("python", "-m", "service", "--version")
    assert told == f"deeplab {project['project']['version']}\n"
    server = httpx.get(f"{container.url}/v2").json()
    assert server["version"] == project["project"]["version"]


def test_a_large_form_needs_no_writable_disk(container: Container) -> None:
    """By default, form parts over 1 MB are written to a temporary file."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    photo = io.BytesIO()
    Image.fromarray(noise).save(photo, "png")
    assert photo.tell() > 3_000_000
    assert segment(container.url, photo.getvalue()).status_code == 200


def test_the_health_command_says_whether_the_service_is_ready(container: Container) -> None:
    kind, *command = container.inspect()["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert "ready" in container.execute(*command)
    with pytest.raises(subprocess.CalledProcessError):
        container.execute("env", "DEEPLAB_PORT=1", *command)


def test_no_process_inside_is_root_or_has_a_capability(container: Container) -> None:
    status = container.python(
        "import pathlib\n"
        "for path in pathlib.Path('/proc').glob('[0-9]*/status'): print(path.read_text())"
    )
    facts = [line.split(":") for line in status.splitlines() if ":" in line]
    uids = {uid for name, value in facts if name == "Uid" for uid in value.split()}
    assert uids == {"10001"}
    assert {value.strip() for name, value in facts if name == "CapEff"} == {"0" * 16}
    assert {value.strip() for name, value in facts if name == "NoNewPrivs"} == {"1"}


def test_neither_torch_nor_a_compiler_nor_our_training_code_is_inside(container: Container) -> None:
    found = container.python(
        "import importlib.util, shutil\n"
        "modules = ['torch', 'torchvision', 'onnx', 'tensorflow', 'pip', 'model', 'export']\n"
        "tools = ['cc', 'gcc', 'g++', 'clang', 'make', 'git', 'curl']\n"
        "print([m for m in modules if importlib.util.find_spec(m)]\n"
        "      + [t for t in tools if shutil.which(t)])"
    )
    assert found == "[]"


def test_the_image_is_small_and_labelled(engine: containers.Engine) -> None:
    image = engine.inspect("image", IMAGE)
    assert image["Size"] < MAX_IMAGE_MB * 1_000_000
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_a_mounted_model_is_served_beside_the_bundled_one(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.onnx"
    own.write_bytes(MODEL.read_bytes())
    container = run("--volume", f"{own}:/models/own.onnx:ro", "--env", "DEEPLAB_DEFAULT_MODEL=own")
    served = httpx.get(f"{container.url}/models").json()["models"]
    assert {model["name"]: model["default"] for model in served} == {"own": True, MODEL.stem: False}


def test_sigterm_under_load_loses_no_request(run: Run) -> None:
    """All accepted requests are answered, including those in the queue; then it exits with 0."""
    container = run("--env", "DEEPLAB_MAX_BATCH=1")
    requests = 16
    together = Barrier(requests)

    def post() -> int:
        together.wait()
        return client.post("/segment", files={"file": CAT.read_bytes()}).status_code

    with (
        httpx.Client(base_url=container.url, timeout=60) as client,
        ThreadPoolExecutor(requests) as threads,
    ):
        answers = [threads.submit(post) for _ in range(requests)]
        _, waiting = wait(answers, return_when=FIRST_COMPLETED)
        container.signal("TERM")
        assert len(waiting) >= requests // 2  # otherwise there was no load
        assert [answer.result() for answer in answers] == [200] * requests
    assert container.wait() == 0
