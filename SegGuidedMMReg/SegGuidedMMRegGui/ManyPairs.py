"""Many pairs of a study: a list, a job that goes on without Slicer and can be continued, a live table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

import ctk
import qt
from SegGuidedMMRegGui.Background import Background
from SegGuidedMMRegGui.CaseBox import CaseBox
from SegGuidedMMRegGui.DetachedJob import DetachedJob
from SegGuidedMMRegGui.GrowingTable import GrowingTable
from SegGuidedMMRegGui.JobEvents import JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.PairFiles import PairResult, read_pair
from SegGuidedMMRegGui.PairImages import PairImages
from SegGuidedMMRegGui.PairTable import PairRow, PairTable, rows_of
from SegGuidedMMRegGui.PairWords import needs_for_registering
from SegGuidedMMRegGui.SceneBridge import PairNodes
from SegGuidedMMRegGui.SideChoice import case_title
from SegGuidedMMRegGui.Steps import Steps, in_turns
from SegGuidedMMRegGui.Widgets import connect, connect_path
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.images import read_labels
from SegGuidedMMRegLib.sampling import Image

_KIND = "register"
_LOOK_MS = 500
_TYPED_MS = 400
TESTS, TEMPLATE, LIST = "tests", "template", "list"
_CHOICES = (TESTS, TEMPLATE, LIST)


class ManyPairs:
    """The lower part of the panel.

    Args:
        ui: the widgets of the panel.
        workplace: study, jobs, scene and parameters.
    """

    def __init__(self, ui: Any, workplace: Workplace) -> None:
        self._ui, self._workplace = ui, workplace
        self._table = PairTable(ui.pairsTable, self.show_pair)
        self._template = CaseBox(ui.templateBox, lambda key: self._keep("pairsTemplate", key))
        self._listing: Job | None = None
        self._reading_list: Background | None = None
        self._reading: Background | None = None
        self._job: DetachedJob | None = None
        self._summary: GrowingTable | None = None
        self._listed: tuple[Any, ...] | None = None
        self._folder = ""
        self._is_showing = False
        self._message = ""
        self._timer = qt.QTimer()
        connect(self._timer, "timeout()", self._look)
        self._typed = qt.QTimer()
        self._typed.setSingleShot(True)
        connect(self._typed, "timeout()", self._changed)
        ui.pairsPath.filters = ctk.ctkPathLineEdit.Files
        connect(ui.pairsBox, "activated(int)", self.onKind)
        connect_path(ui.pairsPath, self.onPath)
        connect(ui.manyButton, "contentsCollapsed(bool)", self.onFolded)
        connect(ui.manyStartButton, "clicked(bool)", self.onStart)
        connect(ui.manyShowButton, "clicked(bool)", self.onShow)
        connect(ui.pairsTable, "currentCellChanged(int,int,int,int)", self.onSelected)
        ui.manyButton.collapsed = True

    # -- study and scene --------------------------------------------------------------------------------
    def study_changed(self) -> None:
        """Another study is open, or the same one was read again."""
        if self._workplace.folder != self._folder:
            self._folder = self._workplace.folder
            self._forget_list()
            self._message = ""
            self._job = self._found_again()
        self.choices_changed()

    def choices_changed(self) -> None:
        """The scene or the study is another one: show what is chosen."""
        bridge, ui = self._workplace.bridge, self._ui
        source, target = ("", "") if bridge is None else (bridge.study.source, bridge.study.target)
        texts = (
            _("All test images of {source} to all of {target}").format(source=source, target=target),
            _("Every case to one image, a template …"),
            _("The pairs of a list (CSV) …"),
        )
        cases = () if bridge is None else bridge.study.cases
        self._is_showing = True
        try:
            ui.pairsBox.clear()
            ui.pairsBox.addItems(texts)
            ui.pairsBox.currentIndex = _CHOICES.index(self._kind)
            entries = [("", _("choose the template")), *((case.key, case_title(case)) for case in cases)]
            self._template.fill(entries, self._get("pairsTemplate"))
            ui.pairsPath.currentPath = self._get("pairsFile")
        finally:
            self._is_showing = False
        self._changed()

    def opened(self) -> None:
        """The step was unfolded."""
        self._changed()

    def left(self) -> None:
        """The step was folded, or the scene is about to be closed."""
        self._typed.stop()
        if self._reading is not None:
            self._reading.forget()
            self._reading = None

    def cleanup(self) -> None:
        """The module is closed; the job goes on."""
        self.left()
        self._forget_list()
        self._timer.stop()
        self._table.stop()

    # -- what the user does -----------------------------------------------------------------------------
    def onKind(self, index: int) -> None:
        self._keep("pairsKind", _CHOICES[index])

    def onPath(self) -> None:
        """Forget the list of the former path, and ask for the new one when nothing is typed any more."""
        path, parameters = self._ui.pairsPath.currentPath, self._workplace.parameters
        if self._is_showing or parameters is None or path == parameters.pairsFile:
            return
        parameters.pairsFile = path
        self._message = ""
        self._forget_list()
        self._typed.start(_TYPED_MS)
        self._show()

    def onFolded(self, is_folded: bool) -> None:
        if not is_folded:
            self._changed()

    def onSelected(self) -> None:
        self._show_buttons()

    def onStart(self) -> None:
        """Register what is not finished of the list."""
        folder = self._workplace.folder
        arguments = (_KIND, folder, *self._arguments())
        self._message = ""
        try:
            self._job = DetachedJob.begin(Path(folder), arguments, self._listener(folder))
            self._workplace.runner.adopt(_("Registering many pairs"), self._job)
        except (RuntimeError, OSError) as error:
            self._message = str(error)
        self._timer.start(_LOOK_MS)
        self._show()

    def onShow(self) -> None:
        row = self._table.selected()
        if row is not None:
            self.show_pair(row)

    # -- the list ---------------------------------------------------------------------------------------
    def _changed(self) -> None:
        """Ask the library for the list, if it is another one than that which is shown and can be told."""
        self._typed.stop()
        bridge = self._workplace.bridge
        cases = () if bridge is None else tuple(case.key for case in bridge.study.cases)
        wanted = (self._workplace.folder, self._arguments(), cases, self._file_state())
        if wanted != self._listed:
            self._forget_list()
            if bridge is not None and not self._ui.manyButton.collapsed and not self._lacks():
                self._listed = wanted
                self._ask_for_list()
        self._show()

    def _file_state(self) -> int:
        """Changes when the file of the list is written again."""
        try:
            return Path(self._get("pairsFile")).stat().st_mtime_ns if self._kind == LIST else 0
        except OSError:
            return 0

    def _forget_list(self) -> None:
        listing, self._listing, self._listed, self._summary = self._listing, None, None, None
        if listing is not None:
            listing.cancel()
        if self._reading_list is not None:
            self._reading_list.forget()
            self._reading_list = None
        self._table.set_pairs([])

    def _ask_for_list(self) -> None:
        bridge = self._workplace.bridge
        assert bridge is not None
        path = bridge.temporary_folder("pairs-") / "pairs.csv"
        job: Job | None = None

        def finished(end: JobEnd) -> None:
            if job is not self._listing:
                return
            if end.is_done:
                self._reading_list = Background(lambda: rows_of(path), self._take_list, self._failed_to_list)
            else:
                self._failed_to_list(end.message)

        arguments = (_KIND, self._workplace.folder, *self._arguments(), "--list", str(path))
        self._message = ""
        try:
            listener = JobListener(finished=finished)
            job = self._listing = self._workplace.runner.start(_("Listing pairs"), arguments, listener)
        except RuntimeError as error:
            self._failed_to_list(str(error))

    def _take_list(self, rows: list[PairRow]) -> None:
        self._listing = self._reading_list = None
        self._table.set_pairs(rows)
        self._summary = GrowingTable(Path(self._workplace.folder) / "registrations" / "summary.csv")
        self._timer.start(0)
        self._show()

    def _failed_to_list(self, message: str) -> None:
        self._listing = self._reading_list = self._listed = None
        self._message = message
        self._show()

    # -- the job ----------------------------------------------------------------------------------------
    def _listener(self, folder: str) -> JobListener:
        def finished(end: JobEnd) -> None:
            if folder == self._workplace.folder:
                self._ended(end)

        return JobListener(finished=finished)

    def _found_again(self) -> DetachedJob | None:
        """The job that was started earlier, perhaps before Slicer was closed, and still runs."""
        folder, runner = self._workplace.folder, self._workplace.runner
        if not folder:
            return None
        for job in runner.running():
            if isinstance(job, DetachedJob) and (str(job.study), job.kind) == (folder, _KIND):
                return job
        job = DetachedJob.find(Path(folder), _KIND, self._listener(folder))
        if job is not None:
            runner.adopt(_("Registering many pairs"), job)
            self._timer.start(_LOOK_MS)
        return job

    def _ended(self, end: JobEnd) -> None:
        self._job = None
        self._message = _("Cancelled; what is finished stays.") if end.cancelled else end.message
        self._timer.start(0)
        self._show()

    def _look(self) -> None:
        """Read on in the table of results, a piece at a time, while there is something to expect."""
        if self._summary is not None:
            is_new, rows = self._summary.more()
            if is_new:
                self._table.forget_results()
            for row in rows:
                self._table.tell(row)
        if self._summary is not None and self._summary.has_more:
            self._timer.start(0)
        elif self._job is not None:
            self._timer.start(_LOOK_MS)
        else:
            self._timer.stop()
        self._show_count()

    # -- a pair -----------------------------------------------------------------------------------------
    def show_pair(self, row: PairRow) -> None:
        """Show a finished pair in the scene, and tell everybody."""
        bridge = self._workplace.bridge
        if bridge is None or self._reading is not None:
            return
        cases = {case.key: case for case in bridge.study.cases}
        images = PairImages(bridge, [cases.get(text) or Path(text) for text in (row.moving, row.fixed)])
        sides = {"moving": row.moving, "fixed": row.fixed}
        predicted = {n: bridge.study.prediction_path(cases[key]) for n, key in sides.items() if key in cases}

        def read() -> tuple[PairResult, dict[str, Image]]:
            images.read()
            labels = {name: read_labels(path) for name, path in predicted.items() if path.is_file()}
            return read_pair(bridge.study.folder / "registrations" / row.name), labels

        def showing(found: tuple[PairResult, dict[str, Image]]) -> Steps[PairNodes]:
            pair, labels = found
            moving, fixed = yield from images.showing()
            nodes = yield from bridge.showing_pair(pair, subject=row.name, fixed=fixed, moving=moving)
            shown = {}
            for name in labels:
                shown[name] = yield from bridge.showing_prediction(labels[name], name, case=sides[name])
            return replace(nodes, moving_labels=shown.get("moving"), fixed_labels=shown.get("fixed"))

        def go_on(step: Callable[[], None]) -> None:
            if self._reading is not reading:
                return
            if bridge is not self._workplace.bridge:
                self._reading = None
                return
            try:
                step()
            except (ValueError, OSError) as error:
                failed(str(error))

        def done(nodes: PairNodes) -> None:
            self._reading = None
            self._workplace.show_pair(nodes)
            self._show()

        def failed(message: str) -> None:
            self._reading = None
            self._message = message
            self._show()

        self._message = ""
        reading = self._reading = Background(
            read, lambda found: in_turns(showing(found), go_on, done), failed
        )
        self._show()

    # -- what is shown ----------------------------------------------------------------------------------
    def _show(self) -> None:
        kind, ui = self._kind, self._ui
        ui.templateBox.visible = kind == TEMPLATE
        ui.pairsPath.visible = kind == LIST
        self._show_buttons()
        self._show_count()

    def _show_buttons(self) -> None:
        ui, needs, row = self._ui, self._needs(), self._table.selected()
        ui.manyStartButton.enabled = not needs
        ui.manyStartButton.toolTip = (
            _("Needs {needs}").format(needs=", ".join(needs))
            if needs
            else _("Register all pairs of the list that are not finished; this goes on when Slicer is closed")
        )
        is_there = row is not None and bool(row.state)
        ui.manyShowButton.enabled = is_there and self._reading is None
        ui.manyShowButton.toolTip = (
            _("Show the chosen pair in the scene") if is_there else _("Needs a pair that is done")
        )

    def _show_count(self) -> None:
        count, done, failed = self._table.counts()
        said = [self._message]
        if self._listing is not None:
            said.append(_("The list is being read …"))
        elif count:
            said.append(
                _("{done} of {count} pairs are done, {failed} failed.").format(
                    done=done, count=count, failed=failed
                )
            )
        self._ui.countLabel.text = "\n".join(filter(None, said))
        self._ui.countLabel.visible = bool(self._ui.countLabel.text)

    def _needs(self) -> list[str]:
        needs = needs_for_registering(self._workplace.study)
        if self._workplace.study is None:
            return needs
        needs += self._lacks()
        if self._job is not None:
            needs.append(_("the end of the job that runs; the strip on top cancels it"))
        elif not needs and (self._listing is not None or not self._table.counts()[0]):
            needs.append(_("a list with pairs"))
        return needs

    def _lacks(self) -> list[str]:
        """What the choice of the pairs lacks."""
        if self._kind == TEMPLATE and not self._template.key:
            return [_("a template")]
        if self._kind == LIST and not self._get("pairsFile"):
            return [_("a list")]
        return []

    # -- what is chosen ---------------------------------------------------------------------------------
    @property
    def _kind(self) -> str:
        kind = self._get("pairsKind")
        return kind if kind in _CHOICES else TESTS

    def _arguments(self) -> tuple[str, ...]:
        if self._kind == TEMPLATE:
            return ("--to", self._template.key)
        return ("--pairs", self._get("pairsFile")) if self._kind == LIST else ()

    def _keep(self, parameter: str, value: str) -> None:
        parameters = self._workplace.parameters
        if not self._is_showing and parameters is not None:
            setattr(parameters, parameter, value)
            self._changed()

    def _get(self, parameter: str) -> str:
        parameters = self._workplace.parameters
        return "" if parameters is None else str(getattr(parameters, parameter))
