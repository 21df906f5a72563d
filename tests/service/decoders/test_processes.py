"""Decoder processes: the same results as threads, and no photo can hold them for long."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from postprocess.areas import area
from postprocess.refine import Refinement
from postprocess.results.outputs import NEEDS_PHOTO, Wish
from postprocess.results.selection import select
from postprocess.windows import Sliding
from service.bench import vitals
from service.decoders import processes
from service.decoders.interface import Threads
from service.decoders.processes import Processes
from service.errors import ImageTooLarge, InvalidImage, ServiceError
from service.images import join
from service.images.prepare import Plan
from service.inference.contract import InputSize
from service.inference.engine import Prediction
from tests.service import onnx_models
from tests.service.web import photo, png

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="decoder processes need Linux")

TARGET = InputSize(policy="fixed", height=48, width=64, pad=(1, 2, 3))
MASK, OVERLAY = Plan(TARGET, None, whole=False), Plan(TARGET, None, whole=True)
SMOOTH = Plan(TARGET, None, whole=True, decoded=True)
CONTRACT = onnx_models.contract(
    input=TARGET, confidence=True, probability_grid="centres", classes=("background", "dim", "lit")
)
ALL, ONE = select(None, CONTRACT), select("dim", CONTRACT)
REFINED = Refinement((0.5, 0.5, 0.5), 0, area("min_area", "9"), area("fill_holes", "30"))
WINDOWS = Plan(TARGET, Sliding(0.25, 300), whole=True)
SMOOTH_WINDOWS = Plan(TARGET, Sliding(0.25, 300), whole=False, decoded=True)
PLANS = {
    "mask": MASK,
    "overlay": OVERLAY,
    "smooth": SMOOTH,
    "windows": WINDOWS,
    "smooth windows": SMOOTH_WINDOWS,
}
EMPTY_SCAN = bytes.fromhex("ffda0008010100010100")  # coefficient 1 of component 1, without data


@pytest.fixture
def pool() -> Iterator[Processes]:
    pool = Processes(light=1, heavy=1, max_pixels=10**8)
    until(lambda: pool.healthy)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A photo that takes half a second and counts as much work: a JPEG of 80 scans."""
    out = io.BytesIO()
    Image.new("RGB", (7000, 7000), "blue").save(out, "JPEG", progressive=True)
    data = out.getvalue()
    missing = 80 - data.count(b"\xff\xda")
    return data[:-2] + EMPTY_SCAN * missing + data[-2:]


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def decoding(pool: Processes) -> int:
    """Wait until one process has read its photo and works on it; return its id."""
    until(lambda: len(pool.busy_pids) == 1)
    (pid,) = pool.busy_pids
    before = vitals.tree_cpu_s(pid)
    until(lambda: vitals.tree_cpu_s(pid) > before + 0.02)
    return pid


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.fromarray(photo(height, width)).save(out, "JPEG", exif=exif)
    return out.getvalue()


PHOTOS = {
    "small": png(photo(30, 40)),
    "of the model's size": png(photo(48, 64)),
    "reduced": jpeg(700, 500),
    "turned": jpeg(90, 60, orientation=6),
    "narrow": png(photo(200, 20)),
}


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_results_are_those_of_threads(pool: Processes, plan: Plan) -> None:
    """Model inputs, size, orientation and kept picture are equal for every kind of photo."""
    with ThreadPoolExecutor(1) as threads:
        for name, data in PHOTOS.items():
            made = []
            for decoders in (pool, Threads(threads)):
                found = decoders.open(data, 10**6).result(20)
                prepared = decoders.prepare(found, plan).result(20)
                made.append((found.size, found.work, found.memory, prepared))
                assert 0 < found.cpu_s < 1, name
                assert 0 < prepared.cpu_s < 1, name
            (*ours, mine), (*theirs, other) = made
            assert ours == theirs, name
            assert mine.photo.size == other.photo.size
            assert mine.photo.orientation == other.photo.orientation
            pairs = list(zip(mine.pixels, other.pixels, strict=True))
            assert all((left == right).all() for left, right in pairs), name
            if plan.whole:
                assert (np.asarray(mine.photo.whole) == np.asarray(other.photo.whole)).all(), name
            if plan.decoded:
                kept = [np.asarray(each.photo.decoded) for each in (mine, other)]
                assert (kept[0] == kept[1]).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("size", [(40, 50), (48, 64), (90, 100)])
