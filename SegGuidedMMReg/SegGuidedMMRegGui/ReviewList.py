"""The list of registered pairs with what was decided about them; read and filled a little at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.PairWords import arrow
from SegGuidedMMRegGui.Widgets import connect
from SegGuidedMMRegLib.reviews import VERDICTS, Entry, ReviewRecord, entries, read_entry

_SLICE_S = 0.02
"""How long the window waits for us at one go."""

_WIDTHS = (64, 52, 100)
"""Of the columns beside the pair's name, in pixels."""

FILTERS = ("all", "open", *VERDICTS, "outdated", "failed")


@cache
def words(verdict: str) -> str:
    """A verdict or filter as the user reads it; to ask for a translation takes its time."""
    return {
        "accepted": _("accepted"),
        "rejected": _("rejected"),
        "doubtful": _("doubtful"),
        "all": _("All pairs"),
        "open": _("Not reviewed yet"),
        "outdated": _("Review outdated"),
        "failed": _("Registration failed"),
    }.get(verdict, verdict)


class ReviewList:
    """Fills a table with pairs.

    Args:
        table: QTableWidget with columns pair, result, Dice, review.
        chosen: called with the entry that the user chose.
        filled: called when all pairs are listed.

    Attributes:
        filter: one of `FILTERS`; `fill` shows it.
        record: the decisions; None without a study.
    """

    def __init__(self, table: Any, chosen: Callable[[Entry], None], filled: Callable[[], None]) -> None:
        self._table, self._chosen, self._filled = table, chosen, filled
        self._entries: dict[str, Entry] = {}
        self._rows: list[str] = []
        self._coming: Iterator[Entry] = iter(())
        self._is_ours = False
        self.filter = "all"
        self.record: ReviewRecord | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(0)
        connect(self._timer, "timeout()", self._take_some)
        header = table.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        for column, width in enumerate(
            _WIDTHS, 1
        ):  # to measure each text takes too long for thousands of pairs
            header.resizeSection(column, width)
        connect(table, "currentCellChanged(int,int,int,int)", self._on_cell)

    def open(self, registrations: Path | None) -> None:
        """List the pairs in this folder; None for no study."""
        self.stop()
        self._entries, self.record = {}, None
        self._empty()
        if registrations is not None:
            self.record = ReviewRecord(registrations)
            self._coming = entries(registrations)
            self._timer.start()

    def fill(self) -> None:
        """Show what the filter lets through."""
        was_reading = self._timer.active and not isinstance(self._coming, _Known)
        if was_reading:
            return
        self._empty()
        self._coming = _Known(list(self._entries.values()))
        self._timer.start()

    def stop(self) -> None:
        """Read no more."""
        self._timer.stop()
        self._coming = iter(())

    @property
    def is_reading(self) -> bool:
        """Whether more pairs are to come."""
        return bool(self._timer.active)

    @property
    def results(self) -> dict[str, str]:
        """Pair to digest of its result."""
        return {entry.pair: entry.result for entry in self._entries.values()}

    @property
    def pairs(self) -> tuple[str, ...]:
        """Those that are shown, in their order."""
        return tuple(self._rows)

    @property
    def left_to_review(self) -> int:
        """How many pairs have no decision about their present result."""
        return sum(self._fits(entry, "open") for entry in self._entries.values())

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return len(self._entries)

    def entry(self, pair: str) -> Entry | None:
        """The pair of this name."""
        return self._entries.get(pair)

    def refresh(self, folder: Path) -> None:
        """A pair was registered or reviewed: show what it is now."""
        entry = read_entry(folder)
        if entry is None:
            return
        is_new = entry.pair not in self._entries
        self._entries[entry.pair] = entry
        if entry.pair in self._rows:
            self._write(self._rows.index(entry.pair), entry)
        elif is_new and self._fits(entry, self.filter):
            self._add(entry)

    def step(self, by: int, current: str) -> Entry | None:
        """The pair that comes after (1) or before (-1) the current one, of those the filter lets through."""
        at = self._rows.index(current) if current in self._rows else (-1 if by > 0 else len(self._rows))
        at += by
        while 0 <= at < len(self._rows):
            entry = self._entries[self._rows[at]]
            if self._fits(entry, self.filter):
                return entry
            at += by
        return None

    def mark(self, pair: str) -> None:
        """Show which pair is looked at."""
        self._is_ours = True
        if pair in self._rows:
            self._table.setCurrentCell(self._rows.index(pair), 0)
        else:
            self._table.clearSelection()
        self._is_ours = False

    # -- rows -------------------------------------------------------------------------------------------
    def _take_some(self) -> None:
        end = time.monotonic() + _SLICE_S
        self._is_ours = True
        for entry in self._coming:
            self._entries[entry.pair] = entry
            if self._fits(entry, self.filter):
                self._add(entry)
            if time.monotonic() > end:
                break
        else:
            self.stop()
            self._filled()
        self._is_ours = False

    def _fits(self, entry: Entry, wanted: str) -> bool:
        if wanted == "all" or self.record is None:
            return True
        if wanted == "failed":
            return entry.status != "ok"
        decision = self.record.of(entry.pair, entry.result)
        if wanted == "open":
            return decision is None
        if wanted == "outdated":
            return self.record.outdated(entry.pair, entry.result) is not None
        return decision is not None and decision.verdict == wanted

    def _empty(self) -> None:
        self._is_ours = True
        self._rows = []
        self._table.setRowCount(0)
        self._is_ours = False

    def _add(self, entry: Entry) -> None:
        self._rows.append(entry.pair)
        self._table.setRowCount(len(self._rows))
        self._write(len(self._rows) - 1, entry)

    def _write(self, row: int, entry: Entry) -> None:
        status = {"ok": _("ok"), "failed": _("failed")}.get(entry.status, _("damaged"))
        dice = "–" if entry.dice is None else f"{entry.dice:.3f}"
        for column, text in enumerate((arrow(entry.pair), status, dice, self._review_of(entry))):
            item = qt.QTableWidgetItem(text)
            item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
            item.setToolTip(text)
            self._table.setItem(row, column, item)

    def _review_of(self, entry: Entry) -> str:
        if self.record is None:
            return ""
        if (decision := self.record.of(entry.pair, entry.result)) is not None:
            return words(decision.verdict)
        if (earlier := self.record.outdated(entry.pair, entry.result)) is not None:
            return _("outdated ({verdict})").format(verdict=words(earlier.verdict))
        return ""

    def _on_cell(self, row: int, _column: int, _former_row: int, _former_column: int) -> None:
        if not self._is_ours and 0 <= row < len(self._rows):
            self._chosen(self._entries[self._rows[row]])


class _Known:
    """Entries that were read already."""

    def __init__(self, found: list[Entry]) -> None:
        self._found = iter(found)

    def __iter__(self) -> Iterator[Entry]:
        return self._found

    def __next__(self) -> Entry:
        return next(self._found)
