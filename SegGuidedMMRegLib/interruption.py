"""Ctrl-C and SIGTERM end a command soon, with one line and an exit code of their own.

The first signal is raised in the main thread as a `KeyboardInterrupt`, so that everything is closed in order.
Now and then a library swallows it (an import that is tried and given up, a callback of C code) or turns it
into another error: `interruption` remembers, and a command that still runs after `GRACE_SECONDS` is ended at
once. So does a second signal. No file is half written then either, because all writing is atomic.

Imports little, because it cannot be interrupted in order before it is there.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 5.0
_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Terminated(KeyboardInterrupt):
    """Another program, or the system, asked this one to end (SIGTERM)."""

    exit_code = _EXIT_CODES[signal.SIGTERM]


_received: list[KeyboardInterrupt] = []


def listen() -> None:
    """Take care of SIGINT and SIGTERM from now on. Only for the main thread of a process of its own."""
    for number in _EXIT_CODES:
        signal.signal(number, _on_signal)


def interruption() -> KeyboardInterrupt | None:
    """What was raised when a signal came, whatever became of it."""
    return _received[0] if _received else None


def end(exit_code: int) -> NoReturn:
    """End this process with what was registered for its end, but without Python's own way to take it down.

    That takes half a second once torch is loaded, a signal meanwhile replaces the exit code, and so does a
    library that crashes then.
    """
    for number in _EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody reads, or the disk is full
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _on_signal(number: int, _: FrameType | None) -> None:
    if _received:
        _end_at_once(number)
    _received.append(
        Terminated("Ended by another program, or by the system.")
        if number == signal.SIGTERM
        else KeyboardInterrupt()
    )
    watch = threading.Timer(GRACE_SECONDS, _end_at_once, (number,))
    watch.daemon = True
    watch.start()
    sys.unraisablehook = lambda _: None  # what was half made when the signal came complains at its end
    raise _received[0]


def _end_at_once(number: int) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(_EXIT_CODES[signal.Signals(number)])
