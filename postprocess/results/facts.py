"""The facts about a model that results need, as protocols that any description can implement."""

from __future__ import annotations

from typing import Literal, Protocol

from postprocess.grid import Placing

Color = tuple[int, int, int]

# Outputs of a network besides the labels. Each level includes those before it, if it has them.
Extras = Literal["labels", "confidence", "probabilities"]


class Calibration(Protocol):
    """Measurements on photos with true masks."""

    @property
    def images(self) -> int:
        """The number of these photos."""

    @property
    def best_f1(self) -> tuple[float, ...]:
        """For each class the confidence with the best F1."""

    @property
    def missed(self) -> tuple[float, ...] | None:
        """For each probability, 0 to 255, the share of pixels whose truth has less."""


class Decision(Protocol):
    """Labels are the classes with the largest `weight * probability - margin`."""

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each class."""

    @property
    def margins(self) -> tuple[float, ...]:
        """The margin of each class."""


class Facts(Protocol):
    """The description of a model."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by id."""

    @property
    def palette(self) -> tuple[Color, ...]:
        """Their colours."""

    @property
    def background(self) -> int | None:
        """The id of the class `background`, if there is one."""

    @property
    def confidence(self) -> bool:
        """Whether it gives the confidence of its labels."""

    @property
    def probability_grid(self) -> Placing | None:
        """Where its probabilities lie; None if it gives none."""

    @property
    def calibration(self) -> Calibration | None:
        """Its calibration, if it has one."""

    @property
    def best_iou(self) -> Decision | None:
        """How the model chooses labels; None if it takes the most probable class."""
