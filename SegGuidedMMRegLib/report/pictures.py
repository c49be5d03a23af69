"""Pictures of images, segmentations and transforms, drawn without a display or global state.

A `View` says how to cut a picture out of arrays on a grid and which way up it is shown: radiographs as
stored, row 0 on top; slices of volumes as radiologists look at them (patient's left on the right, anterior or
superior on top).
Every drawing function returns a `Figure` that fills its frame; `encode` makes it bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from SegGuidedMMRegLib.metrics import jacobian_determinant
from SegGuidedMMRegLib.space import Grid

if TYPE_CHECKING:
    from SegGuidedMMRegLib.fields import DisplacementField
    from SegGuidedMMRegLib.study import Structure

LARGEST_SIDE = 420
"""Pixels of the longer side of a picture."""
JACOBIAN_LIMIT = 1.0
"""The colours of a Jacobian map end at 2 to the power of ± this."""

_DPI = 100
_TRACED_SIDE = 800
_WINDOW_VALUES = 500_000
_GRID_LINES = 24
_FOLD_COLOR = "#ff00c8"
_DIVERGING = "RdBu_r"


@dataclass(frozen=True)
class View:
    """A picture's place in arrays on a grid.

    Attributes:
        name: "axial", "coronal", "sagittal"; "" in 2D.
        rows: array axis that runs down the picture.
        columns: array axis that runs across it.
        flip_rows: whether the last index is on top.
        flip_columns: whether the last index is on the left.
        through: array axis that the slice is taken from; None in 2D.
        index: which slice.
        aspect: height of a pixel over its width.
    """

    name: str
    rows: int
    columns: int
    flip_rows: bool
    flip_columns: bool
    through: int | None
    index: int
    aspect: float

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """The picture's pixels, row 0 on top, from an array of the grid's shape."""
        plane = array if self.through is None else np.take(array, self.index, axis=self.through)
        if self.rows > self.columns:
            plane = plane.T
        return plane[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True)
class Outline:
    """The borders of a label map: dashed for a truth, solid for what a network or a transform made."""

    labels: NDArray[Any]
    dashed: bool = False


def views(grid: Grid, focus: NDArray[np.bool_] | None = None) -> list[View]:
    """One view in 2D; axial, coronal and sagittal ones in 3D.

    Args:
        grid: of the arrays that will be cut.
        focus: bool of shape `grid.shape`; each slice is the one with most of it (the middle one without).
    """
    # world[a]: which of x, y, z the array axis a follows; sign[a]: whether it grows with the index. On a
    # picture x grows to the right, y (posterior) to the right or down, z (superior) up.
    columns_of_direction = grid.direction_matrix[:, : grid.dimension]
    along = max(
        permutations(range(3), grid.dimension),
        key=lambda axes: sum(abs(columns_of_direction[w, n]) for n, w in enumerate(axes)),
    )
    world = {grid.dimension - 1 - n: w for n, w in enumerate(along)}
    sign = {grid.dimension - 1 - n: columns_of_direction[w, n] > 0 for n, w in enumerate(along)}
    last_first = {axis: sign[axis] if world[axis] == 2 else not sign[axis] for axis in world}

    def view(name: str, rows: int, columns: int, through: int | None) -> View:
        index = 0 if through is None else _fullest_slice(focus, through, grid.shape[through])
        aspect = grid.axis_spacing[rows] / grid.axis_spacing[columns]
        return View(name, rows, columns, last_first[rows], last_first[columns], through, index, aspect)

    if grid.dimension == 2:
        return [view("", 0, 1, None)]
    x, y, z = (axis for axis, _ in sorted(world.items(), key=lambda item: item[1]))
    return [view("axial", y, x, z), view("coronal", z, x, y), view("sagittal", z, y, x)]


def fullest_view(grid: Grid, focus: NDArray[np.bool_] | None = None) -> View:
    """The one view that shows most of `focus` (mm²); the coarse axis of a volume is not looked along."""
    candidates = views(grid, focus)
    if focus is None or not focus.any():
        return candidates[0]
    spacing = grid.axis_spacing
    return max(candidates, key=lambda v: v.cut(focus).sum() * spacing[v.rows] * spacing[v.columns])


def _fullest_slice(focus: NDArray[np.bool_] | None, axis: int, length: int) -> int:
    if focus is None or not focus.any():
        return length // 2
    others = tuple(a for a in range(focus.ndim) if a != axis)
    return int(focus.sum(axis=others).argmax())


# -- drawings -----------------------------------------------------------------------------------------------
def overlay(
    image: NDArray[Any],
    view: View,
    outlines: Sequence[Outline] = (),
    structures: Sequence[Structure] = (),
) -> Figure:
    """The image in grey with the outlines of label maps in the structures' colours.

    Args:
        image: intensities of the grid's shape; shown between its 0.5 and 99.5 percentiles.
        view: what to show.
        outlines: label maps (class values) on the same grid.
        structures: which values to draw and in which colours.
    """
    canvas = _Canvas(view, image.shape)
    canvas.show(_unit(image, view), cmap="gray", vmin=0, vmax=1)
    for outline in outlines:
        canvas.structures(view.cut(outline.labels), structures, dashed=outline.dashed)
    return canvas.figure


def checkerboard(first: NDArray[Any], second: NDArray[Any], view: View, tiles: int = 7) -> Figure:
    """Two images on one grid in alternating squares, so that edges can be followed from one to the other."""
    a, b = _unit(first, view), _unit(second, view)
    side = max(a.shape[0] * view.aspect, a.shape[1]) / tiles
    row, column = np.indices(a.shape)
    even = (np.floor(row * view.aspect / side) + np.floor(column / side)) % 2 == 0
    canvas = _Canvas(view, first.shape)
    canvas.show(np.where(even, a, b), cmap="gray", vmin=0, vmax=1)
    return canvas.figure


def warped_grid(
    field: DisplacementField,
    view: View,
    background: NDArray[Any] | None = None,
    labels: NDArray[Any] | None = None,
    structures: Sequence[Structure] = (),
) -> Figure:
    """A regular grid drawn on the (pre-aligned) moving image, as the transform carries it to the fixed one.

    The lines are level sets of the in-plane coordinates of x + u(x), so they lie on the warped image; where
    the transform folds, they close to loops.

    Args:
        field: u on the fixed grid.
        view: of that grid.
        background: an image of its shape, shown dimmed.
        labels: a label map of its shape, whose borders are drawn in the colours of the structures.
        structures: which values to draw.
    """
    grid = field.grid
    plane = np.stack([view.cut(field.displacement_lps_mm[..., c]) for c in range(3)], axis=-1)
    in_voxels = plane @ grid.lps_to_voxel[:3, :3].T
    canvas = _Canvas(view, grid.shape)
    if background is not None:
        canvas.show(0.45 * _unit(background, view), cmap="gray", vmin=0, vmax=1)
    axes = (view.rows, view.columns)
    step = max(grid.shape[axis] * grid.axis_spacing[axis] for axis in axes) / _GRID_LINES
    for axis in axes:
        index = np.arange(grid.shape[axis]).reshape([-1 if a == axis else 1 for a in range(grid.dimension)])
        start = view.cut(np.broadcast_to(index, grid.shape))
        reached_mm = (start + in_voxels[..., grid.dimension - 1 - axis]) * grid.axis_spacing[axis]
        levels = np.arange(step / 2, grid.shape[axis] * grid.axis_spacing[axis], step)
        canvas.lines(reached_mm, levels)
    if labels is not None:
        canvas.structures(view.cut(labels), structures)
    return canvas.figure


def jacobian_map(
    field: DisplacementField, folds: NDArray[np.bool_], view: View, labels: NDArray[Any] | None = None
) -> Figure:
    """Local change of size of x + u(x) in diverging colours (white: kept), folds in magenta.

    Args:
        field: u on the fixed grid.
        folds: `fields.fold_mask(field)`.
        view: of that grid.
        labels: fixed labels, drawn as thin outlines.
    """
    log_size = np.log2(np.maximum(_determinant_in(field, view), 2.0**-8))
    canvas = _Canvas(view, field.grid.shape)
    canvas.show(log_size, cmap=_DIVERGING, vmin=-JACOBIAN_LIMIT, vmax=JACOBIAN_LIMIT)
    if labels is not None:
        canvas.outline(view.cut(labels) > 0, "#333333", halo=False)
    canvas.marks(view.cut(folds), _FOLD_COLOR)
    return canvas.figure


def jacobian_colours(number: int = 9) -> list[str]:
    """The colours of a Jacobian map from smallest to largest, for a legend."""
    return [to_hex(colormaps[_DIVERGING](t)) for t in np.linspace(0, 1, number)]


def encode(figure: Figure, *, quality: int = 85) -> bytes:
    """A figure as JPEG, small enough for a page with many."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": quality, "optimize": True})
    return buffer.getvalue()


