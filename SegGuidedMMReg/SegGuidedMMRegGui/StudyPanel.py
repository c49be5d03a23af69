"""Step 1, the study: make one from folders of images, add to it, open one; its cases; problems in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

import ctk
import qt
from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.Panel import Panel
from SegGuidedMMRegGui.Widgets import connect, fill_table, load_ui
from SegGuidedMMRegGui.Workplace import Workplace

_RECENT = "SegGuidedMMReg/RecentStudies"
_RECENT_KEPT = 8
_FOLDERS = {
    "--source-images": "sourceImagesPath",
    "--source-labels": "sourceLabelsPath",
    "--target-images": "targetImagesPath",
    "--target-labels": "targetLabelsPath",
}
_PROBLEM = ("left out:", "note:")


class StudyPanel(Panel):
    """The panel; `workplace` holds the study that is open."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        self.widget, self._ui = load_ui("StudyPanel")
        self._job: Job | None = None
        ui = self._ui
        for name in ("studyPath", "newPath", *_FOLDERS.values()):
            getattr(ui, name).filters = ctk.ctkPathLineEdit.Dirs
            connect(getattr(ui, name), "currentPathChanged(QString)", self.onChanged)
        for name in ("sourceEdit", "targetEdit"):
            connect(getattr(ui, name), "textChanged(QString)", self.onChanged)
        connect(ui.openButton, "clicked(bool)", self.onOpen)
        connect(ui.recentBox, "activated(int)", self.onRecent)
        connect(ui.newButton, "clicked(bool)", self.onNew)
        connect(ui.addButton, "clicked(bool)", self.onAdd)
        ui.importButton.collapsed = True
        self._show_recent()
        self.study_changed()

    def open(self, folder: str) -> None:
        """Open the study in `folder`; it is there a moment later."""
        self._show_message("")
        self._job = self.workplace.open(folder, self.failed)
        self.onChanged()

    def study_changed(self) -> None:
        study, ui = self.workplace.study, self._ui
        if study is None:
            ui.summaryLabel.text = _("Open a study, or make one from folders of images.")
            self._show_problems([])
        else:
            ui.studyPath.currentPath = self.workplace.folder
            ui.summaryLabel.text = _summary(study)
            self._remember(self.workplace.folder)
        cases = [] if study is None else study["cases"]
        fill_table(ui.casesTable, [_row(case) for case in cases])
        ui.casesTable.visible = bool(cases)
        self._show_message("")
        self.onChanged()

    # -- what the user does -----------------------------------------------------------------------------
    def onChanged(self) -> None:
        """Say which buttons can be pressed, and what the others need."""
        ui, busy = self._ui, self._job is not None and self._job.is_running
        new = [] if ui.newPath.currentPath else [_("a folder for the new study")]
        if not ui.sourceEdit.text.strip() or not ui.targetEdit.text.strip():
            new.append(_("names of both modalities"))
        if not ui.sourceImagesPath.currentPath or not ui.targetImagesPath.currentPath:
            new.append(_("folders with images of both modalities"))
        some = any(getattr(ui, name).currentPath for name in _FOLDERS.values())
        add = [] if self.workplace.study is not None else [_("an open study")]
        add += [] if some else [_("a folder with images or labels")]
        opening = [] if ui.studyPath.currentPath else [_("the folder of a study")]
        self._allow(ui.newButton, new, busy, _("Check all images, and make a study of copies"))
        self._allow(ui.addButton, add, busy, _("Add images, or labels to images of the same names"))
        self._allow(ui.openButton, opening, busy, _("Open the study in this folder"))

    def onOpen(self) -> None:
        self.open(self._ui.studyPath.currentPath)

    def onRecent(self, index: int) -> None:
        folder = self._ui.recentBox.itemData(index)
        if folder:
            self.open(folder)

    def onNew(self) -> None:
        ui = self._ui
        folder = ui.newPath.currentPath
        arguments = [
            "new",
            folder,
            "--source",
            ui.sourceEdit.text.strip(),
            "--target",
            ui.targetEdit.text.strip(),
        ]
        arguments += [*self._images(), *self._rules(), "--preset", ui.presetBox.currentText]
        structures = [part.strip() for part in re.split(r"[,;\n]", ui.structuresEdit.text) if part.strip()]
        if structures:
            arguments += ["--structures", *structures]
        self._start(_("Making a study"), tuple(arguments), lambda _result: self.open(folder))

    def onAdd(self) -> None:
        folder = self.workplace.folder
        arguments = ("add", folder, *self._images(), *self._rules())
        self._start(_("Adding to the study"), arguments, lambda _result: self.open(folder))

    def _images(self) -> list[str]:
        given = ((option, getattr(self._ui, name).currentPath) for option, name in _FOLDERS.items())
        return [word for option, path in given if path for word in (option, path)]

    def _rules(self) -> list[str]:
        ui = self._ui
        words = []
        if ui.subjectEdit.text.strip():
            words += ["--subject-pattern", ui.subjectEdit.text.strip()]
        if ui.mirroredEdit.text.strip():
            words += ["--mirrored-pattern", ui.mirroredEdit.text.strip()]
        if ui.pixelSizeBox.value > 0:
            words += ["--spacing", f"{ui.pixelSizeBox.value:g}"]
        if ui.dimensionBox.currentIndex > 0:
            words += ["--dimension", ui.dimensionBox.currentText[0]]
        return words

    # -- what the library says --------------------------------------------------------------------------
    def _start(self, title: str, arguments: tuple[str, ...], then: Callable[[Data], None]) -> None:
        problems: list[str] = []

        def note(line: str) -> None:
            if line.startswith(_PROBLEM):
                problems.append(line)

        def finished(end: JobEnd) -> None:
            self._show_problems(problems)
            if end.is_done and end.result is not None:
                then(end.result)
            else:
                self.failed(_("Cancelled.") if end.cancelled else end.message)

        self._show_message("")
        try:
            listener = JobListener(log=note, finished=finished)
            self._job = self.workplace.runner.start(title, arguments, listener)
        except RuntimeError as error:
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

    def _allow(self, button: Any, needs: list[str], busy: bool, purpose: str) -> None:
        button.enabled = not needs and not busy
        if needs:
            button.toolTip = _("Needs {needs}").format(needs=", ".join(needs))
        else:
            button.toolTip = _("Wait until the job has ended") if busy else purpose

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


def _recent() -> list[str]:
    try:
        found = json.loads(str(qt.QSettings().value(_RECENT, "") or "[]"))
    except ValueError:
        return []
    return [str(each) for each in found] if isinstance(found, list) else []


def _row(case: Data) -> tuple[str, ...]:
    uses = {"training": _("for training"), "evaluation": _("for evaluation")}
    return (
        case["modality"],
        case["name"],
        case["subject"],
        case["role"],
        uses.get(case["label_use"], "–"),
        _("yes") if case["landmarks"] else "–",
        _("yes") if case["predicted"] else "–",
        _("yes") if case["mirrored"] else "–",
    )


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
