"""The functions for CVAT, run by cvat-sdk's own code."""

from __future__ import annotations

import ast
import base64
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import cvat_sdk.masks
import numpy as np
import pytest
import yaml
from cvat_sdk import models
from cvat_sdk.auto_annotation import driver
from numpy.typing import NDArray
from PIL import Image

from annotations.shapes import Outline, ring
from service.client import Client, UsageError
from service.label_tools import cvat, nuclio
from service.label_tools.drafts import Drafter

pytestmark = pytest.mark.slow

Create = Callable[..., cvat.Function]


@pytest.fixture
def create(url: str) -> Iterator[Create]:
    """Make functions, and close their connections afterwards."""
    made: list[cvat.Function] = []

    def make(**options: Any) -> cvat.Function:
        made.append(cvat.create(url, **options))
        return made[-1]

    yield make
    for function in made:
        function.close()


def annotated(
    function: Any, content: bytes, kind: str, *, to_polygons: bool = False, threshold: float = 0.0
) -> list[Any]:
    """What cvat-cli would send to CVAT for a task with the labels 11 dim and 12 bright."""
    labels = [
        models.Label(id=10 + number, name=name, attributes=[], type=kind, sublabels=[])
        for number, name in ((1, "dim"), (2, "bright"))
    ]
    mapper = driver._AnnotationMapper(
        logging.getLogger("test"),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        conv_mask_to_poly=to_polygons,
    )
    context = driver._DetectionFunctionContextImpl(
        frame_name="a.png", conv_mask_to_poly=to_polygons, conf_threshold=threshold
    )
    with Image.open(io.BytesIO(content)) as image:
        shapes = function.detect(context, image)
    _, remapped = mapper.validate_and_remap(shapes, 0)
    return list(remapped)


def filled(size: tuple[int, int], points: list[float]) -> NDArray[np.bool_]:
    patch = Outline((ring(points),)).patch(size)
    found = np.zeros((size[1], size[0]), bool)
    height, width = patch.pixels.shape
    found[patch.top : patch.top + height, patch.left : patch.left + width] = patch.pixels
    return found


def test_masks_are_the_services_mask(
    create: Create, content: bytes, expected: NDArray[np.uint8]
) -> None:
    height, width = expected.shape
    found = np.zeros_like(expected)
    for shape in annotated(create(shapes="masks", min_area=0), content, "mask"):
        pixels = cvat_sdk.masks.decode_mask(shape.points, image_width=width, image_height=height)
        found[pixels] = shape.label_id - 10
    assert (found == expected).all()


@pytest.mark.parametrize(("shapes", "kind"), [("polygons", "polygon"), ("masks", "polygon")])
def test_polygons_are_the_services_mask(
    shapes: str, kind: str, create: Create, content: bytes, expected: NDArray[np.uint8]
) -> None:
    """This also holds if cvat-cli asks a function of masks for polygons."""
    function = create(shapes=shapes, tolerance=0.0, min_area=0)
    found = np.zeros_like(expected)
    for shape in annotated(function, content, kind, to_polygons=shapes == "masks"):
        found[filled(expected.shape[::-1], list(shape.points))] = shape.label_id - 10
    assert (found == expected).all()


def test_shapes_below_cvats_threshold_are_left_out(create: Create, content: bytes) -> None:
    """The tiny model's confidence is the red channel: that of `dim` is below a half."""
    shapes = annotated(create(min_area=0), content, "polygon", threshold=0.6)
    assert {shape.label_id for shape in shapes} == {12}


def test_labels_are_the_models_without_background(create: Create) -> None:
    spec: cvataa.DetectionFunctionSpec = create().spec
    assert [(label.id, label.name) for label in spec.labels] == [(1, "dim"), (2, "bright")]


def test_wrong_parameters_are_named(create: Create) -> None:
    with pytest.raises(UsageError, match="shapes=dots: choose from polygons, masks"):
        create(shapes="dots")
    with pytest.raises(UsageError, match="model huge: the service has tiny"):
        create(model="huge")


class Nuclio:
    """What Nuclio passes to a handler."""

    def __init__(self) -> None:
        self.user_data = SimpleNamespace()

    class Response:
        def __init__(self, **fields: Any) -> None:
            self.__dict__.update(fields)


@pytest.mark.parametrize("shapes", ["polygons", "masks"])
def test_the_nuclio_function_gives_the_services_mask(
    shapes: str,
    url: str,
    content: bytes,
    expected: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mask is the pixels of its box, then the box: CVAT unpacks it so."""
    monkeypatch.setenv("DEEPLAB_URL", url)
    monkeypatch.setenv("DEEPLAB_SHAPES", shapes)
    monkeypatch.setenv("DEEPLAB_TOLERANCE", "0")
    monkeypatch.setenv("DEEPLAB_MIN_AREA", "0")
    context = Nuclio()
    nuclio.init_context(context)
    body = {"image": base64.b64encode(content).decode()}
    answer = nuclio.handler(context, SimpleNamespace(body=json.dumps(body).encode()))
    context.user_data.drafter.client.close()
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    found = np.zeros_like(expected)
    for shape in json.loads(answer.body):
        number = {"dim": 1, "bright": 2}[shape["label"]]
        if shape["type"] == "polygon":
            found[filled(expected.shape[::-1], shape["points"])] = number
            continue
        *flat, left, top, right, bottom = shape["mask"]
        pixels = np.array(flat, bool).reshape(bottom - top + 1, right - left + 1)
        found[top : bottom + 1, left : right + 1][pixels] = number
    assert (found == expected).all()


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"{}", 400), ({"image": "?"}, 400), ({"image": "aaaa"}, 502)]
)
def test_the_nuclio_function_names_what_is_wrong(body: Any, status: int, client: Client) -> None:
    """The last one is no photo, which the service says."""
    got, answer = nuclio.respond(Drafter(client), body)
    assert got == status
    assert answer["error"]


def test_the_function_file_names_the_bundled_models_labels() -> None:
    """CVAT matches labels by name; the file's module has what Nuclio calls."""
    folder = Path(__file__).parents[3] / "docker" / "nuclio"
    document = yaml.safe_load((folder / "function.yaml").read_text(encoding="utf-8"))
    spec = json.loads(document["metadata"]["annotations"]["spec"])
    card = json.loads((folder.parents[1] / "model/bundled/efficientnet-lite0-voc.json").read_text())
    assert [(each["id"], each["name"]) for each in spec] == [*enumerate(card["classes"])][1:]
    module, _, function = document["spec"]["handler"].partition(":")
    tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
    names = {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {function, "init_context"} <= names
