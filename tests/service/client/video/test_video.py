"""`deeplab-client clip.mp4 -o out.mp4`: labels, times and sound of a video."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.client.cli import main
from service.client.video.frames import Frame, Source
from service.client.video.labels import Legend
from service.client.video.run import completed
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import opened, photo, png, post, serving

from . import clips

SIZE = (48, 64)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAB_DEVICE", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "light.onnx")
    return folder


@pytest.fixture
def here(models: Path) -> list[str]:
    return ["--local", "--models", str(models)]


PICTURES = [photo(*SIZE, seed=seed) for seed in range(6)]


def test_masks_are_the_labels_of_every_frame_at_its_time_and_sound_is_kept(
    here: list[str], tmp_path: Path
) -> None:
    """Frame times are uneven. Sound packets are compared byte for byte."""
    times = [0, 40, 120, 130, 300, 420]
    clip = clips.save(tmp_path / "clip.mkv", PICTURES, times_ms=times, sound="libopus")
    out = tmp_path / "out" / "masks.mkv"
    assert main([*here, str(clip), "-o", str(out), "--output", "mask"]) == 0
    masks, seen = clips.load(out, "gray")
    for mask, picture in zip(masks, PICTURES, strict=True):
        assert (mask == onnx_models.expected(picture)).all()
    assert seen == pytest.approx([each / 1000 for each in times])
    assert clips.sounds(out) == clips.sounds(clip)
    assert [path.name for path in out.parent.iterdir()] == ["masks.mkv"]


@pytest.mark.slow
@pytest.mark.parametrize("output", ["overlay", "color"])
def test_a_video_of_a_service_has_the_colours_of_the_classes(
    output: str, models: Path, tmp_path: Path
) -> None:
    """They agree up to H.264's compression. The background of an overlay is the photo."""
    pictures = [photo(96, 128, seed=seed).repeat(4, 0).repeat(4, 1)[:96, :128] for seed in (1, 2)]
    clip = clips.save(tmp_path / "clip.mkv", pictures)
    with running(models) as (url, _):
        command = [url, str(clip), "-o", str(tmp_path / "out.mp4"), "--output", output]
        assert main([*command, "--alpha", "0.7"]) == 0
    found, _ = clips.load(tmp_path / "out.mp4")
    for each, picture in zip(found, pictures, strict=True):
        labels = onnx_models.expected(picture)
        colors = np.array(onnx_models.PALETTE, np.uint8)[labels].astype(float)
        shares = np.where(labels > 0, 0.7, 0.0)[..., None]
        expected = colors if output == "color" else picture * (1 - shares) + colors * shares
        assert np.abs(each - expected).mean() < 8


def test_the_legend_of_a_video_is_that_of_photos(
    here: list[str], models: Path, tmp_path: Path
) -> None:
    """As the service draws it into the overlay of a frame, up to H.264's compression."""
    picture = photo(60, 80).repeat(4, 0).repeat(4, 1)
    clip = clips.save(tmp_path / "clip.mkv", [picture] * 2)
    out = tmp_path / "out.mp4"
    assert main([*here, str(clip), "-o", str(out), "--legend", "--alpha", "0.7"]) == 0
    found, _ = clips.load(out)
    with serving(models) as client:
        asked: dict[str, Any] = {"output": "overlay", "alpha": 0.7, "overlay_format": "png"}
        plain, drawn = (
            opened(post(client, png(picture), **asked, legend=legend).content).astype(float)
            for legend in (False, True)
        )
    panel = (plain != drawn).any(axis=2)
    assert 500 < panel.sum() < 0.2 * panel.size
    for frame in found:
        assert np.abs(frame - drawn)[panel].mean() < 12
        assert np.abs(frame - plain)[panel].mean() > 40


def test_the_legend_stays_in_its_corner() -> None:
    """The second frame's class lies behind it; a photo's legend would go elsewhere."""
    shown = np.arange(256) == 1
    legend = Legend(("background", "cat"), ((0, 0, 0), (200, 0, 0)), shown)
    frames, maps = [np.full((240, 320, 3), 90, np.uint8)] * 2, np.zeros((2, 240, 320), np.uint8)
    maps[0, :100, :100], maps[1, 140:, :100] = 1, 1
    rows = [
        np.flatnonzero((legend.drawn(frame, labels) != frame).any(axis=(1, 2)))
        for frame, labels in zip(frames, maps, strict=True)
    ]
    assert rows[0].min() > 120
    assert (rows[1] == rows[0]).all()
    empty = legend.drawn(frames[0], np.zeros((240, 320), np.uint8))
    assert (empty == frames[0]).all()


def test_packets_without_times_are_decoded_too(tmp_path: Path) -> None:
    """A bare H.264 stream, as some cameras write it, has neither pts nor dts."""
    clip = clips.save(tmp_path / "clip.h264", PICTURES, codec="libx264")
    with Source(clip) as source:
        frames = [each for each in source if isinstance(each, Frame)]
        assert source.damaged == 0
    assert len(frames) == len(PICTURES)
    steps = {after.pts - before.pts for before, after in pairwise(frames)}
    assert steps == {round(1 / source.rate / source.time_base)}


