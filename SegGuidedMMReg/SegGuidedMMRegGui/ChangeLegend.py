"""The colours of a map of the change of volume, drawn in the panel with numbers."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.StyleWatch import StyleWatch

_WIDTH, _HEIGHT = 320, 12


class ChangeLegend:
    """Drawn into a label, again when the user chooses another style, until `close`."""

    def __init__(self, label: Any) -> None:
        self._label = label
        self._colours: list[Any] = []
        self._range = (0.0, 1.0)
        self._watch = StyleWatch(self._draw)

    def show(self, node: Any) -> None:
        """Show what the colours of a map mean (`TransformNodes.show_volume_change_map`)."""
        display = node.GetDisplayNode()
        table, half = display.GetColorNode(), display.GetWindow() / 2
        self._range = (display.GetLevel() - half, display.GetLevel() + half)
        self._colours = [_colour(table, number) for number in range(table.GetNumberOfColors())]
        self._draw()

    def clear(self) -> None:
        """Show nothing."""
        self._colours = []
        self._label.text = ""

    def close(self) -> None:
        """Listen no longer."""
        self._watch.close()

    def _draw(self) -> None:
        if not self._colours:
            return
        picture, palette = qt.QPixmap(_WIDTH, 2 * _HEIGHT + 6), self._label.palette
        picture.fill(qt.QColor(0, 0, 0, 0))
        painter = qt.QPainter(picture)
        for x in range(_WIDTH):
            painter.setPen(self._colours[x * len(self._colours) // _WIDTH])
            painter.drawLine(x, 0, x, _HEIGHT)
        painter.setPen(palette.color(qt.QPalette.WindowText))
        painter.drawText(2, 2 * _HEIGHT + 2, _("folds"))
        for value in (0, 1, 2):
            painter.drawText(self._place(value), 2 * _HEIGHT + 2, str(value))
        painter.end()
        self._label.setPixmap(picture)

    def _place(self, value: float) -> int:
        """Where the number of a value begins, in pixels."""
        low, high = self._range
        return min(round((value - low) / (high - low) * _WIDTH) - 4, _WIDTH - 10)


def _colour(table: Any, number: int) -> Any:
    rgba = [0.0, 0.0, 0.0, 0.0]
    table.GetColor(number, rgba)
    return qt.QColor(*(round(255 * part) for part in rgba[:3]))
