"""Running a job and waiting for its end, for scripts; Slicer's windows stay alive meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence

import slicer

from SegGuidedMMRegGui.JobEvents import JobEnd, JobListener
from SegGuidedMMRegGui.JobPython import JobPython
from SegGuidedMMRegGui.JobRunner import JobRunner

_PAUSE_S = 0.01


class WaitingRunner:
    """Starts jobs as `JobRunner` does, and returns when they have ended.

    Args:
        python: runs the jobs; the one that the user has chosen in the set-up card without it.
        runner: starts them, and shows them in the module's strip; one of its own without it.
    """

    def __init__(self, python: JobPython | None = None, runner: JobRunner | None = None) -> None:
        self._python = python
        self._runner = JobRunner() if runner is None else runner

    def run(self, arguments: Sequence[str], listener: JobListener | None = None) -> JobEnd:
        """Run `segmmreg ARGUMENTS`; Ctrl-C in the script ends the job with all its processes.

        Raises:
            RuntimeError: if there is no Python to run it.
        """
        job = self._runner.start(arguments[0], arguments, listener or JobListener(), self._python)
        try:
            while job.is_running:
                slicer.app.processEvents()
                time.sleep(_PAUSE_S)
        finally:
            job.kill()
        assert job.end is not None
        return job.end
