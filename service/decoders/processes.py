"""Decode photos and encode outputs in processes, which are ended when they take too long.

Every thread here owns one process and waits for it. A photo whose request is over, or whose
decoding takes far more processor time than an honest photo, loses its process; the thread then
forks another. Photos and outputs that take long have processes of their own, so that others need
not wait for them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pixels.bands import PHOTO, Samples
from postprocess.results.outputs import Result, Wish
from service.decoders import tasks, wire
from service.decoders.nursery import Nursery
from service.decoders.wire import Array, Fields
from service.errors import ImageTooLarge, InvalidImage, Overloaded, ServiceError, StartupError
from service.images.imaging import EncodedPhoto
from service.images.prepare import HEAVY, Header, Plan, Prepared
from service.inference import cpus
from service.inference.tensors import Call, Shape

log = logging.getLogger("service.decoders")

# Processor seconds of one call. Ordinary photos take at most a tenth of it on a slow core.
OPEN_S = 2.0
PREPARE_S, PREPARE_S_PER_WORK = 2.0, 0.05e-6
TENSOR_S_PER_BYTE = 2e-6
LONG_TENSOR = 4 * 2**20  # bytes of JSON: about a second
# How long an abandoned photo may continue: most end sooner than a new process could start.
GRACE_S = 0.2
# Processor seconds to encode: for each pixel of an output it takes at most a tenth of these.
ENCODE_S, ENCODE_S_PER_PIXEL = 20.0, 1e-6
LARGE_OUTPUTS = 60_000_000  # pixels of all outputs: about a second and a half
SLOW = 6  # WebP and AVIF take this many times as long as JPEG
ROUGH = 30_000  # changes of the label along the rows: above, polygons take half a second
STUCK_S = 10.0  # photos wait, and none was done for so long
RETRY_S = 0.5  # between attempts to start a process
# Address space of a decoder: libraries, a body, and the bytes per pixel of the worst format.
BASE_BYTES, BYTES_PER_PIXEL = 512 * 2**20, 48

ON_LINUX = sys.platform == "linux"  # only Linux has shared memory without a file system

Read = Callable[[Fields, list[Array]], Any]


class DecoderEndedError(RuntimeError):
    """A decoder process ended in the middle of a photo."""


@dataclass(eq=False)
class _Process:
    """A decoder process and its connection."""

    pid: int
    connection: socket.socket


class _Task(Future[Any]):
    """A call of a decoder. Cancelling it while it runs abandons it."""

    def __init__(
        self,
        fields: Fields,
        arrays: Sequence[Array],
        data: bytes,
        read: Read,
        on_abandon: Callable[[], None],
    ) -> None:
        super().__init__()
        self.fields = fields
        self.arrays = arrays
        self.data = data
        self.read = read  # turns the answer into the result
        self.abandoned_at: float | None = None
        self.begun = False  # whether a process has already ended in the middle of it
        self._on_abandon = on_abandon

    def begin(self) -> bool:
        """Start the photo, perhaps for the second time; return False if it was cancelled."""
        if self.abandoned_at is not None:
            self.set_exception(DecoderEndedError("abandoned"))
            return False
        return self.running() or self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Cancel the call if it waits; otherwise mark it as abandoned and return False."""
        if super().cancel():
            return True
        if not self.done() and self.abandoned_at is None:
            self.abandoned_at = time.monotonic()
            self._on_abandon()
        return False


@dataclass
class _Lane:
    """Photos that wait for the same processes."""

    changed: threading.Condition
    waiting: deque[_Task] = field(default_factory=deque)
    running: dict[_Process, _Task] = field(default_factory=dict)
    progress_at: float = 0.0  # when a photo was last finished, or the first one arrived

    def add(self, task: _Task) -> None:
        """Queue a photo or outputs; outputs come first, because their photos hold memory."""
        if not self.waiting and not self.running:
            self.progress_at = time.monotonic()
        if task.fields["do"] == tasks.ENCODE:
            self.waiting.appendleft(task)
        else:
            self.waiting.append(task)

    def stuck(self, now: float) -> bool:
        """Return whether photos wait and none is being finished."""
        return bool(self.waiting or self.running) and now - self.progress_at > STUCK_S


