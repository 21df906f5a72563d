"""The options of results, by the names that the service, the client and Python share.

`wish` checks them all; a mistake raises InvalidOption, whose message names option, value and range.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np

from postprocess.areas import area
from postprocess.errors import InvalidOption, is_number
from postprocess.refine import Below, Refinement, below_label
from postprocess.results.facts import Color, Facts
from postprocess.results.outputs import (
    INCLUDABLE,
    OUTPUTS,
    UNCALIBRATED,
    MaskFormat,
    OverlayFormat,
    Wish,
    check,
    parse_outputs,
)
from postprocess.results.selection import select
from postprocess.sureness import min_confidences

Names = str | Sequence[str]  # "a,b" or ["a", "b"]

# Both ends are allowed.
MOST_OVERLAP = 0.5
RANGES = {
    "alpha": (0, 1),
    "contour": (0, 32),
    "simplify": (0, 100),
    "top": (0, 256),
    "overlap": (0, MOST_OVERLAP),
}
WHOLE = {"contour", "top"}
FILL = "^[0-9a-fA-F]{6}$"


def wish(
    facts: Facts,
    output: Names | None,
    *,
    classes: Names | None = None,
    alpha: float = 0.5,
    contour: int = 0,
    legend: bool = False,
    overlay_format: OverlayFormat = "jpeg",
    max_side: int | None = None,
    mask_format: MaskFormat = "palette",
    include: Names = (),
    min_confidence: float | str | Mapping[str, float] | None = None,
    below: Below = "background",
    threshold: str | None = None,
    smooth: bool = False,
    min_area: float | str = 0,
    fill_holes: float | str = 0,
    instances: bool = False,
    simplify: float = 0,
    fill: str = "ffffff",
    top: int = 0,
    coverage: float | None = None,
) -> Wish:
    """Return the requested outputs of a model; raises InvalidOption."""
    expect_within("alpha", alpha)
    expect_within("contour", contour)
    expect_within("simplify", simplify)
    expect_within("top", top)
    _expect_one_of("overlay_format", overlay_format, get_args(OverlayFormat))
    _expect_one_of("mask_format", mask_format, get_args(MaskFormat))
    _expect_one_of("below", below, get_args(Below))
    for name, value in (("smooth", smooth), ("instances", instances), ("legend", legend)):
        _expect_switch(name, value)
    _expect_side(max_side)
    _expect_share(coverage)
    found = Wish(
        outputs=() if output is None else _named("output", output, OUTPUTS),
        selection=select(None if classes is None else _joined("classes", classes), facts),
        alpha=alpha,
        contour=contour,
        overlay_format=overlay_format,
        mask_format=mask_format,
        include=_named("include", include, INCLUDABLE) if include else (),
        refinement=refinement(
            facts,
            min_confidence=min_confidence,
            below=below,
            threshold=threshold,
            min_area=min_area,
            fill_holes=fill_holes,
        ),
        instances=instances,
        simplify=simplify,
        fill=_color(fill),
        smooth=smooth,
        top=top,
        coverage=coverage,
        max_side=max_side,
        legend=legend,
    )
    check(found, facts)
    return found


def refinement(
    facts: Facts,
    *,
    min_confidence: float | str | Mapping[str, float] | None = None,
    below: Below = "background",
    threshold: str | None = None,
    min_area: float | str = 0,
    fill_holes: float | str = 0,
) -> Refinement:
    """Return the changes to the labels; raises InvalidOption."""
    return Refinement(
        # A number given here, also 0, is for all classes; `threshold` is for those not named.
        min_confidences(
            "" if min_confidence is None else min_confidence,
            facts.classes,
            _thresholds(facts, threshold),
        ),
        below_label(below, facts.background),
        area("min_area", min_area),
        area("fill_holes", fill_holes),
    )


def _thresholds(facts: Facts, threshold: str | None) -> tuple[float, ...]:
    """Return the calibrated threshold of each class if `threshold` is "best"; else none."""
    if threshold is None:
        return ()
    if threshold != "best":
        raise InvalidOption(f"threshold={threshold!r}: give best, or leave it out")
    if facts.calibration is None:
        raise InvalidOption(f"threshold=best: {UNCALIBRATED}")
    return facts.calibration.best_f1


def _joined(option: str, names: Names) -> str:
    if not isinstance(names, str | Iterable):
        raise InvalidOption(f"{option}={names!r}: give names in a text or a list")
    return names if isinstance(names, str) else ",".join(map(str, names))


def _named(option: str, names: Names, valid: Iterable[str]) -> tuple[str, ...]:
    return parse_outputs(_joined(option, names), option, valid)


def _expect_one_of(name: str, text: str, known: tuple[str, ...]) -> None:
    if text not in known:
        raise InvalidOption(f"{name}={text!r}: choose from {', '.join(known)}")


def _expect_side(max_side: int | None) -> None:
    if max_side is not None and (not is_number(max_side) or max_side < 1 or max_side % 1):
        raise InvalidOption(f"max_side={max_side!r}: give a whole number from 1")


def _expect_share(coverage: float | None) -> None:
    if coverage is not None and not (is_number(coverage) and 0 < coverage < 1):
        raise InvalidOption(f"coverage={coverage!r}: give a share above 0 and below 1")


def expect_within(name: str, value: float) -> None:
    """Raise InvalidOption for a value outside of RANGES."""
    low, high = RANGES[name]
    if not is_number(value) or not low <= value <= high or (name in WHOLE and value % 1):
        kind = "a whole number" if name in WHOLE else "a number"
        raise InvalidOption(f"{name}={value!r}: give {kind} from {low} to {high}")


def _expect_switch(name: str, value: object) -> None:
    """Refuse other values in Python: the text "false" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidOption(f"{name}={value!r}: give true or false")


def _color(text: str) -> Color:
    if not isinstance(text, str) or not re.match(FILL, text) or text.endswith("\n"):
        raise InvalidOption(f"fill={text!r}: give a colour as RRGGBB, six hexadecimal digits")
    red, green, blue = bytes.fromhex(text)
    return red, green, blue
