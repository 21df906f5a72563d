"""HTTP, the client and Python offer the same options by the same names, with equal results."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import model
from export.calibrate import write, write_beside
from export.writer import ExportOptions, export
from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import voc_palette
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import nearest
from postprocess.errors import InvalidOption, TooLarge
from postprocess.results.options import wish
from service.client import flags, protocol
from service.client.cli import _parser
from service.client.transport import ask_segment
from service.http.query import SegmentQuery
from service.inference.contract import Calibration
from service.inference.engine import Engine, EngineOptions
from tests.model.nets import photo as patches
from tests.model.nets import tiny
from tests.service.web import png, serving

pytestmark = pytest.mark.slow

BILINEAR = Image.Resampling.BILINEAR
OF_A_SERVICE = {"model", "quality"}  # these choose a model, and Python and --local load a named one
CALIBRATION = Calibration(
    dataset="tiny",
    split="val",
    images=99,
    best_f1=(0.0, 0.5, 0.4, 0.45, 0.35),
    missed=tuple([0.0] * 30 + [0.04] * 51 + [0.5] * 175),
)


def parameters(function: Any, *others: str) -> set[str]:
    return {*inspect.signature(function).parameters} - {*others}


def test_every_door_has_every_option() -> None:
    """The table in docs/api.md says the same in words."""
    of_http = {*SegmentQuery.model_fields} - OF_A_SERVICE
    of_python = parameters(model.segment, "net", "photo", "scales", "flip")
    of_command = {flags.RENAMED.get(name, name) for name in flags.QUERY} | {"output"}
    assert of_python == of_http
    assert of_command == of_http
    of_labels = parameters(model.predict, "net", "photo", "scales", "flip", "whole")
    assert of_labels < of_http
    assert parameters(wish, "facts") == of_http - {"fit", "overlap"}


def test_defaults_are_the_same() -> None:
    fields = SegmentQuery.model_fields
    signature = inspect.signature(model.segment).parameters
    by_accept_or_settings = {"output", "overlay_format", "fit"}
    for name in {*fields} - OF_A_SERVICE - by_accept_or_settings:
        ours, theirs = signature[name].default, fields[name].default
        assert ours == theirs or not (ours or float(theirs or 0)), name


def test_every_flag_reaches_the_query() -> None:
    """In the form that the service accepts; a value of another form would be refused here."""
    given = {
        "fit": "sliding",
        "overlap": "0.3",
        "classes": "a",
        "min_confidence": "a:0.8",
        "below": "void",
        "threshold": "best",
        "min_area": "0.1%",
        "fill_holes": "9",
        "simplify": "2.0",
        "fill": "00ff00",
        "top": "2",
        "coverage": "0.9",
        "alpha": "0.7",
        "contour": "2",
        "overlay_format": "webp",
        "mask_format": "gray",
        "picture_side": "99",
        "include": "mask",
    }
    switches = ["smooth", "instances", "legend"]
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    arguments += [f"--{name}" for name in switches]
    options = _parser().parse_intermixed_args(["u", "i", "-o", "o", *arguments])
    sent = dict(httpx.QueryParams(flags.query(options)))
    expected = given | dict.fromkeys(switches, "true")
    assert sent == {flags.RENAMED.get(name, name): value for name, value in expected.items()}
    assert set(expected) == set(flags.QUERY)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and its exported file, both calibrated; all classes occur."""
    folder = tmp_path_factory.mktemp("doors")
    net = tiny()
    classes, colors = ("background", "a", "b", "c", "d"), tuple(voc_palette(5))
    card = Card(model=net.config, classes=classes, palette=colors)
    checkpoint.save(folder / "tiny", net.state_dict(), card)
    path = folder / "tiny.onnx"
    export(folder / "tiny", path, ExportOptions(confidence=True, probabilities=True))
    contract = Engine(path, EngineOptions("cpu", threads=1)).contract
    write(path, contract.model_copy(update={"calibration": CALIBRATION}))
    write_beside(folder / "tiny", CALIBRATION)
    return folder


