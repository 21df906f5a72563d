"""`import model`: a checkpoint and a photo in, labels out."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import model
from model import checkpoint
from model.checkpoint import Card, CheckpointError
from model.data.dataset import voc_palette
from model.evaluate.predict import main
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import label_map, served_map
from tests.model.nets import photo, tiny

ROOT = Path(__file__).parents[2]
ORIENTATION = 0x0112  # EXIF tag


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network."""
    net = tiny()
    names = tuple(f"class{index}" for index in range(net.config.num_classes))
    palette = tuple(voc_palette(len(names)))
    card = Card(model=net.config, classes=names, palette=palette)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    checkpoint.save(path, net.state_dict(), card)
    return path


@pytest.fixture(scope="module")
def net(path: Path) -> DeepLabV3Plus:
    return model.load(path)


def test_import_model_loads_nothing_heavy() -> None:
    code = "import model, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    heavy = {"torch", "numpy", "PIL", "pydantic", "safetensors"}
    assert heavy.isdisjoint(loaded.stdout.decode().split())


def test_load_gives_the_network_of_the_checkpoint_in_eval_mode(path: Path) -> None:
    net = model.load(str(path), output_stride=8)
    assert not net.training
    assert net.config.output_stride == 8
    weights = checkpoint.read_weights(path)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_the_card_names_the_classes(path: Path) -> None:
    assert model.read_card(path).classes[:2] == ("class0", "class1")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for function in (model.load, model.read_card):
        with pytest.raises(CheckpointError, match="does not exist"):
            function(tmp_path / "none")


def test_a_missing_checkpoint_names_the_working_directory_and_the_bundled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each path that the message offers can be loaded as it stands."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        model.load("typo")
    message = str(caught.value)
    assert message.startswith("typo.json does not exist: ")
    assert f"relative to {tmp_path}; " in message
    offered = message.partition("the bundled checkpoints are ")[2].split(", ")
    assert [Path(name).name for name in offered] == [
        "efficientnet-lite0-camvid",
        "efficientnet-lite0-voc",
    ]
    assert model.read_card(offered[1]).classes[0] == "background"
    with pytest.raises(CheckpointError) as caught:
        model.load(tmp_path / "typo")
    assert "relative" not in str(caught.value)


def test_every_kind_of_photo_gives_the_labels_that_the_command_writes(
    path: Path, net: DeepLabV3Plus, tmp_path: Path
) -> None:
    """The photo is stored on its side, as phones do; labels are upright, from file or image."""
    upright = photo(60, 80)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was turned: rotate 90 degrees clockwise to see it
    file = tmp_path / "phone.png"
    Image.fromarray(np.rot90(upright)).save(file, exif=exif)
    assert main([str(path), str(file), "-o", str(tmp_path / "masks")]) == 0
    with Image.open(tmp_path / "masks" / "phone.png") as mask:
        expected = np.asarray(mask)
    assert expected.shape == (60, 80)
    assert len(np.unique(expected)) > 1
    with Image.open(file) as image:
        for source in (str(file), file, image, upright):
            labels = model.predict(net, source)
            assert labels.dtype == np.uint8
            np.testing.assert_array_equal(labels, expected)


def test_scales_flip_and_overlap_are_those_of_the_evaluation(net: DeepLabV3Plus) -> None:
    image = photo(90, 70)
    plain = model.predict(net, image)
    averaged = model.predict(net, image, scales=(0.75, 1.25), flip=True)
    sliding = model.predict(net, image, overlap=0.5)
    np.testing.assert_array_equal(averaged, served_map(net, image, (0.75, 1.25), flip=True))
    np.testing.assert_array_equal(sliding, label_map(net, image, overlap=0.5))
    assert (averaged != plain).any()
    assert (sliding != plain).any()


def test_a_value_that_is_not_a_photo_is_refused(net: DeepLabV3Plus, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a picture")
    with pytest.raises(OSError, match=r"notes\.jpg cannot be read"):
        model.predict(net, tmp_path / "notes.jpg")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        model.predict(net, tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"float32 \(3, 9, 9\)"):
        model.predict(net, np.zeros((3, 9, 9), np.float32))
    with pytest.raises(TypeError, match="photo is a int"):
        model.segment(net, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="photo is a Tensor"):
        model.predict(net, torch.zeros(3, 9, 9))  # type: ignore[arg-type]


def test_the_module_of_the_command_does_not_hide_the_function() -> None:
    with pytest.raises(ImportError, match="import model"):
        __import__("model.predict")
    assert callable(model.predict)


def examples() -> list[str]:
    """The Python that the project shows for `import model`: in the docstring and in README.md."""
    assert model.__doc__ is not None
    shown = re.search(r"\n\n((?:    .*\n|\n)+)", model.__doc__)
    assert shown is not None
    found = ["\n".join(line.removeprefix("    ") for line in shown[1].splitlines())]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    return found + [block for block in blocks if "import model" in block]


@pytest.mark.slow
@pytest.mark.parametrize("code", examples())
def test_the_examples_run_and_find_the_cat(code: str, tmp_path: Path) -> None:
    """From the repository's root, with the bundled network; what they save goes elsewhere."""
    names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    assert {"net", "labels"} <= names
    check = "import numpy as np\nassert labels.shape == (300, 451)\nassert 8 in np.unique(labels)\n"
    links = {name: tmp_path / name for name in ("annotations", "postprocess", "model", "service")}
    for name, link in links.items():
        link.symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], cwd=tmp_path, check=True)
