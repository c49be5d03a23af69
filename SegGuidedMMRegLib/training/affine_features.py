"""What pictures are compared by when nothing is trained yet, and how they are seen through an affine map.

`intensity` is the smoothed image with its local mean and contrast divided out: blind to exposure and bias
fields. `edges` is the traceless tensor of the normalised gradient (normalised gradient fields, Haber and
Modersitzki 2006): blind to contrast, also to its reversal. `both` are the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from SegGuidedMMRegLib.space import FloatArray, Grid

FeatureKind = Literal["intensity", "edges", "both"]
Array = NDArray[np.floating]

_EDGE_WEIGHT = 2.0


@dataclass(frozen=True)
class Picture:
    """An image in the frame of a registration: finite values and where they hold, both of `grid.shape`."""

    array: Array
    valid: NDArray[np.bool_]
    grid: Grid


@dataclass(frozen=True)
class Features:
    """Features of a picture on a grid: values [C, *shape], zero where `weight` [*shape] (0 or 1) is."""

    values: Array
    weight: Array
    grid: Grid


def features_at(picture: Picture, kind: FeatureKind, size: int) -> Features:
    """Features of a picture on its own box, about `size` voxels long, never finer than it is."""
    d = picture.grid.dimension
    spacing = max(picture.grid.extent_mm[:d]) / size
    grid = picture.grid.with_spacing(max(spacing, min(picture.grid.spacing[:d])))
    return features_through(picture, np.eye(4), grid, kind)


def features_through(picture: Picture, matrix: FloatArray, grid: Grid, kind: FeatureKind) -> Features:
    """Features of the picture seen on `grid`; `matrix` (4x4) takes points of `grid` to the picture's."""
    inside = resample_values(picture.valid.astype(np.float32), picture.grid, matrix, grid) > 0.99
    hard = inside.astype(np.float32)
    image = resample_values(picture.array, picture.grid, matrix, grid)
    near = _blur(hard, 1.0)
    image = _blur(image * hard, 1.0) / np.maximum(near, np.float32(1e-3))
    weight = (hard * (near > 0.95)).astype(np.float32)
    parts = []
    if kind != "edges":
        parts.append(_intensity(image, hard))
    if kind != "intensity":
        parts.append(_edges(image, weight) * _EDGE_WEIGHT)
    return Features(np.concatenate(parts) * weight, weight, grid)


def _intensity(image: Array, weight: Array) -> Array:
    """(image - local mean) / local contrast, [1, *shape]; the window is a twelfth of the picture."""
    sigma = max(image.shape) / 12
    share = np.maximum(_blur(weight, sigma), 1e-3)
    mean = _blur(image * weight, sigma) / share
    variance = np.maximum(_blur((image - mean) ** 2 * weight, sigma) / share, 0)
    floor = 0.1 * float((variance * weight).sum() / max(weight.sum(), 1)) + 1e-8
    return ((image - mean) / np.sqrt(variance + floor))[None].astype(np.float32)


def _edges(image: Array, weight: Array) -> Array:
    """Traceless tensor n n^T - |n|^2 / d of the normalised gradient n, [2 or 5, *shape]."""
    d = image.ndim
    gradient = np.stack(list(np.gradient(image))) * weight
    squared = (gradient**2).sum(0)
    eta = float((squared * weight).sum() / max(weight.sum(), 1)) + 1e-12
    n = gradient / np.sqrt(squared + eta)
    if d == 2:
        return np.stack([n[0] ** 2 - n[1] ** 2, 2 * n[0] * n[1]]).astype(np.float32)
    root = np.sqrt(3.0)
    return np.stack(
        [
            n[0] ** 2 - n[1] ** 2,
            (2 * n[2] ** 2 - n[0] ** 2 - n[1] ** 2) / root,
            2 * n[0] * n[1],
            2 * n[0] * n[2],
            2 * n[1] * n[2],
        ]
    ).astype(np.float32)


def _blur(array: Array, sigma: float) -> Array:
    """Gaussian of `sigma` voxels along every axis, with zeros outside.

    Shifted sums and no matrix product: the threads of a BLAS cost more than they bring at this size.
    """
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    kernel = (kernel / (kernel[0] + 2 * kernel[1:].sum())).astype(np.float32)
    for axis in range(array.ndim):
        along = np.moveaxis(array, axis, 0)
        total = kernel[0] * along
        for step in range(1, min(reach, len(along) - 1) + 1):
            total[step:] += kernel[step] * along[:-step]
            total[:-step] += kernel[step] * along[step:]
        array = np.moveaxis(total, 0, axis)
    return np.ascontiguousarray(array)


def shrink(picture: Picture, spacing: float) -> Picture:
    """Average over whole blocks, to voxels of about `spacing` mm; at least 8 voxels a side."""
    d = picture.grid.dimension
    factors = [
        int(np.clip(round(spacing / s), 1, max(1, n // 8)))
        for s, n in zip(picture.grid.spacing[:d], picture.grid.size[:d], strict=True)
    ]
    if max(factors) == 1:
        return picture
    cut = tuple(slice(0, n - n % f) for n, f in zip(picture.array.shape, factors[::-1], strict=True))
    weight = _block_mean(picture.valid[cut].astype(np.float32), factors[::-1])
    values = _block_mean((picture.array * picture.valid)[cut], factors[::-1]) / np.maximum(weight, 1e-3)
    step = np.array([*factors, *[1] * (3 - d)])
    size = tuple(n // f for n, f in zip(picture.grid.size, step, strict=True))
    grid = replace(
        picture.grid,
        size=size,
        spacing=tuple(np.asarray(picture.grid.spacing) * step),
        origin=tuple(picture.grid.voxels_to_points((step - 1) / 2)),
    )
    return Picture(values, weight > 0.5, grid)


def _block_mean(array: Array, factors: list[int]) -> Array:
    shape = [part for n, f in zip(array.shape, factors, strict=True) for part in (n // f, f)]
    return array.reshape(shape).mean(axis=tuple(range(1, 2 * array.ndim, 2))).astype(np.float32)


def resample_values(array: Array, grid: Grid, matrix: FloatArray, onto: Grid) -> Array:
    """Linear, zero outside; `matrix` takes points of `onto` to those of `grid`, in 2D in planes z = 0."""
    d = onto.dimension
    index = grid.lps_to_voxel @ matrix @ onto.voxel_to_lps
    image = sitk.GetImageFromArray(array)
    transform = sitk.AffineTransform(d)
    transform.SetMatrix(index[:d, :d].ravel().tolist())
    transform.SetTranslation(index[:d, 3].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(onto.size[:d])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetNumberOfThreads(1)
    return sitk.GetArrayFromImage(resampler.Execute(image))


def resample_picture(picture: Picture, matrix: FloatArray, onto: Grid) -> Picture:
    """The picture seen on another grid; `matrix` takes points of `onto` to points of the picture."""
    valid = resample_values(picture.valid.astype(np.float32), picture.grid, matrix, onto)
    values = resample_values(picture.array * picture.valid, picture.grid, matrix, onto)
    return Picture(values / np.maximum(valid, 1e-3), valid > 0.5, onto)
