"""Checkpoints: `NAME.safetensors` with the weights, `NAME.json` with everything else.

The network is rebuilt from the JSON alone and the weights are loaded strictly.
Nothing is unpickled. Atrous convolution adds no parameters, so the output
stride may be chosen anew at loading. Weights of a backbone alone, as ImageNet
training leaves them, are kept the same way with a card of `kind: "backbone"`;
a training starts from them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from model import files
from model.network.config import BackboneName, ModelConfig, Rgb
from model.network.deeplab import DeepLabV3Plus
from model.pydantic_errors import mistakes

Color = tuple[int, int, int]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or does not fit its own description."""


class Card(BaseModel):
    """The JSON beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    model: ModelConfig
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    source: str = ""

    @model_validator(mode="after")
    def _one_name_and_colour_per_class(self) -> Card:
        for field in ("classes", "palette"):
            if len(getattr(self, field)) != self.model.num_classes:
                raise ValueError(
                    f"{field} has {len(getattr(self, field))} entries, "
                    f"model.num_classes is {self.model.num_classes}; give one per class"
                )
        return self


class BackboneCard(BaseModel):
    """The JSON beside the weights of a backbone without a head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["backbone"] = "backbone"
    version: int = 1
    backbone: BackboneName
    depth_multiplier: float = Field(1.0, gt=0)
    mean: Rgb
    std: Rgb
    source: str = ""


def paths(path: Path | str) -> tuple[Path, Path]:
    """Return (weights, card) for `NAME`, `NAME.safetensors` or `NAME.json`."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.parent / f"{stem.name}.safetensors", stem.parent / f"{stem.name}.json"


def read_card(path: Path | str) -> Card:
    """Read the description of a checkpoint; raises CheckpointError."""
    card = read_any_card(path)
    if isinstance(card, BackboneCard):
        raise CheckpointError(
            f"{path} holds the weights of a backbone ({card.backbone}) and no head: "
            "start a training from it with init, then use the trained checkpoint"
        )
    return card


def read_any_card(path: Path | str) -> Card | BackboneCard:
    """Read the description of a checkpoint or of a backbone; raises CheckpointError."""
    _, card = paths(path)
    try:
        table = json.loads(card.read_bytes())
        if isinstance(table, dict) and table.get("kind") == "backbone":
            return BackboneCard.model_validate(table)
        return Card.model_validate(table)
    except FileNotFoundError:
        raise CheckpointError(f"{card} does not exist: a checkpoint is weights + JSON") from None
    except ValidationError as error:
        raise CheckpointError(
            f"{card} is not a checkpoint description: {mistakes(error)}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{card} is not a checkpoint description: {error}") from None


def read_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint or of a backbone; raises CheckpointError."""
    weights, _ = paths(path)
    try:
        return load_file(weights)
    except FileNotFoundError:
        raise CheckpointError(f"{weights} does not exist: a checkpoint is weights + JSON") from None
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is damaged: {error}") from None


def load(path: Path | str, output_stride: int | None = None) -> DeepLabV3Plus:
    """Rebuild the network of a checkpoint in eval mode, by default at its own output stride.

    Raises CheckpointError for a missing or damaged file and for weights that do
    not fit the description; ValueError for an output stride other than 8, 16, 32.
    """
    config = read_card(path).model
    if output_stride is not None:
        config = ModelConfig.model_validate(config.model_dump() | {"output_stride": output_stride})
    net = DeepLabV3Plus(config)
    try:
        net.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit their description: {error}") from None
    return net.eval()


def load_on(
    device: torch.device | str, path: Path | str, output_stride: int | None = None
) -> DeepLabV3Plus:
    """`load`, to a device and to channels last, in which most convolutions are faster."""
    return load(path, output_stride).to(device).to(memory_format=torch.channels_last)


def save(path: Path | str, state: dict[str, torch.Tensor], card: Card | BackboneCard) -> Path:
    """Write weights and description, both or neither; returns the path of the weights.

    Raises OSError naming the file where the disk is full; what was there is kept.
    """
    weights, description = paths(path)
    weights.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    # By safetensors' save_file the weights would be readable to their owner only.
    files.write({weights: serialize(tensors), description: _text(card)})
    return weights


def record_metrics(path: Path | str, metrics: dict[str, Any]) -> None:
    """Keep evaluation figures in the description of a checkpoint."""
    _, description = paths(path)
    files.write({description: _text(read_card(path).model_copy(update={"metrics": metrics}))})


def _text(card: Card | BackboneCard) -> bytes:
    return f"{card.model_dump_json(indent=2)}\n".encode()


def digest(path: Path | str) -> str:
    """SHA-256 of the weights file, hexadecimal."""
    weights, _ = paths(path)
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
