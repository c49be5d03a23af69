"""Random smooth maps with exact inverses: what makes one phantom knee different from another.

A map is a chain of layers, each of which moves points along ONE axis: x_axis -> x_axis + f(x). A layer
with |df/dx_axis| <= 1/3 is strictly increasing along its axis, so it is a diffeomorphism, and Newton's
method finds its inverse from every start: the errors shrink at least by the factor |1 - (1 + 1/3) / (1 -
1/3)| = 1, and strictly so off that bound. Chains of such layers, and an affine pose around them, are as
general as one likes and stay exactly invertible, which a numerically integrated velocity field is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from SegGuidedMMRegLib.space import FloatArray, apply_affine

_STEEPEST = 1.0 / 3.0
_GAUSSIAN_SLOPE = float(np.exp(-0.5))  # steepest slope of exp(-t^2 / 2)


class Layer(Protocol):
    """An invertible map of points (..., 3) in mm to points (..., 3) in mm."""

    def forward(self, points: FloatArray) -> FloatArray:
        """Where the points go."""
        ...

    def inverse(self, points: FloatArray) -> FloatArray:
        """Where the points come from."""
        ...


@dataclass(frozen=True)
class BumpLayer:
    """x_axis + sum_k a_k exp(-|(x - c_k) / w_k|^2 / 2), scaled down where it would be too steep to invert.

    Attributes:
        axis: the coordinate that moves, 0 to 2.
        centres: (K, 3) in mm.
        widths: (K, 3) in mm; infinity makes a bump constant along that coordinate.
        amplitudes: (K,) in mm, as used (already scaled down).
    """

    axis: int
    centres: FloatArray
    widths: FloatArray
    amplitudes: FloatArray

    def __post_init__(self) -> None:
        slope = float(np.sum(np.abs(self.amplitudes) / self.widths[:, self.axis])) * _GAUSSIAN_SLOPE
        if slope > _STEEPEST:
            object.__setattr__(self, "amplitudes", self.amplitudes * (0.999 * _STEEPEST / slope))

    def _shift(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """f and df/dx_axis at points (N, 3)."""
        shift, slope = np.zeros(len(points)), np.zeros(len(points))
        for centre, width, amplitude in zip(self.centres, self.widths, self.amplitudes, strict=True):
            exponent = np.zeros(len(points))
            for c in np.flatnonzero(np.isfinite(width)):
                exponent += ((points[:, c] - centre[c]) / width[c]) ** 2
            bump = amplitude * np.exp(-0.5 * exponent)
            shift += bump
            slope -= bump * (points[:, self.axis] - centre[self.axis]) / width[self.axis] ** 2
        return shift, slope

    def forward(self, points: FloatArray) -> FloatArray:
        """Where the points (..., 3) go."""
        flat = points.reshape(-1, 3)
        moved = flat.copy()
        moved[:, self.axis] += self._shift(flat)[0]
        return moved.reshape(points.shape)

    def inverse(self, points: FloatArray) -> FloatArray:
        """Where the points (..., 3) come from, to about 1e-11 mm."""
        target = points.reshape(-1, 3)[:, self.axis]
        found = points.reshape(-1, 3).copy()
        for _ in range(60):
            shift, slope = self._shift(found)
            step = (found[:, self.axis] + shift - target) / (1.0 + slope)
            found[:, self.axis] -= step
            if not step.size or np.abs(step).max() < 1e-11:
                break
        return found.reshape(points.shape)


@dataclass(frozen=True)
class BendLayer:
    """x_axis + slope * s(x_along), s a smooth ramp from `start` on: a bent leg; inverse in closed form.

    Attributes:
        axis: the coordinate that moves.
        along: the coordinate along which the bend runs; not `axis`.
        start: in mm, where it starts.
        slope: tangent of the angle; the ramp runs to +infinity for `side` 1, to -infinity for -1.
        side: 1 or -1.
        softness: length in mm over which the ramp bends.
    """

    axis: int
    along: int
    start: float
    slope: float
    side: int = 1
    softness: float = 15.0

    def _shift(self, points: FloatArray) -> FloatArray:
        run = self.side * (points[..., self.along] - self.start) / self.softness
        return self.slope * self.softness * np.logaddexp(0.0, run)

    def forward(self, points: FloatArray) -> FloatArray:
        """Where the points (..., 3) go."""
        moved = points.copy()
        moved[..., self.axis] += self._shift(points)
        return moved

    def inverse(self, points: FloatArray) -> FloatArray:
        """Where the points (..., 3) come from."""
        moved = points.copy()
        moved[..., self.axis] -= self._shift(points)
        return moved


@dataclass(frozen=True)
class AnatomyMap:
    """From the canonical knee to one subject as it lies in its image, and back; exact both ways.

    Attributes:
        layers: the shape of the subject, from the posed subject towards the canonical knee.
        pose: 4x4 matrix from the subject's own frame to LPS mm: rotation, scale, shift, and the reflection of
            a left knee.
    """

    layers: tuple[Layer, ...]
    pose: FloatArray

    def to_canonical(self, points_lps_mm: ArrayLike) -> FloatArray:
        """LPS mm (..., 3) of the image to canonical mm (..., 3)."""
        points = apply_affine(np.linalg.inv(self.pose), points_lps_mm)
        for layer in self.layers:
            points = layer.forward(points)
        return points

    def from_canonical(self, points: ArrayLike) -> FloatArray:
        """Canonical mm (..., 3) to LPS mm (..., 3) of the image."""
        moved = np.asarray(points, dtype=float)
        for layer in reversed(self.layers):
            moved = layer.inverse(moved)
        return apply_affine(self.pose, moved)


def random_bumps(
    generator: np.random.Generator,
    axis: int,
    *,
    half_extent: Sequence[float],
    amplitude_mm: float,
    width_mm: tuple[float, float] = (24.0, 45.0),
    count: int = 6,
) -> BumpLayer:
    """A layer of `count` bumps at random places of the box +-`half_extent` (mm; 0 leaves a coordinate out).

    Args:
        generator: where the numbers come from.
        axis: the coordinate that moves.
        half_extent: three half sides of the box, in mm.
        amplitude_mm: standard deviation of the heights.
        width_mm: smallest and largest width.
        count: number of bumps.
    """
    extent = np.asarray(half_extent, dtype=float)
    widths = np.repeat(generator.uniform(*width_mm, size=(count, 1)), 3, axis=1)
    widths[:, extent == 0] = np.inf
    return BumpLayer(
        axis=axis,
        centres=generator.uniform(-extent, extent, size=(count, 3)),
        widths=widths,
        amplitudes=generator.normal(0.0, amplitude_mm, count),
    )


def joint_space(
    generator: np.random.Generator, axis: int, places: Sequence[float], change_mm: float
) -> BumpLayer:
    """A wider or narrower joint space at each of the `places` (mm along x), independently.

    Args:
        generator: where the numbers come from.
        axis: the coordinate along the leg.
        places: x of the compartments, in mm.
        change_mm: largest change of a bone's end at a place.
    """
    change = generator.uniform(-change_mm, change_mm, len(places))
    centres = np.zeros((2 * len(places), 3))
    centres[:, 0] = np.repeat(places, 2)
    centres[:, axis] = np.tile([-9.0, 9.0], len(places))
    widths = np.full((2 * len(places), 3), np.inf)
    widths[:, 0], widths[:, axis] = 17.0, 9.0
    return BumpLayer(axis, centres, widths, np.repeat(change, 2) * np.tile([1.0, -1.0], len(places)))


def pose_matrix(
    rotation_degrees: Sequence[float], scale: float, shift_mm: Sequence[float], *, mirrored: bool
) -> FloatArray:
    """4x4: first a reflection in x (a left knee), then rotations about x, y and z, a scale and a shift."""
    rotation = np.eye(3)
    for axis, degrees in enumerate(rotation_degrees):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        rotation = turn @ rotation
    pose = np.eye(4)
    pose[:3, :3] = scale * rotation @ np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0])
    pose[:3, 3] = shift_mm
    return pose
