"""Work that nothing can end, in threads or in the event loop, is short at the largest sizes.

All in processor time of the thread: four times what it takes on an idle machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from postprocess import windows
from postprocess.results import encoders
from service.decoders import processes
from service.http import packing
from service.inference import tensors
from service.inference.contract import InputSize
from service.inference.tensors import Call
from service.settings import Settings

MIB = 2**20
SIDE = 7000  # of the largest photo: 49 megapixels


def seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


@pytest.mark.slow
def test_joining_the_windows_of_the_largest_photo_takes_little_time() -> None:
    """0.035 s for 64 windows, the most that a photo may have by default."""
    target = InputSize(policy="fixed", height=1025, width=1025, pad=(0, 0, 0))
    cut = windows.cut(np.zeros((SIDE, SIDE, 3), np.uint8), (SIDE, SIDE), target, 0.1)
    assert len(cut) == Settings.model_fields["max_windows"].default
    answers = [np.zeros((1025, 1025), np.uint8)] * len(cut)
    assert seconds(lambda: windows.merge(answers, cut, (SIDE, SIDE))) < 0.15


@pytest.mark.slow
def test_packing_files_takes_little_time() -> None:
    """0.3 and 0.4 s for 256 MiB, the default of --max-pending-bytes; here a quarter of it."""
    files = {f"{number}.png": np.random.default_rng(number).bytes(4 * MIB) for number in range(16)}
    assert seconds(lambda: encoders.archive(files)) < 0.4
    parts = {name: (body, "image/png") for name, body in files.items()}
    assert seconds(lambda: packing._multipart(parts)) < 0.4


@pytest.mark.slow
def test_writing_the_largest_tensors_takes_little_time() -> None:
    """0.16 s for as many numbers as JSON may have, 0.26 s for 196 MB of bytes; here a quarter."""
    side = int(tensors.MAX_JSON_NUMBERS**0.5)
    labels = np.full((1, side, side), 20, np.uint8)
    as_json, as_bytes = (Call(None, None, {"labels": binary}) for binary in (False, True))
    assert seconds(lambda: tensors.write("m", as_json, {"labels": labels})) < 0.7
    large = np.zeros((1, SIDE, SIDE), np.uint8)
    assert seconds(lambda: tensors.write("m", as_bytes, {"labels": large})) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("period", "rough"), [(2, True), (SIDE, False)])
def test_the_event_loop_looks_at_the_largest_map_for_a_moment(period: int, rough: bool) -> None:
    """Whether polygons will take long is decided in it: 0.004 s, by some of the rows."""
    cells = np.tile(np.arange(SIDE, dtype=np.int64) // (period // 2) % 2, (SIDE, 1))
    result: Any = SimpleNamespace(cells=cells.astype(np.uint8))
    wish: Any = SimpleNamespace(simplify=0.0, instances=False, all_outputs={"polygons"})
    found = []
    assert seconds(lambda: found.append(processes._rough(result, wish))) < 0.02
    assert found == [rough]
