"""Refined label maps from Python: the functions of `postprocess`, in pixels of the photo."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import model
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import probabilities, served_map, shrunk
from postprocess.areas import Area
from postprocess.errors import InvalidOption
from postprocess.regions import Regions, without_holes, without_small
from tests.model.nets import photo, tiny

IMAGE = photo(140, 97)  # larger than the crop size of 65 x 65


@pytest.fixture(scope="module")
def net() -> DeepLabV3Plus:
    net = tiny()
    net.classes = ("cat", "background", "dog", "cow", "car")
    return net


def test_without_options_the_labels_are_the_served_ones(net: DeepLabV3Plus) -> None:
    assert (model.predict(net, IMAGE) == served_map(net, IMAGE)).all()


@pytest.mark.parametrize("way", [{}, {"whole": True}, {"overlap": 0.25}])
def test_areas_count_pixels_of_the_photo(net: DeepLabV3Plus, way: dict[str, Any]) -> None:
    plain = model.predict(net, IMAGE, **way)
    cleaned = model.predict(net, IMAGE, min_area=60, fill_holes="100%", **way)
    assert (cleaned == without_holes(without_small(plain, Area(60)), Area(1, True), {1})).all()
    assert (cleaned != plain).any()
    assert Regions.of(cleaned).areas.min() >= 60


def test_unsure_pixels_become_background_or_void(net: DeepLabV3Plus) -> None:
    fitted = shrunk(IMAGE, net.config.crop_size)
    middle = round(float(np.median(probabilities(net, fitted).max(axis=0))), 3)
    plain = model.predict(net, IMAGE)
    sure = model.predict(net, IMAGE, min_confidence=middle, below="void")
    assert 0.3 < (sure != 255).mean() < 0.7
    assert (sure[sure != 255] == plain[sure != 255]).all()
    emptied = model.predict(net, IMAGE, min_confidence={"dog": middle})
    changed = emptied != plain
    assert changed.any()
    assert set(plain[changed].tolist()) == {2}
    assert set(emptied[changed].tolist()) == {1}  # the background


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("min_area", -1, "at most 100%"), ("min_confidence", "cow:2", "2 dog")],
)
def test_a_wrong_value_names_the_range(
    net: DeepLabV3Plus, option: str, value: object, told: str
) -> None:
    with pytest.raises(InvalidOption, match=f"^{option}=.*{told}"):
        model.predict(net, IMAGE, **{option: value})  # type: ignore[arg-type] # wrong on purpose
