"""The text of the page agrees with its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.paper.studies import pages
from model.paper.studies.plan import (
    BILINEAR,
    BUNDLED,
    COMPARISONS,
    DECODER,
    UPSAMPLING,
    Point,
    compared,
    everything,
    inference,
    width,
)
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
    assert "| band of 1 px | 20.00 | 26.00 (25.00 to 27.00) | +6.00 ± 12.71 |" in text
    assert "**Not settled**: the decoder is better on the whole photo (1 of 2" in text
    assert "**Held**: it is better in the narrowest band (2 of 2" in text
    assert "points: +5.00, +7.00" in text


@pytest.mark.slow
def test_rows_are_told_apart_only_by_more_than_seeds_differ(tmp_path: Path) -> None:
    """8 channels lose 10 points with every seed; 64 channels gain and lose with others."""
    by_width = {
        8: (0.30, 0.31, 0.305),
        16: (0.35, 0.45, 0.41),
        32: (0.40, 0.41, 0.39),
        48: (0.40, 0.41, 0.402),
        64: (0.41, 0.40, 0.41),
    }
    text = page(
        tmp_path,
        *[
            (p, figures(p, miou))
            for channels, values in by_width.items()
            for p, miou in ((Point(width(channels), s), v) for s, v in enumerate(values))
        ],
    )
    assert "Against “48”, worse: 8; not distinguishable: 16, 32, 64." in text
    assert "| 8 | 77.61 | 30.50 (30.00 to 31.00) | -9.90 ±" in text
    assert "| 48 | 78.21 | 40.40 (40.00 to 41.00) |  |  |" in text


def test_one_seed_tells_nothing_apart(tmp_path: Path) -> None:
    text = page(
        tmp_path, *[(p, figures(p, 0.1 * p.net.name.count("a"))) for p in compared("pooling", [4])]
    )
    assert "one seed cannot say: without it" in text


@pytest.mark.slow
def test_every_comparison_of_the_plan_gets_its_table(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        *[(p, figures(p, 0.4)) for name in COMPARISONS for p in compared(name, [0, 1, 2])],
    )
    for comparison in COMPARISONS.values():
        part = text.partition(f"### {comparison.title}\n")[2].partition("\n### ")[0]
        assert "Not run yet" not in part
        assert "not distinguishable" in part
        assert all(f"| {row.label} | {row.paper:.2f} |" in part for row in comparison.rows)


@pytest.mark.slow
def test_a_full_set_of_results_fills_every_section(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        *[(p, figures(p, 0.4 + 0.01 * (p.output_stride == 8))) for p in everything([0])],
    )
    assert "Not run yet" not in text
    assert "**Held**: mIoU is higher at output stride 8 (3 of 3" in text
    assert "**Not settled**: six scales raise mIoU (0 of 1" in text
    assert "| bundled | 40.00 | 41.00 | +1.00 | +0.00 |" in text
    assert "| 8 | x | x | x | 80.57 | 41.00 | 10.00 |" in text
    names = {path.name for path in (tmp_path / "docs" / "studies").iterdir()}
    plots = {"boundary.svg", "decoder.svg", "stride.svg", "widths.svg"}
    assert names == {*plots, "figures.json"}
    again = (tmp_path / "docs" / "studies" / "decoder.svg").read_bytes()
    pages.write(tmp_path / "out", tmp_path / "docs")
    assert (tmp_path / "docs" / "studies" / "decoder.svg").read_bytes() == again


def test_each_table_names_photos_trainings_and_days(tmp_path: Path) -> None:
    """Runs of different length are listed, so that they are not mistaken for one experiment."""
    longer = figures(Point(DECODER, 0), 0.5) | {"training": TRAINING | {"iterations": 800}}
    short = figures(Point(UPSAMPLING, 0), 0.4) | {"measured": "2026-11-28"}
    text = page(tmp_path, (Point(DECODER, 0), longer), (Point(UPSAMPLING, 0), short))
    said = "*344 photos; 400 iterations of 16 crops of 257 pixels; 800 iterations of 16 crops of "
    assert f"{said}257 pixels; 2026-11-26 and 2026-11-28*" in text


def test_only_results_on_as_many_photos_are_compared(tmp_path: Path) -> None:
    """A point on 20 photos is not compared with one on all photos."""
    some = Point(DECODER, 0, photos=20)
    points = [Point(UPSAMPLING, 0), some]
    parts = [(p, figures(p, 0.4) | {"photos": p.photos}) for p in points]
    assert some.name == "decoder-0-os16-20photos"
    text = page(tmp_path, *parts)
    assert "`python -m model.studies decoder`" in text
    other = Point(UPSAMPLING, 0, photos=20)
    text = page(tmp_path, (other, figures(other, 0.3) | {"photos": 20, "images": 20}))
    assert "| whole photo | 30.00 | 40.00 | +10.00 |" in text


@pytest.mark.slow
@pytest.mark.parametrize(("iterations", "short"), [(60, True), (1000, False)])
def test_a_bilinear_classifier_that_hardly_trained_is_named(
    tmp_path: Path, iterations: int, short: bool
) -> None:
    points = [Point(BUNDLED, None), Point(BILINEAR, 0)]
    training = TRAINING | {"iterations": iterations}
    text = page(tmp_path, *[(p, figures(p, 0.4) | {"training": training}) for p in points])
    assert ("saw only 960 crops" in text) == short


@pytest.mark.slow
def test_rows_of_table_three_that_are_missing_say_so(tmp_path: Path) -> None:
    """The table is of the number of photos with the most rows, not of the most photos."""
    few = [p._replace(photos=9) for p in inference([0])[:3]]
    some = [(p, figures(p, 0.6) | {"photos": 9, "images": 9}) for p in few]
    all_photos = [(p, figures(p, 0.7)) for p in (Point(BUNDLED, None), Point(BILINEAR, 0))]
    text = page(tmp_path, *some, *all_photos)
    part = text.partition("table 3\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    assert part.count(" 60.00 |") == 3
    assert part.count(" not run |") == 7
    assert "*9 photos; 2026" in part


def test_earlier_figures_stay_until_a_new_run_replaces_them(tmp_path: Path) -> None:
    """`write` with the results of one study does not empty the others' sections."""
    both = [(p, figures(p, 0.4)) for p in (Point(UPSAMPLING, 0), Point(DECODER, 0))]
    page(tmp_path, *both)
    new = put(tmp_path / "new", (Point(DECODER, 0), figures(Point(DECODER, 0), 0.6)))
    text = pages.write(new, tmp_path / "docs").read_text()
    assert "| whole photo | 40.00 | 60.00 | +20.00 |" in text


def test_kept_figures_name_no_folder_of_this_machine() -> None:
    init = pages.ROOT / "model" / "bundled" / "light"
    assert pages.portable({"init": str(init)}) == {"init": "model/bundled/light"}
    assert pages.portable({"init": "imagenet"}) == {"init": "imagenet"}
    assert pages.portable(None) is None


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "decoder-0-os16.json").write_text("{")
    with pytest.raises(StudyError, match=r"decoder-0-os16\.json is damaged"):
        pages.write(tmp_path, tmp_path / "docs")


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(StudyError, match="holds no results"):
        pages.write(tmp_path, tmp_path / "docs")