def test_bands_are_those_of_threads(pool: Processes, plan: Plan, size: tuple[int, int]) -> None:
    """Of a 16-bit file of four bands: inputs have four channels, pictures the first three."""
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 65_536, (*size, 4)).astype(np.uint16)
    tifffile.imwrite(out, pixels, photometric="minisblack", planarconfig="contig", metadata=None)
    target = TARGET.model_copy(update={"pad": (1, 2, 3, 4), "sample_range": (0, 40_000)})
    plan = replace(plan, target=target)
    made = []
    with ThreadPoolExecutor(1) as threads:
        for decoders in (pool, Threads(threads)):
            found = decoders.open(out.getvalue(), 10**6, target.samples).result(20)
            made.append(decoders.prepare(found, plan).result(20))
    mine, other = made
    assert mine.pixels[0].shape == (TARGET.height, TARGET.width, 4)
    pairs = list(zip(mine.pixels, other.pixels, strict=True))
    assert all((left == right).all() for left, right in pairs)
    shown = (pixels * (255 / 40_000) + 0.5).clip(0, 255).astype(np.uint8)[..., :3]
    if plan.whole:
        assert (np.asarray(mine.photo.whole) == shown).all()
    if plan.decoded:
        assert (np.asarray(mine.photo.decoded) == shown).all()


ASKED = {
    "mask": Wish(("mask",), ALL),
    "pictures": Wish(("overlay", "cutout", "side-by-side"), ALL, contour=2),
    "small pictures": Wish(("overlay", "mask", "color", "blur", "confidence"), ALL, max_side=40),
    "shapes": Wish(("polygons", "rle", "npz"), ONE, instances=True, refinement=REFINED),
    "probabilities": Wish(("probabilities", "json"), ALL, top=2, include=("overlay", "mask")),
    "smooth": Wish(("mask", "polygons"), ALL, smooth=True, simplify=1.5),
    "smooth pictures": Wish(("overlay", "cutout"), ALL, smooth=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("sliding", [None, Sliding(0.25, 300)], ids=["shrunk", "windows"])
@pytest.mark.parametrize("name", ["small", "reduced", "turned", "narrow"])
def test_outputs_are_those_of_threads(
    pool: Processes, asked: str, sliding: Sliding | None, name: str
) -> None:
    """Every kind of output is the same, byte for byte, in a process and in a thread."""
    data, wish = PHOTOS[name], ASKED[asked]
    plan = Plan(TARGET, sliding, not NEEDS_PHOTO.isdisjoint(wish.all_outputs), wish.smooth)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (12, 16), np.uint8).repeat(4, 0).repeat(4, 1)
    sure = rng.integers(100, 256, labels.shape, np.uint8)
    chances = rng.integers(0, 256, (3, 12, 16), np.uint8)
    made = []
    with ThreadPoolExecutor(1) as threads:
        for decoders in (pool, Threads(threads)):
            found = decoders.open(data, 10**6).result(20)
            prepared = decoders.prepare(found, plan).result(20)
            predictions = [Prediction(labels, sure, chances)] * len(prepared.pixels)
            result = join.result(prepared, predictions, CONTRACT)
            made.append(decoders.encode(found, result, wish).result(20))
    assert list(made[0]) == list(wish.outputs)
    assert made[0] == made[1]


@pytest.mark.slow
def test_outputs_that_are_abandoned_end_their_process(
    pool: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding stops soon after its request is over, and the next photo is encoded."""
    monkeypatch.setattr(processes, "GRACE_S", 0.02)
    wish = replace(ASKED["pictures"], overlay_format="png")
    data = jpeg(6000, 4000)
    found = pool.open(data, 10**8).result(20)
    prepared = pool.prepare(found, OVERLAY).result(20)
    labels = np.zeros((48, 64), np.uint8)
    result = join.result(prepared, [Prediction(labels, None, None)], CONTRACT)
    task = pool.encode(found, result, wish)
    until(lambda: len(pool.busy_pids) == 1)
    (pid,) = pool.busy_pids
    task.cancel()
    until(lambda: not alive(pid))
    until(lambda: pool.ended == {"abandoned": 1})
    assert list(pool.encode(found, result, ASKED["mask"]).result(20)) == ["mask"]


@pytest.mark.slow
def test_outputs_of_too_much_processor_time_are_refused(
    pool: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to change; it is the answer's size, not a broken photo."""
    data = jpeg(6000, 4000)
    found = pool.open(data, 10**8).result(20)
    prepared = pool.prepare(found, OVERLAY).result(20)
    labels = np.zeros((48, 64), np.uint8)
    result = join.result(prepared, [Prediction(labels, None, None)], CONTRACT)
    for name in ("ENCODE_S", "ENCODE_S_PER_PIXEL", "PREPARE_S_PER_WORK"):
        monkeypatch.setattr(processes, name, 0.005 if name == "ENCODE_S" else 0.0)
    with pytest.raises(ImageTooLarge, match="request fewer of them"):
        pool.encode(found, result, ASKED["pictures"]).result(20)
    assert pool.ended == {"time": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"hello", InvalidImage, "not an image"),
        (b"", InvalidImage, "the body is empty"),
        (png(photo(40, 60)), ImageTooLarge, "60 x 40 = 2400 pixels, the limit is 1000"),
    ],
)
def test_refusals_are_those_of_the_service(
    pool: Processes, data: bytes, error: type[ServiceError], says: str
) -> None:
    """A photo that is refused raises the same error with the same text, and costs no process."""
    with pytest.raises(error, match=says):
        pool.open(data, 1000).result(20)
    assert pool.open(PHOTOS["small"], 10**6).result(20).size == (40, 30)
    assert not pool.ended


