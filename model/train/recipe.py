"""The recipe of a training: read from a preset or a TOML file, changed with --set."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.data.augment import AugmentConfig
from model.data.dataset import UNLABELLED
from model.network.config import ModelConfig, OutputStride
from model.pydantic_errors import mistakes
from model.text import TextError, read_text
from pixels.bands import PHOTO

PRESETS = Path(__file__).parents[1] / "presets"
Precision = Literal["fp32", "bf16", "fp16"]
LOG_EVERY = 20  # iterations, unless a command line says otherwise
# features: all but the classifier; encoder: backbone and ASPP
InitPart = Literal["all", "features", "encoder", "backbone"]


class RecipeError(ValueError):
    """A recipe is unknown or has a value that does not fit."""


class BaseRecipe(BaseModel):
    """The optimisation options that training a network and pretraining a backbone share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: Annotated[int, Field(gt=0)] = 16  # of all processes and micro-batches together
    # Micro-batches per process and iteration. Batch norm sees micro-batches.
    accumulate: Annotated[int, Field(gt=0)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 0.007
    # Where set, the rate is learning_rate * batch_size / reference_batch (Goyal et al. 2017).
    reference_batch: Annotated[int, Field(gt=0)] | None = None
    warmup: Annotated[int, Field(ge=0)] = 0  # iterations of linear warm-up
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # AdamW: decay of the first moment
    nesterov: bool = False  # SGD only
    weight_decay: Annotated[float, Field(ge=0)] = 4e-5
    grad_clip: Annotated[float, Field(gt=0)] | None = None  # largest norm of the whole gradient
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: no averaging of weights

    # Samples replaced by the next position because their files are damaged, in the whole run.
    max_skips: Annotated[int, Field(ge=0)] = 100

    precision: Precision = "fp32"
    channels_last: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _nesterov_is_sgds(self) -> Self:
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError(
                f"nesterov=true only applies to optimizer='sgd', not to {self.optimizer!r}: set "
                "nesterov=false"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs a momentum above 0: set momentum=0.9")
        return self

    @property
    def rate(self) -> float:
        """The initial learning rate at this batch size."""
        return self.learning_rate * self.batch_size / (self.reference_batch or self.batch_size)


class TeacherConfig(BaseModel):
    """A network to learn from; its path alone, in `teachers`, takes the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    weight: Annotated[float, Field(gt=0)] = 1.0  # of its probabilities in the mean
    output_stride: OutputStride | None = None  # None: the checkpoint's own
    flip: bool = False  # asked about the mirror image too

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"checkpoint": value} if isinstance(value, str) else value


class Recipe(BaseRecipe):
    """A training run. The defaults are the paper's (section 4)."""

    description: str = ""
    model: ModelConfig
    # Weights to start from: a checkpoint, a backbone's file from model.convert, or "imagenet"
    # for the light backbones' own packages; `--set init=` starts from random ones. init_part
    # chooses how much of a checkpoint to take.
    init: str | None = None
    init_part: InitPart = "all"

    dataset: str = "voc"
    split: str = "trainaug"
    augment: AugmentConfig = AugmentConfig()
    sampling: Literal["uniform", "balanced"] = "uniform"

    iterations: Annotated[int, Field(gt=0)] = 30_000
    head_multiplier: Annotated[float, Field(gt=0)] = 1.0  # learning rate behind the backbone
    schedule: Literal["poly", "cosine"] = "poly"  # of the learning rate
    power: Annotated[float, Field(ge=0)] = 0.9  # of the poly policy

    # Where the loss is taken: logits resized to the labels, or labels thinned to the logits.
    # The paper resizes logits, so that fine labels count (Chen et al. 2017, DeepLabv3, 4.1).
    loss_at: Literal["labels", "logits"] = "labels"
    # One weight per class, or "balanced": by median frequency, measured on the training masks.
    class_weights: list[Annotated[float, Field(ge=0)]] | Literal["balanced"] | None = None
    # Share of each image's labelled pixels that count: those with the largest loss.
    hard_mining: Annotated[float, Field(gt=0, le=1)] = 1.0
    # Factor of the Lovász-Softmax loss (a surrogate of the mean IoU) added to the cross-entropy.
    lovasz: Annotated[float, Field(ge=0)] = 0.0
    # Factor of the soft Dice loss added to the cross-entropy.
    dice: Annotated[float, Field(ge=0)] = 0.0
    # Exponent of the focal loss: pixels that are already right count less (Lin et al. 2017).
    focal: Annotated[float, Field(ge=0)] = 0.0
    # Checkpoints whose mean probabilities are learnt too, the share of the loss that is theirs,
    # and the temperature at which both sides' probabilities are taken (Hinton et al. 2015).
    teachers: list[TeacherConfig] = []
    distillation: Annotated[float, Field(gt=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0
    # Factor of a loss that is added: the distance of a learnt linear map of ASPP's output from the
    # teachers' own output of ASPP (a hint: Romero et al. 2015).
    hints: Annotated[float, Field(ge=0)] = 0.0
    # Share of the samples that are photos without labels, which the teachers alone teach.
    unlabelled: Annotated[float, Field(ge=0, lt=1)] = 0.0

    # PyTorch's momentum of the running statistics; None keeps each part's own in a run as long as
    # the paper's, and raises it in a shorter one.
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None
    freeze_batch_norm: bool = False
    # Modules whose weights and statistics stay fixed, such as "backbone.stem". If they are the
    # network's first modules, they need no backward pass.
    frozen: list[str] = []

    # mIoU on a split of the same data set every so many iterations; the best weights are kept.
    validation_split: str | None = None
    validate_every: Annotated[int, Field(ge=0)] = 0
    patience: Annotated[int, Field(ge=0)] = 0  # validations without a gain before the end; 0: never

    compile: bool = False  # torch.compile: minutes at the start, faster iterations
    checkpointing: bool = False  # recompute the backbone's units in the backward pass: less memory

    @field_validator("init")
    @classmethod
    def _nothing_is_none(cls, value: str | None) -> str | None:
        """TOML has no null, so an empty string removes a preset's weights."""
        return value or None

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> Recipe:
        if (self.validation_split is None) != (self.validate_every == 0):
            raise ValueError(
                f"validation_split={self.validation_split!r} and "
                f"validate_every={self.validate_every} belong together: set both, or neither"
            )
        if self.patience and not self.validate_every:
            raise ValueError(
                f"patience={self.patience} counts validations: "
                "set validation_split and validate_every"
            )
        if self.compile and self.checkpointing:
            raise ValueError("compile and checkpointing do not work together: leave one out")
        if self.compile and self.hints:
            raise ValueError("compile and hints do not work together: leave one out")
        if self.hints and not self.teachers:
            raise ValueError(f"hints={self.hints} come from teachers: name some, or set hints=0")
        for key, share in (("unlabelled", self.unlabelled), ("augment.mixup", self.augment.mixup)):
            if share and not self.teachers:
                raise ValueError(
                    f"{key}={share}: only teachers can teach photos without labels; "
                    f"name some, or set {key}=0"
                )
            if share and self.model.num_classes > UNLABELLED:
                raise ValueError(
                    f"{key}={share} takes the label {UNLABELLED} for itself: "
                    f"model.num_classes={self.model.num_classes} may be {UNLABELLED} at most"
                )
        if self.model.channels > PHOTO.channels and self.augment.strong:
            raise ValueError(
                f"augment.strong={self.augment.strong} changes colours of RGB photos, and "
                f"model.channels={self.model.channels}: set augment.strong=0"
            )
        weights = self.class_weights
        if isinstance(weights, list) and len(weights) != self.model.num_classes:
            raise ValueError(
                f"class_weights has {len(weights)} entries, "
                f"model.num_classes is {self.model.num_classes}: give one per class"
            )
        return self


def presets() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def path_of(name: str) -> Path:
    """The file of a preset by its name, or the path itself."""
    return presets().get(name, Path(name))


def read(name: str, overrides: list[str]) -> Recipe:
    """Read a preset by name or a TOML file by path, and apply `key=value` overrides.

    Keys are dotted (`model.output_stride=8`), values are TOML (a bare word is a
    string). Raises RecipeError naming the key, the value and what is valid.
    """
    path = path_of(name)
    if not path.is_file():
        raise RecipeError(
            f"{name!r} is neither a file nor a preset; presets: {', '.join(presets())} "
            f"(in {PRESETS})"
        )
    try:
        table = tomllib.loads(read_text(path))
        apply(table, overrides)
        return Recipe.model_validate(table)
    except TextError as error:
        raise RecipeError(str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise RecipeError(mistakes(error, Recipe)) from None


def apply(table: dict[str, Any], overrides: list[str]) -> None:
    """Put `key=value` overrides into a recipe's table."""
    for override in overrides:
        _apply(table, override)


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override!r}: write key=value, as in model.output_stride=8")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: {parent} is a value, not a table of keys")
    table[leaf] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