class Processes:
    """A pool of decoder processes: `light` for most photos, `heavy` for those with much work."""

    def __init__(self, light: int, heavy: int, max_pixels: int) -> None:
        self.ended: Counter[str] = Counter()  # processes, by the reason of their end
        self._nursery = Nursery(BASE_BYTES + BYTES_PER_PIXEL * max_pixels)
        self._lock = threading.Lock()
        self._abandoned = threading.Event()
        self._closed = False
        self._processes = set[_Process]()
        self._starts = False  # whether the last attempt to start a process succeeded
        self._light = _Lane(threading.Condition(self._lock))
        self._heavy = _Lane(threading.Condition(self._lock))
        self._lanes = (self._light, self._heavy)
        for index in range(light):
            _start_thread(f"decoder-{index}", self._serve, self._light)
        for index in range(heavy):
            _start_thread(f"heavy-decoder-{index}", self._serve, self._heavy)
        _start_thread("abandoned-photos", self._end_abandoned)

    def open(self, data: bytes, max_pixels: int, samples: Samples = PHOTO) -> Future[Header]:
        """Read and check a photo's header."""
        fields = {**tasks.open_request(max_pixels, samples), "cpu_s": OPEN_S, "memory": 0}
        return self._submit(self._light, fields, data, lambda a, _: tasks.read_header(data, a))

    def prepare(self, found: Header, plan: Plan) -> Future[Prepared]:
        """Decode a photo and make a model's inputs."""
        seconds = PREPARE_S + PREPARE_S_PER_WORK * found.work
        fields = {**tasks.prepare_request(found, plan), "cpu_s": seconds, "memory": found.memory}
        lane = self._heavy if found.heavy else self._light
        data = found.data
        return self._submit(
            lane, fields, data, lambda a, arrays: tasks.read_prepared(data, plan, a, arrays)
        )

    def encode(self, found: Header, result: Result, wish: Wish) -> Future[dict[str, bytes]]:
        """Make the outputs of a photo, by name."""
        fields, arrays = tasks.encode_request(result, wish)
        slow = SLOW if wish.overlay_format in {"webp", "avif"} else 1
        pixels = found.pixels * len(wish.all_outputs) * slow
        photo = result.photo
        data = photo.data if isinstance(photo, EncodedPhoto) else b""
        again = found.work if data and photo.picture is None else 0
        seconds = ENCODE_S + ENCODE_S_PER_PIXEL * pixels + PREPARE_S_PER_WORK * again
        fields |= {"cpu_s": seconds, "memory": found.memory}
        large = again > HEAVY or pixels > LARGE_OUTPUTS or _rough(result, wish)
        lane = self._heavy if large else self._light
        return self._submit(lane, fields, data, tasks.read_outputs, arrays)

    def read_tensor(self, body: bytes, shape: Shape) -> Future[Call]:
        """Read a tensor from JSON."""
        seconds = OPEN_S + TENSOR_S_PER_BYTE * len(body)
        fields = {**tasks.tensor_request(shape), "cpu_s": seconds, "memory": len(body)}
        lane = self._heavy if len(body) > LONG_TENSOR else self._light
        return self._submit(lane, fields, body, tasks.read_call)

    def _submit(
        self, lane: _Lane, fields: Fields, data: bytes, read: Read, arrays: Sequence[Array] = ()
    ) -> Future[Any]:
        task = _Task(fields, arrays, data, read, self._abandoned.set)
        with self._lock:
            if self._closed:
                raise RuntimeError("the decoders are closed")
            lane.add(task)
            lane.changed.notify()
        return task

    @property
    def healthy(self) -> bool:
        """Whether processes can be started, and waiting photos are decoded."""
        now = time.monotonic()
        with self._lock:
            return self._starts and not any(lane.stuck(now) for lane in self._lanes)

    @property
    def busy_pids(self) -> list[int]:
        """The processes that decode a photo now."""
        with self._lock:
            return [process.pid for lane in self._lanes for process in lane.running]

    @property
    def nursery_pid(self) -> int:
        """The process that starts the others."""
        return self._nursery.pid

    def close(self) -> None:
        """Abandon all photos and end all processes."""
        with self._lock:
            self._closed = True
            waiting = [task for lane in self._lanes for task in lane.waiting]
            for process in self._processes:
                _kill(process)
            for lane in self._lanes:
                lane.changed.notify_all()
        for task in waiting:
            task.cancel()
        self._abandoned.set()
        self._nursery.close()

    def _serve(self, lane: _Lane) -> None:
        """Give the lane's photos to a process of this thread, and to a new one when that ends."""
        process: _Process | None = None
        while not self._closed:
            process = process or self._started()
            if process is None:
                continue
            task = self._next(lane, process)
            if task is not None:
                process = self._handled(lane, task, process)
            del task  # free this photo's shared memory; the next one may take long to arrive
        if process is not None:
            process.connection.close()

    def _started(self) -> _Process | None:
        """Start a process; if that is impossible, refuse the photos that wait."""
        try:
            process = _Process(*self._nursery.fork())
        except OSError as error:
            if not self._closed:
                log.warning("a decoder process could not be started: %s", error)
                self._refuse_waiting(error)
                time.sleep(RETRY_S)
            return None
        with self._lock:
            self._starts = True
            self._processes.add(process)
        return process

    def _refuse_waiting(self, error: OSError) -> None:
        with self._lock:
            self._starts = False
            left = [task for lane in self._lanes for task in lane.waiting]
            for lane in self._lanes:
                lane.waiting.clear()
        for task in left:
            if task.begin():
                task.set_exception(Overloaded(f"no decoder process could be started: {error}"))

    def _next(self, lane: _Lane, process: _Process) -> _Task | None:
        """Wait for a photo; return None when the pool is closed."""
        with self._lock:
            while not self._closed:
                while lane.waiting:
                    task = lane.waiting.popleft()
                    if task.begin():
                        lane.running[process] = task
                        return task
                lane.changed.wait()
        return None

    def _handled(self, lane: _Lane, task: _Task, process: _Process) -> _Process | None:
        """Decode a photo; return the process, or None if it has ended."""
        try:
            answer = _call(process, task)
        except ConnectionError:  # it ended before it had read all: not the photo's fault
            self._remove(lane, process, done=False)
            self._reaped(process, task)
            self._repeat(lane, task)
            return None
        except Exception:  # the process has ended, or a hostile photo made it send garbage
            self._remove(lane, process, done=False)
            self._failed(lane, task, self._reaped(process, task))
            return None
        self._remove(lane, process, done=True)
        _answer(task, *answer)
        return process

    def _remove(self, lane: _Lane, process: _Process, *, done: bool) -> None:
        with self._lock:
            del lane.running[process]
            if done:
                lane.progress_at = time.monotonic()

    def _reaped(self, process: _Process, task: _Task) -> str:
        """Return why a process has ended: "time", "abandoned" or a signal's name."""
        process.connection.close()
        with self._lock:
            self._processes.discard(process)
        try:
            status = self._nursery.reap(process.pid)
        except OSError:  # the nursery has ended, so the reason is unknown
            status = signal.SIGKILL
        number = os.WTERMSIG(status)
        if number == signal.SIGPROF:
            reason = "time"
        elif task.abandoned_at is not None:
            reason = "abandoned"
        else:
            reason = _name(number)
            log.warning("a decoder process has ended: %s", reason)
        self.ended[reason] += 1
        return reason

    def _failed(self, lane: _Lane, task: _Task, reason: str) -> None:
        """Answer for a photo whose process has ended, or decode it once more if it may be valid."""
        if reason == "time":
            task.set_exception(_too_slow(task))
        elif reason == "abandoned" or self._closed:
            task.set_exception(DecoderEndedError(reason))
        elif task.begun and task.fields["do"] == tasks.ENCODE:
            task.set_exception(DecoderEndedError(f"encoding the outputs crashes: {reason}"))
        elif task.begun:
            task.set_exception(
                InvalidImage(
                    f"decoding the image crashes ({reason}): encode the photo again, or send a JPEG"
                )
            )
        else:
            task.begun = True
            self._repeat(lane, task)

    def _repeat(self, lane: _Lane, task: _Task) -> None:
        """Make a photo the next one of its lane."""
        with self._lock:
            lane.waiting.appendleft(task)
            lane.changed.notify()

    def _end_abandoned(self) -> None:
        """End processes whose photo was abandoned GRACE_S ago."""
        pending = False
        while not self._closed:
            self._abandoned.wait(GRACE_S / 2 if pending else None)
            self._abandoned.clear()
            due = time.monotonic() - GRACE_S
            with self._lock:
                pending = False
                for lane in self._lanes:
                    for process, task in lane.running.items():
                        if task.abandoned_at is None:
                            continue
                        if task.abandoned_at <= due:
                            _kill(process)
                        pending = True


