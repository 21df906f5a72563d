"""`python -m model.data check` finds what would waste a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.__main__ import main


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "dataset.toml").write_text('classes = ["ground", "tree"]\n')
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (4, 3)).save(tmp_path / "images" / "train" / f"{name}.png")
        ids = np.array([[0, 0, 1, 255]] * 3, np.uint8)
        Image.fromarray(ids).save(tmp_path / "masks" / "train" / f"{name}.png")
    return tmp_path


def test_sound_set_is_usable_and_counted(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(own), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["classes"]["ground"] == {"share": 0.5, "images": 2}
    assert report["void_share"] == 0.25
    assert report["verdict"] == "usable"


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_truncated_file_is_named(own: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = own / kind / "train" / "a.png"
    path.write_bytes(path.read_bytes()[:45])
    assert main(["check", str(own)]) == 1
    out = capsys.readouterr().out
    assert str(path) in out
    assert "1 of 2 pairs" in out


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Image.new("RGB", (4, 3)), "mode RGB"),
        (Image.new("L", (3, 4)), "(3, 4)"),
        (Image.new("L", (4, 3), 7), "no class: [7]"),
        (None, "is missing"),
    ],
)
def test_wrong_mask_fails_the_check(
    own: Path, capsys: pytest.CaptureFixture[str], mask: Image.Image | None, says: str
) -> None:
    path = own / "masks" / "train" / "b.png"
    path.unlink()
    if mask:
        mask.save(path)
    assert main(["check", str(own)]) == 1
    assert says in capsys.readouterr().out


def test_unknown_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "give --dataset" in capsys.readouterr().err
