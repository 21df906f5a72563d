"""Which photos and outputs are handled in threads: those whose header bounds the work."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from pixels.bands import PHOTO, Samples
from postprocess.areas import area
from postprocess.refine import Refinement
from postprocess.results.outputs import OUTPUTS, Result, Wish
from postprocess.results.selection import select
from postprocess.windows import Sliding
from service.decoders.interface import Threads
from service.decoders.light import LIGHT_OUTPUTS, LightInThreads
from service.decoders.processes import Processes
from service.errors import InvalidImage
from service.images import join
from service.images.prepare import Header, Plan, Prepared
from service.inference.contract import InputSize
from service.inference.engine import Prediction
from tests.service import onnx_models
from tests.service.web import photo, png

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="decoder processes need Linux")

TARGET = InputSize(policy="fixed", height=48, width=64, pad=(1, 2, 3))
MASK, OVERLAY = Plan(TARGET, None, whole=False), Plan(TARGET, None, whole=True)
CONTRACT = onnx_models.contract(input=TARGET, confidence=True)
ALL = select(None, CONTRACT)
EMPTY_SCAN = bytes.fromhex("ffda0008010100010100")  # coefficient 1 of component 1, without data


class Noted(Processes):
    """Processes that note what they are given."""

    def __init__(self) -> None:
        super().__init__(light=1, heavy=1, max_pixels=10**7)
        self.asked: list[str] = []

    def open(self, data: bytes, max_pixels: int, samples: Samples = PHOTO) -> Future[Header]:
        self.asked.append("open")
        return super().open(data, max_pixels, samples)

    def prepare(self, found: Header, plan: Plan) -> Future[Prepared]:
        self.asked.append("prepare")
        return super().prepare(found, plan)

    def encode(self, found: Header, result: Result, wish: Wish) -> Future[dict[str, bytes]]:
        self.asked.append("encode")
        return super().encode(found, result, wish)


@pytest.fixture(scope="module")
def pool() -> Iterator[Noted]:
    pool = Noted()
    yield pool
    pool.close()


@pytest.fixture
def both(pool: Noted) -> Iterator[tuple[LightInThreads, Noted]]:
    pool.asked.clear()
    with ThreadPoolExecutor(1) as threads:
        yield LightInThreads(Threads(threads), pool), pool


def jpeg(height: int, width: int, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo(height, width)).save(out, "JPEG", **options)
    return out.getvalue()


def oriented() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return exif.tobytes()


def with_scans(number: int, side: int) -> bytes:
    data = jpeg(side, side, progressive=True)
    return data[:-2] + EMPTY_SCAN * (number - data.count(b"\xff\xda")) + data[-2:]


def segments(number: int) -> bytes:
    data = jpeg(30, 40)
    return data[:2] + b"\xff\xfe\0\2" * number + data[2:]


def profiled() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return jpeg(30, 40, icc_profile=profile)


@pytest.mark.parametrize(
    "data",
    [jpeg(30, 40), jpeg(700, 900), jpeg(90, 60, progressive=True), jpeg(90, 60, exif=oriented())],
    ids=["small", "larger than the input", "progressive", "turned"],
)
def test_ordinary_small_photos_need_no_process(
    both: tuple[LightInThreads, Noted], data: bytes
) -> None:
    """Neither to be opened nor to be decoded nor for a mask and an overlay."""
    decoders, others = both
    found = decoders.open(data, 10**6).result(20)
    prepared = decoders.prepare(found, OVERLAY).result(20)
    decoders.encode(found, result_of(prepared), wish("mask", "overlay")).result(20)
    assert others.asked == []


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (png(photo(30, 40)), ["open", "prepare"]),
        (profiled(), ["open", "prepare"]),
        (jpeg(2000, 1300), ["prepare"]),
        (jpeg(30, 40) + bytes(1_000_000), ["prepare"]),
        (jpeg(30, 40) + bytes(20_000_000), ["open", "prepare"]),
        (segments(40), ["open", "prepare"]),
        (with_scans(90, 900), ["prepare"]),
    ],
    ids=["PNG", "profile", "large", "long", "very long", "segments", "scans"],
)
def test_photos_whose_header_does_not_bound_the_work_go_to_processes(
    both: tuple[LightInThreads, Noted], data: bytes, asked: list[str]
) -> None:
    """Another format, a colour profile, more pixels, bytes, segments or scans than usual."""
    decoders, others = both
    found = decoders.open(data, 10**7).result(20)
    decoders.prepare(found, MASK).result(20)
    assert others.asked == asked


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 25, 180, 400])
def test_a_cut_header_is_refused_as_ever(both: tuple[LightInThreads, Noted], length: int) -> None:
    decoders, _ = both
    with pytest.raises(InvalidImage):
        decoders.open(jpeg(30, 40)[:length], 10**6).result(20)


def test_windows_are_made_in_processes(both: tuple[LightInThreads, Noted]) -> None:
    """A small photo may have many windows of a small model."""
    decoders, others = both
    found = decoders.open(jpeg(300, 400), 10**6).result(20)
    decoders.prepare(found, replace(MASK, sliding=Sliding(0.25, 300))).result(20)
    assert others.asked == ["prepare"]


@pytest.mark.parametrize(
    "asked",
    [
        *[{"outputs": (name,)} for name in sorted({*OUTPUTS} - LIGHT_OUTPUTS)],
        {"overlay_format": "avif", "outputs": ("overlay",)},
        {"refinement": Refinement(min_area=area("min_area", "9"))},
        {"refinement": Refinement(fill_holes=area("fill_holes", "9"))},
        {"instances": True},
        {"smooth": True},
        {"include": ("mask",), "outputs": ("json",)},
    ],
    ids=str,
)
def test_outputs_that_depend_on_the_labels_for_their_time_are_made_in_processes(
    both: tuple[LightInThreads, Noted], asked: dict[str, Any]
) -> None:
    decoders, others = both
    found = decoders.open(jpeg(30, 40), 10**6).result(20)
    prepared = decoders.prepare(found, replace(OVERLAY, decoded=True)).result(20)
    encoding = decoders.encode(found, result_of(prepared), replace(wish("mask"), **asked))
    encoding.exception(20)
    assert others.asked == ["encode"]


def wish(*outputs: str) -> Wish:
    return Wish(outputs, ALL)


def result_of(prepared: Prepared) -> Result:
    height, width = prepared.valid
    labels = np.zeros((TARGET.height, TARGET.width), np.uint8)
    labels[: height // 2, : width // 2] = 1
    sure = np.full(labels.shape, 200, np.uint8)
    return join.result(prepared, [Prediction(labels, sure, None)], CONTRACT)
