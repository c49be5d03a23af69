"""Work on the scene in short steps, between which the window lives.

The work is a generator: it yields where it may be interrupted, and returns what it made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Generic, TypeVar

Found = TypeVar("Found")
Steps = Generator[None, None, Found]


def at_once(steps: Steps[Found]) -> Found:
    """Do all of it now."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def in_turns(
    steps: Steps[Found], go_on: Callable[[Callable[[], None]], None], done: Callable[[Found], None]
) -> None:
    """Do a step now and each other one when the window has had its turn.

    Args:
        steps: the work.
        go_on: is given each step, and calls it, or not, if it is not wanted any more; handles its errors.
        done: gets what was made, also through `go_on`.
    """
    _Turns(steps, go_on, done).take()


class _Turns(Generic[Found]):
    """What is left of such work."""

    def __init__(
        self, steps: Steps[Found], go_on: Callable[[Callable[[], None]], None], done: Callable[[Found], None]
    ) -> None:
        from SegGuidedMMRegGui.Widgets import later  # here, because the bridge works where there is no Qt

        self._steps, self._go_on, self._done, self._later = steps, go_on, done, later

    def take(self) -> None:
        """Offer the next step."""
        self._go_on(self._step)

    def _step(self) -> None:
        try:
            next(self._steps)
        except StopIteration as end:
            self._done(end.value)
        else:
            self._later(self.take)
