"""The list of cases to annotate: what is labelled, what is a draft, what is to do."""

from __future__ import annotations

from functools import cache
from typing import Any

from slicer.i18n import tr as _

from SegGuidedMMRegGui.JobEvents import Data

UNSAVED, DRAFT, TRAINING, EVALUATION, EMPTY = "unsaved", "draft", "training", "evaluation", "empty"
_SIGNS = {UNSAVED: "✎", DRAFT: "◐", TRAINING: "●", EVALUATION: "◆", EMPTY: "○"}
_TO_DO = (UNSAVED, DRAFT, EMPTY)


@cache
def words_of(state: str) -> str:
    """A state in words; to ask for a translation takes its time, and there are thousands of cases."""
    return {
        UNSAVED: _("not saved"),
        DRAFT: _("draft"),
        TRAINING: _("labelled, for training"),
        EVALUATION: _("labelled, for evaluation"),
        EMPTY: _("no labels"),
    }[state]


def key_of(case: Data) -> str:
    """As `Case.key`."""
    return f"{case['modality']}/{case['name']}"


def state_of(case: Data) -> str:
    """What the study says of the labels of a case."""
    return case["label_use"] or (DRAFT if case.get("draft") else EMPTY)


class CaseList:
    """Fills and reads a QListWidget; texts of a row are made at once, so that thousands are quick.

    Args:
        widget: the QListWidget.
    """

    def __init__(self, widget: Any) -> None:
        self._widget = widget
        self._cases: dict[str, Data] = {}
        self._keys: list[str] = []
        self._rows: dict[str, int] = {}
        self._unsaved: str | None = None

    def fill(self, cases: list[Data], *, modality: str = "", to_do: bool = False, text: str = "") -> None:
        """Show the cases of a modality (all without it), those that are to do, those whose name has a text.

        The case that is chosen stays chosen.
        """
        chosen = self.current
        self._cases = {key_of(case): case for case in cases}
        wanted = text.strip().casefold()
        self._keys = [
            key
            for key, case in self._cases.items()
            if modality in ("", case["modality"])
            and (not to_do or self.state(key) in _TO_DO or key == chosen)
            and wanted in key.casefold()
        ]
        self._rows = {key: row for row, key in enumerate(self._keys)}
        self._widget.clear()
        self._widget.addItems(tuple(self._text(key) for key in self._keys))
        if chosen is not None:
            self.choose(chosen)

    @property
    def current(self) -> str | None:
        """The key of the chosen case."""
        row = self._widget.currentRow
        return self._keys[row] if 0 <= row < len(self._keys) else None

    def choose(self, key: str) -> None:
        """Choose a case, if it is shown."""
        if key in self._rows:
            self._widget.setCurrentRow(self._rows[key])

    def beside(self, key: str | None, step: int) -> str | None:
        """The case `step` rows below `key`; the first or last one without it; None beyond the end."""
        if key not in self._rows:
            return self._keys[0 if step > 0 else -1] if self._keys else None
        row = self._rows[key] + step
        return self._keys[row] if 0 <= row < len(self._keys) else None

    def state(self, key: str) -> str:
        """The state of a case."""
        return UNSAVED if key == self._unsaved else state_of(self._cases[key])

    def show_unsaved(self, key: str | None) -> None:
        """Mark the case that has drawings which are not saved; None if none has."""
        if key == self._unsaved:
            return
        former, self._unsaved = self._unsaved, key
        for each in (former, key):
            if each in self._rows:
                item = self._widget.item(self._rows[each])
                item.setText(self._text(each))

    def counts(self) -> dict[str, int]:
        """How many cases there are in each state, of all."""
        states = [state_of(case) for case in self._cases.values()]
        return {state: states.count(state) for state in _SIGNS}

    def _text(self, key: str) -> str:
        state = self.state(key)
        case = self._cases[key]
        return f"{_SIGNS[state]}  {case['name']}  ·  {case['modality']}  ·  {words_of(state)}"
