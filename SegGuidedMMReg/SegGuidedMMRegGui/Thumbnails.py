"""The small pictures of a study's cases, made by a job where they are not there yet."""

from __future__ import annotations

from collections.abc import Callable

from slicer.i18n import tr as _

from SegGuidedMMRegGui.JobEvents import Data, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.Workplace import Workplace

_STAGE = "thumbnails"


class Thumbnails:
    """Lets those be made that are missing; an image for which that has failed is asked no second time."""

    def __init__(self, workplace: Workplace, arrived: Callable[[str, str], None]) -> None:
        """
        Args:
            workplace: holds the study.
            arrived: called with the key of a case and the path of its picture, once it is there.
        """
        self._workplace, self._arrived = workplace, arrived
        self._job: Job | None = None
        self._refused: set[str] = set()
        self._seen: Data | None = None
        self._folder = ""

    def study_changed(self) -> None:
        """Make what is missing of the study that is open now."""
        study, folder = self._workplace.study, self._workplace.folder
        if folder != self._folder:
            self.stop()
            self._folder, self._refused = folder, set()
        if study is None or (self._job is not None and self._job.is_running):
            return
        missing = {_key(case) for case in study["cases"] if not case.get("thumbnail")} - self._refused
        if not missing:
            return
        self._seen, self._refused = study, self._refused | missing
        listener = JobListener(result=self._heard, finished=lambda _end: self._ended(folder))
        try:
            title = _("Making small pictures")
            self._job = self._workplace.runner.start(title, ("info", folder, "--thumbnails"), listener)
        except RuntimeError:  # without a Python there are no jobs; the set-up card says so
            self._job = None

    def stop(self) -> None:
        """Make no more."""
        job, self._job = self._job, None
        if job is not None:
            job.cancel()

    def _heard(self, data: Data) -> None:
        if data.get("stage") == _STAGE:
            self._refused.discard(data["case"])
            self._arrived(data["case"], data["thumbnail"])

    def _ended(self, folder: str) -> None:
        """The study may have been read again meanwhile."""
        if folder == self._folder:
            self._job = None
            if self._workplace.study is not self._seen:
                self.study_changed()


def _key(case: Data) -> str:
    return f"{case['modality']}/{case['name']}"
