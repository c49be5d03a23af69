"""A box to choose a case of the study in: part of a name finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import qt
from SegGuidedMMRegGui.Widgets import connect


class CaseBox:
    """Makes an editable QComboBox one that chooses among keys of cases (`modality/name`).

    Args:
        box: the QComboBox, editable, with the insert policy NoInsert.
        chosen: hears when the user has chosen, of the key.
    """

    def __init__(self, box: Any, chosen: Callable[[str], None]) -> None:
        self._box, self._chosen = box, chosen
        self._keys: tuple[str, ...] = ()
        completer = box.completer()
        completer.setFilterMode(qt.Qt.MatchContains)
        completer.setCompletionMode(qt.QCompleter.PopupCompletion)
        completer.setCaseSensitivity(qt.Qt.CaseInsensitive)
        connect(box, "activated(int)", self.onActivated)
        self._line = box.lineEdit()
        connect(self._line, "editingFinished()", self.onTyped)

    def fill(self, entries: Sequence[tuple[str, str]], key: str) -> None:
        """Offer `entries`, each a key and its text, and show the one with this key; the first without it."""
        self._keys = tuple(entry[0] for entry in entries)
        self._box.clear()
        self._box.addItems([entry[1] for entry in entries])
        self.show(key)

    def show(self, key: str) -> None:
        """Show the entry with this key; the first if there is none."""
        self._box.currentIndex = self._keys.index(key) if key in self._keys else 0

    @property
    def key(self) -> str:
        """Of the entry that is shown; "" without entries."""
        index = self._box.currentIndex
        return self._keys[index] if 0 <= index < len(self._keys) else ""

    def onActivated(self, index: int) -> None:
        if 0 <= index < len(self._keys):
            self._chosen(self._keys[index])

    def onTyped(self) -> None:
        """What was typed and is no entry goes: the box says what is chosen."""
        if self._line.text != self._box.itemText(self._box.currentIndex):
            self._box.setEditText(self._box.itemText(self._box.currentIndex))
