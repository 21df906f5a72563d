"""Parse the query string of POST /segment."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from postprocess import areas
from postprocess.areas import area
from postprocess.errors import InvalidOption
from postprocess.refine import Below, Refinement, below_label
from postprocess.sureness import min_confidences
from service.errors import InvalidRequest, NotAcceptable
from service.http import deadlines, packing
from service.http.negotiation import output_for, quality
from service.images.outputs import (
    INCLUDABLE,
    OUTPUTS,
    UNCALIBRATED,
    MaskFormat,
    OverlayFormat,
    Wish,
    check,
    parse_outputs,
)
from service.images.selection import select
from service.images.windows import Sliding
from service.inference.contract import Color, Contract
from service.inference.tensors import LENGTH_HEADER
from service.settings import Fit, Settings

# Comma-separated lists may also be repeated keys, as many clients write lists.
REPEATABLE = frozenset({"output", "classes", "include"})
MOST_PARAMETERS = 500  # classes=1&classes=2...; errors list them, so that more would take long
ONCE = ("Content-Type", deadlines.HEADER, LENGTH_HEADER, "Authorization")


async def refuse_repeats(request: Request) -> None:
    """Raise InvalidRequest if a parameter or header is repeated: only one value would count."""
    count = request.scope["query_string"].count(b"&")  # to parse thousands takes long
    if count > MOST_PARAMETERS:
        raise InvalidRequest(f"the query has {count} parameters, the limit is {MOST_PARAMETERS}")
    keys = [key for key, _ in request.query_params.multi_items() if key not in REPEATABLE]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise InvalidRequest(
            f"{', '.join(repeated)} is repeated, send it once: {_values(request, repeated)}"
        )
    if headers := [name for name in ONCE if len(request.headers.getlist(name)) > 1]:
        raise InvalidRequest(f"{', '.join(headers)}: send this header once")


def _values(request: Request, keys: list[str]) -> str:
    given = {key: request.query_params.getlist(key) for key in keys}
    return ", ".join(f"{key}={value!r}" for key, values in given.items() for value in values[:4])


class SegmentQuery(BaseModel):
    """The query parameters of POST /segment."""

    model_config = ConfigDict(extra="forbid")  # else a misspelt parameter is ignored silently

    output: Annotated[
        list[str] | None,
        Field(description=f"comma-separated list of {', '.join(OUTPUTS)}; default: by Accept"),
    ] = None
    model: Annotated[str | None, Field(description="a name from /models")] = None
    quality: Annotated[
        Literal["auto"] | None,
        Field(description="auto: the most exact model that the deadline and the load allow"),
    ] = None
    classes: Annotated[
        list[str] | None, Field(description="comma-separated class names or ids; default: all")
    ] = None
    alpha: Annotated[float, Field(ge=0, le=1, description="overlay opacity")] = 0.5
    contour: Annotated[
        int, Field(ge=0, le=32, description="width in pixels of outlines in the overlay")
    ] = 0
    overlay_format: Annotated[
        OverlayFormat | None, Field(description="default: by Accept, else jpeg")
    ] = None
    max_side: Annotated[
        int | None,
        Field(
            ge=1, description="longest side of pictures, in pixels; default: as long as the photo's"
        ),
    ] = None
    mask_format: Annotated[
        MaskFormat, Field(description="palette: PNG with the class colours; gray: 8-bit grey PNG")
    ] = "palette"
    include: Annotated[
        list[str] | None,
        Field(description=f"images to include in the JSON: {', '.join(INCLUDABLE)}"),
    ] = None

    min_confidence: Annotated[
        str | None,
        Field(
            description="pixels of a lower confidence get no class: 0.6, or person:0.8,car:0.5; "
            "default: 0"
        ),
    ] = None
    below: Annotated[
        Below, Field(description="what they become: the class background if there is one, or void")
    ] = "background"
    threshold: Annotated[
        Literal["best"] | None,
        Field(description="best: for classes that min_confidence does not name, the model's own"),
    ] = None
    smooth: Annotated[
        bool,
        Field(description="labels that follow the edges of the photo at its own size"),
    ] = False
    min_area: Annotated[
        str,
        Field(
            json_schema_extra={"pattern": areas.PATTERN},
            description="smaller regions take the class around them: pixels (64), or a share of "
            "the photo (0.001 or 0.1%)",
        ),
    ] = "0"
    fill_holes: Annotated[
        str,
        Field(
            json_schema_extra={"pattern": areas.PATTERN},
            description="background of up to this area that one class surrounds becomes that class",
        ),
    ] = "0"
    instances: Annotated[
        bool, Field(description="list the connected regions of each class in json, rle, polygons")
    ] = False
    simplify: Annotated[
        float,
        Field(ge=0, le=100, description="tolerance in pixels by which polygons are simplified"),
    ] = 0.0

    fill: Annotated[
        str,
        Field(pattern="^[0-9a-fA-F]{6}$", description="colour of output=replace, as RRGGBB"),
    ] = "ffffff"
    top: Annotated[
        int, Field(ge=0, le=256, description="in probabilities: only so many classes of each point")
    ] = 0
    coverage: Annotated[
        float | None,
        Field(gt=0, lt=1, description="in probabilities: sets with the truth in this share"),
    ] = None

    fit: Annotated[
        Fit | None,
        Field(
            description="for photos larger than the model: resize shrinks them, sliding cuts them "
            "into windows; default: the service's --fit"
        ),
    ] = None
    overlap: Annotated[
        float, Field(ge=0, le=0.5, description="least overlap of sliding windows, as a share")
    ] = 0.25

    def sliding(self, settings: Settings) -> Sliding | None:
        """Return the options for sliding windows, or None to shrink photos."""
        wanted = (self.fit or settings.fit) == "sliding"
        return Sliding(self.overlap, settings.max_windows) if wanted else None

    def refinement(self, contract: Contract) -> Refinement:
        """Return what to do to the labels; raises InvalidRequest."""
        best: tuple[float, ...] = ()
        if self.threshold == "best":
            if contract.calibration is None:
                raise InvalidRequest(f"threshold=best: {UNCALIBRATED}")
            best = contract.calibration.best_f1
        try:
            return Refinement(
                min_confidences(self.min_confidence or "", contract.classes, best),
                below_label(self.below, contract.background),
                area("min_area", self.min_area),
                area("fill_holes", self.fill_holes),
            )
        except InvalidOption as error:
            raise InvalidRequest(str(error)) from None

    def wish(self, contract: Contract, accept: str) -> Wish:
        """Return the requested outputs; raises InvalidRequest or NotAcceptable."""
        wish = Wish(
            _accepted(accept)
            if self.output is None
            else parse_outputs(",".join(self.output), "output", OUTPUTS),
            select(None if self.classes is None else ",".join(self.classes), contract),
            self.alpha,
            self.contour,
            self.overlay_format or _preferred_format(accept),
            self.mask_format,
            _included(self.include),
            self.refinement(contract),
            self.instances,
            self.simplify,
            _color(self.fill),
            self.smooth,
            self.top,
            self.coverage,
            self.max_side,
        )
        check(wish, contract)
        return wish


def _color(text: str) -> Color:
    red, green, blue = bytes.fromhex(text)
    return red, green, blue


def _included(listed: list[str] | None) -> tuple[str, ...]:
    text = ",".join(listed or ())
    return parse_outputs(text, "include", INCLUDABLE) if text else ()


def _accepted(accept: str) -> tuple[str, ...]:
    """Return the output for Accept; none if it only allows ZIP or multipart/mixed."""
    try:
        return (output_for(accept),)
    except NotAcceptable:
        if not packing.is_packed(accept):
            raise
        return ()


def _preferred_format(accept: str) -> OverlayFormat:
    return "png" if quality(accept, "image/png") > quality(accept, "image/jpeg") else "jpeg"
