"""A study changes one thing at a time and runs nothing twice."""

from __future__ import annotations

import pytest

from model.paper.studies.plan import (
    LOW_LEVEL_CHANNELS,
    PRESET,
    STUDIES,
    WIDTH_ITERATIONS,
    Point,
    decoder,
    everything,
    stride,
    width,
    widths,
)
from model.train import recipe


def test_the_networks_of_a_study_differ_only_in_its_option() -> None:
    """The rest of the recipe is equal for every seed."""
    plain = recipe.read(PRESET, []).model_dump()
    for point in {*decoder([0]), *widths([0])}:
        changed = recipe.read(PRESET, list(point.net.overrides)).model_dump()
        model, default = changed.pop("model"), dict(plain["model"])
        length = WIDTH_ITERATIONS if point in widths([0]) else plain["iterations"]
        rest = {key: value for key, value in plain.items() if key != "model"}
        assert changed == rest | {"iterations": length}
        different = {key for key in model if model[key] != default[key]}
        assert different <= {"decoder"} or different <= {"low_level_channels"}


def test_table_one_has_its_widths() -> None:
    found = [
        recipe.read(PRESET, list(point.net.overrides)).model.low_level_channels
        for point in widths([7])
    ]
    assert tuple(found) == LOW_LEVEL_CHANNELS


def test_all_is_every_point_of_every_study_once() -> None:
    points = everything([3, 4])
    assert len(points) == len(set(points)) == len({point.name for point in points})
    for name in ("decoder", "stride", "widths"):
        assert set(STUDIES[name]([3, 4])) <= set(points)
    assert set(everything([3, 4, 5])) >= set(widths([3, 4]))
    assert Point(width(8), 5) not in everything([3, 4, 5])
    assert set(STUDIES["scales"]([3])) <= set(points)
    assert points[:2] == decoder([3])  # the central claim first


@pytest.mark.parametrize(
    ("point", "name"),
    [
        (Point(width(8), 2, multi_scale=True, flip=True), "width8-2-os16-ms-flip"),
        (stride([])[1], "bundled-os8"),
    ],
)
def test_names_say_network_seed_and_passes(point: Point, name: str) -> None:
    assert point.name == name
