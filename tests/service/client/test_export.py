"""The results of a run become label tools' files."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from annotations.draw import draw
from annotations.errors import Notes
from annotations.files import Reading
from annotations.formats import READERS
from service.client import records
from service.client.cli import main
from service.client.manifest import FILE_NAME, Manifest
from service.client.records import ClassPixels, Origin

ORIGIN = Origin(size=1, mtime_ns=1, model="light", model_digest="d1")
NAMES = ("background", "cat", "dog")
COLORS = [0, 0, 0, 200, 30, 30, 20, 20, 220]
FORMATS = ("coco", "cvat", "labelstudio", "labelme", "yolo-seg", "voc")
Ids = NDArray[np.uint8]


def labels(seed: int, size: tuple[int, int] = (60, 40)) -> Ids:
    """Discs of both classes, (H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size[1], size[0]))
    ids = np.zeros((size[1], size[0]), np.uint8)
    for _ in range(6):
        cx, cy, r = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(2, 12)
        ids[np.hypot(x - cx, y - cy) < r] = rng.integers(0, 3)
    return ids


def mask_png(ids: Ids) -> bytes:
    picture, stream = Image.fromarray(ids), io.BytesIO()
    picture.putpalette(COLORS + [0, 0, 0] * 253)
    picture.save(stream, "PNG")
    return stream.getvalue()


def npz(ids: Ids) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, labels=ids)
    return stream.getvalue()


def results(
    out: Path,
    photos: dict[str, Ids],
    *,
    file: str = "mask.png",
    encode: Callable[[Ids], bytes] = mask_png,
    origin: Origin = ORIGIN,
) -> Path:
    """An OUT with these label maps."""
    out.mkdir(parents=True, exist_ok=True)
    with Manifest(out / FILE_NAME) as manifest:
        manifest.set_classes(NAMES)
        for name, ids in photos.items():
            stem = name.removesuffix(".jpg")
            manifest.claim(name, str(out.parent / "photos" / name), [stem])
            path = out / f"{stem}.{file}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(ids))
            counted = [
                ClassPixels(n, NAMES[n], int((ids == n).sum()), 0.5 + n / 10) for n in (1, 2)
            ]
            manifest.finish(name, origin, {f"{stem}.{file}": path.stat().st_size}, counted)
    return out


def run(out: Path, kind: str, *options: str) -> Path:
    target = out.parent / ("labels" if kind in FORMATS[3:] else "labels.json")
    assert main(["export", str(out), "--format", kind, "-o", str(target), *options]) == 0
    return target


def read_again(kind: str, target: Path, sizes: dict[str, tuple[int, int]]) -> dict[str, Ids]:
    """Read the file with our own readers; return the masks by the photo's name without suffix."""
    reader = READERS["voc-colours" if kind == "voc" else kind]
    found = reader(target, Reading(predictions=True), Notes())
    numbers = {name: index for index, name in enumerate(NAMES)}
    maps = {}
    for photo in found.photos:
        stem = photo.photo.removesuffix(".jpg").removeprefix("train/")
        maps[stem] = draw(photo.regions, numbers, sizes[stem], fill=0).ids
    return maps


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_masks(kind: str, tmp_path: Path) -> None:
    photos = {"a.jpg": labels(1), "trip/b.jpg": labels(2, (33, 51))}
    target = run(results(tmp_path / "out", photos), kind)
    expected = {name.removesuffix(".jpg"): ids for name, ids in photos.items()}
    sizes = {stem: (ids.shape[1], ids.shape[0]) for stem, ids in expected.items()}
    found = read_again(kind, target, sizes)
    assert found.keys() == expected.keys()
    for stem, ids in expected.items():
        assert (found[stem] == ids).all(), stem


def test_labels_of_npz_files_are_taken_too(tmp_path: Path) -> None:
    out = results(tmp_path / "out", {"a.jpg": labels(1)}, file="labels.npz", encode=npz)
    found = read_again("coco", run(out, "coco"), {"a": (60, 40)})
    assert (found["a"] == labels(1)).all()


