"""How the knee is imaged in 3D: bone alone, as a CT with a bone window, and all tissues, as an MR.

The two play in 3D the parts that DXA and radiograph play in 2D. Both take the canonical points of the
voxels and draw what a subject and a device have of their own from the generator they are given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from SegGuidedMMRegLib.phantom.volume import (
    BONES,
    cord_distance,
    joint_tissue,
    muscle_distance,
    skin_distance,
    vessel_distance,
)
from SegGuidedMMRegLib.space import FloatArray

_CORTEX_MM = {
    "femur": ((0, 40, 60, 90, 130), (1.0, 1.1, 1.8, 3.4, 5.5)),
    "tibia": ((-130, -90, -55, -25, 0), (5.5, 4.2, 2.0, 1.2, 1.6)),
    "fibula": ((-80, -45, -20), (2.6, 1.8, 1.0)),
    "patella": ((0, 80), (1.3, 1.3)),
}
_SPONGY = ((-130, -80, -45, -10, 35, 60, 100), (0.02, 0.05, 0.16, 0.34, 0.32, 0.16, 0.03))  # by canonical z


@dataclass(frozen=True)
class Skeleton:
    """Bone at the voxels, 0 to 1 with partial volume.

    Attributes:
        whole: bone with its marrow.
        core: what lies inside the compact shell.
        spongy: density of the core relative to compact bone.
    """

    whole: FloatArray
    core: FloatArray
    spongy: FloatArray


def ct_volume(
    generator: np.random.Generator,
    canonical: FloatArray,
    *,
    spacing_mm: float,
    distances: dict[str, FloatArray],
) -> NDArray[np.float32]:
    """Bone as a CT with a bone window shows it: 0 without bone, about 1 in compact bone.

    Args:
        generator: where the numbers come from.
        canonical: canonical points (*shape, 3), mm.
        spacing_mm: of the voxels.
        distances: `bone_distances` of the points.
    """
    shape = canonical.shape[:-1]
    points = canonical.reshape(-1, 3)
    grain = _trabeculae(generator, points)
    bone = _skeleton(points, distances, spacing_mm, generator.uniform(0.85, 1.2))
    dense = bone.whole - bone.core + bone.core * bone.spongy * (1 + 0.35 * grain)
    volume = _blurred(dense.reshape(shape), 0.9 / spacing_mm) * generator.uniform(0.9, 1.05)
    noise = 0.025 * _blurred(generator.standard_normal(shape), 0.5) * 2.5
    haze = 0.02 * _blurred(generator.standard_normal(shape), 4.0) * 25
    return np.clip(volume + noise + haze, 0, 1.3).astype(np.float32)


def mr_volume(
    generator: np.random.Generator,
    canonical: FloatArray,
    *,
    spacing_mm: float,
    distances: dict[str, FloatArray],
) -> NDArray[np.float32]:
    """Like a proton-density MR: marrow and fat bright, muscle grey, cartilage light, cortex and cords dark.

    Args:
        generator: where the numbers come from.
        canonical: canonical points (*shape, 3), mm.
        spacing_mm: of the voxels.
        distances: `bone_distances` of the points.
    """
    shape = canonical.shape[:-1]
    points = canonical.reshape(-1, 3)
    fat, muscle, marrow = generator.uniform((0.78, 0.34, 0.68), (0.95, 0.46, 0.86))
    grain = _trabeculae(generator, points)
    skin = skin_distance(points)
    inside_fascia = _inside(skin + generator.uniform(6.0, 12.0), spacing_mm)
    signal = _inside(skin, spacing_mm) * fat * (1 + 0.05 * grain)
    signal = _mix(signal, 0.85 * fat * (1 + 0.08 * grain), inside_fascia)
    signal = _mix(
        signal, muscle * (1 + 0.08 * grain), inside_fascia * _inside(muscle_distance(points), spacing_mm)
    )
    signal = _mix(signal, 0.62, _inside(np.abs(skin + 1) - 1.0, spacing_mm))
    cartilage, meniscus = joint_tissue(points, distances)
    signal = _mix(signal, 0.58, 0.9 * cartilage)
    signal = _mix(signal, 0.10, meniscus)
    signal = _mix(signal, 0.14, _inside(cord_distance(points), spacing_mm))
    signal = _mix(signal, 0.16, _inside(vessel_distance(points), spacing_mm))
    bone = _skeleton(points, distances, spacing_mm, generator.uniform(0.85, 1.2))
    signal = _mix(signal, 0.05, bone.whole)
    signal = _mix(signal, marrow * (1 - 0.35 * bone.spongy) * (1 + 0.12 * grain), bone.core)
    volume = _blurred(signal.reshape(shape), 0.5 / spacing_mm) * _coil(generator, shape)
    sigma = generator.uniform(0.018, 0.032)
    real, imaginary = sigma * generator.standard_normal((2, *shape))
    return np.hypot(volume + real, imaginary).astype(np.float32)


def _skeleton(
    points: FloatArray, distances: dict[str, FloatArray], spacing_mm: float, cortex_factor: float
) -> Skeleton:
    whole, core = np.zeros(len(points)), np.zeros(len(points))
    for name in BONES:
        cortex = cortex_factor * np.interp(points[:, 2], *_CORTEX_MM[name])
        whole = np.maximum(whole, _inside(distances[name], spacing_mm))
        core = np.maximum(core, _inside(distances[name] + cortex, spacing_mm))
    return Skeleton(whole, np.minimum(core, whole), np.interp(points[:, 2], *_SPONGY))


def _inside(distance: FloatArray, spacing_mm: float) -> FloatArray:
    """Share of a voxel inside a surface at a signed distance of its centre."""
    return np.clip(0.5 - distance / spacing_mm, 0, 1)


def _mix(below: FloatArray, above: FloatArray | float, share: FloatArray) -> FloatArray:
    return below + share * (above - below)


def _trabeculae(generator: np.random.Generator, points: FloatArray, step_mm: float = 2.0) -> FloatArray:
    """A subject's texture, made in canonical space so that it moves with the anatomy; deviation about 1."""
    count = 96
    noise = sitk.GetImageFromArray(generator.standard_normal((count, count, count), dtype=np.float32))
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(noise, [0.36, 0.36, 1.0], 9, 0.01, False))
    smooth /= smooth.std()
    where = points / step_mm + (count - 1) / 2
    low = np.floor(where).astype(np.int64)
    part = where - low
    value = np.zeros(len(points))
    for corner in np.ndindex(2, 2, 2):
        i, j, k = ((low + corner) % count).T
        share = np.prod(np.where(corner, part, 1 - part), axis=1)
        value += share * smooth[k, j, i]
    return value


def _coil(generator: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """Smooth sensitivity of a surface coil, about 0.75 to 1.25."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    tilt = sum(slope * axis for slope, axis in zip(generator.uniform(-0.14, 0.14, 3), axes, strict=True))
    bowl = sum(generator.uniform(-0.12, 0.02) * axis**2 for axis in axes)
    return np.exp(tilt + bowl)


def _blurred(volume: FloatArray, sigma_voxels: float) -> FloatArray:
    """Gaussian smoothing by `sigma_voxels` along every axis."""
    image = sitk.GetImageFromArray(np.asarray(volume, np.float32))
    if sigma_voxels > 2:
        return sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, sigma_voxels))
    width = int(2 * np.ceil(4 * sigma_voxels) + 3)
    return sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, [sigma_voxels**2] * 3, width, 0.01, False))
