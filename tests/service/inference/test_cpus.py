"""CPU counts follow what the process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.inference import cpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 1.5), ("max 100000", None), ("garbage", None), ("100000 0", None)],
)
def test_the_quota_of_cgroup_v2_is_read(tmp_path: Path, text: str, expected: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpus.cgroup_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("50000", 0.5), ("-1", None)])
def test_the_quota_of_cgroup_v1_is_read(tmp_path: Path, quota: str, expected: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpus.cgroup_quota(tmp_path) == expected


def test_a_small_quota_still_gives_one_cpu(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("10000 100000")
    assert cpus.available(tmp_path) == 1


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert cpus.available(tmp_path) == len(os.sched_getaffinity(0))
