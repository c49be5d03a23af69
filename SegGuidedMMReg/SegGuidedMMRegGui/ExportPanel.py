"""Step 6, export: chosen pairs, in which files, where; what will be written is shown before anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui import ExportWords
from SegGuidedMMRegGui.ExportOptions import ExportOptions
from SegGuidedMMRegGui.ExportPairs import (
    ACCEPTED,
    ExportablePair,
    PairsTable,
    pairs_of_scene,
    pairs_of_study,
)
from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.Panel import Panel
from SegGuidedMMRegGui.Widgets import connect, fill_table, load_ui
from SegGuidedMMRegGui.Workplace import Workplace

_PAUSE_MS = 400
_ROWS = 300
"""Of the table of files."""


class ExportPanel(Panel):
    """The panel. It asks for a new plan a moment after each change, while its section is unfolded."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        self.widget, self._ui = load_ui("ExportPanel")
        self._is_open = self._is_loading = False
        self._looking: Job | None = None
        self._planning: Job | None = None
        self._exporting: Job | None = None
        self._told: list[Data] = []
        self._plan: Data | None = None
        self._planned: tuple[str, ...] = ()
        self._refused: tuple[str, ...] = ()
        self._written_to = ""
        self._options = ExportOptions(self._ui)
        self._table = PairsTable(self._ui.pairsTable, self.onChanged)
        header = self._ui.planTable.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        connect(self._timer, "timeout()", self._ask_for_plan)
        self._connect()
        workplace.pair_watchers.append(self._show_pairs)
        self._show_message("")
        self._show_pairs()

    def _connect(self) -> None:
        ui = self._ui
        self._options.connect(self.onChanged)
        for box in (ui.acceptedBox, ui.failedBox):
            connect(box, "toggled(bool)", self.onFiltered)
        connect(ui.allButton, "clicked(bool)", self.onAll)
        connect(ui.noneButton, "clicked(bool)", self.onNone)
        connect(ui.lookButton, "clicked(bool)", self._look)
        connect(ui.replaceBox, "toggled(bool)", self._show_needs)
        connect(ui.exportButton, "clicked(bool)", self.onExport)
        connect(ui.folderButton, "clicked(bool)", self.onOpenFolder)

    # -- what the module says ---------------------------------------------------------------------------
    def study_changed(self) -> None:
        self._told = []
        self._show_pairs()
        if self._is_open:
            self._look()

    def choices_changed(self) -> None:
        parameters = self.workplace.parameters
        if parameters is None:
            return
        self._is_loading = True
        self._options.load(parameters)
        self._is_loading = False
        self._show_pairs()

    def opened(self) -> None:
        self._is_open = True
        self._show_pairs()
        self._look()

    def left(self) -> None:
        self._is_open = False
        self._timer.stop()

    def cleanup(self) -> None:
        self.left()

    # -- what the user does -----------------------------------------------------------------------------
    def onChanged(self) -> None:
        """Keep the choices, and ask for another plan soon."""
        if self._is_loading:
            return
        self._keep_choices()
        self._ui.replaceBox.checked = False
        self._show_plan()
        if self._is_open:
            self._timer.start(_PAUSE_MS)

    def onFiltered(self) -> None:
        """Other pairs can be ticked."""
        if not self._is_loading:
            self._keep_choices()
            self._show_pairs()

    def onAll(self) -> None:
        self._table.choose_all(True)

    def onNone(self) -> None:
        self._table.choose_all(False)

    def onExport(self) -> None:
        """Export; while that is at work, cancel it."""
        if self._exporting is not None:
            self._exporting.cancel()
            self._show_needs()
            return
        arguments = [*self._arguments(), *(["--overwrite"] if self._existing() else [])]
        out = self._ui.folderPath.currentPath
        self._show_message("")
        self._exporting = self._start(
            _("Exporting to {name}").format(name=Path(out).name),
            arguments,
            lambda end: self._exported(end, out),
        )
        self._show_needs()

    def onOpenFolder(self) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(self._written_to))

    # -- which pairs there are --------------------------------------------------------------------------
    def _look(self) -> None:
        """Let the child process list the registered pairs."""
        if self.workplace.study is None or self._looking is not None:
            return
        folder = self.workplace.folder

        def finished(end: JobEnd) -> None:
            self._looking = None
            if folder != self.workplace.folder:
                self._look()
            elif end.is_done and end.result is not None:
                self._told = end.result["pairs"]
                self._show_pairs()
            else:
                self._show_message(_("Cancelled.") if end.cancelled else end.message)
            self._show_needs()

        self._looking = self._start(_("Reading the registered pairs"), ["export", folder, "--plan"], finished)
        self._show_needs()

    def _show_pairs(self) -> None:
        bridge, parameters, ui = self.workplace.bridge, self.workplace.parameters, self._ui
        pairs = []
        if bridge is not None:
            pairs = pairs_of_study(self._told, bridge.study.folder) + pairs_of_scene(bridge)
        left_out = self._table.left_out if parameters is None else _keys(parameters.exportLeftOut)
        decided = any(pair.decision for pair in pairs)
        ui.acceptedBox.visible = decided
        self._table.show(pairs, self._is_allowed, left_out)
        failed = sum(pair.status != "ok" for pair in pairs)
        if self.workplace.study is None:
            text = _("Open a study first (step 1).")
        elif not pairs:
            text = _("No pair is registered yet (step 4).")
        else:
            text = _("{count} registered pairs, {failed} of them failed or damaged.").format(
                count=len(pairs), failed=failed
            )
        ui.summaryLabel.text = text
        ui.pairsTable.visible = bool(pairs)
        self.onChanged()

    def _is_allowed(self, pair: ExportablePair) -> bool:
        ui = self._ui
        if pair.status != "ok" and not ui.failedBox.checked:
            return False
        wants_accepted = ui.acceptedBox.checked and any(p.decision for p in self._table.pairs)
        return pair.decision == ACCEPTED or not wants_accepted

    # -- the plan ---------------------------------------------------------------------------------------
    def _wanted(self) -> tuple[str, ...]:
        """All that a plan depends on."""
        return (self.workplace.folder, *self._options.words(), "--", *self._table.chosen())

    def _arguments(self) -> list[str]:
        """Of the child process; the pairs are in a file, because there may be thousands."""
        bridge = self.workplace.bridge
        assert bridge is not None
        chosen = bridge.temporary_folder("export-") / "pairs.txt"
        chosen.write_text("\n".join(self._table.chosen()), encoding="utf-8")
        return ["export", self.workplace.folder, "--pairs-from", str(chosen), *self._options.words()]

    def _ask_for_plan(self) -> None:
        if self._planning is not None or self._exporting is not None or self._needs_of_plan():
            return
        wanted = self._wanted()
        if wanted in (self._planned, self._refused):
            return

        def finished(end: JobEnd) -> None:
            self._planning = None
            if wanted != self._wanted():
                self._timer.start(0)
            elif end.is_done and end.result is not None:
                self._plan, self._planned = end.result, wanted
                if self._refused:
                    self._refused = ()
                    self._show_message("")
            else:
                self._refused = wanted
                self._show_message(_("Cancelled.") if end.cancelled else end.message)
            self._show_plan()

        self._planning = self._start(_("Planning the export"), [*self._arguments(), "--plan"], finished)
        self._show_needs()

    def _forget_plan(self) -> None:
        self._plan, self._planned, self._refused = None, (), ()

    def _current_plan(self) -> Data | None:
        """The plan, if it is of what is chosen now."""
        return self._plan if self._planned and self._planned == self._wanted() else None

    def _existing(self) -> list[str]:
        plan = self._current_plan()
        return [] if plan is None else [file["path"] for file in plan["files"] if file["exists"]]

    def _show_plan(self) -> None:
        ui, plan, existing = self._ui, self._current_plan(), self._existing()
        ui.planLabel.text = "" if plan is None else ExportWords.of_plan(plan)
        ui.planLabel.visible = ui.planTable.visible = plan is not None
        if plan is not None:
            files = sorted(plan["files"], key=lambda file: not file["exists"])
            rows = [ExportWords.of_file(file, plan["out"]) for file in files[:_ROWS]]
            if len(files) > _ROWS:
                rows.append((_("and {count} more").format(count=len(files) - _ROWS), "", ""))
            fill_table(ui.planTable, rows)
        ui.replaceBox.visible = bool(existing)
        ui.replaceBox.text = _("Replace the files that exist ({count}, listed first)").format(
            count=len(existing)
        )
        self._show_needs()

    # -- the export -------------------------------------------------------------------------------------
    def _exported(self, end: JobEnd, out: str) -> None:
        self._exporting = None
        self._forget_plan()
        if end.is_done and end.result is not None:
            self._written_to = out
            self._show_message(ExportWords.of_result(end.result, out))
        elif end.cancelled:
            self._show_message(
                _("Cancelled. Files that were finished lie in {folder}; none is half written.").format(
                    folder=out
                )
            )
        else:
            self._show_message(end.message)
        self._ui.replaceBox.checked = False
        self._show_plan()
        if self._is_open:
            self._timer.start(_PAUSE_MS)

    def _start(self, title: str, arguments: list[str], finished: Callable[[JobEnd], None]) -> Job | None:
        try:
            return self.workplace.runner.start(title, arguments, JobListener(finished=finished))
        except RuntimeError as error:
            self._show_message(str(error))
            return None

    # -- what is missing --------------------------------------------------------------------------------
    def _needs_of_plan(self) -> list[str]:
        if self.workplace.study is None:
            return [_("an open study (step 1)")]
        return [*([] if self._table.chosen() else [_("a pair with a tick")]), *self._options.needs()]

    def _needs(self) -> list[str]:
        needs, plan = self._needs_of_plan(), self._current_plan()
        if needs:
            return needs
        if plan is None and self._refused == self._wanted():
            return [_("other choices, see the message")]
        if plan is None:
            return [_("the list of files, which is being made")]
        if not plan["files"]:
            return [_("pairs that have such files")]
        if self._existing() and not self._ui.replaceBox.checked:
            return [_("your word that files that exist may be replaced, or another folder")]
        return []

    def _show_needs(self) -> None:
        ui, needs, job = self._ui, self._needs(), self._exporting
        self._options.show_use()
        has_study = self.workplace.study is not None
        ui.lookButton.enabled = has_study and self._looking is None
        ui.lookButton.toolTip = _("Read the registered pairs again") if has_study else _lacks([_("a study")])
        ui.exportButton.enabled = not needs if job is None else not job.is_cancelled
        ui.exportButton.text = _("Export") if job is None else _("Cancel")
        if job is not None:
            ui.exportButton.toolTip = _("Stop; files that are finished stay")
        else:
            ui.exportButton.toolTip = _lacks(needs) if needs else _("Write the files listed above")
        ui.folderButton.enabled = bool(self._written_to)
        ui.folderButton.toolTip = self._written_to or _("Needs an export that is done")

    def _show_message(self, text: str) -> None:
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)

    def _keep_choices(self) -> None:
        parameters = self.workplace.parameters
        if parameters is not None:
            self._options.keep(parameters)
            parameters.exportLeftOut = json.dumps(self._table.left_out)


def _lacks(needs: list[str]) -> str:
    return _("Needs {needs}").format(needs=", ".join(needs))


def _keys(text: str) -> list[str]:
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return []
    return [str(each) for each in found] if isinstance(found, list) else []