def test_coco_predictions_have_the_classes_confidence(tmp_path: Path) -> None:
    document = json.loads(run(results(tmp_path / "out", {"a.jpg": labels(1)}), "coco").read_text())
    scores = {each["category_id"]: each["score"] for each in document["annotations"]}
    assert scores == {1: 0.6, 2: 0.7}


def test_colours_are_those_of_the_masks(tmp_path: Path) -> None:
    target = run(results(tmp_path / "out", {"a.jpg": labels(1)}), "cvat")
    colors = [each.text for each in ET.parse(target).iter("color")]
    assert colors == ["#c81e1e", "#1414dc"]


def test_label_studio_gets_predictions_of_the_model(tmp_path: Path) -> None:
    out = results(tmp_path / "out", {"a.jpg": labels(1)})
    (task,) = json.loads(run(out, "labelstudio", "--prefix", "s3://bucket/").read_text())
    assert task["data"] == {"image": "s3://bucket/a.jpg"}
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "light"
    assert 0.6 <= prediction["score"] <= 0.7


def test_shapes_of_shrunk_photos_have_the_photos_own_size(tmp_path: Path) -> None:
    """The photo has 120 x 80 pixels and was sent with 60 x 40."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (120, 80)).save(tmp_path / "photos" / "a.jpg")
    origin = Origin(size=1, mtime_ns=1, model="light", max_side=60)
    out = results(tmp_path / "out", {"a.jpg": labels(1)}, origin=origin)
    target = run(out, "coco")
    (image,) = json.loads(target.read_text())["images"]
    assert (image["width"], image["height"]) == (120, 80)
    found = read_again("coco", target, {"a": (120, 80)})
    assert (found["a"] == labels(1).repeat(2, 0).repeat(2, 1)).all()


def test_a_shrunk_photo_that_is_gone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = Origin(size=1, mtime_ns=1, model="light", max_side=60)
    run(results(tmp_path / "out", {"a.jpg": labels(1)}, origin=origin), "coco")
    assert "its shapes have the shrunk size (first in a.jpg)" in capsys.readouterr().err


def test_photos_without_a_result_or_a_mask_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = results(tmp_path / "out", {"a.jpg": labels(1), "b.jpg": labels(2), "c.jpg": labels(3)})
    with Manifest(out / FILE_NAME) as manifest:
        manifest.claim("a.jpg", "/a.jpg", ["a"])
        manifest.fail("a.jpg", ORIGIN, "too large", rejected=True)
    (out / "b.mask.png").write_bytes(b"broken")
    target = tmp_path / "labels.json"
    assert main(["export", str(out), "--format", "coco", "-o", str(target)]) == 1
    told = capsys.readouterr().err
    assert "without a result: 1 photo" in told
    assert "problem: b.jpg: " in told
    assert [each["file_name"] for each in json.loads(target.read_text())["images"]] == ["c.jpg"]


def test_results_of_a_ray_batch_are_exported_too(tmp_path: Path) -> None:
    out = results(tmp_path / "out", {"a.jpg": labels(1)})
    with Manifest(out / FILE_NAME, read_only=True) as manifest:
        (row,) = manifest.records()
    fields = {name: getattr(row, name) for name in records.Record.__dataclass_fields__}
    (out / "manifest").mkdir()
    (out / "manifest" / "0.jsonl").write_text(records.Record(**fields).json() + "\n")
    (out / "manifest" / "classes.json").write_bytes(records.class_list(NAMES))
    (out / FILE_NAME).unlink()
    found = read_again("coco", run(out, "coco"), {"a": (60, 40)})
    assert (found["a"] == labels(1)).all()


ODD = ("a b#1&2+3%41.jpg", "line\nbreak.jpg", "bell\x07.jpg", "\u96ea.jpg")


@pytest.mark.parametrize("kind", FORMATS)
def test_any_name_of_a_photo_can_be_exported(kind: str, tmp_path: Path) -> None:
    """Signs of URLs and XML, line breaks, control characters; the next photo is exported too."""
    for number, name in enumerate(ODD):
        out = results(tmp_path / str(number) / "out", {name: labels(1), "z.jpg": labels(2)})
        target = out.parent / ("labels" if kind in FORMATS[3:] else "labels.json")
        code = main(["export", str(out), "--format", kind, "-o", str(target)])
        assert code == int(kind == "voc" and "\n" in name)
        known = [name.removesuffix(".jpg"), "z", "bell?"]  # XML cannot hold a bell
        sizes = dict.fromkeys(known, (60, 40))
        found = read_again(kind, target, sizes)
        assert (found["z"] == labels(2)).all()
        assert len(found) == 2 - code
        if kind in ("coco", "labelstudio", "labelme"):
            assert (found[name.removesuffix(".jpg")] == labels(1)).all()


@pytest.mark.parametrize("kind", FORMATS[3:])
def test_a_photo_does_not_replace_the_labels_of_another(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These formats name a photo's file by its stem."""
    out = results(tmp_path / "out", {"a.jpg": labels(1), "a.png": labels(2), "b.jpg": labels(3)})
    target = tmp_path / "labels"
    assert main(["export", str(out), "--format", kind, "-o", str(target)]) == 1
    told = capsys.readouterr()
    assert "problem: a.png: its file " in told.err
    assert "is that of a.jpg: rename one of them" in told.err
    assert "2 photos" in told.out
    found = read_again(kind, target, {"a": (60, 40), "b": (60, 40)})
    assert (found["a"] == labels(1)).all()