@pytest.fixture(scope="module")
def service(files: Path) -> Iterator[TestClient]:
    with serving(files) as client:
        yield client


@pytest.fixture(scope="module")
def net(files: Path) -> DeepLabV3Plus:
    return model.load(files / "tiny")


SMALL, LARGE = patches(50, 60), patches(190, 260)  # than the model's input of 65 x 65
ALL = "mask,color,overlay,json,rle,polygons,npz,confidence,probabilities,cutout,blur,replace"
CASES: list[dict[str, Any]] = [
    {"output": f"{ALL},side-by-side"},
    {"output": "heatmap", "classes": "b"},
    {"output": "mask,json,npz", "classes": "a,3", "min_area": "2%", "fill_holes": "5%"},
    {"output": "mask,polygons", "min_confidence": "0.4,b:0.5", "below": "void"},
    {"output": "mask,json", "threshold": "best"},
    {"output": "mask,overlay,polygons", "smooth": True, "simplify": 2.0},
    {"output": "json,rle,polygons,npz", "instances": True, "min_area": "30"},
    {"output": "probabilities", "top": 2, "coverage": 0.95},
    {"output": "overlay,side-by-side", "legend": True, "alpha": 0.7, "contour": 2},
    {"output": "overlay,cutout,blur", "overlay_format": "webp", "classes": "a,b"},
    {"output": "overlay,cutout", "overlay_format": "avif", "classes": "a"},
    {"output": "json", "include": "mask,overlay", "overlay_format": "png", "max_side": 50},
    {"output": "mask,replace", "mask_format": "gray", "fill": "00ff80", "classes": "c"},
    {"output": "mask,json,probabilities,confidence", "fit": "sliding", "overlap": 0.4},
    {"output": "mask,overlay,polygons", "fit": "sliding", "smooth": True, "min_area": "9"},
    {"output": "heatmap,cutout", "fit": "sliding", "classes": "b", "overlay_format": "png"},
]


def test_the_cases_use_every_option() -> None:
    assert {name for case in CASES for name in case} == {*SegmentQuery.model_fields} - OF_A_SERVICE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_option_has_an_effect(net: DeepLabV3Plus, case: dict[str, Any]) -> None:
    """Otherwise the comparison below would not notice an option that an interface ignores."""
    full = model.segment(net, LARGE, **case)
    for name in {*case} - {"output"}:
        rest = {other: value for other, value in case.items() if other != name}
        if name == "classes" and case["output"] != "heatmap" and "fit" not in case:
            assert model.segment(net, LARGE, **rest) != full
        elif name not in {"classes", "overlap", "fill_holes"}:  # patches have no holes
            assert model.segment(net, LARGE, **rest) != full, name


def through_the_client(
    service: TestClient, data: bytes, size: tuple[int, int], case: dict[str, Any]
) -> dict[str, bytes]:
    """Send the client's own request, and parse and check the answer with its code."""
    options = {name: value for name, value in case.items() if name != "output"}
    outputs = protocol.parse_outputs(case["output"])
    ask = ask_segment(data, outputs, None, options)
    sent = service.request(
        ask.method, ask.path, params=ask.params, content=ask.content(), headers=ask.headers()
    )
    assert sent.status_code == 200, sent.text
    answer = httpx.Response(200, headers=dict(sent.headers), content=sent.content)
    return protocol.segmentation(answer, outputs, size, case.get("max_side")).files()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("photo", [SMALL, LARGE], ids=["small", "large"])
def test_all_doors_give_equal_files(
    service: TestClient, net: DeepLabV3Plus, case: dict[str, Any], photo: Any
) -> None:
    """Python's network and the exported file may differ by a rounding of probabilities."""
    ours = model.segment(net, photo, **case)
    size = (photo.shape[1], photo.shape[0])
    expect_equal(ours, through_the_client(service, png(photo), size, case))


