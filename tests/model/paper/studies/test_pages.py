"""The text of the page agrees with its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.paper.studies import pages
from model.paper.studies.plan import BUNDLED, DECODER, UPSAMPLING, Point, everything, width
from model.paper.studies.run import StudyError

TRAINING = {"iterations": 400, "batch_size": 16, "augment": {"crop": 257}}


def figures(point: Point, miou: float, edge: float = 0.1) -> dict[str, Any]:
    return {
        "network": point.net.name,
        "seed": point.seed,
        "images": 344,
        "miou": miou,
        "boundary_miou": edge,
        "trimap": {"1": edge, "5": (edge + miou) / 2, "40": miou},
        "training": TRAINING,
    }


def put(out: Path, *points: tuple[Point, dict[str, Any]]) -> Path:
    out.mkdir(exist_ok=True)
    for point, result in points:
        (out / f"{point.name}.json").write_text(json.dumps(result))
    return out


def page(tmp_path: Path, *points: tuple[Point, dict[str, Any]]) -> str:
    return pages.write(put(tmp_path / "out", *points), tmp_path / "docs").read_text()


@pytest.mark.parametrize(
    ("gains", "word"),
    [
        ([0.01, 0.2], "Held"),
        ([-0.01, 0.0], "Did not hold"),
        ([0.01, -0.01], "Not settled"),
        ([0.5], "Not settled"),
    ],
)
def test_a_claim_holds_only_if_it_held_in_every_run(gains: list[float], word: str) -> None:
    assert pages.verdict(gains, "it gains").startswith(f"**{word}**: it gains")


def test_the_decoder_is_compared_seed_by_seed(tmp_path: Path) -> None:
    """The decoder is better near edges with both seeds, and better everywhere with one."""
    text = page(
        tmp_path,
        *[(p, figures(p, 0.40, 0.20)) for p in (Point(UPSAMPLING, 0), Point(UPSAMPLING, 1))],
        (Point(DECODER, 0), figures(Point(DECODER, 0), 0.42, 0.25)),
        (Point(DECODER, 1), figures(Point(DECODER, 1), 0.39, 0.27)),
    )
    assert "| band of 1 px | 20.00 (20.00 to 20.00) | 26.00 (25.00 to 27.00) | +6.00 |" in text
    assert "**Not settled**: the decoder is better on the whole photo (1 of 2" in text
    assert "**Held**: it is better in the narrowest band (2 of 2" in text
    assert "points: +5.00, +7.00" in text


@pytest.mark.parametrize(
    ("by_width", "says"),
    [
        ({8: (0.3, 0.31), 48: (0.4, 0.41)}, "**Held**: 48 channels are best"),
        ({8: (0.5, 0.51), 48: (0.4, 0.41)}, "**Did not hold**: 8 channels are best"),
        ({8: (0.3, 0.45), 48: (0.4, 0.41)}, "**Not settled**: 48 channels are best"),
        ({8: (0.3,), 48: (0.4,)}, "one seed cannot say"),
    ],
)
def test_widths_must_differ_by_more_than_seeds(
    by_width: dict[int, tuple[float, ...]], says: str
) -> None:
    assert says in pages.widths_verdict({c: list(v) for c, v in by_width.items()})


@pytest.mark.slow
def test_a_full_set_of_results_fills_every_section(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        *[(p, figures(p, 0.4 + 0.01 * (p.output_stride == 8))) for p in everything([0])],
    )
    assert "Not run yet" not in text
    assert "**Held**: mIoU is higher at output stride 8 (3 of 3" in text
    assert "**Did not hold**: six scales raise mIoU (0 of 2" in text
    assert "| bundled | 40.00 | 41.00 | +1.00 | +0.00 |" in text
    names = {path.name for path in (tmp_path / "docs" / "studies").iterdir()}
    assert names == {"decoder.svg", "stride.svg", "widths.svg", "figures.json"}
    again = (tmp_path / "docs" / "studies" / "decoder.svg").read_bytes()
    pages.write(tmp_path / "out", tmp_path / "docs")
    assert (tmp_path / "docs" / "studies" / "decoder.svg").read_bytes() == again


def test_runs_of_different_length_are_not_compared(tmp_path: Path) -> None:
    """But table 1's networks may be shorter than the others."""
    longer = figures(Point(DECODER, 0), 0.5) | {"training": TRAINING | {"iterations": 800}}
    short = (Point(width(8), 0), figures(Point(width(8), 0), 0.4))
    assert "for 800 iterations" in page(tmp_path, short, (Point(DECODER, 0), longer))
    with pytest.raises(StudyError, match="differ in iterations"):
        page(tmp_path, (Point(UPSAMPLING, 0), figures(Point(UPSAMPLING, 0), 0.4)))


def test_the_bundled_network_alone_is_not_a_study(tmp_path: Path) -> None:
    point = Point(BUNDLED, None)
    with pytest.raises(StudyError, match="no result of a trained network"):
        page(tmp_path, (point, figures(point, 0.6)))
