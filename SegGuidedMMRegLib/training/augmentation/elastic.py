"""Random elastic deformation without any registration: the alternative that the paper compares with (B.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from SegGuidedMMRegLib.training.spatial import upsample_smoothly


@dataclass(frozen=True)
class RandomElastic:
    """Normal displacements of a few control points, interpolated by cubic B-splines.

    Attributes:
        control_points: along each axis (paper: 3).
        sigma: standard deviation of their displacement in voxels (paper: 3).
    """

    control_points: int
    sigma: float

    def displacement(self, moving: Tensor, _fixed: Tensor, generator: torch.Generator) -> Tensor:
        """Random displacements [N, d, *shape] in voxels for images [N, 1, *shape]."""
        shape = tuple(moving.shape[2:])
        points = (self.control_points,) * len(shape)
        drawn = torch.randn((len(moving), len(shape), *points), generator=generator, device=generator.device)
        return upsample_smoothly(drawn * self.sigma, shape)
