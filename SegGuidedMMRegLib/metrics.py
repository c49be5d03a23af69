"""How good a segmentation or a registration is: overlap, surface distances, volumes, folds, landmark errors.

Label maps are arrays of class values in `Grid.shape` order, (j, i) or (k, j, i); distances are in mm and need
the spacing of the array axes (`Grid.axis_spacing`). A measure that has no meaning for a structure is `None`,
never 0 and never infinite, and `why_undefined` says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from SegGuidedMMRegLib.space import Grid

_FEW_DISTANCES = 100_000
"""Pairs of surface voxels that are measured one by one."""

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class Comparison:
    """One structure in two label maps `a` and `b`.

    Attributes:
        value: class value of the structure.
        dice: overlap, 0 to 1; `None` where neither map has the structure.
        hd95_mm: 95th percentile Hausdorff distance; `None` unless both maps have the structure.
        assd_mm: average symmetric surface distance; `None` unless both maps have the structure.
        volume_a: size in `a`, mm² in 2D and mm³ in 3D.
        volume_b: size in `b`.
        reason: why a measure is `None`; `None` where all are defined.
    """

    value: int
    dice: float | None
    hd95_mm: float | None
    assd_mm: float | None
    volume_a: float
    volume_b: float
    reason: str | None


def compare(
    a: ArrayLike, b: ArrayLike, values: Iterable[int], spacing: Sequence[float], *, a_name: str, b_name: str
) -> list[Comparison]:
    """Every measure of every structure.

    Args:
        a: label map of shape (j, i) or (k, j, i).
        b: label map of the same shape on the same grid.
        values: class values of the structures.
        spacing: mm along each array axis.
        a_name: what `a` is, for the reasons, e.g. "the prediction".
        b_name: what `b` is.

    Raises:
        ValueError: if the shapes differ or the spacing does not fit them.
    """
    left, right = _same_shape(a, b, spacing)
    voxel = float(np.prod(spacing))
    found = []
    for value in values:
        x, y = left == value, right == value
        distances = _directed_distances(x, y, spacing)
        found.append(
            Comparison(
                value=int(value),
                dice=_dice(x, y),
                hd95_mm=_hd95(distances),
                assd_mm=_assd(distances),
                volume_a=float(x.sum() * voxel),
                volume_b=float(y.sum() * voxel),
                reason=why_undefined(bool(x.any()), bool(y.any()), a_name=a_name, b_name=b_name),
            )
        )
    return found


def why_undefined(in_a: bool, in_b: bool, *, a_name: str, b_name: str) -> str | None:
    """Why measures between two label maps are missing for a structure; `None` if both have it."""
    if in_a and in_b:
        return None
    if in_a:
        return f"absent from {b_name}"
    if in_b:
        return f"absent from {a_name}"
    return f"absent from {a_name} and from {b_name}"


def dice(a: ArrayLike, b: ArrayLike, values: Iterable[int]) -> dict[int, float | None]:
    """Dice overlap 2|A∩B| / (|A|+|B|) of each class value; `None` where neither map has the structure.

    A structure that only one map has counts as 0: a prediction that lost a bone must not look undefined.

    Raises:
        ValueError: if the shapes differ.
    """
    left, right = _same_shape(a, b)
    return {int(value): _dice(left == value, right == value) for value in values}


def hd95(
    a: ArrayLike, b: ArrayLike, values: Iterable[int], spacing: Sequence[float]
) -> dict[int, float | None]:
    """95th percentile Hausdorff distance in mm: the larger of the two directed percentiles.

    The surface of a structure is its voxels with a face neighbour outside it, as in MONAI. `None` unless both
    maps have the structure.

    Raises:
        ValueError: if the shapes differ or the spacing does not fit them.
    """
    left, right = _same_shape(a, b, spacing)
    return {int(v): _hd95(_directed_distances(left == v, right == v, spacing)) for v in values}


def assd(
    a: ArrayLike, b: ArrayLike, values: Iterable[int], spacing: Sequence[float]
) -> dict[int, float | None]:
    """Average symmetric surface distance in mm: the mean over the voxels of both surfaces.

    `None` unless both maps have the structure.

    Raises:
        ValueError: if the shapes differ or the spacing does not fit them.
    """
    left, right = _same_shape(a, b, spacing)
    return {int(v): _assd(_directed_distances(left == v, right == v, spacing)) for v in values}


def volume(labels: ArrayLike, values: Iterable[int], grid: Grid) -> dict[int, float]:
    """Size of each structure: mm² in 2D (the slice has no meaningful thickness), mm³ in 3D."""
    array = np.asarray(labels)
    voxel = float(np.prod(grid.axis_spacing))
    return {int(value): float((array == value).sum() * voxel) for value in values}


@dataclass(frozen=True)
class FoldCount:
    """How many of `voxels` voxels are folded; `share` is `None` where there are no voxels."""

    folded: int
    voxels: int

    @property
    def share(self) -> float | None:
        return self.folded / self.voxels if self.voxels else None


def count_folds(folds: ArrayLike, within: ArrayLike | None = None) -> FoldCount:
    """Folded voxels in all, or inside the mask `within`.

    Args:
        folds: bool per voxel, `fields.fold_mask` of a field.
        within: bool per voxel, e.g. one structure.

    Raises:
        ValueError: if the shapes differ.
    """
    folded = np.asarray(folds, dtype=bool)
    mask = np.ones_like(folded) if within is None else np.asarray(within, dtype=bool)
    if mask.shape != folded.shape:
        raise ValueError(f"Folds and structure must lie on one grid, got {folded.shape} and {mask.shape}.")
    return FoldCount(folded=int((folded & mask).sum()), voxels=int(mask.sum()))


def jacobian_determinant(displacement_lps_mm: ArrayLike, grid: Grid) -> FloatArray:
    """Determinant of the Jacobian of x + u(x) by central differences: local change of volume (2D: area).

    For pictures and statistics; whether a field folds is for `fields.fold_mask`, which is stricter.

    Args:
        displacement_lps_mm: shape (*grid.shape, 3), LPS mm.
        grid: where the field is sampled. In 2D only the displacement within the plane counts.

    Returns:
        Array of shape `grid.shape`; 1 where volume is kept, below 1 where the map shrinks.
    """
    d = grid.dimension
    to_voxels = np.linalg.inv(grid.voxel_to_lps[:3, :3])
    u = np.asarray(displacement_lps_mm, dtype=float) @ to_voxels.T
    jacobian = np.zeros((*grid.shape, d, d))
    for component in range(d):  # of (i, j, k)
        for direction in range(d):
            axis = d - 1 - direction
            jacobian[..., component, direction] = (
                np.gradient(u[..., component], axis=axis) if grid.shape[axis] > 1 else 0.0
            )
    jacobian += np.eye(d)
    if d == 2:  # far quicker than a decomposition of each
        return jacobian[..., 0, 0] * jacobian[..., 1, 1] - jacobian[..., 0, 1] * jacobian[..., 1, 0]
    return np.linalg.det(jacobian)


def landmark_distances(mapped_lps_mm: ArrayLike, true_lps_mm: ArrayLike) -> FloatArray:
    """Distance in mm of each mapped point from where it should lie; both (n, 3), LPS mm.

    Raises:
        ValueError: if the two lists differ in shape.
    """
    mapped, true = np.asarray(mapped_lps_mm, dtype=float), np.asarray(true_lps_mm, dtype=float)
    if mapped.shape != true.shape:
        raise ValueError(f"Landmarks must come in pairs, got shapes {mapped.shape} and {true.shape}.")
    return np.linalg.norm(mapped - true, axis=-1)


# -- one structure ----------------------------------------------------------------------------------------
def surface(mask: BoolArray) -> BoolArray:
    """Voxels of `mask` with a face neighbour outside it; outside the array there is nothing."""
    padded = np.pad(mask, 1)
    inside = padded.copy()
    for axis in range(mask.ndim):
        inside &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return mask & ~inside[(slice(1, -1),) * mask.ndim]


def _dice(x: BoolArray, y: BoolArray) -> float | None:
    size = int(x.sum()) + int(y.sum())
    return float(2 * (x & y).sum() / size) if size else None


def _directed_distances(
    x: BoolArray, y: BoolArray, spacing: Sequence[float]
) -> tuple[FloatArray, FloatArray] | None:
    """Distances in mm from the surface of x to that of y, and back; `None` unless both exist."""
    if not x.any() or not y.any():
        return None
    box = _bounding_box(x | y)
    edge_x, edge_y = surface(x[box]), surface(y[box])
    if np.count_nonzero(edge_x) * np.count_nonzero(edge_y) <= _FEW_DISTANCES:
        between = _all_distances(edge_x, edge_y, spacing)
        return between.min(axis=1), between.min(axis=0)
    return _distance_to(edge_y, spacing)[edge_x], _distance_to(edge_x, spacing)[edge_y]


def _bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    # Outside the box there is nothing of either structure, so surfaces and distances within it stay the same.
    corners = np.argwhere(mask)
    return tuple(slice(low, high + 1) for low, high in zip(corners.min(0), corners.max(0), strict=True))


def _all_distances(x: BoolArray, y: BoolArray, spacing: Sequence[float]) -> FloatArray:
    """From each voxel of x to each of y, mm: for small surfaces a tenth of the time of two distance maps."""
    a, b = (np.argwhere(mask) * np.asarray(spacing, dtype=float) for mask in (x, y))
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


def _distance_to(edge: BoolArray, spacing: Sequence[float]) -> FloatArray:
    """Exact Euclidean distance in mm from every voxel centre to the nearest voxel centre of `edge`."""
    # A margin of one keeps SimpleITK from taking border voxels of the edge for its inside.
    image = sitk.GetImageFromArray(np.pad(edge, 1).astype(np.uint8))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    distance = sitk.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    array = sitk.GetArrayFromImage(distance)[(slice(1, -1),) * edge.ndim]
    return np.where(edge, 0.0, np.abs(array).astype(float))


def _hd95(distances: tuple[FloatArray, FloatArray] | None) -> float | None:
    if distances is None:
        return None
    return float(max(np.percentile(distances[0], 95), np.percentile(distances[1], 95)))


def _assd(distances: tuple[FloatArray, FloatArray] | None) -> float | None:
    return None if distances is None else float(np.concatenate(distances).mean())


def _same_shape(
    a: ArrayLike, b: ArrayLike, spacing: Sequence[float] | None = None
) -> tuple[NDArray, NDArray]:
    left, right = np.asarray(a), np.asarray(b)
    if left.shape != right.shape:
        raise ValueError(
            f"Label maps can be compared on one grid only, got shapes {left.shape} and {right.shape}; "
            "resample one onto the other first."
        )
    if spacing is not None and len(spacing) != left.ndim:
        raise ValueError(f"Expected one spacing an axis of {left.shape}, got {tuple(spacing)}.")
    return left, right
