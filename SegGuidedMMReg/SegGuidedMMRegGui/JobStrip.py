"""The strip on top: the study, the device, the running job with its progress and a button to cancel it."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.Widgets import connect, copy_text, load_ui

_STEPS = 1000


class JobStrip:
    """The strip; give `watch` to a `JobRunner`."""

    def __init__(self) -> None:
        self.widget, self._ui = load_ui("JobStrip")
        self._jobs: list[Job] = []
        self._told: dict[Job, Data] = {}
        self._failed: Job | None = None
        connect(self._ui.cancelButton, "clicked(bool)", self.onCancel)
        connect(self._ui.reportButton, "clicked(bool)", self.onCopyReport)
        self.show_study("")
        self.show_device("")
        self._show()

    def show_study(self, name: str) -> None:
        self._ui.studyLabel.text = name or _("no study")

    def show_device(self, name: str) -> None:
        self._ui.deviceLabel.text = name or _("device not known yet")

    def watch(self, job: Job) -> JobListener:
        """Show a job from now on until it ends."""
        self._jobs.append(job)
        self._failed = None
        self._show()
        return JobListener(
            progress=lambda data: self._progress(job, data), finished=lambda end: self._finished(job, end)
        )

    def onCancel(self) -> None:
        if self._jobs:
            self._jobs[-1].cancel()
            self._show()

    def onCopyReport(self) -> None:
        if self._failed is not None:
            copy_text(self._failed.report())

    def _progress(self, job: Job, data: Data) -> None:
        if job in self._jobs:
            self._told[job] = data
            if job is self._jobs[-1]:
                self._show_progress()

    def _show_progress(self) -> None:
        """What the last job has told, or that it is at work."""
        job, bar = self._jobs[-1], self._ui.progressBar
        data, text = self._told.get(job), job.title
        bar.setRange(0, 0 if data is None else _STEPS)
        if data is not None:
            bar.value = round(_STEPS * data["step"] / max(data["of"], 1))
            text = f"{job.title}: {data['stage']}{_left(data.get('seconds_left'))}"
        if job.is_cancelled:
            text = _("{job} is being cancelled").format(job=job.title)
        self._ui.jobLabel.text = text

    def _finished(self, job: Job, end: JobEnd) -> None:
        self._jobs.remove(job)
        self._told.pop(job, None)
        if end.message:
            self._failed = job
        self._show()
        if end.message:
            self._ui.jobLabel.text = f"{job.title}: {end.message}"

    def _show(self) -> None:
        ui, job = self._ui, self._jobs[-1] if self._jobs else None
        for widget in (ui.progressBar, ui.cancelButton):
            widget.visible = job is not None
        ui.reportButton.visible = self._failed is not None
        ui.jobLabel.visible = job is not None or self._failed is not None
        if job is not None:
            self._show_progress()
            ui.cancelButton.enabled = not job.is_cancelled


def _left(seconds: Any) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return (
        _(", about {minutes} min left").format(minutes=minutes) if minutes else _(", less than a minute left")
    )
