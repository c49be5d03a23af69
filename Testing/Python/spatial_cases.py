"""Grids, affine maps and smooth fields that the tests of space share."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from SegGuidedMMRegLib.fields import DisplacementField, field_from_study
from SegGuidedMMRegLib.space import Grid


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """3x3 rotation by Euler angles in radians."""
    return np.reshape(sitk.Euler3DTransform((0, 0, 0), x, y, z).GetMatrix(), (3, 3))


def oblique_grid(
    size=(20, 24, 16), spacing=(1.1, 0.8, 2.0), origin=(-12.0, 33.0, 7.0), angles=(0.3, -0.2, 0.5)
) -> Grid:
    return Grid(size, spacing, origin, tuple(rotation(*angles).ravel()))


def left_handed_grid(size=(18, 22, 14), spacing=(1.3, 0.9, 2.2), origin=(60.0, -5.0, 3.0)) -> Grid:
    flipped = rotation(-0.2, 0.4, 0.1) @ np.diag([1.0, 1.0, -1.0])
    return Grid(size, spacing, origin, tuple(flipped.ravel()))


def smooth_image_array(shape, seed=0, sigma=2.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return sitk.GetArrayFromImage(
        sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), sigma)
    ).astype(np.float32)


def smooth_displacement(
    grid: Grid, amplitude_voxels: float, sigma_voxels: float, seed=0
) -> DisplacementField:
    """A random smooth displacement in the grid's plane or volume, largest length `amplitude_voxels`."""
    d = grid.dimension
    parts = [smooth_image_array(grid.shape, seed + 17 * c, sigma_voxels) for c in range(d)]
    voxels = np.stack(parts).astype(float)
    voxels *= amplitude_voxels / np.linalg.norm(voxels, axis=0).max()
    return field_from_study(voxels, grid)


def exponential(grid: Grid, amplitude_voxels: float, sigma_voxels: float, seed=0):
    """exp(v) and exp(-v) of a random smooth velocity, by SimpleITK's composition of fields."""
    velocity = smooth_displacement(grid, amplitude_voxels, sigma_voxels, seed).displacement_lps_mm
    both = []
    for sign in (1, -1):
        field = DisplacementField(grid, sign * velocity / 2**7)
        for _ in range(7):
            moved = grid.points() + field.displacement_lps_mm
            field = DisplacementField(grid, field.displacement_lps_mm + field.sampled(moved, extend=True))
        both.append(field)
    return both


def study_to(grid: Grid, angles=(0.0, 0.0, 0.2), mirrored=False) -> np.ndarray:
    """4x4 that puts the study's origin in the middle of `grid`, study axes nearly along its axes."""
    turn = rotation(*angles)
    matrix = np.eye(4)
    flip = np.diag([-1.0, 1.0, 1.0]) if mirrored else np.eye(3)
    matrix[:3, :3] = 1.05 * grid.direction_matrix @ turn @ flip
    if grid.dimension == 2:  # normal to normal, unscaled
        matrix[:3, 2] = grid.direction_matrix[:, 2]
    matrix[:3, 3] = grid.centre_lps_mm
    return matrix
