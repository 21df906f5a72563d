"""Results of photos from a network in PyTorch; tests/export/test_doors.py compares the files."""

from __future__ import annotations

from typing import Any

import pytest

import model
from tests.model.nets import photo, tiny


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
@pytest.mark.parametrize(
    "options", [{"output": "probabilities,json"}, {"output": "mask", "smooth": True}]
)
def test_each_pass_runs_the_network_once(
    scales: tuple[float, ...], options: dict[str, Any]
) -> None:
    """Probabilities at the photo's size and at the network's come from the same logits."""
    net, runs = tiny(), []
    net.register_forward_hook(lambda *_: runs.append(1))
    model.segment(net, photo(50, 60), scales=scales, **options)
    assert len(runs) == len(scales)
