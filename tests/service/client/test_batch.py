"""Complete runs of the command against a service that fails on purpose."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from service.client.cli import _parser, main
from service.client.manifest import FILE_NAME, Manifest
from service.http.query import SegmentQuery

from . import flaky_server
from .flaky_server import Answer, FlakyServer, Request, problem, result

QUICK = ("--give-up-after", "3")


def run(server: FlakyServer, photos: Path, *options: str) -> int:
    return main([server.url, str(photos), "-o", str(photos.parent / "out"), *QUICK, *options])


def files(out: Path) -> list[str]:
    return sorted(
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(FILE_NAME)
    )


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.jpg").write_bytes(b"\xff\xd8\xff" + str(number).encode())
    return folder


def assert_complete(photos: Path, out: Path, digest: str = "d1") -> None:
    """Each photo has its own complete mask and overlay, and there are no other files."""
    expected = {}
    for photo in photos.iterdir():
        for output in ("mask", "overlay"):
            expected[f"{photo.stem}.{output}.png"] = result(output, photo.read_bytes(), digest)
    assert {name: (out / name).read_bytes() for name in files(out)} == expected


def test_folder_becomes_a_mirrored_folder_of_masks_and_overlays(
    server: FlakyServer, photos: Path, tmp_path: Path
) -> None:
    assert run(server, photos) == 0
    assert files(tmp_path / "out") == [
        "cat.mask.png",
        "cat.overlay.png",
        "trip/dog.mask.png",
        "trip/dog.overlay.png",
        "trip/far/bus.mask.png",
        "trip/far/bus.overlay.png",
    ]
    mask = (tmp_path / "out" / "trip" / "dog.mask.png").read_bytes()
    assert mask == result("mask", b"trip/dog.png")


@pytest.mark.slow
def test_a_single_output_is_written_unchanged(
    server: FlakyServer, photos: Path, tmp_path: Path
) -> None:
    assert run(server, photos / "cat.jpg", "--output", "mask", "-o", str(tmp_path / "out")) == 0
    assert files(tmp_path / "out") == ["cat.mask.png"]
    assert (tmp_path / "out" / "cat.mask.png").read_bytes() == result("mask", b"cat.jpg")


@pytest.mark.slow
def test_photos_that_differ_only_in_their_suffix_get_different_files(
    server: FlakyServer, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "a.png", "A.webp", "a.png.jpg"):
        (photos / name).write_bytes(name.encode())
    for _ in range(2):  # the second run finds everything where the first one put it
        assert run(server, photos, "--output", "mask") == 0
        found = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}
        assert found == {
            "A.mask.png": result("mask", b"A.webp"),
            "a.jpg.mask.png": result("mask", b"a.jpg"),
            "a.png.mask.png": result("mask", b"a.png"),
            "a.png.jpg.mask.png": result("mask", b"a.png.jpg"),
        }
    assert len(server.segmented()) == 4


def test_second_run_sends_nothing(server: FlakyServer, photos: Path) -> None:
    assert run(server, photos) == 0
    assert run(server, photos) == 0
    assert len(server.segmented()) == 3


@pytest.mark.slow
def test_changed_photo_is_done_again(server: FlakyServer, photos: Path, tmp_path: Path) -> None:
    run(server, photos)
    (photos / "cat.jpg").write_bytes(b"other cat")
    assert run(server, photos) == 0
    assert server.segmented()[3:] == [b"other cat"]
    assert (tmp_path / "out" / "cat.mask.png").read_bytes() == result("mask", b"other cat")


@pytest.mark.slow
def test_changed_photo_of_the_same_size_is_noticed(server: FlakyServer, photos: Path) -> None:
    run(server, photos)
    (photos / "cat.jpg").write_bytes(b"CAT.jpg")
    os.utime(photos / "cat.jpg", ns=(1, 1))
    run(server, photos)
    assert server.segmented()[3:] == [b"CAT.jpg"]


@pytest.mark.slow
def test_photo_that_was_only_touched_is_not_sent(server: FlakyServer, photos: Path) -> None:
    run(server, photos)
    os.utime(photos / "cat.jpg", ns=(1, 1))
    run(server, photos)
    assert len(server.segmented()) == 3


def test_new_model_redoes_everything(server: FlakyServer, photos: Path, tmp_path: Path) -> None:
    run(server, photos)
    server.digest = "d2"
    assert run(server, photos) == 0
    assert len(server.segmented()) == 6
    mask = (tmp_path / "out" / "cat.mask.png").read_bytes()
    assert mask == result("mask", b"cat.jpg", "d2")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "short"])
def test_lost_or_short_output_file_is_made_again(
    server: FlakyServer, photos: Path, tmp_path: Path, damage: str
) -> None:
    run(server, photos)
    mask = tmp_path / "out" / "cat.mask.png"
    mask.unlink() if damage == "gone" else mask.write_bytes(b"")
    assert run(server, photos) == 0
    assert mask.read_bytes() == result("mask", b"cat.jpg")
    assert len(server.segmented()) == 4


@pytest.mark.slow
def test_more_outputs_than_before_are_fetched(server: FlakyServer, photos: Path) -> None:
    run(server, photos, "--output", "mask")
    run(server, photos, "--output", "mask,npz")
    assert len(server.segmented()) == 6
    run(server, photos, "--output", "npz")
    assert len(server.segmented()) == 6


@pytest.mark.slow
def test_outputs_asked_for_in_turn_add_up(
    server: FlakyServer, photos: Path, tmp_path: Path
) -> None:
    run(server, photos / "cat.jpg", "-o", str(tmp_path / "out"), "--output", "mask", "--report")
    run(server, photos / "cat.jpg", "-o", str(tmp_path / "out"), "--output", "npz")
    assert {"cat.mask.png", "cat.labels.npz"} <= set(files(tmp_path / "out"))
    with Manifest(tmp_path / "out" / FILE_NAME) as manifest:
        row = manifest.get("cat.jpg")
        assert row is not None
        assert [(each.class_id, each.pixels) for each in row.classes or ()] == [(0, 30), (8, 10)]


@pytest.mark.slow
def test_output_of_another_model_does_not_stay_beside_the_new_one(
    server: FlakyServer, photos: Path, tmp_path: Path
) -> None:
    run(server, photos / "cat.jpg", "-o", str(tmp_path / "out"), "--output", "mask")
    server.digest = "d2"
    run(server, photos / "cat.jpg", "-o", str(tmp_path / "out"), "--output", "npz")
    assert files(tmp_path / "out") == ["cat.labels.npz"]


@pytest.mark.slow
def test_other_max_side_redoes_everything(server: FlakyServer, photos: Path) -> None:
    run(server, photos)
    run(server, photos, "--max-side", "100")
    assert len(server.segmented()) == 6


@pytest.mark.slow
def test_a_photo_that_cannot_be_shrunk_is_sent_unchanged_and_reported(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(7):
        Image.new("I;16", (200, 100), number).save(photos / f"{number}.png")
    assert run(server, photos, "--max-side", "50") == 0
    said = capsys.readouterr()
    assert said.err.count("sent unshrunk: a PNG of 16 bits is left to the service") == 5
    assert "7 sent unshrunk: their results have the photo's own size" in said.out
    with Image.open(photos.parent / "out" / "3.mask.png") as mask:
        assert mask.size == (200, 100)


@pytest.mark.slow
def test_options_for_the_service_are_sent_and_a_change_redoes_everything(
    server: FlakyServer, photos: Path
) -> None:
    given = "--fit sliding --overlap 0.3 --classes cat,9 --alpha 0 --contour 2 --overlay-format png"
    given += " --mask-format gray --picture-side 9999"
    for _ in range(2):
        assert run(server, photos, *given.split()) == 0
    assert len(server.segmented()) == 3
    sent = [request.query for request in server.requests if request.path == "/segment"]
    for query in sent:
        assert query == {
            "output": "mask,overlay",
            "model": "light",
            "fit": "sliding",
            "overlap": "0.3",
            "classes": "cat,9",
            "alpha": "0.0",
            "contour": "2",
            "overlay_format": "png",
            "mask_format": "gray",
            "max_side": "9999",
        }
    run(server, photos, *given.split(), "--fit", "resize")
    assert len(server.segmented()) == 6


@pytest.mark.slow
def test_every_option_of_the_service_can_be_given() -> None:
    """Except `include`: the client asks for those images as files; and except `quality`.

    Results of a folder that depend on the load could not be repeated.
    """
    given = {action.dest for action in _parser()._actions}
    assert set(SegmentQuery.model_fields) - {"include", "quality"} <= given


@pytest.mark.slow
def test_bursts_of_503_lose_nothing(server: FlakyServer, tmp_path: Path) -> None:
    """Ten photos in the middle are refused twice, while eight are in flight."""
    photos = many(tmp_path / "photos", 40)
    unlucky = {path.read_bytes() for path in sorted(photos.iterdir())[15:25]}
    server.misbehave = lambda request, nth: (
        problem(503, "overloaded", Retry_After="0.05")
        if request.body in unlucky and nth <= 2
        else None
    )
    assert run(server, photos, "--concurrency", "8", "--give-up-after", "20") == 0
    assert {server.seen[body] for body in unlucky} == {3}
    assert_complete(photos, tmp_path / "out")


@pytest.mark.slow
def test_service_that_stays_overloaded_and_unready_ends_the_run(
    server: FlakyServer, tmp_path: Path
) -> None:
    server.misbehave = lambda request, nth: (
        None if request.path == "/models" else problem(503, "engine-unavailable")
    )
    assert run(server, many(tmp_path / "photos", 50), "--give-up-after", "0.3") == 1
    assert len(server.seen) <= 6  # /models, /readyz and the first few photos


@pytest.mark.slow
def test_retry_after_is_honoured(server: FlakyServer, photos: Path) -> None:
    asked: list[float] = []

    def busy(request: Request, nth: int) -> Answer | None:
        if request.path != "/segment":
            return None
        asked.append(time.monotonic())
        return problem(503, "overloaded", Retry_After="0.7") if nth == 1 else None

    server.misbehave = busy
    run(server, photos / "cat.jpg")
    assert asked[1] - asked[0] >= 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure",
    [
        Answer(200, b"half of this arrives", is_cut=True),
        Answer(502, b"<html>bad gateway</html>", "text/html"),
        Answer(504),
        Answer(200, b"", delay_s=1.0),
    ],
    ids=["cut", "bad gateway", "gateway timeout", "slow"],
)
def test_first_try_that_fails_in_transit_is_repeated(
    server: FlakyServer, tmp_path: Path, failure: Answer
) -> None:
    server.misbehave = lambda request, nth: (
        failure if request.path == "/segment" and nth == 1 else None
    )
    photos = many(tmp_path / "photos", 2)
    assert run(server, photos, "--timeout", "0.3") == 0
    assert_complete(photos, tmp_path / "out")


def broken_cat(request: Request, nth: int) -> Answer | None:
    is_broken = request.path == "/segment" and request.body == b"cat.jpg"
    return problem(400, "invalid-image", "not an image") if is_broken else None


def test_broken_photo_is_named_and_stops_nothing(
    server: FlakyServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misbehave = broken_cat
    assert run(server, photos, "--json") == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["sent"], summary["rejected"]) == (2, 1)
    (failure,) = summary["failures"]
    assert failure["name"] == "cat.jpg"
    assert failure["reason"] == "400 invalid-image: not an image"
    assert not (tmp_path / "out" / "cat.mask.png").exists()
    assert server.seen[b"cat.jpg"] == 1  # a 4xx is not retried


@pytest.mark.slow
def test_rejected_photo_is_reported_again_but_not_sent_again(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misbehave = broken_cat
    run(server, photos)
    capsys.readouterr()
    assert run(server, photos) == 1
    assert "cat.jpg: 400 invalid-image" in capsys.readouterr().out
    assert server.seen[b"cat.jpg"] == 1


@pytest.mark.slow
def test_rejected_photo_is_sent_again_on_demand_or_when_it_changes(
    server: FlakyServer, photos: Path
) -> None:
    server.misbehave = broken_cat
    run(server, photos)
    assert run(server, photos, "--retry-failed") == 1
    assert server.seen[b"cat.jpg"] == 2
    (photos / "cat.jpg").write_bytes(b"mended")
    assert run(server, photos) == 0


@pytest.mark.slow
def test_photo_that_turns_bad_loses_its_old_result(
    server: FlakyServer, photos: Path, tmp_path: Path
) -> None:
    """A result must come from the bytes that the photo has now."""
    (photos / "cat.jpg").write_bytes(b"good cat")
    run(server, photos)
    server.misbehave = broken_cat
    (photos / "cat.jpg").write_bytes(b"cat.jpg")
    assert run(server, photos) == 1
    assert not (tmp_path / "out" / "cat.mask.png").exists()


@pytest.mark.slow
def test_internal_error_is_not_retried_now_but_by_the_next_run(
    server: FlakyServer, photos: Path
) -> None:
    server.misbehave = lambda request, nth: (
        problem(500, "inference-failed") if request.body == b"cat.jpg" and nth == 1 else None
    )
    assert run(server, photos) == 1
    assert server.seen[b"cat.jpg"] == 1
    assert run(server, photos) == 0


@pytest.mark.slow
def test_answer_without_the_asked_output_is_a_failure(server: FlakyServer, photos: Path) -> None:
    server.misbehave = lambda request, nth: (
        Answer(200, b"no ZIP", "application/zip") if request.body == b"cat.jpg" else None
    )
    assert run(server, photos) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "refusal",
    [problem(401, "unauthorized"), problem(404, "unknown-model")],
    ids=["key", "model"],
)
def test_a_wrong_key_or_model_ends_the_run_at_once_and_fails_no_photo(
    server: FlakyServer, tmp_path: Path, refusal: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misbehave = lambda request, nth: refusal if request.path == "/segment" else None
    assert run(server, many(tmp_path / "photos", 50), "--concurrency", "2", "--json") == 1
    summary = json.loads(capsys.readouterr().out)
    assert str(refusal.status) in summary["stopped"]
    assert summary["failures"] == []
    assert len(server.segmented()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "detail", "hint"),
    [
        (["--classes", "person,cats"], "classes='person,cats': choose names", "correct --classes"),
        (
            ["--contour", "99", "--mask-format", "gray"],
            "contour=99: 0 to 50; mask_format='gray': no",
            "correct --contour and --mask-format",
        ),
        (["--alpha", "0.5"], "Accept: no", "correct the options"),
        (
            ["--output", "heatmap"],
            "output=heatmap shows one class: choose it, as in classes=person",
            "set --classes",
        ),
        (
            ["--fit", "sliding", "--alpha", "7", "--picture-side", "9"],
            "output=json is of the whole photo: use fit=resize; max_side=9: more; alpha=7: 0 to 1",
            "correct --picture-side and --alpha, set --fit",
        ),
    ],
)
def test_refused_option_is_a_usage_error_that_names_the_flag(
    server: FlakyServer,
    tmp_path: Path,
    options: list[str],
    detail: str,
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The corrected command then sends every photo."""
    refusal = problem(400, "invalid-request", detail)
    server.misbehave = lambda request, nth: refusal if request.path == "/segment" else None
    photos = many(tmp_path / "photos", 20)
    assert run(server, photos, "--concurrency", "2", *options) == 2
    said = capsys.readouterr()
    assert said.err == f"deeplab-client: the service refuses the options: {detail}: {hint}\n"
    assert said.out == ""
    assert len(server.segmented()) <= 2
    server.misbehave = lambda request, nth: None
    assert run(server, photos) == 0
    assert_complete(photos, tmp_path / "out")


