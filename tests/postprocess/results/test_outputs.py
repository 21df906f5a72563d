from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from postprocess.results import outputs
from postprocess.results.outputs import Result, Wish
from postprocess.results.photo import Photo
from postprocess.results.selection import select
from postprocess.runs import Spread
from tests.postprocess.results.test_legend import facts


@pytest.fixture
def _no_search_for_cycles() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_search_for_cycles")
@pytest.mark.parametrize("max_side", [None, 20])
def test_a_photo_is_freed_as_soon_as_its_outputs_are_made(max_side: int | None) -> None:
    """A cycle would keep its pixels until Python looks for such cycles."""
    about = facts(3)
    photo = Photo((40, 30), picture=Image.new("RGB", (40, 30)))
    freed = weakref.ref(photo)
    cells = np.ones((30, 40), np.uint8)
    result = Result(photo, cells, None, Spread.none(cells.shape), about)
    wish = Wish(("mask", "overlay"), select(None, about), max_side=max_side)
    files = outputs.encode_each(result, wish)
    del photo, result
    assert set(files) == {"mask", "overlay"}
    assert freed() is None
