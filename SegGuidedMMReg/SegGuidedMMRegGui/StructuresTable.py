"""The structures of a study: value, name, colour and standard term of each, edited in a small table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

import ctk
import qt
from SegGuidedMMRegGui.TermChooser import Term, TermChooser
from SegGuidedMMRegGui.Widgets import connect, fit_height, load_ui
from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.colours import palette_color
from SegGuidedMMRegLib.study_file import StudyError
from SegGuidedMMRegLib.terminology import meaning_of

_VALUE, _NAME, _COLOUR, _TERM = range(4)
_MOST_HIGH = 170


@dataclass
class _Row:
    """What a row of the table is made of; `is_known`: labels of the study may hold its value."""

    value: Any
    name: Any
    colour: Any
    term_button: Any
    term: str
    is_known: bool


class StructuresTable:
    """The table.

    Attributes:
        widget: to be put somewhere.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        save: Callable[[Sequence[Structure], Sequence[Structure]], None] | None = None,
    ) -> None:
        """
        Args:
            changed: called when the user has changed something.
            save: called with all structures, and with those of the study that were removed, when the user
                wants them saved; None without such a button.
        """
        self.widget, self._ui = load_ui("StructuresTable")
        self._changed, self._save = changed, save
        self._rows: list[_Row] = []
        self._chooser: TermChooser | None = None
        self._shown: tuple[Structure, ...] = ()
        self._study = ""
        self._busy = False
        ui = self._ui
        header = ui.table.horizontalHeader()
        header.setStretchLastSection(True)
        connect(ui.addRowButton, "clicked(bool)", self.onAdd)
        connect(ui.removeRowButton, "clicked(bool)", self.onRemove)
        connect(ui.saveButton, "clicked(bool)", self.onSave)
        connect(ui.table, "itemSelectionChanged()", self.onChanged)
        connect(ui.table, "itemChanged(QTableWidgetItem*)", self.onItemChanged)
        ui.saveButton.visible = save is not None
        self._fit()
        self.onChanged()

    def show(self, structures: Sequence[Structure], study: str) -> None:
        """Show the structures of a study: their values stay.

        Where they are shown already, what the user is changing stays.
        """
        if (tuple(structures), study) == (self._shown, self._study):
            return
        self._shown, self._study = tuple(structures), study
        self._fill(structures, ())

    def put_back(self) -> None:
        """Those that could not be removed are shown again; other changes stay."""
        if self.problem() or not self._removed():
            return
        now = {structure.value: structure for structure in self.structures()}
        known = [now.pop(structure.value, structure) for structure in self._shown]
        self._fill(known, tuple(now.values()))

    def _fill(self, known: Sequence[Structure], new: Sequence[Structure]) -> None:
        self._rows = []
        self._ui.table.setRowCount(0)
        for structures, is_known in ((known, True), (new, False)):
            for structure in structures:
                self._add(structure, is_known)
        self._fit()
        self.onChanged()

    def _removed(self) -> tuple[Structure, ...]:
        """The structures of the study that are in the table no more."""
        left = {row.value.text() for row in self._rows if row.is_known}
        return tuple(structure for structure in self._shown if str(structure.value) not in left)

    def structures(self) -> tuple[Structure, ...]:
        """As they stand in the table.

        Raises:
            StudyError: in words, where something is missing, cannot be, or is there twice.
        """
        found = []
        for row in self._rows:
            value, name = row.value.text().strip(), row.name.text().strip()
            if not value.isascii() or not value.isdigit():
                raise StudyError(_("{name}: the value must be a whole number.").format(name=name or "–"))
            found.append(Structure(int(value), name, _rgb(row.colour.color), row.term))
        if len({s.value for s in found}) < len(found):
            raise StudyError(_("Two structures have the same value."))
        if len({s.name.casefold() for s in found}) < len(found):
            raise StudyError(_("Two structures have the same name."))
        return tuple(found)

    def problem(self) -> str:
        """What is wrong with what stands there; "" where nothing is."""
        try:
            self.structures()
        except StudyError as error:
            return str(error)
        return ""

    def texts(self) -> list[str]:
        """As the command line takes them.

        Raises:
            StudyError: as `structures`.
        """
        return [text_of(structure) for structure in self.structures()]

    def set_busy(self, busy: bool) -> None:
        """Whether a job is changing the study."""
        self._busy = busy
        self.onChanged()

    # -- what the user does -----------------------------------------------------------------------------
    def onAdd(self) -> None:
        values = [int(row.value.text()) for row in self._rows if row.value.text().isdigit()]
        value = max(values, default=0) + 1
        row = self._add(Structure(value, _("structure {n}").format(n=value), palette_color(value)), False)
        self._fit()
        self._told()
        self._ui.table.setCurrentItem(row.name)
        self._ui.table.editItem(row.name)

    def onRemove(self) -> None:
        row = self._ui.table.currentRow()
        if 0 <= row < len(self._rows):
            del self._rows[row]
            self._ui.table.removeRow(row)
            self._fit()
            self._told()

    def onSave(self) -> None:
        if self._save is not None and not self.problem():
            self._save(self.structures(), self._removed())

    def onItemChanged(self) -> None:
        self._told()

    def onChanged(self) -> None:
        """Say which buttons can be pressed, and what the others need."""
        ui, row = self._ui, self._ui.table.currentRow()
        chosen = self._rows[row] if 0 <= row < len(self._rows) else None
        is_last = bool(self._shown) and len(self._rows) == 1
        ui.removeRowButton.enabled = chosen is not None and not is_last
        if chosen is None:
            ui.removeRowButton.toolTip = _("Needs a selected structure")
        elif is_last:
            ui.removeRowButton.toolTip = _("Needs another structure: a study has one at least")
        elif chosen.is_known:
            ui.removeRowButton.toolTip = _(
                "Remove the selected structure; one that labels of the study hold comes back when you save"
            )
        else:
            ui.removeRowButton.toolTip = _("Remove the selected structure")
        problem = self.problem()
        is_changed = not problem and self.structures() != self._shown
        ui.saveButton.enabled = is_changed and not self._busy
        if problem:
            ui.saveButton.toolTip = problem
        elif not is_changed:
            ui.saveButton.toolTip = _("Nothing is changed")
        elif self._busy:
            ui.saveButton.toolTip = _("Wait until the job has ended")
        else:
            ui.saveButton.toolTip = _("Keep these names, colours and terms in the study")

    def _told(self) -> None:
        self.onChanged()
        self._changed()

    # -- rows -------------------------------------------------------------------------------------------
    def _add(self, structure: Structure, is_known: bool) -> _Row:
        table = self._ui.table
        was_blocked = table.blockSignals(True)
        number = table.rowCount
        table.setRowCount(number + 1)
        row = _Row(
            qt.QTableWidgetItem(str(structure.value)),
            qt.QTableWidgetItem(structure.name),
            _colour_button(structure.color),
            qt.QPushButton(),
            structure.terminology,
            is_known,
        )
        if is_known:
            row.value.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
        table.setItem(number, _VALUE, row.value)
        table.setItem(number, _NAME, row.name)
        table.setCellWidget(number, _COLOUR, row.colour)
        table.setCellWidget(number, _TERM, row.term_button)
        self._rows.append(row)
        _show_term(row)
        connect(row.colour, "colorChanged(QColor)", self._told)
        connect(row.term_button, "clicked(bool)", lambda: self._choose_term(row))
        table.blockSignals(was_blocked)
        self.onChanged()
        return row

    def _fit(self) -> None:
        table = self._ui.table
        for column in (_VALUE, _NAME, _COLOUR):
            table.resizeColumnToContents(column)
        fit_height(table, _MOST_HIGH)

    def _choose_term(self, row: _Row) -> None:
        def chosen(term: Term) -> None:
            row.term = term.text
            if term.color is not None and not row.is_known:
                row.colour.color = qt.QColor(*term.color)
            _show_term(row)
            self._told()

        self._chooser = TermChooser(self.widget, row.name.text(), chosen)
        self._chooser.open()


def text_of(structure: Structure) -> str:
    """A structure as the command line takes it."""
    text = "{}={}:#{:02x}{:02x}{:02x}".format(structure.value, structure.name, *structure.color)
    return f"{text}:{structure.terminology}" if structure.terminology else text


def _colour_button(color: tuple[int, int, int]) -> Any:
    button = ctk.ctkColorPickerButton()
    button.displayColorName = False
    button.color = qt.QColor(*color)
    button.toolTip = _("Colour of the structure")
    return button


def _rgb(color: Any) -> tuple[int, int, int]:
    return color.red(), color.green(), color.blue()


def _show_term(row: _Row) -> None:
    meaning = meaning_of(row.term)
    row.term_button.text = meaning or _("choose …")
    row.term_button.toolTip = row.term or _("Choose a standard term from those that Slicer has")