@pytest.mark.slow
def test_option_refused_after_some_photos_ends_the_run_with_a_summary(
    server: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This happens when the service loads another model during the run."""
    server.misbehave = lambda request, nth: (
        problem(400, "invalid-request") if len(server.segmented()) > 3 else None
    )
    photos = many(tmp_path / "photos", 10)
    assert run(server, photos, "--concurrency", "1", "--json") == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["sent"], summary["failures"]) == (3, [])
    assert "400 invalid-request" in summary["stopped"]


@pytest.mark.slow
def test_photo_named_twice_counts_once(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(photos.parent / "out")
    assert main([server.url, str(photos), str(photos / "cat.jpg"), "-o", out]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("3/3 ")
    assert said.out.startswith("3 done")


@pytest.mark.slow
def test_photo_named_twice_counts_once_in_the_next_run_too(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [server.url, str(photos), str(photos / "cat.jpg"), "-o", str(photos.parent / "out")]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--dry-run", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["send"], counts["skip"], counts["repeat"]) == (0, 3, 1)
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 3


@pytest.mark.slow
def test_another_photo_of_the_same_name_does_not_replace_a_result_in_the_next_run(
    server: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two members of a tar have one name once `..` is removed: the second fails in every run."""
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name, content in (("a.jpg", b"first"), ("../a.jpg", b"the other")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    arguments = [server.url, str(tmp_path / "photos.tar"), "-o", str(tmp_path / "out"), "--json"]
    for sent in (1, 0):
        assert main(arguments) == 1
        summary = json.loads(capsys.readouterr().out)
        assert (summary["sent"], summary["failed"]) == (sent, 1)
        assert "another photo of this run is named a.jpg" in summary["failures"][0]["reason"]
    assert server.segmented() == [b"first"]


@pytest.mark.slow
def test_photo_that_breaks_the_service_fails_alone(server: FlakyServer, photos: Path) -> None:
    """The photo never gets an answer, but the service is ready, so the other photos are sent."""
    server.misbehave = lambda request, nth: (
        Answer(200, b"xx", is_cut=True) if request.body == b"cat.jpg" else None
    )
    photos_done = main([
        *(server.url, str(photos), "-o", str(photos.parent / "out")),
        *("--give-up-after", "0.5", "--concurrency", "1", "--json"),
    ])  # fmt: skip
    assert photos_done == 1
    with Manifest(photos.parent / "out" / FILE_NAME) as manifest:
        assert manifest.counts() == {"done": 2, "failed": 1}


@pytest.mark.slow
def test_service_that_is_gone_ends_the_run_and_the_next_one_goes_on(
    server: FlakyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(request: Request, nth: int) -> Answer | None:
        is_gone = len(server.segmented()) > 10
        return Answer(200, b"xx", is_cut=True) if is_gone else None

    server.misbehave = gone
    photos = many(tmp_path / "photos", 30)
    assert run(server, photos, "--give-up-after", "0.5") == 1
    assert "run the same command again" in capsys.readouterr().out
    server.misbehave = lambda request, nth: None
    assert run(server, photos) == 0
    assert_complete(photos, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "failures"), [(("--fail-fast",), 1), (("--max-failures", "3"), 3)]
)
def test_run_stops_after_the_given_number_of_failures(
    server: FlakyServer, tmp_path: Path, option: tuple[str, ...], failures: int
) -> None:
    server.misbehave = lambda request, nth: (
        problem(422, "no") if request.path == "/segment" else None
    )
    photos = many(tmp_path / "photos", 50)
    assert run(server, photos, "--concurrency", "1", *option) == 1
    assert len(server.segmented()) == failures


@pytest.mark.slow
def test_unreadable_photo_is_a_failure_like_any_other(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "dangling.jpg").symlink_to(photos / "nowhere")
    assert run(server, photos) == 1
    assert "dangling.jpg" in capsys.readouterr().out
    assert len(server.segmented()) == 3


@pytest.mark.slow
def test_photo_named_twice_is_sent_once(server: FlakyServer, photos: Path) -> None:
    arguments = [str(photos), str(photos / "trip"), str(photos / "cat.jpg")]
    assert main([server.url, *arguments, "-o", str(photos.parent / "out")]) == 0
    assert len(server.segmented()) == 3


@pytest.mark.slow
def test_fixed_concurrency_is_kept(server: FlakyServer, tmp_path: Path) -> None:
    server.delay_s = 0.3  # long enough for all five to be in flight, even on a busy machine
    assert run(server, many(tmp_path / "photos", 15), "--concurrency", "5") == 0
    assert server.most_in_flight == 5


@pytest.mark.slow
def test_concurrency_grows_by_itself(server: FlakyServer, tmp_path: Path) -> None:
    server.delay_s = 0.3  # long enough for four to be in flight, even on a busy machine
    assert run(server, many(tmp_path / "photos", 24)) == 0
    assert server.most_in_flight >= 4


@pytest.mark.slow
def test_two_clients_cannot_write_one_folder(
    server: FlakyServer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "out").mkdir()
    with Manifest(photos.parent / "out" / FILE_NAME):
        assert run(server, photos) == 1
    assert "another client" in capsys.readouterr().err


@pytest.mark.slow
def test_full_disk_stops_the_run_and_says_so(
    server: FlakyServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trip").write_text("a file where a folder must go: every write fails")
    assert run(server, photos) == 1
    assert "cannot write below" in capsys.readouterr().out


@pytest.mark.slow
def test_moved_folders_are_still_known(server: FlakyServer, photos: Path, tmp_path: Path) -> None:
    run(server, photos)
    (tmp_path / "elsewhere").mkdir()
    for name in ("photos", "out"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    run(server, tmp_path / "elsewhere" / "photos")
    assert len(server.segmented()) == 3


# Tests that run in the background of a shell inherit an ignored SIGINT.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("service.client", run_name="__main__", alter_sys=True)
"""


def client_process(url: str, photos: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", INTERRUPTIBLE, url, str(photos), "-o", str(out)]
    return subprocess.Popen([*command, "--give-up-after", "20"], stderr=subprocess.DEVNULL)


def wait_for(count: int, out: Path) -> None:
    deadline = time.monotonic() + 20
    while len(files(out)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_client_killed_at_any_moment_loses_and_repeats_nothing(
    server: FlakyServer, tmp_path: Path
) -> None:
    server.delay_s = 0.02
    photos, out = many(tmp_path / "photos", 80), tmp_path / "out"
    for finished in (1, 30, 70):  # files there when the kill comes
        client = client_process(server.url, photos, out)
        wait_for(finished, out)
        client.send_signal(signal.SIGKILL)
        client.wait()
        sent = len(server.segmented())
    assert client_process(server.url, photos, out).wait() == 0
    assert_complete(photos, out)
    assert len(server.segmented()) - sent < 60  # what was complete was not sent again


@pytest.mark.slow
def test_interrupt_ends_at_once_and_says_how_to_go_on(server: FlakyServer, tmp_path: Path) -> None:
    server.delay_s = 0.3  # the run outlasts this process's pauses on a busy machine
    photos, out = many(tmp_path / "photos", 80), tmp_path / "out"
    client = client_process(server.url, photos, out)
    wait_for(10, out)
    client.send_signal(signal.SIGINT)
    assert client.wait(timeout=5) == 130
    server.delay_s = 0.0
    assert run(server, photos) == 0
    assert_complete(photos, out)


@pytest.mark.slow
def test_server_killed_and_started_again_costs_no_photo(tmp_path: Path) -> None:
    photos, out = many(tmp_path / "photos", 80), tmp_path / "out"
    command = [sys.executable, flaky_server.__file__]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        port = first.stdout.readline().strip()
        client = client_process(f"http://127.0.0.1:{port}", photos, out)
        wait_for(20, out)
        first.kill()
    assert client.poll() is None
    with subprocess.Popen([*command, port], stdout=subprocess.DEVNULL) as second:
        try:
            assert client.wait(timeout=30) == 0
        finally:
            second.kill()
    assert_complete(photos, out)
