"""The JSON answers as types, for the OpenAPI schema and the clients generated from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.inference.contract import VERSION, Color, Contract
from service.inference.shadow import Verdict


class Found(BaseModel):
    """Some pixels of a class."""

    id: int
    name: str
    pixels: int
    fraction: Annotated[float, Field(description="share of the photo, 0 to 1")]
    box: Annotated[list[int], Field(description="[x0, y0, x1, y1), in pixels")]
    confidence: Annotated[float | None, Field(description="mean, if the model has it")] = None


class FoundClass(Found):
    """One class in a photo."""

    regions: Annotated[
        int | None, Field(description="connected regions; null in a mask with too many to count")
    ] = None


class FoundInstance(Found):
    """One connected region of a class."""

    id: Annotated[int, Field(description="from 1 on, by class, the largest first")]
    class_id: int


class RunLengths(BaseModel):
    """COCO's compressed run lengths, for `pycocotools.mask.decode`."""

    size: Annotated[list[int], Field(description="[height, width]")]
    counts: str


class ClassWithRuns(FoundClass):
    """One class of `output=rle`."""

    segmentation: RunLengths


class InstanceWithRuns(FoundInstance):
    """One instance of `output=rle`."""

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
    instances: Annotated[list[FoundInstance] | None, Field(description="with `instances=true`")] = (
        None
    )
    mask: Picture | None = None
    color: Picture | None = None
    overlay: Picture | None = None
    confidence: Picture | None = None


class RleResult(Sized):
    """The answer to `output=rle`."""

    classes: list[ClassWithRuns]
    instances: Annotated[
        list[InstanceWithRuns] | None, Field(description="with `instances=true`")
    ] = None


class Outline(BaseModel):
    """The outlines of one class or instance, in pixel coordinates."""

    type: Literal["MultiPolygon"]
    coordinates: list[list[list[list[int]]]]


class Properties(FoundClass):
    """A class, or with `instances=true` an instance of one, and its colour."""

    class_id: Annotated[int | None, Field(description="of an instance")] = None
    color: Color


class Feature(BaseModel):
    """One class of `output=polygons`, or one instance."""

    type: Literal["Feature"]
    id: int
    bbox: list[int]
    properties: Properties
    geometry: Outline


class PolygonsResult(Sized):
    """The answer to `output=polygons`: GeoJSON."""

    type: Literal["FeatureCollection"]
    features: list[Feature]


class ShadowReport(BaseModel):
    """The results of a new file that runs as the shadow of a model."""

    model_config = ConfigDict(from_attributes=True)

    verdict: Verdict
    reason: Annotated[str | None, Field(description="reason of the verdict")] = None
    digest: Annotated[str, Field(description="SHA-256 of the file")]
    share: Annotated[float, Field(description="share of the images that the shadow gets")]
    images: Annotated[int, Field(description="images compared so far")]
    skipped: Annotated[int, Field(description="images left out because too many were waiting")]
    failures: int
    agreement: Annotated[float | None, Field(description="share of pixels of the same label")]
    class_agreement: Annotated[
        dict[str, float | None],
        Field(description="IoU of both models' regions by class; null: in no photo"),
    ]
    seconds: Annotated[float, Field(description="seconds per image in the shadow")]
    served_seconds: Annotated[float, Field(description="seconds per image in the served model")]
    memory_bytes: Annotated[int, Field(description="growth of the service's memory, in bytes")]


class ModelDescription(Contract):
    """A served model."""

    # A number: openapi-python-client writes broken code for a constant one.
    version: Annotated[Literal[1], WithJsonSchema({"type": "integer"})] = VERSION
    name: str
    default: Annotated[bool, Field(description="whether it answers requests that name none")]
    digest: Annotated[str, Field(description="SHA-256 of its file")]
    execution_provider: Annotated[str, Field(description="execution provider in use")]
    execution_precision: Annotated[str, Field(description="number format in use")]
    sessions: Annotated[int, Field(description="engine sessions that take work")]
    shadow: Annotated[
        ShadowReport | None, Field(description="the trial in progress, or the last one")
    ] = None


class ModelList(BaseModel):
    """All served models."""

    models: list[ModelDescription]


class Reloaded(ModelDescription):
    """A model after a reload."""

    changed: Annotated[bool, Field(description="false: the file is the same as before")]


RESULTS: tuple[type[BaseModel], ...] = (JsonResult, RleResult, PolygonsResult)
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