def test_a_cancelled_run_waits_for_the_thread_that_uses_its_files() -> None:
    """FFmpeg would crash if its file were closed meanwhile."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    async def cancelled() -> None:
        task = asyncio.create_task(completed(work))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert ended.is_set()


@pytest.mark.slow
def test_odd_sizes_gain_a_row_and_a_column(here: list[str], tmp_path: Path) -> None:
    clip = clips.save(tmp_path / "clip.mkv", [photo(33, 47)])
    assert main([*here, str(clip), "-o", str(tmp_path / "out.mp4")]) == 0
    (found,), _ = clips.load(tmp_path / "out.mp4")
    assert found.shape == (34, 48, 3)


@pytest.mark.slow
def test_a_video_on_its_side_is_turned_upright(here: list[str], tmp_path: Path) -> None:
    """As phones write it: the matrix in an MP4's track says a quarter turn clockwise."""
    lying = np.zeros((48, 64, 3), np.uint8)
    lying[:, :32, 0] = 255  # its left half is the top of the upright picture
    clip = clips.save(tmp_path / "clip.mp4", [lying], codec="libx264")
    plain = bytes.fromhex("00010000" + "00" * 12 + "00010000" + "00" * 12 + "40000000")
    turned = bytes.fromhex("0000000000010000" + "00" * 4 + "ffff0000" + "00" * 16 + "40000000")
    content = clip.read_bytes()
    at = content.index(plain, content.index(b"tkhd"))
    clip.write_bytes(content[:at] + turned + content[at + len(turned) :])
    out = tmp_path / "out.mkv"
    assert main([*here, str(clip), "-o", str(out), "--output", "mask"]) == 0
    (mask,), _ = clips.load(out, "gray")
    assert mask.shape == (64, 48)
    assert (mask[:30] == 2).all()
    assert (mask[34:] == 0).all()


@pytest.mark.slow
def test_smoothing_removes_what_shows_in_one_frame_only(here: list[str], tmp_path: Path) -> None:
    still, flash = np.zeros((*SIZE, 3), np.uint8), np.full((*SIZE, 3), 255, np.uint8)
    clip = clips.save(tmp_path / "clip.mkv", [still, still, flash, still, flash, flash, flash])
    out = tmp_path / "out.mkv"
    for window, expected in (("1", [0, 0, 2, 0, 2, 2, 2]), ("3", [0, 0, 0, 2, 2, 2, 2])):
        command = [*here, str(clip), "-o", str(out), "--output", "mask", "--steady", window]
        assert main(command) == 0
        masks, _ = clips.load(out, "gray")
        assert [int(mask[0, 0]) for mask in masks] == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(here: list[str], tmp_path: Path) -> None:
    """120 frames take 28 MB; only those in flight and in the window are held."""
    still = photo(240, 320)
    clip = clips.save(tmp_path / "clip.mkv", [still] * 120)
    command = [*here, str(clip), "-o", str(tmp_path / "out.mkv"), "--output", "mask"]
    tracemalloc.start()
    try:
        assert main([*command, "--concurrency", "2", "--steady", "5"]) == 0
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_damaged_packets_are_counted(
    here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = clips.save(tmp_path / "clip.mkv", PICTURES)
    content = bytearray(clip.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    clip.write_bytes(content)
    out = str(tmp_path / "out.mp4")
    assert main([*here, str(clip), "-o", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 3 <= told["frames"] <= 6
    assert told["damaged"] == len(PICTURES) - told["frames"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{tmp}/out"], "-o {tmp}/out must name one, such as out.mp4"),
        (["-o", "{tmp}/clip.mkv"], "is the input: name another file"),
        (["-o", "{tmp}/o.mp4", "--output", "json"], "for a video, one of overlay, color, mask"),
        (["-o", "{tmp}/o.mp4", "--output", "mask"], ".mp4 cannot keep class ids"),
        (["-o", "{tmp}/o.mp4", "--report"], "--report is not for videos"),
        (["-o", "{tmp}/o.mp4", "--legend", "--output", "color"], "leave out --output color"),
        (["-o", "{tmp}/o.mp4", "--classes", "cow"], "correct --classes"),
        (["-o", "{tmp}/o.webm"], "cannot hold the sound (pcm_s16le) unchanged: name it o.mkv"),
        (["{tmp}/more.jpg", "-o", "{tmp}/o.mp4"], "is a video: give it alone"),
    ],
)
def test_wrong_call_exits_2_and_leaves_nothing(
    arguments: list[str],
    message: str,
    here: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = clips.save(tmp_path / "clip.mkv", PICTURES[:2], sound="pcm_s16le")
    assert main([*here, str(clip), *(each.format(tmp=tmp_path) for each in arguments)]) == 2
    assert message.format(tmp=tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mkv"]


@pytest.mark.parametrize("window", ["2", "0", "33"])
def test_a_window_that_has_no_middle_exits_2(window: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--local", "clip.mp4", "-o", str(tmp_path / "out.mp4"), "--steady", window])
    assert caught.value.code == 2


def test_photos_are_not_smoothed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--local", str(tmp_path), "-o", str(tmp_path / "out"), "--steady", "3"]) == 2
    assert "--steady is for videos" in capsys.readouterr().err


def test_a_file_that_is_not_a_video_exits_2(
    here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video at all" * 99)
    for name in ("clip.mp4", "missing.mp4"):
        assert main([*here, str(tmp_path / name), "-o", str(tmp_path / "out.mp4")]) == 2
        assert name in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["av"] = None
from service.client.cli import main
sys.exit(main(["--local", "clip.mp4", "-o", {str(tmp_path / "out.mp4")!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "videos need av, which is not installed" in done.stderr
    assert "pip install '.[video]'" in done.stderr
