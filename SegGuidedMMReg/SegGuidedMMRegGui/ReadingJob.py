"""Work on nodes of the scene as a job: in short steps of the GUI thread, shown and cancelled as all jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from SegGuidedMMRegGui.JobEvents import JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import BUSY_S, Job, JobRunner
from SegGuidedMMRegGui.Steps import Progress, Steps, Waiting

_WAIT_MS = 10


def _no_steps() -> Steps[None]:
    """What is left of work that has ended."""
    yield from ()


def _nothing(_told: Any) -> None:
    """Nobody wants to hear it any more."""


class ReadingJob(Job):
    """One piece of work; it has no process.

    Args:
        steps: the work.
        done: gets what was made.
        failed: gets what is wrong, and what to do about it; "" if the user gave it up.
    """

    def __init__(self, steps: Steps[Any], done: Callable[[Any], None], failed: Callable[[str], None]) -> None:
        super().__init__((), JobListener())
        self._steps, self._done, self._failed = steps, done, failed

    def start(self) -> None:
        """Go on with it, a piece whenever the window has had its turn."""
        self._plan(0)

    def begin(self) -> None:
        """Do the first piece at once, which is all of it where there is little to do, and go on."""
        self._step()

    def cancel(self) -> None:
        """Give it up at once; the work leaves nothing behind."""
        if self.end is None:
            self._cancelled_at = time.monotonic()
            self._steps.close()
            failed = self._failed
            self._finish(JobEnd(None, True, None))
            failed("")

    def kill(self) -> None:
        """The same."""
        self.cancel()

    def forget(self) -> None:
        """Give it up, and tell only those who watch the jobs."""
        self._done = self._failed = _nothing
        self.cancel()

    def wait(self) -> None:
        """Do the rest of it now: what must be done before a scene or the module is closed."""
        while self.end is None:
            self._step()

    def report(self) -> str:
        ended = "running" if self.end is None else self.end.message or "well"
        return f"{self.title}\nended: {ended}"

    def _step(self) -> None:
        done, failed = self._done, self._failed
        try:
            is_waiting = self.work()
        except StopIteration as end:
            self._finish(JobEnd(0, False, None))
            done(end.value)
        except Exception as error:
            is_told = isinstance(error, (ValueError, OSError))
            message = str(error) if is_told else f"{type(error).__name__}: {error}"
            self._finish(JobEnd(1, False, None, message))
            failed(message)
            if not is_told:
                raise
        else:
            self._plan(_WAIT_MS if is_waiting else 0)

    def work(self) -> bool:
        """Work for about `BUSY_S`; whether there is nothing to do but to wait.

        Raises:
            StopIteration: with what was made, at the end of it.
        """
        until, told = time.monotonic() + BUSY_S, None
        while True:
            step = next(self._steps)
            told = step if isinstance(step, Progress) else told
            if isinstance(step, Waiting) or time.monotonic() >= until:
                break
        if told is not None:
            data = {"stage": told.what, "step": told.step, "of": told.of}
            self.events.listener.progress(data)
        return isinstance(step, Waiting)

    def _finish(self, end: JobEnd) -> None:
        self.end = end
        self._let_go()
        self._steps, self._done, self._failed = _no_steps(), _nothing, _nothing
        self.events.listener.finished(end)


def read(
    runner: JobRunner,
    title: str,
    steps: Steps[Any],
    done: Callable[[Any], None],
    failed: Callable[[str], None],
) -> ReadingJob | None:
    """Do what is soon done at once, and all other work as a job.

    Args:
        runner: tells its watchers of the job.
        title: what the user reads of it.
        steps, done, failed: as `ReadingJob` takes them.

    Returns:
        the job; None where it is done already.

    Raises:
        ValueError, OSError: if it is wrong from the first moment on; nobody else is told then.
    """
    job = ReadingJob(steps, done, failed)
    try:
        job.work()
    except StopIteration as end:
        done(end.value)
        return None
    runner.adopt(title, job)
    job.start()
    return job
