"""The network against the official TensorFlow implementation, number by number.

Weights are a function of their names; `model.convert tf` reads them, `label_map`
runs the network, and logits, label maps and the inside of the network are
compared with what the reference computed for the same image.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model import checkpoint
from model.convert.__main__ import main as convert
from model.convert.from_tensorflow import Names
from model.network.backbones.inverted_residual import InvertedResidual
from model.network.backbones.resnet import Bottleneck
from model.network.backbones.xception import XceptionModule
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import label_map
from model.network.layers import ConvBN
from tests.shared import REFERENCE, needs_reference

pytestmark = [pytest.mark.slow, needs_reference]

# max |difference| / std of the logits; ResNet's error doubles every few units in float32.
TOLERANCE = {"xception": 1e-4, "mobilenet": 1e-3, "resnet": 1e-2}
AGREEMENT = 0.999  # share of equal labels
# The reference's names for what a layer, or a block of layers, puts out.
LAYER_ENDS = ("Relu", "Relu6", "BatchNorm/FusedBatchNormV3")
BLOCK_ENDS = ("add", "output", "Relu")
BLOCKS = {Bottleneck: "conv1", XceptionModule: "convs.0.depthwise", InvertedResidual: "project"}
NOT_LAYERS = {"logits/semantic/BiasAdd", "resnet_v1_101/pool1/MaxPool"}


class Run(NamedTuple):
    """One network at one output stride, and the results that the reference computed with it."""

    net: DeepLabV3Plus
    golden: dict[str, NDArray[Any]]
    tolerance: float


def cases() -> list[tuple[str, str]]:
    """(run, input) of every golden file there is."""
    if not REFERENCE.is_dir():
        return [("reference", "missing")]
    runs = json.loads((REFERENCE / "nets.json").read_text())["runs"]
    return [
        (run, key)
        for run, (_, _, _, keys) in runs.items()
        if (REFERENCE / "golden" / f"{run}.npz").exists()
        for key in keys
    ]


def write_variables(net: str, path: Path) -> None:
    """The reference's deterministic weights as an .npz by variable name."""
    spec = importlib.util.spec_from_file_location("det_weights", REFERENCE / "det_weights.py")
    assert spec is not None
    assert spec.loader is not None
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    variables = json.loads((REFERENCE / f"vars_{net}.json").read_text())["variables"]
    np.savez(path, **{v["name"]: weights.make_weight(v["name"], v["shape"]) for v in variables})


@functools.lru_cache(maxsize=1)  # a fixture would be made again for each input of a run
def converted(run: str) -> Run:
    """The network of a run, made by the command line that users type."""
    nets = json.loads((REFERENCE / "nets.json").read_text())
    name, stride, (height, width), _ = nets["runs"][run]
    options = ["--output-stride", str(stride), "--crop-size", f"{height},{width}"]
    with tempfile.TemporaryDirectory() as folder:  # hundreds of megabytes
        variables, out = Path(folder, "variables.npz"), Path(folder, "net")
        write_variables(name, variables)
        assert convert(["tf", str(variables), str(out), *options]) == 0
        net = checkpoint.load(out)
    with np.load(REFERENCE / "golden" / f"{run}.npz") as file:
        golden = dict(file)
    family = next(key for key in TOLERANCE if name.startswith(key))
    return Run(net, golden, TOLERANCE[family])


def image(key: str) -> NDArray[np.uint8]:
    """The reference's inputs: noise, or crops of a photo."""
    if key in ("rand", "randw"):
        width = {"rand": 513, "randw": 1025}[key]
        noise = np.random.RandomState(0).randint(0, 256, (1, 513, width, 3))
        return np.asarray(noise[0], np.uint8)
    with np.load(REFERENCE / "golden" / "inputs.npz") as file:
        found: NDArray[np.uint8] = file["nat"][:384, :512] if key == "even" else file[key]
    return found


class Taps:
    """Logits, and 64 values of each layer that the reference recorded."""

    def __init__(self, run: Run) -> None:
        self.logits = torch.empty(0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, NDArray[np.float32]] = {}
        self.hooks = [run.net.logits.register_forward_hook(self._keep_logits)]
        wanted = set(run.golden["tap_names"].tolist())
        self.names = Names(run.net.config)
        for path, module in run.net.named_modules():
            for tap in wanted & self._outputs(path, module):
                self.hooks.append(module.register_forward_hook(self._keeper(tap)))

    def _outputs(self, path: str, module: nn.Module) -> set[str]:
        """The names that the reference may give to a module's output."""
        if isinstance(module, ConvBN):
            return {f"{self._scope(path)}/{end}" for end in LAYER_ENDS}
        for block, layer in BLOCKS.items():
            if isinstance(module, block):
                scope = self._scope(f"{path}.{layer}").rpartition("/")[0]
                return {f"{scope}/{end}" for end in BLOCK_ENDS}
        return set()

    def _scope(self, layer: str) -> str:
        return self.names.of(f"{layer}.bn.bias").removesuffix("/BatchNorm/beta")

    def _keep_logits(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.logits = output[0].permute(1, 2, 0)

    def _keeper(self, tap: str) -> Any:
        def keep(module: nn.Module, inputs: object, output: Any) -> None:
            feature = output[0] if isinstance(output, tuple) else output  # blocks give two
            nhwc = feature[0].permute(1, 2, 0)
            places = np.random.RandomState(crc32(tap.encode())).randint(0, nhwc.numel(), 64)
            self.shapes[tap] = tuple(nhwc.shape)
            self.values[tap] = nhwc.reshape(-1)[torch.from_numpy(places)].numpy()

        return keep

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize(("name", "key"), cases())
def test_network_is_the_reference(name: str, key: str) -> None:
    """Logits, labels and layers agree with TensorFlow's for the same image and weights."""
    run = converted(name)
    taps = Taps(run)
    photo = image(key)
    labels = label_map(run.net, photo)
    taps.close()

    expected = run.golden[f"{key}_argmax"][: photo.shape[0], : photo.shape[1]]
    assert (labels == expected).mean() > AGREEMENT
    std = run.golden[f"{key}_logits_stats"][1]
    assert logit_error(taps.logits.numpy(), run.golden, key) / std < run.tolerance
    assert_layers_agree(taps, run, key)


def logit_error(ours: NDArray[Any], golden: dict[str, NDArray[Any]], key: str) -> float:
    """The largest difference. With the decoder the files hold every fourth logit, and five rows."""
    if f"{key}_logits" in golden:
        return float(np.abs(ours - golden[f"{key}_logits"]).max())
    height = ours.shape[0]
    rows = ours[[0, 1, height // 2, height - 2, height - 1]]
    return max(
        float(np.abs(ours[::4, ::4] - golden[f"{key}_logits_s4"]).max()),
        float(np.abs(rows - golden[f"{key}_logits_rows"]).max()),
    )


def assert_layers_agree(taps: Taps, run: Run, key: str) -> None:
    names = run.golden["tap_names"].tolist()
    assert set(names) - set(taps.values) <= NOT_LAYERS
    for tap, values in taps.values.items():
        index = names.index(tap)
        shape = tuple(run.golden["tap_shapes"][index].tolist())
        assert taps.shapes[tap] == shape, tap
        std = run.golden[f"{key}_tap_stats"][index][1]
        error = np.abs(values - run.golden[f"{key}_tap_values"][index]).max()
        # A pooled vector of one pixel varies over channels only, hence the absolute part.
        assert error < run.tolerance * max(std, 1.0), tap
