"""Series of Slicer's DICOM database that shall become cases: which, and of which modality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.DicomDatabase import Series, database, listing
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.ReadingJob import ReadingJob, read
from SegGuidedMMRegGui.Steps import Steps
from SegGuidedMMRegGui.Widgets import connect, later, load_ui

_MODALITIES = ("source", "target")
_AS = 0


class DicomImport:
    """The list; nothing is asked of the database until the user wants it listed.

    Attributes:
        widget: to be put somewhere.
    """

    def __init__(self, runner: JobRunner, changed: Callable[[], None]) -> None:
        """
        Args:
            runner: shows the reading of a large database as a job.
            changed: called when other series are chosen.
        """
        self.widget, self._ui = load_ui("DicomImport")
        self._runner, self._changed = runner, changed
        self._series: list[Series] = []
        self._chosen: dict[str, str] = {}
        self._words: list[str] = []
        self._job: ReadingJob | None = None
        self._modalities = {"source": _("source"), "target": _("target")}
        ui = self._ui
        connect(ui.listButton, "clicked(bool)", self.onList)
        connect(ui.findEdit, "textChanged(QString)", self.onFind)
        connect(ui.seriesTable, "itemSelectionChanged()", self.refresh)
        connect(ui.sourceButton, "clicked(bool)", lambda: self._choose("source"))
        connect(ui.targetButton, "clicked(bool)", lambda: self._choose("target"))
        connect(ui.notButton, "clicked(bool)", lambda: self._choose(""))
        self._say("")
        self.refresh()

    def name_modalities(self, source: str, target: str) -> None:
        """Call the modalities as the study does."""
        named = {"source": source or _("source"), "target": target or _("target")}
        if named != self._modalities:
            self._modalities = named
            for row in range(len(self._series)):
                self._show_choice(row)
        self.refresh()

    def chosen(self) -> list[tuple[Series, str]]:
        """The series to import, and source or target."""
        return [(each, self._chosen[each.uid]) for each in self._series if each.uid in self._chosen]

    def untick(self) -> None:
        """The chosen series are cases now."""
        self._chosen = {}
        for row in range(len(self._series)):
            self._show_choice(row)

    def stop(self) -> None:
        """Read no more."""
        if self._job is not None and self._job.is_running:
            self._job.cancel()

    def refresh(self) -> None:
        """Say which buttons can be pressed, and what the others need."""
        ui, is_open = self._ui, database() is not None
        is_busy = self._job is not None and self._job.is_running
        ui.listButton.enabled = is_open and not is_busy
        ui.listButton.toolTip = (
            _("List its patients, studies and series")
            if is_open
            else _("Needs an open DICOM database: open Slicer's module DICOM once")
        )
        ui.listFrame.visible = bool(self._series)
        selected = bool(self._rows())
        for name, text in (("source", _("As {modality}")), ("target", _("As {modality}")), ("not", "")):
            button = getattr(ui, f"{name}Button")
            button.enabled = selected
            if name in self._modalities:
                button.text = text.format(modality=self._modalities[name])
            button.toolTip = (
                _("What the selected series shall become") if selected else _("Needs selected series")
            )

    # -- what the user does -----------------------------------------------------------------------------
    def onList(self) -> None:
        """List the database."""
        source = database()
        if source is None:
            self.refresh()
            return
        self._say(_("Reading the DICOM database …"))
        title = _("Reading the DICOM database")
        self._job = read(self._runner, title, self._filling(source), self._listed, self._say)
        self.refresh()

    def onFind(self) -> None:
        words = self._ui.findEdit.text.casefold().split()
        for row, text in enumerate(self._words):
            self._ui.seriesTable.setRowHidden(row, not all(word in text for word in words))

    def _filling(self, source: Any) -> Steps[list[Series]]:
        found = yield from listing(source)
        table = self._ui.seriesTable
        self._series, self._words = [], []
        table.setRowCount(0)
        table.setRowCount(len(found))
        for row, series in enumerate(found):
            texts = (series.patient, series.description, series.kind, series.study, series.date)
            for column, text in enumerate(("", *texts)):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                table.setItem(row, column, item)
            self._series.append(series)
            self._words.append(" ".join(texts).casefold())
            self._show_choice(row)
            yield None
        return found

    def _listed(self, found: list[Series]) -> None:
        known = {series.uid for series in found}
        self._chosen = {uid: modality for uid, modality in self._chosen.items() if uid in known}
        self._say("" if found else _("The DICOM database holds no series of images."))
        later(self._arrange)

    def _arrange(self) -> None:
        """The list is whole."""
        self._ui.seriesTable.resizeColumnsToContents()
        self.onFind()
        self.refresh()
        self._changed()

    def _choose(self, modality: str) -> None:
        for row in self._rows():
            uid = self._series[row].uid
            self._chosen.pop(uid, None)
            if modality in _MODALITIES:
                self._chosen[uid] = modality
            self._show_choice(row)
        self._ui.seriesTable.resizeColumnToContents(_AS)
        self._changed()

    def _rows(self) -> list[int]:
        table = self._ui.seriesTable
        selected = {item.row() for item in table.selectedItems()}
        return sorted(row for row in selected if row < len(self._series) and not table.isRowHidden(row))

    def _show_choice(self, row: int) -> None:
        item, modality = self._ui.seriesTable.item(row, _AS), self._chosen.get(self._series[row].uid)
        item.setText("–" if modality is None else self._modalities[modality])

    def _say(self, text: str) -> None:
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)
