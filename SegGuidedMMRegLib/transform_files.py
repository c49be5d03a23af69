"""Transforms as files that SimpleITK and 3D Slicer read alike.

Every file maps fixed points to moving points, LPS mm (ITK's resampling direction, Slicer's "from parent"):

* `.h5`, `.tfm`, `.txt`: ITK's composite [affine, displacement field];
* `.nrrd`, `.nii.gz`, `.nii`, `.mha`: the whole displacement T(x) - x as a float32 image of three components;
outside
  it is not defined, so the `.h5` is the one to keep.

Two-dimensional fields are written as three equal slices, since one slice is nothing to ITK half a slice
beside it.
"""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SegGuidedMMRegLib.displacement import (
    DisplacementField,
    SpatialTransform,
    grid_between_corners,
)
from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.hdf5_times import forget_times
from SegGuidedMMRegLib.image_files import ImageError, read_vector, require_whole
from SegGuidedMMRegLib.sampling import grid_of
from SegGuidedMMRegLib.space import FloatArray, Grid
from SegGuidedMMRegLib.transform_headers import TransformFileError, cannot_be_read, check_transform_file

COMPOSITE_SUFFIXES = (".h5", ".tfm", ".txt")
FIELD_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")
_TYPE_KEY = "displacement field type"


def write_transform(
    transform: SpatialTransform,
    path: Path | str,
    *,
    spacing_mm: float | tuple[float, float, float] | None = None,
    reference: Grid | None = None,
) -> None:
    """Write a transform, whole or not at all; the suffix names the format.

    Args:
        transform: from fixed to moving points.
        path: ends in one of `COMPOSITE_SUFFIXES` or `FIELD_SUFFIXES`.
        spacing_mm: of the field in the file, where it shall be coarser than the transform's. The corners
            stay where they are, and the spacing is the next smaller one that divides the sides.
        reference: grid of the field in the file, instead of the transform's.

    Raises:
        TransformFileError: for another suffix.
    """
    path = Path(path)
    suffix = _suffix(path)
    grid = reference or transform.field.grid
    if spacing_mm is not None:
        grid = grid_between_corners(grid, spacing_mm)
    # A full disk makes ITK's HDF5 library crash at exit: look before.
    room = 24 * int(np.prod(grid.size)) if suffix == ".h5" else 0
    with atomic_path(path, room=room) as temporary:
        if suffix in COMPOSITE_SUFFIXES:
            sitk.WriteTransform(_resampled(transform, grid).to_sitk(), str(temporary))
            _require_end(temporary)
            if suffix == ".h5":
                forget_times(temporary)
        else:
            image = sitk.Cast(_whole_displacement(transform, grid).to_sitk_image(), sitk.sitkVectorFloat32)
            if suffix == ".nrrd":
                image.SetMetaData(_TYPE_KEY, "resampling")
            sitk.WriteImage(image, str(temporary), useCompression=True)
            require_whole(temporary, image)


def _require_end(path: Path) -> None:
    """Check that a transform as text has its last line: its writer says nothing when the disk is full."""
    if path.suffix == ".h5":
        return
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        end = file.read()
    if not end.endswith(b"\n") or not end.rstrip(b"\n").rpartition(b"\n")[2].startswith(b"FixedParameters:"):
        raise OSError(errno.ENOSPC, "the end of the file is missing")


def read_transform(path: Path | str, *, reference: Grid | None = None) -> SpatialTransform:
    """Read a transform that this library, SimpleITK or 3D Slicer wrote.

    Args:
        path: ends in one of `COMPOSITE_SUFFIXES` or `FIELD_SUFFIXES`.
        reference: the fixed grid; needed only where the file chains several fields or splines, which are then
            sampled on it.

    Raises:
        TransformFileError: naming the file, for what is missing, unreadable, two-dimensional, or maps the
            other way.
    """
    path = Path(path)
    suffix = _suffix(path)
    try:
        if suffix in COMPOSITE_SUFFIXES:
            return _from_sitk(_read_sitk(path), path, reference)
        return SpatialTransform(_read_field(path))
    except TransformFileError:
        raise
    except ImageError as error:
        raise TransformFileError(str(error)) from None
    except (ValueError, RuntimeError) as error:
        raise TransformFileError(f"{path}: holds no usable transform: {error}") from None


def _suffix(path: Path) -> str:
    known = (*COMPOSITE_SUFFIXES, *FIELD_SUFFIXES)
    for suffix in known:
        if path.name.lower().endswith(suffix):
            return suffix
    raise TransformFileError(f"{path}: a transform ends in one of {', '.join(known)}.")


# -- writing --------------------------------------------------------------------------------------------