def encode_png(figure: Figure) -> bytes:
    """A figure as PNG of twice as many pixels a side: the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * _DPI, metadata={"Software": None})
    return buffer.getvalue()


# -- helpers ------------------------------------------------------------------------------------------------
class _Canvas:
    """A figure that one picture fills. Its coordinates are the indices of the picture's pixels.

    Of very large pictures, blocks of pixels are averaged, and lines are traced on every n-th pixel.
    """

    def __init__(self, view: View, shape: Sequence[int]) -> None:
        self._rows, self._columns = shape[view.rows], shape[view.columns]
        height, width = self._rows * view.aspect, float(self._columns)
        scale = LARGEST_SIDE / max(height, width) / _DPI
        size = (max(width * scale, 0.3), max(height * scale, 0.3))
        self.figure = Figure(figsize=size, dpi=_DPI, facecolor="#14181d")
        FigureCanvasAgg(self.figure)
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set_xlim(-0.5, self._columns - 0.5)
        self._axes.set_ylim(self._rows - 0.5, -0.5)
        self._step = max(1, -(-max(self._rows, self._columns) // _TRACED_SIDE))

    def show(self, pixels: NDArray[Any], **colours: Any) -> None:
        pixels = _averaged(pixels, self._step)
        rows, columns = (n * self._step - 0.5 for n in pixels.shape)
        extent = (-0.5, columns, rows, -0.5)
        self._axes.imshow(pixels, extent=extent, aspect="auto", interpolation="antialiased", **colours)

    def structures(
        self, labels: NDArray[Any], structures: Sequence[Structure], *, dashed: bool = False
    ) -> None:
        for structure in structures:
            colour = "#{:02x}{:02x}{:02x}".format(*structure.color)
            self.outline(labels == structure.value, colour, dashed=dashed)

    def outline(
        self, mask: NDArray[np.bool_], colour: str, *, dashed: bool = False, halo: bool = True
    ) -> None:
        if not mask.any():
            return
        # A margin closes the outlines of what touches the border.
        padded = np.pad(mask[:: self._step, :: self._step].astype(float), 1)
        drawn = self._contour(padded, [0.5], -1, colors=colour, linewidths=1.6 if halo else 0.8)
        if dashed:
            drawn.set_linestyle((0, (3.0, 2.0)))
        if halo:
            drawn.set_path_effects([patheffects.withStroke(linewidth=2.8, foreground="#000000aa")])

    def lines(self, values: NDArray[Any], levels: NDArray[Any]) -> None:
        self._contour(values[:: self._step, :: self._step], levels, 0, colors="#7fe3ff", linewidths=0.9)

    def marks(self, mask: NDArray[np.bool_], colour: str) -> None:
        rows, columns = np.nonzero(mask)
        self._axes.scatter(columns, rows, s=14, marker="s", c=colour, edgecolors="black", linewidths=0.4)

    def _contour(self, values: NDArray[Any], levels: ArrayLike, first: int, **style: Any) -> Any:
        y, x = ((np.arange(n) + first) * self._step for n in values.shape)
        return self._axes.contour(x, y, values, levels=levels, **style)


def _determinant_in(field: DisplacementField, view: View) -> NDArray[Any]:
    """The Jacobian determinant of the picture's pixels; only the slices next to it are looked at."""
    if view.through is None:
        return view.cut(jacobian_determinant(field.displacement_lps_mm, field.grid))
    first = max(view.index - 1, 0)
    slab = np.take(
        field.displacement_lps_mm,
        range(first, min(view.index + 2, field.grid.shape[view.through])),
        axis=view.through,
    )
    grid = replace(field.grid, size=slab.shape[2::-1])
    return replace(view, index=view.index - first).cut(jacobian_determinant(slab, grid))


def _averaged(pixels: NDArray[Any], step: int) -> NDArray[Any]:
    """Means of blocks of `step` by `step` pixels; what is left over at the end is cut off."""
    if step == 1:
        return pixels
    rows, columns = (n // step for n in pixels.shape)
    return pixels[: rows * step, : columns * step].reshape(rows, step, columns, step).mean((1, 3))


def _unit(image: NDArray[Any], view: View) -> NDArray[Any]:
    """The picture's pixels between the 0.5 and 99.5 percentiles of the whole image, as 0 to 1."""
    some = image.ravel()[:: max(1, image.size // _WINDOW_VALUES)]
    finite = some[np.isfinite(some)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    span = high - low if high > low else 1.0
    return np.clip((view.cut(image).astype(float) - low) / span, 0, 1)
