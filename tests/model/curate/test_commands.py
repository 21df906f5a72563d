"""`python -m model.rank` and `python -m model.audit`."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model import checkpoint
from model.checkpoint import Card
from model.curate import audit, rank
from model.data.pairs import write_mask
from model.data.voc import CLASSES, palette
from model.network.inference import served_map
from tests.model.nets import tiny

ROOT = Path(__file__).parents[3]
CHECKPOINT = str(ROOT / "model" / "bundled" / "efficientnet-lite0-voc")
CAT = ROOT / "service" / "samples" / "cat.jpg"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A cat, the same cat under another name, noise, and a file that is not a photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(CAT) as cat:
        small = cat.resize((160, 120))
    small.save(folder / "cat.png")
    small.save(folder / "copy.png")
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


def order(out: Path) -> list[str]:
    with (out / "rank.csv").open() as stream:
        return [Path(row["photo"]).name for row in csv.DictReader(stream)]


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A tiny, untrained network: it is quick and goes through the same steps."""
    net = tiny(3)
    card = Card(model=net.config, classes=("a", "b", "c"), palette=palette(3))
    checkpoint.save(tmp_path / "small", net.state_dict(), card)
    return str(tmp_path / "small")


@pytest.mark.parametrize("by", ["uncertainty", "entropy", "disagreement"])
def test_rank_writes_a_list_and_a_page_and_names_what_it_cannot_read(
    by: str, small: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "next"
    assert rank.main([small, str(photos), "-o", str(out), "--by", by]) == 1
    assert "broken.jpg cannot be read" in capsys.readouterr().err
    assert sorted(order(out)) == ["cat.png", "copy.png", "noise.png"]
    listed = (out / "photos.txt").read_text().splitlines()
    assert [Path(line).name for line in listed] == order(out)
    page = (out / "rank.html").read_text()
    assert page.count("<figure>") == 3
    assert "http" not in re.sub("http-equiv", "", page)


@pytest.mark.slow
def test_two_equal_photos_are_not_both_chosen_before_a_different_one(
    small: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.jpg").unlink()
    words = [small, str(photos), "-o", str(tmp_path / "next"), "--by", "diverse"]
    assert rank.main([*words, "-n", "2", "--json"]) == 0
    chosen = [Path(each["photo"]).name for each in json.loads(capsys.readouterr().out)]
    assert len(chosen) == 2
    assert "noise.png" in chosen


@pytest.mark.slow
def test_audit_finds_the_label_that_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cat has the network's own labels in one copy and is labelled as a dog in the other."""
    root = tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    with Image.open(CAT) as opened:
        photo = opened.convert("RGB")
    labels = served_map(checkpoint.load(CHECKPOINT), np.asarray(photo))
    cat_pixels = Image.fromarray((labels == CLASSES.index("cat")).astype(np.uint8)).copy()
    ImageDraw.floodfill(cat_pixels, (photo.width // 2, photo.height // 2), 2)
    whole = np.asarray(cat_pixels) == 2  # without the crumbs around it: one region
    assert whole.mean() > 0.1
    for name in ("right", "wrong"):
        photo.save(root / "images" / "train" / f"{name}.png")
        spoiled = np.where(whole, CLASSES.index("dog"), labels)
        ids = labels if name == "right" else spoiled.astype(np.uint8)
        write_mask(root / "masks" / "train" / f"{name}.png", ids, palette(21))
    names = ", ".join(f'"{name}"' for name in CLASSES)
    (root / "dataset.toml").write_text(f"classes = [{names}]\n")
    out = tmp_path / "audit"
    words = [CHECKPOINT, "--data", str(root), "--dataset", "folder", "-o", str(out)]
    assert audit.main(words) == 0
    with (out / "audit.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["photo"], row["label"], row["predicted"]) for row in rows] == [
        ("wrong", "dog", "cat")
    ]
    assert (out / "photos.txt").read_text() == "wrong\n"
    page = (out / "audit.html").read_text()
    assert page.count('class="row"') == 1
    assert "labelled <b>dog</b>, predicted <b>cat</b>" in page


def test_a_checkpoint_that_does_not_exist_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(CAT.read_bytes())
    assert rank.main([str(tmp_path / "gone"), str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "gone" in capsys.readouterr().err
