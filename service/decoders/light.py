"""Handle small plain photos in threads, and all others in processes.

A process costs 3 ms for decoding and 3 ms for encoding, as each hand-over waits for the scheduler.
A JPEG without a profile is at most LIGHT work, whatever its sender wrote: its header says how
many pixels it has, and its scans are counted. So it needs no process that can be ended.
"""

from __future__ import annotations

from concurrent.futures import Future

from pixels.bands import PHOTO, Samples
from postprocess.results.outputs import Result, Wish
from service.decoders.interface import Decoders, Threads
from service.images import scans
from service.images.prepare import Header, Plan, Prepared
from service.inference.tensors import Call, Shape

LIGHT = 2_500_000  # work, as `Header.work` counts it: about 20 ms on one core
LIGHT_BYTES = 1_000_000  # of a file to decode
OPEN_BYTES = 20_000_000  # of a file to open: its scans are counted, at 0.5 ms a megabyte
# Outputs that take a few milliseconds, whatever the labels are.
LIGHT_OUTPUTS = {"mask", "color", "overlay", "confidence"}


class LightInThreads:
    """Decoders in threads for photos and outputs of little work, in processes for all others."""

    def __init__(self, threads: Threads, processes: Decoders) -> None:
        self._threads = threads
        self._processes = processes
        self.ended = processes.ended

    @property
    def healthy(self) -> bool:
        """Whether the processes decode photos."""
        return self._processes.healthy

    def open(self, data: bytes, max_pixels: int, samples: Samples = PHOTO) -> Future[Header]:
        """Read and check a photo's header."""
        light = len(data) <= OPEN_BYTES and scans.plain_pixels(data) > 0
        return (self._threads if light else self._processes).open(data, max_pixels, samples)

    def prepare(self, found: Header, plan: Plan) -> Future[Prepared]:
        """Decode a photo and make a model's inputs."""
        light = _is_light(found) and plan.sliding is None
        return (self._threads if light else self._processes).prepare(found, plan)

    def encode(self, found: Header, result: Result, wish: Wish) -> Future[dict[str, bytes]]:
        """Make the outputs of a photo, by name."""
        light = _is_light(found) and _has_light_outputs(wish)
        return (self._threads if light else self._processes).encode(found, result, wish)

    def read_tensor(self, body: bytes, shape: Shape) -> Future[Call]:
        """Read a tensor from JSON."""
        return self._processes.read_tensor(body, shape)

    def close(self) -> None:
        """Abandon all photos in processes; the few that are in threads end soon."""
        self._processes.close()


def _is_light(found: Header) -> bool:
    opened_here = found.opened is not None
    return opened_here and len(found.data) <= LIGHT_BYTES and found.work <= LIGHT


def _has_light_outputs(wish: Wish) -> bool:
    """Whether outputs of a light photo take about as long as decoding it."""
    regions = wish.instances or wish.refinement.min_area or wish.refinement.fill_holes
    slow = regions or wish.smooth or wish.overlay_format in {"webp", "avif"}
    return not slow and wish.all_outputs <= LIGHT_OUTPUTS
