"""A displacement field beyond its border: continued without folds, or faded out.

Images stick out of the study grid. There a field goes on with the displacement of its border. Where it
compresses along the border by more than a fold can bear (which its interior may balance by a turn), that
continuation folds; then it is smoothed there until it does not.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from SegGuidedMMRegLib.displacement import DisplacementField
from SegGuidedMMRegLib.folds import corner_jacobians_minimum
from SegGuidedMMRegLib.space import FloatArray

_MARGIN = 32
_BAND = 3
_ROUNDS = 60
_LEAST_JACOBIAN = 0.15


def continued_without_folds(phi: DisplacementField) -> DisplacementField:
    """phi itself where its continuation beyond the border has no folds, else one that has none, or fewer.

    In the second case the grid is `_MARGIN` voxels larger on each side, and displacements change
    there and in the outermost voxels of the old grid: three, and more where three do not do. Folds further
    inside are left as they are.
    """
    if not _outer(_nearly_folded(_padded(phi, 1)), 1 + _BAND).any():
        return phi
    wide = _padded(phi, _MARGIN)
    values = wide.displacement_lps_mm.astype(np.float64)
    for n in range(_ROUNDS):
        allowed = _frame(wide.grid.shape, _MARGIN + _BAND + n // 4)
        folded = _nearly_folded(DisplacementField(wide.grid, values)) & allowed
        if not folded.any():
            break
        where = _grown(folded) & allowed
        values[where] = _smoothed(values)[where]
    return DisplacementField(wide.grid, values)


def fade_to_border(displacement: NDArray[np.floating], voxels: int) -> FloatArray:
    """A displacement that falls smoothly to 0 at the outermost voxels.

    Args:
        displacement: shape (*shape, c).
        voxels: over how many voxels; the slope this adds is at most 1.5 |u| / voxels, so a fade much narrower
            than the displacement at the border folds.
    """
    out = np.array(displacement, dtype=float)
    for axis, length in enumerate(out.shape[:-1]):
        distance = np.minimum(np.arange(length), np.arange(length)[::-1]) / max(voxels, 1)
        t = np.clip(distance, 0.0, 1.0)
        weight = t * t * (3 - 2 * t)
        out *= weight.reshape([-1 if a == axis else 1 for a in range(out.ndim)])
    return out


def _nearly_folded(displacement: DisplacementField) -> NDArray[np.bool_]:
    """Where space is compressed so far that the inverse, sampled on a grid, could fold."""
    return corner_jacobians_minimum(displacement) < _LEAST_JACOBIAN


def _padded(phi: DisplacementField, voxels: int) -> DisplacementField:
    width = [(voxels, voxels)] * phi.grid.dimension + [(0, 0)]
    return DisplacementField(phi.grid.padded(voxels), np.pad(phi.displacement_lps_mm, width, mode="edge"))


def _frame(shape: tuple[int, ...], width: int) -> NDArray[np.bool_]:
    """True in the outermost `width` voxels."""
    frame = np.ones(shape, dtype=bool)
    frame[tuple(slice(width, -width) for _ in shape)] = False
    return frame


def _outer(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    return mask & _frame(mask.shape, width)


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    radius = [4] * mask.ndim
    return sitk.GetArrayFromImage(
        sitk.BinaryDilate(sitk.GetImageFromArray(mask.astype(np.uint8)), radius)
    ).astype(bool)


def _smoothed(values: FloatArray) -> FloatArray:
    components = [
        sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(values[..., c]), 2.0))
        for c in range(values.shape[-1])
    ]
    return np.stack(components, axis=-1)
