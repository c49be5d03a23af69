"""Where nodes lie: grids of the library (LPS) beside matrices and parent transforms of MRML (RAS), in mm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike
from vtk.util.numpy_support import get_vtk_array_type, numpy_to_vtk, vtk_to_numpy

from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.Steps import Progress, Steps, slabs
from SegGuidedMMRegLib.space import LARGEST_GRID, LPS_TO_RAS, FloatArray, Grid, apply_affine

_FLIP = np.array([-1.0, -1.0, 1.0])
_SKEW = 1e-4
_SAMPLES_AN_AXIS = 40
_STEP_S = 0.02
_FEW = 256


def to_vtk(matrix: ArrayLike) -> Any:
    """A 4x4 array as vtkMatrix4x4."""
    found = vtk.vtkMatrix4x4()
    found.DeepCopy(np.asarray(matrix, dtype=float).ravel().tolist())
    return found


def from_vtk(matrix: Any) -> FloatArray:
    """A vtkMatrix4x4 as 4x4 array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def flipped(points: ArrayLike) -> FloatArray:
    """Points or vectors (..., 3) from LPS to RAS, or from RAS to LPS."""
    return np.asarray(points, dtype=float) * _FLIP


def voxel_to_ras(grid: Grid) -> FloatArray:
    """4x4 from voxel (i, j, k) to RAS mm."""
    return LPS_TO_RAS @ grid.voxel_to_lps


def grid_of_matrix(size: tuple[int, int, int], to_ras: FloatArray) -> Grid | None:
    """The grid with this 4x4 from voxel to RAS mm; None where its axes are not at right angles."""
    to_lps = LPS_TO_RAS @ to_ras
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    if not (np.isfinite(to_lps).all() and (spacing > 0).all()):
        return None
    direction = to_lps[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _SKEW:
        return None
    return Grid(size, tuple(spacing), tuple(to_lps[:3, 3]), tuple(direction.ravel()))


class Pace:
    """How many points a transform moves in a short step, learned on the way.

    Attributes:
        count: of points, for the next step.
    """

    def __init__(self) -> None:
        self.count = _FEW

    def learn(self, seconds: float) -> None:
        """`count` points took so long."""
        wanted = self.count * _STEP_S / max(seconds, 1e-6)
        self.count = int(min(max(wanted, 1), 4 * self.count, 1 << 20))


@dataclass(frozen=True)
class Way:
    """From the space under one parent transform to that under another; None is the world.

    Attributes:
        matrix_lps: 4x4 of LPS mm; None where it bends.
        transform: the same as vtkGeneralTransform, of RAS mm.
    """

    matrix_lps: FloatArray | None
    transform: Any

    @staticmethod
    def between(source: Any | None, target: Any | None) -> Way:
        """From under the transform node `source` to under `target`."""
        general, linear = vtk.vtkGeneralTransform(), vtk.vtkTransform()
        node = slicer.vtkMRMLTransformNode
        node.GetTransformBetweenNodes(source, target, general)
        if not node.IsGeneralTransformLinear(general, linear):
            return Way(None, general)
        return Way(LPS_TO_RAS @ from_vtk(linear.GetMatrix()) @ LPS_TO_RAS, general)

    def points(self, points_lps_mm: ArrayLike) -> FloatArray:
        """Points (..., 3), LPS mm."""
        points = np.asarray(points_lps_mm, dtype=float)
        if self.matrix_lps is not None:
            return apply_affine(self.matrix_lps, points)
        given, moved = vtk.vtkPoints(), vtk.vtkPoints()
        moved.SetDataTypeToDouble()
        given.SetData(numpy_to_vtk(np.ascontiguousarray(flipped(points).reshape(-1, 3)), deep=True))
        self.transform.TransformPoints(given, moved)
        return flipped(vtk_to_numpy(moved.GetData())).reshape(points.shape)

    def moving(self, points_lps_mm: FloatArray, pace: Pace) -> Steps[FloatArray]:
        """`points` of an array (n, 3) in short steps: there are transforms that take long for each point."""
        moved, start = np.empty_like(points_lps_mm), 0
        while start < len(moved):
            began, part = time.thread_time(), slice(start, start + pace.count)
            moved[part] = self.points(points_lps_mm[part])
            start += pace.count
            pace.learn(time.thread_time() - began)
            yield None
        return moved

    def whole_voxels(self, image: Grid, grid: Grid) -> tuple[int, int, int] | None:
        """Which voxel of `grid`, at the start of the way, is the first voxel of `image`, at its end.

        None unless every voxel of `image` is, to a thousandth, a voxel of that lattice.
        """
        if self.matrix_lps is None:
            return None
        onto = np.linalg.inv(self.matrix_lps @ grid.voxel_to_lps) @ image.voxel_to_lps
        offset = np.rint(onto[:3, 3])
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.asarray(image.size) - 1)
        apart = apply_affine(onto, corners.astype(float)) - (corners + offset)
        return tuple(int(n) for n in offset) if np.abs(apart).max() < 1e-3 else None  # type: ignore[return-value]


def finding_grid_around(grid: Grid, way: Way, name: str) -> Steps[Grid]:
    """A grid with the axes and spacing of `grid` that holds what becomes of its box on the `way`.

    Raises:
        BridgeError: naming `name`, where that is too large.
    """
    axes = [np.linspace(-0.5, n - 0.5, min(n + 1, _SAMPLES_AN_AXIS)) for n in grid.size]
    voxels = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=-1)
    reached = yield from way.moving(grid.voxels_to_points(voxels), Pace())
    moved = grid.points_to_voxels(reached)
    if not np.isfinite(moved).all():
        raise BridgeError(
            f"{name}: its parent transform leads nowhere. Check it, or take the volume out of it."
        )
    low, high = np.floor(moved.min(axis=0)), np.ceil(moved.max(axis=0))
    size = tuple(int(n) for n in high - low + 1)
    if np.prod(size, dtype=float) > LARGEST_GRID:
        raise BridgeError(
            f"{name}: its parent transform makes it {' x '.join(map(str, size))} voxels large. Check the "
            "transform, or crop the volume first (module Crop Volume)."
        )
    corner = tuple(float(c) for c in grid.voxels_to_points(low))
    return Grid(size, grid.spacing, corner, grid.direction)  # type: ignore[arg-type]


def _deaf(_part: memoryview) -> None:
    """Nobody wants to see what is copied."""


def filling(
    values: np.ndarray,
    kind: np.dtype[Any] | type,
    what: str,
    *,
    components: int = 1,
    hear: Callable[[memoryview], None] = _deaf,
) -> Steps[Any]:
    """Numbers as a VTK array, copied in short steps.

    Args:
        values: flat.
        kind: of the array.
        what: told of the progress.
        components: of a tuple of the array.
        hear: gets each part of what was copied.
    """
    found = vtk.vtkDataArray.CreateDataArray(get_vtk_array_type(np.dtype(kind)))
    found.UnRegister(None)
    found.SetNumberOfComponents(components)
    found.SetNumberOfTuples(values.size // components)
    copy = vtk_to_numpy(found).reshape(-1)
    for part in slabs(copy):
        copy[part] = values[part]
        hear(copy[part].data)
        yield Progress(what, part.stop, values.size)
    return found
