"""Reading and writing large files beside the GUI thread, which goes on; no Qt and no MRML in there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import qt
from SegGuidedMMRegGui.Widgets import connect, let_go

_LOOK_MS = 10
_LET_WORK_S = 0.003
"""Python threads get their turn in Slicer only while its main thread waits for them."""


def _nothing(_told: Any) -> None:
    """Nobody wants to hear it any more."""


class Background:
    """Runs `work` in a thread, and then `done` with what it returns, or `failed` with a message, here.

    What `work` raises becomes the message. What is neither `ValueError` nor `OSError`, which tell of files,
    is a defect, and is raised here too. `is_running` is true until one of them was called, or `forget`.
    """

    def __init__(
        self, work: Callable[[], Any], done: Callable[[Any], None], failed: Callable[[str], None]
    ) -> None:
        self._done, self._failed = done, failed
        self._found: Any = None
        self._error: Exception | None = None
        self.is_running = True
        self._thread = threading.Thread(target=self._run, args=(work,), name="files", daemon=True)
        self._timer = qt.QTimer()
        connect(self._timer, "timeout()", self._look)
        self._thread.start()
        self._timer.start(_LOOK_MS)

    def forget(self) -> None:
        """Tell nobody; what has begun ends by itself."""
        if self.is_running:
            self.is_running = False
            self._timer.stop()
            let_go(self._timer, {"timeout()": self._look})
            self._done = self._failed = _nothing

    def wait(self) -> None:
        """Wait for the end, and tell it now: what must be done before a scene or the module is closed."""
        self._thread.join()
        if self.is_running:
            self._tell()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._found = work()
        except Exception as error:
            self._error = error

    def _look(self) -> None:
        self._thread.join(_LET_WORK_S)
        if not self._thread.is_alive():
            self._tell()

    def _tell(self) -> None:
        done, failed, found, error = self._done, self._failed, self._found, self._error
        self.forget()
        self._found = self._error = None
        if error is None:
            done(found)
        elif isinstance(error, (ValueError, OSError)):
            failed(str(error))
        else:
            failed(f"{type(error).__name__}: {error}")
            raise error
