"""The pairs that can be exported: those of the study, and results of the scene that are none of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui import NodeTags
from SegGuidedMMRegGui.JobEvents import Data
from SegGuidedMMRegGui.PairWords import arrow
from SegGuidedMMRegGui.SceneBridge import SceneBridge
from SegGuidedMMRegGui.Widgets import connect, fill_table
from SegGuidedMMRegLib.reviews import ReviewRecord, Verdict

ACCEPTED: Verdict = "accepted"


@dataclass(frozen=True)
class ExportablePair:
    """A registered pair.

    Attributes:
        key: what `segmmreg export` knows it by: the name of its folder in the study, or the path of another.
        title: what the user reads.
        status: ok, failed, or damaged.
        problem: why it failed or cannot be used.
        dice: mean over the structures after registration; None where it is not known.
        decision: of the review, about this result; "" for none.
        earlier: of the review, about an earlier result of the pair, where there is none about this one.
    """

    key: str
    title: str
    status: str
    problem: str = ""
    dice: float | None = None
    decision: str = ""
    earlier: str = ""


def pairs_of_study(told: Sequence[Data], study: Path) -> list[ExportablePair]:
    """The pairs as `segmmreg export STUDY --plan` tells them, with what was decided about them."""
    record, pairs = ReviewRecord(study / "registrations"), []
    for each in told:
        name = each["pair"]
        decision, earlier = record.of(name, each["result"]), record.outdated(name, each["result"])
        pairs.append(
            ExportablePair(
                name,
                arrow(name),
                each["status"],
                each["problem"],
                each["dice"],
                "" if decision is None else decision.verdict,
                "" if earlier is None else earlier.verdict,
            )
        )
    return pairs


def pairs_of_scene(bridge: SceneBridge) -> list[ExportablePair]:
    """Results in the scene that were registered with this study and lie in another folder."""
    registrations = bridge.study.folder.resolve() / "registrations"
    found: dict[str, ExportablePair] = {}
    for node in bridge.nodes(kind="forward"):
        folder, tag = node.GetAttribute(f"{NodeTags.PREFIX}Folder"), NodeTags.tag_of(node)
        if folder and tag is not None and Path(folder).resolve().parent != registrations:
            title = _("{pair} (scene)").format(pair=arrow(tag.subject))
            found[folder] = _scene_pair(node, folder, title)
    return list(found.values())


def _scene_pair(node: Any, folder: str, title: str) -> ExportablePair:
    if not Path(folder).is_dir():
        gone = _("Its files were temporary and are gone: register it again.")
        return ExportablePair(folder, title, "damaged", gone)
    report = json.loads(node.GetAttribute(NodeTags.REPORT) or "{}")
    after = (report.get("mean") or {}).get("after") or {}
    status = node.GetAttribute(NodeTags.STATUS) or "damaged"
    return ExportablePair(folder, title, status, "; ".join(report.get("reasons", ())), after.get("dice"))


class PairsTable:
    """The table in which pairs are ticked.

    Args:
        table: a QTableWidget with the columns pair, Dice, review, status.
        changed: called when the user ticked another choice.
    """

    def __init__(self, table: Any, changed: Callable[[], None]) -> None:
        self._table, self._changed = table, changed
        self._pairs: tuple[ExportablePair, ...] = ()
        self._left_out: set[str] = set()
        self._allowed: Callable[[ExportablePair], bool] = lambda _: True
        connect(table, "itemChanged(QTableWidgetItem*)", self.onTicked)

    @property
    def pairs(self) -> tuple[ExportablePair, ...]:
        return self._pairs

    @property
    def left_out(self) -> list[str]:
        """Keys of the pairs that the user does not want."""
        return sorted(self._left_out)

    def chosen(self) -> list[str]:
        """Keys of the pairs with a tick, in the order of the table."""
        return [pair.key for pair in self._pairs if self._is_chosen(pair)]

    def show(
        self,
        pairs: Sequence[ExportablePair],
        allowed: Callable[[ExportablePair], bool],
        left_out: Sequence[str],
    ) -> None:
        """Show these pairs; only those that are `allowed` can be ticked."""
        self._pairs, self._allowed, self._left_out = tuple(pairs), allowed, set(left_out)
        table = self._table
        table.blockSignals(True)
        table.setColumnHidden(2, not any(pair.decision or pair.earlier for pair in self._pairs))
        fill_table(table, [_row(pair) for pair in self._pairs])
        for number, pair in enumerate(self._pairs):
            self._mark(number, pair)
        table.resizeColumnToContents(0)
        table.blockSignals(False)

    def choose_all(self, wanted: bool) -> None:
        """Tick all that can be ticked, or none."""
        keys = {pair.key for pair in self._pairs}
        self.show(self._pairs, self._allowed, () if wanted else sorted(keys))
        self._changed()

    def onTicked(self, item: Any) -> None:
        if item.column() != 0:
            return
        key = self._pairs[item.row()].key
        if item.checkState() == qt.Qt.Checked:
            self._left_out.discard(key)
        else:
            self._left_out.add(key)
        self._changed()

    def _is_chosen(self, pair: ExportablePair) -> bool:
        return pair.key not in self._left_out and self._can_be_chosen(pair)

    def _can_be_chosen(self, pair: ExportablePair) -> bool:
        return pair.status != "damaged" and self._allowed(pair)

    def _mark(self, number: int, pair: ExportablePair) -> None:
        first = self._table.item(number, 0)
        flags = qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled
        if self._can_be_chosen(pair):
            flags = flags | qt.Qt.ItemIsUserCheckable
        first.setFlags(flags)
        first.setCheckState(qt.Qt.Checked if self._is_chosen(pair) else qt.Qt.Unchecked)
        for column in range(self._table.columnCount):
            item = self._table.item(number, column)
            item.setToolTip(f"{pair.title}\n{pair.problem}" if pair.problem else pair.title)


@cache
def _statuses() -> dict[str, str]:
    """In words; to ask for a translation takes its time, and there are thousands of pairs."""
    return {"ok": _("ok"), "failed": _("failed"), "damaged": _("cannot be used")}


@cache
def _verdicts() -> dict[str, str]:
    return {"accepted": _("accepted"), "rejected": _("rejected"), "doubtful": _("doubtful"), "": "–"}


def _row(pair: ExportablePair) -> tuple[str, ...]:
    statuses = _statuses()
    dice = "–" if pair.dice is None else f"{pair.dice:.3f}"
    status = statuses.get(pair.status, pair.status)
    return pair.title, dice, _decision(pair), f"{status}: {pair.problem}" if pair.problem else status


def _decision(pair: ExportablePair) -> str:
    words = _verdicts()
    if pair.earlier:
        return _("earlier result {verdict}").format(verdict=words[pair.earlier])
    return words[pair.decision]