def start(number: int | None, max_pixels: int) -> Processes | None:
    """Start `number` processes, and some for photos with much work; return None for 0.

    The default is one per CPU, and one more to decode while another waits for its next photo.
    Raises StartupError.
    """
    if number is None:
        number = cpus.available() + 1 if ON_LINUX else 0
    if number and not ON_LINUX:
        raise StartupError(f"--decoders {number}: processes that decode need Linux: set 0")
    return Processes(number, max(1, number // 2), max_pixels) if number else None


def _rough(result: Result, wish: Wish) -> bool:
    """Return whether finding the regions of the labels takes long."""
    if not wish.finds_regions:
        return False
    # Samples rows: to compare all rows of a photo in windows would block the event loop for 0.1 s.
    step = max(1, len(result.cells) // 1024)
    rows = result.cells[::step]
    return step * int(np.count_nonzero(rows[:, 1:] != rows[:, :-1])) > ROUGH


def _too_slow(task: _Task) -> ServiceError:
    seconds = task.fields["cpu_s"]
    if task.fields["do"] == tasks.ENCODE:
        return ImageTooLarge(
            f"encoding the outputs takes more than {seconds:.0f} s: request fewer of them, "
            "or send a smaller image"
        )
    return InvalidImage(f"decoding the image takes more than {seconds:.0f} s: encode it again")


def _start_thread(name: str, function: Callable[..., None], *given: object) -> None:
    # A daemon: a thread that waits for its process must not keep the service from ending.
    threading.Thread(target=function, args=given, name=name, daemon=True).start()


def _call(process: _Process, task: _Task) -> tuple[Fields, list[Array]]:
    """Return a process's answer.

    Raises ConnectionError if it has ended before it had read the whole request: Linux resets a
    Unix socket whose other side is closed with unread bytes. Raises EOFError if it ended later.
    """
    wire.send(process.connection, task.fields, task.arrays, task.data)
    answer = wire.receive(process.connection, max_data=0)
    return answer.fields, answer.arrays


def _answer(task: _Task, fields: Fields, arrays: list[Array]) -> None:
    try:
        if "failed" in fields:
            raise RuntimeError(f"a decoder failed: {fields['failed']}")
        result = task.read(fields, arrays)
    except Exception as error:
        task.set_exception(error)
    else:
        task.set_result(result)


def _kill(process: _Process) -> None:
    """End a process. Its thread reaps it later, so the id still belongs to it here."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "exit"
