"""A rewritten network has the same output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from export.rewrite import SummedDecoderStage, enlarged, rewritten
from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus
from model.network.layers import ConvBN, resize
from tests.export.conftest import CONFIG


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scrambled(config: ModelConfig) -> DeepLabV3Plus:
    """A network whose batch norms change their input."""
    torch.manual_seed(3)
    net = DeepLabV3Plus(config)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"atrous_rates": (6, 12, 18)},
        {"aspp_separable": False, "decoder_separable": False},
        {"decoder": False},
        {"image_pooling": False},
        {"atrous_rates": ()},
        {"atrous_rates": (), "image_pooling": False},
        {"decoder_convs": 1},
        {"decoder_convs": 3, "decoder_kernel": 1},
        {"decoder_features": "conv2+conv3"},
        {"aspp_refine": True, "align_corners": False},
        {"backbone": "efficientnet_lite0", "depth_multiplier": 1.0},
        {"backbone": "efficientnet_lite2", "depth_multiplier": 1.0},
    ],
)
def test_a_rewritten_network_has_the_same_logits(changes: dict[str, Any]) -> None:
    net = scrambled(ModelConfig.model_validate(CONFIG.model_dump() | changes))
    image = torch.rand(2, 3, 65, 96) * 255
    with torch.inference_mode():
        truth = net(image)
        for strip_bytes in (None, 8000):  # 17 rows of 24 pixels: whole, and in strips of 5
            logits = rewritten(net, strip_bytes=strip_bytes)(image)
            assert truth.std() > 0
            assert (logits - truth).abs().max() < 1e-4 * truth.std()


def test_strips_are_even_and_small_enough() -> None:
    net = rewritten(DeepLabV3Plus(CONFIG).eval(), strip_bytes=8000)
    assert net.decoder is not None
    stage = net.decoder.conv2
    assert isinstance(stage, SummedDecoderStage)
    assert stage.halo == 2
    assert stage.rows(17, 24) == [slice(None, 4), slice(4, 8), slice(8, 12), slice(12, None)]
    assert stage.rows(4, 24) == [slice(None)]


def test_no_batch_norm_is_left_and_the_original_keeps_its_own() -> None:
    net = scrambled(CONFIG)
    fast = rewritten(net)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    assert all(
        isinstance(module.bn, torch.nn.BatchNorm2d)
        for module in net.modules()
        if isinstance(module, ConvBN)
    )


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("before", "after"), [((5, 7), (17, 25)), ((3, 4), (10, 16)), ((1, 2), (4, 3))]
)
def test_products_with_constant_matrices_equal_the_resize(
    before: tuple[int, int], after: tuple[int, int], align_corners: bool
) -> None:
    x = torch.randn(2, 3, *before, generator=torch.manual_seed(0))
    truth = resize(x, after, align_corners=align_corners)
    torch.testing.assert_close(enlarged(x, after, align_corners=align_corners), truth)
