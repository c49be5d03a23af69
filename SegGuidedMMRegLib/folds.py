"""Where a displacement field folds space: the smallest Jacobian determinant around each voxel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegLib.displacement import DisplacementField
from SegGuidedMMRegLib.space import FloatArray

_SLAB_VOXELS = 400_000


def corner_jacobians_minimum(displacement: DisplacementField) -> NDArray[np.float32]:
    """The smallest Jacobian determinant of x + u(x) around each voxel, shape `grid.shape`.

    The determinant is taken with forward and backward differences in all 2^d combinations (the criterion of
    digital diffeomorphisms, Liu et al., IJCV 2024); at the border, with those that exist. In 2D it is that of
    the plane.
    """
    d = displacement.grid.dimension
    voxels = np.ascontiguousarray(displacement.displacement_voxels[..., :d])
    length = voxels.shape[0]
    rows = max(1, _SLAB_VOXELS // max(1, int(np.prod(voxels.shape[1:d]))))
    out = np.empty(voxels.shape[:-1], dtype=np.float32)
    for start in range(0, length, rows):
        low, high = max(start - 1, 0), min(start + rows + 1, length)
        slab = _slab_minimum(voxels[low:high], d)
        out[start : start + rows] = slab[start - low : start - low + rows]
    return out


def _slab_minimum(voxels: FloatArray, d: int) -> FloatArray:
    """`corner_jacobians_minimum` of one slab; `voxels` (*shape, d) in order (i, j[, k])."""
    best = np.full(voxels.shape[:-1], np.inf)
    steps = []
    for axis in range(d):
        difference = np.diff(voxels, axis=d - 1 - axis).astype(np.float64)
        difference[..., axis] += 1
        steps.append(difference)
    for backward in product((False, True), repeat=d):
        # A forward difference exists at the lower voxel of a step, a backward one at the upper.
        columns = []
        for axis in range(d):
            cut = [slice(None)] * d
            for other in range(d):
                if other != axis:
                    cut[d - 1 - other] = slice(1, None) if backward[other] else slice(None, -1)
            columns.append(steps[axis][tuple(cut)])
        where = tuple(slice(1, None) if backward[d - 1 - a] else slice(None, -1) for a in range(d))
        best[where] = np.minimum(best[where], _determinant(columns))
    return best


def _determinant(columns: Sequence[FloatArray]) -> FloatArray:
    """Determinant of the matrices whose columns are given, each (..., d)."""
    if len(columns) == 2:
        a, b = columns
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    a, b, c = columns
    return (
        a[..., 0] * (b[..., 1] * c[..., 2] - b[..., 2] * c[..., 1])
        - a[..., 1] * (b[..., 0] * c[..., 2] - b[..., 2] * c[..., 0])
        + a[..., 2] * (b[..., 0] * c[..., 1] - b[..., 1] * c[..., 0])
    )


def fold_mask(displacement: DisplacementField) -> NDArray[np.bool_]:
    """Voxels at which x + u(x) folds: some corner Jacobian is not above 0. Shape `grid.shape`."""
    return corner_jacobians_minimum(displacement) <= 0
