"""A contract is read completely, or refused with a reason."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from service.inference.contract import METADATA_KEY, ContractError, InputSize, parse
from service.inference.quality import mismatch
from service.inference.shadow import unlike
from tests.service.onnx_models import contract


def text(**changes: object) -> dict[str, str]:
    fields = json.loads(contract().model_dump_json()) | changes
    return {METADATA_KEY: json.dumps(fields)}


def test_a_contract_survives_the_round_trip() -> None:
    assert parse(text()) == contract()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "python -m export"),
        ({METADATA_KEY: "{"}, "not JSON"),
        ({METADATA_KEY: "[]"}, "version None"),
        (text(version=2), "version 2"),
        (text(classes=["only"]), "classes"),
        (text(palette=[[0, 0, 0]]), "1 colours"),
        (text(palette=[[0, 0, 256]] * 3), "palette"),
        (text(surprise=1), "surprise"),
        (text(output_stride=5), "output_stride"),
    ],
)
def test_an_invalid_contract_is_refused_with_the_reason(
    metadata: dict[str, str], reason: str
) -> None:
    with pytest.raises(ContractError, match=reason):
        parse(metadata)


def test_the_background_is_found_by_name() -> None:
    assert contract().background == 0
    assert contract(classes=("sky", "road", "car")).background is None


def test_models_of_other_channels_are_neither_compared_nor_chosen_between() -> None:
    """A file of four bands decoded for one model is no input of the other."""
    photos = contract()
    bands = contract(input=photos.input.model_copy(update={"pad": (0, 0, 0, 0)}))
    ranged = contract(input=bands.input.model_copy(update={"sample_range": (0, 10_000)}))
    assert unlike(photos, photos) is None
    assert mismatch("a", bands, "b", bands) is None
    for one, other in ((photos, bands), (bands, ranged)):
        assert "other channels" in str(unlike(one, other))
        assert "other channels" in str(mismatch("a", one, "b", other))


ALIGNED = InputSize(
    policy="aligned", height=65, width=97, multiple=16, least=(33, 49), pad=(0, 0, 0)
)


@pytest.mark.parametrize(
    ("part", "around"),
    [
        ((65, 97), (65, 97)),
        ((49, 97), (49, 97)),
        ((50, 97), (65, 97)),
        ((48, 97), (49, 97)),
        ((5, 97), (33, 97)),  # a panorama
        ((65, 40), (65, 49)),
        ((65, 66), (65, 81)),
        ((10, 20), (33, 97)),  # small: one side is padded to the whole side
        ((20, 20), (65, 49)),
    ],
)
def test_an_aligned_input_is_as_small_as_its_contract_allows(
    part: tuple[int, int], around: tuple[int, int]
) -> None:
    assert ALIGNED.around(part) == around
    assert ALIGNED.whole.around(part) == (65, 97)


def test_photos_of_common_shapes_have_few_sizes() -> None:
    square = InputSize(
        policy="aligned", height=513, width=513, multiple=16, least=(321, 321), pad=(0, 0, 0)
    )
    assert square.common == {
        *((385, 513), (353, 513), (321, 513)),
        *((513, 385), (513, 353), (513, 321)),
    }
    assert ALIGNED.common == {(65, 49)}
    assert square.whole.common == set()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"multiple": None}, "multiple and least belong"),
        ({"least": None}, "multiple and least belong"),
        ({"policy": "fixed"}, "multiple and least belong"),
        ({"height": 64}, "not a multiple of 16 plus one"),
        ({"least": (33, 48)}, "not a multiple of 16 plus one"),
        ({"least": (81, 49)}, "larger than the input"),
    ],
)
def test_an_alignment_that_cannot_hold_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        InputSize.model_validate(ALIGNED.model_dump() | changes)


@pytest.mark.parametrize("limits", [(5, 5), (9, 2), (-1, 5), (0, 70_000)])
def test_a_range_of_samples_must_rise_within_16_bits(limits: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="sample_range"):
        InputSize(policy="fixed", height=1, width=1, pad=(0, 0, 0, 0), sample_range=limits)
