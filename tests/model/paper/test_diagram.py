"""The diagram shows the network's own sizes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args
from xml.etree import ElementTree as ET

import pytest

from model.network.config import PUBLISHED, BackboneName, ModelConfig
from model.paper.diagram import BY, HEIGHT, WIDTH, draw, main

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.slow
@pytest.mark.parametrize("backbone", get_args(BackboneName))
@pytest.mark.parametrize("output_stride", [8, 32])
def test_picture_has_the_shapes_and_stays_on_its_canvas(backbone: str, output_stride: int) -> None:
    """Well-formed SVG for every backbone, with the sizes of the logits and of the last map."""
    settings = {**PUBLISHED[backbone], "backbone": backbone, "output_stride": output_stride}
    root = ET.fromstring(draw(ModelConfig.model_validate(settings)))
    words = [element.text for element in root.iter(f"{SVG}text")]
    side = {8: 65, 32: 17}[output_stride]
    assert f"21 {BY} 129 {BY} 129" in words
    assert f"256 {BY} {side} {BY} {side}" in words
    for element in root.iter(f"{SVG}rect"):
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        assert x >= 0
        assert y >= 0
        assert x + float(element.get("width", 0)) <= WIDTH
        assert y + float(element.get("height", 0)) <= HEIGHT


@pytest.mark.slow
def test_command_writes_the_file(tmp_path: Path) -> None:
    """`make tables` calls it in the same way."""
    assert main(["--backbone", "mobilenet_v2", "-o", str(tmp_path / "docs" / "net.svg")]) == 0
    assert (tmp_path / "docs" / "net.svg").read_text().startswith("<svg")
