"""The form from which a study is made, or added to: folders, volumes of the scene, structures, rules."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

import ctk
from SegGuidedMMRegGui.DicomDatabase import database, listing_files
from SegGuidedMMRegGui.DicomImport import DicomImport
from SegGuidedMMRegGui.ReadingJob import ReadingJob, read
from SegGuidedMMRegGui.SceneFiles import SceneFiles, SceneVolume, structures_of
from SegGuidedMMRegGui.SceneImport import SceneImport
from SegGuidedMMRegGui.StructuresTable import StructuresTable, text_of
from SegGuidedMMRegGui.Widgets import connect, connect_path
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.study_file import StudyError

_FOLDERS = {
    "--source-images": "sourceImagesPath",
    "--source-labels": "sourceLabelsPath",
    "--target-images": "targetImagesPath",
    "--target-labels": "targetLabelsPath",
}


@dataclass(frozen=True)
class _Import:
    """What a job shall do: its title and arguments, folder of its study, volumes that are written for it."""

    title: str
    arguments: tuple[str, ...]
    folder: str
    volumes: Sequence[SceneVolume]
    structures: Sequence[Structure]


Start = Callable[[str, tuple[str, ...], str, list[str]], None]


class ImportForm:
    """The form, with the widgets of `StudyPanel.ui`."""

    def __init__(
        self,
        ui: Any,
        workplace: Workplace,
        start: Start,
        told: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        """
        Args:
            ui: the widgets.
            workplace: holds the study to add to, and the scene.
            start: called with title and arguments of a job, the folder of its study, and what is to be said
                of the import already.
            told: called with a message to the user, when what goes on has changed.
            changed: called when buttons may be pressed now that could not, or the other way round.
        """
        self._ui, self._workplace = ui, workplace
        self._start, self._told = start, told
        self.structures = StructuresTable(changed)
        self.scene = SceneImport(workplace.scene, changed)
        self.dicom = DicomImport(workplace.runner, changed)
        self._files: SceneFiles | None = None
        self._listing: ReadingJob | None = None
        self._place: Path | None = None
        for panel, layout in (
            (self.structures, "newStructuresFrame"),
            (self.dicom, "dicomFrame"),
            (self.scene, "sceneFrame"),
        ):
            place = getattr(ui, layout).layout()
            place.addWidget(panel.widget)
        for name in ("newPath", *_FOLDERS.values()):
            getattr(ui, name).filters = ctk.ctkPathLineEdit.Dirs
            connect_path(getattr(ui, name), changed)
        for name in ("sourceEdit", "targetEdit"):
            connect(getattr(ui, name), "textChanged(QString)", changed)
        connect(ui.newButton, "clicked(bool)", self.onNew)
        connect(ui.addButton, "clicked(bool)", self.onAdd)
        connect(ui.importButton, "contentsCollapsed(bool)", self.onFolded)
        ui.importButton.collapsed = True

    @property
    def is_writing(self) -> bool:
        """Whether volumes of the scene, or lists of DICOM files, are being written for a job."""
        return self._listing is not None or (self._files is not None and self._files.is_writing)

    def needs_of_new(self) -> list[str]:
        """What is missing before a study can be made."""
        ui = self._ui
        needs = [] if ui.newPath.currentPath else [_("a folder for the new study")]
        if not ui.sourceEdit.text.strip() or not ui.targetEdit.text.strip():
            needs.append(_("names of both modalities"))
        chosen = {volume.modality for volume in self.scene.chosen()}
        chosen |= {modality for _series, modality in self.dicom.chosen()}
        paths = {"source": ui.sourceImagesPath.currentPath, "target": ui.targetImagesPath.currentPath}
        if not all(paths[modality] or modality in chosen for modality in paths):
            needs.append(_("images of both modalities"))
        problem = self.structures.problem()
        return [*needs, _("structures ({problem})").format(problem=problem)] if problem else needs

    def needs_of_add(self) -> list[str]:
        """What is missing before the open study can be added to."""
        needs = [] if self._workplace.study is not None else [_("an open study")]
        some = any(getattr(self._ui, name).currentPath for name in _FOLDERS.values())
        is_chosen = some or self.scene.chosen() or self.dicom.chosen()
        return needs if is_chosen else [*needs, _("images or labels")]

    def show_modalities(self) -> None:
        """Call the modalities as the form does, or as the open study."""
        ui, study = self._ui, self._workplace.study
        names = [ui.sourceEdit.text.strip(), ui.targetEdit.text.strip()]
        if not any(names) and study is not None:
            names = [study["source"], study["target"]]
        self.scene.name_modalities(*names)
        self.dicom.name_modalities(*names)

    def untick(self) -> None:
        """What was chosen is in the study now."""
        self.scene.untick()
        self.dicom.untick()

    def finished(self) -> None:
        """The job has ended: what was written for it is not needed any more."""
        if self._files is not None:
            self._files.remove()
            self._files = None
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None

    def cleanup(self) -> None:
        """The module is closed."""
        self.dicom.stop()
        if self._listing is not None:
            self._listing.cancel()
        self.finished()

    # -- what the user does -----------------------------------------------------------------------------
    def onFolded(self, is_folded: bool) -> None:
        if not is_folded:
            self.scene.look()
            self.dicom.refresh()

    def onNew(self) -> None:
        ui, folder, chosen = self._ui, self._ui.newPath.currentPath, self.scene.chosen()
        try:
            structures = self.structures.structures() or structures_of(chosen)
        except StudyError as error:
            self._told(str(error))
            return
        names = ("--source", ui.sourceEdit.text.strip(), "--target", ui.targetEdit.text.strip())
        arguments = ["new", folder, *names, *self._images(), *self._rules()]
        arguments += ["--preset", ui.presetBox.currentText]
        if structures:
            arguments += ["--structures", *map(text_of, structures)]
        self._begin(_Import(_("Making a study"), tuple(arguments), folder, chosen, structures))

    def onAdd(self) -> None:
        folder, bridge = self._workplace.folder, self._workplace.bridge
        structures = () if bridge is None else bridge.study.structures
        arguments = ["add", folder, *self._images(), *self._rules()]
        chosen = self.scene.chosen()
        self._begin(_Import(_("Adding to the study"), tuple(arguments), folder, chosen, structures))

    def _begin(self, wanted: _Import) -> None:
        """Start the job, once the files of chosen series are found and the ticked volumes are written."""
        series, source = self.dicom.chosen(), database()
        if not series or source is None:
            self._write(wanted, [])
            return

        def found(listed: Path) -> None:
            self._listing = None
            self._write(wanted, [listed])

        def failed(message: str) -> None:
            self._listing = None
            self._failed(message or _("Cancelled."))

        said = _("Looking for the files of {count} series").format(count=len(series))
        try:
            self._place = Path(
                tempfile.mkdtemp(prefix="SegGuidedMMReg-import-", dir=slicer.app.temporaryPath)
            )
            steps = listing_files(source, series, self._place / "dicom.csv")
            self._listing = read(self._workplace.runner, said, steps, found, failed)
        except (ValueError, OSError) as error:
            failed(str(error))
        if self._listing is not None:
            self._told(said)

    def _write(self, wanted: _Import, lists: list[Path]) -> None:
        """Start the job, once the ticked volumes are written."""

        def start(paths: list[Path], notes: list[str]) -> None:
            words = ["--list", *map(str, paths)] if paths else []
            self._start(wanted.title, (*wanted.arguments, *words), wanted.folder, notes)

        if not wanted.volumes:
            start(lists, [])
            return

        def done(listed: Path) -> None:
            start([*lists, listed], files.notes)

        try:
            files = self._files = SceneFiles(
                self._workplace.runner, wanted.volumes, wanted.structures, done, self._failed
            )
        except OSError as error:  # no folder for temporary files
            self._failed(str(error))
            return
        files.start()
        if files.is_writing:
            self._told(_("Writing {count} volumes of the scene …").format(count=len(wanted.volumes)))

    def _failed(self, message: str) -> None:
        self.finished()
        self._told(message)

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
