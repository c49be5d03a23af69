"""The table of a study's cases: found by words, sorted, with small pictures; and what a case is, changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.JobEvents import Data
from SegGuidedMMRegGui.Widgets import connect, load_ui

ROWS_AT_A_GO = 60
_TYPING_MS = 200
_NAME = 1
_BESIDE_ICON = 8
"""Pixels that Qt's styles leave around an icon, or a little less."""
_ROLES = ("", "train", "validation", "test")
_SIDES = ("", "yes", "no")

Edit = Callable[[Sequence[str], dict[str, str]], None]


class CaseTable:
    """The table.

    Attributes:
        widget: to be put somewhere.
    """

    def __init__(self, edit: Edit) -> None:
        """
        Args:
            edit: called with the keys of cases, and what to say of them (role, subject, mirrored).
        """
        self.widget, self._ui = load_ui("CaseTable")
        self._edit = edit
        self._busy = False
        self._cases: dict[str, Data] = {}
        self._rows: dict[str, tuple[str, ...]] = {}
        self._places: dict[str, int] = {}
        self._waiting: list[str] = []
        self._changed: list[str] = []
        self._keep: frozenset[str] = frozenset()
        self._order: tuple[int, bool] | None = None
        self._has_room = False
        self._filling, self._typing = _timer(self._fill_some), _timer(self._refill)
        ui = self._ui
        header = ui.casesTable.horizontalHeader()
        header.setSectionsClickable(True)
        connect(header, "sectionClicked(int)", self.onSort)
        connect(ui.filterEdit, "textChanged(QString)", self.onFilter)
        connect(ui.casesTable, "itemSelectionChanged()", self.onChanged)
        for box in (ui.roleBox, ui.mirroredBox):
            connect(box, "currentIndexChanged(int)", self.onChanged)
        connect(ui.subjectEdit, "textChanged(QString)", self.onChanged)
        connect(ui.subjectEdit, "returnPressed()", self.onEdit)
        connect(ui.editButton, "clicked(bool)", self.onEdit)
        self.onChanged()

    def show(self, cases: Sequence[Data]) -> None:
        """Show these cases, as `segmmreg info STUDY` tells them; rows that are there are corrected."""
        known = {f"{case['modality']}/{case['name']}": case for case in cases}
        were, self._cases = self._cases, known
        self._rows = {key: _row(case) for key, case in known.items()}
        if list(were) != list(known):
            self._refill()
            return
        self._changed = [key for key in known if were[key] != known[key]]
        self._fill_some()

    def show_picture(self, key: str, path: str) -> None:
        """The small picture of a case is there now."""
        if key in self._cases:
            self._cases[key] = {**self._cases[key], "thumbnail": path}
            self._show_picture(key)
            if not self._has_room:
                self._make_room()

    def set_busy(self, busy: bool) -> None:
        """Whether a job is changing the study."""
        self._busy = busy
        self.onChanged()

    def selected(self) -> list[str]:
        """The keys of the selected cases."""
        model = self._ui.casesTable.selectionModel()
        return [str(index.data(qt.Qt.UserRole)) for index in model.selectedRows(_NAME)]

    def stop(self) -> None:
        """Fill in no more rows."""
        self._filling.stop()
        self._typing.stop()

    # -- what the user does -----------------------------------------------------------------------------
    def onFilter(self) -> None:
        self._typing.start(_TYPING_MS)

    def onSort(self, column: int) -> None:
        is_same = self._order is not None and self._order[0] == column
        self._order = (column, is_same and not self._order[1])  # type: ignore[index]
        header = self._ui.casesTable.horizontalHeader()
        header.setSortIndicatorShown(True)
        header.setSortIndicator(column, qt.Qt.DescendingOrder if self._order[1] else qt.Qt.AscendingOrder)
        self._refill()

    def onChanged(self) -> None:
        ui, count = self._ui, len(self.selected())
        ui.selectedLabel.text = _("{count} selected").format(count=count)
        needs = [] if count else [_("selected cases")]
        needs += [] if self._wanted() else [_("a role, a subject or a side for them")]
        ui.editButton.enabled = not needs and not self._busy
        if needs:
            ui.editButton.toolTip = _("Needs {needs}").format(needs=", ".join(needs))
        else:
            purpose = _("Say this of the selected cases; images and labels stay as they are")
            ui.editButton.toolTip = _("Wait until the job has ended") if self._busy else purpose

    def onEdit(self) -> None:
        wanted, keys = self._wanted(), self.selected()
        if wanted and keys and not self._busy:
            self._edit(keys, wanted)
            self._ui.roleBox.currentIndex = self._ui.mirroredBox.currentIndex = 0
            self._ui.subjectEdit.text = ""

    def _wanted(self) -> dict[str, str]:
        ui = self._ui
        said = {
            "role": _ROLES[ui.roleBox.currentIndex],
            "subject": ui.subjectEdit.text.strip(),
            "mirrored": _SIDES[ui.mirroredBox.currentIndex],
        }
        return {name: value for name, value in said.items() if value}

    # -- rows, some at a go: thousands take too long for one ---------------------------------------------
    def _refill(self) -> None:
        words = self._ui.filterEdit.text.casefold().split()
        texts = {key: " ".join(row).casefold() for key, row in self._rows.items()}
        self._waiting = [key for key, text in texts.items() if all(word in text for word in words)]
        if self._order is not None:
            column, is_reversed = self._order
            self._waiting.sort(key=lambda key: _natural(self._rows[key][column]), reverse=is_reversed)
        former = self._keep if self._filling.isActive() else frozenset()
        self._keep = former.union(self.selected())
        found, count = len(self._waiting), len(self._cases)
        self._ui.countLabel.text = str(count) if found == count else f"{found} / {count}"
        self._places, self._changed = {}, []
        if self._ui.casesTable.rowCount:
            self._ui.casesTable.setRowCount(0)  # which takes its time
            self._filling.start(0)
        else:
            self._fill_some()

    def _make_room(self) -> None:
        """The first picture is there: the column of names was as wide as these alone."""
        table = self._ui.casesTable
        table.setColumnWidth(_NAME, table.columnWidth(_NAME) + table.iconSize.width() + _BESIDE_ICON)
        self._has_room = True

    def _fill_some(self) -> None:
        table = self._ui.casesTable
        for key in _taken(self._changed):
            if key in self._places:
                for column, text in enumerate(self._rows[key]):
                    item = table.item(self._places[key], column)
                    item.setText(text)
            self._show_picture(key)
        keys = _taken(self._waiting)
        first = table.rowCount
        if keys:
            table.setRowCount(first + len(keys))
        for row, key in enumerate(keys, first):
            self._places[key] = row
            for column, text in enumerate(self._rows[key]):
                table.setItem(row, column, _item(text))
            name = table.item(row, _NAME)
            name.setData(qt.Qt.UserRole, key)
            name.setToolTip(self._cases[key]["original"])
            self._show_picture(key)
            if key in self._keep:
                self._select(row)
        if first == 0:
            table.resizeColumnsToContents()
            self._has_room = any(self._cases[key].get("thumbnail") for key in keys)
        if self._waiting or self._changed:
            self._filling.start(0)
        else:
            self.onChanged()

    def _select(self, row: int) -> None:
        table = self._ui.casesTable
        model, selection = table.model(), table.selectionModel()
        wanted = qt.QItemSelectionModel.Select | qt.QItemSelectionModel.Rows
        selection.select(model.index(row, _NAME), wanted)

    def _show_picture(self, key: str) -> None:
        path = self._cases[key].get("thumbnail")
        if path and key in self._places:
            name = self._ui.casesTable.item(self._places[key], _NAME)
            name.setIcon(qt.QIcon(path))  # read when it is painted


def _taken(keys: list[str]) -> list[str]:
    """The first of the keys, which are taken away."""
    taken = keys[:ROWS_AT_A_GO]
    del keys[:ROWS_AT_A_GO]
    return taken


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """To sort by: k2 before k10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text.casefold())
    return [(part[0] in "0123456789", int(part) if part[0] in "0123456789" else 0, part) for part in parts]


def _timer(slot: Callable[[], None]) -> Any:
    timer = qt.QTimer()
    timer.setSingleShot(True)
    connect(timer, "timeout()", slot)
    return timer


def _item(text: str) -> Any:
    item = qt.QTableWidgetItem(text)
    item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
    return item


@cache
def _words() -> dict[Any, str]:
    """Of label uses and of yes and no; to ask for a translation takes its time."""
    return {"training": _("for training"), "evaluation": _("for evaluation"), True: _("yes")}


def _row(case: Data) -> tuple[str, ...]:
    words = _words()
    return (
        case["modality"],
        case["name"],
        case["subject"],
        case["role"],
        words.get(case["label_use"], "–"),
        *(words.get(bool(case[what]), "–") for what in ("landmarks", "predicted", "mirrored")),
    )
