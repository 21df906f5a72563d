"""`--local`: the results, the manifest and the report are those of the service."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from service.client.cli import main
from service.client.protocol import FILES
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import photo

pytestmark = pytest.mark.slow  # loads an engine for each call

# These models give no probabilities.
OUTPUTS = [name for name in FILES if name not in {"probabilities", "heatmap"}]
COLUMNS = "name, stem, size, sha256, model, model_digest, options, outputs, status, error"


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAB_DEVICE", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models; the default is the first by name."""
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "bright.onnx", confidence=True)
    onnx_models.save(folder / "dim.onnx", brightest=1)
    return folder


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    with running(models, "--max-pixels", "100000") as (url, _):
        yield url


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Photos of several formats and sizes, one that lies on its side, and two that are refused."""
    folder = tmp_path / "pictures"
    (folder / "trip").mkdir(parents=True)
    Image.fromarray(photo(40, 50)).save(folder / "small.png")
    Image.fromarray(photo(200, 300, seed=1)).save(folder / "trip" / "large.webp", lossless=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo(90, 70, seed=2)).save(folder / "trip" / "side.jpg", exif=turned)
    whole = (folder / "trip" / "side.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(photo(400, 300, seed=3)).save(folder / "huge.png")
    return folder


def test_refused_options_end_the_run_without_a_failure_of_the_engine(
    models: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The error passes through the application, which shuts down as after a good run."""
    asked = ["--local", str(pictures / "small.png"), "-o", str(tmp_path / "out")]
    assert main([*asked, "--models", str(models), "--contour", "99"]) == 2
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]
    assert "died" not in caplog.text


def files(out: Path) -> dict[str, bytes]:
    """Every result below OUT."""
    found = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".sqlite")
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def rows(out: Path) -> list[tuple[object, ...]]:
    """The manifest, without times and request ids."""
    with sqlite3.connect(out / "manifest.sqlite") as manifest:
        return manifest.execute(f"SELECT {COLUMNS} FROM photos ORDER BY name").fetchall()


def test_results_manifest_and_report_are_those_of_the_service(
    url: str, models: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All outputs are equal byte for byte, with windows too; refusals have the same reasons."""
    monkeypatch.setenv("DEEPLAB_MAX_PIXELS", "100000")
    asked = ["--output", ",".join(OUTPUTS), "--report", "--fit", "sliding"]
    assert main([url, str(pictures), "-o", str(tmp_path / "served"), *asked]) == 1
    here = ["--local", "--models", str(models), str(pictures), "-o", str(tmp_path / "local")]
    assert main([*here, *asked]) == 1
    served = files(tmp_path / "served")
    assert len(served) == 3 * len(OUTPUTS) + 4  # the report: two tables, two sheets
    assert files(tmp_path / "local") == served
    assert rows(tmp_path / "local") == rows(tmp_path / "served")
    assert {row[0]: row[-2] for row in rows(tmp_path / "local")} == {
        "broken.jpg": "rejected",
        "huge.png": "rejected",
        "small.png": "done",
        "trip/large.webp": "done",
        "trip/side.jpg": "done",
    }


def test_photos_that_the_service_has_done_are_not_done_again(
    url: str,
    models: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ["-o", str(tmp_path / "out"), "--json"]
    main([url, str(pictures / "trip"), *out])
    capsys.readouterr()
    assert main(["--local", str(pictures / "trip"), "--models", str(models), *out]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["sent"], summary["skipped"]) == (0, 2)


def test_another_model_of_the_folder_is_chosen_by_name(
    models: Path, pictures: Path, tmp_path: Path
) -> None:
    here = ["--local", "--models", str(models), str(pictures / "small.png")]
    for name in ("bright", "dim"):
        out = tmp_path / name
        assert main([*here, "-o", str(out), "--model", name, "--mask-format", "gray"]) == 0
    bright, dim = (
        Image.open(io.BytesIO(files(tmp_path / name)["small.mask.png"]))
        for name in ("bright", "dim")
    )
    assert bright.getextrema() == (0, 2)
    assert dim.getextrema() == (0, 1)


def test_keys_and_limits_of_a_port_do_not_apply(
    models: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that also serves has these variables set for its service."""
    monkeypatch.setenv("DEEPLAB_API_KEYS", "0" * 64)
    monkeypatch.setenv("DEEPLAB_RATE_LIMIT_PER_MINUTE", "1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    here = ["--local", "--models", str(models), str(pictures / "trip")]
    assert main([*here, "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--local", "--model", "big"], 2, "--model big: --models {models} has bright, dim"),
        (["http://127.0.0.1:9"], 2, "--models is for --local"),
        (["--local", "--models", "{out}"], 1, "--models {out}: No such file"),
        (["--local", "--classes", "cow"], 2, "correct --classes"),
    ],
)
def test_wrong_call_says_what_to_change(
    arguments: list[str],
    code: int,
    message: str,
    models: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"models": models, "out": tmp_path / "out"}
    command = [argument.format(**names) for argument in arguments]
    inputs = [str(pictures), "-o", str(tmp_path / "out"), "--models", str(models)]
    call = [*command, *inputs] if "--models" not in command else [*command, *inputs[:-2]]
    assert main(call) == code
    assert message.format(**names) in capsys.readouterr().err


def test_a_wrong_variable_is_named(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEEPLAB_THREADS", "many")
    assert main(["--local", str(pictures), "-o", str(tmp_path / "out")]) == 2
    assert "DEEPLAB_THREADS='many'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "the URL of the service is missing before 'photos'"),
        (["http://127.0.0.1:9"], "the inputs are missing after http://127.0.0.1:9"),
    ],
)
def test_a_missing_url_or_input_is_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_inputs_may_stand_on_both_sides_of_an_option(
    models: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copy(pictures / "small.png", tmp_path / "more.png")
    out = tmp_path / "out"
    here = ["--local", str(pictures / "trip"), "-o", str(out), str(tmp_path / "more.png")]
    assert main([*here, "--models", str(models)]) == 0
    assert {"more.mask.png", "pictures/trip/large.mask.png"} <= files(out).keys()


@pytest.mark.parametrize("library", ["onnxruntime", "fastapi", "pydantic_settings"])
def test_a_missing_library_is_named_with_its_extra(library: str, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules[{library!r}] = None
from service.client.cli import main
sys.exit(main(["--local", ".", "-o", {str(tmp_path)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"--local needs {library}, which is not installed" in done.stderr
    assert "pip install '.[cpu]'" in done.stderr
