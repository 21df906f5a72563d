"""Labels that are computed in phases equal the labels of resized logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from export.graph import LabelGraph, PhasedGraph, logit_spacing
from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus
from tests.export.conftest import CONFIG


def network(**changes: Any) -> DeepLabV3Plus:
    torch.manual_seed(0)
    net = DeepLabV3Plus(ModelConfig.model_validate(CONFIG.model_dump() | changes))
    torch.nn.init.normal_(net.logits.weight)
    return net.eval()


@pytest.mark.parametrize(
    ("changes", "size", "spacing"),
    [
        ({}, (65, 97), (4, 4)),
        ({}, (33, 37), (4, 4)),
        ({"decoder": False}, (65, 97), (16, 16)),
        ({"decoder": False, "output_stride": 8}, (81, 33), (8, 8)),
        ({"decoder": False, "output_stride": 8}, (45, 34), None),
    ],
)
def test_phases_are_the_resized_logits(
    changes: dict[str, Any], size: tuple[int, int], spacing: tuple[int, int] | None
) -> None:
    net = network(**changes)
    assert logit_spacing(net, size) == spacing
    if spacing is None:
        with pytest.raises(ValueError, match="whole number"):
            PhasedGraph(net, size)
        return
    image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        labels, scores, confidence = PhasedGraph(net, size, confidence=True)(image)
        truth, exact, certain = LabelGraph(net, confidence=True)(image)
    assert len(truth.unique()) > 1
    assert labels.shape == truth.shape
    assert (labels == truth).float().mean() > 0.9999
    assert (scores - exact).abs().max() < 1e-5 * exact.std()
    assert (confidence.int() - certain.int()).abs().max() <= 1


def test_each_side_has_its_own_spacing_and_unaligned_corners_have_none() -> None:
    net = network(decoder=False)
    assert logit_spacing(net, (41, 65)) == (20, 16)  # 3 x 5 logits
    assert logit_spacing(net, (42, 65)) is None
    assert logit_spacing(network(align_corners=False), (65, 65)) is None
