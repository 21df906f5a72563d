"""One process of a batch run: same bytes as the service, a record per photo, no stale file."""

from __future__ import annotations

import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("pyarrow", reason="pyarrow comes with the extra `ray`")

from pyarrow import fs

from postprocess.results.facts import Extras
from postprocess.results.outputs import OUTPUTS
from service.client.records import DONE, FAILED, REJECTED, Record
from service.client.uploads import shrink
from service.cluster.pipeline import BatchJob, OutputError, Pipeline, ahead, batches, wish
from service.cluster.records import Todo
from service.cluster.storage import StoredPhoto, photos, place
from service.errors import InvalidRequest
from service.inference.engine import Engine, EngineOptions, Prediction
from service.settings import BUNDLED
from tests.service import onnx_models
from tests.service.web import photo, png, serving

ALL = tuple(OUTPUTS)
ONE_CLASS = "classes=dim"  # as the heatmap needs
CPU = EngineOptions(device="cpu", threads=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "tiny.onnx"
    return onnx_models.save(path, confidence=True, probabilities=True, on_request=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos: smaller and larger than the model's input, turned, broken, and no image."""
    inside = tmp_path / "in"
    (inside / "trip").mkdir(parents=True)
    (inside / "small.png").write_bytes(png(photo(20, 30)))
    (inside / "large.png").write_bytes(png(photo(150, 201, seed=1)))
    (inside / "trip" / "turned.jpg").write_bytes(turned(photo(100, 160, seed=2)))
    (inside / "broken.jpg").write_bytes(turned(photo(100, 160))[:500])
    (inside / "text.png").write_bytes(b"no image")
    return inside


def turned(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG that EXIF turns by a quarter."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(out, "JPEG", exif=exif)
    return out.getvalue()


def job_of(out: Path, outputs: tuple[str, ...] = ALL, max_batch: int = 2, **more: Any) -> BatchJob:
    system = fs.LocalFileSystem()
    return BatchJob(
        system, place(str(out)), outputs, max_batch, max_pixels=1_000_000, threads=2, **more
    )


def pipeline(
    model: Path, out: Path, outputs: tuple[str, ...] = ALL, max_batch: int = 2, **more: Any
) -> Pipeline:
    job = job_of(out, outputs, max_batch, **more)
    return Pipeline(lambda: Engine(model, CPU), job)


def todos(folder: Path, out: Path) -> list[Todo]:
    _, found = photos([str(folder)], place(str(out)))
    return [Todo(each, str(Path(each.name).with_suffix("")), None) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize("asked", [ALL, ("mask",)], ids=["all", "mask"])
def test_every_output_is_the_services_byte_for_byte(
    model: Path, folder: Path, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    """One request and one run. Without an overlay, both decode JPEGs at a reduced scale."""
    out = tmp_path / "out"
    records = list(pipeline(model, out, asked, options=ONE_CLASS).run(todos(folder, out)))
    done = [record for record in records if record.status == DONE]
    assert {record.name for record in done} == {"large.png", "small.png", "trip/turned.jpg"}
    with serving(model.parent) as client:
        for record in done:
            for name, content in answers(
                client, folder / record.name, asked, classes="dim"
            ).items():
                written = (out / f"{record.stem}.{name}").read_bytes()
                if name.endswith(".npz"):  # a ZIP, which contains the time
                    theirs, ours = np.load(io.BytesIO(content)), np.load(io.BytesIO(written))
                    assert all((theirs[key] == ours[key]).all() for key in theirs)
                else:
                    assert written == content, (record.name, name)


def answers(
    client: TestClient, path: Path, asked: tuple[str, ...], **options: str
) -> dict[str, bytes]:
    """File name -> content of one request to the service."""
    query = {"output": ",".join(asked), **options}
    answer = client.post("/segment", params=query, files={"file": path.read_bytes()})
    assert answer.status_code == 200
    if len(asked) == 1:
        return {OUTPUTS[asked[0]][1]: answer.content}
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


OPTIONS = [
    "fit=sliding&overlap=0.1",
    "fit=sliding&overlap=0.5&classes=bright&alpha=0.9&contour=2",
    "classes=dim%2C2&overlay_format=png&alpha=0.0&mask_format=gray",
    "min_area=0.5%25&fill_holes=100%25&min_confidence=dim%3A0.4&below=void&instances=true",
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_does_what_it_does_in_the_service(
    model: Path, folder: Path, tmp_path: Path, options: str
) -> None:
    out, asked = tmp_path / "out", ("mask", "overlay", "json", "confidence")
    work = pipeline(model, out, asked, options=options, counts=True)
    done = [record for record in work.run(todos(folder, out)) if record.status == DONE]
    assert len(done) == 3
    with serving(model.parent) as client:
        for record in done:
            path, more = folder / record.name, dict(parse_qsl(options))
            for name, content in answers(client, path, asked, **more).items():
                assert (out / f"{record.stem}.{name}").read_bytes() == content, (record.name, name)
            told = json.loads((out / f"{record.stem}.result.json").read_text())["classes"]
            assert record.options == options
            assert [(each.name, each.pixels, each.confidence) for each in record.classes or ()] == [
                (each["name"], each["pixels"], each["confidence"]) for each in told
            ]


@pytest.mark.slow
def test_pixels_are_counted_without_keeping_the_json(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = {
        record.name: record
        for record in pipeline(model, out, ("mask",), counts=True).run(todos(folder, out))
    }
    assert sum(each.pixels for each in first["small.png"].classes or ()) == 20 * 30
    assert first["broken.jpg"].classes is None
    assert not list(out.rglob("*.json"))
    again = [replace(todo, earlier=first[todo.photo.name]) for todo in todos(folder, out)]
    records = {record.name: record for record in pipeline(model, out, ("color",)).run(again)}
    assert records["small.png"].classes == first["small.png"].classes  # they still hold


@pytest.mark.slow
def test_max_side_shrinks_as_the_batch_client_does(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    records = list(pipeline(model, out, ("mask",), max_side=50).run(todos(folder, out)))
    assert {record.max_side for record in records} == {50}
    with serving(model.parent) as client:
        answer = client.post(
            "/segment?output=mask", files={"file": shrink((folder / "large.png").read_bytes(), 50)}
        )
    assert (out / "large.mask.png").read_bytes() == answer.content


def test_photo_of_too_many_windows_is_rejected(model: Path, folder: Path, tmp_path: Path) -> None:
    work = pipeline(model, tmp_path / "out", ("mask",), options="fit=sliding", max_windows=2)
    records = {record.name: record for record in work.run(todos(folder, tmp_path / "out"))}
    assert records["small.png"].status == DONE
    assert "413 image-too-large: the photo needs" in str(records["large.png"].error)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["alpha=2", "overlap=x", "classes=cow", "no=such"])
def test_an_option_that_the_service_would_refuse_is_refused(tmp_path: Path, options: str) -> None:
    engine = Engine(onnx_models.save(tmp_path / "plain.onnx"), CPU)
    with pytest.raises(InvalidRequest, match=options.partition("=")[0]):
        wish(job_of(tmp_path, ("mask",), options=options), engine.contract)


@pytest.mark.slow
def test_the_bundled_models_mask_is_the_services_byte_for_byte(tmp_path: Path) -> None:
    samples, out = BUNDLED.parent / "samples", tmp_path / "out"
    (path,) = BUNDLED.glob("*.onnx")
    records = list(pipeline(path, out, ("mask",), max_batch=1).run(todos(samples, out)))
    assert len(records) == len(list(samples.glob("*.jpg")))
    with serving(BUNDLED, max_batch=1) as client:
        for record in records:
            files = {"file": (samples / record.name).read_bytes()}
            answer = client.post("/segment?output=mask", files=files)
            assert (out / f"{record.stem}.mask.png").read_bytes() == answer.content, record.name


def test_a_broken_photo_is_recorded_with_its_reason(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    missing = Todo(StoredPhoto("gone.jpg", str(folder / "gone.jpg"), 1, 1), "gone", None)
    records = list(pipeline(model, out, ("mask",)).run([*todos(folder, out), missing]))
    by_name = {record.name: record for record in records}
    assert by_name["broken.jpg"].status == by_name["text.png"].status == REJECTED
    assert by_name["text.png"].error is not None
    assert by_name["text.png"].error.startswith("400 invalid-image: not an image")
    assert by_name["gone.jpg"].status == FAILED
    assert "gone.jpg" in str(by_name["gone.jpg"].error)
    assert sorted(path.name for path in out.rglob("*.png")) == [
        "large.mask.png",
        "small.mask.png",
        "turned.mask.png",
    ]


@pytest.mark.slow
def test_only_regular_files_of_a_plausible_size_are_read(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(6 << 30)
    out = tmp_path / "out"
    records = {r.name: r for r in pipeline(model, out, ("mask",)).run(todos(folder, out))}
    said = {name: str(records[f"{name}.jpg"].error) for name in ("pipe", "zero", "huge")}
    assert "not a regular file" in said["pipe"]
    assert "not a regular file" in said["zero"]
    assert "larger than any photo" in said["huge"]
    assert records["small.png"].status == DONE


@pytest.mark.slow
def test_a_link_in_out_is_not_followed_out_of_it(model: Path, folder: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "trip").symlink_to(elsewhere)
    records = {r.name: r for r in pipeline(model, out, ("mask",)).run(todos(folder, out))}
    assert (records["trip/turned.jpg"].status, records["small.png"].status) == (FAILED, DONE)
    assert "outside of" in str(records["trip/turned.jpg"].error)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_records_tell_sizes_and_digests(model: Path, folder: Path, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", Engine(model, CPU)
    work = todos(folder, out) * 5
    records = list(pipeline(model, out, ("mask",), max_batch=3).run(work))
    assert [record.name for record in records if record.status == DONE] == [
        todo.photo.name for todo in work if todo.photo.name not in {"broken.jpg", "text.png"}
    ]
    for record in records:
        assert (record.model, record.model_digest) == ("tiny", engine.digest)
        assert all((out / file).stat().st_size == size for file, size in record.outputs.items())


def test_an_unchanged_photo_needs_no_engine(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = pipeline(model, out, ("mask",))
    first = {record.name: record for record in work.run(todos(folder, out))}
    before = (out / "small.mask.png").stat()
    again = [
        replace(todo, earlier=first[todo.photo.name], unchanged_if=first[todo.photo.name].sha256)
        for todo in todos(folder, out)
    ]
    touched = [replace(todo, photo=replace(todo.photo, mtime_ns=7)) for todo in again]
    for record in work.run(touched):
        assert record == replace(first[record.name], mtime_ns=7)
    assert (out / "small.mask.png").stat() == before


@pytest.mark.slow
def test_a_new_model_removes_outputs_that_only_the_old_one_wrote(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    old = pipeline(model, out, options=ONE_CLASS)
    first = {record.name: record for record in old.run(todos(folder, out))}
    onnx_models.save(model, brightest=1)
    again = [replace(todo, earlier=first[todo.photo.name]) for todo in todos(folder, out)]
    records = list(pipeline(model, out, ("mask",), options=ONE_CLASS).run(again))
    assert {file for record in records for file in record.outputs} == {
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()
    }
    assert sorted(path.name for path in out.rglob("small.*")) == ["small.mask.png"]


@pytest.mark.slow
def test_the_same_model_adds_to_existing_outputs(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = {
        record.name: record for record in pipeline(model, out, ("mask",)).run(todos(folder, out))
    }
    again = [replace(todo, earlier=first[todo.photo.name]) for todo in todos(folder, out)]
    records = {record.name: record for record in pipeline(model, out, ("json",)).run(again)}
    assert set(records["small.png"].outputs) == {"small.mask.png", "small.result.json"}


@pytest.mark.slow
def test_a_photo_that_broke_loses_its_old_result(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = pipeline(model, out, ("mask",))
    first = {record.name: record for record in work.run(todos(folder, out))}
    (folder / "small.png").write_bytes(b"no image any more")
    again = [replace(todo, earlier=first[todo.photo.name]) for todo in todos(folder, out)]
    assert {r.name: r for r in work.run(again)}["small.png"].status == REJECTED
    assert not (out / "small.mask.png").exists()


@pytest.mark.slow
def test_an_out_that_cannot_be_written_ends_the_run(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"a file")
    with pytest.raises(OutputError, match="cannot write below"):
        list(pipeline(model, out, ("mask",)).run(todos(folder, out)))


@pytest.mark.slow
def test_a_name_that_out_cannot_take_fails_alone(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = [
        replace(todo, stem="x" * 300) if todo.photo.name == "small.png" else todo
        for todo in todos(folder, out)
    ]
    records = {record.name: record for record in pipeline(model, out, ("mask",)).run(work)}
    assert (records["small.png"].status, records["large.png"].status) == (FAILED, DONE)


class Failing(Engine):
    """An engine that runs out of memory on a batch, then on every photo until loaded again."""

    loads = 0
    is_new = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, CPU)
        type(self).loads += 1
        self.is_new = self.loads > 1

    def predict(self, images: NDArray[np.uint8], extras: Extras = "labels") -> list[Prediction]:
        is_warm_up = not images.any()
        if not is_warm_up and (len(images) > 1 or not self.is_new):
            raise RuntimeError("out of memory")
        return super().predict(images, extras)


@pytest.mark.slow
def test_a_failed_engine_is_created_again_and_loses_no_photo(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = job_of(out, ("mask",))
    records: list[Record] = list(Pipeline(lambda: Failing(model), job).run(todos(folder, out)))
    assert sum(record.status == DONE for record in records) == 3
    assert Failing.loads > 1


@pytest.mark.slow
def test_an_output_that_the_model_cannot_give_is_refused(tmp_path: Path) -> None:
    engine = Engine(onnx_models.save(tmp_path / "plain.onnx"), CPU)
    with pytest.raises(InvalidRequest, match="confidence"):
        wish(job_of(tmp_path, outputs=("mask", "confidence")), engine.contract)


@pytest.mark.slow
def test_no_more_than_the_limit_is_taken_ahead() -> None:
    taken = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        for position, result in enumerate(ahead(pool, lambda x: x * x, source(), 5)):
            assert result == position**2
            assert len(taken) <= position + 5
    assert len(taken) == 100


@pytest.mark.slow
def test_the_steps_of_the_pipeline_run_at_the_same_time() -> None:
    """Both steps wait at a barrier, so the test hangs unless they run at the same time."""
    barrier = threading.Barrier(2, timeout=10)
    with ThreadPoolExecutor(2) as pool:
        assert len(list(ahead(pool, lambda _: barrier.wait(), range(2), 2))) == 2


@pytest.mark.slow
def test_batches_are_full_but_the_last() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.slow
def test_a_result_says_what_the_photo_contains(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(pipeline(model, out, ("json",)).run(todos(folder, out)))
    result = json.loads((out / "trip" / "turned.result.json").read_text())
    assert (result["width"], result["height"]) == (100, 160)
