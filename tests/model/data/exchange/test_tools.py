"""label-studio-sdk and labelme themselves read our exports.

Both need other versions of libraries than this project, so they need their own environment:

    python -m venv tools && tools/bin/pip install label-studio-sdk labelme
    DEEPLAB_LABEL_TOOLS=tools/bin/python pytest tests/model/data/exchange/test_tools.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.model.data.exchange.test_export import data, export, truth

__all__ = ["data"]  # the fixture

PYTHON = os.environ.get("DEEPLAB_LABEL_TOOLS", "")
NUMBERS = "{'disc': 1, 'square': 2, 'triangle': 3, 'void': 255}"
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="DEEPLAB_LABEL_TOOLS names no Python with label-studio-sdk and labelme",
)

LABEL_STUDIO = f"""
import json, sys
import numpy as np
from pathlib import Path
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
tasks, out = Path(sys.argv[1]), Path(sys.argv[2])
interface = LabelInterface(tasks.with_suffix(".config.xml").read_text())
interface.validate()
for task in json.loads(tasks.read_text()):
    (annotation,) = task["annotations"]
    assert interface.validate_annotation({{"result": annotation["result"]}})
    found = None
    for each in annotation["result"]:
        shape = (each["original_height"], each["original_width"], 4)
        found = np.zeros(shape[:2], np.uint8) if found is None else found
        if "rle" in each["value"]:
            inside = decode_rle(each["value"]["rle"]).reshape(shape)[..., 3] > 0
            found[inside] = {NUMBERS}[each["value"]["brushlabels"][0]]
    np.save(out / (Path(task["data"]["image"]).stem + ".npy"), found)
"""
LABELME = f"""
import sys
import numpy as np
from pathlib import Path
from labelme._label_file import read_label_file
from labelme.utils import shapes_to_label
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
for path in sorted(folder.glob("*.json")):
    document = read_label_file(str(path))
    labels, _ = shapes_to_label((72, 96), document.shapes, {NUMBERS})
    np.save(out / (path.stem + ".npy"), labels.astype(np.uint8))
"""


def read(code: str, labels: Path) -> list[np.ndarray[tuple[int, int], np.dtype[np.uint8]]]:
    """Return the label maps that a tool's own code reads from our files."""
    out = labels.parent / "read"
    out.mkdir()
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    command = [PYTHON, "-c", code, str(labels), str(out)]
    subprocess.run(command, check=True, env=environment, cwd=labels.parent)
    return [np.load(path) for path in sorted(out.glob("*.npy"))]


def test_label_studio_accepts_the_interface_and_the_polygons(data: Path) -> None:
    assert len(read(LABEL_STUDIO, export(data, "labelstudio"))) == 3


def test_label_studio_decodes_the_same_brushes(data: Path) -> None:
    found = read(LABEL_STUDIO, export(data, "labelstudio", "--shapes", "masks"))
    for ours, theirs in zip(truth(data), found, strict=True):
        assert (ours == theirs).all()


def test_labelme_draws_the_same_masks(data: Path) -> None:
    out = export(data, "labelme", "--shapes", "masks")
    for photo in (data / "images" / "train").iterdir():
        shutil.copy(photo, out / photo.name)
    for ours, theirs in zip(truth(data), read(LABELME, out), strict=True):
        assert (ours == theirs).all()
