"""The plan: what an earlier run's records and files say about a photo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="pyarrow comes with the extra `ray`")

from postprocess.results.outputs import OUTPUTS as OUTPUTS_BY_NAME
from service.client import cli, inputs
from service.client.errors import ManifestError
from service.client.manifest import Manifest
from service.client.plan import UNKNOWN_TIME, Decision, Wanted, decide
from service.client.records import DONE, FAILED, FOLDER, REJECTED, ClassPixels, Record
from service.cluster.records import Parts, Plan, Todo, load
from service.cluster.storage import Place, StoredPhoto, place

PHOTO = StoredPhoto("a/x.jpg", "/in/a/x.jpg", size=10, mtime_ns=5)
OUTPUTS = {"a/x.mask.png": 3, "a/x.overlay.jpg": 4}
RECORD = Record(
    name="a/x.jpg",
    source="/in/a/x.jpg",
    stem="a/x",
    size=10,
    mtime_ns=5,
    sha256="cafe",
    model="m",
    model_digest="d1",
    status=DONE,
    outputs=OUTPUTS,
)
WANTED = Wanted(("mask", "overlay"), "m", "d1")


def plan(record: Record | None = RECORD, wanted: Wanted = WANTED, **sizes: int) -> Plan:
    records = {} if record is None else {record.name: record}
    return Plan(wanted, records, OUTPUTS | sizes)


def test_a_complete_result_is_kept() -> None:
    assert plan().todo(PHOTO) == RECORD


def test_a_result_is_kept_if_fewer_outputs_are_requested() -> None:
    assert plan(wanted=replace(WANTED, outputs=("mask",))).todo(PHOTO) == RECORD


@pytest.mark.parametrize("output", OUTPUTS_BY_NAME)
def test_every_output_is_known_by_its_file(output: str) -> None:
    files = {f"a/x.{OUTPUTS_BY_NAME[output][1]}": 3}
    record = replace(RECORD, outputs=files)
    wanted = replace(WANTED, outputs=(output,))
    assert Plan(wanted, {record.name: record}, files).todo(PHOTO) == record


@pytest.mark.parametrize(
    "again",
    [
        plan(wanted=replace(WANTED, model_digest="d2")),
        plan(wanted=replace(WANTED, model="n")),
        plan(wanted=replace(WANTED, outputs=("mask", "npz"))),
        Plan(WANTED, {RECORD.name: RECORD}, {"a/x.mask.png": 3}),
        Plan(WANTED, {RECORD.name: RECORD}, OUTPUTS | {"a/x.mask.png": 2}),
        plan(replace(RECORD, status=FAILED)),
    ],
    ids=["digest", "model", "output", "file gone", "file cut", "failed"],
)
def test_an_outdated_result_is_made_again_into_the_same_files(again: Plan) -> None:
    (record,) = again.records.values()
    assert again.todo(PHOTO) == Todo(PHOTO, "a/x", record)


def test_a_photo_of_another_size_is_done_again() -> None:
    changed = replace(PHOTO, size=11)
    assert plan().todo(changed) == Todo(changed, "a/x", RECORD)


@pytest.mark.parametrize("mtime_ns", [6, UNKNOWN_TIME])
def test_a_photo_of_another_or_no_time_is_compared_by_its_digest(mtime_ns: int) -> None:
    touched = replace(PHOTO, mtime_ns=mtime_ns)
    record = replace(RECORD, mtime_ns=UNKNOWN_TIME)
    assert plan(record).todo(touched) == Todo(touched, "a/x", record, unchanged_if="cafe")


def test_a_rejected_photo_stays_rejected_until_asked_or_changed() -> None:
    rejected = replace(RECORD, status=REJECTED, outputs={}, error="400")
    retry = replace(WANTED, retry_rejected=True)
    assert plan(rejected).todo(PHOTO) == rejected
    assert isinstance(plan(rejected, retry).todo(PHOTO), Todo)
    assert isinstance(plan(rejected).todo(replace(PHOTO, size=9)), Todo)


@pytest.mark.parametrize(
    ("wanted", "mtime_ns", "stands"),
    [
        (WANTED, 5, True),
        (replace(WANTED, outputs=("mask",)), 5, True),
        (replace(WANTED, outputs=("npz",)), 5, False),
        (replace(WANTED, model_digest="d2"), 5, False),
        (replace(WANTED, model="n"), 5, False),
        (WANTED, 6, False),
    ],
    ids=["unchanged", "fewer outputs", "another output", "digest", "model", "another time"],
)
def test_the_batch_client_does_the_same_photos_again(
    tmp_path: Path, wanted: Wanted, mtime_ns: int, stands: bool
) -> None:
    (tmp_path / "a").mkdir()
    for file, size in OUTPUTS.items():
        (tmp_path / file).write_bytes(bytes(size))
    photo = replace(PHOTO, mtime_ns=mtime_ns)
    read = inputs.InputPhoto(
        photo.name, photo.source, photo.size, mtime_ns, read=lambda: b"changed"
    )
    with Manifest(Path(":memory:")) as manifest:
        manifest.claim(PHOTO.name, PHOTO.source, ["a/x"])
        manifest.finish(PHOTO.name, RECORD.origin, OUTPUTS)
        manifest.run += 1
        assert (decide(read, wanted, manifest, tmp_path) is Decision.SKIP) == stands
    assert isinstance(plan(wanted=wanted).todo(photo), Record) == stands


def test_photos_that_differ_only_in_suffix_or_case_get_different_files() -> None:
    empty = plan(None)
    names = ["a/x.jpg", "a/x.png", "a/X.jpg", "a/X.jpg"]
    todos = [empty.todo(replace(PHOTO, name=name)) for name in names[:3]]
    assert [todo.stem for todo in todos] == ["a/x", "a/x.png", "a/X.jpg"]


def test_a_name_that_an_earlier_run_gave_away_is_not_given_twice() -> None:
    other = plan().todo(replace(PHOTO, name="a/x.png"))
    assert other.stem == "a/x.png"


COUNTED = replace(RECORD, classes=(ClassPixels(0, "background", 7, 0.5, 2),), options="alpha=0.1")


@pytest.mark.parametrize("change", [{"options": "alpha=0.1"}, {"max_side": 99}, {"pixels": True}])
def test_other_options_and_a_report_without_counts_are_done_again(change: dict[str, Any]) -> None:
    wanted = replace(WANTED, **change)
    assert isinstance(plan(wanted=wanted).todo(PHOTO), Todo)
    fitting = replace(RECORD, options=wanted.options, max_side=wanted.max_side, classes=())
    assert plan(fitting, wanted).todo(PHOTO) == fitting


def test_a_record_of_an_earlier_version_without_options_is_read() -> None:
    line = json.loads(RECORD.json())
    for name in ("max_side", "options", "classes", "request_id"):
        del line[name]
    assert Record.parse(json.dumps(line)) == RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"stem": "../x"},
        {"stem": "/x"},
        {"outputs": {"../victim.txt": 1}},
        {"status": "unknown"},
        {"classes": [{"class_id": 1}]},
        {"classes": 5},
    ],
)
def test_a_record_that_is_invalid_or_names_files_outside_out_is_refused(
    out: Place, change: dict[str, Any]
) -> None:
    line = json.dumps(json.loads(RECORD.json()) | change)
    out.write(f"{FOLDER}/x.jsonl", line.encode())
    with pytest.raises(ManifestError, match="not a record"):
        load(out, out.files())


def test_the_client_reports_on_what_a_batch_has_recorded(tmp_path: Path, out: Place) -> None:
    parts = Parts(out)
    parts.put_classes(["background", "cat"])
    parts.add(COUNTED)
    parts.add(replace(RECORD, name="b.jpg", status=REJECTED, error="400", outputs={}))
    parts.close()
    assert cli.main(["report", str(tmp_path)]) == 0
    head = (
        "photo,status,error,model,model_digest,confidence,pixels,regions,taken,latitude,longitude"
    )
    assert (tmp_path / "report.csv").read_text().splitlines() == [
        f"{head},background,cat,background_regions,cat_regions",
        "a/x.jpg,done,,m,d1,0.5,7,2,,,,7,0,2,0",
        "b.jpg,rejected,400,m,d1,,,,,,,,,,",
    ]


def test_a_todo_and_a_record_survive_serialisation() -> None:
    assert Record.parse(COUNTED.json()) == COUNTED
    counted = Todo(PHOTO, "a/x", COUNTED)
    assert Todo.parse(counted.json()) == counted
    todo = Todo(PHOTO, "a/x", RECORD, unchanged_if="cafe")
    assert Todo.parse(todo.json()) == todo
    assert Record.parse(RECORD.json()) == RECORD


@pytest.fixture
def out(tmp_path: Path) -> Place:
    return place(str(tmp_path))


def test_the_last_record_of_a_photo_counts(out: Place) -> None:
    for status in (FAILED, REJECTED, DONE):
        parts = Parts(out)
        parts.add(replace(RECORD, status=status))
        parts.add(replace(RECORD, name=status))
        parts.close()
    records = load(out, out.files()).found
    assert set(records) == {"a/x.jpg", FAILED, REJECTED, DONE}
    assert records["a/x.jpg"].status == DONE


def test_a_part_is_put_when_it_is_full_or_closed(
    out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cluster.records.PART_RECORDS", 2)
    parts = Parts(out)
    counts = []
    for number in range(5):
        parts.add(replace(RECORD, name=str(number)))
        counts.append(len(list(out.files(FOLDER))))
    assert counts == [0, 1, 1, 2, 2]
    parts.close()
    parts.close()
    assert list(load(out, out.files()).found) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"name": "x"}', b"\xff"])
def test_a_part_that_is_not_ours_is_named(out: Place, line: bytes) -> None:
    out.write(f"{FOLDER}/x.jsonl", line)
    with pytest.raises(ManifestError, match=rf"{FOLDER}/x\.jsonl"):
        load(out, out.files())
