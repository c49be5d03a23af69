"""The affine map between two segmentations in study space: moments first, then a few steps up the Dice.

Pre-alignment brings every image near its place; what is left between two images of one pair (another scale,
another turn, a cut-off field of view) is mostly affine, and a velocity field should not have to spend
itself on it. Positions here are millimetres from the centre of the study grid, in the order of the array
axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth, resize, sample, soft_dice

WORKING_SIZE = {2: 64, 3: 36}
"""Longest side in voxels of the maps that are fitted, by dimension."""

_STEPS = 40
_RATE = 0.02
_SHEAR_WEIGHT = 0.2
_LARGEST_STRETCH = 1.6
_LEAST_GAIN = 0.005


@dataclass(frozen=True)
class CentredAffine:
    """x_moving = matrix x_fixed + shift, for N pairs, mm from the centre of the grid, array-axis order.

    Attributes:
        matrix: [N, d, d].
        shift: [N, d], mm.
    """

    matrix: Tensor
    shift: Tensor

    @staticmethod
    def identity(pairs: int, dimension: int, device: torch.device | str | None = None) -> CentredAffine:
        matrix = torch.eye(dimension, device=device).expand(pairs, -1, -1).clone()
        return CentredAffine(matrix, torch.zeros(pairs, dimension, device=device))

    def where(self, chosen: Tensor, other: CentredAffine) -> CentredAffine:
        """This map for the pairs of which `chosen` [N] is true, `other` for the rest."""
        return CentredAffine(
            torch.where(chosen[:, None, None], self.matrix, other.matrix),
            torch.where(chosen[:, None], self.shift, other.shift),
        )

    def lps(self) -> list[NDArray[np.floating]]:
        """A 4x4 matrix a pair, study LPS mm of the fixed image to study LPS mm of the moving image.

        Study grids are centred on the origin with identity directions (`Grid.centred`), so only the order of
        the axes differs; a two-dimensional map leaves the normal of the plane alone.
        """
        matrices: list[NDArray[np.floating]] = []
        for linear, shift in zip(self.matrix.cpu().double(), self.shift.cpu().double(), strict=True):
            d = len(shift)
            m = np.eye(4)
            m[:d, :d] = linear.flip(0, 1).numpy()
            m[:d, 3] = shift.flip(0).numpy()
            matrices.append(m)
        return matrices


def warp_affinely(maps: Tensor, affine: CentredAffine, spacing_mm: tuple[float, ...]) -> Tensor:
    """`maps` [N, C, *shape] at the affine image of every voxel, 0 outside the grid."""
    shape = tuple(maps.shape[2:])
    spacing = torch.tensor(spacing_mm, device=maps.device, dtype=torch.float32)
    middle = (torch.tensor(shape, device=maps.device, dtype=torch.float32) - 1) / 2
    points = _points_mm(shape, spacing_mm, maps.device)
    moved = points.flatten(1).T @ affine.matrix.mT + affine.shift[:, None]
    positions = (moved / spacing + middle).mT.reshape(len(maps), len(shape), *shape)
    return sample(maps, positions, padding="zeros")


def fit_affine(
    moving: Tensor, fixed: Tensor, present: Tensor, spacing_mm: tuple[float, ...]
) -> CentredAffine:
    """The affine map that brings `moving` onto `fixed`, or the identity where that does not raise the Dice.

    Starts from the best of identity, shift and similarity (from the structures' moments), climbs the Dice of
    slightly blurred maps, and gives the result up where it gains less than 0.005 or stretches by more than
    1.6.

    Args:
        moving: probabilities of the structures without background, [N, K, *shape].
        fixed: the same shape.
        present: which structures count for a pair, [N, K] bool.
        spacing_mm: in the order of the array axes.
    """
    shape = tuple(fixed.shape[2:])
    spacing = _working_spacing(shape, spacing_mm)
    small_moving, small_fixed = (
        shrink(x, tuple(max(2, round(n * s / w)) for n, s, w in zip(shape, spacing_mm, spacing, strict=True)))
        for x in (moving, fixed)
    )
    spacing = _fitted_spacing(shape, spacing_mm, tuple(small_fixed.shape[2:]))
    blurred = gaussian_smooth(small_moving, 1.5), gaussian_smooth(small_fixed, 1.5)
    identity = CentredAffine.identity(len(fixed), len(shape), fixed.device)
    start = identity
    for candidate in _moment_fits(small_moving, small_fixed, present, spacing):
        better = _overlap(*blurred, candidate, present, spacing) > _overlap(*blurred, start, present, spacing)
        start = candidate.where(better, start)
    with torch.enable_grad():
        found = _climb(*blurred, start, present, spacing)
    gain = _overlap(small_moving, small_fixed, found, present, spacing) - _overlap(
        small_moving, small_fixed, identity, present, spacing
    )
    stretch = torch.linalg.svdvals(found.matrix.cpu()).to(fixed.device)
    sound = (stretch.amax(1) < _LARGEST_STRETCH) & (stretch.amin(1) > 1 / _LARGEST_STRETCH)
    return found.where((gain > _LEAST_GAIN) & sound, identity)


def shrink(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`maps` [N, C, *] at a coarser `shape`, blurred as that grid asks; outer voxel centres stay in place."""
    if tuple(maps.shape[2:]) == shape:
        return maps
    ratios = [(old - 1) / max(new - 1, 1) for old, new in zip(maps.shape[2:], shape, strict=True)]
    sigmas = tuple(0.5 * math.sqrt(r * r - 1) if r > 1 else 0.0 for r in ratios)
    return resize(gaussian_smooth(maps, sigmas), shape)


def _working_spacing(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
    extent = max(n * s for n, s in zip(shape, spacing_mm, strict=True))
    coarse = extent / WORKING_SIZE[len(shape)]
    return tuple(max(coarse, s) for s in spacing_mm)


def _fitted_spacing(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], small: tuple[int, ...]
) -> tuple[float, ...]:
    return tuple((n - 1) * s / max(m - 1, 1) for n, s, m in zip(shape, spacing_mm, small, strict=True))


def _points_mm(shape: tuple[int, ...], spacing_mm: tuple[float, ...], device: torch.device) -> Tensor:
    axes = [
        (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * s
        for n, s in zip(shape, spacing_mm, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _overlap(
    moving: Tensor, fixed: Tensor, affine: CentredAffine, present: Tensor, spacing: tuple[float, ...]
) -> Tensor:
    """Mean Dice of the structures that count, where the moving image's grid reaches: [N]."""
    inside = torch.ones_like(moving[:, :1])
    warped = warp_affinely(torch.cat([moving, inside], dim=1), affine, spacing)
    dice = soft_dice(warped[:, :-1], fixed * warped[:, -1:])
    return (dice * present).sum(1) / present.sum(1).clamp(min=1)


def _climb(
    moving: Tensor, fixed: Tensor, start: CentredAffine, present: Tensor, spacing: tuple[float, ...]
) -> CentredAffine:
    d = fixed.dim() - 2
    half_extent = max(n * s for n, s in zip(fixed.shape[2:], spacing, strict=True)) / 2
    change = torch.zeros(len(fixed), d, d + 1, device=fixed.device, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=_RATE)

    def current() -> CentredAffine:
        linear = torch.matrix_exp(change[..., :d])
        return CentredAffine(start.matrix @ linear, start.shift + change[..., d] * half_extent)

    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        strain = (change[..., :d] + change[..., :d].mT) / 2
        growth = strain.diagonal(dim1=1, dim2=2).mean(1)
        shear = strain - growth[:, None, None] * torch.eye(d, device=fixed.device)
        loss = (1 - _overlap(moving, fixed, current(), present, spacing)).sum()
        loss = loss + _SHEAR_WEIGHT * (shear**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return current()


def _moment_fits(
    moving: Tensor, fixed: Tensor, present: Tensor, spacing: tuple[float, ...]
) -> list[CentredAffine]:
    """A shift and, where the data say more, a similarity from the structures' centroids and extents."""
    points = _points_mm(tuple(fixed.shape[2:]), spacing, fixed.device).flatten(1)
    from_moving, from_fixed = (_moments(x, present, points) for x in (moving, fixed))
    weight = from_fixed[2] * present
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    centre_m, centre_f = ((weight[..., None] * m[0]).sum(1) for m in (from_moving, from_fixed))
    identity = CentredAffine.identity(len(fixed), len(spacing), fixed.device)
    shift = CentredAffine(identity.matrix, centre_m - centre_f)

    arms_m, arms_f = from_moving[0] - centre_m[:, None], from_fixed[0] - centre_f[:, None]
    spread_m, spread_f = (
        (weight * ((arms**2).sum(-1) + m[1])).sum(1)
        for arms, m in ((arms_m, from_moving), (arms_f, from_fixed))
    )
    scale = (spread_m / spread_f.clamp(min=1e-6)).sqrt().clamp(0.67, 1.5)
    rotation = _kabsch(arms_f * weight[..., None], arms_m) if fixed.shape[1] > 1 else identity.matrix
    fits = [shift]
    for turn in (identity.matrix, rotation):
        matrix = scale[:, None, None] * turn
        fits.append(CentredAffine(matrix, centre_m - (matrix @ centre_f[..., None])[..., 0]))
    return fits


def _moments(maps: Tensor, present: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each structure: centroid [N, K, d] in mm, mean squared distance from it [N, K], mass [N, K]."""
    flat = maps.flatten(2) * present[..., None]
    mass = flat.sum(-1)
    share = flat / mass.clamp(min=1e-6)[..., None]
    centroid = share @ points.T
    square = share @ (points**2).sum(0)
    return centroid, (square - (centroid**2).sum(-1)).clamp(min=0), mass


def _kabsch(source: Tensor, target: Tensor) -> Tensor:
    """Rotation [N, d, d] that turns the vectors `source` [N, K, d] best onto `target`."""
    u, _, vh = torch.linalg.svd((target.mT @ source).cpu())
    sign = torch.linalg.det(u @ vh)
    u = torch.cat([u[..., :-1], u[..., -1:] * sign[:, None, None]], dim=-1)
    return (u @ vh).to(source.device)
