"""`python -m service.bench.results`: what options add to a request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.bench import results
from service.bench.results import PAIRS, Pair, Spent
from tests.service import onnx_models


def test_a_row_shows_what_was_added_in_both_clocks() -> None:
    pair = Pair((500, 375), "output=polygons", "min_area=0.1%25&simplify=2")
    found = results.table([(pair, Spent(80.0, 150.0), Spent(84.0, 165.0))])
    name, *cells = found.rows[0]
    assert name == "500 x 375, output=polygons: min_area=0.1%&simplify=2"
    assert cells == ["80.0", "4.0", "5.0%", "150.0", "15.0", "10.0%"]


@pytest.mark.slow
def test_every_pair_is_measured_on_a_running_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx", confidence=True, on_request=True, probabilities=True)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(photo)
    command = ["--models", str(tmp_path), "--photo", str(photo), "--rounds", "2", "--markdown"]
    assert results.main(command) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " x " in line]
    measured = [row for row in rows if row.startswith("| ")]
    assert len(measured) == len(PAIRS)
    for row in measured:
        assert float(row.split("|")[2]) > 0
