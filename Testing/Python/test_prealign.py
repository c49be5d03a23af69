"""Pre-alignment finds known maps, refuses implausible ones, and keeps what it found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from spatial_cases import rotation, smooth_image_array
from trained_study import make_study

from SegGuidedMMRegLib.config import PrealignConfig
from SegGuidedMMRegLib.events import RecordingReporter, Reporter
from SegGuidedMMRegLib.images import Image, resample
from SegGuidedMMRegLib.space import Grid, apply_affine
from SegGuidedMMRegLib.training import prealign
from SegGuidedMMRegLib.training.affine_features import Picture
from SegGuidedMMRegLib.training.affine_registration import Limits, implausible
from SegGuidedMMRegLib.training.alignment import (
    Subject,
    align_image,
    base_frame,
    bring_across,
    coarse,
    make_reference,
)

CONFIG = PrealignConfig()
PLANE = Grid.centred((128, 112, 1), (1.0, 1.0, 1.0))
VOLUME = Grid.centred((48, 44, 40), (2.0, 2.0, 2.0))


def blobs(grid: Grid, seed: int = 0) -> Image:
    """Bright ellipses of random size on a dark, slightly noisy field, with no symmetry."""
    rng = np.random.default_rng(seed)
    points, half = grid.points(), np.asarray(grid.extent_mm) / 2
    d = grid.dimension
    array = 0.02 * smooth_image_array(grid.shape, seed + 1, 1.0)
    for _ in range(9):
        centre = np.zeros(3)
        centre[:d] = rng.uniform(-0.5, 0.5, d) * half[:d]
        radius = np.ones(3)
        radius[:d] = rng.uniform(0.12, 0.3, d) * half[:d].min()
        inside = (((points - centre) / radius)[..., :d] ** 2).sum(-1) < 1
        array = np.where(inside, rng.uniform(0.4, 1.0), array)
    return Image(array.astype(np.float32), grid)


def true_map(dimension: int, degrees: float = 15.0, scale: float = 1.15, shift: float = 0.1) -> np.ndarray:
    """4x4 study mm to moved study mm: a turn, a scale and a shift by a share of 112 or 88 mm."""
    matrix = np.eye(4)
    angle = np.radians(degrees)
    matrix[:3, :3] = rotation(0.0, 0.0, angle)
    matrix[:dimension, :dimension] *= scale
    matrix[:dimension, 3] = np.array([1.0, -0.7, 0.5][:dimension]) * shift * (112 if dimension == 2 else 88)
    return matrix


def acquired(image: Image, study_to_case: np.ndarray, grid: Grid) -> Image:
    """What a device with voxels on `grid` sees of an image that lies in study space."""
    return resample(image, grid, np.linalg.inv(study_to_case))


def case_grid(study_grid: Grid, placed: np.ndarray, direction: np.ndarray, spacing: float) -> Grid:
    """A grid of voxels of `spacing` mm along `direction` about the place where the study's middle went."""
    d = study_grid.dimension
    size = [
        int(1.15 * n * s / spacing) for n, s in zip(study_grid.size[:d], study_grid.spacing, strict=False)
    ]
    size += [1] * (3 - d)
    steps = np.array([spacing, 1.3 * spacing, spacing if d == 3 else 1.0])
    size[1] = int(size[1] / 1.3)
    corner = placed[:3, 3] - direction @ ((np.array(size) - 1) / 2 * steps)
    return Grid(tuple(size), tuple(steps), tuple(corner), tuple(direction.ravel()))


def worst_error_mm(found: np.ndarray, true: np.ndarray, grid: Grid) -> float:
    """Largest distance between two maps over the middle half of the grid."""
    points = grid.points().reshape(-1, 3) / 2
    return float(np.linalg.norm(apply_affine(found, points) - apply_affine(true, points), axis=1).max())


def reference_of(image: Image, config: PrealignConfig = CONFIG) -> Picture:
    return make_reference([coarse(Subject(image, "any"), image.grid, config)], image.grid, config)


