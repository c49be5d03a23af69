"""The affine map between two segmentations in study space: moments first, then a few steps up the Dice.

Pre-alignment brings every image near its place; what is left between two images of one pair (another scale,
another turn, a cut-off field of view) is mostly affine, and a velocity field should not have to spend
itself on it. Positions here are millimetres from the centre of the study grid, in the order of the array
axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth, sample, smooth_and_resize, soft_dice
from SegGuidedMMRegLib.pair_points import MatchedPoints

WORKING_SIZE = {2: 64, 3: 36}
"""Longest side in voxels of the maps that are fitted, by dimension."""

_STEPS = 40
_RATE = 0.02
_SHEAR_WEIGHT = 0.2
_LARGEST_STRETCH = 1.6
_LEAST_GAIN = 0.005
_BITS = 16
"""With which shares of a map are told apart."""


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

    def partly(self, share: Tensor) -> CentredAffine:
        """Each map to the power of its share, [N] in [0, 1]: so much of the way from the identity."""
        d = self.shift.shape[1]
        root = torch.eye(d + 1, dtype=torch.float64).repeat(
            len(share), 1, 1
        )  # on the CPU: MPS has no float64
        part = root.clone()
        root[:, :d, :d], root[:, :d, d] = self.matrix.cpu().double(), self.shift.cpu().double()
        left = share.cpu().double()
        for _ in range(_BITS):
            chosen = left >= 1
            part = torch.where(chosen[:, None, None], part @ root, part)
            root, left = _square_roots(root), 2 * (left - chosen.double())
        return CentredAffine(part[:, :d, :d].to(self.matrix), part[:, :d, d].to(self.shift))

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


def _square_roots(matrices: Tensor) -> Tensor:
    """Square roots of matrices [N, n, n] without negative eigenvalues (Denman and Beavers, 1976)."""
    root, inverse = matrices, torch.eye(matrices.shape[1]).to(matrices).expand_as(matrices)
    for _ in range(10):
        root, inverse = (root + torch.linalg.inv(inverse)) / 2, (inverse + torch.linalg.inv(root)) / 2
    return root


def warp_affinely(maps: Tensor, affine: CentredAffine, spacing_mm: tuple[float, ...]) -> Tensor:
    """`maps` [N, C, *shape] at the affine image of every voxel, 0 outside the grid."""
    shape = tuple(maps.shape[2:])
    spacing = torch.tensor(spacing_mm, device=maps.device, dtype=torch.float32)
    middle = (torch.tensor(shape, device=maps.device, dtype=torch.float32) - 1) / 2
    points = _points_mm(shape, spacing_mm, maps.device)
    moved = points.flatten(1).T @ affine.matrix.mT + affine.shift[:, None]
    positions = (moved / spacing + middle).mT.reshape(len(maps), len(shape), *shape)
    return sample(maps, positions, padding="zeros")


@dataclass(frozen=True)
class StructurePairs:
    """N pairs of maps on one grid, without background.

    Attributes:
        moving: probabilities of the structures, [N, K, *shape].
        fixed: the same shape.
        moving_inside: 1 where the moving image has data, else 0, [N, 1, *shape].
        fixed_inside: the same for the fixed image.
        present: which structures both maps of a pair show, so that they count, [N, K] bool.
        points: landmarks that belong together, if any are given.
        points_weight: of their misfit beside the overlap.
    """

    moving: Tensor
    fixed: Tensor
    moving_inside: Tensor
    fixed_inside: Tensor
    present: Tensor
    points: MatchedPoints | None = None
    points_weight: float = 0.0

    def moved(self, affine: CentredAffine, spacing_mm: tuple[float, ...]) -> StructurePairs:
        """The pairs with the moving maps brought onto the fixed ones by `affine`."""
        both = warp_affinely(torch.cat([self.moving, self.moving_inside], dim=1), affine, spacing_mm)
        points = None if self.points is None else self.points.moved(affine)
        return replace(self, moving=both[:, :-1], moving_inside=both[:, -1:], points=points)

    def shrunk(self, shape: tuple[int, ...]) -> StructurePairs:
        """At a coarser `shape`."""
        moving, fixed, moving_inside, fixed_inside = (
            shrink(x, shape) for x in (self.moving, self.fixed, self.moving_inside, self.fixed_inside)
        )
        return replace(
            self, moving=moving, fixed=fixed, moving_inside=moving_inside, fixed_inside=fixed_inside
        )

    def blurred(self, sigma_voxels: float) -> StructurePairs:
        """With blurred maps; the field of view keeps its border."""
        return replace(
            self,
            moving=_blurred_inside(self.moving, self.moving_inside, sigma_voxels),
            fixed=_blurred_inside(self.fixed, self.fixed_inside, sigma_voxels),
        )

    def merit(self, affine: CentredAffine, spacing_mm: tuple[float, ...]) -> Tensor:
        """How well the pairs fit after `affine`: [N].

        Mean Dice of the structures that count, where both images have data, less the weighted misfit of the
        landmarks.
        """
        pairs = self.moved(affine, spacing_mm)
        seen = pairs.moving_inside * pairs.fixed_inside
        dice = soft_dice(pairs.moving * seen, pairs.fixed * seen)
        overlap = (dice * self.present).sum(1) / self.present.sum(1).clamp(min=1)
        return overlap if pairs.points is None else overlap - self.points_weight * pairs.points.misfit()


def fit_affine(pairs: StructurePairs, spacing_mm: tuple[float, ...]) -> CentredAffine:
    """The affine map that brings moving onto fixed, or the identity where that does not raise the Dice.

    Starts from the best of identity, shift and similarity (from the structures' moments), climbs the Dice of
    slightly blurred maps, and gives the result up where it gains less than 0.005 or stretches by more than
    1.6. Given landmarks count beside the Dice.

    Args:
        pairs: the maps.
        spacing_mm: in the order of the array axes.
    """
    shape = tuple(pairs.fixed.shape[2:])
    small_shape = _working_shape(shape, spacing_mm)
    spacing = tuple(
        (n - 1) * s / max(m - 1, 1) for n, s, m in zip(shape, spacing_mm, small_shape, strict=True)
    )
    small = pairs.shrunk(small_shape)
    blurred = small.blurred(1.5)
    identity = CentredAffine.identity(len(pairs.fixed), len(shape), pairs.fixed.device)
    start = identity
    for candidate in _moment_fits(small, spacing):
        start = candidate.where(blurred.merit(candidate, spacing) > blurred.merit(start, spacing), start)
    with torch.enable_grad():
        found = _climb(blurred, start, spacing)
    gain = small.merit(found, spacing) - small.merit(identity, spacing)
    stretch = torch.linalg.svdvals(found.matrix.cpu()).to(gain.device)
    sound = (stretch.amax(1) < _LARGEST_STRETCH) & (stretch.amin(1) > 1 / _LARGEST_STRETCH)
    return found.where((gain > _LEAST_GAIN) & sound, identity)


def shrink(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`maps` [N, C, *] at a coarser `shape`, blurred as that grid asks; outer voxel centres stay in place."""
    if tuple(maps.shape[2:]) == shape:
        return maps
    for axis, new in enumerate(shape):
        ratio = (maps.shape[axis + 2] - 1) / max(new - 1, 1)
        maps = smooth_and_resize(maps, 0.5 * math.sqrt(ratio**2 - 1) if ratio > 1 else 0.0, axis, new)
    return maps


def _blurred_inside(maps: Tensor, inside: Tensor, sigma: float) -> Tensor:
    """Blurred as if the maps went on outside the field of view as they are at its border."""
    return gaussian_smooth(maps * inside, sigma) / gaussian_smooth(inside, sigma).clamp(min=0.05)


def _working_shape(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> tuple[int, ...]:
    extent = max(n * s for n, s in zip(shape, spacing_mm, strict=True))
    coarse = extent / WORKING_SIZE[len(shape)]
    return tuple(max(2, round(n * min(s / coarse, 1))) for n, s in zip(shape, spacing_mm, strict=True))


def _points_mm(shape: tuple[int, ...], spacing_mm: tuple[float, ...], device: torch.device) -> Tensor:
    axes = [
        (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * s
        for n, s in zip(shape, spacing_mm, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _climb(pairs: StructurePairs, start: CentredAffine, spacing: tuple[float, ...]) -> CentredAffine:
    fixed = pairs.fixed
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
        loss = (1 - pairs.merit(current(), spacing)).sum()
        loss = loss + _SHEAR_WEIGHT * (shear**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return current()


def _moment_fits(pairs: StructurePairs, spacing: tuple[float, ...]) -> list[CentredAffine]:
    """A shift and similarities from the structures' centroids and extents."""
    fixed, present = pairs.fixed, pairs.present
    points = _points_mm(tuple(fixed.shape[2:]), spacing, fixed.device).flatten(1)
    from_moving, from_fixed = (_moments(x, present, points) for x in (pairs.moving, fixed))
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