def camera_jpeg(path: Path, width: int, height: int) -> None:
    """A JPEG that a service decodes at a fraction of its size, stored on its side."""
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(patches(height, width)).resize((width, height))
    image.save(path, exif=exif, quality=90)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_doors_decode_a_large_jpeg_alike(
    service: TestClient, net: DeepLabV3Plus, case: dict[str, Any], tmp_path: Path
) -> None:
    """At a fraction of its size where the model needs no more; pictures show all of it."""
    path = tmp_path / "camera.jpg"
    camera_jpeg(path, 300, 220)
    ours = model.segment(net, path, **case)
    expect_equal(ours, through_the_client(service, path.read_bytes(), (220, 300), case))


def test_python_decodes_no_more_of_a_jpeg_than_it_needs(net: DeepLabV3Plus, tmp_path: Path) -> None:
    """Its labels differ from those of all pixels in places, and its windows have all pixels."""
    path = tmp_path / "camera.jpg"
    camera_jpeg(path, 300, 220)
    with Image.open(path) as image, Image.open(path) as again:
        whole = np.rot90(np.asarray(image), -1)
        again.draft("RGB", (75, 55))
        quarter = again.transpose(Image.Transpose.ROTATE_270)
    assert quarter.size == (55, 75)
    small = quarter.resize((48, 65), BILINEAR, reducing_gap=2.0)
    labels = model.predict(net, path)
    assert (
        labels == model.predict(net, np.asarray(small))[nearest(65, 300)][:, nearest(48, 220)]
    ).all()
    assert (labels != model.predict(net, whole)).any()
    sliding = model.predict(net, path, fit="sliding")
    assert (sliding == model.predict(net, whole, fit="sliding")).all()


def expect_equal(ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    assert set(ours) == set(theirs)
    for name, body in ours.items():
        if body != theirs[name]:
            expect_close(name, body, theirs[name])


def expect_close(name: str, ours: bytes, theirs: bytes) -> None:
    """Compare the content of two files, up to differences by rounding."""
    if name.endswith(".npz"):
        with np.load(io.BytesIO(ours)) as one, np.load(io.BytesIO(theirs)) as other:
            assert set(one) == set(other)
            for key in one:
                expect_close_arrays(one[key], other[key])
    elif name.endswith(".json"):
        expect_close_values(json.loads(ours), json.loads(theirs))
    else:
        one, other = (np.asarray(Image.open(io.BytesIO(each))) for each in (ours, theirs))
        if name.endswith(".png"):
            expect_close_arrays(one, other)
        else:  # a pixel spreads over a block of the codec
            assert one.shape == other.shape
            assert np.abs(one.astype(float) - other).mean() < 2


def expect_close_arrays(one: Any, other: Any) -> None:
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    if one.dtype.kind in "iuf":
        assert (np.abs(one.astype(float) - other) <= 1).mean() > 0.99
    else:
        assert (one == other).all()


def expect_close_values(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            expect_close_values(one[key], other[key])
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, abs=0.003)
    else:
        assert type(one) is type(other)
        assert one == other or isinstance(one, list | int | str)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"alpha": 1.1}, "1"),
    ({"contour": 33}, "32"),
    ({"contour": 1.5}, "contour"),
    ({"simplify": 101}, "100"),
    ({"top": 257, "output": "probabilities"}, "256"),
    ({"coverage": 1, "output": "probabilities"}, "1"),
    ({"max_side": 0}, "1"),
    ({"fill": "red", "output": "replace"}, "RRGGBB, six hexadecimal digits"),
    ({"overlay_format": "gif"}, "avif"),
    ({"mask_format": "rgb"}, "palette"),
    ({"below": "car"}, "void"),
    ({"threshold": "worst"}, "best"),
    ({"min_confidence": "1.5"}, "0 to 1"),
    ({"min_confidence": "cow:0.5"}, "0 background"),
    ({"min_confidence": "a:0.5,1:0.6"}, "two numbers from 0 to 1 are for the class a"),
    ({"min_confidence": "0.5,0.6"}, "for all classes"),
    ({"min_area": "-3"}, "min_area"),
    ({"fill_holes": "101%"}, "100%"),
    ({"overlap": 0.6, "fit": "sliding"}, "0.5"),
    ({"overlap": 0.6}, "0.5"),
    ({"fit": "crop"}, "sliding"),
    ({"smooth": "maybe"}, "true or false"),
    ({"instances": "7"}, "true or false"),
    ({"legend": "", "output": "overlay"}, "true or false"),
    ({"classes": "cow"}, "0 background"),
    ({"output": "video"}, "polygons"),
    ({"include": "npz", "output": "json"}, "confidence"),
    ({"include": "mask"}, "output=json"),
    ({"legend": True}, "side-by-side"),
    ({"top": 3}, "output=probabilities"),
    ({"output": "heatmap", "classes": "a,b"}, "one class"),
]