# -- known maps ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("grid", [PLANE, VOLUME], ids=["2D", "3D"])
def test_a_known_turn_scale_and_shift_is_found_to_two_voxels(grid, mirrored):
    image = blobs(grid)
    true = true_map(grid.dimension)
    if mirrored:
        true = np.diag([-1.0, 1.0, 1.0, 1.0]) @ true
    seen = acquired(image, true, Grid.centred(grid.size, grid.spacing))
    found = align_image(Subject(seen, "any", mirrored), reference_of(image), grid, CONFIG)
    assert found.level in ("similarity", "affine")
    assert worst_error_mm(found.study_to_case, true, grid) < 2 * grid.spacing[0]
    assert (np.linalg.det(found.study_to_case[:3, :3]) < 0) == mirrored


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_oblique_left_handed_anisotropic_volume_is_placed(mirrored):
    image = blobs(VOLUME)
    direction = rotation(0.25, -0.2, 0.3) @ np.diag([1.0, -1.0, 1.0])
    true = true_map(3, degrees=8.0, scale=0.95)
    if mirrored:
        true = np.diag([-1.0, 1.0, 1.0, 1.0]) @ true
    true[:3, 3] += [300.0, -50.0, 80.0]
    placed = np.eye(4)
    placed[:3, 3] = [300.0, -50.0, 80.0]
    seen = acquired(image, true, case_grid(VOLUME, placed, direction, 1.5))
    found = align_image(Subject(seen, "any", mirrored), reference_of(image), VOLUME, CONFIG)
    assert worst_error_mm(found.study_to_case, true, VOLUME) < 4.0
    assert (np.linalg.det(found.study_to_case[:3, :3]) < 0) == mirrored


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_left_handed_sagittal_slice_maps_plane_to_plane(mirrored):
    image = blobs(PLANE)
    direction = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    direction = rotation(0.0, 0.1, 0.15) @ direction @ np.diag([-1.0, 1.0, 1.0])
    grid = case_grid(PLANE, np.array([[1, 0, 0, 20.0], [0, 1, 0, -40.0], [0, 0, 1, 9.0]]), direction, 0.9)
    base = base_frame(grid, mirrored)
    true = base @ true_map(2, degrees=-10.0)
    seen = acquired(image, true, grid)
    found = align_image(Subject(seen, "any", mirrored), reference_of(image), PLANE, CONFIG).study_to_case
    assert worst_error_mm(found, true, PLANE) < 3.0
    on_plane = grid.points_to_voxels(apply_affine(found, PLANE.points()))[..., 2]
    assert np.abs(on_plane).max() < 1e-6
    normal = found[:3, 2]
    assert abs(abs(normal @ grid.direction_matrix[:, 2]) - 1) < 1e-6
    assert (np.linalg.det(found[:3, :3]) < 0) == mirrored


