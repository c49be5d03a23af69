"""A velocity field on the full grid as a map and its inverse: precise, and without folds by any corner."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from SegGuidedMMRegLib.deformation import (
    border_fade,
    compose,
    corner_jacobians,
    exponential,
    gaussian_smooth,
    length,
    resize_field,
)

JACOBIAN_MARGIN = 0.1
"""Every corner Jacobian of a map and of its inverse is made at least this."""

AIMED_INVERSE_ERROR = 0.35
"""Voxels by which forward∘inverse may miss anywhere, where smoothing can reach it."""

REPAIRS = 24
"""How often a velocity is smoothed at most; from the half of it on everywhere."""

_SQUARINGS = 7


@dataclass(frozen=True)
class InversePair:
    """N maps and their inverses on one grid.

    Attributes:
        forward: displacement of exp(v), [N, d, *shape] in voxels.
        inverse: that of its inverse.
        jacobian: smallest corner determinant of both, [N].
        error_mean: by how many voxels forward∘inverse and inverse∘forward miss the identity on average, [N].
        error_max: the largest, [N].
        bad: where they come near a fold or miss the identity, [N, 1, *shape] bool.
    """

    forward: Tensor
    inverse: Tensor
    jacobian: Tensor
    error_mean: Tensor
    error_max: Tensor
    bad: Tensor


def fold_free_pair(velocity: Tensor, shape: tuple[int, ...]) -> tuple[InversePair, Tensor]:
    """Both maps on the full grid, and how often their velocity was repaired [N].

    Where a map nearly folds by any corner, or its inverse does not undo it, the velocity is smoothed: round
    by round further around, at last everywhere, and damped, until it holds.
    """
    ratio = tuple((n - 1) / (m - 1) for n, m in zip(shape, velocity.shape[2:], strict=True))
    fade = border_fade(shape, max(2, round(min(ratio))), velocity.device)
    full = gaussian_smooth(resize_field(velocity, shape), tuple(0.5 * r for r in ratio)) * fade
    repairs = torch.zeros(len(full), dtype=torch.int64, device=full.device)
    around = torch.zeros_like(full[:, :1])
    for turn in range(REPAIRS + 1):
        solution = _solve(full)
        bad = solution.bad.flatten(1).any(1)
        if turn == REPAIRS or not bad.any():
            break
        around = _grown(torch.maximum(around, solution.bad.to(around)), math.ceil(max(ratio)))
        everywhere = turn >= REPAIRS // 2
        share = torch.ones_like(around) if everywhere else gaussian_smooth(around, tuple(ratio))
        share = share * bad.view(-1, *[1] * (full.dim() - 1))
        smoothed = gaussian_smooth(full, tuple(0.75 * r for r in ratio)) * fade * (0.85 if everywhere else 1)
        full = torch.lerp(full, smoothed, share)
        repairs = repairs + bad
    return solution, repairs


def _solve(velocity: Tensor) -> InversePair:
    forward = exponential(velocity, _SQUARINGS)
    inverse = _polished_inverse(forward, exponential(-velocity, _SQUARINGS))
    jacobians = [corner_jacobians(u).amin(1, keepdim=True) for u in (forward, inverse)]
    errors = [length(compose(a, b)) for a, b in ((forward, inverse), (inverse, forward))]
    worst = torch.maximum(*errors)
    near_fold = torch.minimum(*jacobians)
    cells = (near_fold < JACOBIAN_MARGIN).to(worst)
    corner_of_bad_cell = F.pad(cells, (0, 1) * (velocity.dim() - 2))
    return InversePair(
        forward,
        inverse,
        near_fold.flatten(1).amin(1),
        torch.stack(errors).mean(0).flatten(1).mean(1),
        worst.flatten(1).amax(1),
        (corner_of_bad_cell > 0) | (worst > AIMED_INVERSE_ERROR),
    )


def _grown(mask: Tensor, voxels: int) -> Tensor:
    """The largest value within `voxels` along each axis."""
    pool = F.max_pool2d if mask.dim() == 4 else F.max_pool3d
    grown: Tensor = pool(mask, 2 * voxels + 1, stride=1, padding=voxels)
    return grown


def _polished_inverse(forward: Tensor, inverse: Tensor, rounds: int = 3) -> Tensor:
    """The inverse of the displacement as it is interpolated: psi <- psi(q - r(q)), r = phi(psi(q)) - q."""
    for _ in range(rounds):
        inverse = compose(inverse, -compose(forward, inverse))
    return inverse
