"""The canonical knee in three dimensions, as implicit surfaces.

Canonical coordinates are millimetres, a right knee: x to the subject's left (medial), y to the back, z
up, the joint line at z = 0. Long parts are tubes of elliptical cross-section whose centre and radii
follow tables along z; condyles, spines and the patella are ellipsoids; smooth unions and differences
join them. All functions return signed distances in mm, negative inside, to first order (exact at the
surface).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegLib.space import FloatArray

Triple = tuple[float, float, float]
Tube = tuple[tuple[float, float, float, float, float], ...]  # z, centre x, centre y, radius x, radius y

BONES = ("femur", "tibia", "fibula", "patella")

# fmt: off
_FEMUR: Tube = (
    (-10, 0, -2, 40, 21), (22, 0, -2, 39.5, 22), (34, 0.5, -3, 39, 22), (45, 0.5, -4, 35, 19),
    (56, 0, -5, 28.5, 17),
    (70, -1, -6, 21.5, 15.5), (90, -3, -6, 17, 14.5), (120, -6, -5, 14.8, 14.5), (160, -9, -4, 14.5, 14.8),
    (240, -15, -4, 14.5, 15))
_TIBIA: Tube = (
    (12, 0, 3, 37, 23.5), (-4, 0, 3, 38, 24.5), (-12, 0, 3, 38.8, 25.5), (-20, 0, 2, 36.8, 24),
    (-30, 0, 1.5, 32.2, 21.5), (-42, 0.5, 1, 26.5, 19.5), (-56, 1, 1, 21.5, 17.5),
    (-75, 1.3, 1, 17.5, 16.5),
    (-100, 1, 1, 14.8, 15.3), (-150, 0.5, 1, 13.5, 14), (-240, 0.5, 1, 13.5, 14))
_FIBULA: Tube = (
    (-12, -41, 19, 7, 7), (-20, -40.5, 19, 9.5, 10), (-28, -40, 18.5, 9.6, 10.2), (-38, -39.2, 17, 7, 8),
    (-50, -38.6, 16, 5.4, 6.2), (-80, -37.5, 14, 5.6, 6), (-130, -35, 13, 5.8, 6), (-240, -33, 12, 5.8, 6))
_SKIN: Tube = (
    (240, 0, 3, 80, 84), (130, 0, 1, 73, 76), (80, 0, 0, 66.5, 70), (45, 0, -1, 61.5, 66),
    (15, 0, 1.5, 58, 60.5),
    (-15, 0, 5, 56.5, 54), (-45, 0, 10, 57, 52), (-85, 0, 12, 58.5, 53), (-130, 0, 10, 53, 49),
    (-240, 0, 6, 42, 42))
_MUSCLES: tuple[Tube, ...] = (
    ((34, 37, -12, 3, 5), (48, 38, -14, 10.6, 16.5), (80, 37, -22, 22.4, 26), (130, 32, -28, 29.5, 30.7),
     (240, 30, -30, 35.4, 35.4)),
    ((40, -39, -12, 3, 6), (55, -39, -15, 10.6, 17.7), (85, -37, -21, 21.2, 28.3),
     (130, -36, -26, 29.5, 35.4), (240, -34, -28, 35.4, 37.8)),
    ((72, -2, -42, 4, 3), (90, -3, -40, 22.4, 11.8), (130, -4, -38, 31.9, 20.1), (240, -4, -40, 35.4, 23.6)),
    ((-14, 33, 28, 3, 3), (20, 33, 33, 8.3, 9.4), (50, 30, 36, 14.2, 15.3), (90, 24, 40, 22.4, 20.1),
     (240, 18, 42, 28.3, 26)),
    ((-18, -40, 24, 3, 3), (20, -40, 30, 8.3, 10.6), (50, -35, 35, 14.2, 15.3), (90, -26, 40, 21.2, 20.1),
     (240, -18, 42, 26, 23.6)),
    ((38, 22, 36, 4, 3), (10, 22, 43, 14.2, 8.3), (-30, 22, 42, 22.4, 15.3), (-85, 22, 40, 28.3, 22.4),
     (-240, 18, 36, 23.6, 21.2)),
    ((36, -22, 36, 4, 3), (8, -22, 42, 13, 8.3), (-30, -19, 41, 18.9, 14.2), (-85, -21, 40, 26, 21.2),
     (-240, -16, 36, 21.2, 18.9)),
    ((-18, 0, 27, 6, 3), (-40, -3, 23, 23.6, 7.1), (-85, -4, 22, 31.9, 15.3), (-240, -4, 22, 28.3, 16.5)),
    ((-34, -34, -6, 3, 5), (-58, -30, -9, 11.8, 15.3), (-95, -29, -7, 17.7, 23.6),
     (-240, -26, -6, 16.5, 21.2)),
)
_CORDS: tuple[tuple[Triple, Triple, float, float], ...] = (  # tendons: ends, half width, half depth
    ((-2, -46, 58), (-4, -43, 118), 11.0, 3.0),     # quadriceps tendon
    ((-2, -46, 22), (-3, -28, -34), 10.0, 2.6),     # patellar tendon
    ((-8, 10, 18), (3, -9, 2), 3.8, 3.8),           # anterior cruciate
    ((8, 4, 14), (-1, 22, -6), 4.6, 4.6),           # posterior cruciate
    ((43, -2, 26), (36, -2, -34), 1.6, 6.0),        # medial collateral
    ((-43, 4, 24), (-43, 15, -16), 2.2, 2.4),       # lateral collateral
)
_VESSELS: tuple[Tube, ...] = (
    ((240, 6, 34, 4.5, 4.5), (60, 2, 36, 4.2, 4.2), (0, -1, 37, 4, 4), (-60, -2, 34, 3.4, 3.4),
     (-240, -2, 32, 3, 3)),
    ((240, 0, 42, 5, 4.5), (60, -3, 43, 4.8, 4.2), (0, -3, 44, 4.6, 4), (-60, -4, 40, 4, 3.5),
     (-240, -4, 38, 3, 3)),
)
# fmt: on
_FULLNESS_MM, _SEPTUM_MM = 3.5, 1.2


def bone_distances(points: FloatArray) -> dict[str, FloatArray]:
    """Signed distance in mm of canonical points (N, 3) to femur, tibia, fibula and patella."""
    return {
        "femur": _femur(points),
        "tibia": _tibia(points),
        "fibula": _fibula(points),
        "patella": _patella(points),
    }


def volume_label_values(distances: dict[str, FloatArray]) -> NDArray[np.uint8]:
    """Exact labels from `bone_distances`: 1 femur, 2 tibia, 3 fibula, 4 patella, 0 elsewhere."""
    stacked = np.stack([distances[name] for name in BONES])
    nearest = stacked.argmin(axis=0)
    return np.where(stacked.min(axis=0) < 0, nearest + 1, 0).astype(np.uint8)


def skin_distance(points: FloatArray) -> FloatArray:
    """Signed distance to the skin."""
    return _tube(points, _SKIN)


def muscle_distance(points: FloatArray) -> FloatArray:
    """Signed distance to the nearest muscle; neighbours are kept apart by a thin septum of fat."""
    nearest, second = np.partition([_tube(points, muscle, closed=True) for muscle in _MUSCLES], 1, axis=0)[:2]
    return np.maximum(nearest - _FULLNESS_MM, _SEPTUM_MM - (second - nearest))


def cord_distance(points: FloatArray) -> FloatArray:
    """Signed distance to the nearest tendon or ligament."""
    return np.minimum.reduce([_cord(points, *cord) for cord in _CORDS])


def vessel_distance(points: FloatArray) -> FloatArray:
    """Signed distance to the popliteal artery and vein."""
    return np.minimum.reduce([_tube(points, vessel) for vessel in _VESSELS])


def joint_tissue(points: FloatArray, distances: dict[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """How much canonical points (N, 3) are cartilage and how much they are meniscus, 0 to 1."""
    femur, tibia, patella = (distances[name] for name in ("femur", "tibia", "patella"))
    x, y, z = points.T
    femoral = (z < 16) | (y > 16) & (z < 42) | (y < -18) & (z < 50)
    tibial = (z > -6) & (np.abs(x) > 9)
    cartilage = (femoral & (femur < 2.3)) | (tibial & (tibia < 2.3)) | ((y > -38) & (patella < 2.6))
    ring = np.hypot((np.abs(x) - 23) / 19, (y - 1) / 24)
    between = (femur < 7) & (tibia < 7) & (femur > 0) & (tibia > 0) & (np.abs(x) > 9) & (z < 12)
    meniscus = between & (ring > 0.68) & (ring < 1.08)
    return (cartilage & ~meniscus).astype(float), meniscus.astype(float)


# -- bones --------------------------------------------------------------------------------------------------
def _femur(points: FloatArray) -> FloatArray:
    shaft = _smooth_max(_tube(points, _FEMUR), 24.0 - points[:, 2], 10.0)
    medial = _smooth_min(
        _ellipsoid(points, (23.5, -3, 21), (16.8, 26, 21.2)),
        _ellipsoid(points, (24.5, 14, 20), (15.5, 21, 20.5)),
        5.0,
    )
    lateral = _smooth_min(
        _ellipsoid(points, (-23, -5, 20.5), (17.2, 27, 21.2)),
        _ellipsoid(points, (-24, 13, 20.5), (15, 20, 20)),
        5.0,
    )
    trochlea = _ellipsoid(points, (-1, -13, 30), (29, 19, 17))
    body = _smooth_min(_smooth_min(shaft, _smooth_min(medial, lateral, 4.0), 9.0), trochlea, 7.0)
    epicondyles = np.minimum(
        _ellipsoid(points, (37, 0, 31), (6.5, 12, 10)), _ellipsoid(points, (-36.5, 1, 27), (5.5, 11, 9))
    )
    body = _smooth_min(body, epicondyles, 6.0)
    body = _smooth_max(body, -_ellipsoid(points, (0.5, 22, 3), (9.5, 33, 19.5)), 4.0)
    return _smooth_max(body, -_ellipsoid(points, (-2, -45, 24), (17, 15.5, 40)), 5.0)


def _tibia(points: FloatArray) -> FloatArray:
    _, y, z = points.T
    top = z + 4.2 + 0.08 * y
    body = _smooth_max(_tube(points, _TIBIA), top, 5.0)
    dishes = np.minimum(
        _ellipsoid(points, (23, 2, 46), (60, 60, 51.3)), _ellipsoid(points, (-22.5, 2, 46), (60, 60, 50.9))
    )
    body = _smooth_max(body, -dishes, 2.5)
    spines = np.minimum(
        _ellipsoid(points, (5.0, 2, -8), (5.4, 10, 13.8)), _ellipsoid(points, (-6, 5, -8), (5.2, 9, 12.2))
    )
    body = _smooth_min(body, spines, 4.0)
    body = _smooth_min(body, _ellipsoid(points, (-3, -18.5, -37), (9.5, 7, 18)), 11.0)
    back = _ellipsoid(points, (0, 37, -5), (11, 15, 26))
    return _smooth_max(body, -back, 6.0)


def _fibula(points: FloatArray) -> FloatArray:
    styloid = _ellipsoid(points, (-42, 21, -17), (5, 5.5, 6.5))
    shaft = _smooth_max(_tube(points, _FIBULA), points[:, 2] + 16.0, 7.0)
    return _smooth_min(shaft, styloid, 4.0)


def _patella(points: FloatArray) -> FloatArray:
    x, y, z = points.T
    apex = 1 + 0.22 * np.clip((38 - z) / 20, 0, 1.2)  # narrower towards the lower end
    squeezed = np.stack([-2 + (x + 2) * apex, y, z], axis=-1)
    disc = _ellipsoid(squeezed, (-2, -44, 41), (21.5, 10.5, 20.5))
    ridge = (y + 36) - 0.22 * np.abs(x + 4)  # two facets that meet at a ridge, facing the trochlea
    return _smooth_max(disc, 0.97 * ridge - 2.0, 3.0)


# -- implicit surfaces --------------------------------------------------------------------------------------
def _ellipsoid(points: FloatArray, centre: Triple, radii: Triple) -> FloatArray:
    scaled = (points - np.asarray(centre)) / np.asarray(radii)
    length = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
    slope = np.sqrt(np.einsum("ij,ij->i", scaled / np.asarray(radii), scaled / np.asarray(radii)))
    return length * (length - 1) / np.maximum(slope, 1e-6)


def _tube(points: FloatArray, table: Tube, *, closed: bool = False) -> FloatArray:
    """Tube along z; `closed` ends it roundly at the first row of the table."""
    z, cx, cy, rx, ry = _dense(table)
    at = points[:, 2]
    radius_x, radius_y = np.interp(at, z, rx), np.interp(at, z, ry)
    u, v = (points[:, 0] - np.interp(at, z, cx)) / radius_x, (points[:, 1] - np.interp(at, z, cy)) / radius_y
    length = np.hypot(u, v)
    distance = length * (length - 1) / np.maximum(np.hypot(u / radius_x, v / radius_y), 1e-6)
    if not closed:
        return distance
    beyond = (at - table[0][0]) * (1 if table[0][0] > table[-1][0] else -1)
    return _smooth_max(distance, beyond, 3.0)


def _cord(points: FloatArray, start: Triple, end: Triple, half_width: float, half_depth: float) -> FloatArray:
    """A flat band from `start` to `end`, half_width along x, half_depth across."""
    a, b = np.asarray(start), np.asarray(end)
    t = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    away = points - a - t[:, None] * (b - a)
    u, v = away[:, 0] / half_width, np.hypot(away[:, 1], away[:, 2]) / half_depth
    return (np.hypot(u, v) - 1) * min(half_width, half_depth)


def _smooth_min(a: FloatArray, b: FloatArray, width: float) -> FloatArray:
    """Union whose seam is rounded over `width` mm."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * h - width * h * (1 - h)


def _smooth_max(a: FloatArray, b: FloatArray, width: float) -> FloatArray:
    """Intersection whose seam is rounded over `width` mm."""
    return -_smooth_min(-a, -b, width)


@lru_cache(maxsize=64)
def _dense(table: Tube) -> tuple[FloatArray, ...]:
    """z and the four columns of a table every millimetre, its corners rounded."""
    rows = np.asarray(sorted(table), dtype=float)
    z = np.arange(rows[0, 0], rows[-1, 0] + 0.5)
    kernel = np.hanning(15)[1:-1] / np.hanning(15)[1:-1].sum()
    columns = [np.interp(z, rows[:, 0], rows[:, c]) for c in range(1, 5)]
    half = len(kernel) // 2
    return (z, *(np.convolve(np.pad(c, half, mode="edge"), kernel, mode="valid") for c in columns))
