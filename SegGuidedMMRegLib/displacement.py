"""What a displacement field and a transform are: sampled, applied, handed to SimpleITK.

Every map goes from FIXED points to MOVING points (ITK's resampling direction, Slicer's TransformFromParent):
the moving image is looked up at T(x) for every voxel x of the fixed grid. A field is sampled linearly, as ITK
does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as attribute
from itertools import product

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from SegGuidedMMRegLib.sampling import Image, Interpolation, resample, thickened, to_sitk_affine
from SegGuidedMMRegLib.space import LARGEST_GRID, FloatArray, Grid, apply_affine

_CHUNK = 250_000


class FieldError(ValueError):
    """A field that cannot be used or inverted."""


@dataclass(frozen=True)
class DisplacementField:
    """u of the map x -> x + u(x).

    Attributes:
        grid: where u is sampled.
        displacement_lps_mm: shape (*grid.shape, 3), LPS mm.

    Raises:
        ValueError: where shape and grid do not fit, or a value is not finite.
    """

    grid: Grid
    displacement_lps_mm: NDArray[np.floating]

    def __post_init__(self) -> None:
        shape = (*self.grid.shape, 3)
        if tuple(self.displacement_lps_mm.shape) != shape:
            raise FieldError(
                f"A displacement of shape {shape} is needed, got {self.displacement_lps_mm.shape}."
            )
        if not np.isfinite(self.displacement_lps_mm).all():
            raise FieldError("A displacement field must be finite, this one holds NaN or infinite values.")

    @property
    def displacement_voxels(self) -> FloatArray:
        """u in voxels of the grid, shape (*grid.shape, 3), in order (i, j, k)."""
        return self.displacement_lps_mm @ self.grid.lps_to_voxel[:3, :3].T.astype(
            self.displacement_lps_mm.dtype
        )

    @property
    def out_of_plane_mm(self) -> float:
        """Largest displacement across the slice of a two-dimensional field; 0 in 3D."""
        if self.grid.dimension == 3:
            return 0.0
        return float(np.abs(self.displacement_lps_mm @ self.grid.direction_matrix[:, 2]).max())

    def sampled(self, points_lps_mm: ArrayLike, *, extend: bool = False) -> FloatArray:
        """u at points (..., 3) in LPS mm, linear between voxels, shape (..., 3).

        Outside the grid (half a voxel beyond the last centres, as in ITK) u is 0, or with `extend` that of
        the nearest point of the border. A two-dimensional field is the same at all distances from its plane.
        """
        points = np.asarray(points_lps_mm, dtype=float)
        flat = points.reshape(-1, 3)
        out = np.empty((len(flat), 3))
        for part in _parts(len(flat)):
            voxels = self.grid.points_to_voxels(flat[part])[:, : self.grid.dimension]
            out[part] = interpolate(self.displacement_lps_mm, voxels)[0]
            if not extend:
                out[part][~_inside(voxels, self.grid)] = 0
        return out.reshape(points.shape)

    def to_sitk_image(self) -> sitk.Image:
        """A three-dimensional vector image, float64; three equal slices in 2D.

        ITK takes a field of one slice for the identity beyond half a slice, hence three.
        """
        values = self.displacement_lps_mm.astype(np.float64)
        grid = self.grid
        if grid.dimension == 2:
            values = np.repeat(values[None], 3, axis=0)
            grid = thickened(grid, 3)
        image = sitk.GetImageFromArray(np.ascontiguousarray(values), isVector=True)
        image.SetSpacing(grid.spacing)
        image.SetOrigin(grid.origin)
        image.SetDirection(grid.direction)
        return image


@dataclass(frozen=True)
class SpatialTransform:
    """T(x) = affine(x + u(x)), from fixed to moving points, LPS mm; u is 0 outside its grid.

    Attributes:
        field: u, usually on the fixed grid. All that bends is here, so that folds are counted on u alone.
        affine_lps: 4x4, applied last; a mirrored pair has its reflection here.

    Raises:
        ValueError: for a matrix that is no invertible 4x4 affine one.
    """

    field: DisplacementField
    affine_lps: FloatArray = attribute(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        matrix = np.asarray(self.affine_lps, dtype=float)
        if (
            matrix.shape != (4, 4)
            or not np.isfinite(matrix).all()
            or not np.allclose(matrix[3], [0, 0, 0, 1])
        ):
            raise FieldError(f"An affine map needs a finite 4x4 matrix that ends in 0 0 0 1, got {matrix}.")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise FieldError(f"The affine part of a transform must be invertible, got {matrix}.")
        object.__setattr__(self, "affine_lps", matrix)

    def transform_points(self, points_lps_mm: ArrayLike) -> FloatArray:
        """Fixed points (..., 3) to moving points (..., 3), LPS mm."""
        points = np.asarray(points_lps_mm, dtype=float)
        return apply_affine(self.affine_lps, points + self.field.sampled(points))

    def to_sitk(self) -> sitk.CompositeTransform:
        """The same map as SimpleITK's composite [affine, displacement field]; the last is applied first."""
        bending = sitk.DisplacementFieldTransform(self.field.to_sitk_image())
        return sitk.CompositeTransform([to_sitk_affine(self.affine_lps), bending])

    def displacement_on(self, grid: Grid) -> DisplacementField:
        """The whole displacement T(x) - x at the voxels of `grid`."""
        points = grid.points()
        return DisplacementField(grid, (self.transform_points(points) - points).astype(np.float32))

    def warp_image(
        self,
        moving: Image,
        fixed_grid: Grid,
        interpolation: Interpolation = "linear",
        outside: float = 0.0,
    ) -> Image:
        """The moving image on the fixed grid; `outside` where T leads out of it."""
        return resample(moving, fixed_grid, self, interpolation=interpolation, outside=outside)

    def warp_labels(self, moving: Image, fixed_grid: Grid) -> Image:
        """The moving label map on the fixed grid, by nearest neighbour; 0 where T leads out of it."""
        return resample(moving, fixed_grid, self, interpolation="nearest")


