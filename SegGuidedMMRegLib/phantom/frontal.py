"""The canonical knee in the frontal (anteroposterior) view: contours, and what lies along each ray.

Canonical coordinates are millimetres, a right knee seen from the front: x to the right of the picture
(medial), y down, the joint line at y = 0. Bones are smooth closed contours, stored once as signed
distances; a bone's thickness along the ray follows from the distance to its contour, as that of a
rounded body does. Overlapping bones (patella and femur, head of the fibula and tibia) add up along the
ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from SegGuidedMMRegLib.space import FloatArray

Profile = tuple[tuple[float, ...], tuple[float, ...]]  # y in mm, value there

_STEP = 0.4  # mm, of the canonical picture
_HALF = (126.0, 190.0)  # mm, half width and half height of the canonical picture

# fmt: off
_CONTOURS: dict[str, tuple[tuple[float, float], ...]] = {
    "femur": (
        (-31, -230), (-27.6, -190), (-24.2, -150), (-22, -120), (-21.8, -95), (-24, -78), (-28.6, -65),
        (-34.2, -54), (-38.6, -44), (-41, -35), (-41.2, -27), (-38.9, -20), (-39.2, -13), (-37, -6.8),
        (-31.5, -2.8),
        (-24, -1.4), (-16.5, -3.2), (-10.5, -7.8), (-5.3, -14), (0.4, -16.8), (6.2, -13.6), (11.2, -7.2),
        (17, -2.3),
        (25, -0.3), (32.8, -2), (38.4, -6.6), (40.6, -13), (40.6, -20), (42.4, -27.5), (42.8, -35),
        (40.4, -43),
        (34.6, -52), (28.2, -63), (22.6, -77), (17.6, -95), (13, -120), (5.4, -150), (1.4, -190),
        (-2, -230)),
    "tibia": (
        (-38.4, 7), (-33.5, 3.7), (-24, 4.3), (-14.5, 3), (-9.3, -0.6), (-5.8, -4.4), (-1.2, -2.2),
        (4.4, -6.4),
        (8.6, -1.2), (14.2, 3.6), (24, 5.4), (33, 4.9), (38, 7.3), (39.1, 12), (37.6, 19), (33.8, 29),
        (29, 40),
        (24.6, 52), (20.6, 66), (17.6, 85), (15.6, 110), (14.5, 150), (14, 190), (14, 230), (-13, 230),
        (-13, 190),
        (-13, 150), (-13.5, 110), (-15.4, 85), (-18.4, 66), (-22.8, 52), (-28, 40.5), (-33.6, 30),
        (-37.6, 21),
        (-39.4, 13)),
    "fibula": (
        (-41, 12.2), (-36, 14.4), (-31.4, 19.5), (-30.3, 27), (-32.6, 36), (-34, 47), (-33, 65), (-30.8, 95),
        (-29, 130), (-28, 190), (-27.5, 230), (-39.5, 230), (-40, 190), (-41, 130), (-42.3, 95), (-43.8, 65),
        (-44.8, 47), (-47.4, 37), (-49.6, 28), (-48.8, 19.8), (-45.6, 14.2)),
    "patella": (
        (-2, -69), (-12, -67.6), (-20, -62), (-24, -53), (-23, -43), (-17, -33), (-8.5, -26.3), (-2.2, -24),
        (4.6, -26), (13, -32.6), (19, -42), (20.6, -52), (17, -61.5), (9, -67.5)),
    "skin": (
        (-95, -230), (-88, -190), (-82, -150), (-75, -115), (-68, -80), (-62.5, -50), (-59.5, -25), (-58, 0),
        (-59, 25), (-61, 50), (-62.5, 80), (-62, 115), (-57, 160), (-50, 230), (46, 230), (54, 160),
        (60, 115),
        (62.5, 80), (60.5, 50), (58, 25), (57.5, 0), (60, -20), (64.5, -45), (69, -75), (74, -115),
        (80, -150),
        (84, -190), (88, -230)),
}

# Bright lines inside the bones: polyline, width in mm, strength in mm of compact bone.
_LINES: tuple[tuple[tuple[tuple[float, float], ...], float, float], ...] = (
    (((-37, -35), (-22, -32.5), (-8, -36.5), (6, -37), (20, -32.5),
     (38, -36.5)), 0.9, 2.6),  # femoral growth scar
    (((-34, 21), (-16, 17), (0, 18.5), (16, 16.5), (34, 20)), 0.9, 2.2),  # tibial growth scar
    (((-12.6, -9), (-13.4, -18), (-8.5, -24.5), (1, -27), (9.5, -24.5), (14.6, -18),
     (14, -8)), 0.9, 4.6),  # fossa
    (((15.2, -18), (16.2, -30)), 0.8, 3.4),  # trochlear border
    (((11, 6), (24, 8.6), (36, 10.2)), 0.9, 5.0),  # medial posterior rim
    (((-11, 5), (-24, 7.2), (-36, 9.6)), 0.9, 4.6),  # lateral posterior rim
    (((-13, 6), (-6.5, 0.5), (-1, 4), (4.5, -1.2), (11, 6)), 1.1, 2.6),  # spines
    (((-9, 37), (-5, 30), (1, 30), (5, 37), (2, 47), (-5, 47), (-9, 37)), 1.6, 0.9),  # tuberosity
)
# fmt: on


@dataclass(frozen=True)
class BoneBuild:
    """What a bone is made of, as functions of canonical y.

    Attributes:
        depth_mm: thickness along the ray.
        radius_mm: distance from the contour over which the bone rounds off.
        cortex_mm: thickness of the compact shell.
        spongy: density of the inside relative to compact bone.
    """

    depth_mm: Profile
    radius_mm: Profile
    cortex_mm: Profile
    spongy: Profile


_BUILDS = {
    "femur": BoneBuild(
        ((-190, -110, -70, -45, -25, 0), (29, 30, 38, 52, 58, 52)),
        ((-120, -70, -40, -10), (14.5, 16, 15, 11)),
        ((-190, -120, -90, -65, -45, 0), (6.0, 4.6, 2.8, 1.5, 0.9, 0.8)),
        ((-110, -75, -50, -25, 0), (0.03, 0.07, 0.15, 0.22, 0.24)),
    ),
    "tibia": BoneBuild(
        ((0, 10, 40, 70, 190), (44, 48, 39, 32, 28)),
        ((0, 15, 45, 80, 120), (8, 11, 15, 15, 13.5)),
        ((0, 30, 55, 85, 190), (0.9, 1.1, 2.2, 4.2, 6.0)),
        ((5, 25, 50, 80, 110), (0.26, 0.2, 0.11, 0.05, 0.03)),
    ),
    "fibula": BoneBuild(
        ((12, 25, 42, 65), (14, 22, 14, 12)),
        ((12, 25, 45), (7, 9, 5.4)),
        ((12, 30, 48, 80), (0.8, 1.0, 2.1, 3.0)),
        ((12, 40, 70), (0.2, 0.14, 0.04)),
    ),
    "patella": BoneBuild(
        ((-70, -24), (20, 20)), ((-70, -24), (11, 11)), ((-70, -24), (1.1, 1.1)), ((-70, -24), (0.2, 0.2))
    ),
}

# Muscle bellies: centre, half axes (mm), tilt in degrees, thickness along the ray in mm.
_MUSCLES = (
    ((38.0, -95.0), (26.0, 72.0), -9.0, 62.0),  # vastus medialis
    ((-42.0, -120.0), (26.0, 82.0), 7.0, 66.0),  # vastus lateralis
    ((-4.0, -150.0), (34.0, 90.0), 0.0, 74.0),  # rectus femoris and hamstrings
    ((27.0, 78.0), (28.0, 92.0), 3.0, 60.0),  # medial gastrocnemius, soleus
    ((-33.0, 84.0), (25.0, 86.0), -2.0, 56.0),  # lateral gastrocnemius, peronei
    ((0.0, -15.0), (46.0, 62.0), 0.0, 34.0),  # capsule, tendons, heads of the gastrocnemius
)


@dataclass(frozen=True)
class FrontalKnee:
    """The canonical picture: channels on a grid of `_STEP` mm.

    Attributes:
        distances: name of a contour to its signed distance in mm, negative inside.
        lines: strength of the drawn lines, mm of compact bone.
        muscle: thickness of muscle along the ray, mm.
    """

    distances: dict[str, NDArray[np.float32]]
    lines: NDArray[np.float32]
    muscle: NDArray[np.float32]


def sample(picture: NDArray[np.float32], points: FloatArray) -> NDArray[np.float32]:
    """Bilinear values of a canonical picture (H, W[, C]) at canonical points (..., 3); edges go on."""
    height, width = picture.shape[:2]
    fx = np.clip((points[..., 0] + _HALF[0]) / _STEP, 0, width - 1.001)
    fy = np.clip((points[..., 1] + _HALF[1]) / _STEP, 0, height - 1.001)
    ix, iy = fx.astype(np.int64), fy.astype(np.int64)
    shape = fx.shape + (1,) * (picture.ndim - 2)
    ax, ay = (fx - ix).astype(np.float32).reshape(shape), (fy - iy).astype(np.float32).reshape(shape)
    flat = picture.reshape(height * width, *picture.shape[2:])
    first = iy * width + ix
    upper = flat[first] * (1 - ax) + flat[first + 1] * ax
    lower = flat[first + width] * (1 - ax) + flat[first + width + 1] * ax
    return upper * (1 - ay) + lower * ay


def frontal_label_values(points: FloatArray) -> NDArray[np.uint8]:
    """Exact label of canonical points (..., 3): 1 femur, 2 tibia, 3 fibula, 0 elsewhere.

    One pixel has one label, though bones overlap on a projection. The patella lies on the femur and is not a
    structure of the frontal view (nor is it in the paper); where tibia and fibula overlap, it is tibia.
    """
    knee = canonical_frontal_knee()
    labels = np.zeros(points.shape[:-1], np.uint8)
    for value, bone in ((3, "fibula"), (2, "tibia"), (1, "femur")):
        labels[sample(knee.distances[bone], points) < 0] = value
    return labels


def bone_mineral(
    points: FloatArray, texture: NDArray[np.float32], cortex_factor: float, patella_factor: float
) -> tuple[FloatArray, FloatArray]:
    """Compact bone along the ray, in mm, and the thickness of all bone, at canonical points (..., 3).

    Args:
        points: canonical mm.
        texture: the subject's trabecular pattern on the canonical picture, relative, mean 0.
        cortex_factor: thickness of the subject's cortex relative to the canonical knee.
        patella_factor: density of the subject's patella relative to the canonical knee.
    """
    knee = canonical_frontal_knee()
    names = list(_BUILDS)
    stack = np.stack([*(knee.distances[name] for name in names), knee.lines, texture], axis=-1)
    values = sample(stack, points)
    grain, y = 1.0 + values[..., -1], points[..., 1]
    mineral, thickness = np.zeros(y.shape), np.zeros(y.shape)
    for index, name in enumerate(names):
        factor = patella_factor if name == "patella" else 1.0
        inside = np.flatnonzero(values[..., index].ravel() < 0.5)
        depth = -values[..., index].ravel()[inside]
        rows = y.ravel()[inside]
        whole, core = _chords(_BUILDS[name], depth, rows, cortex_factor)
        spongy = np.interp(rows, *_BUILDS[name].spongy) * grain.ravel()[inside]
        plate = _joint_plate(name, depth, points.reshape(-1, 3)[inside])
        mineral.ravel()[inside] += factor * (whole - core + core * spongy + plate)
        thickness.ravel()[inside] += whole
    in_bone = np.clip(-np.minimum(values[..., 0], values[..., 1]) / 1.5, 0, 1)
    return mineral + in_bone * values[..., -2] * grain, thickness


def soft_tissue(points: FloatArray, fat_mm: float) -> tuple[FloatArray, FloatArray]:
    """Thickness of fat and of muscle along the ray in mm, at canonical points (..., 3).

    Args:
        points: canonical mm.
        fat_mm: thickness of the fat under the skin.
    """
    knee = canonical_frontal_knee()
    values = sample(np.stack([knee.distances["skin"], knee.muscle], axis=-1), points)
    depth = -values[..., 0]
    leg_depth = np.interp(points[..., 1], (-190, -90, 0, 60, 190), (138, 119, 108, 108, 96))
    whole = leg_depth * _rounded(depth, 52.0)
    fascia = np.clip((depth - fat_mm) / 2.5, 0, 1)
    muscle = np.minimum(values[..., 1] * fascia, np.maximum(whole - 2 * fat_mm, 0))
    skin = 2.5 * np.clip(depth / 0.8, 0, 1) * np.exp(-np.clip(depth, 0, None) / 1.6)
    return whole - muscle, muscle + 4 * skin


def trabecular_texture(generator: np.random.Generator) -> NDArray[np.float32]:
    """One subject's trabeculae on the canonical picture: strands, grains and patches; relative, mean 0."""
    shape = canonical_frontal_knee().lines.shape
    strands = _filtered_noise(generator, shape, (0.35, 2.6))
    grains = _filtered_noise(generator, shape, (0.45, 0.55))
    patches = _filtered_noise(generator, (shape[0] // 8, shape[1] // 8), (0.9, 0.9))
    patches = np.kron(patches, np.ones((8, 8), np.float32))
    patches = np.pad(patches, [(0, n - m) for n, m in zip(shape, patches.shape, strict=True)], mode="edge")
    return (0.15 * strands + 0.12 * grains + 0.07 * smoothed(patches, (6.0, 6.0))).astype(np.float32)


@lru_cache(maxsize=1)
def canonical_frontal_knee() -> FrontalKnee:
    """The canonical picture, built once (about a second)."""
    return FrontalKnee(
        distances={name: _signed_distance(_closed_spline(points)) for name, points in _CONTOURS.items()},
        lines=_drawn_lines(),
        muscle=_muscle_bellies(),
    )


def smoothed(picture: NDArray, sigma_pixels: Sequence[float]) -> NDArray:
    """Gaussian smoothing of (H, W) with a sigma for x and one for y, in pixels."""
    image = sitk.GetImageFromArray(np.asarray(picture, np.float32))
    if min(sigma_pixels) > 2:
        return np.asarray(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, list(sigma_pixels))))
    variance = [float(s) ** 2 for s in sigma_pixels]
    width = int(2 * np.ceil(4 * max(sigma_pixels)) + 3)
    return np.asarray(sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, variance, width, 0.01, False)))


