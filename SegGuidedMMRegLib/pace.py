"""When to save what a long job has so far: now and then, and for no more than a small share of its time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Knows when the next save is due, from what saving has cost.

    The time between two saves is `seconds`, or longer if the last save took long: all saves together never
    take more than `share` of the time.

    Args:
        seconds: between two saves, at least.
        share: largest share of the time, above 0 to 1.
    """

    def __init__(self, seconds: float, share: float) -> None:
        self._seconds = seconds
        self._share = share
        self._cost = 0.0
        self._ended = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._ended >= max(self._seconds, self._cost * (1 / self._share - 1))

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a save."""
        start = time.monotonic()
        yield
        self._ended = time.monotonic()
        self._cost = self._ended - start
