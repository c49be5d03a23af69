"""What the tests of the Slicer module share: the harness started, and the module's folder on the path."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import slicer_harness

FOLDER = Path(__file__).parents[2] / "SegGuidedMMReg"

slicer = slicer_harness.start()
slicer_harness.add_module_path(FOLDER)


@contextmanager
def module_opened() -> Iterator[Any]:
    """The module's widget in an empty scene, with no settings; no slot may have failed by its end."""
    import qt

    slicer_harness.slot_errors.clear()
    slicer_harness.displays.clear()
    qt.QSettings().clear()
    slicer.mrmlScene.Clear(0)
    opened = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    yield opened
    opened.cleanup()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


class Heard:
    """A listener that keeps all it hears, in order."""

    def __init__(self) -> None:
        from SegGuidedMMRegGui.JobEvents import JobListener

        self.told: list[tuple[str, object]] = []
        self.listener = JobListener(
            **{
                kind: (lambda data, kind=kind: self.told.append((kind, data)))
                for kind in ("started", "progress", "log", "result", "error", "finished")
            }
        )

    def of(self, kind: str) -> list:
        return [data for heard, data in self.told if heard == kind]

    def wait(self, seconds: float = 30.0):
        """The `JobEnd`, once it is there."""
        slicer_harness.process_until(lambda: self.of("finished"), seconds)
        return self.of("finished")[0]


def _leave_memory_alone() -> None:
    """What is there already (torch, hundreds of tests; not so in Slicer) is not looked through for garbage,
    which takes two tenths of a second; what the module makes from now on is. Then `gc.unfreeze`."""
    gc.collect()
    gc.freeze()


class Gaps:
    """How long the GUI thread was busy at one go, the time in which the machine let others work left out."""

    def __enter__(self) -> Gaps:
        self.longest = 0.0
        _leave_memory_alone()
        return self

    def spin(self, reached, seconds: float = 20.0) -> None:
        import qt

        end = time.monotonic() + seconds
        while not reached() and time.monotonic() < end:
            before = time.monotonic() - _waited_for_a_core()
            qt.QApplication.processEvents()
            self.longest = max(self.longest, time.monotonic() - _waited_for_a_core() - before)
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()


def longest_turn(reached, seconds: float = 60.0) -> float:
    """CPU seconds that the GUI thread needs at most for what is due at once, until `reached`."""
    import qt

    longest, end = 0.0, time.monotonic() + seconds
    _leave_memory_alone()
    while not reached() and time.monotonic() < end:
        before = time.thread_time()
        qt.QApplication.processEvents()
        longest = max(longest, time.thread_time() - before)
        time.sleep(0.0005)
    gc.unfreeze()
    assert reached()
    return longest


def _waited_for_a_core() -> float:
    """Seconds in which this thread could have worked but had no core; 0 where the system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except OSError:
        return 0.0


def fake_job(code: str) -> tuple[str, ...]:
    """A command that runs `code`, in which `tell(event, …)` writes an event."""
    lines = (
        "import json, os, signal, subprocess, sys, time\n"
        "def tell(event, **data): print(json.dumps({'event': event, **data}), flush=True)\n"
    )
    return (sys.executable, "-c", lines + code)


def environment() -> dict[str, str]:
    return dict(os.environ)
