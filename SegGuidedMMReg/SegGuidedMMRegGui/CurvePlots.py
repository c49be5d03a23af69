"""Curves of training, drawn small in the colours of the palette."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import qt
from SegGuidedMMRegGui.StyleWatch import StyleWatch
from SegGuidedMMRegGui.TrainingTold import Points

WIDTH, HEIGHT = 206, 112
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 20, 18
_COLUMNS, _MOST = 2, 6


class CurvePlots:
    """Plots in a grid, one a metric; give it the layout that they shall lie in.

    They are drawn again when the user chooses another style, until `close`.
    """

    def __init__(self, layout: Any) -> None:
        self._labels = []
        self._curves: Mapping[tuple[str, str], Points] = {}
        self._watch = StyleWatch(self._draw)
        for number in range(_MOST):
            label = qt.QLabel()
            label.setFixedSize(WIDTH, HEIGHT)
            label.visible = False
            layout.addWidget(label, number // _COLUMNS, number % _COLUMNS)
            self._labels.append(label)

    def show(self, curves: Mapping[tuple[str, str], Points]) -> None:
        """Draw the first of these, by run and metric."""
        self._curves = curves
        self._draw()

    def close(self) -> None:
        """Listen no longer."""
        self._watch.close()

    def _draw(self) -> None:
        shown = [(key, points) for key, points in self._curves.items() if points][:_MOST]
        runs = {run for (run, _metric), _points in shown}
        for label, entry in zip(self._labels, [*shown, *[None] * _MOST], strict=False):
            label.visible = entry is not None
            if entry is None:
                continue
            (run, metric), points = entry
            name = metric if len(runs) == 1 else f"{run.rpartition('/')[2]}: {metric}"
            label.setPixmap(draw(name, points, label.palette))
            label.toolTip = f"{run}, {metric}: {points[-1][1]:.4g} ({points[-1][0]:g})"


def draw(name: str, points: Points, palette: Any) -> Any:
    """A plot of one metric over the steps, as QPixmap."""
    pixmap = qt.QPixmap(WIDTH, HEIGHT)
    pixmap.fill(palette.color(qt.QPalette.Base))
    painter = qt.QPainter(pixmap)
    painter.setRenderHint(qt.QPainter.Antialiasing)
    low, high = _range([value for _step, value in points])
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    text, faint = palette.color(qt.QPalette.Text), palette.color(qt.QPalette.Mid)
    painter.setPen(qt.QPen(text))
    font = qt.QFont(painter.font())
    font.setPixelSize(11)
    painter.setFont(font)
    painter.drawText(_LEFT, 13, f"{name}  {points[-1][1]:.3g}")
    for value in (low, high):
        y = round(_y(value, low, high))
        painter.setPen(qt.QPen(faint))
        painter.drawLine(_LEFT, y, WIDTH - _RIGHT, y)
        painter.setPen(qt.QPen(text))
        painter.drawText(2, y + 4, f"{value:.2g}")
    painter.drawText(_LEFT, HEIGHT - 4, f"{first:g}")
    end = f"{points[-1][0]:g}"
    painter.drawText(WIDTH - _RIGHT - 7 * len(end), HEIGHT - 4, end)
    pen = qt.QPen(palette.color(qt.QPalette.Highlight))
    pen.setWidthF(1.6)
    painter.setPen(pen)
    path = qt.QPainterPath()
    for number, (step, value) in enumerate(points):
        x = _LEFT + (step - first) / (last - first) * (WIDTH - _LEFT - _RIGHT)
        if number:
            path.lineTo(x, _y(value, low, high))
        else:
            path.moveTo(x, _y(value, low, high))
    painter.drawPath(path)
    painter.end()
    return pixmap


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)) and math.isfinite(high - low):
        return low, high
    margin = abs(low) * 0.1 or 0.5
    return low - margin, low + margin


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
