"""Random knees to learn on and measure with: images, exact labels, landmarks, the true map between any two.

A knee is the canonical knee seen through an `AnatomyMap` whose inverse is exact. Labels are read off the
canonical shapes at the pulled-back pixels, landmarks are pushed forward, and the true map from one knee
to another goes through the canonical knee, so nothing here is an approximation of anything.

Modalities, by their names in every dimension:

* `dxa` shows bone alone (2D: a DXA scan; 3D: a CT with a bone window);
* `radiograph` shows all tissues (2D: a radiograph; 3D: an MR).

One seed gives the same subject in the same pose in either modality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from SegGuidedMMRegLib.images import Image, Segment, write_image, write_labels
from SegGuidedMMRegLib.phantom.frontal import frontal_label_values
from SegGuidedMMRegLib.phantom.maps import AnatomyMap, BendLayer, joint_space, pose_matrix, random_bumps
from SegGuidedMMRegLib.phantom.projection import dxa_picture, radiograph_picture
from SegGuidedMMRegLib.phantom.tomography import ct_volume, mr_volume
from SegGuidedMMRegLib.phantom.volume import bone_distances, volume_label_values
from SegGuidedMMRegLib.points import PointList, write_points
from SegGuidedMMRegLib.space import FloatArray, Grid

Modality = Literal["dxa", "radiograph"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

_FIELD_MM = {2: 180.0, 3: 160.0}  # side of the field of view
_DEFAULT_SIZE = {2: 256, 3: 64}
_FINE_MM = 0.45  # pixels of a projection are averaged from ones of this size, 4 x 4 at most

_SEGMENTS = (
    Segment(1, "femur", (230, 159, 0)),
    Segment(2, "tibia", (86, 180, 233)),
    Segment(3, "fibula", (0, 158, 115)),
    Segment(4, "patella", (204, 121, 167)),
)

_LANDMARKS: dict[int, dict[str, tuple[float, float, float]]] = {
    2: {
        "femur shaft": (-4, -72, 0),
        "femur metaphysis": (-1, -56, 0),
        "medial epicondyle": (37, -32, 0),
        "lateral epicondyle": (-36.5, -29, 0),
        "medial femoral condyle": (25, -13, 0),
        "lateral femoral condyle": (-25, -13, 0),
        "intercondylar notch": (0.5, -22, 0),
        "patella centre": (-2, -46, 0),
        "medial tibial spine": (4.6, 1, 0),
        "lateral tibial spine": (-5.8, 2, 0),
        "medial tibial plateau": (25, 13, 0),
        "lateral tibial plateau": (-25, 12, 0),
        "tibial tuberosity": (-2, 39, 0),
        "tibia shaft": (1, 70, 0),
        "fibula head": (-44.5, 25, 0),
        "fibula neck": (-39.3, 48, 0),
        "fibula shaft": (-38, 70, 0),
    },
    3: {
        "femur shaft": (-1.5, -6, 65),
        "femur metaphysis": (0, -5, 48),
        "medial epicondyle": (36, 0, 31),
        "lateral epicondyle": (-35, 1, 27),
        "medial femoral condyle": (24, 14, 18),
        "lateral femoral condyle": (-24, 14, 18),
        "intercondylar notch": (0, 6, 27),
        "patella centre": (-2, -45, 42),
        "patella apex": (-2, -45, 27),
        "medial tibial spine": (5, 2, -2),
        "lateral tibial spine": (-6, 5, -3),
        "medial tibial plateau": (24, 4, -12),
        "lateral tibial plateau": (-23, 4, -12),
        "tibial tuberosity": (-3, -19, -38),
        "tibia shaft": (1, 1, -66),
        "fibula head": (-40.3, 18.7, -24),
        "fibula neck": (-38.6, 16, -48),
        "fibula shaft": (-38, 14.5, -66),
    },
}


@dataclass(frozen=True)
class PhantomKnee:
    """One image of one subject, and all that is true about it.

    Attributes:
        image: float32; 0 where nothing attenuates or resonates, about 1 at the brightest.
        labels: uint8, exact at the pixel centres; values as in `phantom_structures`.
        landmarks: points inside the bones that lie inside the image, LPS mm; the same names in every subject.
        anatomy: the map between the image's physical space and the canonical knee.
        modality: "dxa" or "radiograph".
        mirrored: whether it is a left knee.
    """

    image: Image
    labels: Image
    landmarks: PointList
    anatomy: AnatomyMap
    modality: Modality
    mirrored: bool

    def to_canonical(self, points_lps_mm: ArrayLike) -> FloatArray:
        """LPS mm (..., 3) of the image to canonical mm (..., 3)."""
        return self.anatomy.to_canonical(points_lps_mm)

    def from_canonical(self, points: ArrayLike) -> FloatArray:
        """Canonical mm (..., 3) to LPS mm (..., 3) of the image."""
        return self.anatomy.from_canonical(points)


@dataclass(frozen=True)
class PhantomCase:
    """What `write_phantom_files` wrote for one image."""

    name: str
    modality: Modality
    subject: str
    mirrored: bool
    image: Path
    labels: Path
    landmarks: Path


def phantom_structures(dimension: int) -> tuple[Segment, ...]:
    """Value, name and colour of the labelled bones: femur, tibia, fibula, and in 3D the patella.

    The patella of the frontal view lies on the femur; a pixel has one label, and there it is the femur's.
    """
    _check_dimension(dimension)
    return _SEGMENTS[: 3 if dimension == 2 else 4]


def make_knee(
    generator: np.random.Generator,
    modality: Modality,
    *,
    dimension: int = 2,
    size: int | Sequence[int] | None = None,
    spacing_mm: float | None = None,
    mirrored: bool = False,
) -> PhantomKnee:
    """Draw a subject, lay it into a scanner, and image it.

    Args:
        generator: where all numbers come from.
        modality: "dxa" or "radiograph".
        dimension: 2 or 3.
        size: voxels along i, j (and k), or one number for all; 256 in 2D, 64 in 3D.
        spacing_mm: of the voxels, isotropic; without it the field of view is 180 mm wide in 2D, 160 mm in 3D.
        mirrored: a left knee instead of a right one.

    Raises:
        ValueError: for an unknown modality or dimension, and for a size that shows no knee.
    """
    _check_dimension(dimension)
    if modality not in MODALITIES:
        raise ValueError(f"The phantom has the modalities {', '.join(MODALITIES)}, got {modality!r}.")
    counts = _counts(size, dimension)
    spacing = _FIELD_MM[dimension] / max(counts) if spacing_mm is None else float(spacing_mm)
    body, instrument = generator.spawn(2)
    grid = _grid(body, counts, spacing, dimension)
    anatomy = _anatomy(body, grid, mirrored=mirrored)
    draw = _image_2d if dimension == 2 else _image_3d
    array, labels = draw(instrument, modality, grid, anatomy, "L" if mirrored else "R")
    return PhantomKnee(
        image=Image(array, grid),
        labels=Image(labels, grid),
        landmarks=_landmarks(anatomy, grid),
        anatomy=anatomy,
        modality=modality,
        mirrored=mirrored,
    )


def true_map(fixed: PhantomKnee, moving: PhantomKnee, points_lps_mm: ArrayLike) -> FloatArray:
    """The exact map that registration of `moving` to `fixed` looks for.

    Args:
        fixed: the knee whose points are given.
        moving: the knee in which they are looked up; of the same dimension.
        points_lps_mm: (..., 3) in the physical space of `fixed`.

    Returns:
        (..., 3) LPS mm in the physical space of `moving`.

    Raises:
        ValueError: where one knee is 2D and the other 3D.
    """
    dimensions = fixed.image.grid.dimension, moving.image.grid.dimension
    if dimensions[0] != dimensions[1]:
        raise ValueError("There is no map between a {}D and a {}D knee.".format(*dimensions))
    return moving.from_canonical(fixed.to_canonical(points_lps_mm))


def write_phantom_files(
    folder: Path | str,
    *,
    dimension: int = 2,
    subjects: int = 12,
    size: int | None = None,
    seed: int = 0,
    mirrored_every: int = 3,
) -> list[PhantomCase]:
    """Write knees as the files a user would bring: unpaired subjects, `subjects` of them a modality.

    Args:
        folder: receives `images/<modality>/<case>.nrrd`, `labels/<modality>/<case>.seg.nrrd` and
            `landmarks/<modality>/<case>.csv`.
        dimension: 2 or 3.
        subjects: number of subjects of each modality.
        size: voxels an axis; see `make_knee`.
        seed: the same seed writes the same files; a case does not depend on how many there are.
        mirrored_every: each such case of a modality is a left knee, 0 makes all of them right ones.

    Returns:
        The cases, those of "dxa" first.
    """
    cases = []
    for which, modality in enumerate(MODALITIES):
        for number in range(subjects):
            mirrored = mirrored_every > 0 and number % mirrored_every == mirrored_every - 1
            generator = np.random.default_rng([seed, dimension, which, number])
            knee = make_knee(generator, modality, dimension=dimension, size=size, mirrored=mirrored)
            name = f"{modality}_{number + 1:03d}{'L' if mirrored else 'R'}"
            cases.append(_write_case(Path(folder), name, knee))
    return cases


# -- a subject in a scanner ---------------------------------------------------------------------------------
def _counts(size: int | Sequence[int] | None, dimension: int) -> tuple[int, ...]:
    """Voxels along i, j (and k)."""
    wanted = _DEFAULT_SIZE[dimension] if size is None else size
    counts = (int(wanted),) * dimension if np.ndim(wanted) == 0 else tuple(int(n) for n in wanted)  # type: ignore[arg-type, union-attr]
    if len(counts) != dimension or min(counts) < 16:
        raise ValueError(f"A {dimension}D phantom needs {dimension} sizes of 16 voxels or more, got {size}.")
    return counts


def _grid(generator: np.random.Generator, counts: tuple[int, ...], spacing: float, dimension: int) -> Grid:
    """Where the voxels lie: 2D from (0, 0, 0), as pictures do; 3D anywhere and slightly oblique."""
    if dimension == 2:
        return Grid(size=(*counts, 1), spacing=(spacing, spacing, 1.0))  # type: ignore[arg-type]
    direction = pose_matrix(generator.uniform(-6, 6, 3).tolist(), 1.0, (0, 0, 0), mirrored=False)[:3, :3]
    origin = generator.uniform(-60, 60, 3) - direction @ ((np.array(counts) - 1) / 2 * spacing)
    return Grid(
        size=counts,  # type: ignore[arg-type]
        spacing=(spacing,) * 3,
        origin=tuple(origin),  # type: ignore[arg-type]
        direction=tuple(direction.ravel()),
    )


def _anatomy(generator: np.random.Generator, grid: Grid, *, mirrored: bool) -> AnatomyMap:
    """A random subject: local shape, joint space, alignment of the leg, size; and its pose in the image."""
    flat = grid.dimension == 2
    along = 1 if flat else 2
    extent = (60.0, 80.0, 0.0) if flat else (60.0, 45.0, 80.0)
    axes = (0, 1) if flat else (0, 1, 2)
    bumps = [
        random_bumps(generator, axis, half_extent=extent, amplitude_mm=2.4 if flat else 2.0)
        for axis in (*axes, *axes)
    ]
    joint = joint_space(generator, along, (-24.0, 24.0), 1.3)
    bends = [BendLayer(0, along, 0.0, generator.normal(0, 0.04), side=1 if flat else -1)]
    turn, tilt = generator.uniform(-8, 8), generator.uniform(-6, 6, 2)
    if not flat:
        bends.append(BendLayer(1, 2, 5.0, generator.uniform(0.0, 0.16), side=-1))  # flexion
    stretch = np.exp(generator.normal(0, 0.03, 3))
    scale = generator.uniform(0.92, 1.08)
    shift = grid.centre_lps_mm + generator.uniform(-1, 1, 3) * (
        np.array([8, 9, 0]) if flat else np.array([6, 6, 8])
    )
    rotation = (0.0, 0.0, turn) if flat else (tilt[0], tilt[1], turn)
    pose = pose_matrix(rotation, scale, shift, mirrored=mirrored)
    pose = pose @ np.diag([*stretch[:2], 1.0 / scale if flat else stretch[2], 1.0])
    return AnatomyMap(layers=(*bends, *bumps, joint), pose=pose)


def _image_2d(
    generator: np.random.Generator, modality: Modality, grid: Grid, anatomy: AnatomyMap, side: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    labels = frontal_label_values(anatomy.to_canonical(grid.points()))
    spacing = grid.spacing[0]
    factor = int(np.clip(np.ceil(spacing / _FINE_MM - 1e-6), 1, 4))
    fine = grid.resized((grid.size[0] * factor, grid.size[1] * factor, 1))
    canonical = anatomy.to_canonical(fine.points())
    if modality == "dxa":
        return dxa_picture(generator, canonical, spacing_mm=spacing, factor=factor), labels
    return radiograph_picture(generator, canonical, spacing_mm=spacing, factor=factor, side=side), labels


def _image_3d(
    generator: np.random.Generator,
    modality: Modality,
    grid: Grid,
    anatomy: AnatomyMap,
    side: str,  # noqa: ARG001  volumes carry no letter
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    canonical = anatomy.to_canonical(grid.points())
    distances = bone_distances(canonical.reshape(-1, 3))
    labels = volume_label_values(distances).reshape(grid.shape)
    scan = ct_volume if modality == "dxa" else mr_volume
    return scan(generator, canonical, spacing_mm=grid.spacing[0], distances=distances), labels


def _landmarks(anatomy: AnatomyMap, grid: Grid) -> PointList:
    """The landmarks that lie inside the image, at least two voxels from its border."""
    named = _LANDMARKS[grid.dimension]
    points = anatomy.from_canonical(np.array(list(named.values())))
    seen = grid.contains(points, margin_voxels=2.0) if grid.dimension == 3 else grid.contains(points)
    return PointList(tuple(name for name, inside in zip(named, seen, strict=True) if inside), points[seen])


def _check_dimension(dimension: int) -> None:
    if dimension not in (2, 3):
        raise ValueError(f"The phantom is 2D or 3D, got dimension {dimension}.")


def _write_case(folder: Path, name: str, knee: PhantomKnee) -> PhantomCase:
    case = PhantomCase(
        name=name,
        modality=knee.modality,
        subject=name[:-1],
        mirrored=knee.mirrored,
        image=folder / "images" / knee.modality / f"{name}.nrrd",
        labels=folder / "labels" / knee.modality / f"{name}.seg.nrrd",
        landmarks=folder / "landmarks" / knee.modality / f"{name}.csv",
    )
    for path in (case.image, case.labels, case.landmarks):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_image(knee.image, case.image)
    write_labels(knee.labels, phantom_structures(knee.image.grid.dimension), case.labels)
    write_points(knee.landmarks, case.landmarks)
    return case