def grid_between_corners(grid: Grid, spacing_mm: float | tuple[float, float, float]) -> Grid:
    """A grid of about the wanted spacing, at most, whose corner voxels are those of `grid`.

    So a coarser field needs no value beyond the border of the finer one.
    """
    wanted = np.broadcast_to(np.asarray(spacing_mm, dtype=float), (3,))
    if not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise FieldError(f"The spacing of a field must be above 0 mm, got {spacing_mm}.")
    length = (np.asarray(grid.size) - 1) * np.asarray(grid.spacing)
    steps = np.ceil(length / wanted - 1e-6).astype(int)
    i, j, k = (int(n) + 1 for n in steps)
    if i * j * k > LARGEST_GRID:
        raise FieldError(
            f"A field at a spacing of {spacing_mm} mm would have {i} x {j} x {k} nodes. Give a larger one."
        )
    spacing = np.where(steps > 0, length / np.maximum(steps, 1), grid.spacing)
    return Grid((i, j, k), tuple(spacing), grid.origin, grid.direction)


def field_from_study(displacement_voxels: ArrayLike, study_grid: Grid) -> DisplacementField:
    """A displacement as the networks give it, in physical units.

    Args:
        displacement_voxels: shape (d, *study_grid.shape), in voxels, channel c along array axis c.
        study_grid: any grid of that shape.
    """
    voxels = np.asarray(displacement_voxels)
    d = study_grid.dimension
    if voxels.shape != (d, *study_grid.shape):
        raise FieldError(f"A displacement of shape {(d, *study_grid.shape)} is needed, got {voxels.shape}.")
    along_ijk = np.moveaxis(voxels, 0, -1)[..., ::-1]
    matrix = study_grid.voxel_to_lps[:3, :d]
    return DisplacementField(study_grid, np.ascontiguousarray(along_ijk @ matrix.T.astype(voxels.dtype)))


def field_to_study(displacement: DisplacementField) -> NDArray[np.float32]:
    """The reverse of `field_from_study`: shape (d, *grid.shape), in voxels, channel c along array axis c."""
    voxels = displacement.displacement_voxels[..., : displacement.grid.dimension]
    return np.ascontiguousarray(np.moveaxis(voxels[..., ::-1], -1, 0), dtype=np.float32)


# -- interpolation --------------------------------------------------------------------------------------


def interpolate(
    values: NDArray[np.floating], voxels: FloatArray, *, derivative: bool = False
) -> tuple[FloatArray, FloatArray | None]:
    """Multilinear interpolation, with clamped coordinates beyond the border.

    Args:
        values: shape (*shape, c).
        voxels: shape (n, d), in order (i, j[, k]).
        derivative: whether the derivative is wanted too.

    Returns:
        values (n, c), and their derivative by the voxel coordinates (n, c, d) or None.
    """
    shape = values.shape[:-1]
    d = len(shape)
    last = np.asarray(shape[::-1]) - 1
    clamped = np.clip(voxels, 0, last)
    base = np.minimum(clamped.astype(np.int64), np.maximum(last - 1, 0))
    part = clamped - base
    strides = np.cumprod([1, *shape[::-1]])[:d]
    flat = values.reshape(-1, values.shape[-1])
    start = base @ strides
    # Corners [(k,) j, i, point, component]; one axis after the other is interpolated away, i first.
    steps = [int(np.minimum(corner[::-1], last) @ strides) for corner in product((0, 1), repeat=d)]
    corners = np.stack([flat[start + step] for step in steps]).reshape(*(2,) * d, len(start), -1)
    slopes: list[FloatArray] = []
    for axis in range(d):
        t = part[:, axis, None]
        if derivative:
            slopes = [_between(slope, t, d - 1 - axis) for slope in slopes]
            low, high = np.moveaxis(corners, d - 1 - axis, 0)
            slopes.append((high - low) * (voxels[:, axis] == clamped[:, axis])[:, None])
        corners = _between(corners, t, d - 1 - axis)
    return corners, np.stack(slopes, axis=-1) if derivative else None


def _between(pairs: FloatArray, t: FloatArray, axis: int) -> FloatArray:
    """Linear interpolation at `t` between the two entries of `axis`."""
    low, high = np.moveaxis(pairs, axis, 0)
    return low + t * (high - low)


def _inside(voxels: FloatArray, grid: Grid) -> NDArray[np.bool_]:
    """Whether ITK samples a field there: up to half a voxel beyond the outermost centres."""
    size = np.asarray(grid.size[: voxels.shape[-1]])
    return np.all((voxels >= -0.5) & (voxels <= size - 0.5), axis=-1)


def _parts(count: int) -> Iterator[slice]:
    """Slices that cut `count` points into chunks of bounded memory."""
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))
