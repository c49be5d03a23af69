"""What the steps share: the study that is open, its bridge to the scene, the jobs, the warm worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job, JobRunner
from SegGuidedMMRegGui.SceneBridge import PairNodes, SceneBridge
from SegGuidedMMRegGui.StudyRecord import study_as_told
from SegGuidedMMRegGui.WorkerClient import WorkerClient
from SegGuidedMMRegLib.study import StudyError


def _nothing(_message: str) -> None:
    """For those who do not want to hear it, and where there is nowhere to go."""


class Workplace:
    """One a module. Main thread only.

    Attributes:
        scene: the vtkMRMLScene.
        runner: runs the library.
        parameters: the user's choices, which are saved with the scene; None while there is no scene.
        scenes_closed: how many were; what was begun in one is not for the next.
        study: what `segmmreg info STUDY` says of the open study; None without one.
        bridge: shows that study in the scene; None without one.
        watchers: called when another study is open, the same one was read again, or none is open.
        pair: the registered pair that was shown last, for review; None without one.
        pair_watchers: called when another pair is shown, or none.
        steps: the names of the steps that there are, such as study, register, review.
        go_to: unfolds a step by its name.
    """

    def __init__(self, scene: Any, runner: JobRunner) -> None:
        self.scene, self.runner = scene, runner
        self.parameters: Any = None
        self.scenes_closed = 0
        self.study: Data | None = None
        self.bridge: SceneBridge | None = None
        self.watchers: list[Callable[[], None]] = []
        self.pair: PairNodes | None = None
        self.pair_watchers: list[Callable[[], None]] = []
        self.steps: tuple[str, ...] = ()
        self.go_to: Callable[[str], None] = _nothing
        self._reading: Job | None = None
        self._worker: WorkerClient | None = None
        self._former_workers: list[WorkerClient] = []

    @property
    def folder(self) -> str:
        """Of the open study; "" without one."""
        return "" if self.study is None else str(self.study["study"])

    @property
    def worker(self) -> WorkerClient:
        """The warm worker of the open study; its process starts with the first request.

        Raises:
            RuntimeError: without a study.
        """
        if self.study is None:
            raise RuntimeError(_("Open a study first (step 1)."))
        if self._worker is None:
            self._worker = WorkerClient(self.folder, self.runner)
        return self._worker

    def open(self, folder: str, failed: Callable[[str], None] = _nothing) -> Job | None:
        """Open the study in `folder`, or read it again; a job does, so that it is there a moment later.

        A study that is being opened already is given up.

        Args:
            folder: of the study.
            failed: hears why it cannot be opened; the study that is open stays open then.

        Returns:
            the job; None if there is no Python to run it.
        """

        def finished(end: JobEnd) -> None:
            if self._reading is not job:
                return
            self._reading = None
            if not end.is_done or end.result is None:
                failed(_("Cancelled.") if end.cancelled else end.message)
                return
            try:
                self._take(end.result)
            except StudyError as error:
                failed(str(error))

        self._give_up_reading()
        job: Job | None = None
        title = _("Opening {name}").format(name=Path(folder).name)
        try:
            job = self.runner.start(title, ("info", folder), JobListener(finished=finished))
        except RuntimeError as error:
            failed(str(error))
        self._reading = job
        return job

    def read_again(self) -> None:
        """The files of the study have changed: tell everybody what it is now."""
        if self.study is not None:
            self.open(self.folder)

    def show_pair(self, pair: PairNodes | None) -> None:
        """Tell everybody that this pair was registered or is looked at; None for no pair."""
        self.pair = pair
        for watcher in list(self.pair_watchers):
            watcher()

    def scene_closed(self) -> None:
        """The choices are gone with it."""
        self.parameters = None
        self.scenes_closed += 1

    def close(self) -> None:
        """Close the study; its nodes stay in the scene."""
        self._give_up_reading()
        self._leave_study()
        self._tell()

    def cleanup(self) -> None:
        """The module is closed: no process and no temporary file is left."""
        self.watchers = []
        self.pair_watchers = []
        self.go_to = _nothing
        self._leave_study()
        for worker in self._former_workers:
            worker.kill()
        self._former_workers = []

    def _give_up_reading(self) -> None:
        job, self._reading = self._reading, None
        if job is not None:
            job.cancel()

    def _take(self, told: Data) -> None:
        study = study_as_told(told["study"], told)
        if self.bridge is not None and str(told["study"]) == self.folder:
            self.bridge.study = study
        else:
            self._leave_study()
            self.bridge = SceneBridge(self.scene, study)
        self.study = told
        self._tell()

    def _leave_study(self) -> None:
        self.study = None
        self.show_pair(None)
        if self.bridge is not None:
            self.bridge.close()
            self.bridge = None
        if self._worker is not None:
            self._worker.close()
            self._former_workers = [w for w in (*self._former_workers, self._worker) if w.is_running]
            self._worker = None

    def _tell(self) -> None:
        for watcher in list(self.watchers):
            watcher()
