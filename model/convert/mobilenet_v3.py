"""The names that torchvision gives the parts of MobileNetV3-Large."""

from __future__ import annotations

from model.network.backbones.mobilenet_v3 import ROWS, STEM

LAYERS = {"conv": "0", "bn": "1"}
SQUEEZE = {"reduce": "fc1", "expand": "fc2"}


def name(key: str) -> str:
    """`blocks.3.depthwise.bn.weight` -> `4.block.1.1.weight`, below `features.` or `backbone.`."""
    parts = key.split(".")
    if parts[0] != "blocks":
        stage = 0 if parts[0] == "stem" else len(ROWS) + 1
        return f"{stage}.{LAYERS[parts[1]]}.{parts[2]}"
    _, block, part, layer, leaf = parts
    place = _places(int(block)).index(part)
    return f"{int(block) + 1}.block.{place}.{(LAYERS | SQUEEZE)[layer]}.{leaf}"


def _places(block: int) -> list[str]:
    """The parts of a block, in torchvision's order."""
    row, inputs = ROWS[block], ROWS[block - 1].outputs if block else STEM
    parts = {
        "expand": row.hidden != inputs,
        "depthwise": True,
        "excite": row.excited,
        "project": True,
    }
    return [part for part, there in parts.items() if there]
