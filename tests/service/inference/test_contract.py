"""A contract is read completely, or refused with a reason."""

from __future__ import annotations

import json

import pytest

from service.inference.contract import METADATA_KEY, ContractError, parse
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
