"""Step 1, the study: make one, add to it, open one; its cases and structures; problems in words."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

import ctk
import qt
from SegGuidedMMRegGui.CaseTable import CaseTable
from SegGuidedMMRegGui.ImportForm import ImportForm
from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.Panel import Panel
from SegGuidedMMRegGui.StructuresTable import StructuresTable, text_of
from SegGuidedMMRegGui.Thumbnails import Thumbnails
from SegGuidedMMRegGui.Widgets import connect, connect_path, load_ui
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.cases import Structure

_RECENT = "SegGuidedMMReg/RecentStudies"
_RECENT_KEPT = 8
_REMOVE = "--remove-structures"
_PROBLEM = ("left out:", "note:")


class StudyPanel(Panel):
    """The panel; `workplace` holds the study that is open."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        self.widget, self._ui = load_ui("StudyPanel")
        self._job: Job | None = None
        ui = self._ui
        self.form = ImportForm(ui, workplace, self._import, self.failed, self.onChanged)
        self.cases = CaseTable(self._edit_cases)
        self.structures = StructuresTable(self.onChanged, self._save_structures)
        self._thumbnails = Thumbnails(workplace, self.cases.show_picture)
        for panel, place in ((self.cases, ui.casesFrame), (self.structures, ui.structuresButton)):
            layout = place.layout()
            layout.addWidget(panel.widget)
        ui.studyPath.filters = ctk.ctkPathLineEdit.Dirs
        connect_path(ui.studyPath, self.onChanged)
        connect(ui.openButton, "clicked(bool)", self.onOpen)
        connect(ui.recentBox, "activated(int)", self.onRecent)
        ui.structuresButton.collapsed = True
        self._show_problems([])
        self._show_recent()
        self.study_changed()

    def open(self, folder: str) -> None:
        """Open the study in `folder`; it is there a moment later."""
        self._show_message("")
        self._job = self.workplace.open(folder, self.failed)
        self.onChanged()

    def study_changed(self) -> None:
        study, bridge, ui = self.workplace.study, self.workplace.bridge, self._ui
        if study is None:
            ui.summaryLabel.text = _("Open a study, or make one from images.")
            self._show_problems([])
        else:
            ui.studyPath.currentPath = self.workplace.folder
            ui.summaryLabel.text = _summary(study)
            self._remember(self.workplace.folder)
        cases = [] if study is None else study["cases"]
        self.cases.show(cases)
        self.structures.show(() if bridge is None else bridge.study.structures, self.workplace.folder)
        ui.casesFrame.visible = bool(cases)
        ui.structuresButton.visible = study is not None
        self._thumbnails.study_changed()
        self._show_message("")
        self.onChanged()

    def opened(self) -> None:
        self.form.onFolded(self._ui.importButton.collapsed)

    def cleanup(self) -> None:
        self.cases.stop()
        self._thumbnails.stop()
        self.form.cleanup()

    # -- what the user does -----------------------------------------------------------------------------
    def onChanged(self) -> None:
        """Say which buttons can be pressed, and what the others need."""
        ui = self._ui
        busy = self.form.is_writing or (self._job is not None and self._job.is_running)
        opening = [] if ui.studyPath.currentPath else [_("the folder of a study")]
        self.form.show_modalities()
        _allow(
            ui.newButton, self.form.needs_of_new(), busy, _("Check all images, and make a study of copies")
        )
        purpose = _("Add images, or labels to images of the same names")
        _allow(ui.addButton, self.form.needs_of_add(), busy, purpose)
        _allow(ui.openButton, opening, busy, _("Open the study in this folder"))
        self.cases.set_busy(busy)
        self.structures.set_busy(busy)

    def onOpen(self) -> None:
        self.open(self._ui.studyPath.currentPath)

    def onRecent(self, index: int) -> None:
        folder = self._ui.recentBox.itemData(index)
        if folder:
            self.open(folder)

    def _edit_cases(self, keys: Sequence[str], said: dict[str, str]) -> None:
        """Say the same of all these cases."""
        bridge = self.workplace.bridge
        if bridge is None:
            return
        place = bridge.temporary_folder("edit-")
        with (place / "cases.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("case", *said), *((key, *said.values()) for key in keys)])
        arguments = ("edit", self.workplace.folder, "--table", str(place / "cases.csv"))
        title = _("Changing {count} cases").format(count=len(keys))
        self._run(title, arguments, [], lambda: shutil.rmtree(place, ignore_errors=True))

    def _save_structures(self, structures: Sequence[Structure], removed: Sequence[Structure]) -> None:
        arguments = ("edit", self.workplace.folder, "--structures", *map(text_of, structures))
        if removed:
            arguments += (_REMOVE, *(str(structure.value) for structure in removed))
        self._run(_("Changing the structures"), arguments, [], lambda: None)

    def _import(self, title: str, arguments: tuple[str, ...], folder: str, notes: list[str]) -> None:
        self._run(title, arguments, notes, self.form.finished, folder)

    # -- what the library says --------------------------------------------------------------------------
    def _run(
        self,
        title: str,
        arguments: tuple[str, ...],
        notes: Sequence[str],
        ended: Callable[[], None],
        folder: str = "",
    ) -> None:
        """Run a job that changes a study, and read the study again.

        Args:
            title, arguments: of the job.
            notes: problems that are known already.
            ended: called when it has ended, however.
            folder: of the study; the open one without it.
        """
        problems = list(notes)

        def note(line: str) -> None:
            if line.startswith(_PROBLEM):
                problems.append(line)

        def finished(end: JobEnd) -> None:
            ended()
            self._show_problems(problems)
            if end.is_done and end.result is not None:
                if arguments[0] in ("new", "add"):
                    self.form.untick()
                self.open(folder or self.workplace.folder)
                return
            self.failed(_("Cancelled.") if end.cancelled else end.message)
            if _REMOVE in arguments:
                self.structures.put_back()

        self._show_message("")
        try:
            listener = JobListener(log=note, finished=finished)
            self._job = self.workplace.runner.start(title, arguments, listener)
        except RuntimeError as error:
            ended()
            self._show_message(str(error))
        self.onChanged()

    def failed(self, message: str) -> None:
        """Say why something could not be done."""
        self._show_message(message)
        self.onChanged()

    def _show_problems(self, lines: list[str]) -> None:
        self._ui.problemsEdit.plainText = "\n".join(lines)
        self._ui.problemsEdit.visible = bool(lines)

    def _show_message(self, text: str) -> None:
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)

    # -- recent studies ---------------------------------------------------------------------------------
    def _remember(self, folder: str) -> None:
        others = [each for each in _recent() if each != folder]
        qt.QSettings().setValue(_RECENT, json.dumps([folder, *others][:_RECENT_KEPT]))
        self._show_recent()

    def _show_recent(self) -> None:
        box, folders = self._ui.recentBox, [f for f in _recent() if (Path(f) / "study.yaml").is_file()]
        box.clear()
        box.addItem(_("Recent …"), "")
        for folder in folders:
            box.addItem(folder, folder)
        box.enabled = bool(folders)


def _allow(button: Any, needs: list[str], busy: bool, purpose: str) -> None:
    button.enabled = not needs and not busy
    if needs:
        button.toolTip = _("Needs {needs}").format(needs=", ".join(needs))
    else:
        button.toolTip = _("Wait until the job has ended") if busy else purpose


def _recent() -> list[str]:
    try:
        found = json.loads(str(qt.QSettings().value(_RECENT, "") or "[]"))
    except ValueError:
        return []
    return [str(each) for each in found] if isinstance(found, list) else []


def _summary(study: Data) -> str:
    cases, names = study["cases"], ", ".join(s["name"] for s in study["structures"])
    counts = [sum(case["modality"] == study[which] for case in cases) for which in ("source", "target")]
    labelled = sum(case["label_use"] == "training" for case in cases)
    return _(
        "{name}, {dimension}D: {source_count} images of {source} ({labelled} labelled for training), "
        "{target_count} of {target}; structures: {structures}"
    ).format(
        name=study["name"],
        dimension=study["dimension"],
        source=study["source"],
        target=study["target"],
        source_count=counts[0],
        target_count=counts[1],
        labelled=labelled,
        structures=names or "–",
    )
