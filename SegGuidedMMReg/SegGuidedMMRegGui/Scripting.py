"""A study for scripts in 3D Slicer: open it, show it, register with it (docs/slicer-scripting.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

from SegGuidedMMRegGui.JobEvents import JobListener
from SegGuidedMMRegGui.PairRegistration import PairRegistration, Runner
from SegGuidedMMRegGui.SceneBridge import PairNodes, SceneBridge
from SegGuidedMMRegGui.Steps import nothing
from SegGuidedMMRegGui.StudyRecord import study_as_told
from SegGuidedMMRegGui.WaitingRunner import WaitingRunner
from SegGuidedMMRegLib.study import Study, StudyError


class ScriptedStudy:
    """A study and the scene it is shown in; `close` it, or use it in a `with` block.

    Args:
        folder: of the study.
        scene: `slicer.mrmlScene` without it.
        runner: starts the child processes; `WaitingRunner()` without it.

    Attributes:
        study: its cases and structures. The settings are left out (`StudyRecord.py`).
        bridge: shows cases, labels and landmarks as nodes, and saves them.

    Raises:
        StudyError: if there is no study in the folder, or it cannot be read; saying why.
    """

    def __init__(self, folder: Path | str, scene: Any = None, runner: Runner | None = None) -> None:
        self._runner = WaitingRunner() if runner is None else runner
        self.study: Study = open_study(folder, self._runner)
        self.bridge = SceneBridge(slicer.mrmlScene if scene is None else scene, self.study)

    def __enter__(self) -> ScriptedStudy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove temporary files; the nodes stay."""
        self.bridge.close()

    def register(
        self,
        fixed: Any,
        moving: Any,
        *,
        out: Path | None = None,
        listener: JobListener | None = None,
    ) -> PairNodes:
        """Register the volume `moving` to `fixed` and show the result (see `PairRegistration.register`)."""
        between = getattr(getattr(slicer, "app", None), "processEvents", nothing)
        registration = PairRegistration(self.bridge, self._runner, between)
        return registration.register(fixed, moving, out=out, listener=listener)


def open_study(folder: Path | str, runner: Runner) -> Study:
    """The study in `folder`, read by the child process.

    Raises:
        StudyError: if there is none, or it cannot be read; with the child's message.
    """
    end = runner.run(("info", str(folder)))
    if end.result is None:
        raise StudyError(end.message or f"{folder}: the study could not be read ({end.exit_code}).")
    return study_as_told(folder, end.result)
