"""What all panels do with Qt: load their `.ui` file, connect, fill a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer.util

import qt

_UI = Path(__file__).resolve().parents[1] / "Resources" / "UI"


def load_ui(name: str) -> tuple[Any, Any]:
    """The widget of `Resources/UI/NAME.ui`, and its children by name."""
    widget = slicer.util.loadUI(str(_UI / f"{name}.ui"))
    return widget, slicer.util.childWidgetVariables(widget)


def connect(sender: Any, signal: str, slot: Callable[..., None]) -> None:
    """Connect, and fail loudly where Qt would say nothing."""
    if not sender.connect(signal, slot):
        raise RuntimeError(f"{sender.className()} has no signal {signal}.")


def connect_path(edit: Any, slot: Callable[[], None]) -> None:
    """Call `slot` when a ctkPathLineEdit has another path, or none: of an empty one it tells only so."""
    connect(edit, "currentPathChanged(QString)", slot)
    connect(edit, "validInputChanged(bool)", slot)


def let_go(sender: Any, slots: Mapping[str, Callable[..., None]]) -> None:
    """Be done with a QTimer or QProcess: what it is connected to would be kept in memory, with all it holds.

    This may be called in one of the `slots`, so it is deleted a moment later.
    """
    for signal, slot in slots.items():
        sender.disconnect(signal, slot)
    sender.setParent(qt.QCoreApplication.instance())
    sender.deleteLater()


class _Later:
    """A timer that rings once, and is gone then with all it holds."""

    def __init__(self, slot: Callable[[], None]) -> None:
        self._slot = slot
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        connect(self._timer, "timeout()", self._ring)
        self._timer.start(0)

    def _ring(self) -> None:
        let_go(self._timer, {"timeout()": self._ring})
        self._slot()


def later(slot: Callable[[], None]) -> None:
    """Call `slot` when the window has had its turn.

    What `qt.QTimer.singleShot` is given, Slicer holds as long as it runs (its Base/Python/slicerqt.py).
    """
    _Later(slot)


def fill_table(table: Any, rows: Sequence[Sequence[str]]) -> None:
    """Show these texts, which cannot be edited; columns as wide as they need."""
    table.setRowCount(len(rows))
    for r, row in enumerate(rows):
        for c, text in enumerate(row):
            item = qt.QTableWidgetItem(text)
            item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
            item.setToolTip(text)
            table.setItem(r, c, item)
    table.resizeColumnsToContents()


def fit_height(table: Any, most: int) -> None:
    """Make a table of few rows as high as these, `most` pixels at most."""
    header, bar = table.horizontalHeader(), table.horizontalScrollBar()
    rows = sum(table.rowHeight(row) for row in range(table.rowCount))
    wanted = header.sizeHint.height() + rows + bar.sizeHint.height() + 2 * table.frameWidth
    table.setMaximumHeight(max(table.minimumHeight, min(wanted, most)))


def update_table(table: Any, rows: Sequence[Sequence[str]]) -> None:
    """Show these texts in place of others of the same kind; the selection stays, tooltips say all."""
    if table.rowCount != len(rows):
        fill_table(table, rows)
    for r, row in enumerate(rows):
        for c, text in enumerate(row):
            item = table.item(r, c)
            if item.text() != text or item.toolTip() != text:
                item.setText(text)
                item.setToolTip(text)
                table.resizeColumnToContents(c)


def copy_text(text: str) -> None:
    """Put a text on the clipboard."""
    clipboard = qt.QApplication.clipboard()
    clipboard.setText(text)
