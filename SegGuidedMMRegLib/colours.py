"""Colours for structures that nobody has chosen one for."""

from __future__ import annotations

_PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114,
    178), (170, 110, 40), (128, 128, 0), (220, 190, 255), (170, 255, 195), (128, 0, 0),
)  # fmt: skip
"""The first seven are Okabe and Ito's, told apart with colour-blind eyes too."""


def palette_color(number: int) -> tuple[int, int, int]:
    """The colour of the n-th structure, counted from 1: RGB of 0 to 255."""
    return _PALETTE[(number - 1) % len(_PALETTE)]