def test_a_label_that_vocs_list_cannot_hold_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = results(tmp_path / "out", {"a.jpg": labels(1)})
    with Manifest(out / FILE_NAME) as manifest:
        manifest.set_classes(("background", "cat: a pet", "dog"))
    words = ["export", str(out), "--format", "voc", "-o", str(tmp_path / "labels")]
    assert main(words) == 2
    assert "cannot hold a colon" in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()


def test_a_mask_that_claims_to_be_huge_is_a_problem_of_its_photo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = results(tmp_path / "out", {"a.jpg": labels(1), "b.jpg": labels(2)})
    png = bytearray((out / "a.mask.png").read_bytes())
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    (out / "a.mask.png").write_bytes(png)
    target = tmp_path / "labels.json"
    assert main(["export", str(out), "--format", "coco", "-o", str(target)]) == 1
    assert "problem: a.jpg: " in capsys.readouterr().err
    assert [each["file_name"] for each in json.loads(target.read_text())["images"]] == ["b.jpg"]


def test_an_empty_out_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = results(tmp_path / "out", {})
    words = ["export", str(out), "--format", "coco", "-o", str(tmp_path / "x.json")]
    assert main(words) == 2
    assert "holds no result" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_an_interrupted_export_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.client import export

    out = results(tmp_path / "out", {"a.jpg": labels(1)})
    (tmp_path / "labels.json").write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_add", interrupt)
    words = ["export", str(out), "--format", "coco", "-o", str(tmp_path / "labels.json")]
    assert main(words) == 130
    assert (tmp_path / "labels.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.json", "out"]


PEAK = """
import resource, sys
from service.client.cli import main
code = main(["export", sys.argv[1], "--format", "coco", "-o", sys.argv[2]])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB on Linux
"""


def peak(out: Path, target: Path) -> int:
    """The most memory in KiB that an export took, in a process of its own."""
    command = [sys.executable, "-c", PEAK, str(out), str(target)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    code, most = done.stdout.split()[-2:]
    assert code == "0"
    return int(most)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_memory_does_not_grow_with_the_number_of_photos(tmp_path: Path) -> None:
    """600 photos instead of 60 take less than 2 MiB more, and the file is whole."""
    few = results(tmp_path / "few", {f"{index}.jpg": labels(index % 9) for index in range(60)})
    many = results(tmp_path / "many", {f"{index}.jpg": labels(index % 9) for index in range(600)})
    before = peak(few, tmp_path / "few.json")
    assert peak(many, tmp_path / "many.json") < before + 2048
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert len(COCO(str(tmp_path / "many.json")).imgs) == 600


@pytest.mark.slow
def test_without_its_libraries_the_export_names_the_extra() -> None:
    """The plain installation has httpx alone."""
    code = (
        "import sys; sys.modules['numpy'] = None; "
        "from service.client.cli import main; "
        "sys.exit(main(['export', 'out', '--format', 'coco', '-o', 'x']))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "export needs numpy" in done.stderr
    assert "pip install '.[labels]'" in done.stderr