@pytest.mark.slow
def test_broken_photo_is_refused_when_it_is_decoded(pool: Processes) -> None:
    """The header is fine, the pixels are cut off."""
    found = pool.open(PHOTOS["reduced"][:3000], 10**6).result(20)
    with pytest.raises(InvalidImage, match="truncated or broken"):
        pool.prepare(found, MASK).result(20)


@pytest.mark.slow
def test_abandoned_photo_loses_its_process_and_the_next_is_decoded(
    pool: Processes, slow: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled call ends its process, is counted, and the lane goes on with a new one."""
    monkeypatch.setattr(processes, "GRACE_S", 0.02)
    found = pool.open(slow, 10**8).result(20)
    task = pool.prepare(found, OVERLAY)
    until(lambda: len(pool.busy_pids) == 1)
    (pid,) = pool.busy_pids
    task.cancel()
    with pytest.raises((processes.DecoderEndedError, CancelledError)):
        task.result(20)
    until(lambda: not alive(pid))
    assert pool.ended == {"abandoned": 1}
    assert pool.prepare(found, MASK).result(20).photo.size == (7000, 7000)


@pytest.mark.slow
def test_photo_that_is_done_soon_after_it_was_abandoned_keeps_its_process(pool: Processes) -> None:
    """Clients that leave early do not cost a new process each."""
    for _ in range(5):
        pool.open(PHOTOS["reduced"], 10**6).cancel()
    assert pool.open(PHOTOS["small"], 10**6).result(20).size == (40, 30)
    assert not pool.ended


@pytest.mark.slow
def test_photo_of_too_much_processor_time_is_refused(
    pool: Processes, slow: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel ends the process inside of libjpeg; the photo is refused, the next is decoded."""
    found = pool.open(slow, 10**8).result(20)
    monkeypatch.setattr(processes, "PREPARE_S", 0.05)
    monkeypatch.setattr(processes, "PREPARE_S_PER_WORK", 0.0)
    with pytest.raises(InvalidImage, match="takes more than 0 s"):
        pool.prepare(found, OVERLAY).result(20)
    monkeypatch.undo()
    assert pool.ended == {"time": 1}
    assert pool.prepare(found, MASK).result(20).photo.size == (7000, 7000)


@pytest.mark.slow
def test_killed_decoder_costs_no_photo(pool: Processes, slow: bytes) -> None:
    """A photo whose process is killed once is decoded again by the next."""
    found = pool.open(slow, 10**8).result(20)
    task = pool.prepare(found, MASK)
    os.kill(decoding(pool), signal.SIGKILL)
    assert task.result(20).photo.size == (7000, 7000)
    assert pool.ended == {"SIGKILL": 1}


def test_decoders_killed_while_they_wait_cost_no_photo() -> None:
    """Each is replaced, however many there were: the photo did not crash them."""
    several = Processes(light=3, heavy=1, max_pixels=10**8)
    try:
        until(lambda: several.healthy and len(children_of(several.nursery_pid)) == 4)
        for pid in children_of(several.nursery_pid):
            os.kill(pid, signal.SIGKILL)
        assert several.open(PHOTOS["small"], 10**6).result(20).size == (40, 30)
        assert several.ended["SIGKILL"] >= 1
    finally:
        several.close()


def test_decoders_killed_before_they_read_their_photo_cost_it_no_try() -> None:
    """Three are stopped, and each is killed as soon as the photo was sent to it."""
    several = Processes(light=3, heavy=1, max_pixels=10**8)
    try:
        until(lambda: several.healthy and len(children_of(several.nursery_pid)) == 4)
        stopped = set(children_of(several.nursery_pid))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        task = several.open(PHOTOS["small"], 10**6)
        for _ in range(3):
            until(lambda: bool(task.done() or stopped & set(several.busy_pids)))
            for pid in stopped & set(several.busy_pids):
                os.kill(pid, signal.SIGKILL)
                stopped.remove(pid)
        assert task.result(20).size == (40, 30)
        assert several.ended["SIGKILL"] >= 2
    finally:
        several.close()


def test_photo_that_crashes_two_decoders_is_refused(pool: Processes, slow: bytes) -> None:
    """A photo is tried twice, not for ever; the signal is named."""
    found = pool.open(slow, 10**8).result(20)
    task = pool.prepare(found, OVERLAY)
    for times in (1, 2):
        os.kill(decoding(pool), signal.SIGSEGV)
        until(lambda times=times: pool.ended["SIGSEGV"] == times)  # type: ignore[misc]
    with pytest.raises(InvalidImage, match=r"crashes \(SIGSEGV\)"):
        task.result(20)


@pytest.mark.slow
def test_killed_nursery_is_replaced(pool: Processes, slow: bytes) -> None:
    """Decoders go on without the process that started them, and a new one starts the next."""
    found = pool.open(slow, 10**8).result(20)
    os.kill(pool.nursery_pid, signal.SIGKILL)
    task = pool.prepare(found, OVERLAY)
    os.kill(decoding(pool), signal.SIGKILL)
    assert task.result(30).photo.size == (7000, 7000)
    until(lambda: pool.healthy)


@pytest.mark.slow
def test_photo_of_much_work_does_not_delay_others(pool: Processes, slow: bytes) -> None:
    """With one process for each kind, an ordinary photo is done while a heavy one is decoded."""
    task = pool.prepare(pool.open(slow, 10**8).result(20), OVERLAY)
    os.kill(decoding(pool), signal.SIGSTOP)
    small = pool.open(PHOTOS["small"], 10**6).result(20)
    assert pool.prepare(small, MASK).result(20).photo.size == (40, 30)
    assert not task.done()


@pytest.mark.slow
def test_pool_is_unhealthy_while_waiting_photos_make_no_progress(
    pool: Processes, slow: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process makes the pool unhealthy until it continues."""
    monkeypatch.setattr(processes, "STUCK_S", 0.1)
    task = pool.prepare(pool.open(slow, 10**8).result(20), MASK)
    until(lambda: len(pool.busy_pids) == 1)
    (pid,) = pool.busy_pids
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not pool.healthy)
    os.kill(pid, signal.SIGCONT)
    task.result(20)
    assert pool.healthy


@pytest.mark.slow
def test_photo_that_needs_more_memory_than_allowed_is_refused(
    slow: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """196 MB of pixels exceed the limit of the address space, and no process is lost."""
    monkeypatch.setattr(processes, "BASE_BYTES", 250 * 2**20)
    monkeypatch.setattr(processes, "BYTES_PER_PIXEL", 0)
    pool = Processes(light=1, heavy=1, max_pixels=10**8)
    try:
        found = pool.open(slow, 10**8).result(20)
        with pytest.raises((ImageTooLarge, InvalidImage)):
            pool.prepare(found, OVERLAY).result(20)
        assert not pool.ended
    finally:
        pool.close()


@pytest.mark.slow
def test_closed_pool_leaves_no_process(slow: bytes) -> None:
    """Closing ends the processes that decode, those that wait and the nursery."""
    pool = Processes(light=2, heavy=1, max_pixels=10**8)
    pool.prepare(pool.open(slow, 10**8).result(20), OVERLAY)
    until(lambda: len(pool.busy_pids) == 1)
    nursery, children = pool.nursery_pid, children_of(pool.nursery_pid)
    assert len(children) == 3
    pool.close()
    until(lambda: not any(map(alive, [nursery, *children])))


@pytest.mark.slow
def test_decoders_end_with_a_service_that_is_killed() -> None:
    """After SIGKILL of their parent neither the nursery nor its decoders remain."""
    code = (
        "import time; from service.decoders.processes import Processes\n"
        "pool = Processes(1, 1, 10**6); pool.open(b'x', 1).exception()\n"
        "print(pool.nursery_pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        nursery = int(parent.stdout.readline())
        until(lambda: len(children_of(nursery)) == 2)  # one may have answered before the other
        pids = [nursery, *children_of(nursery)]
        parent.kill()
    until(lambda: not any(map(alive, pids)))


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in path.read_text(encoding="ascii").split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
