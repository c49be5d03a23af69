"""Pictures of the module's panels: `python Testing/Python/make_screenshots.py STUDY OUT`.

Opens the module without the desktop (slicer_harness), 480 pixels wide, opens the study, unfolds each section
in turn, and saves a picture of it in a light and in a dark palette: OUT/study-light.png, OUT/study-dark.png …
The study is not changed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import slicer_harness
from slicer_module import FOLDER

import qt

WIDTH, _MARGIN = 480, 10
_SETTLED_S, _PATIENCE_S = 1.5, 120.0
_DARK = {
    "Window": "#323232",
    "Base": "#242424",
    "AlternateBase": "#2d2d2d",
    "Button": "#3c3c3c",
    "ToolTipBase": "#3c3c3c",
    "Highlight": "#3d6fa5",
}
_LIGHT_TEXT = ("WindowText", "Text", "ButtonText", "ToolTipText", "HighlightedText", "BrightText")


def palette(is_dark: bool):
    """Slicer's own light palette, or one like its dark one."""
    style = qt.QApplication.style()
    made = style.standardPalette()
    if not is_dark:
        return made
    for role, colour in _DARK.items():
        made.setColor(getattr(qt.QPalette, role), qt.QColor(colour))
    for role in _LIGHT_TEXT:
        made.setColor(getattr(qt.QPalette, role), qt.QColor("#e8e8e8"))
        made.setColor(qt.QPalette.Disabled, getattr(qt.QPalette, role), qt.QColor("#808080"))
    made.setColor(qt.QPalette.PlaceholderText, qt.QColor("#909090"))
    return made


def settle(runner) -> None:
    """Wait until no job has run for a moment: panels ask for what they show, one thing after the other."""
    end, quiet = time.monotonic() + _PATIENCE_S, time.monotonic()
    while time.monotonic() - quiet < _SETTLED_S:
        qt.QApplication.processEvents()
        time.sleep(0.01)
        if runner.running():
            quiet = time.monotonic()
        if time.monotonic() > end:
            raise TimeoutError(
                f"{[job.title for job in runner.running()]} still run after {_PATIENCE_S:g} s."
            )


def take(widget, path: Path) -> None:
    """Save a picture of the module as it is, as high as it wants to be."""
    whole = widget.widget
    whole.setFixedWidth(WIDTH)
    layout = whole.layout()
    for _ in range(3):  # labels that wrap tell their height once they have their width
        layout.invalidate()
        layout.activate()
        whole.resize(WIDTH, max(layout.totalHeightForWidth(WIDTH), layout.totalSizeHint().height()))
        qt.QApplication.processEvents()
    sections = [widget._section(name).geometry for name in widget.panels]
    bottom = max(section.bottom() for section in sections)
    if not whole.grab(qt.QRect(0, 0, WIDTH, bottom + _MARGIN)).save(str(path)):
        raise OSError(f"{path} could not be written.")


def main(study: str, out: str) -> None:
    if not (Path(study) / "study.yaml").is_file():
        sys.exit(f"{study}: holds no study (study.yaml is missing).")
    Path(out).mkdir(parents=True, exist_ok=True)
    qt.QApplication.setStyle("Fusion")
    widget = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    try:
        settle(widget.logic.runner)
        widget.ui.setupButton.collapsed = True
        widget.panels["study"].open(str(Path(study).resolve()))
        settle(widget.logic.runner)
        for name in widget.panels:
            widget._section(name).collapsed = False
            settle(widget.logic.runner)
            for theme in ("light", "dark"):
                qt.QApplication.setPalette(palette(theme == "dark"))
                take(widget, Path(out) / f"{name}-{theme}.png")
                print(Path(out) / f"{name}-{theme}.png")
        if slicer_harness.slot_errors:
            raise slicer_harness.slot_errors[0]
    finally:
        widget.cleanup()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
