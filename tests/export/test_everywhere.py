"""An exported file loads unchanged in other engines, and they give the same labels."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from export.writer import ExportOptions, export
from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import voc_palette
from model.network.deeplab import DeepLabV3Plus
from service.inference.contract import CONFIDENCE, INPUT, LABELS
from service.settings import BUNDLED, SAMPLES
from tests.export.conftest import CONFIG, PHASED_SIZE

ROOT = Path(__file__).parents[2]
WEB_VERSION = "1.30.0"  # of onnxruntime-web, from npm
WEB = ROOT / "node_modules" / "onnxruntime-web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
AGREEMENT = 0.999  # share of labels; engines sum in different orders
IN_BROWSER = """async ([file, pixels, shape]) => {
    ort.env.wasm.numThreads = 1;  // more need headers that only pages of some servers have
    const session = await ort.InferenceSession.create(file);
    const image = new ort.Tensor("uint8", Uint8Array.from(pixels), shape);
    const found = await session.run({image});
    const entries = Object.entries(found).map(([name, it]) => [name, [it.dims, [...it.data]]]);
    return [session.inputNames, Object.fromEntries(entries)];
}"""

Arrays = dict[str, NDArray[np.uint8]]
VARIANTS = {
    "plain": ExportOptions(size=PHASED_SIZE),
    "confidence": ExportOptions(size=PHASED_SIZE, confidence=True),
    "any size": ExportOptions(policy="dynamic", confidence=True),
    "aligned": ExportOptions(
        size=PHASED_SIZE, policy="aligned", confidence=True, probabilities=True
    ),
    "averages": ExportOptions(scales=(0.75, 1.0), flip=True, confidence=True),
}


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights that finds every class about equally often."""
    torch.manual_seed(0)
    net = DeepLabV3Plus(CONFIG).eval()
    torch.nn.init.normal_(net.logits.weight)
    with torch.no_grad():
        seen = torch.from_numpy(photos(PHASED_SIZE)).permute(0, 3, 1, 2).float()
        logits = net(seen)
        net.logits.weight /= logits.std((0, 2, 3))[:, None, None, None]
        bias = torch.nn.init.zeros_(net.get_parameter("logits.bias"))
        bias -= net(seen).mean((0, 2, 3))
    classes = ("background", "a", "b", "c", "d")
    card = Card(model=CONFIG, classes=classes, palette=voc_palette(5), source="random")
    path = tmp_path_factory.mktemp("balanced") / "tiny"
    return checkpoint.save(path, net.state_dict(), card)


@pytest.fixture(scope="module", params=list(VARIANTS))
def file(
    request: pytest.FixtureRequest, balanced: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("everywhere") / "tiny.onnx"
    export(balanced, path, VARIANTS[request.param])
    return path


def sides(path: Path) -> tuple[int, int]:
    """Return a file's input height and width, or 65 x 97 if it takes any size."""
    shape = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].shape
    height, width = (
        side if isinstance(side, int) else other
        for side, other in zip(shape[1:3], PHASED_SIZE, strict=True)
    )
    return height, width


def photos(size: tuple[int, int]) -> NDArray[np.uint8]:
    """The sample photos, (2, H, W, 3)."""
    height, width = size
    found = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as photo:
            found.append(np.asarray(photo.convert("RGB").resize((width, height))))
    return np.stack(found)


def images(path: Path, count: int = 2) -> NDArray[np.uint8]:
    """Photos that fit a file, (count, H, W, 3)."""
    return photos(sides(path))[:count]


def expected(path: Path, pixels: NDArray[np.uint8]) -> Arrays:
    """Run ONNX Runtime with the image as the only input."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {INPUT: pixels}), strict=True))


def assert_alike(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    assert {name: values.shape for name, values in found.items()} == {
        name: values.shape for name, values in wanted.items()
    }
    assert len(np.unique(wanted[LABELS])) > 2  # otherwise agreement would prove nothing
    assert (found[LABELS] == wanted[LABELS]).mean() >= AGREEMENT
    if CONFIDENCE in wanted:
        difference = found[CONFIDENCE].astype(int) - wanted[CONFIDENCE]
        assert np.abs(difference).mean() < 0.1


def in_openvino(path: Path, pixels: NDArray[np.uint8]) -> Arrays:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", config)
    assert [each.any_name for each in compiled.inputs] == [INPUT]
    return {output.any_name: value for output, value in compiled([pixels]).items()}


@pytest.mark.slow
def test_openvino_reads_it(file: Path) -> None:
    """The file has no `If`, because OpenVINO refused files with it."""
    pixels = images(file)
    assert_alike(in_openvino(file, pixels), expected(file, pixels))


@pytest.mark.slow
def test_onnx_reference_reads_it(file: Path) -> None:
    """The standard's own definition of every operator gives the same labels."""
    pixels = images(file, count=1)
    session = ReferenceEvaluator(str(file))
    found = dict(zip(session.output_names, session.run(None, {INPUT: pixels}), strict=True))
    assert_alike(found, expected(file, pixels))


@pytest.mark.slow
def test_openvino_reads_the_bundled_file() -> None:
    """OpenVINO gives the bundled file's labels and its confidence."""
    (path,) = BUNDLED.glob("efficientnet-lite0-voc.onnx")
    pixels = images(path, count=1)
    assert_alike(in_openvino(path, pixels), expected(path, pixels))


def install_web() -> None:
    """Install onnxruntime-web in the checkout's node_modules; skip the test if that fails."""
    if CHROMIUM is None or shutil.which("npm") is None:
        pytest.skip("needs chromium and npm; on Debian: apt-get install chromium npm")
    package = WEB / "package.json"
    if package.exists() and f'"version": "{WEB_VERSION}"' in package.read_text(encoding="utf-8"):
        return
    command = ["npm", "install", "--no-save", "--no-package-lock", "--ignore-scripts", "--silent"]
    command += ["--prefix", str(ROOT), f"onnxruntime-web@{WEB_VERSION}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if ran.returncode:
        pytest.skip(f"npm cannot install onnxruntime-web {WEB_VERSION}: {ran.stderr[:200]}")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve a folder without logging."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Serve a folder with ONNX Runtime Web over HTTP; yield the folder and its address."""
    install_web()
    folder = tmp_path_factory.mktemp("site")
    (folder / "ort").symlink_to(WEB / "dist")
    (folder / "index.html").write_text('<!doctype html><script src="ort/ort.wasm.min.js"></script>')
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def page(site: tuple[Path, str]) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        opened = browser.new_page()
        opened.goto(f"{site[1]}/index.html")
        yield opened
        browser.close()


@pytest.mark.slow
def test_onnx_runtime_web_reads_it(file: Path, site: tuple[Path, str], page: Page) -> None:
    """A page in Chromium loads the file and runs it with the image as the only input."""
    shutil.copy(file, site[0] / "model.onnx")
    pixels = images(file)
    asked = ["model.onnx", pixels.ravel().tolist(), list(pixels.shape)]
    inputs, outputs = page.evaluate(IN_BROWSER, asked)
    assert inputs == [INPUT]
    found = {
        name: np.array(values, np.uint8).reshape(shape) for name, (shape, values) in outputs.items()
    }
    assert_alike(found, expected(file, pixels))
