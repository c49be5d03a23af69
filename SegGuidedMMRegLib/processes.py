"""The processes of one training job, one a device: `segmmreg train` or torchrun starts them."""

from __future__ import annotations

import os


def count() -> int:
    """How many there are on all machines; 1 for a process that nobody started as one of several."""
    return int(os.environ["WORLD_SIZE"]) if _is_launched() else 1


def count_here() -> int:
    """How many there are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _is_launched() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ["RANK"]) if _is_launched() else 0


def is_first() -> bool:
    """Whether this is the one that writes files, tells of progress and works where only one may."""
    return rank() == 0


def _is_launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
