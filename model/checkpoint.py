"""Checkpoints: `NAME.safetensors` with the weights, `NAME.json` with everything else.

The network is rebuilt from the JSON alone, and the weights are loaded strictly. The
JSON holds the SHA-256 of its weights: `save` replaces the weights first, and if it is
killed before it replaces the JSON, the next reader finishes what it began. Nothing is
unpickled. Atrous convolution adds no parameters, so any output stride can be chosen at
loading. Weights of a backbone alone (from ImageNet) are kept the same way with a card
of `kind: "backbone"`; a training can start from them.
"""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from model import files
from model.network.backbones.features import BackboneError
from model.network.config import AfterDepthwise, AnyBackbone, ModelConfig, Rgb
from model.network.deeplab import DeepLabV3Plus
from model.pydantic_errors import mistakes

Color = tuple[int, int, int]
BUNDLED = Path(__file__).parent / "bundled"
# The subcommand of `python -m model.convert` that reads a file of other projects, by its suffix.
CONVERTERS = {
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin", ".tar"), "torchvision"),
    **dict.fromkeys((".tflite", ".pb", ".index", ".meta", ".data"), "tf"),
}
LONGEST_CARD = 16_000_000  # bytes; ours have some thousand


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
    weights_sha256: str | None = None  # of the file beside it; earlier versions wrote none

    @model_validator(mode="after")
    def _one_name_and_colour_per_class(self) -> Card:
        for field in ("classes", "palette"):
            if len(getattr(self, field)) != self.model.num_classes:
                raise ValueError(
                    f"{field} has {len(getattr(self, field))} entries, "
                    f"model.num_classes is {self.model.num_classes}; give one per class"
                )
        return self


class Calibration(BaseModel):
    """NAME.calibration.json: what `python -m export.calibrate --checkpoint NAME` measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_sha256: str  # of the weights that it was measured with
    dataset: str
    split: str
    images: int = Field(gt=0)
    best_f1: tuple[Annotated[float, Field(ge=0, le=1)], ...]  # by class
    # Entry t: the mean share of a photo's pixels whose truth has a probability (times 255) below t.
    missed: Annotated[tuple[float, ...], Field(min_length=256, max_length=256)] | None = None


class BackboneCard(BaseModel):
    """The JSON beside the weights of a backbone without a head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["backbone"] = "backbone"
    version: int = 1
    backbone: AnyBackbone
    depth_multiplier: float = Field(1.0, gt=0)
    after_depthwise: AfterDepthwise = "batch_norm"  # Xception only
    mean: Rgb
    std: Rgb
    metrics: dict[str, Any] = {}  # of the classifier that it was trained with
    source: str = ""
    weights_sha256: str | None = None


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
    _finish_save(path)
    try:
        return _parsed(card)
    except FileNotFoundError:
        raise CheckpointError(_foreign(Path(path)) or _missing(card)) from None


def _foreign(path: Path) -> str:
    """Say what to do with a file of weights that has no description, such as another project's."""
    weights, card = paths(path)
    found = next((file for file in (path, weights) if file.is_file()), None)
    if found is None:
        return ""
    # TensorFlow numbers the files of a checkpoint: .data-00000-of-00002.
    if converter := CONVERTERS.get(found.suffix.partition("-")[0]):
        return (
            f"{found} is no checkpoint of this project (NAME.safetensors and NAME.json): weights "
            "of other projects are converted first, "
            f"`python -m model.convert {converter} {found} {found.with_suffix('')}`"
        )
    return (
        f"{found} has no description {card}: copy both files of a checkpoint; "
        "weights of other projects are converted first, see `python -m model.convert --help`"
    )


def _missing(card: Path) -> str:
    """Describe a missing checkpoint: where it was looked for, and which ones are bundled."""
    where = "" if card.is_absolute() else f"; the path is relative to {Path.cwd()}"
    bundled = ", ".join(str(path.with_suffix("")) for path in sorted(BUNDLED.glob("*.safetensors")))
    return (
        f"{card} does not exist: a checkpoint is weights + JSON{where}; "
        "python -m model.weights get NAME writes published ones to weights/NAME; "
        f"the bundled checkpoints are {bundled}"
    )


