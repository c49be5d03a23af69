"""The table of many pairs: of thousands of rows those are written that can be seen."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.Widgets import connect

_SEEN = 80
"""Rows from the first that is seen on: more than fit a screen."""
_WIDTHS = (62, 62, 50, 80, 46, 46, 60)
_NUMBERS = {3: "dice_before", 4: "dice_after", 5: "folded_voxels", 6: "seconds"}


@cache
def _states() -> dict[str, str]:
    """In words; to ask for a translation takes its time, and there are thousands of rows."""
    return {"": _("waits"), "ok": _("ok"), "failed": _("failed")}


@dataclass
class PairRow:
    """A pair of a list.

    Attributes:
        name: of its folder.
        moving, fixed: each a case (`modality/name`), or an image file.
        found: its line of the summary; empty while it waits.
    """

    name: str
    moving: str
    fixed: str
    found: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return self.found.get("status", "")

    def texts(self) -> tuple[str, ...]:
        """What its row says."""
        states = _states()
        why = "; ".join(filter(None, (self.found.get("reason"), self.found.get("warnings"))))
        numbers = (_shortened(self.found.get(key, "")) for key in _NUMBERS.values())
        return (_last(self.moving), _last(self.fixed), states.get(self.state, self.state), *numbers, why)


def rows_of(path: Path) -> list[PairRow]:
    """The pairs of a list that the library wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [PairRow(row["name"], row["moving"], row["fixed"]) for row in csv.DictReader(file)]


class PairTable:
    """Fills a QTableWidget.

    Args:
        table: the QTableWidget with the columns of `PairRow.texts`.
        chosen: hears of a pair that the user wants to see.
    """

    def __init__(self, table: qt.QTableWidget, chosen: Callable[[PairRow], None]) -> None:
        self._table, self._chosen = table, chosen
        self._rows: list[PairRow] = []
        self._places: dict[str, int] = {}
        self._sorted_by: tuple[int, bool] | None = None
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        connect(self._timer, "timeout()", self.onSeen)
        connect(table, "cellDoubleClicked(int,int)", self.onChosen)
        self._header = table.horizontalHeader()
        self._header.setStretchLastSection(True)
        for column, width in enumerate(_WIDTHS):
            table.setColumnWidth(column, width)
        connect(self._header, "sectionClicked(int)", self.onSort)
        self._bar = table.verticalScrollBar()
        connect(self._bar, "valueChanged(int)", self.onSeen)

    def set_pairs(self, rows: Sequence[PairRow]) -> None:
        """Show other pairs."""
        self._rows, self._sorted_by = list(rows), None
        self._table.clearContents()
        self._table.setRowCount(len(self._rows))
        self._place()

    def forget_results(self) -> None:
        """All pairs wait again, until they are told of."""
        for row in self._rows:
            row.found = {}
        self._timer.start(0)

    def tell(self, found: Mapping[str, str]) -> None:
        """Take the line of a pair; those of pairs that are not in the list are left out."""
        place = self._places.get(found.get("pair", "").removeprefix("'"))
        if place is not None and self._rows[place].found != found:
            self._rows[place].found = found
            self._timer.start(0)

    def counts(self) -> tuple[int, int, int]:
        """How many pairs there are, how many are done, and how many of these have failed."""
        states = [row.state for row in self._rows]
        return len(states), len(states) - states.count(""), states.count("failed")

    def selected(self) -> PairRow | None:
        """The row that the user has chosen."""
        row = self._table.currentRow()
        return self._rows[row] if 0 <= row < len(self._rows) else None

    def onChosen(self, row: int, column: int) -> None:
        if 0 <= row < len(self._rows):
            self._chosen(self._rows[row])

    def onSort(self, column: int) -> None:
        """By this column; once more, the other way round. Pairs without a value come last."""
        downward = self._sorted_by == (column, False)
        self._sorted_by = (column, downward)
        known = [row for row in self._rows if _key(row, column) is not None]
        unknown = [row for row in self._rows if _key(row, column) is None]
        self._rows = [*sorted(known, key=lambda row: _key(row, column), reverse=downward), *unknown]
        self._place()

    def stop(self) -> None:
        """Write no more."""
        self._timer.stop()

    def onSeen(self) -> None:
        """Write the rows that can be seen now."""
        first = max(self._table.rowAt(0), 0)
        for number in range(first, min(first + _SEEN, len(self._rows))):
            self._write_row(number)

    def _place(self) -> None:
        self._places = {row.name: number for number, row in enumerate(self._rows)}
        self.onSeen()

    def _write_row(self, number: int) -> None:
        for column, text in enumerate(self._rows[number].texts()):
            item = self._table.item(number, column)
            if item is None:
                item = qt.QTableWidgetItem(text)
                item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
                self._table.setItem(number, column, item)
            else:
                item.setText(text)
            item.setToolTip(text if column in (0, 1, 7) else "")


def _key(row: PairRow, column: int) -> tuple[float, str] | None:
    """What a column is sorted by: numbers by size, texts by letters."""
    if column not in _NUMBERS:
        text = row.texts()[column]
        return (0.0, text.casefold()) if text else None
    try:
        return float(row.found.get(_NUMBERS[column], "")), ""
    except ValueError:
        return None


def _shortened(value: str) -> str:
    """A number of the summary as people read it."""
    try:
        return f"{float(value):.2f}" if "." in value or "e" in value else value
    except ValueError:
        return value


def _last(text: str) -> str:
    """The name of a case or file alone."""
    return text.replace("\\", "/").rstrip("/").rpartition("/")[2]
