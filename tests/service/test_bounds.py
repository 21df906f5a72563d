"""Work that nothing can end, in threads or in the event loop, is short at the largest sizes.

Each piece is compared with something as large, in the same run: machines differ. The limits are
about four times what was measured, so that work which grows with the square of a size fails.
"""

from __future__ import annotations

import hashlib
import json
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
from tests.service.processor_time import ratio

MIB = 2**20
SIDE = 7000  # of the largest photo: 49 megapixels


@pytest.mark.slow
def test_joining_the_windows_of_the_largest_photo_takes_a_few_times_as_long_as_filling_a_map() -> (
    None
):
    """128 windows, the most that a photo may have by default; measured: 1.8 times."""
    target = InputSize(policy="fixed", height=1025, width=483, pad=(0, 0, 0))
    cut = windows.cut(np.zeros((SIDE, SIDE, 3), np.uint8), (SIDE, SIDE), target, 0.1)
    assert len(cut) == Settings.model_fields["max_windows"].default
    answers = [np.zeros((1025, 483), np.uint8)] * len(cut)

    def filled() -> object:
        return np.ones((SIDE, SIDE), np.uint8)  # as much memory, written once

    assert ratio(lambda: windows.merge(answers, cut, (SIDE, SIDE)), filled) < 5


@pytest.mark.slow
def test_packing_files_takes_a_few_times_their_digest() -> None:
    """A quarter of --max-pending-bytes by default; measured: 1.4 and 1.7 times."""
    files = {f"{number}.png": np.random.default_rng(number).bytes(4 * MIB) for number in range(16)}
    parts = {name: (body, "image/png") for name, body in files.items()}

    def digests() -> object:
        return [hashlib.sha256(body).digest() for body in files.values()]

    assert ratio(lambda: encoders.archive(files), digests) < 6
    assert ratio(lambda: packing._multipart(parts), digests) < 6


@pytest.mark.slow
def test_writing_the_largest_tensors_takes_a_few_times_what_it_must() -> None:
    """As many numbers as JSON may have, and a quarter of the most bytes; measured: 1.1 and 0.8."""
    side = int(tensors.MAX_JSON_NUMBERS**0.5)
    labels = np.full((1, side, side), 20, np.uint8)
    numbers = labels.ravel().tolist()
    as_json, as_bytes = (Call(None, None, {"labels": binary}) for binary in (False, True))
    written = ratio(
        lambda: tensors.write("m", as_json, {"labels": labels}), lambda: json.dumps(numbers)
    )
    assert written < 4
    large = np.zeros((1, SIDE, SIDE), np.uint8)
    body = large.tobytes()
    written = ratio(
        lambda: tensors.write("m", as_bytes, {"labels": large}), lambda: hashlib.sha256(body)
    )
    assert written < 4


@pytest.mark.slow
@pytest.mark.parametrize("seen", [True, False])
def test_the_event_loop_looks_at_some_rows_of_the_largest_map(seen: bool) -> None:
    """The loop estimates from these rows whether polygons will take long."""
    flat, noisy = np.zeros(SIDE, np.uint8), np.arange(SIDE, dtype=np.uint8) % 2
    step = SIDE // 1024
    row = np.arange(SIDE) % step == 0
    cells = np.where((row == seen)[:, None], noisy, flat)
    result: Any = SimpleNamespace(cells=cells)
    wish: Any = SimpleNamespace(finds_regions=True)
    assert processes._rough(result, wish) is seen
