"""No key of the module is one of Slicer's own: Qt does nothing at a key that two listen to, but a warning."""

from __future__ import annotations

import re
from pathlib import Path

MODULE = Path(__file__).resolve().parents[2] / "SegGuidedMMReg"
SLICERS = (
    *("Ctrl+O", "Ctrl+S", "Ctrl+W", "Ctrl+Z", "Ctrl+Y", "Ctrl+X", "Ctrl+C", "Ctrl+V"),  # qSlicerMainWindow
    *(f"Ctrl+{number}" for number in range(7)),  # qSlicerMainWindow, qSlicerAppMainWindow
    *("Ctrl+H", "Ctrl+`", "Ctrl+G", "Ctrl+B"),  # and ctkConsole, the menu of the views
    *("Ctrl+F", "Ctrl+Left", "Ctrl+Right"),  # qSlicerModuleSelectorToolBar, from Slicer 5.10 on: modules
    *("Alt+Left", "Alt+Right", "Ctrl+[", "Ctrl+]"),  # the same as QKeySequence::Back and Forward
    *("Ctrl+Shift+A", "Ctrl+Shift+T", "Ctrl+Shift+Space"),  # qMRMLMarkupsToolBar
    *("Ctrl+Shift+Down", "Ctrl+Shift+Left", "Ctrl+Shift+Right"),  # qMRMLSequenceBrowserPlayWidget
)


def _keys() -> dict[str, str]:
    """Each key of the module, and a file in which it is."""
    found = {}
    for path in (*MODULE.rglob("*.ui"), *MODULE.rglob("*.py")):
        pattern = r'"shortcut"><string>([^<]+)<' if path.suffix == ".ui" else r'"((?:Ctrl|Alt)\+[^"]+)"'
        found.update(dict.fromkeys(re.findall(pattern, path.read_text(encoding="utf-8")), path.name))
    return found


def test_no_key_is_one_of_slicers():
    keys = _keys()
    assert {"Ctrl+Return", "Ctrl+PgDown", "Ctrl+Shift+R"} <= set(keys)
    slicers = {key.casefold() for key in SLICERS}
    assert not [f"{key} in {name}" for key, name in keys.items() if key.casefold() in slicers]
