"""A study changes one thing at a time and runs nothing twice."""

from __future__ import annotations

import pytest

from model import checkpoint
from model.paper.studies.plan import (
    BILINEAR,
    BUNDLED,
    BUNDLED_CHECKPOINT,
    COMPARISONS,
    LOW_LEVEL_CHANNELS,
    PRESET,
    SHORT_ITERATIONS,
    STUDIES,
    TABLE_3,
    Point,
    boundary,
    compared,
    decoder,
    everything,
    inference,
    stride,
    width,
)
from model.train import recipe

OPTIONS = {
    "widths": {"low_level_channels"},
    "structure": {"decoder_convs", "decoder_channels", "decoder_kernel", "decoder_features"},
    "separable": {"aspp_separable", "decoder_separable"},
    "coarse": {"output_stride", "decoder"},
    "pooling": {"image_pooling"},
    "labels": set(),
}


def test_the_decoder_is_all_that_differs_in_its_study() -> None:
    recipes = [recipe.read(PRESET, list(p.net.overrides)).model_dump() for p in decoder([0])]
    without, with_it = recipes
    assert without.pop("model") | {"decoder": True} == with_it.pop("model")
    assert without == with_it


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_networks_of_a_comparison_differ_only_in_its_options(name: str) -> None:
    """The rest of the recipe is equal, and each option takes part in some row."""
    recipes = [
        recipe.read(row.net.preset, list(row.net.overrides)).model_dump()
        for row in COMPARISONS[name].rows
    ]
    rest = [{k: v for k, v in r.items() if k not in ("model", "loss_at")} for r in recipes]
    assert all(other == rest[0] for other in rest)
    assert len({r["loss_at"] for r in recipes}) == (2 if name == "labels" else 1)
    models = [r["model"] for r in recipes]
    differing = {key for key in models[0] if any(m[key] != models[0][key] for m in models)}
    assert differing == OPTIONS[name]


def test_table_two_has_the_papers_rows() -> None:
    """Convolutions, channels against the final decoder's, kernel and features of each row."""
    nets = [recipe.read(PRESET, list(r.net.overrides)).model for r in COMPARISONS["structure"].rows]
    full = recipe.read(PRESET, []).model.decoder_channels
    assert [
        (n.decoder_convs, n.decoder_channels / full, n.decoder_kernel, n.decoder_features)
        for n in nets[:5]
    ] == [
        (1, 1, 3, "conv2"),
        (2, 1, 3, "conv2"),
        (3, 1, 3, "conv2"),
        (1, 0.5, 3, "conv2"),
        (1, 1, 1, "conv2"),
    ]
    assert nets[5].decoder_features == "conv2+conv3"


def test_table_one_has_its_widths() -> None:
    found = [
        recipe.read(PRESET, list(point.net.overrides)).model.low_level_channels
        for point in compared("widths", [7])
    ]
    assert tuple(found) == LOW_LEVEL_CHANNELS
    assert recipe.read(PRESET, list(width(8).overrides)).iterations == SHORT_ITERATIONS


def test_a_reference_is_a_row_of_its_comparison() -> None:
    for comparison in COMPARISONS.values():
        assert comparison.reference in {row.label for row in comparison.rows}


def test_the_bilinear_network_is_the_bundled_one_without_its_decoder() -> None:
    """Same backbone, ASPP and normalisation, and these are frozen."""
    config = recipe.read(BILINEAR.preset, list(BILINEAR.overrides))
    card = checkpoint.read_card(BUNDLED_CHECKPOINT)
    without = {"decoder": False, "decoder_separable": False, "aspp_dropout": 0.0}
    assert config.model == card.model.model_copy(update=without)
    assert (config.init_part, config.frozen) == ("encoder", ["backbone", "aspp"])
    assert config.init == str(BUNDLED_CHECKPOINT)
    assert [p.net for p in boundary([3, 4])] == [BUNDLED, BILINEAR, BILINEAR]


def test_table_three_is_evaluated_row_by_row() -> None:
    points = inference([0])
    assert len(points) == len(set(points)) == len(TABLE_3) == 10
    assert {p.output_stride for p in points} == {8, 16}
    assert sum(p.net == BILINEAR for p in points) == 4


def test_all_is_every_point_of_every_study_once() -> None:
    points = everything([3, 4, 5])
    assert len(points) == len(set(points)) == len({point.name for point in points})
    for name in STUDIES.keys() - {"all", "scales"}:
        assert set(STUDIES[name]([3, 4, 5])) <= set(points)
    assert set(STUDIES["scales"]([3])) <= set(points)
    assert points[:4] == boundary([3, 4, 5])  # the present network first


@pytest.mark.parametrize(
    ("point", "name"),
    [
        (Point(width(8), 2, multi_scale=True, flip=True), "width8-2-os16-ms-flip"),
        (stride([])[1], "bundled-os8"),
    ],
)
def test_names_say_network_seed_and_passes(point: Point, name: str) -> None:
    assert point.name == name
