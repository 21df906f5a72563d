"""The networks of the rows of tables 3 and 5 behave like trained ones."""

from __future__ import annotations

import pytest
import torch

from export import matrix
from model.network.deeplab import DeepLabV3Plus
from tests.model.train.test_main import TINY

pytestmark = pytest.mark.slow


def test_a_settled_random_network_tells_classes_apart() -> None:
    torch.manual_seed(0)
    net = DeepLabV3Plus(TINY)
    torch.nn.init.normal_(net.logits.weight)
    matrix.settle(net)
    assert not net.training
    with torch.no_grad():
        logits = net(torch.rand(1, 3, 65, 65) * 255)
    assert logits.std() > 1  # far from ties, which rounding would decide