def _resampled(transform: SpatialTransform, grid: Grid) -> SpatialTransform:
    field = transform.field
    if grid is field.grid:
        return transform
    values = field.sampled(grid.points(), extend=True).astype(np.float32)
    return SpatialTransform(DisplacementField(grid, values), transform.affine_lps)


def _whole_displacement(transform: SpatialTransform, grid: Grid) -> DisplacementField:
    """T(x) - x, with u going on beyond its grid, so that a border of coarser voxels is right too."""
    return _resampled(transform, grid).displacement_on(grid)


# -- reading --------------------------------------------------------------------------------------------


def _read_sitk(path: Path) -> sitk.Transform:
    check_transform_file(path)
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        if "Inverse" in str(error):
            raise TransformFileError(
                f"{path}: holds an inverse field, which only 3D Slicer can read. In Slicer invert the "
                "transform node and save it again, or convert it to a grid transform."
            ) from None
        raise cannot_be_read(path) from None
    if transform.GetDimension() != 3:
        raise TransformFileError(
            f"{path}: holds a transform of {transform.GetDimension()} dimensions. Write it in three: "
            "one slice, and displacements with z = 0."
        )
    return transform


def _flattened(transform: sitk.Transform) -> list[sitk.Transform]:
    """Single transforms in the order in which they are applied."""
    if transform.GetTransformEnum() != sitk.sitkComposite:
        return [transform.Downcast()]
    chain = sitk.CompositeTransform(transform)
    parts = [chain.GetNthTransform(n) for n in range(chain.GetNumberOfTransforms())]
    return [single for part in reversed(parts) for single in _flattened(part)]


def _from_sitk(transform: sitk.Transform, path: Path, reference: Grid | None) -> SpatialTransform:
    parts = _flattened(transform)
    bent = [n for n, part in enumerate(parts) if not part.IsLinear()]
    if not bent:
        return SpatialTransform(_no_displacement(reference), _matrix(parts))
    first = parts[bent[0]]
    one_field = len(bent) == 1 and first.GetTransformEnum() == sitk.sitkDisplacementField
    if one_field and np.allclose(_matrix(parts[: bent[0]]), np.eye(4), atol=1e-9):
        field = _field(sitk.DisplacementFieldTransform(first).GetDisplacementField())
        return SpatialTransform(field, _matrix(parts[bent[0] + 1 :]))
    if reference is None:
        raise TransformFileError(
            f"{path}: chains {len(parts)} transforms that are not [affine, one field]. Give the "
            "fixed image, on whose grid it can be sampled."
        )
    points = reference.points()
    moved = np.array([transform.TransformPoint(p) for p in points.reshape(-1, 3).tolist()])
    values = (moved.reshape(points.shape) - points).astype(np.float32)
    return SpatialTransform(DisplacementField(reference, values))


def _matrix(parts: list[sitk.Transform]) -> FloatArray:
    """4x4 of linear transforms, applied one after the other."""
    matrix = np.eye(4)
    corners = np.vstack([np.zeros(3), np.eye(3)])
    for part in parts:
        moved = np.array([part.TransformPoint(c) for c in corners.tolist()])
        step = np.eye(4)
        step[:3, 3] = moved[0]
        step[:3, :3] = (moved[1:] - moved[0]).T
        matrix = step @ matrix
    return matrix


def _no_displacement(reference: Grid | None) -> DisplacementField:
    grid = reference or Grid((2, 2, 2))
    return DisplacementField(grid, np.zeros((*grid.shape, 3), dtype=np.float32))


def _field(image: sitk.Image) -> DisplacementField:
    """A vector image as a field; three equal slices are the one that was written."""
    grid = grid_of(image)
    values = sitk.GetArrayFromImage(image)
    if grid.size[2] == 3 and (values == values[1]).all():
        x, y, z = grid.voxels_to_points([0, 0, 1])
        grid = Grid((*grid.size[:2], 1), grid.spacing, (float(x), float(y), float(z)), grid.direction)
        values = values[1]
    return DisplacementField(grid, values.reshape(*grid.shape, 3).astype(np.float32))


def _read_field(path: Path) -> DisplacementField:
    image = read_vector(path)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise TransformFileError(
            f"{path}: a displacement field has three components in three dimensions, this image has "
            f"{image.GetNumberOfComponentsPerPixel()} in {image.GetDimension()}. Give a transform file."
        )
    kind = image.GetMetaData(_TYPE_KEY) if image.HasMetaDataKey(_TYPE_KEY) else "resampling"
    if kind.strip() != "resampling":
        raise TransformFileError(
            f"{path}: holds a {kind.strip()} field, which maps moving to fixed points. In 3D Slicer "
            "invert the transform node and save it again as .h5."
        )
    return _field(image)
