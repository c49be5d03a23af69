"""Images at a lower resolution; first and last voxel centres stay in place, as in `resize_field`."""

from __future__ import annotations

from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth, resize

_SMALLEST = 16


def shrunk_shape(shape: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """`shape` divided by `factor`, but no axis below 16 voxels unless it was smaller before."""
    return tuple(min(n, max(_SMALLEST, round(n / factor))) for n in shape)


def shrink(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`image` [N, C, *] smoothed by what it is shrunk, at `shape` voxels."""
    factors = [old / new for old, new in zip(image.shape[2:], shape, strict=True)]
    sigma = tuple(0.5 * max(f * f - 1, 0) ** 0.5 for f in factors)
    return resize(gaussian_smooth(image, sigma), shape)
