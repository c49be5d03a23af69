"""`Image`, an array on a grid, and how it gets onto another grid and another scale of intensities.

Images may be oblique, anisotropic or left-handed; nothing here assumes axis-parallel voxels. Two-dimensional
images are single slices in three-dimensional space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from SegGuidedMMRegLib.image_files import ImageError
from SegGuidedMMRegLib.space import Grid

if TYPE_CHECKING:
    from SegGuidedMMRegLib.fields import SpatialTransform

Interpolation = Literal["linear", "nearest", "bspline"]

_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}
_SPLINE_SLICES = 5


@dataclass(frozen=True)
class Image:
    """Values on a grid.

    Attributes:
        array: shape `grid.shape`, (j, i) in 2D and (k, j, i) in 3D, scalar.
        grid: where the voxels lie, LPS mm.

    Raises:
        ValueError: where array and grid do not fit.
    """

    array: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.grid.shape:
            raise ValueError(f"Array shape {self.array.shape} does not fit the grid's {self.grid.shape}.")

    @staticmethod
    def from_array(
        array: ArrayLike, spacing_mm: float | Sequence[float], origin_lps_mm: Sequence[float] = (0, 0, 0)
    ) -> Image:
        """An axis-parallel image; for any other give a `Grid`.

        Args:
            array: (j, i) or (k, j, i).
            spacing_mm: one number, or one an axis, i (x) first.
            origin_lps_mm: of the centre of the first voxel, x first.

        Raises:
            ValueError: for another number of axes, spacings or coordinates.
        """
        values = np.asarray(array)
        if values.ndim not in (2, 3):
            raise ValueError(f"An image has two or three axes, this array has {values.ndim}.")
        spacing = [spacing_mm] * values.ndim if isinstance(spacing_mm, (int, float)) else [*spacing_mm]
        if len(spacing) != values.ndim:
            raise ValueError(f"One spacing, or one an axis, is needed: got {spacing} for {values.ndim} axes.")
        i, j, k = [*values.shape[::-1], 1][:3]
        x, y, z = [*spacing, 1.0][:3]
        left, back, up = [*origin_lps_mm, 0.0][:3]
        return Image(values, Grid((i, j, k), (x, y, z), (left, back, up)))

    def to_sitk(self) -> sitk.Image:
        """A three-dimensional SimpleITK image; one slice in 2D."""
        array = self.array.astype(np.uint8) if self.array.dtype == np.bool_ else self.array
        image = sitk.GetImageFromArray(np.ascontiguousarray(array).reshape(self.grid.size[::-1]))
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(self.grid.direction)
        return image

    @staticmethod
    def from_sitk(image: sitk.Image) -> Image:
        """From a scalar image of two or three dimensions.

        A two-dimensional one is embedded at z = 0 with a slice thickness of 1 mm; where i or j of a volume
        has one voxel only, the axes are permuted so that this one becomes k. Physical space is unchanged.

        Raises:
            ImageError: for other dimensions, several values a voxel, or a line of voxels.
        """
        if image.GetDimension() not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
            raise ImageError(
                f"A scalar image of two or three dimensions is needed, got {image.GetDimension()} dimensions "
                f"and {image.GetNumberOfComponentsPerPixel()} values a voxel."
            )
        if image.GetDimension() == 2:
            image = sitk.JoinSeries(image, 0.0, 1.0)
        image = _with_singleton_last(image)
        grid = grid_of(image)
        return Image(sitk.GetArrayFromImage(image).reshape(grid.shape), grid)


def grid_of(image: sitk.Image) -> Grid:
    """The grid of a three-dimensional SimpleITK image."""
    return Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _with_singleton_last(image: sitk.Image) -> sitk.Image:
    size = image.GetSize()
    if sum(n == 1 for n in size) > 1:
        raise ImageError(f"An image needs at least two axes of more than one voxel, got {size}.")
    if size[0] == 1:
        return sitk.PermuteAxes(image, [1, 2, 0])
    if size[1] == 1:
        return sitk.PermuteAxes(image, [0, 2, 1])
    return image


# -- resampling -----------------------------------------------------------------------------------------


def to_sitk_affine(matrix: ArrayLike) -> sitk.AffineTransform:
    """A 4x4 matrix between LPS mm and LPS mm as a SimpleITK transform."""
    m = np.asarray(matrix, dtype=float)
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(m[:3, :3].ravel().tolist())
    affine.SetTranslation(m[:3, 3].tolist())
    return affine


def resample(
    image: Image,
    grid: Grid,
    transform: NDArray[Any] | SpatialTransform | None = None,
    *,
    interpolation: Interpolation = "linear",
    outside: float = 0.0,
) -> Image:
    """The image on another grid.

    Args:
        image: what is looked up.
        grid: where values are wanted.
        transform: maps points of `grid` to points of `image`, LPS mm: a 4x4 matrix, a `SpatialTransform`, or
            None for the same space.
        interpolation: "nearest" keeps the type of the values; the others give float32.
        outside: value where the image does not reach.
    """
    if transform is None:
        mapping: sitk.Transform = sitk.AffineTransform(3)
    elif isinstance(transform, np.ndarray):
        mapping = to_sitk_affine(transform)
    else:
        mapping = transform.to_sitk()
    source = image.to_sitk()
    if interpolation == "bspline" and image.grid.dimension == 2:
        source = _thick_image(image)
    pixel = source.GetPixelID() if interpolation == "nearest" else sitk.sitkFloat32
    out = sitk.Resample(
        source,
        list(grid.size),
        mapping,
        _INTERPOLATORS[interpolation],
        list(grid.origin),
        list(grid.spacing),
        list(grid.direction),
        float(outside),
        pixel,
    )
    return Image(sitk.GetArrayFromImage(out).reshape(grid.shape), grid)


def value_outside(image: Image) -> float:
    """What a warped image holds where `image` does not reach: 0, or its least value if below (air in CT)."""
    return min(0.0, float(image.array.min()))


def thickened(grid: Grid, slices: int) -> Grid:
    """A two-dimensional grid with an odd number of slices; the middle one lies where the only one was."""
    x, y, z = grid.voxels_to_points([0, 0, -(slices // 2)])
    return Grid((*grid.size[:2], slices), grid.spacing, (float(x), float(y), float(z)), grid.direction)


def _thick_image(image: Image) -> sitk.Image:
    """A slice repeated to both sides, since splines need several slices."""
    repeated = np.repeat(image.array[None], _SPLINE_SLICES, axis=0)
    return Image(repeated, thickened(image.grid, _SPLINE_SLICES)).to_sitk()


def smooth_for_grid(image: Image, grid: Grid, matrix: ArrayLike | None = None) -> Image:
    """Smooth an image so that `resample` onto a coarser grid does not alias.

    Each axis gets a Gaussian of σ = ½ √(f² − 1) voxels, where f is how many of its voxels one step of `grid`
    spans; axes that are not shrunk stay as they are.

    Args:
        image: to be smoothed.
        grid: where it will be sampled.
        matrix: 4x4 from LPS mm of `grid` to LPS mm of `image`; None for the same space.
    """
    linear = np.eye(3) if matrix is None else np.asarray(matrix, dtype=float)[:3, :3]
    steps = image.grid.lps_to_voxel[:3, :3] @ linear @ grid.voxel_to_lps[:3, :3]
    used = slice(0, grid.dimension)
    factor = np.abs(steps[:, used]).max(axis=1)
    sigma = 0.5 * np.sqrt(np.maximum(factor**2 - 1, 0))
    source = sitk.Cast(image.to_sitk(), sitk.sitkFloat32)
    for axis in range(image.grid.dimension):
        if sigma[axis] > 0.1:
            variance = [0.0, 0.0, 0.0]
            variance[axis] = float(sigma[axis] ** 2)
            width = 2 * int(np.ceil(4 * sigma[axis])) + 1
            source = sitk.DiscreteGaussian(source, variance, width, 0.005, False)
    return Image(sitk.GetArrayFromImage(source).reshape(image.grid.shape), image.grid)


# -- intensities ----------------------------------------------------------------------------------------


def normalise_intensity(array: NDArray[Any]) -> NDArray[np.float32]:
    """Clip to the 0.5 and 99.5 percentiles of the finite values and scale to [0, 1]; others become 0.

    Raises:
        ImageError: where no value is finite or all are equal.
    """
    values = np.asarray(array, dtype=np.float32)
    finite = np.isfinite(values)
    known = values if finite.all() else values[finite]
    if known.size == 0 or known.min() == known.max():
        raise ImageError("The image is constant, its intensities cannot be normalised. Leave it out.")
    low, high = np.percentile(known, [0.5, 99.5])
    if high <= low:  # less than 1 % of the image differs from the rest
        low, high = known.min(), known.max()
    scaled = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.where(finite, scaled, 0.0).astype(np.float32)


def normalised_study_image(image: Image, grid: Grid, study_to_case: ArrayLike) -> NDArray[np.float32]:
    """The image in study space, as the networks see it.

    Normalised by its own percentiles, smoothed where it is shrunk, interpolated linearly; 0 outside the
    image.

    Args:
        image: in its own space.
        grid: the study grid.
        study_to_case: 4x4 from study LPS mm to the image's LPS mm.

    Returns:
        shape `grid.shape`, values in [0, 1].
    """
    matrix = np.asarray(study_to_case, dtype=float)
    smooth = smooth_for_grid(Image(normalise_intensity(image.array), image.grid), grid, matrix)
    return np.clip(resample(smooth, grid, matrix).array, 0.0, 1.0).astype(np.float32)
