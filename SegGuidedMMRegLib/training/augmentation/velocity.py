"""Registering images of one modality by optimising stationary velocity fields, many pairs at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from SegGuidedMMRegLib.deformation import exponential, lncc, resize_field, warp
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.training.augmentation.resolution import shrink, shrunk_shape
from SegGuidedMMRegLib.training.spatial import upsample_smoothly

_LEVELS = ((4, 0.25), (2, 0.35), (1, 0.4))
"""How much further images are shrunk than the working resolution, and the share of the iterations there."""

_CONTROL_STEP = 4
"""Voxels of the working resolution between two control points of the velocity."""

_SQUARINGS = 5


@dataclass(frozen=True)
class VelocityRegistration:
    """Minimises -LNCC(moving ∘ exp(v), fixed) + smoothness · bending(v) over B-spline velocities v with Adam.

    It replaces the trained network of the paper's B.2 by minutes of direct optimisation; the pairs of a batch
    do not influence each other.

    Attributes:
        downsampling: of the images while they are registered.
        iterations: in all, over three resolutions.
        smoothness: weight of the bending energy.
        lncc_sigma: σ of the LNCC window, voxels of each resolution.
        learning_rate: of Adam, in voxels of the working resolution.
        reporter: hears about the iterations.
    """

    downsampling: int
    iterations: int
    smoothness: float
    lncc_sigma: float
    learning_rate: float
    reporter: Reporter = field(default_factory=Reporter)

    def displacement(self, moving: Tensor, fixed: Tensor, _generator: torch.Generator) -> Tensor:
        """Displacements [N, d, *shape] in voxels, fixed to moving, of pairs of images [N, 1, *shape]."""
        shape = tuple(moving.shape[2:])
        working = shrunk_shape(shape, self.downsampling)
        control = torch.zeros(
            (len(moving), len(shape), *(max(4, -(-(n - 1) // _CONTROL_STEP) + 1) for n in working)),
            device=moving.device,
            requires_grad=True,
        )
        optimizer = torch.optim.Adam([control], lr=self.learning_rate)
        levels = [(factor, max(1, round(self.iterations * share))) for factor, share in _LEVELS]
        done, steps = 0, sum(iterations for _, iterations in levels)
        self.reporter.started("registering images", steps)
        for factor, iterations in levels:
            level = shrunk_shape(working, factor)
            pair = shrink(moving, level), shrink(fixed, level)
            for _ in range(iterations):
                optimizer.zero_grad(set_to_none=True)
                self.loss(control, *pair, working).backward()
                optimizer.step()
                done += 1
                self.reporter.progress("registering images", done, steps)
        with torch.no_grad():
            return resize_field(self._displacement(control, working, working), shape)

    def loss(self, control: Tensor, moving: Tensor, fixed: Tensor, working: tuple[int, ...]) -> Tensor:
        """What is minimised: of velocities at control points [N, d, *], for images [N, 1, *level]."""
        displacement = self._displacement(control, working, tuple(moving.shape[2:]))
        similarity = lncc(warp(moving, displacement), fixed, self.lncc_sigma)
        return (self.smoothness * bending(control) - similarity).sum()

    @staticmethod
    def _displacement(control: Tensor, working: tuple[int, ...], level: tuple[int, ...]) -> Tensor:
        """Displacement in voxels of `level` of the velocity that `control` gives in voxels of `working`.

        The control points are four voxels apart, so that half the resolution is enough to exponentiate.
        """
        half = shrunk_shape(level, 2)
        scale = torch.tensor(
            [(a - 1) / (b - 1) for a, b in zip(half, working, strict=True)], device=control.device
        )
        velocity = upsample_smoothly(control, half) * scale.view(1, -1, *[1] * len(level))
        return resize_field(exponential(velocity, _SQUARINGS), level)


def bending(control: Tensor) -> Tensor:
    """Mean square of all second differences of control points [N, d, *], in units of their values: [N]."""
    axes = range(2, control.dim())
    total = torch.zeros(len(control), device=control.device)
    for a in axes:
        for b in axes:
            second = control.diff(dim=a).diff(dim=b)
            total = total + second.square().flatten(1).mean(1)
    return total
