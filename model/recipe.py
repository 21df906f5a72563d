"""What a training run is made of: read from a preset or a TOML file, changed with --set."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.config import ModelConfig
from model.data.augment import AugmentConfig

PRESETS = Path(__file__).parent / "presets"
Precision = Literal["fp32", "bf16"]
InitPart = Literal["all", "features", "backbone"]  # features: all but the classifier


class RecipeError(ValueError):
    """A recipe is unknown or has a value that does not fit."""


class Recipe(BaseModel):
    """A training run. The defaults are the paper's (section 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = ""
    model: ModelConfig
    # Weights to start from: a checkpoint, a backbone's file of model.convert, or "imagenet"
    # for the light backbone's own package. init_part limits what is taken of a checkpoint.
    init: str | None = None
    init_part: InitPart = "all"

    dataset: str = "voc"
    split: str = "trainaug"
    augment: AugmentConfig = AugmentConfig()
    sampling: Literal["uniform", "balanced"] = "uniform"

    iterations: Annotated[int, Field(gt=0)] = 30_000
    batch_size: Annotated[int, Field(gt=0)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 0.007
    head_multiplier: Annotated[float, Field(gt=0)] = 1.0  # learning rate behind the backbone
    power: Annotated[float, Field(ge=0)] = 0.9  # of the poly policy
    warmup: Annotated[int, Field(ge=0)] = 0  # iterations of linear warm-up
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 4e-5
    # PyTorch's momentum of the running statistics; None keeps each part's own.
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None
    freeze_batch_norm: bool = False
    # Modules that keep weights and statistics: "backbone.stem". Those at the network's entry
    # then cost no backward pass.
    frozen: list[str] = []
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: no averaging of weights
    precision: Precision = "fp32"
    seed: int = 0


def presets() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def read(name: str, overrides: list[str]) -> Recipe:
    """Read a preset by name or a TOML file by path, and apply `key=value` overrides.

    Keys are dotted (`model.output_stride=8`), values are TOML (a bare word is a
    string). Raises RecipeError naming the key, the value and what is valid.
    """
    path = presets().get(name, Path(name))
    if not path.is_file():
        raise RecipeError(
            f"{name!r} is neither a file nor a preset; presets: {', '.join(presets())}"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for override in overrides:
            _apply(table, override)
        return Recipe.model_validate(table)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise RecipeError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """One line per wrong key: name, value, what is valid."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "recipe"
        lines.append(f"{key}={item['input']!r}: {item['msg']}")
    return "; ".join(lines)


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override!r}: write key=value, as in model.output_stride=8")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[leaf] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
