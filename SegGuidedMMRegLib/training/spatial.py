"""Random affine and elastic deformation of a batch, drawn on the device, in 2D and 3D.

There are no flips: left and right stay what they are. Turns are turns in millimetres, also on voxels that are
not cubes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from SegGuidedMMRegLib.deformation import apply_along_axis, identity_voxels, sample


@dataclass(frozen=True)
class SpatialAugmentation:
    """How far a batch is moved: each sample by up to a share of these limits that is drawn for it.

    The share is the square of a uniform number, so most samples stay near the pre-aligned position and some
    go as far as the limits. Where position tells structures apart, as for vertebrae, this learns much faster
    than going everywhere alike.

    Attributes:
        spacing: mm of a voxel along each spatial axis of the tensors.
        rotation_degrees: largest turn, about a random axis in 3D.
        scale: largest change of size, as a share, common to all axes.
        stretch: largest further change of each axis, as a share.
        shift: largest shift along each axis, as a share of the image.
        elastic: standard deviation of the control points of a smooth deformation, as a share of the distance
            between them; 0 for none. Below about 0.25 folds are rare.
        control_points: of that deformation, along each axis.
    """

    spacing: tuple[float, ...]
    rotation_degrees: float = 20.0
    scale: float = 0.2
    stretch: float = 0.1
    shift: float = 0.12
    elastic: float = 0.15
    control_points: int = 6

    def displacement(self, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random displacements [count, d, *shape] in voxels, on the generator's device."""
        identity = identity_voxels(shape, generator.device)
        centre = (torch.tensor(shape, device=generator.device, dtype=torch.float32) - 1) / 2
        strength = torch.rand((count, 1), generator=generator, device=generator.device) ** 2
        matrix = self._matrices(strength, generator)
        ones = [1] * len(shape)
        from_centre = identity - centre.view(1, -1, *ones)
        moved = torch.einsum("nab,b...->na...", matrix, from_centre[0])
        shift = strength * _uniform((count, len(shape)), self.shift, generator) * (centre * 2 + 1)
        field = moved - from_centre + shift.view(count, -1, *ones)
        return field + self._elastic(count, shape, generator) if self.elastic > 0 else field

    def __call__(self, image: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`image` [N, C, *shape] and `labels` [N, *shape] of class indices, moved alike.

        What comes from outside the image is 0 and background. Labels are interpolated by the nearest voxel.
        """
        shape = tuple(image.shape[2:])
        positions = identity_voxels(shape, image.device) + self.displacement(len(image), shape, generator)
        moved = sample(image, positions, padding="zeros")
        indices = sample(labels[:, None].float(), positions, mode="nearest", padding="zeros")
        return moved, indices[:, 0].long()

    def _matrices(self, strength: Tensor, generator: torch.Generator) -> Tensor:
        """[N, d, d] in voxels for strengths [N, 1]: turn · stretch, in millimetres between."""
        d = len(self.spacing)
        spacing = torch.tensor(self.spacing, device=generator.device, dtype=torch.float32)
        count = len(strength)
        size = strength * _uniform((count, 1), math.log1p(self.scale), generator)
        axes = strength * _uniform((count, d), math.log1p(self.stretch), generator)
        angle = strength[:, 0] * _uniform((count,), math.radians(self.rotation_degrees), generator)
        turn = torch.linalg.matrix_exp(_skew(angle, d, generator))
        millimetres = turn * torch.exp(size + axes)[:, None, :]
        return millimetres * spacing[None, None, :] / spacing[None, :, None]

    def _elastic(self, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        points = (self.control_points,) * len(shape)
        noise = torch.randn((count, len(shape), *points), generator=generator, device=generator.device)
        apart = [(n - 1) / (self.control_points - 1) * self.elastic for n in shape]
        scale = torch.tensor(apart, device=generator.device).view(1, -1, *[1] * len(shape))
        return upsample_smoothly(noise * scale, shape)


def upsample_smoothly(control: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Cubic B-spline through no more than its control points [N, C, *] at `shape` voxels: [N, C, *shape].

    The first and last control points lie on the first and last voxels; beyond them the border value goes on.
    """
    for axis, n in enumerate(shape):
        control = apply_along_axis(control, _spline_weights(control.shape[axis + 2], n, control).T, axis)
    return control


def _spline_weights(points: int, voxels: int, like: Tensor) -> Tensor:
    """[points, voxels]: share of each control point in each voxel."""
    x = torch.linspace(0, points - 1, voxels, device=like.device, dtype=like.dtype)
    cell = x.floor().clamp(max=max(points - 2, 0))
    t = x - cell
    shares = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = torch.zeros((points, voxels), device=like.device, dtype=like.dtype)
    for offset, share in zip((-1, 0, 1, 2), shares, strict=True):
        index = (cell + offset).clamp(0, points - 1).long()[None]
        weights.scatter_add_(0, index, share[None] / 6)
    return weights


def _uniform(shape: tuple[int, ...], limit: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator, device=generator.device) * 2 - 1) * limit


def _skew(angle: Tensor, dimension: int, generator: torch.Generator) -> Tensor:
    """[N, d, d] skew matrices, whose exponentials turn by `angle` [N], about a random axis in 3D."""
    if dimension == 2:
        zero = torch.zeros_like(angle)
        return torch.stack([zero, -angle, angle, zero], dim=-1).view(-1, 2, 2)
    axis = torch.randn((len(angle), 3), generator=generator, device=generator.device)
    x, y, z = (axis / axis.norm(dim=1, keepdim=True).clamp(min=1e-6) * angle[:, None]).unbind(1)
    zero = torch.zeros_like(angle)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
