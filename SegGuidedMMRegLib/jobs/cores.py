"""How many processes a machine has room for."""

from __future__ import annotations

import os
from pathlib import Path

_ITEMS_A_PROCESS = 16
"""A process takes seconds to start; it has to do so much at least."""


def default_workers(items: int) -> int:
    """One a physical core that this process may use, but not more than have something to do."""
    return max(1, min(usable_cores(), items // _ITEMS_A_PROCESS))


def usable_cores() -> int:
    """Physical cores that this process may use, by its affinity and its container's share."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_siblings(n) for n in allowed})
    return max(1, min(cores, _container_share() or cores))


def _siblings(number: int) -> str:
    """The processors that share a core with this one, as Linux lists them."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(number)


def _container_share() -> int | None:
    """Cores that a Linux container may use; None where nothing is said."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return None
