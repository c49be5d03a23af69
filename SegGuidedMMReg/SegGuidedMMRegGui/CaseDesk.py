"""The desk of the annotator: opens cases one after the other, and saves what is drawn before it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui import CaseView
from SegGuidedMMRegGui.Background import Background
from SegGuidedMMRegGui.Editor import Editor
from SegGuidedMMRegGui.LabelTeller import LabelTeller
from SegGuidedMMRegGui.OpenCase import CaseFiles, OpenCase, Saved, read_files, usual_use
from SegGuidedMMRegGui.ReadingJob import ReadingJob
from SegGuidedMMRegGui.SegmentationNodes import nothing_on
from SegGuidedMMRegGui.Steps import Steps
from SegGuidedMMRegGui.Widgets import connect
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.images import Image, read_labels

Then = Callable[[], None]
_LAID_OUT_MS = 150


def _nothing() -> None:
    """There is nothing more to do."""


class CaseDesk:
    """One case at a time.

    Args:
        workplace: with the study.
        place: puts the Segment Editor's widget where it belongs.
        changed: is called when a case was opened, saved or put away.
        say: is called with what the user should read.

    Attributes:
        case: the open one, or None.
        editor: Slicer's Segment Editor; None until a case is opened.
        ranges: brightness that the user gave to cases that are not open.
    """

    def __init__(
        self,
        workplace: Workplace,
        place: Callable[[Any], None],
        changed: Then,
        say: Callable[[str], None],
    ) -> None:
        self._workplace, self._place, self._changed, self._say = workplace, place, changed, say
        self.case: OpenCase | None = None
        self.editor: Editor | None = None
        self.ranges: dict[str, tuple[float, float]] = {}
        self.fitting = (0.0, 1.0)
        self._reading: Background | ReadingJob | None = None
        self._writing: ReadingJob | None = None
        self._then: Then = _nothing
        self._once_told: list[Then] = []
        self._is_arranged = self._is_here = False
        self._laid_out = qt.QTimer()
        self._laid_out.setSingleShot(True)
        connect(self._laid_out, "timeout()", self._look)
        self._teller = LabelTeller(workplace.runner, self._told, self._not_told)

    @property
    def is_busy(self) -> bool:
        """Whether something is read, written, or told to the study."""
        jobs = (self._reading, self._writing)
        return self._teller.is_busy or any(job is not None and job.is_running for job in jobs)

    # -- opening ----------------------------------------------------------------------------------------
    def open(self, key: str) -> None:
        """Open the case `modality/name` a moment later, once the one that is open is saved."""
        if self.case is None or key != self.case.case.key:
            self.save(lambda: self._read(key))

    def _read(self, key: str) -> None:
        bridge = self._workplace.bridge
        if bridge is None:
            return
        case = bridge.study.case(key)
        self._stop_reading()
        self._say(_("Opening {name} …").format(name=case.name))
        self._reading = Background(
            lambda: read_files(bridge, case),
            lambda files: self.save(lambda: self._show(bridge, case, files)),
            self._say,
        )

    def _show(self, bridge: Any, case: Any, files: CaseFiles) -> None:
        if bridge is not self._workplace.bridge:  # another study was opened meanwhile
            return
        steps = OpenCase.opening(bridge, case, files)
        self._read_in_steps(steps, lambda opened: self._take(opened, files.range))

    def _read_in_steps(self, steps: Steps[Any], done: Callable[[Any], None]) -> None:
        self._reading = job = ReadingJob(steps, done, self._say)
        job.begin()

    def _take(self, opened: OpenCase, fitting: tuple[float, float]) -> None:
        case = opened.case
        former, self.case = self.case, opened
        if self.editor is None:
            self.editor = Editor(self._workplace.scene, "SegGuidedMMReg")
            self._place(self.editor.widget)
        self.edit()
        self._put_away(former)
        opened.settled()
        self.fitting = fitting
        if opened.is_new:
            CaseView.show_range(opened.volume, *self.ranges.get(case.key, fitting))
        if opened.was_found:
            self._say(
                _(
                    "The scene had a drawing of {name} that is not in the study: it is shown, not saved yet."
                ).format(name=case.name)
            )
        else:
            self._say("")
        self._changed()

    def edit(self) -> None:
        """Show the open case in the views, and let the user draw in it."""
        if self.case is None or not self._is_here:
            return
        dimension = self.case.bridge.study.dimension
        if not self._is_arranged:
            CaseView.arrange(self._workplace.scene, dimension)
            self._is_arranged = True
            self._laid_out.start(_LAID_OUT_MS)  # the views have their sizes only then
        self._look()
        if self.editor is not None:
            self.editor.offer(dimension)
            self._draw_in(self.case)
            self.editor.enter()

    def _look(self) -> None:
        if self._is_here and self.case is not None and self.case.is_there:
            CaseView.look_at(self.case.volume, self.case.bridge.study.dimension)

    def _draw_in(self, case: OpenCase) -> None:
        if self.editor is not None:
            self.editor.edit(case.segmentation, case.volume)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.forget()

    def _put_away(self, case: OpenCase | None) -> None:
        if case is None or not case.is_there:
            return
        self.ranges[case.case.key] = CaseView.range_shown(case.volume)
        case.close()

    # -- saving -----------------------------------------------------------------------------------------
    def save(self, then: Then = _nothing, *, wait: bool = False) -> None:
        """Save what is drawn; `then` goes on if that succeeds, or there is nothing to save.

        Args:
            then: what to do afterwards. If saving fails the case stays open, and the user reads why.
            wait: until it is written, because the scene or the module is being closed.
        """
        if self._writing is not None and self._writing.is_running:
            if not wait:
                self._then = then  # instead of what was to come
                return
            self._writing.wait()
        case = self.case
        if case is None or not case.is_changed:
            then()
            return
        self._then = then
        self._writing = ReadingJob(
            case.saving(),
            lambda saved: self._is_saved(case, saved),
            lambda why: self._is_not_saved(case, why),
        )
        self._writing.begin()
        if wait:
            self._writing.wait()

    def _is_saved(self, case: OpenCase, saved: Saved) -> None:
        name = case.case.name
        if saved.drawn is None:
            self._changed()
            nothing = _("Nothing is drawn for {name}, so nothing is saved.").format(name=name)
            why = _("{name} is not saved. {why}").format(name=name, why=saved.problem)
            self._say(why if saved.problem else nothing)
        else:
            case.saved(saved.stamp)
            problems = "; ".join(["", *saved.drawn.problems()]) or "."
            self._say(_("{name} is saved{problems}").format(name=name, problems=problems))
            self._tell(case)
            self._changed()
        if not saved.problem:
            self._then()

    def _is_not_saved(self, case: OpenCase, why: str) -> None:
        self._say(
            _("{name} is not saved: {why} What you drew is still there; save it again.").format(
                name=case.case.name, why=_sentence(why)
            )
        )
        self._changed()

    def once_saved(self, then: Then) -> None:
        """Save what is drawn; `then` goes on when the study knows of it."""

        def written() -> None:
            self._once_told.append(then)
            if not self._teller.is_busy:
                self._go_on()

        self.save(written)

    def _go_on(self) -> None:
        waiting, self._once_told = self._once_told, []
        for then in waiting:
            then()

    def confirm(self) -> None:
        """Save on demand; a draft becomes labels."""
        case = self.case
        if case is None:
            return
        if case.use == "none":
            case.use = usual_use(case.bridge, case.case)
        self.use_for(case.use)

    def use_for(self, use: str) -> None:
        """The labels of the open case are for training, evaluation or none."""
        case = self.case
        if case is None:
            return
        case.use = use
        if case.is_changed:
            self.save()
        elif case.bridge.label_path(case.case).is_file():
            self._say(_("{name} is saved.").format(name=case.case.name))
            self._tell(case)
        else:
            self._say(_("Nothing is drawn for {name}, so nothing is saved.").format(name=case.case.name))
        self._changed()

    def _tell(self, case: OpenCase) -> None:
        if case.use != case.told_use:
            case.told_use = case.use
            self._teller.tell(str(case.bridge.study.folder), case.case.key, case.use)

    def _told(self, folder: str) -> None:
        if folder == self._workplace.folder:
            self._workplace.read_again()
        self._changed()
        self._go_on()

    def _not_told(self, message: str) -> None:
        if self.case is not None:
            self.case.told_use = self.case.case.label_use or "none"
        self._say(
            _("The labels are in the folder of the study as a draft, but not used: {why}").format(why=message)
        )

    # -- other labels in its place ----------------------------------------------------------------------
    def revert(self) -> None:
        """Show again what is saved; the drawing comes back by Undo."""
        case = self.case
        if case is None:
            return
        bridge, one = case.bridge, case.case
        there = bridge.label_path(one).is_file()

        def shown() -> None:
            case.saved(case.stamp)
            self._changed()

        self._reading = Background(
            lambda: bridge.read_drawn_labels(one) if there else nothing_on(case.grid),
            lambda labels: self._replace(case, labels, shown),
            self._say,
        )

    def take_draft(self, path: Path, may_replace: Callable[[], bool], said: str) -> None:
        """Show the labels in `path` as a draft of the open case, if what was drawn may be replaced."""
        case = self.case
        if case is None:
            return

        def shown() -> None:
            case.use = "none"
            self._say(said)
            self._changed()

        def show(labels: Image) -> None:
            if self.case is case and case.is_there and may_replace():
                self._replace(case, labels, shown)

        self._reading = Background(lambda: read_labels(path), show, self._say)

    def _replace(self, case: OpenCase, labels: Image, then: Then) -> None:
        if self.editor is not None:
            self.editor.remember()

        def shown(_node: Any) -> None:
            if self.case is case:
                self._draw_in(case)
                then()

        self._read_in_steps(case.showing(labels), shown)

    # -- coming and going -------------------------------------------------------------------------------
    def enter(self) -> None:
        """Go on with the case that is open, if its nodes are still there."""
        self._is_here = True
        self.look_after()
        self.edit()

    def leave(self) -> None:
        """Save; if the scene is being closed, at once, and the case with it."""
        is_closing = self._workplace.scene.IsClosing()
        self.save(wait=is_closing)
        self._is_arranged = self._is_here = False
        self._laid_out.stop()
        if self.editor is not None:
            self.editor.leave()
        if is_closing:
            self._stop_reading()
            self.forget()

    def look_after(self) -> bool:
        """Whether the nodes of the open case are in the scene; if not, it is open no longer."""
        if self.case is None or self.case.is_there:
            return True
        name = self.case.case.name
        self.forget()
        self._say(_("{name} was removed from the scene; open it again.").format(name=name))
        return False

    def study_changed(self) -> None:
        """Put the open case away if it is of another study; else hear what is new of it."""
        case, bridge = self.case, self._workplace.bridge
        if case is not None and case.bridge is bridge:
            self._hear_of(case)
        if case is None or case.bridge is bridge:
            return
        self._stop_reading()
        self.save(wait=True)
        self.forget()
        if not case.is_changed:
            self._put_away(case)
        self.ranges = {}

    def _hear_of(self, case: OpenCase) -> None:
        now = [each for each in case.bridge.study.cases if each.key == case.case.key]
        if not now:
            return
        case.case = now[0]
        if self._teller.is_busy:
            return
        told = case.case.label_use or "none"
        if case.use == case.told_use:
            case.use = told
        case.told_use = told

    def forget(self) -> None:
        """The open case is open no longer."""
        self.case = None
        if self.editor is not None:
            self.editor.release()
        self._changed()

    def close(self) -> None:
        """The module is closed: save, and leave nothing behind."""
        self._laid_out.stop()
        self._stop_reading()
        self.save(wait=True)
        self._teller.close()
        if self.editor is not None:
            self.editor.close()
            self.editor = None


def _sentence(message: str) -> str:
    text = message.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
