"""Parse the query string of POST /segment."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from postprocess import areas
from postprocess.refine import Below
from postprocess.results import options
from postprocess.results.options import FILL, MOST_OVERLAP
from postprocess.results.outputs import INCLUDABLE, OUTPUTS, MaskFormat, OverlayFormat, Wish
from postprocess.windows import Sliding
from service.errors import InvalidRequest, NotAcceptable
from service.http import deadlines, packing, problems
from service.http.negotiation import output_for, preferred_format
from service.images.refusals import refusals
from service.inference.contract import Contract
from service.inference.tensors import LENGTH_HEADER
from service.settings import Fit, Settings

# Comma-separated lists may also be repeated keys, as many clients write lists.
REPEATABLE = frozenset({"output", "classes", "include"})
MOST_PARAMETERS = 500  # classes=1&classes=2...; to parse 9,000 of them takes 10 ms
ONCE = ("Content-Type", deadlines.HEADER, LENGTH_HEADER, "Authorization")


class ParameterLimit:
    """ASGI middleware: refuse a query of too many parameters before it is parsed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        count = 1 + scope["query_string"].count(b"&") if scope["type"] == "http" else 0
        if count <= MOST_PARAMETERS:
            await self.app(scope, receive, send)
            return
        text = f"the query has {count} parameters, the limit is {MOST_PARAMETERS}"
        await problems.answer(scope, InvalidRequest(text))(scope, receive, send)


async def refuse_repeats(request: Request) -> None:
    """Raise InvalidRequest if a parameter or header is repeated: only one value would count."""
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
    legend: Annotated[
        bool, Field(description="draw names and shares of the classes into overlay, side-by-side")
    ] = False
    overlay_format: Annotated[
        OverlayFormat | None,
        Field(
            description="format of overlay, blur, replace, side-by-side, heatmap; webp and avif "
            "also of cutout; default: by Accept, else jpeg"
        ),
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
        Below,
        Field(description="label of these pixels: the class background if there is one, or void"),
    ] = "background"
    threshold: Annotated[
        Literal["best"] | None,
        Field(description="best: the calibrated one for classes that min_confidence does not name"),
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
        Field(
            json_schema_extra={"pattern": FILL},
            description="colour of output=replace, as RRGGBB",
        ),
    ] = "ffffff"
    top: Annotated[
        int,
        Field(
            ge=0,
            le=256,
            description="in probabilities: only this many classes of each point, the most probable",
        ),
    ] = 0
    coverage: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="in probabilities: sets of classes that contain the true one in this share "
            "of pixels",
        ),
    ] = None

    fit: Annotated[
        Fit | None,
        Field(
            description="for photos larger than the model: resize shrinks them, sliding cuts them "
            "into windows; default: the service's --fit"
        ),
    ] = None
    overlap: Annotated[
        float,
        Field(ge=0, le=MOST_OVERLAP, description="least overlap of windows, as a share"),
    ] = 0.25

    def sliding(self, settings: Settings) -> Sliding | None:
        """Return the options for sliding windows, or None to shrink photos."""
        wanted = (self.fit or settings.fit) == "sliding"
        return Sliding(self.overlap, settings.max_windows) if wanted else None

    def wish(self, contract: Contract, accept: str) -> Wish:
        """Return the requested outputs; raises InvalidRequest or NotAcceptable."""
        with refusals():
            return options.wish(
                contract,
                _accepted(accept) if self.output is None else self.output,
                classes=None if self.classes is None else ",".join(self.classes),
                alpha=self.alpha,
                contour=self.contour,
                legend=self.legend,
                overlay_format=self.overlay_format or preferred_format(accept),
                max_side=self.max_side,
                mask_format=self.mask_format,
                include=",".join(self.include or ()),
                min_confidence=self.min_confidence or None,
                below=self.below,
                threshold=self.threshold,
                smooth=self.smooth,
                min_area=self.min_area,
                fill_holes=self.fill_holes,
                instances=self.instances,
                simplify=self.simplify,
                fill=self.fill,
                top=self.top,
                coverage=self.coverage,
            )


def _accepted(accept: str) -> str | None:
    """Return the output for Accept; None if it only allows ZIP or multipart/mixed."""
    try:
        return output_for(accept)
    except NotAcceptable:
        if not packing.is_packed(accept):
            raise
        return None


def bounds(where: tuple[int | str, ...]) -> str:
    """Return which numbers a parameter allows; empty if all. `where`: the place of an error."""
    field = SegmentQuery.model_fields.get(str(where[-1]))
    if field is None:
        return ""
    kind = "a whole number" if field.annotation in {int, int | None} else "a number"
    words = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "and below {}"}
    ends = [
        text.format(getattr(bound, name))
        for name, text in words.items()
        for bound in field.metadata
        if hasattr(bound, name)
    ]
    return f"give {kind} {' '.join(ends).removeprefix('and ')}" if ends else ""
