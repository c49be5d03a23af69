"""The phantom: its maps are exact, labels and landmarks follow them, and its bones are those of a knee."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from SegGuidedMMRegLib import phantom
from SegGuidedMMRegLib.images import read_image, read_labels
from SegGuidedMMRegLib.phantom import (
    MODALITIES,
    PhantomKnee,
    make_knee,
    phantom_structures,
    true_map,
    write_phantom_files,
)
from SegGuidedMMRegLib.phantom.maps import BumpLayer, pose_matrix
from SegGuidedMMRegLib.phantom.projection import radiograph_picture
from SegGuidedMMRegLib.points import read_points

SIZES = {2: 64, 3: 32}


def knee(seed: int, modality: str = "dxa", dimension: int = 2, **options) -> PhantomKnee:
    options.setdefault("size", SIZES[dimension])
    return make_knee(np.random.default_rng(seed), modality, dimension=dimension, **options)


def structure_of(landmark: str, dimension: int) -> int:
    """The bone that an anatomist would say a landmark is in."""
    if "patella" in landmark:
        return 1 if dimension == 2 else 4
    if "fibula" in landmark:
        return 3
    return 2 if "tibia" in landmark else 1  # "tibial" as well


def inside(points: np.ndarray, like: PhantomKnee) -> np.ndarray:
    return like.image.grid.contains(points)


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_knee_has_its_image_labels_and_landmarks_on_one_grid(dimension: int, modality: str) -> None:
    made = knee(1, modality, dimension)
    assert made.image.grid == made.labels.grid
    assert made.image.grid.dimension == dimension
    assert made.image.array.dtype == np.float32
    assert np.isfinite(made.image.array).all()
    values = {structure.value for structure in phantom_structures(dimension)}
    assert set(np.unique(made.labels.array)) == values | {0}
    assert len(made.landmarks.names) >= 10
    assert inside(made.landmarks.points_lps_mm, made).all()


@pytest.mark.parametrize("dimension", [2, 3])
def test_to_canonical_and_back_returns_to_the_start(dimension: int) -> None:
    made = knee(2, dimension=dimension, mirrored=True)
    points = made.image.grid.points().reshape(-1, 3)[::7]
    assert np.abs(made.from_canonical(made.to_canonical(points)) - points).max() < 1e-9


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_map_does_not_fold_and_a_left_knee_is_a_reflection(dimension: int) -> None:
    for seed in range(3):
        for mirrored in (False, True):
            made = knee(seed, dimension=dimension, mirrored=mirrored)
            points = made.image.grid.points().reshape(-1, 3)[::11]
            step = 1e-4
            columns = [
                (made.to_canonical(points + step * axis) - made.to_canonical(points - step * axis))
                / (2 * step)
                for axis in np.eye(3)
            ]
            determinants = np.linalg.det(np.stack(columns, axis=-1))
            assert (determinants * (-1 if mirrored else 1)).min() > 0.1


def test_a_bump_layer_inverts_where_it_is_as_steep_as_it_may_be() -> None:
    layer = BumpLayer(
        axis=0,
        centres=np.array([[0.0, 0, 0], [5, 0, 0]]),
        widths=np.full((2, 3), 10.0),
        amplitudes=np.array([80.0, -50.0]),
    )
    points = np.stack([np.linspace(-60, 60, 2001), np.zeros(2001), np.zeros(2001)], axis=-1)
    moved = layer.forward(points)
    assert np.diff(moved[:, 0]).min() > 0
    assert np.abs(moved - points).max() > 1
    assert np.abs(layer.inverse(moved) - points).max() < 1e-9


def test_a_mirrored_pose_has_a_negative_determinant() -> None:
    assert np.linalg.det(pose_matrix((3, 4, 5), 1.1, (0, 0, 0), mirrored=True)) == pytest.approx(-(1.1**3))


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_true_map_takes_landmarks_to_landmarks_across_modality_and_side(dimension: int) -> None:
    fixed, moving = knee(3, "dxa", dimension), knee(4, "radiograph", dimension, mirrored=True)
    shared = [name for name in fixed.landmarks.names if name in moving.landmarks.names]
    assert len(shared) >= 8
    ours = np.array([fixed.landmarks.points_lps_mm[list(fixed.landmarks.names).index(n)] for n in shared])
    theirs = np.array([moving.landmarks.points_lps_mm[list(moving.landmarks.names).index(n)] for n in shared])
    assert np.abs(ours - theirs).max() > 2
    assert np.abs(true_map(fixed, moving, ours) - theirs).max() < 1e-9
    assert np.abs(true_map(moving, fixed, true_map(fixed, moving, ours)) - ours).max() < 1e-9


@pytest.mark.parametrize("dimension", [2, 3])
def test_warping_by_the_true_map_makes_the_labels_agree(dimension: int) -> None:
    size = {2: 160, 3: 48}[dimension]
    fixed = knee(5, "dxa", dimension, size=size)
    moving = knee(6, "radiograph", dimension, size=size, mirrored=True)
    points = fixed.image.grid.points()
    there = true_map(fixed, moving, points)
    seen = inside(there, moving)
    voxels = np.rint(moving.image.grid.points_to_voxels(there[seen])).astype(int)
    warped = moving.labels.array[tuple(voxels[:, axis] for axis in range(dimension))[::-1]]
    known = fixed.labels.array[seen]
    unmoved = moving.labels.array[seen]
    for structure in phantom_structures(dimension):
        a, b = warped == structure.value, known == structure.value
        dice = 2 * (a & b).sum() / (a.sum() + b.sum())
        before = 2 * ((unmoved == structure.value) & b).sum() / ((unmoved == structure.value).sum() + b.sum())
        floor = {1: 0.97, 2: 0.97, 3: 0.9, 4: 0.9}[structure.value] - (0.07 if dimension == 3 else 0)
        assert dice > floor, structure.name
        assert dice > before


@pytest.mark.parametrize("dimension", [2, 3])
def test_landmarks_lie_inside_their_bones(dimension: int) -> None:
    size = {2: 192, 3: 56}[dimension]
    for seed in range(2):
        made = knee(seed, "dxa", dimension, size=size)
        voxels = np.rint(made.image.grid.points_to_voxels(made.landmarks.points_lps_mm)).astype(int)
        found = made.labels.array[tuple(voxels[:, axis] for axis in range(dimension))[::-1]]
        for name, value in zip(made.landmarks.names, found, strict=True):
            assert value == structure_of(name, dimension), name


@pytest.mark.parametrize("dimension", [2, 3])
def test_each_bone_is_one_piece(dimension: int) -> None:
    labels = knee(7, dimension=dimension, size={2: 160, 3: 48}[dimension]).labels.to_sitk()
    for structure in phantom_structures(dimension):
        pieces = sitk.RelabelComponent(sitk.ConnectedComponent(labels == structure.value, True))
        counts = np.bincount(sitk.GetArrayViewFromImage(pieces).ravel())[1:]
        assert counts[0] > 0.99 * counts.sum(), structure.name


def test_bones_have_the_size_of_a_knee() -> None:
    for seed in range(3):
        made = knee(seed, dimension=3, size=40)
        voxel_ml = np.prod(made.image.grid.spacing) / 1000
        femur, tibia, fibula, patella = (
            float((made.labels.array == v).sum() * voxel_ml) for v in (1, 2, 3, 4)
        )
        assert 110 < femur < 300
        assert 80 < tibia < 220
        assert 5 < fibula < 20
        assert 10 < patella < 32
        flat = knee(seed, size=128)
        columns = np.flatnonzero((flat.labels.array == 1).any(axis=0))
        assert 65 < np.ptp(columns) * flat.image.grid.spacing[0] < 105


def test_dxa_shows_bone_alone_and_the_radiograph_shows_soft_tissue() -> None:
    for seed in range(3):
        dxa, radiograph = knee(seed, "dxa", size=128), knee(seed, "radiograph", size=128)
        assert np.array_equal(dxa.labels.array, radiograph.labels.array)
        bone = dxa.labels.array > 0
        near = np.abs(dxa.to_canonical(dxa.image.grid.points())[..., 0]) < 50
        flesh = near & ~bone
        assert dxa.image.array[flesh].mean() < 0.15 * dxa.image.array[bone].mean()
        assert radiograph.image.array[flesh].mean() > 0.3 * radiograph.image.array[bone].mean()
        assert radiograph.image.array[bone].mean() > radiograph.image.array[flesh].mean()


def test_ct_and_mr_contrasts_of_the_shaft_are_opposite() -> None:
    ct, mr = knee(8, "dxa", 3, size=64), knee(8, "radiograph", 3, size=64)
    assert np.array_equal(ct.labels.array, mr.labels.array)
    femur = sitk.GetImageFromArray((ct.labels.array == 1).astype(np.uint8))
    core = sitk.GetArrayFromImage(sitk.BinaryErode(femur, [2, 2, 2])).astype(bool)
    rim = (ct.labels.array == 1) & ~core
    assert ct.image.array[rim].mean() > 1.2 * ct.image.array[core].mean()
    assert mr.image.array[rim].mean() < 0.9 * mr.image.array[core].mean()


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_same_seed_gives_the_same_knee_and_another_seed_another(dimension: int) -> None:
    first, again, other = (knee(seed, dimension=dimension) for seed in (9, 9, 10))
    assert np.array_equal(first.image.array, again.image.array)
    assert not np.array_equal(first.labels.array, other.labels.array)


def test_the_same_subject_at_another_size_has_the_same_anatomy() -> None:
    coarse, fine = knee(11, size=64), knee(11, size=128)
    assert np.allclose(
        coarse.to_canonical(coarse.landmarks.points_lps_mm), fine.to_canonical(fine.landmarks.points_lps_mm)
    )
    share = [float((k.labels.array == 1).mean()) for k in (coarse, fine)]
    assert share[0] == pytest.approx(share[1], rel=0.03)


def test_left_knees_have_the_fibula_on_the_other_side() -> None:
    for mirrored in (False, True):
        labels = knee(12, mirrored=mirrored).labels.array
        fibula, tibia = (np.nonzero(labels == value)[1].mean() for value in (3, 2))
        assert (fibula > tibia) == mirrored


def test_the_letter_on_a_radiograph_stands_in_a_corner_and_names_the_side(monkeypatch) -> None:
    made = knee(12, size=128)
    canonical = made.to_canonical(made.image.grid.points())
    marked = 0
    for seed in range(6):
        right, left = (
            radiograph_picture(np.random.default_rng(seed), canonical, spacing_mm=1.4, factor=1, side=side)
            for side in "RL"
        )
        rows, columns = np.nonzero(right != left)
        marked += bool(rows.size)
        assert (rows < 40).all()
        assert ((columns < 40) | (columns > 88)).all()
    assert 0 < marked < 6
    sides = []

    def watched(*args, side: str, **options):
        sides.append(side)
        return radiograph_picture(*args, side=side, **options)

    monkeypatch.setattr(phantom, "radiograph_picture", watched)
    for mirrored in (False, True):
        knee(12, "radiograph", mirrored=mirrored)
    assert sides == ["R", "L"]


def test_spacing_and_uneven_sizes_are_kept() -> None:
    made = knee(13, size=(96, 128), spacing_mm=1.5)
    assert made.image.array.shape == (128, 96)
    assert made.image.grid.spacing[:2] == (1.5, 1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dimension": 4}, "2D or 3D"), ({"modality": "ultrasound"}, "ultrasound"), ({"size": 8}, "16 voxels")],
)
def test_what_cannot_be_drawn_is_refused_with_its_value(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_knee(np.random.default_rng(0), options.pop("modality", "dxa"), **options)


def test_knees_of_different_dimension_have_no_map() -> None:
    with pytest.raises(ValueError, match="no map"):
        true_map(knee(0), knee(0, dimension=3), [0, 0, 0])


@pytest.mark.parametrize("dimension", [2, 3])
def test_written_files_hold_what_was_drawn(tmp_path, dimension: int) -> None:
    size = SIZES[dimension]
    cases = write_phantom_files(tmp_path, dimension=dimension, subjects=3, size=size, seed=5)
    assert [case.modality for case in cases] == ["dxa"] * 3 + ["radiograph"] * 3
    assert len({case.subject for case in cases}) == 6
    assert [case.mirrored for case in cases] == [False, False, True] * 2
    case = cases[2]
    image, labels, points = read_image(case.image), read_labels(case.labels), read_points(case.landmarks)
    again = make_knee(
        np.random.default_rng([5, dimension, 0, 2]), "dxa", dimension=dimension, size=size, mirrored=True
    )
    assert image.grid.is_close(again.image.grid)
    assert np.array_equal(image.array, again.image.array)
    assert np.array_equal(labels.array, again.labels.array)
    assert [s.name for s in labels.segments] == [s.name for s in phantom_structures(dimension)]
    assert list(points.names) == list(again.landmarks.names)
    assert np.allclose(points.points_lps_mm, again.landmarks.points_lps_mm, atol=1e-3)
