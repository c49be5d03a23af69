"""Work on the scene in short steps, between which the window lives.

The work is a generator: it yields where it may be interrupted, and returns what it made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

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
    import qt  # here, because the bridge to the scene works where there is no Qt

    def step() -> None:
        try:
            next(steps)
        except StopIteration as end:
            done(end.value)
        else:
            qt.QTimer.singleShot(0, lambda: go_on(step))

    go_on(step)
