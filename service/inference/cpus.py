"""How many CPUs this process may use: affinity and cgroup quota, not the machine's count."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available(cgroup: Path = CGROUP) -> int:
    """CPUs allowed by the affinity mask and the cgroup (v2 or v1) quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cgroup_quota(cgroup)
    return max(1, min(allowed or 1, ceil(quota) if quota else allowed or 1))


def cgroup_quota(cgroup: Path) -> float | None:
    """CPUs that the cgroup's quota amounts to; None when there is none."""
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
