"""Differentiable maps on the study grid, in torch: warp, compose, exponentiate, and look for folds.

A displacement u has shape [N, d, *shape] and is measured in voxels; channel c runs along array axis c. It
stands for the map φ(p) = p + u(p), from points of the fixed image to points of the moving image, so that
`warp(moving, u)` lies on the fixed image. A stationary velocity field has the same shape; its exponential is
a displacement that does not fold as long as the grid resolves it, and the exponential of its negative is the
inverse.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_INTERPOLATE = {2: "bilinear", 3: "trilinear"}


def identity_voxels(shape: tuple[int, ...], device: torch.device | str | None = None) -> Tensor:
    """Voxel coordinates of every voxel, [1, d, *shape]; channel c is the index along array axis c."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    image: Tensor,
    positions: Tensor,
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["border", "zeros"] = "border",
) -> Tensor:
    """Values of `image` [N, C, *source shape] at voxel `positions` [N or 1, d, *shape]: [N, C, *shape].

    Interpolation is linear in every dimension, or nearest.
    """
    shape = image.shape[2:]
    last = torch.tensor([max(n - 1, 1) for n in shape], device=image.device, dtype=positions.dtype)
    positions = positions.expand(image.shape[0], *positions.shape[1:])
    unit = positions.movedim(1, -1) * (2 / last) - 1
    return F.grid_sample(
        image, unit.flip(-1).to(image.dtype), mode=mode, padding_mode=padding, align_corners=True
    )


def warp(
    image: Tensor,
    displacement: Tensor,
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["border", "zeros"] = "border",
) -> Tensor:
    """`image` [N, C, *shape] at p + u(p), for u [N, d, *shape] in voxels."""
    positions = identity_voxels(tuple(displacement.shape[2:]), displacement.device) + displacement
    return sample(image, positions, mode=mode, padding=padding)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Displacement of φ_outer ∘ φ_inner: v(p) + u(p + v(p)), for u = `outer`, v = `inner`, [N, d, *shape]."""
    return inner + warp(outer, inner)


def exponential(velocity: Tensor, squarings: int = 6) -> Tensor:
    """Displacement of exp(v) by scaling and squaring, [N, d, *shape] in voxels.

    Source: Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.
    """
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement


def resize(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`image` [N, C, *] sampled linearly at `shape` voxels, first and last voxel centres kept in place."""
    return F.interpolate(image, size=shape, mode=_INTERPOLATE[len(shape)], align_corners=True)


