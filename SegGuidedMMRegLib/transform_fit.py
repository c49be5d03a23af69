"""Whether a transform belongs to an image: how much of the fixed grid it takes into the moving image."""

from __future__ import annotations

import numpy as np

from SegGuidedMMRegLib.displacement import SpatialTransform
from SegGuidedMMRegLib.space import FloatArray, Grid

_MOST_POINTS = 20_000


def share_inside(transform: SpatialTransform, fixed: Grid, moving: Grid) -> float:
    """Share of the voxels of `fixed`, 0 to 1, that the transform takes into `moving`."""
    return float(moving.contains(transform.transform_points(_lattice(fixed)), margin_voxels=-0.5).mean())


def share_of_field(transform: SpatialTransform, fixed: Grid) -> float:
    """Share of the voxels of `fixed`, 0 to 1, at which the transform's field is known."""
    return float(transform.field.grid.contains(_lattice(fixed), margin_voxels=-0.5).mean())


def _lattice(grid: Grid) -> FloatArray:
    """LPS mm of some of the voxels, evenly spread, corners included, shape (n, 3)."""
    each = max(2, int(_MOST_POINTS ** (1 / grid.dimension)))
    axes = [np.linspace(0, n - 1, min(n, each)) for n in grid.size]
    return grid.voxels_to_points(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))