@pytest.mark.parametrize(("bad", "told"), BAD, ids=str)
@pytest.mark.parametrize("beside", [{}, {"min_area": "9", "instances": True}], ids=str)
def test_a_bad_value_is_refused_and_the_range_named_at_each_door(
    service: TestClient, net: DeepLabV3Plus, bad: dict[str, Any], told: str, beside: dict[str, Any]
) -> None:
    options = beside | bad
    with pytest.raises(InvalidOption, match=told) as caught:
        model.segment(net, SMALL, **options)
    answer = service.post(
        "/segment", params=options, content=png(SMALL), headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "invalid-request"
    name = next(iter(bad))
    for message in (str(caught.value), answer.json()["detail"]):
        assert name in message
        assert told in message


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        *((name, True, "from 0") for name in ("alpha", "contour", "simplify", "top", "overlap")),
        *((name, "1", "from 0") for name in ("alpha", "contour", "simplify", "top", "overlap")),
        *((name, True, "from 1") for name in ("min_area", "fill_holes", "max_side")),
        *((name, [1], "from 1") for name in ("min_area", "fill_holes", "max_side")),
        *(("min_confidence", value, "from 0 to 1") for value in (True, [0.5], {"a": None})),
        *(("coverage", value, "above 0 and below 1") for value in ("0.9", True, [0.9])),
        *((name, 8, "names") for name in ("output", "classes", "include")),
        *((name, None, "choose from") for name in ("below", "mask_format", "overlay_format")),
        *((name, None, "true or false") for name in ("smooth", "instances", "legend")),
        ("fill", (255, 255, 255), "RRGGBB"),
        ("fit", None, "resize, sliding"),
        ("threshold", True, "best"),
    ],
)
def test_python_refuses_values_of_other_types_with_the_range(
    net: DeepLabV3Plus, option: str, value: Any, told: str
) -> None:
    """The service gets texts only; here a wrong type must not end in a TypeError deep inside."""
    with pytest.raises(InvalidOption, match=told) as caught:
        model.segment(net, SMALL, **{option: value})
    assert str(caught.value).startswith(f"{option}=")


def test_python_refuses_with_its_own_errors(net: DeepLabV3Plus) -> None:
    """They are ValueErrors, so that callers need not import a module of this project."""
    assert issubclass(InvalidOption, ValueError)
    assert issubclass(TooLarge, ValueError)
    refused = partial(model.predict, net, SMALL)
    with pytest.raises(InvalidOption, match="smooth"):
        refused(smooth=True, whole=True)


def test_a_calibration_of_other_weights_is_not_used(files: Path, tmp_path: Path) -> None:
    card = checkpoint.read_card(files / "tiny")
    weights = checkpoint.read_weights(files / "tiny")
    for name in ("tiny.json", "tiny.safetensors", "tiny.calibration.json"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    assert model.load(tmp_path / "tiny").calibration is not None
    weights["logits.bias"] += 1
    checkpoint.save(tmp_path / "tiny", weights, card)
    net = model.load(tmp_path / "tiny")
    with pytest.raises(InvalidOption, match=r"export\.calibrate"):
        model.predict(net, SMALL, threshold="best")
    (tmp_path / "tiny.calibration.json").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError, match=r"tiny\.calibration\.json"):
        model.load(tmp_path / "tiny")
