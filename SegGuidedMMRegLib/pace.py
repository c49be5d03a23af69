"""When to save what a long job has so far: now and then, and for no more than a small share of its time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Knows when the next save is due, from what saving has cost so far.

    Between two saves lie `seconds`, or more if saves are slow: all saves together take at most `share` of
    the time, but for the first one, whose cost nobody knows, and for one that is slower than all before.

    Args:
        seconds: between two saves, at least.
        share: largest share of the time; 1 sets no limit.
    """

    def __init__(self, seconds: float, share: float) -> None:
        self._seconds = seconds
        self._share = share
        self._began = self._ended = time.monotonic()
        self._spent = self._slowest = 0.0

    def is_due(self) -> bool:
        """Whether it is time to save."""
        now = time.monotonic()
        affordable = self._spent + self._slowest <= self._share * (now - self._began)
        return now - self._ended >= self._seconds and (affordable or self._share >= 1)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a save."""
        start = time.monotonic()
        yield
        self._ended = time.monotonic()
        self._spent += self._ended - start
        self._slowest = max(self._slowest, self._ended - start)