# -- canonical picture --------------------------------------------------------------------------------------
def _axes() -> tuple[FloatArray, FloatArray]:
    """x of the columns and y of the rows of the canonical picture, in mm."""
    return np.arange(-_HALF[0], _HALF[0] + _STEP / 2, _STEP), np.arange(
        -_HALF[1], _HALF[1] + _STEP / 2, _STEP
    )


def _closed_spline(points: ArrayLike, pieces: int = 10) -> FloatArray:
    """Closed Catmull-Rom curve through points (N, 2), as a polygon (N * pieces, 2)."""
    p1 = np.asarray(points, dtype=float)[:, None]
    p0, p2, p3 = (np.roll(p1, shift, axis=0) for shift in (1, -1, -2))
    t = np.linspace(0, 1, pieces, endpoint=False)[None, :, None]
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return curve.reshape(-1, 2)


def _signed_distance(polygon: FloatArray) -> NDArray[np.float32]:
    """Signed distance in mm to a closed polygon (N, 2) on the canonical picture, negative inside."""
    xs, ys = _axes()
    ends = np.roll(polygon, -1, axis=0)
    inside = np.zeros((len(ys), len(xs)), np.uint8)
    for row, y in enumerate(ys):
        crossing = (polygon[:, 1] <= y) != (ends[:, 1] <= y)
        a, b = polygon[crossing], ends[crossing]
        at = np.sort(a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]))
        inside[row] = np.searchsorted(at, xs) % 2
    distance = sitk.SignedMaurerDistanceMap(sitk.GetImageFromArray(inside), False, False, False)
    return (smoothed(sitk.GetArrayFromImage(distance), (1.2, 1.2)) * _STEP).astype(np.float32)


