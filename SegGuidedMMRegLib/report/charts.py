"""Training curves as small SVG drawings that take the colours of the page they stand on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from SegGuidedMMRegLib.files import read_json_lines

WIDTH, HEIGHT = 300, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
_MOST_POINTS = 240


@dataclass(frozen=True)
class Curve:
    """One metric of one training run over its steps."""

    run: str
    metric: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_curves(path: Path, run: str) -> list[Curve]:
    """The metrics in a `metrics.jsonl`, one curve each; half lines of a cut-off run are left out."""
    series: dict[str, list[tuple[float, float]]] = {}
    for record in read_json_lines(path):
        if not _is_number(record.get("step")):
            continue
        for name, value in record.items():
            if name != "step" and _is_number(value):
                series.setdefault(name, []).append((record["step"], value))
    return [
        Curve(run, name, *(tuple(column) for column in zip(*points, strict=True)))
        for name, points in series.items()
    ]


def draw(curve: Curve) -> Markup:
    """The curve as an inline SVG: the values thin, their moving average bold."""
    steps, values = reduced(curve.steps, curve.values, _MOST_POINTS)
    smooth = _moving_average(values)
    x_ticks, x_range = _axis(steps, 4)
    y_ticks, y_range = _axis(values, 5)

    def x(step: float) -> float:
        return _LEFT + (step - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - y_range[0]) / (y_range[1] - y_range[0]) * (HEIGHT - _TOP - _BOTTOM)

    def line(some: np.ndarray, name: str) -> str:
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, some, strict=True))
        return f'<polyline class="{name}" points="{points}"/>'

    title = f"{curve.run}: {curve.metric}, last {values[-1]:.4g}"
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *(
            f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y(t) + 3.5:.1f}" text-anchor="end">{t:.4g}</text>'
            for t in y_ticks
        ),
        *(f'<text x="{x(t):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{_short(t)}</text>' for t in x_ticks),
        line(values, "raw") if len(values) > 1 else "",
        line(smooth, "smooth") if len(values) > 1 else "",
        f'<circle cx="{x(steps[-1]):.1f}" cy="{y(smooth[-1]):.1f}" r="2.6"/>',
        "</svg>",
    ]
    return Markup("".join(parts))  # texts are escaped above, the rest are numbers


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def reduced(steps: Sequence[float], values: Sequence[float], most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points, each the mean of its neighbours."""
    known = np.asarray(values, float)
    pieces = np.array_split(np.arange(len(known)), min(len(known), most))
    return np.array([float(steps[p[-1]]) for p in pieces]), np.array([known[p].mean() for p in pieces])


def _moving_average(values: np.ndarray) -> np.ndarray:
    half = max(1, len(values) // 30)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    n = np.arange(len(values))
    low, high = np.maximum(n - half, 0), np.minimum(n + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _axis(values: np.ndarray, most: int) -> tuple[Sequence[float], tuple[float, float]]:
    """Round ticks within the values' range, and that range."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, high + pad
    ticks = [t for t in MaxNLocator(most).tick_values(low, high) if low <= t <= high]
    return ticks, (low, high)


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 10_000 else f"{step:g}"
