"""The JSON answers as types, for the OpenAPI schema and the clients generated from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from service.inference.contract import VERSION, Color, Contract


class FoundClass(BaseModel):
    """One class in a photo."""

    id: int
    name: str
    pixels: int
    fraction: Annotated[float, Field(description="share of the photo, 0 to 1")]
    box: Annotated[list[int], Field(description="[x0, y0, x1, y1), in pixels")]
    confidence: Annotated[float | None, Field(description="mean, if the model has it")] = None


class RunLengths(BaseModel):
    """COCO's compressed run lengths, for `pycocotools.mask.decode`."""

    size: Annotated[list[int], Field(description="[height, width]")]
    counts: str


class ClassWithRuns(FoundClass):
    """One class of `output=rle`."""

    segmentation: RunLengths


class Picture(BaseModel):
    """An image inside JSON (`include`)."""

    media_type: str
    base64: str


class Sized(BaseModel):
    """The fields of all JSON answers: the photo's size and the applied EXIF orientation."""

    width: int
    height: int
    orientation: int


class JsonResult(Sized):
    """The answer to `output=json`."""

    classes: list[FoundClass]
    mask: Picture | None = None
    color: Picture | None = None
    overlay: Picture | None = None
    confidence: Picture | None = None


class RleResult(Sized):
    """The answer to `output=rle`."""

    classes: list[ClassWithRuns]


class Outline(BaseModel):
    """The outlines of one class, in pixel coordinates."""

    type: Literal["MultiPolygon"]
    coordinates: list[list[list[list[int]]]]


class Properties(FoundClass):
    """A class and its colour."""

    color: Color


class Feature(BaseModel):
    """One class of `output=polygons`."""

    type: Literal["Feature"]
    id: int
    bbox: list[int]
    properties: Properties
    geometry: Outline


class PolygonsResult(Sized):
    """The answer to `output=polygons`: GeoJSON."""

    type: Literal["FeatureCollection"]
    features: list[Feature]


class ModelDescription(Contract):
    """A served model."""

    # A number: openapi-python-client writes broken code for a constant one.
    version: Annotated[Literal[1], WithJsonSchema({"type": "integer"})] = VERSION
    name: str
    default: Annotated[bool, Field(description="whether it answers requests that name none")]
    digest: Annotated[str, Field(description="SHA-256 of its file")]
    execution_provider: Annotated[str, Field(description="what it really runs on")]
    execution_precision: Annotated[str, Field(description="what it really computes in")]
    sessions: Annotated[int, Field(description="engine sessions that take work")]


class ModelList(BaseModel):
    """All served models."""

    models: list[ModelDescription]


class Reloaded(ModelDescription):
    """A model after a reload."""

    changed: Annotated[bool, Field(description="false: the file is the same as before")]


RESULTS: tuple[type[BaseModel], ...] = (JsonResult, RleResult, PolygonsResult)
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
