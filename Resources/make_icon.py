"""Draw the icon of the module: two outlines of one shape, and the grid that takes one to the other.

python Resources/make_icon.py SegGuidedMMReg/Resources/Icons/SegGuidedMMReg.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

ORANGE, BLUE, GREY, PAPER = "#e69f00", "#0072b2", "#9aa5b1", "#f7f9fb"


def warp(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smooth map of the square [-1, 1]², at rest on its border."""
    fade = np.cos(np.pi * x / 2) * np.cos(np.pi * y / 2)
    return x + 0.22 * fade * np.sin(2.2 * y + 0.5), y + 0.2 * fade * np.cos(2.4 * x)


def draw(path: Path) -> None:
    """Write the icon, 128 × 128 pixels, transparent outside its rounded square."""
    figure = plt.figure(figsize=(1.28, 1.28), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    axes.axis("off")
    frame = FancyBboxPatch(
        (-0.92, -0.92), 1.84, 1.84, boxstyle="round,pad=0.1", facecolor=PAPER, edgecolor=GREY
    )
    axes.add_patch(frame)
    along = np.linspace(-1, 1, 60)
    for at in np.linspace(-0.9, 0.9, 7):
        for x, y in ((along * 0.9, np.full(60, at)), (np.full(60, at), along * 0.9)):
            axes.plot(*warp(x, y), color=GREY, linewidth=0.7)
    turn = np.linspace(0, 2 * np.pi, 200)
    radius = 0.52 + 0.09 * np.cos(3 * turn)
    x, y = radius * np.cos(turn) - 0.08, radius * np.sin(turn) - 0.1
    axes.plot(x, y, color=ORANGE, linewidth=3.2)
    axes.plot(*warp(x, y), color=BLUE, linewidth=3.2)
    figure.savefig(path, dpi=100, transparent=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
