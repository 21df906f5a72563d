"""docs/complexity.md has both tables, with the one cell that does not reproduce in bold."""

from __future__ import annotations

import re

import pytest

from model.paper.complexity import Complexity
from model.paper.tables import TABLE_3, TABLE_5, Setting, Table, line, render


@pytest.mark.slow
def test_table_shows_paper_and_measurement_side_by_side() -> None:
    """One row per setting, the published number in it, and a difference of half a percent."""
    table = Table("A", "mobilenet_v2", (Setting(16, False, False, False, False, 2.75),))
    row = render(table).splitlines()[-1]
    assert re.fullmatch(r"\| 16 \|  \|  \|  \|  \| 2\.75 \| 2\.74 \| -0\.27% \| 2\.74 \|", row)


def test_cell_that_does_not_reproduce_is_bold() -> None:
    """It differs by more than half a percent."""
    setting = Setting(16, True, False, False, False, 101.28)
    near = Complexity(0, {"backbone": 101_000_000_000}, {"backbone": 1})
    far = Complexity(0, {"backbone": 102_590_000_000}, {"backbone": 1})
    assert "| -0.28% |" in line(setting, near)
    assert "| **+1.29%** |" in line(setting, far)


def test_tables_are_the_papers_in_length() -> None:
    """Twelve distinct settings in Table 3, sixteen in Table 5 before pre-training repeats them."""
    assert len(set(TABLE_3.settings)) == 12
    assert len(set(TABLE_5.settings)) == 16
