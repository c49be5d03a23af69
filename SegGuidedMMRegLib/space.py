"""Where voxels lie: `Grid`, and the three coordinate spaces of this library.

* **voxel** coordinates (i, j, k), floating point, voxel centres at integers, i fastest;
* **physical** coordinates in millimetres, LPS (ITK's; Slicer shows RAS, the first two components negated);
* **unit** coordinates, 0 at the centre of the first voxel of an axis and 1 at the centre of the last.

Every grid lives in three-dimensional physical space. A grid of one slice (`size[2] == 1`) is what this
library calls two-dimensional: its arrays are (j, i), its points still have three components. So a radiograph,
a single oblique slice and a volume go through the same code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating]
Vector = tuple[float, float, float]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""4x4 matrix between LPS and RAS, its own inverse."""

LARGEST_GRID = 512**3
"""Voxels of a study grid, nodes of a field at most; networks work on a few million."""

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def apply_affine(matrix: ArrayLike, points: ArrayLike) -> FloatArray:
    """Apply a 4x4 `matrix` to `points` of shape (..., 3), in whatever units the matrix maps between."""
    m = np.asarray(matrix, dtype=float)
    return np.asarray(points, dtype=float) @ m[:3, :3].T + m[:3, 3]


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in LPS millimetres.

    Attributes:
        size: number of voxels along i, j, k. `size[2] == 1` makes the grid two-dimensional.
        spacing: distance of voxel centres along i, j, k, in mm, positive.
        origin: LPS position of the centre of voxel (0, 0, 0), in mm.
        direction: 3x3 matrix, row by row, as in ITK: its columns are the unit directions of i, j, k in LPS.
            Left-handed ones are allowed.

    Raises:
        ValueError: for sizes below 1, spacings that are not positive, or a direction that is not orthonormal.
    """

    size: tuple[int, int, int]
    spacing: Vector = (1.0, 1.0, 1.0)
    origin: Vector = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = _IDENTITY

    def __post_init__(self) -> None:
        size = tuple(int(n) for n in self.size)
        spacing = tuple(float(s) for s in self.spacing)
        origin = tuple(float(o) for o in self.origin)
        direction = tuple(float(d) for d in np.asarray(self.direction, dtype=float).ravel())
        if len(size) != 3 or min(size) < 1:
            raise ValueError(f"A grid needs three sizes of at least 1, got {self.size}.")
        if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
            raise ValueError(f"A grid needs three spacings above 0 mm, got {self.spacing}.")
        if len(origin) != 3 or not all(np.isfinite(o) for o in origin):
            raise ValueError(f"A grid needs a finite origin of three components, got {self.origin}.")
        d = np.reshape(direction, (3, 3)) if len(direction) == 9 else np.zeros((3, 3))
        if not np.allclose(d.T @ d, np.eye(3), atol=1e-3):
            raise ValueError(
                f"The axes of a grid must be unit vectors at right angles, got direction {self.direction}."
            )
        for name, value in (
            ("size", size),
            ("spacing", spacing),
            ("origin", origin),
            ("direction", direction),
        ):
            object.__setattr__(self, name, value)

    # -- what it is -------------------------------------------------------------------------------------
    @property
    def dimension(self) -> int:
        """2 for a single slice, else 3."""
        return 2 if self.size[2] == 1 else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an array on this grid: (j, i) in 2D, (k, j, i) in 3D."""
        return self.size[::-1][-self.dimension :]

    @property
    def axis_spacing(self) -> tuple[float, ...]:
        """Spacing in mm in the order of the array axes: (j, i) in 2D, (k, j, i) in 3D."""
        return self.spacing[::-1][-self.dimension :]

    @property
    def direction_matrix(self) -> FloatArray:
        """3x3; columns are the LPS directions of i, j, k."""
        return np.reshape(self.direction, (3, 3))

    @property
    def voxel_to_lps(self) -> FloatArray:
        """4x4 matrix from voxel (i, j, k) to physical LPS mm."""
        m = np.eye(4)
        m[:3, :3] = self.direction_matrix * np.asarray(self.spacing)
        m[:3, 3] = self.origin
        return m

    @property
    def lps_to_voxel(self) -> FloatArray:
        """4x4 matrix from physical LPS mm to voxel (i, j, k)."""
        return np.linalg.inv(self.voxel_to_lps)

    @property
    def extent_mm(self) -> Vector:
        """Length of the sides of the box of all voxels, along i, j, k."""
        return tuple(n * s for n, s in zip(self.size, self.spacing, strict=True))  # type: ignore[return-value]

    @property
    def centre_lps_mm(self) -> FloatArray:
        """Physical centre of the box."""
        return self.voxels_to_points((np.asarray(self.size) - 1) / 2)

    # -- between the spaces -----------------------------------------------------------------------------
    def voxels_to_points(self, voxels: ArrayLike) -> FloatArray:
        """Voxel coordinates (..., 3) in order (i, j, k) to LPS mm (..., 3)."""
        return apply_affine(self.voxel_to_lps, voxels)

    def points_to_voxels(self, points_lps_mm: ArrayLike) -> FloatArray:
        """LPS mm (..., 3) to voxel coordinates (..., 3) in order (i, j, k)."""
        return apply_affine(self.lps_to_voxel, points_lps_mm)

    def voxels_to_unit(self, voxels: ArrayLike) -> FloatArray:
        """Voxel coordinates (..., 3) to unit coordinates; an axis of one voxel gives 0."""
        return np.asarray(voxels, dtype=float) / np.maximum(np.asarray(self.size) - 1, 1)

    def unit_to_voxels(self, unit: ArrayLike) -> FloatArray:
        """Unit coordinates (..., 3) to voxel coordinates; an axis of one voxel gives 0."""
        return np.asarray(unit, dtype=float) * (np.asarray(self.size) - 1)

    def points(self) -> FloatArray:
        """LPS mm of every voxel centre, shape (*self.shape, 3)."""
        axes = [np.arange(n, dtype=float) for n in self.size]
        k, j, i = np.meshgrid(*axes[::-1], indexing="ij")
        return self.voxels_to_points(np.stack([i, j, k], axis=-1)).reshape(*self.shape, 3)

    def contains(self, points_lps_mm: ArrayLike, margin_voxels: float = 0.0) -> NDArray[np.bool_]:
        """Which points (..., 3) lie between the first and last voxel centres, `margin_voxels` inside.

        Across the slice of a two-dimensional grid half a slice thickness is allowed.
        """
        voxels = self.points_to_voxels(points_lps_mm)
        last = np.asarray(self.size) - 1.0
        low, high = np.full(3, margin_voxels), last - margin_voxels
        if self.dimension == 2:
            low[2], high[2] = -0.5, 0.5
        tolerance = 1e-6
        return np.all((voxels >= low - tolerance) & (voxels <= high + tolerance), axis=-1)

    # -- relatives --------------------------------------------------------------------------------------
    def resized(self, size: tuple[int, int, int]) -> Grid:
        """The same box of space cut into `size` voxels."""
        spacing = np.asarray(self.extent_mm) / np.asarray(size)
        origin = self.voxels_to_points((spacing / np.asarray(self.spacing) - 1) / 2)
        return replace(self, size=size, spacing=tuple(spacing), origin=tuple(origin))

    def with_spacing(self, spacing: ArrayLike) -> Grid:
        """About the same box of space at `spacing` mm (one number or three); the centre stays where it is.

        A two-dimensional grid stays one slice of unchanged thickness.
        """
        wanted = np.broadcast_to(np.asarray(spacing, dtype=float), (3,)).copy()
        if self.dimension == 2:
            wanted[2] = self.spacing[2]
        size = np.maximum(np.ceil(np.asarray(self.extent_mm) / wanted - 1e-6), 1).astype(int)
        if self.dimension == 3:
            size[2] = max(size[2], 2)
        corner = self.centre_lps_mm - self.direction_matrix @ ((size - 1) / 2 * wanted)
        return replace(self, size=tuple(size), spacing=tuple(wanted), origin=tuple(corner))

    def padded(self, voxels: int) -> Grid:
        """`voxels` more on each side (in the plane only, in 2D); the old voxel centres stay in place."""
        pad = np.array([voxels, voxels, voxels if self.dimension == 3 else 0])
        size = np.asarray(self.size) + 2 * pad
        return replace(self, size=tuple(size), origin=tuple(self.voxels_to_points(-pad)))

    def is_close(self, other: Grid, tolerance_voxels: float = 1e-3) -> bool:
        """Whether both have the same size and corner voxels that coincide within a fraction of a voxel."""
        if self.size != other.size:
            return False
        corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (
            np.asarray(self.size) - 1
        )
        apart = self.points_to_voxels(other.voxels_to_points(corners)) - corners
        return bool(np.abs(apart).max() <= tolerance_voxels)

    @staticmethod
    def centred(size: tuple[int, int, int], spacing: Vector) -> Grid:
        """An axis-parallel grid whose centre is the physical origin: the form of every study grid."""
        origin = tuple(-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True))
        return Grid(size=size, spacing=spacing, origin=origin)  # type: ignore[arg-type]
