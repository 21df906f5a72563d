"""Count the CPUs this process may use, by its affinity mask and cgroup quota."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available(cgroup: Path = CGROUP) -> int:
    """Return the CPUs allowed by the affinity mask and the cgroup (v1 or v2) quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cgroup_quota(cgroup)
    return max(1, min(allowed or 1, ceil(quota) if quota else allowed or 1))


def cgroup_quota(cgroup: Path) -> float | None:
    """Return the CPU quota of a cgroup, or None if it has none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    try:
        cpus = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return cpus if cpus > 0 else None  # -1: no limit
