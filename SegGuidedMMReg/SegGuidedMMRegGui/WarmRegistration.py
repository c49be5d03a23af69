"""Registering a pair by the warm worker: described, asked for and shown in the scene, and nobody waits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SegGuidedMMRegGui.Background import Background
from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.PairFiles import PairResult, read_pair
from SegGuidedMMRegGui.PairRegistration import PairRegistration, Request
from SegGuidedMMRegGui.SceneBridge import PairNodes, SceneBridge
from SegGuidedMMRegGui.Steps import in_turns
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.images import read_labels
from SegGuidedMMRegLib.sampling import Image


@dataclass(frozen=True)
class Outcome:
    """How a registration ended.

    Attributes:
        nodes: of the pair; None if there is no result in the scene.
        message: why there is none, and what to do about it; "" if the user gave it up.
        notes: what the user should know, a sentence each.
    """

    nodes: PairNodes | None
    message: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class _Running:
    """What belongs to the registration at hand; one that is given up is another's no more."""

    bridge: SceneBridge
    request: Request
    done: Callable[[Outcome], None]
    job: Job | None = None
    background: Background | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def stop(self) -> None:
        """Hear no more of what is done beside."""
        if self.background is not None:
            self.background.forget()


class WarmRegistration:
    """One registration at a time. Main thread only.

    Deleted nodes, a closed scene or study, a worker that crashes: it ends, and says so. Nothing is shown in
    another scene than the one it was asked in, nor of a study that is not open any more.
    """

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._running: _Running | None = None

    @property
    def is_running(self) -> bool:
        return self._running is not None

    def start(
        self, fixed: Any, moving: Any, done: Callable[[Outcome], None], *, out: Path | None = None
    ) -> None:
        """Register `moving` to `fixed`; arguments as of `PairRegistration.register`.

        Args:
            fixed, moving: volume nodes, or a `Side` each.
            done: hears of the end, once.
            out: folder for the result.

        Raises:
            BridgeError: naming the node that cannot be used, and the remedy.
            RuntimeError: without a study, or while another registration runs.
        """
        bridge = self._workplace.bridge
        if bridge is None:
            raise RuntimeError(_("Open a study first (step 1)."))
        if self._running is not None:
            raise RuntimeError(_("Wait until the other registration has ended."))
        request = PairRegistration(bridge).describe(fixed, moving, out=out)
        running = self._running = _Running(bridge, request, done)
        self._beside(running, request.write, lambda _none: self._ask(running))

    def cancel(self) -> None:
        """Give it up; nothing of it is shown."""
        running = self._running
        if running is not None and running.job is not None:
            running.job.cancel()
        elif running is not None:
            running.stop()
            self._end(running, Outcome(None))

    def forget(self) -> None:
        """The module is closed: tell nobody."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    # -- one after the other ----------------------------------------------------------------------------
    def _ask(self, running: _Running) -> None:
        title = _("Registering {pair}").format(pair=running.request.subject.replace("--", _(" to ")))
        self._send(running, title, running.request.worker_request, lambda _found: self._predict(running))

    def _predict(self, running: _Running) -> None:
        """Ask for the segmentations it was registered by, which the worker still knows."""
        left = [name for name in running.request.predicted if name not in running.files]
        if not left:
            self._read(running)
            return

        def take(found: Data) -> None:
            running.files[left[0]] = Path(found["files"][0])
            self._predict(running)

        self._send(running, _("Segmenting"), running.request.prediction_request(left[0]), take)

    def _read(self, running: _Running) -> None:
        def read() -> tuple[PairResult, dict[str, Image]]:
            labels = {name: read_labels(path) for name, path in running.files.items()}
            return read_pair(running.request.folder), labels

        self._beside(running, read, lambda found: self._show(running, *found))

    def _show(self, running: _Running, pair: PairResult, labels: dict[str, Image]) -> None:
        in_turns(
            PairRegistration(running.bridge).showing(running.request, pair, labels),
            lambda step: self._go_on(running, step),
            lambda nodes: self._end(running, Outcome(nodes, notes=running.request.notes)),
        )

    # -- what all of them do ----------------------------------------------------------------------------
    def _send(self, running: _Running, title: str, request: Data, then: Callable[[Data], None]) -> None:
        def finished(end: JobEnd) -> None:
            running.job = None
            if end.is_done and end.result is not None:
                self._go_on(running, lambda: then(end.result or {}))
            else:
                self._end(running, Outcome(None, "" if end.cancelled else end.message))

        try:
            running.job = self._workplace.worker.ask(title, request, JobListener(finished=finished))
        except RuntimeError as error:
            self._end(running, Outcome(None, str(error)))

    def _beside(self, running: _Running, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        def done(found: Any) -> None:
            running.background = None
            self._go_on(running, lambda: then(found))

        running.background = Background(
            work, done, lambda message: self._end(running, Outcome(None, message))
        )

    def _go_on(self, running: _Running, then: Callable[[], None]) -> None:
        """The next step, unless there is nothing any more to do it for."""
        request, scene = running.request, running.bridge.scene
        if running is not self._running:
            return
        if running.bridge is not self._workplace.bridge:
            self._end(running, Outcome(None))
        elif not scene.IsNodePresent(request.moving) and not scene.IsNodePresent(request.fixed):
            where = _(" The result lies in {folder}.").format(folder=request.folder)
            message = _("Both volumes were removed from the scene, so nothing is shown.")
            is_kept = request.is_in_study and (request.folder / "report.json").is_file()
            self._end(running, Outcome(None, message + (where if is_kept else "")))
        else:
            try:
                then()
            except ValueError as error:
                self._end(running, Outcome(None, str(error)))
            except Exception as error:
                self._end(running, Outcome(None, f"{type(error).__name__}: {error}"))
                raise

    def _end(self, running: _Running, outcome: Outcome) -> None:
        if running is not self._running:
            return
        self._running = None
        inputs = running.request.inputs
        is_closed = running.bridge is not self._workplace.bridge
        shutil.rmtree(inputs.parents[1] if is_closed else inputs, ignore_errors=True)
        running.done(Outcome(None) if is_closed else outcome)
