"""A form of all settings of a study, made from what the library says of each: kind, limits, explanation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.JobEvents import Data
from SegGuidedMMRegGui.Widgets import connect

_LARGEST_WHOLE, _LARGEST_NUMBER = 2**31 - 1, 1e9
_MOST_DECIMALS = 8


class SettingRow:
    """One setting: its name, what edits it, back to the preset, and what is wrong with it."""

    def __init__(self, setting: Data, changed: Callable[[], None]) -> None:
        self.setting = setting
        self.name = setting["name"]
        self._changed = changed
        self._decimals = 0
        self.label, self.error = qt.QLabel(self.name.partition(".")[2]), qt.QLabel()
        self.reset = qt.QToolButton()
        self.reset.text = "↺"
        self.error.wordWrap = True
        self.error.visible = False
        self.editor = self._make_editor()
        usual = _shown(setting["preset_value"])
        self.editor.toolTip = self.label.toolTip = f"{setting['help']} ({self.name})"
        self.reset.toolTip = _("Back to what the preset says: {value}").format(value=usual)
        connect(self.reset, "clicked(bool)", self.onReset)
        self._note()

    @property
    def value(self) -> Any:
        """As the form says now."""
        kind, editor, was = self.setting["kind"], self.editor, self.setting["value"]
        if kind == "flag":
            return editor.isChecked()
        if kind == "whole":
            return editor.value
        if kind == "number":
            half = 0.5 * 10.0**-self._decimals
            known = (was, self.setting["preset_value"])
            return next((v for v in known if abs(editor.value - v) < half), editor.value)
        return editor.currentText if kind == "choice" else editor.text.strip()

    @property
    def is_edited(self) -> bool:
        """Whether it is not what the study says."""
        return self.value != self.setting["value"]

    @property
    def is_unusual(self) -> bool:
        """Whether it is not what the preset says."""
        return self.value != self.setting["preset_value"]

    def argument(self) -> str:
        """As `segmmreg set` takes it."""
        value = self.value
        return f"{self.name}={str(value).lower() if self.setting['kind'] == 'flag' else value}"

    def put(self, value: Any) -> None:
        """Let the form say this."""
        kind, editor = self.setting["kind"], self.editor
        if kind == "flag":
            editor.checked = bool(value)
        elif kind in ("whole", "number"):
            editor.value = value
        elif kind == "choice":
            editor.currentIndex = self.setting["choices"].index(value)
        else:
            editor.text = str(value)

    def show_error(self, message: str) -> None:
        self.error.text = message
        self.error.visible = bool(message)

    def named_in(self, line: str) -> Any:
        """Whether a line of a message is about it, or about a part of its value; group 1 is what it says."""
        return re.search(rf"(?<!\S){re.escape(self.name)}(?:\.\S+)?: (.*)", line)

    def onReset(self) -> None:
        self.put(self.setting["preset_value"])

    def onEdited(self) -> None:
        self.show_error("")
        self._note()
        self._changed()

    def _note(self) -> None:
        font = qt.QFont(self.label.font)
        font.setBold(self.is_unusual)
        self.label.font = font
        self.reset.enabled = self.is_unusual

    def _make_editor(self) -> Any:
        kind = self.setting["kind"]
        make = {"flag": self._flag, "whole": self._whole, "number": self._number, "choice": self._choice}
        editor, signal = make.get(kind, self._text)()
        self.editor = editor
        self.put(self.setting["value"])
        connect(editor, signal, self.onEdited)
        return editor

    def _flag(self) -> tuple[Any, str]:
        return qt.QCheckBox(), "toggled(bool)"

    def _whole(self) -> tuple[Any, str]:
        editor, limits = qt.QSpinBox(), self.setting
        low = -_LARGEST_WHOLE if limits["minimum"] is None else int(limits["minimum"])
        high = _LARGEST_WHOLE if limits["maximum"] is None else int(limits["maximum"])
        editor.setRange(low, high)
        return editor, "valueChanged(int)"

    def _number(self) -> tuple[Any, str]:
        editor, limits = qt.QDoubleSpinBox(), self.setting
        self._decimals = max(_decimals(limits["value"]), _decimals(limits["preset_value"]))
        least = 10.0**-self._decimals
        low, high = limits["minimum"], limits["maximum"]
        if limits["above"] is not None:
            low = limits["above"] + least
        if limits["below"] is not None:
            high = limits["below"] - least
        editor.decimals = self._decimals
        editor.setRange(-_LARGEST_NUMBER if low is None else low, _LARGEST_NUMBER if high is None else high)
        editor.singleStep = 10 * least
        return editor, "valueChanged(double)"

    def _choice(self) -> tuple[Any, str]:
        editor = qt.QComboBox()
        for choice in self.setting["choices"]:
            editor.addItem(choice)
        return editor, "currentIndexChanged(int)"

    def _text(self) -> tuple[Any, str]:
        return qt.QLineEdit(), "textChanged(QString)"


class SettingsForm:
    """All settings, a section at a time.

    Args:
        section_box: combo box that chooses the section.
        stack: QStackedWidget that gets a page a section.
        changed: called when the form was edited.
    """

    def __init__(self, section_box: Any, stack: Any, changed: Callable[[], None]) -> None:
        self._box, self._stack, self._changed = section_box, stack, changed
        self.rows: list[SettingRow] = []
        connect(section_box, "currentIndexChanged(int)", self.onSection)

    def show(self, settings: Sequence[Data]) -> None:
        """Show these instead of what was shown; the section that is open stays open."""
        if [row.setting for row in self.rows] == list(settings):
            self.undo()
            return
        section = self._box.currentIndex
        while self._stack.count:
            page = self._stack.widget(0)
            self._stack.removeWidget(page)
            page.deleteLater()
        self.rows = [SettingRow(setting, self.onEdited) for setting in settings]
        self._box.blockSignals(True)
        self._box.clear()
        for name in self._sections():
            self._box.addItem(name)
            self._stack.addWidget(self._page(name))
        self._box.blockSignals(False)
        if self._box.count:
            self._box.currentIndex = min(max(section, 0), self._box.count - 1)
        self.onSection()
        self.onEdited()

    @property
    def edited(self) -> list[SettingRow]:
        """What is not yet in the study."""
        return [row for row in self.rows if row.is_edited]

    @property
    def unusual(self) -> list[SettingRow]:
        """What is not as in the preset."""
        return [row for row in self.rows if row.is_unusual]

    def undo(self) -> None:
        """Say what the study says."""
        for row in self.edited:
            row.put(row.setting["value"])
        for row in self.rows:
            row.show_error("")

    def show_errors(self, message: str) -> str:
        """Show each line beside the setting that it names; what is left of the message."""
        left = []
        for line in message.splitlines():
            named = [(row, found[1]) for row in self.edited if (found := row.named_in(line))]
            for row, words in named:
                row.show_error(words)
                self._box.currentIndex = self._sections().index(row.name.partition(".")[0])
            if not named:
                left.append(line)
        return "\n".join(left)

    def onSection(self) -> None:
        self._stack.currentIndex = self._box.currentIndex

    def onEdited(self) -> None:
        for number, name in enumerate(self._sections()):
            count = sum(row.name.startswith(f"{name}.") for row in self.unusual)
            words = _("{section} ({count} not as in the preset)").format(section=name, count=count)
            self._box.setItemText(number, words if count else name)
        self._changed()

    def _sections(self) -> list[str]:
        return list(dict.fromkeys(row.name.partition(".")[0] for row in self.rows))

    def _page(self, section: str) -> Any:
        page = qt.QWidget()
        grid = qt.QGridLayout(page)
        grid.setContentsMargins(0, 0, 0, 0)
        mine = [row for row in self.rows if row.name.startswith(f"{section}.")]
        for number, row in enumerate(mine):
            grid.addWidget(row.label, 2 * number, 0)
            grid.addWidget(row.editor, 2 * number, 1)
            grid.addWidget(row.reset, 2 * number, 2)
            grid.addWidget(row.error, 2 * number + 1, 0, 1, 3)
        grid.setColumnStretch(1, 1)
        grid.setRowStretch(2 * len(mine), 1)
        return page


def _decimals(value: float) -> int:
    """Digits that a number needs after the point, one more to change it finely; 2 at least."""
    needed = next((n for n in range(_MOST_DECIMALS) if math.isclose(round(value, n), value)), _MOST_DECIMALS)
    return min(max(2, needed + 1), _MOST_DECIMALS)


def _shown(value: Any) -> str:
    return {True: _("yes"), False: _("no")}[value] if isinstance(value, bool) else str(value)
