"""Tells studies of segmentations that lie in their folders (`segmmreg label`), one job after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from slicer.i18n import tr as _

from SegGuidedMMRegGui.DetachedJob import DetachedJob
from SegGuidedMMRegGui.JobEvents import JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job, JobRunner


class LabelTeller:
    """What is told at once is told in one job.

    Args:
        runner: runs the jobs.
        done: is called with the folder of a study that knows all now.
        failed: is called with a message; the files of the labels are in the study nevertheless.
    """

    def __init__(self, runner: JobRunner, done: Callable[[str], None], failed: Callable[[str], None]) -> None:
        self._runner, self._done, self._failed = runner, done, failed
        self._waiting: dict[tuple[str, str], str] = {}
        self._told: dict[tuple[str, str], str] = {}
        self._job: Job | None = None

    @property
    def is_busy(self) -> bool:
        """Whether there is something that a study does not know yet."""
        return self._job is not None

    def tell(self, folder: str, key: str, use: str) -> None:
        """Tell the study in `folder` that the labels of a case are for training, evaluation or none."""
        self._waiting[folder, key] = use
        self._go_on()

    def close(self) -> None:
        """The module is closed: what is not told yet is told by jobs that do not end with it."""
        if self._job is not None:
            self._job.kill()
            self._waiting = {**self._told, **self._waiting}
        while self._waiting:
            folder, arguments = self._next()
            try:
                DetachedJob.begin(Path(folder), arguments, JobListener()).leave()
            except (RuntimeError, OSError) as error:  # the files are there, as drafts
                logging.getLogger(__name__).warning("%s: %s", folder, error)

    def _go_on(self) -> None:
        if self._job is not None or not self._waiting:
            return
        folder, arguments = self._next()

        def finished(end: JobEnd) -> None:
            self._job = None
            if not end.is_done:
                self._failed(_("Cancelled.") if end.cancelled else end.message)
            if self._waiting:
                self._go_on()
            else:
                self._done(folder)

        try:
            self._job = self._runner.start(_("Saving labels"), arguments, JobListener(finished=finished))
        except RuntimeError as error:
            self._failed(str(error))
            self._done(folder)

    def _next(self) -> tuple[str, tuple[str, ...]]:
        """What of the same study goes with the first that waits."""
        (folder, _key), use = next(iter(self._waiting.items()))
        same = {each: u for each, u in self._waiting.items() if each[0] == folder and u == use}
        self._told = same
        self._waiting = {each: u for each, u in self._waiting.items() if each not in same}
        return folder, ("label", folder, *(key for _folder, key in same), "--use", use)