def test_the_header_frame_of_a_picture_is_the_picture():
    np.testing.assert_allclose(base_frame(PLANE, False), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(base_frame(PLANE, True), np.diag([-1.0, 1, 1, 1]), atol=1e-12)


@pytest.mark.parametrize("grid", [PLANE, VOLUME], ids=["2D", "3D"])
def test_the_map_reproduces_the_study_image_in_simpleitk(grid):
    image = blobs(grid)
    true = true_map(grid.dimension, degrees=-12.0, scale=0.9)
    seen = acquired(image, true, Grid.centred(grid.size, grid.spacing))
    found = align_image(Subject(seen, "any"), reference_of(image), grid, CONFIG).study_to_case
    affine = sitk.AffineTransform(found[:3, :3].ravel().tolist(), found[:3, 3].tolist())
    back = sitk.Resample(seen.to_sitk(), image.to_sitk(), affine, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    back = sitk.GetArrayFromImage(back).reshape(grid.shape)
    middle = tuple(slice(n // 4, -n // 4) for n in grid.shape)
    assert np.corrcoef(back[middle].ravel(), image.array[middle].ravel())[0, 1] > 0.9


def test_an_image_of_another_pixel_size_is_brought_to_scale():
    image = blobs(PLANE)
    seen = Image(image.array, Grid.centred(PLANE.size, (5.0, 5.0, 1.0)))
    found = align_image(Subject(seen, "any"), reference_of(image), PLANE, CONFIG).study_to_case
    assert worst_error_mm(found, np.diag([5.0, 5.0, 1.0, 1.0]), PLANE) < 10.0


# -- references ---------------------------------------------------------------------------------------------
def test_a_reference_lies_in_the_middle_of_its_images():
    image = blobs(PLANE)
    maps = [
        true_map(2, degrees=a, scale=s, shift=t)
        for a, s, t in ((9, 1.05, 0.04), (-9, 0.95, -0.04), (0, 1, 0))
    ]
    subjects = [Subject(acquired(image, m, PLANE), "any") for m in maps]
    reference = make_reference([coarse(s, PLANE, CONFIG) for s in subjects], PLANE, CONFIG)
    found = [align_image(s, reference, PLANE, CONFIG).study_to_case for s in subjects]
    relative = np.linalg.inv(found[1]) @ found[0]
    assert worst_error_mm(relative, np.linalg.inv(maps[1]) @ maps[0], PLANE) < 3.0
    assert worst_error_mm(found[2], np.eye(4), PLANE) < 3.0


@pytest.mark.parametrize("grid", [PLANE, VOLUME], ids=["2D", "3D"])
def test_a_reference_of_reversed_contrast_is_brought_across(grid):
    image = blobs(grid)
    reversed_contrast = replace(image, array=np.exp(-2 * image.array))
    true = true_map(grid.dimension, degrees=7.0, scale=1.05, shift=0.04)
    other = reference_of(acquired(reversed_contrast, true, Grid.centred(grid.size, grid.spacing)))
    fit = bring_across(reference_of(image), other, CONFIG)
    assert worst_error_mm(fit.matrix, true, grid) < 2 * grid.spacing[0]


# -- refusals -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_an_image_of_noise_stays_where_its_header_puts_it(seed):
    noise = Image(np.random.default_rng(seed).normal(size=PLANE.shape).astype(np.float32), PLANE)
    found = align_image(Subject(noise, "any"), reference_of(blobs(PLANE)), PLANE, CONFIG)
    assert found.level == "centre"
    assert found.reason
    np.testing.assert_allclose(found.study_to_case, np.eye(4), atol=1e-12)


@pytest.mark.parametrize("method", ["affine", "moments", "none"])
def test_a_constant_image_stays_where_its_header_puts_it(method):
    config = PrealignConfig(method=method)
    flat = Image(np.full(PLANE.shape, 7, np.uint8), PLANE)
    found = align_image(Subject(flat, "any"), reference_of(blobs(PLANE), config), PLANE, config)
    assert found.level == "centre"
    np.testing.assert_allclose(found.study_to_case, np.eye(4), atol=1e-12)


def test_moments_bring_centre_and_size_together():
    image = blobs(PLANE)
    true = true_map(2, degrees=0.0, scale=1.1, shift=0.05)
    config = PrealignConfig(method="moments")
    seen = acquired(image, true, Grid.centred((160, 160, 1), PLANE.spacing))
    found = align_image(Subject(seen, "any"), reference_of(image, config), PLANE, config)
    assert found.level == "moments"
    assert worst_error_mm(found.study_to_case, true, PLANE) < 6.0


@pytest.mark.parametrize(
    ("matrix", "word"),
    [
        (np.diag([2.0, 2.0, 1.0, 1.0]), "scales"),
        (np.diag([1.3, 0.9, 1.0, 1.0]), "stretches"),
        (np.diag([-1.0, 1.0, 1.0, 1.0]), "mirrors"),
        (true_map(2, degrees=50.0), "turns"),
        (true_map(2, degrees=0.0, scale=1.0, shift=0.9), "overlap"),
        (np.full((4, 4), np.nan), "finite"),
    ],
)
def test_an_implausible_map_is_told_apart(matrix, word):
    picture = reference_of(blobs(PLANE))
    assert word in implausible(matrix, picture, picture, Limits())
    assert implausible(true_map(2), picture, picture, Limits()) == ""


# -- the stage ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = make_study(tmp_path_factory.mktemp("prealign"))
    prealign.run(study, study.config.prealign, Reporter())
    return study


def test_every_case_gets_a_map_and_mirrored_ones_a_reflection(study):
    assert {c.mirrored for c in study.cases} == {False, True}
    for case in study.cases:
        assert (np.linalg.det(study.study_to_case(case)[:3, :3]) < 0) == case.mirrored


def test_a_second_run_computes_nothing(study):
    reporter = RecordingReporter()
    prealign.run(study, study.config.prealign, reporter)
    assert reporter.events == []


def test_only_the_case_whose_flag_changed_is_aligned_again(study):
    before = {c.key: study.study_to_case(c) for c in study.cases}
    first, *others = study.cases
    changed = study.with_cases([replace(first, mirrored=not first.mirrored), *others])
    reporter = RecordingReporter()
    prealign.run(changed, study.config.prealign, reporter)
    assert [e.data["of"] for e in reporter.events if e.kind == "started"] == [1]
    for case in others:
        np.testing.assert_array_equal(changed.study_to_case(case), before[case.key])
    assert np.linalg.det(changed.study_to_case(first)) * np.linalg.det(before[first.key]) < 0
    prealign.run(study, study.config.prealign, Reporter())
    np.testing.assert_array_equal(study.study_to_case(first), before[first.key])


def test_an_image_from_outside_lands_where_the_case_does(study):
    case = study.cases[0]
    found = prealign.prealign_file(study, study.read_image(case), case.modality, mirrored=case.mirrored)
    np.testing.assert_allclose(found, study.study_to_case(case), atol=1e-9)


def test_an_image_from_outside_before_training_is_refused(study, tmp_path):
    untrained = replace(study, folder=tmp_path)
    image = study.read_image(study.cases[0])
    with pytest.raises(ValueError, match="segmmreg train"):
        prealign.prealign_file(untrained, image, study.source, mirrored=False)
