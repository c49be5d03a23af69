"""Work on the scene in short steps, between which the window lives.

The work is a generator: it yields where it may be interrupted, what it tells of its progress or nothing, and
returns what it made. Closing it gives the work up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_LET_WORK_S = 0.003
SLAB_BYTES = 4 << 20
"""Of an array, touched in one step."""


@dataclass(frozen=True)
class Progress:
    """How far a part of the work is.

    Attributes:
        what: the user reads, such as the name of a node.
        step, of: so many of so many.
    """

    what: str
    step: int
    of: int


@dataclass(frozen=True)
class Waiting:
    """Yielded where others work, and there is nothing to do for a moment."""


Step = Progress | Waiting | None
Found = TypeVar("Found")
Steps = Generator[Step, None, Found]


def nothing() -> None:
    """What is done between two steps where nobody looks on."""


def at_once(steps: Steps[Found], between: Callable[[], object] = nothing) -> Found:
    """Do all of it now; `between` is called after each step."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        between()


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


def checked(steps: Steps[Found], check: Callable[[], None]) -> Steps[Found]:
    """The same steps; what `check` raises before one of them gives them up."""
    try:
        while True:
            check()
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            yield step
    finally:
        steps.close()


def slabs(values: NDArray[np.generic]) -> Iterator[slice]:
    """Slices that cut a flat array into parts of about `SLAB_BYTES`."""
    count = max(1, SLAB_BYTES // values.itemsize)
    return (slice(start, start + count) for start in range(0, values.size, count))


def beside(work: Callable[[], Found]) -> Steps[Found]:
    """Do `work` in a thread, and wait for it in short steps; it touches neither Qt nor MRML.

    Given up, it ends by itself.
    """
    found: list[Found] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="files", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LET_WORK_S)
        yield Waiting()
    if errors:
        raise errors[0]
    return found[0]
