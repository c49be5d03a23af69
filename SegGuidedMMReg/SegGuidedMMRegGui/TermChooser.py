"""Choosing a standard term among those that are loaded in Slicer's module Terminologies.

Slicer has a dialog of its own, but what is chosen in it cannot be asked for from Python (Slicer 5.12); the
terms themselves can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.Widgets import connect, let_go, load_ui

_BUSY_S = 0.03
_MOST_SHOWN = 300

_Code = tuple[str, str, str]
_NO_CODE: _Code = ("", "", "")


@dataclass(frozen=True)
class Term:
    """A term.

    Attributes:
        text: as Slicer writes it (`terminology.py`); "" for no term.
        meaning: in words.
        color: that its list recommends; None for no term.
    """

    text: str
    meaning: str
    color: tuple[int, int, int] | None


@dataclass(frozen=True)
class _Entry:
    """A term as its list has it; codes are (scheme, code, meaning)."""

    context: str
    category: _Code
    kind: _Code
    modifier: _Code
    color: tuple[int, int, int]

    @property
    def meaning(self) -> str:
        return f"{self.kind[2]}, {self.modifier[2]}" if self.modifier[2] else self.kind[2]

    def term(self) -> Term:
        codes = "~".join("^".join(code) for code in (self.category, self.kind, self.modifier))
        return Term(f"{self.context}~{codes}~~^^~^^", self.meaning, self.color)


class TermChooser:
    """The dialog; `open` shows it, and returns at once."""

    def __init__(self, parent: Any, name: str, chosen: Callable[[Term], None]) -> None:
        """
        Args:
            parent: the widget that it lies over.
            name: of the structure, looked for first.
            chosen: called with the term, if one is taken, or with an empty one for "no term".
        """
        self._dialog, self._ui = load_ui("TermChooser")
        self._dialog.setParent(parent, qt.Qt.Dialog)
        self._chosen = chosen
        self._entries: list[_Entry] = []
        self._found: list[_Entry] = []
        self._reading = _entries()
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        ui = self._ui
        ui.findEdit.text = name
        connect(self._timer, "timeout()", self._read_some)
        connect(self._dialog, "finished(int)", self.onFinished)
        connect(ui.findEdit, "textChanged(QString)", self.onFind)
        connect(ui.termsList, "currentRowChanged(int)", self.onRow)
        connect(ui.termsList, "itemDoubleClicked(QListWidgetItem*)", self.onTake)
        connect(ui.takeButton, "clicked(bool)", self.onTake)
        connect(ui.noneButton, "clicked(bool)", self.onNone)
        connect(ui.cancelButton, "clicked(bool)", self.onCancel)

    def open(self) -> None:
        """Show it."""
        self.onRow()
        self._dialog.open()
        self._timer.start(0)

    # -- what the user does -----------------------------------------------------------------------------
    def onFind(self) -> None:
        words = self._ui.findEdit.text.casefold().split()
        found = [e for e in self._entries if all(word in e.meaning.casefold() for word in words)]
        self._found = sorted(found, key=lambda e: len(e.meaning))[:_MOST_SHOWN]
        terms = self._ui.termsList
        terms.clear()
        terms.addItems([f"{entry.meaning}  ({entry.category[2]})" for entry in self._found])
        for row, entry in enumerate(self._found):
            item = terms.item(row)
            item.setToolTip(f"{entry.context}: {' '.join(entry.kind[:2])}")
        if self._found:
            terms.setCurrentRow(0)
        self._ui.messageLabel.text = self._message(len(found))
        self.onRow()

    def onRow(self) -> None:
        button = self._ui.takeButton
        button.enabled = self._entry() is not None
        button.toolTip = _("Take the selected term") if button.enabled else _("Needs a selected term")

    def onTake(self) -> None:
        entry = self._entry()
        if entry is not None:
            self._end()
            self._chosen(entry.term())

    def onNone(self) -> None:
        self._end()
        self._chosen(Term("", "", None))

    def onCancel(self) -> None:
        self._end()

    def onFinished(self) -> None:
        self._timer.stop()
        let_go(self._timer, {"timeout()": self._read_some})
        self._dialog.deleteLater()

    def _end(self) -> None:
        self._dialog.reject()

    def _entry(self) -> _Entry | None:
        row = self._ui.termsList.currentRow
        return self._found[row] if 0 <= row < len(self._found) else None

    def _message(self, found: int) -> str:
        if not self._entries:
            return _("No list of terms is loaded: load one in Slicer's module Terminologies.")
        if not found:
            return _("No term holds these words. Try fewer, or English ones.")
        if found > _MOST_SHOWN:
            return _("The first {most} of {found} terms; more words find fewer.").format(
                most=_MOST_SHOWN, found=found
            )
        return ""

    def _read_some(self) -> None:
        """The lists hold thousands of terms: they are read in short pieces."""
        until = time.monotonic() + _BUSY_S
        for entry in self._reading:
            self._entries.append(entry)
            if time.monotonic() > until:
                self._timer.start(0)
                return
        self.onFind()


def _entries() -> Iterator[_Entry]:
    """All terms of all lists that are loaded, and none where the module Terminologies is not there."""
    module = getattr(slicer.modules, "terminologies", None)
    if module is None:
        return
    logic, names = module.logic(), vtk.vtkStringArray()
    logic.GetLoadedTerminologyNames(names)
    for context in (names.GetValue(n) for n in range(names.GetNumberOfValues())):
        for c in range(logic.GetNumberOfCategoriesInTerminology(context)):
            category = slicer.vtkSlicerTerminologyCategory()
            if logic.GetNthCategoryInTerminology(context, c, category):
                yield from _types(logic, context, category)


def _types(logic: Any, context: str, category: Any) -> Iterator[_Entry]:
    for t in range(logic.GetNumberOfTypesInTerminologyCategory(context, category)):
        kind = slicer.vtkSlicerTerminologyType()
        if not logic.GetNthTypeInTerminologyCategory(context, category, t, kind):
            continue
        yield _Entry(context, _code(category), _code(kind), _NO_CODE, _color(kind))
        for m in range(logic.GetNumberOfTypeModifiersInTerminologyType(context, category, kind)):
            modifier = slicer.vtkSlicerTerminologyType()
            if logic.GetNthTypeModifierInTerminologyType(context, category, kind, m, modifier):
                yield _Entry(context, _code(category), _code(kind), _code(modifier), _color(modifier))


def _code(item: Any) -> _Code:
    return tuple(
        str(text or "")
        for text in (item.GetCodingSchemeDesignator(), item.GetCodeValue(), item.GetCodeMeaning())
    )  # type: ignore[return-value]


def _color(kind: Any) -> tuple[int, int, int]:
    red, green, blue = kind.GetRecommendedDisplayRGBValue()
    return red, green, blue