def _drawn_lines() -> NDArray[np.float32]:
    """All `_LINES`, each with a Gaussian profile."""
    xs, ys = _axes()
    drawn = np.zeros((len(ys), len(xs)), np.float32)
    for line, width, strength in _LINES:
        points = np.asarray(line, dtype=float)
        margin = 4 * width
        rows = slice(*np.searchsorted(ys, (points[:, 1].min() - margin, points[:, 1].max() + margin)))
        columns = slice(*np.searchsorted(xs, (points[:, 0].min() - margin, points[:, 0].max() + margin)))
        here = np.stack(np.meshgrid(xs[columns], ys[rows]), axis=-1)
        nearest = np.full(here.shape[:2], np.inf)
        for a, b in pairwise(points):
            t = np.clip((here - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            nearest = np.minimum(nearest, np.linalg.norm(here - a - t[..., None] * (b - a), axis=-1))
        drawn[rows, columns] += strength * np.exp(-0.5 * (nearest / width) ** 2)
    return drawn


def _muscle_bellies() -> NDArray[np.float32]:
    """Thickness of all `_MUSCLES` in mm."""
    x, y = np.meshgrid(*_axes())
    muscle = np.zeros(x.shape)
    for (cx, cy), (rx, ry), tilt, thickness in _MUSCLES:
        c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
        u, v = (c * (x - cx) + s * (y - cy)) / rx, (-s * (x - cx) + c * (y - cy)) / ry
        muscle += thickness * np.sqrt(np.clip(1 - u**2 - v**2, 0, None))
    return smoothed(muscle, (3.0, 3.0)).astype(np.float32)


# -- a bone along the ray -----------------------------------------------------------------------------------
def _rounded(depth: FloatArray, radius: FloatArray | float) -> FloatArray:
    """Relative chord, 0 to 1, of a body that rounds off over `radius` mm, `depth` mm inside its contour."""
    u = 1 - np.clip(depth / radius, 0, 1)
    return np.sqrt(1 - u * u)


def _chords(
    build: BoneBuild, depth: FloatArray, y: FloatArray, cortex_factor: float
) -> tuple[FloatArray, FloatArray]:
    """Thickness along the ray of the whole bone and of the inside of its shell, in mm."""
    radius, thick = np.interp(y, *build.radius_mm), np.interp(y, *build.depth_mm)
    cortex = np.interp(y, *build.cortex_mm) * cortex_factor
    whole = thick * _rounded(depth, radius)
    core = np.maximum(thick - 2 * cortex, 0) * _rounded(depth - cortex, np.maximum(radius - cortex, 1.0))
    return whole, np.where(depth > cortex, np.minimum(core, whole), 0)


def _joint_plate(bone: str, depth: FloatArray, points: FloatArray) -> FloatArray:
    """The dense plate under the joint surface of femur and tibia, in mm of compact bone."""
    x, y = points[:, 0], points[:, 1]
    if bone == "femur":
        near, strength = 1 / (1 + np.exp(-(y + 9) / 2.0)), 6.0
    elif bone == "tibia":
        near, strength = 1 / (1 + np.exp((y - 11) / 1.5)), 9.0
    else:
        return np.zeros(len(depth))
    edge = 1 / (1 + np.exp((np.abs(x) - 36) / 1.5))
    return strength * near * edge * np.exp(-np.clip(depth, 0, None) / 1.5) * np.clip(depth / 0.5, 0, 1)


def _filtered_noise(
    generator: np.random.Generator, shape: tuple[int, int], sigma_mm: tuple[float, float]
) -> NDArray[np.float32]:
    """Gaussian noise of deviation 1, smoothed by `sigma_mm` along x and y."""
    white = generator.standard_normal(shape, dtype=np.float32)
    noise = smoothed(white, [s / _STEP for s in sigma_mm])
    return (noise / noise.std()).astype(np.float32)
