"""Inverting fields, and the pair of transforms, there and back, that a registration delivers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike

from SegGuidedMMRegLib.border import continued_without_folds
from SegGuidedMMRegLib.displacement import (
    DisplacementField,
    FieldError,
    SpatialTransform,
    grid_between_corners,
    interpolate,
)
from SegGuidedMMRegLib.space import FloatArray, Grid, apply_affine

_TOLERANCE_VOXELS = 0.01
_ITERATIONS = 60
_CHUNK = 250_000
_SPLINE_CHUNK = 1_500_000
_SPLINE_MARGIN = 6
_SHEET_WIDTH = 512


def invert_field(
    displacement: DisplacementField, initial: DisplacementField | None = None
) -> DisplacementField:
    """The field of the inverse map on the same grid: phi(psi(q)) = q at every voxel q.

    Newton's method on the linear interpolation, in voxels of the grid, damped where the residual does not
    shrink. Beyond the border of the grid phi is taken to move as at the nearest point of the border.

    Args:
        displacement: of phi, without folds. In 2D within the plane.
        initial: of a guess of psi, on any grid; minus the displacement if None.

    Raises:
        FieldError: where a voxel is not reached within 0.01 voxel, which means that phi folds.
    """
    grid = displacement.grid
    d = grid.dimension
    if displacement.out_of_plane_mm > 1e-3 * grid.spacing[2]:
        raise FieldError("A two-dimensional field that leaves its plane cannot be inverted within it.")
    targets = _lattice(grid, 0, int(np.prod(grid.size)))[:, :d]
    u = np.ascontiguousarray(displacement.displacement_voxels[..., :d])
    if initial is None:
        guess = targets - u.reshape(-1, d)
    else:
        start = initial.sampled(grid.points(), extend=True).reshape(-1, 3)
        guess = targets + (start @ grid.lps_to_voxel[:3, :3].T)[:, :d]
    found, residual = _solve(u, targets, guess)
    if residual.max() > _TOLERANCE_VOXELS:
        raise FieldError(
            f"The field cannot be inverted: {int((residual > _TOLERANCE_VOXELS).sum())} of {len(residual)} "
            f"voxels are not reached, by up to {residual.max():.3g} voxels. It folds; smooth it, or register "
            "again with more regularity."
        )
    mm = (found - targets) @ grid.voxel_to_lps[:3, :d].T
    return DisplacementField(grid, mm.reshape(*grid.shape, 3))


def _solve(u: FloatArray, targets: FloatArray, guess: FloatArray) -> tuple[FloatArray, FloatArray]:
    """p with p + u(p) = targets for each of n points, in voxels; the best found, and its residual (n,)."""
    found, residual = np.empty_like(targets), np.empty(len(targets))
    for start in range(0, len(targets), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part], residual[part] = _newton(u, targets[part], guess[part])
    return found, residual


def _newton(u: FloatArray, targets: FloatArray, guess: FloatArray) -> tuple[FloatArray, FloatArray]:
    best, p = guess.copy(), guess.copy()
    best_residual = np.full(len(targets), np.inf)
    last_step = np.zeros_like(p)
    active = np.arange(len(targets))
    eye = np.eye(targets.shape[1])
    for _ in range(_ITERATIONS):
        value, slope = interpolate(u, p[active], derivative=True)
        r = p[active] + value - targets[active]
        length = np.linalg.norm(r, axis=1)
        better = length < best_residual[active]
        improved = active[better]
        best[improved], best_residual[improved] = p[improved], length[better]
        assert slope is not None
        step = -_solved(eye + slope[better], r[better])
        last_step[improved] = step
        last_step[active[~better]] *= 0.5
        active = active[best_residual[active] > 1e-5]
        if active.size == 0:
            break
        p[active] = best[active] + last_step[active]
    return best, best_residual


def _solved(matrices: FloatArray, right: FloatArray) -> FloatArray:
    """Solutions (n, d) of n small systems; the right side itself where a determinant is too small."""
    columns = np.moveaxis(matrices, (-1, -2), (0, 1))  # [column, row, point]
    r = right.T
    determinant = _determinant(columns)
    usable = np.abs(determinant) > 0.02
    safe = np.where(usable, determinant, 1.0)
    replaced = [_determinant([r if c == n else columns[c] for c in range(len(r))]) for n in range(len(r))]
    return np.where(usable, np.stack(replaced) / safe, r).T  # Cramer's rule


def _determinant(columns: ArrayLike) -> FloatArray:
    """Determinants of matrices given as [column][row] arrays of points."""
    c = np.asarray(columns)
    if len(c) == 2:
        return c[0, 0] * c[1, 1] - c[0, 1] * c[1, 0]
    return (
        c[0, 0] * (c[1, 1] * c[2, 2] - c[1, 2] * c[2, 1])
        - c[0, 1] * (c[1, 0] * c[2, 2] - c[1, 2] * c[2, 0])
        + c[0, 2] * (c[1, 0] * c[2, 1] - c[1, 1] * c[2, 0])
    )


# -- smooth sampling ------------------------------------------------------------------------------------


class _Spline:
    """Cubic B-spline interpolation of a displacement in voxels; beyond the border, the value there."""

    def __init__(self, u: FloatArray) -> None:
        d = u.shape[-1]
        pad = [_SPLINE_MARGIN] * d
        self._last = np.asarray(u.shape[:d][::-1]) - 1
        self._components = []
        for c in range(d):
            component = sitk.GetImageFromArray(np.ascontiguousarray(u[..., c], dtype=np.float64))
            component = sitk.ZeroFluxNeumannPad(component, pad, pad)
            component.SetOrigin([-float(_SPLINE_MARGIN)] * d)
            self._components.append(component)

    def __call__(self, voxels: FloatArray) -> FloatArray:
        """u at `voxels` (n, d), in order (i, j[, k])."""
        near = np.clip(voxels, 2 - _SPLINE_MARGIN, self._last + _SPLINE_MARGIN - 2)  # constant from there on
        return _spline_values(self._components, near)


def _spline_values(components: list[sitk.Image], voxels: FloatArray) -> FloatArray:
    # Scattered points become a sheet of voxels with a displacement from each of them to its point.
    count, d = voxels.shape
    rows = -(-count // _SHEET_WIDTH)
    points = np.zeros((rows * _SHEET_WIDTH, d))
    points[:count] = voxels
    points[:, 0] -= np.tile(np.arange(_SHEET_WIDTH), rows)
    points[:, -1] -= np.repeat(np.arange(rows), _SHEET_WIDTH)
    sheet = (rows, *(1,) * (d - 2), _SHEET_WIDTH, d)
    jump = sitk.GetImageFromArray(points.reshape(sheet), isVector=True)
    size, mapping = jump.GetSize(), sitk.DisplacementFieldTransform(jump)
    columns = []
    for component in components:
        values = sitk.Resample(
            component,
            size,
            mapping,
            sitk.sitkBSpline,
            [0.0] * d,
            [1.0] * d,
            np.eye(d).ravel().tolist(),
            0.0,
            sitk.sitkFloat64,
        )
        columns.append(sitk.GetArrayFromImage(values).ravel()[:count])
    return np.stack(columns, axis=1)


# -- the delivered pair ---------------------------------------------------------------------------------


def pair_transforms(  # noqa: PLR0917
    phi: DisplacementField,
    phi_inverse: DisplacementField | None,
    study_to_fixed: ArrayLike,
    study_to_moving: ArrayLike,
    fixed_grid: Grid,
    moving_grid: Grid,
    *,
    spacing_mm: float | tuple[float, float, float] | None = None,
) -> tuple[SpatialTransform, SpatialTransform]:
    """Forward and inverse transform of a registered pair, between the original images.

    With phi: study -> study, fixed to moving, the pair is T = A_moving . phi . A_fixed^-1 (fixed to moving
    points) and its inverse. Each is split as T(x) = A (x + u(x)): forward has A = A_moving A_fixed^-1 and u
    on the fixed grid with x + u(x) = A_fixed phi(A_fixed^-1 x), so that u holds all that bends and none of a
    reflection; inverse the same with the images swapped, on the moving grid. phi is interpolated by cubic
    B-splines, and continues beyond the study grid with the displacement of its border (`border.py`). The
    inverse is solved for at each of its voxels.

    Args:
        phi: on the study grid, fixed to moving, without folds.
        phi_inverse: a guess of its inverse, where there is one; it decides no result, only how fast it is
            found.
        study_to_fixed: 4x4 from study LPS mm to LPS mm of the fixed image.
        study_to_moving: the same of the moving image.
        fixed_grid: of the fixed image.
        moving_grid: of the moving image.
        spacing_mm: of the delivered fields, at most; None for that of the images.

    Returns:
        forward on the fixed grid and inverse on the moving grid, or coarser ones with the same corners.
    """
    to_fixed, to_moving = np.asarray(study_to_fixed, dtype=float), np.asarray(study_to_moving, dtype=float)
    phi = continued_without_folds(phi)
    u = _in_voxels(phi)
    forward_grid = fixed_grid if spacing_mm is None else grid_between_corners(fixed_grid, spacing_mm)
    inverse_grid = moving_grid if spacing_mm is None else grid_between_corners(moving_grid, spacing_mm)

    spline = _Spline(u)

    def inverse_displacement(targets: FloatArray) -> FloatArray:
        found, _ = _solve(u, targets, _guess(targets, phi, phi_inverse))
        return _polished(u, spline, targets, found) - targets

    forward = _delivered(spline, phi.grid, to_fixed, forward_grid, to_moving)
    inverse = _delivered(inverse_displacement, phi.grid, to_moving, inverse_grid, to_fixed)
    return forward, inverse


def forward_transform(
    phi: DisplacementField, study_to_fixed: ArrayLike, study_to_moving: ArrayLike, fixed_grid: Grid
) -> SpatialTransform:
    """The forward transform of `pair_transforms` alone; here phi may fold inside the study grid."""
    phi = continued_without_folds(phi)
    to_fixed, to_moving = np.asarray(study_to_fixed, dtype=float), np.asarray(study_to_moving, dtype=float)
    return _delivered(_Spline(_in_voxels(phi)), phi.grid, to_fixed, fixed_grid, to_moving)


def _in_voxels(phi: DisplacementField) -> FloatArray:
    return np.ascontiguousarray(phi.displacement_voxels[..., : phi.grid.dimension], dtype=np.float64)


def _guess(targets: FloatArray, phi: DisplacementField, phi_inverse: DisplacementField | None) -> FloatArray:
    d = targets.shape[1]
    if phi_inverse is None:
        u = np.ascontiguousarray(phi.displacement_voxels[..., :d])
        return targets - interpolate(u, targets)[0]
    spread = np.zeros((len(targets), 3))
    spread[:, :d] = targets
    mm = phi_inverse.sampled(phi.grid.voxels_to_points(spread), extend=True)
    return targets + (mm @ phi.grid.lps_to_voxel[:3, :3].T)[:, :d]


def _polished(u: FloatArray, spline: _Spline, targets: FloatArray, found: FloatArray) -> FloatArray:
    """From the inverse of the linear interpolation to that of the spline: Newton steps where they help."""
    d = targets.shape[1]
    best = found.copy()
    residual = best + spline(best) - targets
    length = np.linalg.norm(residual, axis=1)
    for _ in range(2):
        active = np.flatnonzero(length > 1e-3)
        if active.size == 0:
            break
        p = best[active] - _solved(np.eye(d) + _slope(u, best[active]), residual[active])
        r = p + spline(p) - targets[active]
        now = np.linalg.norm(r, axis=1)
        better = now < length[active]
        improved = active[better]
        best[improved], residual[improved], length[improved] = p[better], r[better], now[better]
    return best


def _slope(u: FloatArray, voxels: FloatArray) -> FloatArray:
    """Derivative of u by the voxel coordinates, (n, d, d)."""
    slope = interpolate(u, voxels, derivative=True)[1]
    assert slope is not None
    return slope


def _delivered(
    displacement: Callable[[FloatArray], FloatArray],
    study_grid: Grid,
    study_to_here: FloatArray,
    grid: Grid,
    study_to_other: FloatArray,
) -> SpatialTransform:
    """A study displacement as the transform from `grid` to the other case.

    `displacement` takes points (n, d) and gives what they move by, both in study voxels; asked in
    chunks.
    """
    d = study_grid.dimension
    to_study = study_grid.lps_to_voxel @ np.linalg.inv(study_to_here) @ grid.voxel_to_lps
    to_here = (study_to_here @ study_grid.voxel_to_lps)[:3, :d]
    count = int(np.prod(grid.size))
    u = np.empty((count, 3), dtype=np.float32)
    for start in range(0, count, _SPLINE_CHUNK):
        stop = min(start + _SPLINE_CHUNK, count)
        points = apply_affine(to_study, _lattice(grid, start, stop))[:, :d]
        u[start:stop] = displacement(points) @ to_here.T
    field = DisplacementField(grid, u.reshape(*grid.shape, 3))
    return SpatialTransform(field, study_to_other @ np.linalg.inv(study_to_here))


# -- how well it closes ---------------------------------------------------------------------------------


def inverse_consistency_error(
    forward: SpatialTransform, inverse: SpatialTransform, fixed_grid: Grid, moving_grid: Grid
) -> dict[str, float]:
    """Length of inverse(forward(x)) - x over the fixed voxels x that forward takes into the moving grid.

    Returns:
        `mean_mm`, `max_mm`; `mean_voxels`, `max_voxels`: the same counted in voxels of the fixed grid;
        `share`: the part of the fixed voxels that was counted. Mean and maximum are NaN where no voxel lands
        there.
    """
    d = fixed_grid.dimension
    count = int(np.prod(fixed_grid.shape))
    total_mm = total_voxels = max_mm = max_voxels = 0.0
    used = 0
    for start in range(0, count, _CHUNK):
        x = fixed_grid.voxels_to_points(_lattice(fixed_grid, start, min(start + _CHUNK, count)))
        y = forward.transform_points(x)
        inside = moving_grid.contains(y)
        if not inside.any():
            continue
        error = inverse.transform_points(y[inside]) - x[inside]
        mm = np.linalg.norm(error, axis=1)
        voxels = np.linalg.norm((error @ fixed_grid.lps_to_voxel[:3, :3].T)[:, :d], axis=1)
        used += len(mm)
        total_mm, total_voxels = total_mm + float(mm.sum()), total_voxels + float(voxels.sum())
        max_mm, max_voxels = max(max_mm, float(mm.max())), max(max_voxels, float(voxels.max()))
    share = used / count
    if used == 0:
        total_mm = max_mm = total_voxels = max_voxels = float("nan")
    return {
        "mean_mm": total_mm / max(used, 1),
        "max_mm": max_mm,
        "mean_voxels": total_voxels / max(used, 1),
        "max_voxels": max_voxels,
        "share": share,
    }


def _lattice(grid: Grid, start: int, stop: int) -> FloatArray:
    """Voxel coordinates (n, 3), in order (i, j, k), of the voxels number `start` to `stop`."""
    k, j, i = np.unravel_index(np.arange(start, stop), grid.size[::-1])
    return np.stack([i, j, k], axis=1).astype(float)
