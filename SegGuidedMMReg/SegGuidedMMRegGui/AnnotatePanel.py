"""Step 2, annotate: which cases have labels, which to label next, drafts, drawing in the Segment Editor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import slicer.util
from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui import CaseView
from SegGuidedMMRegGui.CaseDesk import CaseDesk
from SegGuidedMMRegGui.CaseList import CaseList, key_of, words_of
from SegGuidedMMRegGui.JobEvents import Data
from SegGuidedMMRegGui.LabelHelp import LabelHelp, draft_needs, how_many, what_more
from SegGuidedMMRegGui.Panel import Panel
from SegGuidedMMRegGui.Widgets import connect, load_ui
from SegGuidedMMRegGui.Workplace import Workplace

_ALL = "*"
_LOOK_MS = 500
_KEYS = {"previousButton": "Ctrl+PgUp", "nextButton": "Ctrl+PgDown", "saveButton": "Ctrl+Return"}


class AnnotatePanel(Panel):
    """The panel; the `desk` holds the case that is open."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        self.widget, self._ui = load_ui("AnnotatePanel")
        self.list = CaseList(self._ui.casesList)
        self.desk = CaseDesk(workplace, self._place_editor, self.refresh, self.say)
        self.help = LabelHelp(workplace)
        self._suggested: list[Data] | None = None
        self._folder = self._shown = ""
        self._shortcuts: list[Any] = []
        self._timer = qt.QTimer()
        self._timer.setInterval(_LOOK_MS)
        connect(self._timer, "timeout()", self.onLook)
        ui = self._ui
        connect(ui.casesList, "itemDoubleClicked(QListWidgetItem*)", self.onOpen)
        connect(ui.casesList, "itemActivated(QListWidgetItem*)", self.onOpen)
        connect(ui.modalityBox, "currentIndexChanged(int)", self.onFilter)
        connect(ui.todoBox, "toggled(bool)", self.onFilter)
        connect(ui.findEdit, "textChanged(QString)", self.onFilter)
        connect(ui.useBox, "activated(int)", self.onUse)
        for name, slot in {
            "previousButton": self.onPrevious,
            "nextButton": self.onNext,
            "suggestButton": self.onSuggest,
            "autoButton": self.onAuto,
            "prefillButton": self.onPrefill,
            "saveButton": self.onSave,
            "undoButton": self.onUndo,
            "revertButton": self.onRevert,
        }.items():
            connect(getattr(ui, name), "clicked(bool)", slot)
        for name in ("brightnessSlider", "contrastSlider"):
            connect(getattr(ui, name), "valueChanged(int)", self.onBrightness)
        for name, key in {**_KEYS, "undoButton": "Z"}.items():
            button = getattr(ui, name)
            button.text = f"{button.text} ({key})"
        self.say("")
        self.study_changed()

    # -- what the module tells --------------------------------------------------------------------------
    def study_changed(self) -> None:
        self.desk.study_changed()
        study, box = self.workplace.study, self._ui.modalityBox
        if self.workplace.folder != self._folder:
            self._folder, self._suggested = self.workplace.folder, None
            was_blocked = box.blockSignals(True)
            box.clear()
            if study is not None:
                for text, modality in (
                    (study["source"], study["source"]),
                    (study["target"], study["target"]),
                    (_("all images"), _ALL),
                ):
                    box.addItem(text, modality)
            box.blockSignals(was_blocked)
            self.say("")
            self._take_choices()
        self._fill()
        if self._timer.isActive():
            self._open_case_of_the_scene()

    def choices_changed(self) -> None:
        self._take_choices()
        self._fill()

    def opened(self) -> None:
        if not self._shortcuts:
            self._make_shortcuts()
        self.desk.enter()
        for shortcut in self._shortcuts:
            shortcut.setEnabled(True)
        self._timer.start()
        self._open_case_of_the_scene()
        self.refresh()

    def left(self) -> None:
        self._timer.stop()
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)
        self.desk.leave()

    def cleanup(self) -> None:
        self._timer.stop()
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        self._shortcuts = []
        self.desk.close()

    # -- what the user does -----------------------------------------------------------------------------
    def onOpen(self) -> None:
        key = self.list.current
        if key is not None:
            self.desk.open(key)

    def onPrevious(self) -> None:
        self._open_beside(-1)

    def onNext(self) -> None:
        self._open_beside(1)

    def onFilter(self) -> None:
        self._keep("annotateModality", self._modality)
        self._keep("annotateToDo", self._ui.todoBox.checked)
        self._fill()

    def onSuggest(self) -> None:
        before = self.desk.case
        self.say(_("Looking for the image that best stands for the rest …"))

        def done(result: Data) -> None:
            self._suggested = result["cases"]
            key, reason = self._suggested[0]["case"], self._suggested[0]["reason"]
            self._show_in_list(key)
            self.say(
                _("{name} is the most helpful next: it {reason}.").format(name=_name(key), reason=reason)
            )
            self.refresh()
            if self.desk.case is before:
                self.desk.open(key)

        self.desk.once_saved(lambda: self._ask_for(lambda: self.help.suggest(done, self._no_help)))

    def onPrefill(self) -> None:
        case = self.desk.case
        if case is None or self.workplace.bridge is None or not self._may_replace():
            return
        stamp = case.stamp

        def may_replace() -> bool:
            return case.stamp == stamp or self._may_replace()

        def done(result: Data) -> None:
            if self.desk.case is not case:
                self.say(_("The draft for {name} came too late: it is not open.").format(name=case.case.name))
                return
            said = _("A draft from {source}: correct it, then press Save to use it.").format(
                source=_name(result["source"])
            )
            self.desk.take_draft(Path(result["file"]), may_replace, " ".join([said, *result["warnings"]]))

        out = self.workplace.bridge.temporary_folder("draft-")
        self.say(_("Drafting the labels of {name} …").format(name=case.case.name))
        self._ask_for(lambda: self.help.draft(case.case, out, done, self._no_help))

    def onUse(self, index: int) -> None:
        self.desk.use_for(str(self._ui.useBox.itemData(index)))

    def onSave(self) -> None:
        self.desk.confirm()

    def onUndo(self) -> None:
        if self.desk.editor is not None:
            self.desk.editor.undo()
        self.onLook()

    def onRevert(self) -> None:
        self.desk.revert()

    def onAuto(self) -> None:
        self._reset_sliders()
        self.onBrightness()

    def onBrightness(self) -> None:
        if self.desk.case is not None and self.desk.case.is_there:
            ui = self._ui
            shown = CaseView.adjusted(self.desk.fitting, ui.brightnessSlider.value, ui.contrastSlider.value)
            CaseView.show_range(self.desk.case.volume, *shown)

    def onLook(self) -> None:
        """Twice a second: has something been drawn, is the case still there?"""
        if self.desk.look_after():
            self._show_state()

    # -- what is shown ----------------------------------------------------------------------------------
    def say(self, text: str) -> None:
        """Show a message."""
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)

    def refresh(self) -> None:
        """Show what is open, and which buttons can be pressed."""
        ui, case = self._ui, self.desk.case
        study = self.workplace.study
        ui.caseFrame.visible = case is not None
        if case is not None and case.case.key != self._shown:
            self._shown = case.case.key
            self._keep("annotateCase", case.case.key)
            self._show_in_list(case.case.key)
            self._reset_sliders()
        if study is not None:
            counts = self.list.counts()
            ui.summaryLabel.text = " ".join([how_many(study, counts), what_more(study, self._suggested)])
        else:
            ui.summaryLabel.text = _("Open a study first (step 1).")
        self._show_buttons()
        self._show_state()

    def _show_buttons(self) -> None:
        ui, case, study = self._ui, self.desk.case, self.workplace.study
        busy = [_("that the help which was asked for is there")] if self.help.is_busy else []
        needs = [] if study is not None else [_("an open study")]
        _allow(ui.previousButton, needs, _("Save, and open the image above"))
        _allow(ui.nextButton, needs, _("Save, and open the image below"))
        purpose = _("Find the image without labels that best stands for the rest, and open it")
        _allow(ui.suggestButton, needs + busy, purpose)
        if self.workplace.bridge is not None:
            needs = draft_needs(self.workplace.bridge.study, None if case is None else case.case)
        purpose = _("Carry the labels of the most similar labelled image over, as a draft to correct")
        _allow(ui.prefillButton, needs + busy, purpose)
        editor = self.desk.editor
        here = [] if editor is not None and editor.widget is not None else [_("Slicer's Segment Editor")]
        _allow(ui.undoButton, here, _("Take back the last change of the drawing"))
        ui.useBox.toolTip = _(
            "Networks learn from labels for training; those for evaluation only measure how good they are. "
            "Images of the other modality and test images are for evaluation alone."
        )
        if case is not None:
            self._fill_use(case)

    def _fill_use(self, case: Any) -> None:
        words = {"training": _("training"), "evaluation": _("evaluation"), "none": _("nothing yet (draft)")}
        trains = case.case.modality == case.bridge.study.source and case.case.role.value != "test"
        allowed = [use for use in words if use != "training" or trains]
        box = self._ui.useBox
        box.clear()
        for use in allowed:
            box.addItem(words[use], use)
        box.setCurrentIndex(allowed.index(case.use) if case.use in allowed else 0)

    def _show_state(self) -> None:
        ui, case = self._ui, self.desk.case
        changed = case is not None and case.is_changed
        self.list.show_unsaved(case.case.key if case is not None and changed else None)
        if case is None:
            return
        state = words_of(self.list.state(case.case.key))
        if changed and case.use == "none":
            state = _("draft, not saved")
        ui.caseLabel.text = _("<b>{name}</b> ({modality}): {state}").format(
            name=case.case.name, modality=case.case.modality, state=state
        )
        is_draft = case.use == "none"
        _allow(
            ui.saveButton,
            [] if changed or is_draft or case.is_untold else [_("a change; all is saved")],
            _("Use the draft as labels") if is_draft else _("Save what is drawn in the study"),
        )
        revert = _("Show again what is saved; Undo brings the drawing back")
        _allow(ui.revertButton, [] if changed else [_("a change; all is saved")], revert)

    def _fill(self) -> None:
        study, ui = self.workplace.study, self._ui
        cases = [] if study is None else study["cases"]
        modality = "" if self._modality == _ALL else self._modality
        self.list.fill(cases, modality=modality, to_do=ui.todoBox.checked, text=ui.findEdit.text)
        self.refresh()

    @property
    def _modality(self) -> str:
        return str(self._ui.modalityBox.currentData or _ALL)

    def _show_in_list(self, key: str) -> None:
        """Choose a case in the list; where the filter leaves it out, it is set to let it in."""
        self.list.choose(key)
        if self.list.current != key:
            ui = self._ui
            index = ui.modalityBox.findData(key.partition("/")[0])
            ui.findEdit.text = ""
            ui.todoBox.checked = False
            ui.modalityBox.setCurrentIndex(max(index, 0))
            self.list.choose(key)

    def _open_beside(self, step: int) -> None:
        case = self.desk.case
        key = self.list.beside(self.list.current if case is None else case.case.key, step)
        if key is None:
            self.say(_("That was the last one of the list."))
        else:
            self.desk.open(key)

    def _open_case_of_the_scene(self) -> None:
        """The case of a saved scene is opened again, if its drawing is there."""
        key = self._chosen("annotateCase", "")
        bridge, study = self.workplace.bridge, self.workplace.study
        if self.desk.case is not None or bridge is None or study is None:
            return
        if key in {key_of(case) for case in study["cases"]}:
            self._show_in_list(key)
            if bridge.labels_node(bridge.study.case(key)) is not None:
                self.desk.open(key)

    def _ask_for(self, ask: Callable[[], None]) -> None:
        if not self.help.is_busy:
            ask()
        self.refresh()

    def _may_replace(self) -> bool:
        case = self.desk.case
        return (
            case is None
            or not case.is_drawn
            or slicer.util.confirmYesNoDisplay(
                _("Replace what is drawn for {name} by a draft? Undo brings it back.").format(
                    name=case.case.name
                )
            )
        )

    def _no_help(self, message: str) -> None:
        self.say(message or _("Cancelled."))
        self.refresh()

    def _reset_sliders(self) -> None:
        for slider in (self._ui.brightnessSlider, self._ui.contrastSlider):
            was_blocked = slider.blockSignals(True)
            slider.value = 0
            slider.blockSignals(was_blocked)

    def _place_editor(self, editor: Any) -> None:
        layout = self._ui.editorFrame.layout()
        if editor is not None:
            layout.addWidget(editor)

    def _make_shortcuts(self) -> None:
        parent = slicer.util.mainWindow() or self.widget
        for name, key in _KEYS.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), parent)
            connect(shortcut, "activated()", _pressing(getattr(self._ui, name)))
            self._shortcuts.append(shortcut)

    # -- choices, kept with the scene -------------------------------------------------------------------
    def _take_choices(self) -> None:
        ui = self._ui
        index = ui.modalityBox.findData(self._chosen("annotateModality", self._modality))
        for widget in (ui.modalityBox, ui.todoBox):
            widget.blockSignals(True)
        ui.modalityBox.setCurrentIndex(max(index, 0))
        ui.todoBox.checked = self._chosen("annotateToDo", ui.todoBox.checked)
        for widget in (ui.modalityBox, ui.todoBox):
            widget.blockSignals(False)

    def _chosen(self, name: str, otherwise: Any) -> Any:
        return getattr(self.workplace.parameters, name, otherwise)

    def _keep(self, name: str, value: Any) -> None:
        if self.workplace.parameters is not None:
            setattr(self.workplace.parameters, name, value)


def _pressing(button: Any) -> Callable[[], None]:
    def press() -> None:
        button.click()

    return press


def _allow(button: Any, needs: list[str], purpose: str) -> None:
    button.enabled = not needs
    button.toolTip = _("Needs {needs}").format(needs=", ".join(needs)) if needs else purpose


def _name(key: str) -> str:
    return key.partition("/")[2]
