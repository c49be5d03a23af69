"""Work for processes that die of it; apart from the tests, so that a process begins quickly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path


def squares(folder: Path, deadly: Sequence[int]) -> Callable[[Sequence[int]], list[int]]:
    """Work that dies over some numbers: over those above 100 each time, over others once."""

    def work(numbers: Sequence[int]) -> list[int]:
        for n in numbers:
            if n in deadly and (n > 100 or not (folder / str(n)).exists()):
                (folder / str(n)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return [n * n for n in numbers]

    return work


def unusable() -> Callable[[Sequence[int]], list[int]]:
    """Work that cannot begin."""
    raise ValueError("knees.yaml: no such study")
