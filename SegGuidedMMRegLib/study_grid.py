"""The study grid: the box of space, and its voxels, that every image of a study is brought into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from SegGuidedMMRegLib.space import Grid

_LONGEST = {2: 256, 3: 96}
_MULTIPLE = {2: 32, 3: 16}
_MARGIN = 1.1


def longest_axis(dimension: int, quick: bool = False) -> int:
    """Voxels of the longest axis of a study grid at most: 256 in 2D and 96 in 3D, `quick` 128 and 48."""
    return {2: 128, 3: 48}[dimension] if quick else _LONGEST[dimension]


def choose_grid(grids: Sequence[Grid], dimension: int, longest: int | None = None) -> Grid:
    """A grid that holds most of the images.

    Its box has the median extent of the images and a tenth more. Its spacing is the same along all axes: the
    median of the images' finest spacings, or coarser where the longest axis would have more than `longest`
    voxels. Sizes are multiples of 32 (2D) or 16 (3D), as the networks need.

    Args:
        grids: of the images, in any direction; in 3D extents are measured along LPS.
        dimension: 2 or 3.
        longest: voxels of the longest axis at most (see `longest_axis`), a multiple of 32 or 16.

    Raises:
        ValueError: without grids.
    """
    if not grids:
        raise ValueError("A study grid can't be chosen without images.")
    extent = _box(grids, dimension)
    finest = np.median([min(g.spacing[:dimension]) for g in grids])
    spacing = float(max(finest, extent.max() / (longest or _LONGEST[dimension])))
    return _rounded(extent, float(f"{spacing:.4g}"), dimension, longest or _LONGEST[dimension])


def grid_from(
    grids: Sequence[Grid], dimension: int, size: Sequence[int], spacing_mm: Sequence[float], longest: int
) -> Grid:
    """The grid of a wanted size or spacing (x first; empty: chosen from the images).

    Raises:
        ValueError: if not one number, or one an axis, or not above 0, or a size below 16.
    """
    chosen = choose_grid(grids, dimension, longest)
    if not size and not spacing_mm:
        return chosen
    spacing = _each(spacing_mm, dimension, "grid spacing") if spacing_mm else None
    if not size:
        extent = np.asarray(chosen.extent_mm[:dimension])
        step = _MULTIPLE[dimension]
        wanted = (np.maximum(np.ceil(extent / spacing / step - 1e-6), 1) * step).astype(int)
    else:
        wanted = _each(size, dimension, "grid size").astype(int)
        if wanted.min() < 16:
            raise ValueError(f"The grid size must be 16 or more along each axis, got {list(size)}.")
    if spacing is None:
        spacing = np.full(dimension, (_box(grids, dimension) / wanted).max())
    return _centred(wanted, spacing)


def _box(grids: Sequence[Grid], dimension: int) -> np.ndarray:
    """Sides in mm of the box of a study grid."""
    return np.median([_extent(g, dimension) for g in grids], axis=0) * _MARGIN


def _extent(grid: Grid, dimension: int) -> np.ndarray:
    extent = np.asarray(grid.extent_mm)
    return extent[:2] if dimension == 2 else np.abs(grid.direction_matrix) @ extent


def _rounded(extent: np.ndarray, spacing: float, dimension: int, longest: int) -> Grid:
    step = _MULTIPLE[dimension]
    size = np.clip(np.ceil(extent / spacing / step - 1e-3) * step, step, max(longest, step)).astype(int)
    return _centred(size, np.full(dimension, spacing))


def _centred(size: np.ndarray, spacing: np.ndarray) -> Grid:
    missing = 3 - len(size)
    return Grid.centred((*size.tolist(), *[1] * missing), (*spacing.tolist(), *[1.0] * missing))


def _each(values: Sequence[float], dimension: int, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.size not in (1, dimension) or not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"The {what} must be one number or {dimension}, above 0, got {list(values)}.")
    return np.broadcast_to(array, (dimension,)).copy()
