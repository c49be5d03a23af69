"""Landmarks that a person has matched, as a pull on the registration of a pair.

Positions are millimetres from the centre of the study grid, in the order of the array axes, as in
`pair_affine`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from SegGuidedMMRegLib.deformation import sample
from SegGuidedMMRegLib.space import Grid

if TYPE_CHECKING:
    from SegGuidedMMRegLib.pair_affine import CentredAffine

UNIT_SHARE = 0.02
"""Distances are counted in this share of the longest side of the study grid: 4 mm where that is 200 mm."""


@dataclass(frozen=True)
class MatchedPoints:
    """L points of each of N moving images, and the points of the fixed images that they belong to.

    Attributes:
        moving: [N, L, d].
        fixed: [N, L, d].
        unit_mm: length in which distances are counted in `misfit`.
    """

    moving: Tensor
    fixed: Tensor
    unit_mm: float

    @staticmethod
    def of_pair(moving_lps_mm: ArrayLike, fixed_lps_mm: ArrayLike, grid: Grid) -> MatchedPoints:
        """The points (L, 3) of one pair, LPS mm of study space; pairs that leave the grid are left out."""
        moving, fixed = (np.asarray(p, dtype=float).reshape(-1, 3) for p in (moving_lps_mm, fixed_lps_mm))
        d = grid.dimension
        inside = np.all([grid.contains(p * (np.arange(3) < d)) for p in (moving, fixed)], axis=0)
        # Study grids are centred on the origin with identity directions: only the order of the axes differs.
        ours, theirs = (
            torch.from_numpy(p[inside, d - 1 :: -1].astype(np.float32))[None] for p in (moving, fixed)
        )
        return MatchedPoints(ours, theirs, UNIT_SHARE * max(grid.extent_mm[:d]))

    def __len__(self) -> int:
        return self.fixed.shape[1]

    def to(self, device: torch.device) -> MatchedPoints:
        """The same on another device."""
        return replace(self, moving=self.moving.to(device), fixed=self.fixed.to(device))

    def moved(self, affine: CentredAffine) -> MatchedPoints:
        """The points after `affine` has brought the moving images onto the fixed ones."""
        back = torch.linalg.solve(affine.matrix, (self.moving - affine.shift[:, None]).mT).mT
        return replace(self, moving=back)

    def misfit(self) -> Tensor:
        """Mean squared distance of the points of a pair, in `unit_mm`: [N]."""
        return self._mean_square(self.moving - self.fixed)

    def misfit_after(self, forward: Tensor, inverse: Tensor, node_mm: tuple[float, ...]) -> Tensor:
        """The same with the points moved by a map and by its inverse, the mean of both: [N].

        Args:
            forward: displacement fixed to moving [N, d, *nodes], in nodes of a grid over the study grid.
            inverse: that of the inverse map.
            node_mm: between two nodes, in the order of the array axes.
        """
        there = self.fixed + _at(forward, self.fixed, node_mm) - self.moving
        back = self.moving + _at(inverse, self.moving, node_mm) - self.fixed
        return (self._mean_square(there) + self._mean_square(back)) / 2

    def _mean_square(self, distance_mm: Tensor) -> Tensor:
        return (distance_mm / self.unit_mm).square().sum(-1).mean(-1)


def _at(displacement: Tensor, points_mm: Tensor, node_mm: tuple[float, ...]) -> Tensor:
    """Displacement in mm at points [N, L, d] in mm: [N, L, d]."""
    d = points_mm.shape[-1]
    step = torch.tensor(node_mm, device=points_mm.device, dtype=points_mm.dtype)
    middle = (torch.tensor(displacement.shape[2:], device=points_mm.device, dtype=points_mm.dtype) - 1) / 2
    nodes = (points_mm / step + middle).mT.reshape(len(points_mm), d, -1, *[1] * (d - 1))
    return sample(displacement, nodes).flatten(2).mT * step