def resize_field(field: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A displacement or velocity [N, d, *] at another resolution, its values in the new voxels."""
    ratio = [(new - 1) / max(old - 1, 1) for new, old in zip(shape, field.shape[2:], strict=True)]
    scale = torch.tensor(ratio, device=field.device, dtype=field.dtype)
    return resize(field, shape) * scale.view(1, -1, *[1] * len(shape))


def gaussian_smooth(image: Tensor, sigma_voxels: float | tuple[float, ...]) -> Tensor:
    """`image` [N, C, *shape] blurred by a Gaussian along each axis; the border value goes on outside."""
    dimension = image.dim() - 2
    sigmas = (sigma_voxels,) * dimension if isinstance(sigma_voxels, (int, float)) else sigma_voxels
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            image = apply_along_axis(image, _gaussian_matrix(sigma, image.shape[axis + 2], image), axis)
    return image


def smooth_and_resize(image: Tensor, sigma_voxels: float, axis: int, voxels: int) -> Tensor:
    """`image` [N, C, *shape] blurred along a spatial axis as `gaussian_smooth` does, and sampled at `voxels`.

    One matrix does both, so that no more is computed than is kept; the outer voxel centres stay in place.
    """
    count = image.shape[axis + 2]
    if sigma_voxels == 0 and voxels == count:
        return image
    if sigma_voxels > 0:
        matrix = _gaussian_matrix(sigma_voxels, count, image)
    else:
        matrix = torch.eye(count, device=image.device, dtype=image.dtype)
    if voxels != count:
        matrix = F.interpolate(matrix.T[None], size=voxels, mode="linear", align_corners=True)[0].T
    return apply_along_axis(image, matrix, axis)


def apply_along_axis(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """`matrix` [m, n] times every line of `image` [N, C, *shape] along a spatial axis: n voxels become m.

    On a CPU this is about ten times as fast as a convolution of one channel.
    """
    shape = image.shape
    behind = shape[axis + 3 :].numel()
    if behind == 1:
        return torch.matmul(image, matrix.T)
    lines = image.reshape(-1, shape[axis + 2], behind)
    return torch.matmul(matrix, lines).reshape(*shape[: axis + 2], len(matrix), *shape[axis + 3 :])


def _gaussian_matrix(sigma: float, voxels: int, like: Tensor) -> Tensor:
    """[n, n]: row i holds the weights of the voxels in blurred voxel i; weights outside go to the border."""
    radius = max(int(3 * sigma + 0.5), 1)
    offset = torch.arange(-radius, radius + 1, device=like.device)
    kernel = torch.exp(-0.5 * (offset.to(like.dtype) / sigma) ** 2)
    index = (torch.arange(voxels, device=like.device)[:, None] + offset).clamp(0, voxels - 1)
    weights = (kernel / kernel.sum()).expand(voxels, -1)
    return torch.zeros((voxels, voxels), device=like.device, dtype=like.dtype).scatter_add_(1, index, weights)


def border_fade(shape: tuple[int, ...], voxels: int, device: torch.device | str | None = None) -> Tensor:
    """Weights [1, 1, *shape] that rise smoothly from 0 at the border to 1 at `voxels` inside."""
    weight = torch.ones((1, 1, *shape), device=device)
    for axis, n in enumerate(shape):
        index = torch.arange(n, device=device, dtype=torch.float32)
        ramp = (torch.minimum(index, n - 1 - index) / max(voxels, 1)).clamp(0, 1)
        smooth = ramp * ramp * (3 - 2 * ramp)
        weight = weight * smooth.view(*[-1 if a == axis + 2 else 1 for a in range(len(shape) + 2)])
    return weight


def corner_jacobians(displacement: Tensor) -> Tensor:
    """Jacobian determinants of p + u(p) on every simplex of every cell, [N, K, *(shape - 1)].

    K is 4 in 2D (a determinant for each corner of a cell) and 10 in 3D (8 corners and the two central
    tetrahedra). The piecewise linear map does not fold if all are positive. Source: Liu et al., On finite
    difference Jacobian computation in deformable image registration, IJCV 2024.
    """
    dimension = displacement.shape[1]
    position = identity_voxels(tuple(displacement.shape[2:]), displacement.device) + displacement
    corners = {
        corner: position[(..., *[slice(1, None) if c else slice(None, -1) for c in corner])]
        for corner in itertools.product((0, 1), repeat=dimension)
    }
    determinants = []
    for corner in corners:
        edges = []
        for axis in range(dimension):
            ahead, behind = ((*corner[:axis], side, *corner[axis + 1 :]) for side in (1, 0))
            edges.append(corners[ahead] - corners[behind])
        determinants.append(_determinant(edges))
    if dimension == 3:
        for start, ends, reference in (
            ((0, 0, 0), ((0, 1, 1), (1, 0, 1), (1, 1, 0)), 2.0),
            ((1, 1, 1), ((1, 0, 0), (0, 1, 0), (0, 0, 1)), -2.0),
        ):
            determinants.append(_determinant([corners[end] - corners[start] for end in ends]) / reference)
    return torch.stack(determinants, dim=1)


def _determinant(edges: list[Tensor]) -> Tensor:
    """Determinant of the matrix of d edge vectors [N, d, *]: [N, *]."""
    if len(edges) == 2:
        a, b = edges
        return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    a, b, c = edges
    cross = torch.linalg.cross(a, b, dim=1)
    return (cross * c).sum(1)


def lncc(a: Tensor, b: Tensor, sigma_voxels: float) -> Tensor:
    """Local normalised cross-correlation of two images [N, 1, *shape] in Gaussian windows, averaged: [N].

    At most 1; windows in which an image is flat count as 0.
    """
    stack = torch.cat([a, b, a * a, b * b, a * b], dim=1)
    mean_a, mean_b, square_a, square_b, product = gaussian_smooth(stack, sigma_voxels).unbind(1)
    variance_a = (square_a - mean_a**2).clamp(min=0)
    variance_b = (square_b - mean_b**2).clamp(min=0)
    correlation = (product - mean_a * mean_b) / torch.sqrt((variance_a + 1e-4) * (variance_b + 1e-4))
    return correlation.flatten(1).mean(1)


def most_probable(maps: Tensor) -> Tensor:
    """Number of the largest channel of maps [N, C, *shape], the first of equal ones: [N, *shape] int64.

    As `maps.argmax(1)`, which takes eight times as long on a CPU.
    """
    best = maps[:, 0]
    found = torch.zeros(best.shape, dtype=torch.int64, device=maps.device)
    for channel in range(1, maps.shape[1]):
        found = torch.where(maps[:, channel] > best, channel, found)
        best = torch.maximum(best, maps[:, channel])
    return found


def length(vectors: Tensor) -> Tensor:
    """Length of vectors [N, d, *shape]: [N, 1, *shape]; `norm` takes many times as long on a CPU."""
    return vectors.square().sum(1, keepdim=True).sqrt()


def soft_dice(p: Tensor, q: Tensor) -> Tensor:
    """Dice 2Σpq / (Σp² + Σq²) of every channel of two maps [N, C, *shape]: [N, C]; 1 where both are empty."""
    p, q = p.flatten(2), q.flatten(2)
    smooth = 1e-5
    return (2 * (p * q).sum(-1) + smooth) / ((p * p).sum(-1) + (q * q).sum(-1) + smooth)
