"""Networks with weights that make every layer matter, for tests."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.network.config import ModelConfig
from model.network.deeplab import DeepLabV3Plus


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Set random weights and batch-norm statistics that keep activations near one, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, generator=generator)
            if part.in_channels > 3:  # else the mean after ReLU hides the picture
                with torch.no_grad():
                    part.weight -= part.weight.mean((1, 2, 3), keepdim=True)
            if part.bias is not None:
                nn.init.normal_(part.bias, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.uniform_(part.weight, 0.4, 1.0, generator=generator)
            nn.init.normal_(part.bias, std=0.2, generator=generator)
            nn.init.normal_(part.running_mean, std=0.2, generator=generator)
            nn.init.uniform_(part.running_var, 0.5, 1.5, generator=generator)
    return module.eval()


def tiny(num_classes: int = 5, **settings: object) -> DeepLabV3Plus:
    """The smallest network that has every part: a thin MobileNetV2 with seeded weights."""
    config = ModelConfig.model_validate(
        {
            "backbone": "mobilenet_v2",
            "depth_multiplier": 0.25,
            "num_classes": num_classes,
            "aspp_channels": 16,
            "decoder_channels": 16,
            "low_level_channels": 8,
            "crop_size": (65, 65),
            **settings,
        }
    )
    net = DeepLabV3Plus(config)
    shake(net)
    with torch.no_grad():  # centre the logits, so that every class wins somewhere
        logits = net(batch(65, 65)[:, [n % 3 for n in range(config.channels)]])
        assert net.logits.bias is not None
        scale = 2 / logits.std((0, 2, 3))
        net.logits.weight *= scale.view(-1, 1, 1, 1)
        net.logits.bias.copy_((net.logits.bias - logits.mean((0, 2, 3))) * scale)
    return net


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise in large patches: (H, W, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return coarse.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)[:height, :width].copy()


def batch(height: int, width: int, seed: int = 0) -> Tensor:
    """One image as the networks take it: (1, 3, H, W) float32 in [0, 255]."""
    return torch.from_numpy(photo(height, width, seed)).permute(2, 0, 1)[None].float()


def worst(a: Tensor, b: Tensor) -> float:
    """The largest difference in units of b's standard deviation; inf if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.std())
