"""Apply all changes to a label map, in order, before results are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from postprocess.areas import Area
from postprocess.regions import without_holes, without_small
from postprocess.runs import Labels, Spread
from postprocess.sureness import VOID, sure_labels

Below = Literal["background", "void"]


@dataclass(frozen=True)
class Refinement:
    """The changes to make to a label map; none by default."""

    min_confidence: tuple[float, ...] = ()  # by class; empty: keep all pixels
    below: int = VOID  # the label of pixels with less confidence
    min_area: Area | None = None
    fill_holes: Area | None = None

    @property
    def needs_confidence(self) -> bool:
        """Whether `apply` needs the confidence."""
        return any(self.min_confidence)

    def apply(
        self,
        labels: Labels,
        confidence: Labels | None,
        background: int | None,
        spread: Spread | None = None,
    ) -> Labels:
        """Refine a map (R, C), whose rows and columns stand for pixels as `spread` says.

        `confidence`: (R, C), the probability of each label times 255. Raises ValueError if it is
        needed and missing, and TooComplex for a map with too many runs.
        """
        if self.needs_confidence:
            if confidence is None:
                raise ValueError("min_confidence needs the confidence of the labels")
            labels = sure_labels(labels, confidence, self.min_confidence, self.below)
        if self.min_area is not None:
            labels = without_small(labels, self.min_area, spread)
        if self.fill_holes is not None:
            holes = {VOID} if background is None else {VOID, background}
            labels = without_holes(labels, self.fill_holes, holes, spread)
        return labels


def below_label(below: Below | None, background: int | None) -> int:
    """Return the label of pixels with too little confidence: by default background, else void."""
    return VOID if below == "void" or background is None else background
