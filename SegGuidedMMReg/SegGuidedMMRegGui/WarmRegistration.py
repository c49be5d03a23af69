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
from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.PairFiles import PairResult, read_pair
from SegGuidedMMRegGui.PairRegistration import PairRegistration, Request, Side
from SegGuidedMMRegGui.ReadingJob import ReadingJob, read
from SegGuidedMMRegGui.SceneBridge import PairNodes, SceneBridge
from SegGuidedMMRegGui.Steps import Steps, checked, in_turns
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
    done: Callable[[Outcome], None]
    reading: ReadingJob | None = None
    request: Request | None = None
    job: Job | None = None
    background: Background | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def stop(self) -> None:
        """Read no more, and hear no more of what is done beside."""
        if self.reading is not None:
            self.reading.cancel()
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
        title = _("Reading {moving} and {fixed}").format(moving=_name(moving), fixed=_name(fixed))
        self.begin(title, lambda bridge: PairRegistration(bridge).describing(fixed, moving, out=out), done)

    def begin(
        self, title: str, describing: Callable[[SceneBridge], Steps[Request]], done: Callable[[Outcome], None]
    ) -> None:
        """Register what these steps describe; they are given up where the study is closed meanwhile.

        Args:
            title: what the user reads of the reading, where it takes its time.
            describing: given the bridge of the open study; leaves nothing behind when given up.
            done: hears of the end, once.

        Raises:
            ValueError, RuntimeError: as `start`.
        """
        bridge = self._workplace.bridge
        if bridge is None:
            raise RuntimeError(_("Open a study first (step 1)."))
        if self._running is not None:
            raise RuntimeError(_("Wait until the other registration has ended."))
        running = self._running = _Running(bridge, done)

        try:
            running.reading = read(
                self._workplace.runner,
                title,
                checked(describing(bridge), self._still_here()),
                lambda request: self._write(running, request),
                lambda message: self._end(running, Outcome(None, message)),
            )
        except BaseException:
            self._running = None
            raise

    def cancel(self) -> None:
        """Give it up; nothing of it is shown."""
        running = self._running
        if running is not None and (running.job or running.reading) is not None:
            (running.job or running.reading).cancel()
        elif running is not None:
            running.stop()
            self._end(running, Outcome(None))

    def forget(self) -> None:
        """The module is closed: tell nobody."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    # -- one after the other ----------------------------------------------------------------------------
    def _still_here(self) -> Callable[[], None]:
        """Raises BridgeError where scene or study are others than now."""
        workplace = self._workplace
        bridge, scenes_closed = workplace.bridge, workplace.scenes_closed

        def check() -> None:
            if scenes_closed != workplace.scenes_closed:
                raise BridgeError(
                    _("The scene was closed before the images were read, so nothing was registered.")
                )
            if bridge is not workplace.bridge:
                raise BridgeError(
                    _("The study was closed before the images were read, so nothing was registered.")
                )

        return check

    def _write(self, running: _Running, request: Request) -> None:
        running.reading, running.request = None, request
        self._beside(running, request.write, lambda _none: self._ask(running))

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
        if running is not self._running or request is None:
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
        is_closed = running.bridge is not self._workplace.bridge
        if running.request is None:
            running.done(outcome)
            return
        inputs = running.request.inputs
        shutil.rmtree(inputs.parents[1] if is_closed else inputs, ignore_errors=True)
        running.done(Outcome(None) if is_closed else outcome)


def _name(side: Any) -> str:
    return str((side.node if isinstance(side, Side) else side).GetName())
