"""Affine registration of two pictures, global and careful enough to be left alone.

The score of a map is the normalised correlation of features (`affine_features.py`) over the overlap. The
search is exhaustive where it must be: for every rotation and scale of a coarse list the best shift is
found among ALL shifts by FFT. The best few are refined by Gauss-Newton steps (inverse compositional,
Baker and Matthews 2004), as similarities, then as an affine map. A map that shears, shrinks or turns more
than anatomy does, that leaves the picture or fits no better than a simpler one, is refused.

All happens in one frame, study space (LPS mm); a map takes points of the fixed picture to the moving
one's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegLib.space import FloatArray, Grid
from SegGuidedMMRegLib.training.affine_features import (
    FeatureKind,
    Features,
    Picture,
    features_at,
    features_through,
    resample_values,
)

Level = Literal["centre", "moments", "similarity", "affine"]

_COARSE_SCALES = (0.85, 1.0, 1.18)
_COARSE_SIZE = {2: 48, 3: 20}
_TURN_STEP_DEGREES = {2: 8.0, 3: 20.0}
_CANDIDATES = 3
_AFFINE_GAIN = 0.02
_DAMPING = 0.05


@dataclass(frozen=True)
class Limits:
    """What an affine map may do and still be the same anatomy seen again.

    Attributes:
        rotation_degrees: largest turn that is searched; 5 degrees more are believed.
        scale: smallest and largest singular value, relative to the scale of the start.
        anisotropy: largest ratio of two singular values (stretching and shear together).
        overlap: smallest share of the smaller picture that must be covered by the other.
        score: smallest correlation that is believed.
        gain: how much the score must exceed that of the centred start.
        prior: what a turn of half `rotation_degrees`, a scale of 1.2 or a shift of a tenth of the picture
            costs each in score; twice as far costs four times as much. Pictures that repeat themselves
            (vertebrae) or are nearly empty fit nearly as well in a wrong place far away.
    """

    rotation_degrees: float = 30.0
    scale: tuple[float, float] = (0.6, 1.6)
    anisotropy: float = 1.35
    overlap: float = 0.5
    score: float = 0.2
    gain: float = 0.04
    prior: float = 0.06


@dataclass(frozen=True)
class Fit:
    """A map from fixed to moving points, and how it was judged.

    Attributes:
        matrix: 4x4, fixed LPS mm to moving LPS mm.
        level: the family of maps it was found in.
        score: normalised correlation of the features on the overlap, -1 to 1, less the prior's cost.
        reason: why a richer map was refused, else empty.
    """

    matrix: FloatArray
    level: Level
    score: float
    reason: str = ""


@dataclass(frozen=True)
class _Task:
    """Two pictures, how to compare them, and what to believe."""

    fixed: Picture
    moving: Picture
    kind: FeatureKind
    limits: Limits
    scale: float

    def seen(self, matrix: FloatArray, grid: Grid) -> Features:
        return features_through(self.moving, matrix, grid, self.kind)

    def score(self, target: Features, matrix: FloatArray) -> float:
        return _correlation(target, self.seen(matrix, target.grid))[0] - self.cost(matrix)

    def cost(self, matrix: FloatArray) -> float:
        """What the prior takes off the score."""
        d = self.fixed.grid.dimension
        size = float(np.prod(self.fixed.grid.extent_mm[:d]) ** (1 / d)) * self.scale
        shift = np.linalg.norm(matrix[:d, 3]) / size / 0.1
        turn = _turn_degrees(matrix, d) / max(0.5 * self.limits.rotation_degrees, 1.0)
        stretch = np.log(np.linalg.svd(matrix[:d, :d])[1] / self.scale) / np.log(1.2)
        return self.limits.prior * float(shift**2 + turn**2 + (stretch**2).max())

    def why_not(self, matrix: FloatArray) -> str:
        return implausible(matrix, self.fixed, self.moving, self.limits, self.scale)


def register(
    fixed: Picture,
    moving: Picture,
    kind: FeatureKind,
    limits: Limits,
    *,
    scale: float = 1.0,
    affine: bool = True,
) -> Fit:
    """The best believable map from `fixed` to `moving`, both about centred on the origin of the frame.

    Args:
        fixed: the reference, on a grid of about isotropic voxels; its size sets the cost (about 100 a side in
            2D, 50 in 3D).
        moving: the image to map, of any direction, at about the same resolution.
        kind: the features to compare by.
        limits: what is believed.
        scale: scale to search around (moving mm a fixed mm).
        affine: whether an affine map may follow the similarity.

    Returns:
        A similarity or affine fit, or the centred start with the reason why nothing better is believed.
    """
    d = fixed.grid.dimension
    task = _Task(fixed, moving, kind, limits, scale)
    coarse, fine = features_at(fixed, kind, _COARSE_SIZE[d]), features_at(fixed, kind, max(fixed.grid.size))
    start = scaling(scale, d)
    centre = Fit(start, "centre", task.score(fine, start))
    found = [_gauss_newton(task, coarse, m, "similarity", 15) for m in _coarse_search(task, coarse)]
    found = [m for m in found if not task.why_not(m)]
    if not found:
        return replace(centre, reason="no plausible shift and turn leaves enough overlap")
    best = max(found, key=lambda m: task.score(coarse, m))
    fit = Fit(best, "similarity", task.score(fine, best))
    fit = _richer(task, fine, fit, "similarity")
    if affine:
        fit = _richer(task, fine, fit, "affine")
    if fit.score + task.cost(fit.matrix) < limits.score or fit.score < centre.score + limits.gain:
        return replace(centre, reason=f"best score {fit.score:.2f}, centred {centre.score:.2f}")
    return fit


def _richer(task: _Task, fine: Features, fit: Fit, level: Level) -> Fit:
    """`fit` refined within a family of maps if the result is plausible and better; else `fit`, and why."""
    matrix = _gauss_newton(task, fine, fit.matrix, level, 15)
    score, why = task.score(fine, matrix), task.why_not(matrix)
    if not why and score <= fit.score + (_AFFINE_GAIN if level == "affine" else 0.0):
        why = "it fits no better"
    return replace(fit, reason=f"{level} refused: {why}") if why else Fit(matrix, level, score)


def scaling(scale: float, dimension: int) -> FloatArray:
    """4x4 that scales the first `dimension` axes: the thickness of a slice stays."""
    return np.diag([scale, scale, scale if dimension == 3 else 1.0, 1.0])


# -- the coarse search --------------------------------------------------------------------------------------
def _coarse_search(task: _Task, target: Features) -> list[FloatArray]:
    """The best shift for every listed rotation and scale; the best few of all."""
    spectrum, d = _Spectrum.of(target), target.grid.dimension
    results: list[tuple[float, FloatArray]] = []
    for rotation, factor in product(_rotations(d, task.limits.rotation_degrees), _COARSE_SCALES):
        matrix = scaling(task.scale * factor, d)
        matrix[:3, :3] = rotation @ matrix[:3, :3]
        score, shift = spectrum.best_shift(task.seen(matrix, target.grid), task.limits)
        if score > 0:
            matrix[:3, 3] = matrix[:3, :3] @ shift
            results.append((score - task.cost(matrix), matrix))
    return [m for _, m in sorted(results, key=lambda r: -r[0])[:_CANDIDATES]]


def _rotations(dimension: int, largest_degrees: float) -> list[FloatArray]:
    """Rotation matrices (3x3) over the range, finer in the plane than about the three axes of space."""
    count = int(np.ceil(largest_degrees / _TURN_STEP_DEGREES[dimension]))
    angles = np.radians(np.linspace(0, largest_degrees, count + 1)[1:])
    axes = (2,) if dimension == 2 else (0, 1, 2)
    return [np.eye(3)] + [_rotation(axis, sign * a) for axis in axes for a in angles for sign in (-1, 1)]


def _rotation(axis: int, angle: float) -> FloatArray:
    matrix = np.eye(3)
    a, b = (n for n in range(3) if n != axis)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


@dataclass(frozen=True)
class _Spectrum:
    """Zero-padded Fourier transforms of the fixed features, their energy and their weight."""

    features: NDArray
    energy: NDArray
    weight: NDArray
    total: float
    far: NDArray
    shape: tuple[int, ...]
    grid: Grid

    @staticmethod
    def of(target: Features) -> _Spectrum:
        shape = tuple(_fast_size(3 * n // 2) for n in target.grid.shape)
        axes = tuple(range(-len(shape), 0))
        energy = (target.values**2).sum(0)
        values, energy, weight = (
            np.fft.rfftn(a, shape, axes) for a in (target.values, energy, target.weight)
        )
        size = np.prod(target.grid.shape) ** (1 / len(shape))
        steps = [np.fft.fftfreq(n, 1 / n) / size / 0.1 for n in shape]
        far = np.sum(np.square(np.meshgrid(*steps, indexing="ij")), axis=0)
        return _Spectrum(values, energy, weight, float(target.weight.sum()), far, shape, target.grid)

    def best_shift(self, seen: Features, limits: Limits) -> tuple[float, FloatArray]:
        """Largest correlation over all shifts of up to half the box, less the cost of the shift.

        Returns:
            the score, and the shift (3,) in mm: what is seen at x + shift belongs to the fixed picture at x.
        """
        axes = tuple(range(-len(self.shape), 0))

        def back(spectrum: NDArray) -> NDArray:
            return np.fft.irfftn(spectrum, self.shape, axes)

        moving, energy, weight = (
            np.fft.rfftn(a, self.shape, axes) for a in (seen.values, (seen.values**2).sum(0), seen.weight)
        )
        common = back((np.conj(self.features) * moving).sum(0))
        energies = back(np.conj(self.energy) * weight) * back(np.conj(self.weight) * energy)
        smaller = max(min(self.total, float(seen.weight.sum())), 1.0)
        share = back(np.conj(self.weight) * weight) / smaller
        score = common / np.sqrt(np.maximum(energies, 1e-6 * self.total**2))
        score = np.where(share >= limits.overlap, score - limits.prior * self.far, -1.0)
        peak = np.unravel_index(int(score.argmax()), self.shape)
        steps = [int(p) - n if p > n // 2 else int(p) for p, n in zip(peak, self.shape, strict=True)]
        shift = np.zeros(3)
        shift[: len(steps)] = np.asarray(steps[::-1]) * np.asarray(self.grid.spacing[: len(steps)])
        return float(score[peak]), shift


def _fast_size(n: int) -> int:
    """The next size with no prime factor above 5."""
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


# -- refinement ---------------------------------------------------------------------------------------------
def _gauss_newton(
    task: _Task, target: Features, start: FloatArray, level: Level, iterations: int
) -> FloatArray:
    """Local best of the score from `start`; the best map seen, which may be the start."""
    d = target.grid.dimension
    points = target.grid.points()[..., :d]
    radius = float(np.abs(points).max())
    generators = _generators(d, level)
    jacobian, normal = _steepest_descent(target, points / radius, generators)
    matrix, best, best_score, worse = start.copy(), start, -1.0, 0
    for _ in range(iterations):
        seen = task.seen(matrix, target.grid)
        score, gain = _correlation(target, seen)
        worse = 0 if score > best_score + 1e-3 else worse + 1
        if score > best_score:
            best, best_score = matrix.copy(), score
        if worse > 2:
            break
        residual = (gain * seen.values - target.values) * (seen.weight * target.weight)
        step = np.linalg.solve(normal, [float((j * residual).sum()) for j in jacobian])
        matrix = matrix @ np.linalg.inv(_small_map(step, generators, level, radius))
    return best


def _steepest_descent(
    target: Features, unit: FloatArray, generators: list[FloatArray]
) -> tuple[list[FloatArray], FloatArray]:
    """Derivatives of the fixed features by each parameter, [C, *shape], and their damped normal matrix."""
    d = target.grid.dimension
    spacing = target.grid.axis_spacing
    by_xyz = [np.gradient(target.values, spacing[a], axis=a + 1) for a in range(d - 1, -1, -1)]
    jacobian = []
    for g in generators:
        total = np.zeros_like(target.values)
        for row in range(d):
            if g[row].any():
                total += by_xyz[row] * (unit @ g[row, :d] + g[row, d])
        jacobian.append(total)
    flat = np.stack([j.ravel() for j in jacobian]).astype(float)
    normal = flat @ flat.T
    return jacobian, normal + _DAMPING * np.diag(np.diag(normal)) + 1e-9 * np.eye(len(normal))


def _generators(d: int, level: Level) -> list[FloatArray]:
    """Matrices [d, d + 1] that span the small maps: shifts, and scale and turns, or all linear."""

    def single(row: int, column: int) -> FloatArray:
        g = np.zeros((d, d + 1))
        g[row, column] = 1.0
        return g

    shifts = [single(row, d) for row in range(d)]
    if level == "affine":
        return shifts + [single(row, column) for row in range(d) for column in range(d)]
    turns = [single(b, a) - single(a, b) for a in range(d) for b in range(a + 1, d)]
    return [*shifts, np.eye(d, d + 1), *turns]


def _small_map(step: FloatArray, generators: list[FloatArray], level: Level, radius: float) -> FloatArray:
    """4x4 map of the parameters, cut to a tenth of the picture; exactly in the family."""
    step = step * min(1.0, 0.1 * radius / max(float(np.abs(step).max()), 1e-12))
    g = np.tensordot(step, np.stack(generators), axes=1)
    d = len(g)
    linear = np.eye(d) + g[:, :d] / radius
    if level == "similarity":
        u, s, vt = np.linalg.svd(linear)
        linear = np.prod(s) ** (1 / d) * (u @ vt)
    matrix = np.eye(4)
    matrix[:d, :d], matrix[:d, 3] = linear, g[:, d]
    return matrix


# -- judging ------------------------------------------------------------------------------------------------
def _correlation(a: Features, b: Features) -> tuple[float, float]:
    """Normalised correlation over the common weight, and the factor that brings b to the energy of a."""
    weight = a.weight * b.weight
    common, aa, bb = (float((x * weight).sum()) for x in (a.values * b.values, a.values**2, b.values**2))
    if weight.sum() < 16 or aa <= 0 or bb <= 0:
        return -1.0, 1.0
    return common / float(np.sqrt(aa * bb)), float(np.sqrt(aa / bb))


def implausible(
    matrix: FloatArray, fixed: Picture, moving: Picture, limits: Limits, scale: float = 1.0
) -> str:
    """Why a map cannot be the same anatomy seen again; empty where it can."""
    d = fixed.grid.dimension
    if not np.isfinite(matrix).all():
        return "it is not finite"
    u, s, vt = np.linalg.svd(matrix[:d, :d])
    if np.linalg.det(u @ vt) < 0:
        return "it mirrors"
    if s.min() < limits.scale[0] * scale or s.max() > limits.scale[1] * scale:
        return f"it scales by {s.min() / scale:.2f} to {s.max() / scale:.2f}"
    if s.max() / s.min() > limits.anisotropy:
        return f"it stretches by {s.max() / s.min():.2f}"
    angle = _turn_degrees(matrix, d)
    if angle > limits.rotation_degrees + 5:
        return f"it turns by {angle:.0f} degrees"
    share = overlap(fixed, moving, matrix)
    return f"only {share:.0%} of the pictures overlap" if share < limits.overlap else ""


def _turn_degrees(matrix: FloatArray, d: int) -> float:
    """Angle of the rotation nearest to the linear part."""
    u, _, vt = np.linalg.svd(matrix[:d, :d])
    return float(np.degrees(np.arccos(np.clip((np.trace(u @ vt) - (d - 2)) / 2, -1, 1))))


def overlap(fixed: Picture, moving: Picture, matrix: FloatArray) -> float:
    """Common area or volume over that of the smaller of the two pictures."""
    d = fixed.grid.dimension
    seen = resample_values(moving.valid.astype(np.float32), moving.grid, matrix, fixed.grid) > 0.5
    voxel = float(np.prod(fixed.grid.spacing[:d])) * abs(float(np.linalg.det(matrix[:d, :d])))
    moving_volume = float(moving.valid.sum()) * float(np.prod(moving.grid.spacing[:d]))
    smaller = min(float(fixed.valid.sum()) * voxel, moving_volume)
    return float((seen & fixed.valid).sum()) * voxel / smaller if smaller > 0 else 0.0


# -- moments ------------------------------------------------------------------------------------------------
def moments_fit(fixed: Picture, moving: Picture, limits: Limits, scale: float = 1.0) -> Fit:
    """Brings together centre and mean radius of the intensities; only the grids' centres if that fails."""
    d = fixed.grid.dimension
    centred = scaling(scale, d)
    (centre, radius), (moving_centre, moving_radius) = _moments(fixed), _moments(moving)
    if radius <= 0 or moving_radius <= 0:
        return Fit(centred, "centre", 0.0, "moments refused: the image is constant")
    matrix = scaling(moving_radius / radius, d)
    matrix[:3, 3] = moving_centre - matrix[:3, :3] @ centre
    why = implausible(matrix, fixed, moving, limits, scale)
    return Fit(centred, "centre", 0.0, f"moments refused: {why}") if why else Fit(matrix, "moments", 0.0)


def _moments(picture: Picture) -> tuple[FloatArray, float]:
    points = picture.grid.points()[picture.valid]
    weight = picture.array[picture.valid].astype(float)
    if weight.size == 0 or np.ptp(weight) <= 0:
        return np.zeros(3), 0.0
    weight = weight - weight.min()
    centre = weight @ points / weight.sum()
    return centre, float(np.sqrt(weight @ ((points - centre) ** 2).sum(axis=1) / weight.sum()))