def _parsed(card: Path) -> Card | BackboneCard:
    """Read a JSON that may come from anywhere; raises CheckpointError, or FileNotFoundError."""
    _expect_regular(card)
    if card.stat().st_size > LONGEST_CARD:
        raise CheckpointError(
            f"{card} has {card.stat().st_size / 1e6:.0f} MB and is not a checkpoint description"
        )
    kind: type[Card | BackboneCard] = Card
    try:
        table = json.loads(card.read_bytes())
        if isinstance(table, dict) and table.get("kind") == "backbone":
            kind = BackboneCard
        return kind.model_validate(table)
    except ValidationError as error:
        raise CheckpointError(
            f"{card} is not a checkpoint description: {mistakes(error, kind)}"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{card} is not a checkpoint description: nested too deep") from None
    except ValueError as error:  # not JSON, not UTF-8, a number of too many digits
        raise CheckpointError(f"{card} is not a checkpoint description: {error}") from None


def _expect_regular(path: Path) -> None:
    """Raise CheckpointError for a FIFO or a device: reading it could wait for ever.

    Raises FileNotFoundError if there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path} is not a regular file: copy both files of a checkpoint")


def _finish_save(path: Path | str) -> None:
    """Rename a description whose weights are already in place: `save` was killed in between."""
    weights, description = paths(path)
    partial = files.beside(description)
    if not partial.exists():
        return
    try:
        if _parsed(partial).weights_sha256 == digest(weights):
            partial.replace(description)
    except (CheckpointError, OSError):  # cut off while writing: the pair before is complete
        return


def read_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint or of a backbone; raises CheckpointError."""
    weights, description = paths(path)
    expected = read_any_card(path).weights_sha256
    try:
        _expect_regular(weights)
        if expected is not None and digest(weights) != expected:
            raise CheckpointError(
                f"{weights} holds other weights than {description} describes (weights_sha256): "
                "copy both files of one checkpoint"
            )
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
    card = read_card(path)
    config = card.model
    if output_stride is not None:
        config = ModelConfig.model_validate(config.model_dump() | {"output_stride": output_stride})
    state = read_weights(path)
    _expect_shapes(path, config, state)
    net = DeepLabV3Plus(config)
    net.load_state_dict(state, strict=True)
    net.classes, net.palette = card.classes, card.palette
    net.calibration = read_calibration(path)
    return net.eval()


def read_calibration(path: Path | str) -> Calibration | None:
    """Read NAME.calibration.json; None if it is missing, or was measured with other weights.

    Raises CheckpointError for a file that is damaged or does not fit the classes.
    """
    file = calibration_file(path)
    if not file.is_file():
        return None
    card = read_card(path)
    try:
        found = Calibration.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{file} is not valid: {mistakes(error, Calibration)}") from None
    if found.weights_sha256 != (card.weights_sha256 or digest(path)):
        return None
    if len(found.best_f1) != len(card.classes):
        raise CheckpointError(
            f"{file}: {len(card.classes)} classes but {len(found.best_f1)} thresholds"
        )
    return found


def write_calibration(path: Path | str, found: Calibration) -> Path:
    """Write the calibration of a checkpoint beside it; returns the file."""
    file = calibration_file(path)
    files.write({file: f"{found.model_dump_json(indent=2)}\n".encode()})
    return file


def calibration_file(path: Path | str) -> Path:
    """Return NAME.calibration.json for a checkpoint."""
    weights, _ = paths(path)
    return weights.with_name(f"{weights.stem}.calibration.json")


def _expect_shapes(path: Path | str, config: ModelConfig, state: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError where weights do not fit, before memory is taken for the network."""
    try:
        with torch.device("meta"):
            wanted = DeepLabV3Plus(config).state_dict()
    except BackboneError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError as error:  # more elements than can be counted
        raise CheckpointError(f"{path}: no such network: {str(error).splitlines()[0]}") from None
    odd = sorted(
        key
        for key in wanted.keys() | state.keys()
        if key not in wanted or key not in state or wanted[key].shape != state[key].shape
    )
    if odd:
        found, needed = (_shape(tensors.get(odd[0])) for tensors in (state, wanted))
        raise CheckpointError(
            f"{path}: weights do not fit their description: {len(odd)} tensors differ, such as "
            f"{odd[0]}, which is {found} and should be {needed}"
        )


def _shape(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))


def load_on(
    device: torch.device | str, path: Path | str, output_stride: int | None = None
) -> DeepLabV3Plus:
    """`load`, then move to a device and to channels last, where most convolutions are faster."""
    return load(path, output_stride).to(device).to(memory_format=torch.channels_last)


def save(path: Path | str, state: dict[str, torch.Tensor], card: Card | BackboneCard) -> Path:
    """Write both weights and description, or neither; returns the path of the weights.

    Raises OSError naming the file where the disk is full; what was there is kept.
    """
    weights, description = paths(path)
    weights.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    # By safetensors' save_file the weights would be readable to their owner only.
    content = serialize(tensors)
    card = card.model_copy(update={"weights_sha256": hashlib.sha256(content).hexdigest()})
    files.write({weights: content, description: _text(card)})
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
