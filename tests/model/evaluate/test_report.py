"""The report holds what the run logged, loads nothing, and escapes what it shows."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, voc_palette
from model.evaluate import __main__ as evaluate
from model.evaluate import plots, report
from tests.model import limits, voc_folder
from tests.model.nets import tiny

EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> dict[str, Image.Image]:
        """The embedded pictures by their alternative text, decoded."""
        found: dict[str, Image.Image] = {}
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, data = str(attributes["src"]).partition(",")
                assert re.fullmatch(r"data:image/(png|jpeg);base64", kind)
                picture = Image.open(io.BytesIO(base64.b64decode(data)))
                picture.load()
                found[str(attributes["alt"])] = picture
        return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose log shows that it was killed and resumed."""
    folder = tmp_path / f"run & {EVIL.replace('/', '')}"
    folder.mkdir()
    net = tiny(21)
    card = Card(
        model=net.config,
        classes=VOC_CLASSES,
        palette=voc_palette(21),
        training={"description": EVIL, "seed": 7},
        source=f"trained on {EVIL}",
    )
    checkpoint.save(folder / "model", net.state_dict(), card)
    lines: list[dict[str, object]] = [
        {"iteration": i, "loss": 3 - i / 100, "crops_per_second": 4.0} for i in (20, 40, 60)
    ]
    lines += [{"iteration": 40, "loss": 9.0}, {"iteration": 40, "miou": 0.3, "iou": {"cat": 0.2}}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 80, "lo'
    (folder / "log.jsonl").write_text(text)
    return folder


def made(run: Path, *options: str) -> Page:
    assert report.main([str(run), *options]) == 0
    return Page((run / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_page_holds_curves_figures_matrix_and_samples(run: Path, tmp_path: Path) -> None:
    data = voc_folder.make(tmp_path, count=3, split="val")
    page = made(run, "--data", str(data), "--samples", "2")
    images = page.images()
    assert set(images) == {
        "loss, crops_per_second, miou by iteration, up to 60",
        "IoU by class",
        "confusion matrix",
        *(
            f"{kind} of 2007_00000{i}"
            for kind in ("photo", "true mask", "prediction")
            for i in (0, 2)
        ),
    }
    assert all(len(np.unique(np.asarray(image))) > 1 for image in images.values())
    target = tmp_path / "figures.json"
    options = ["--data", str(data), "--json", str(target)]
    assert evaluate.main([str(run / "model"), *options]) == 0
    assert f"mIoU {100 * json.loads(target.read_text())['miou']:.2f} %" in page.text
    bare, truth = (
        np.asarray(images[f"{kind} of 2007_000000"]).astype(int) for kind in ("photo", "true mask")
    )
    assert np.abs(bare[:4, :2] - truth[:4, :2]).max() < 16  # background stays clear
    assert np.abs(bare - truth).max() > 64  # the object is coloured


@pytest.mark.slow
def test_the_default_data_set_is_the_one_trained_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = run / "model.json"
    table = json.loads(card.read_text())
    card.write_text(json.dumps(table | {"training": {"dataset": "camvid"}}))
    assert report.main([str(run), "--data", str(tmp_path)]) == 1
    assert "CamVid" in capsys.readouterr().err
    data = voc_folder.make(tmp_path, count=1, split="val")
    made(run, "--data", str(data), "--dataset", "voc", "--samples", "0")


@pytest.mark.slow
def test_the_axes_of_curves_start_at_zero() -> None:
    """Otherwise a percent of noise in crops per second would look like a trend."""
    figure = plots.series({"crops/s": {20: 24.0, 40: 24.5}, "odd": {20: -1.0, 40: 2.0}, "none": {}})
    assert [axes.get_ylim()[0] for axes in figure.axes[:2]] == [0, pytest.approx(-1.15)]


@pytest.mark.slow
def test_the_page_loads_nothing_and_runs_nothing(run: Path) -> None:
    page = made(run)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "href"
            assert name != "src" or str(value).startswith("data:image/")
    assert "url(" not in (run / "report.html").read_text()


@pytest.mark.slow
def test_names_and_texts_are_shown_and_never_run(run: Path) -> None:
    """A run's name, its description and its source could hold HTML."""
    page = made(run)
    assert page.text.count(EVIL) >= 2
    assert f"Training run {run.name}" in page.text
    assert EVIL not in (run / "report.html").read_text()


def test_the_log_survives_a_kill_and_a_resume(run: Path) -> None:
    """Later lines replace earlier ones. Lines that are cut off or hold no number are left out."""
    curves = report.read_log(run / "log.jsonl")
    assert curves["loss"] == {20: 2.8, 40: 9.0, 60: 2.4}
    assert curves["miou"] == {40: 0.3}
    assert set(curves) == {"loss", "crops_per_second", "miou"}


@pytest.mark.slow
def test_a_run_in_progress_has_its_curves(run: Path) -> None:
    (run / "model.json").unlink()
    page = made(run)
    assert "has not finished" in page.text
    assert len(page.images()) == 1


@pytest.mark.slow
def test_figures_kept_in_the_checkpoint_are_shown_without_data(run: Path) -> None:
    checkpoint.record_metrics(run / "model", {"miou": 0.5123, "iou": {"cat": 0.4, "dog": None}})
    page = made(run)
    assert "mIoU 51.23 %" in page.text
    assert "IoU by class" in page.images()


def test_a_folder_that_is_not_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path)]) == 1
    assert "is this a run's folder?" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_class_names_with_dollars_are_not_formulas(run: Path) -> None:
    """matplotlib would try to parse a formula and fail."""
    checkpoint.record_metrics(run / "model", {"miou": 0.1, "iou": {r"a $\frac$ b$": 0.4}})
    assert "IoU by class" in made(run).images()


@pytest.mark.slow
@limits.needs_linux
def test_a_report_that_runs_out_of_memory_says_what_takes_less(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = checkpoint.read_card(run / "model")
    large = card.model.model_copy(update={"crop_size": (limits.LARGEST, limits.LARGEST)})
    net = checkpoint.load(run / "model")
    checkpoint.save(run / "model", net.state_dict(), card.model_copy(update={"model": large}))
    data = voc_folder.make(tmp_path, count=1, split="val")
    with limits.memory_at_most():
        assert report.main([str(run), "--data", str(data), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory: take a checkpoint of a smaller model.crop_size")
    assert not (run / "report.html").exists()
