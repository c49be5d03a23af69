"""Displacement fields against SimpleITK and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from spatial_cases import (
    exponential,
    left_handed_grid,
    oblique_grid,
    rotation,
    smooth_displacement,
    smooth_image_array,
    study_to,
)

from SegGuidedMMRegLib.fields import (
    DisplacementField,
    FieldError,
    SpatialTransform,
    corner_jacobians_minimum,
    fade_to_border,
    field_from_study,
    field_to_study,
    fold_mask,
    inverse_consistency_error,
    invert_field,
    pair_transforms,
)
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.space import Grid, apply_affine

GRIDS = {
    "oblique": oblique_grid(),
    "left-handed": left_handed_grid(),
    "oblique slice": oblique_grid((40, 30, 1), (0.7, 1.2, 3.0)),
    "left-handed slice": left_handed_grid((36, 32, 1), (1.2, 0.8, 1.0)),
}


def affine(mirrored=False) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(0.1, 0.0, -0.2) @ np.diag([-1.1 if mirrored else 1.1, 0.95, 1.0])
    matrix[:3, 3] = (4.0, -2.0, 1.0)
    return matrix


def random_points(grid: Grid, count=200, margin=-3.0, seed=1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    voxels = rng.uniform(margin, np.asarray(grid.size) - 1 - margin, (count, 3))
    if grid.dimension == 2:
        voxels[:, 2] = rng.uniform(-0.4, 0.4, count)
    return grid.voxels_to_points(voxels)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_points_move_as_simpleitk_moves_them(name, mirrored):
    grid = GRIDS[name]
    transform = SpatialTransform(smooth_displacement(grid, 3.0, 4.0), affine(mirrored))
    points = random_points(grid)
    expected = [transform.to_sitk().TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(transform.transform_points(points), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("fixed", "moving"), [("oblique", "left-handed"), ("oblique slice", "left-handed slice")]
)
def test_a_warped_image_is_what_the_map_finds_in_the_moving_image(fixed, moving):
    fixed_grid, moving_grid = GRIDS[fixed], GRIDS[moving]
    to_fixed, to_moving = study_to(fixed_grid), study_to(moving_grid, mirrored=True)
    phi = smooth_displacement(Grid.centred((30, 30, fixed_grid.size[2]), (1.2, 1.2, 1.2)), 2.0, 5.0)
    forward, _ = pair_transforms(phi, None, to_fixed, to_moving, fixed_grid, moving_grid)

    slope = np.array([0.3, -0.2, 0.5])  # a linear image is interpolated exactly
    image = Image(moving_grid.points() @ slope + 4.0, moving_grid)
    warped = forward.warp_image(image, fixed_grid, outside=-1000.0)
    landing = forward.transform_points(fixed_grid.points())
    inside = moving_grid.contains(landing, margin_voxels=0.01)
    assert inside.mean() > 0.4
    np.testing.assert_allclose(warped.array[inside], (landing @ slope + 4.0)[inside], atol=1e-3)

    by_itk = sitk.Resample(image.to_sitk(), Image(warped.array, fixed_grid).to_sitk(), forward.to_sitk())
    assert inside.sum() > 50
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(by_itk).reshape(fixed_grid.shape)[inside], warped.array[inside], atol=1e-3
    )


@pytest.mark.parametrize("name", GRIDS)
def test_a_study_displacement_in_voxels_moves_to_the_neighbouring_voxel(name):
    grid = GRIDS[name]
    for channel in range(grid.dimension):
        voxels = np.zeros((grid.dimension, *grid.shape))
        voxels[channel] = 1.0
        field = field_from_study(voxels, grid)
        expected = grid.points()
        moved = expected + field.displacement_lps_mm
        inner = tuple(slice(None, -1) if a == channel else slice(None) for a in range(grid.dimension))
        next_one = tuple(slice(1, None) if a == channel else slice(None) for a in range(grid.dimension))
        np.testing.assert_allclose(moved[inner], expected[next_one], atol=1e-9)
        np.testing.assert_allclose(field_to_study(field), voxels, atol=1e-6)


# -- folds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_the_jacobian_of_a_linear_map_is_its_determinant(name):
    grid = GRIDS[name]
    d = grid.dimension
    matrix = np.eye(3)
    matrix[:d, :d] += np.random.default_rng(2).normal(0, 0.2, (d, d))
    in_space = grid.direction_matrix @ matrix @ grid.direction_matrix.T
    field = DisplacementField(grid, grid.points() @ (in_space - np.eye(3)).T)
    np.testing.assert_allclose(corner_jacobians_minimum(field), np.linalg.det(matrix), rtol=1e-4)


def brute_force_minimum(voxels: np.ndarray) -> np.ndarray:
    """Corner Jacobians voxel by voxel; `voxels` (j, i, 2) in order (i, j)."""
    rows, columns = voxels.shape[:2]
    out = np.full((rows, columns), np.inf)
    for j in range(rows):
        for i in range(columns):
            for dj in (-1, 1):
                for di in (-1, 1):
                    if 0 <= j + dj < rows and 0 <= i + di < columns:
                        along_i = (voxels[j, i + di] - voxels[j, i]) * di + [1, 0]
                        along_j = (voxels[j + dj, i] - voxels[j, i]) * dj + [0, 1]
                        out[j, i] = min(out[j, i], np.linalg.det(np.stack([along_i, along_j])))
    return out


def test_corner_jacobians_agree_with_their_definition_voxel_by_voxel():
    grid = GRIDS["oblique slice"]
    field = smooth_displacement(grid, 4.0, 2.0)
    expected = brute_force_minimum(field.displacement_voxels[..., :2])
    np.testing.assert_allclose(corner_jacobians_minimum(field), expected, atol=1e-5)
    assert (fold_mask(field) == (expected <= 0)).all()
    assert fold_mask(field).any()


def test_slabs_do_not_change_the_jacobians_of_a_volume(monkeypatch):
    field = smooth_displacement(GRIDS["oblique"], 3.0, 2.0)
    whole = corner_jacobians_minimum(field)
    monkeypatch.setattr("SegGuidedMMRegLib.folds._SLAB_VOXELS", 1500)
    np.testing.assert_array_equal(corner_jacobians_minimum(field), whole)


def test_one_voxel_pushed_past_its_neighbour_is_a_fold_that_central_differences_miss():
    grid = Grid((9, 9, 1))
    voxels = np.zeros((2, 9, 9))
    voxels[1, 4, 4] = 1.5
    field = field_from_study(voxels, grid)
    central = 1 + np.gradient(voxels[1], axis=1)
    assert central.min() > 0
    assert fold_mask(field)[4, 4]


def test_a_reflection_in_the_affine_part_is_no_fold():
    fixed, moving = GRIDS["oblique"], GRIDS["left-handed"]
    phi = smooth_displacement(Grid.centred((24, 24, 24), (1.5, 1.5, 1.5)), 2.0, 5.0)
    forward, inverse = pair_transforms(phi, None, study_to(fixed), study_to(moving), fixed, moving)
    assert np.linalg.det(forward.affine_lps[:3, :3]) < 0
    assert not fold_mask(forward.field).any()
    assert not fold_mask(inverse.field).any()


# -- inverses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid",
    [
        Grid((128, 128, 1), (0.5, 0.7, 1.0), (3, 2, 1), tuple(rotation(0.2, 0.3, 0.1).ravel())),
        Grid((32, 30, 28), (1.0, 1.5, 2.0), direction=tuple(np.diag([1.0, -1.0, 1.0]).ravel())),
    ],
    ids=["2D", "3D"],
)
def test_an_inverted_field_brings_every_voxel_back(grid):
    phi, guess = exponential(
        grid, 0.25 * min(grid.size[: grid.dimension]), 12.0 if grid.dimension == 2 else 6.0
    )
    largest = np.linalg.norm(phi.displacement_voxels, axis=-1).max()
    assert largest > 0.15 * min(grid.size[: grid.dimension])
    for psi in (invert_field(phi), invert_field(phi, guess)):
        q = grid.points()
        p = q + psi.displacement_lps_mm
        back = p + phi.sampled(p, extend=True)
        residual = (back - q) @ grid.lps_to_voxel[:3, :3].T
        assert np.linalg.norm(residual, axis=-1).max() < 0.01


def test_a_shift_is_inverted_to_the_opposite_shift():
    grid = GRIDS["oblique slice"]
    shift = grid.direction_matrix @ [1.0, 2.0, 0.0]
    inverse = invert_field(DisplacementField(grid, np.broadcast_to(shift, (*grid.shape, 3)).copy()))
    np.testing.assert_allclose(
        inverse.displacement_lps_mm, np.broadcast_to(-shift, (*grid.shape, 3)), atol=1e-6
    )


def test_a_folded_field_is_refused_by_the_inversion():
    with pytest.raises(FieldError, match="folds"):
        invert_field(smooth_displacement(GRIDS["oblique slice"], 12.0, 2.0))


def test_a_slice_that_leaves_its_plane_is_refused_by_the_inversion():
    grid = Grid((8, 8, 1))
    with pytest.raises(FieldError, match="plane"):
        invert_field(DisplacementField(grid, np.full((8, 8, 3), 0.5)))


PAIRS = {
    "2D, finer images": (
        Grid.centred((96, 96, 1), (1.0, 1.0, 1.0)),
        oblique_grid((140, 150, 1), (0.6, 0.7, 3.0)),
        left_handed_grid((150, 130, 1), (0.7, 0.6, 1.0)),
    ),
    "2D, coarser images": (
        Grid.centred((96, 96, 1), (1.0, 1.0, 1.0)),
        oblique_grid((60, 56, 1), (1.6, 1.9, 3.0)),
        left_handed_grid((50, 70, 1), (1.9, 1.5, 1.0)),
    ),
    "2D, fixed image larger than the study": (
        Grid.centred((64, 64, 1), (1.0, 1.0, 1.0)),
        oblique_grid((120, 110, 1), (0.9, 1.0, 3.0)),
        left_handed_grid((110, 130, 1), (1.0, 0.8, 1.0)),
    ),
    "3D": (
        Grid.centred((32, 32, 32), (1.5, 1.5, 1.5)),
        oblique_grid((44, 48, 24), (1.0, 1.0, 2.0)),
        left_handed_grid((40, 44, 26), (1.2, 1.1, 1.8)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_forward_then_inverse_returns_to_the_start(name, mirrored):
    study, fixed, moving = PAIRS[name]
    phi, guess = exponential(study, 0.15 * study.size[0], 0.14 * study.size[0])
    to_fixed, to_moving = study_to(fixed), study_to(moving, (0.0, 0.0, -0.1), mirrored)
    forward, inverse = pair_transforms(phi, guess, to_fixed, to_moving, fixed, moving)
    for there, back, start, end in ((forward, inverse, fixed, moving), (inverse, forward, moving, fixed)):
        error = inverse_consistency_error(there, back, start, end)
        assert error["share"] > 0.5
        assert error["mean_voxels"] < 0.1
        assert error["max_voxels"] < 0.5
        assert error["max_mm"] <= error["max_voxels"] * max(start.spacing) + 1e-9
        assert not fold_mask(there.field).any()


@pytest.mark.parametrize("name", ["2D, finer images", "3D"])
def test_the_forward_transform_is_the_chain_of_its_three_parts(name):
    study, fixed, moving = PAIRS[name]
    phi, guess = exponential(study, 0.15 * study.size[0], 0.14 * study.size[0])
    to_fixed, to_moving = study_to(fixed), study_to(moving, mirrored=True)
    forward, _ = pair_transforms(phi, guess, to_fixed, to_moving, fixed, moving)
    x = fixed.points()
    in_study = apply_affine(np.linalg.inv(to_fixed), x)
    expected = apply_affine(to_moving, in_study + phi.sampled(in_study, extend=True))
    inside = study.contains(in_study)
    off = np.linalg.norm(forward.transform_points(x) - expected, axis=-1)[inside]
    assert off.mean() < 0.01
    assert off.max() < 0.1


def swirl_at_the_border(grid: Grid) -> DisplacementField:
    """A turn about a border voxel: area is kept everywhere, but the border itself runs backwards there."""
    centre = np.array([0.0, grid.size[1] / 2])
    offset = grid.points()[..., :2] - grid.voxels_to_points([*centre, 0])[:2]
    angle = 1.8 * np.exp(-((np.linalg.norm(offset, axis=-1) / 20) ** 2))
    turned = np.stack(
        [
            np.cos(angle) * offset[..., 0] - np.sin(angle) * offset[..., 1],
            np.sin(angle) * offset[..., 0] + np.cos(angle) * offset[..., 1],
        ],
        axis=-1,
    )
    displacement = np.zeros((*grid.shape, 3))
    displacement[..., :2] = turned - offset
    return DisplacementField(grid, displacement)


def test_a_field_whose_border_runs_backwards_goes_on_without_folds():
    study = Grid.centred((72, 72, 1), (1.0, 1.0, 1.0))
    phi = swirl_at_the_border(study)
    assert not fold_mask(phi).any()
    edge = np.pad(phi.displacement_lps_mm, [(10, 10), (10, 10), (0, 0)], mode="edge")
    assert fold_mask(DisplacementField(study.padded(10), edge)).any()

    image = Grid.centred((110, 110, 1), (0.9, 0.9, 1.0))
    forward, inverse = pair_transforms(phi, None, np.eye(4), np.eye(4), image, image)
    assert not fold_mask(forward.field).any()
    assert not fold_mask(inverse.field).any()
    inside = study.contains(image.points(), margin_voxels=20)
    expected = phi.sampled(image.points())[inside]
    np.testing.assert_allclose(forward.field.displacement_lps_mm[inside], expected, atol=0.05)


def test_planes_at_different_heights_are_joined_by_the_affine_part():
    study, fixed, moving = PAIRS["2D, finer images"]
    phi = smooth_displacement(study, 5.0, 10.0)
    forward, inverse = pair_transforms(phi, None, study_to(fixed), study_to(moving), fixed, moving)
    landing = moving.points_to_voxels(forward.transform_points(fixed.points()))
    np.testing.assert_allclose(landing[..., 2], 0.0, atol=1e-4)
    assert forward.field.out_of_plane_mm < 1e-4
    assert inverse.field.out_of_plane_mm < 1e-4


def test_a_coarser_delivered_pair_covers_its_images_and_closes():
    study, fixed, moving = PAIRS["2D, finer images"]
    phi, guess = exponential(study, 10.0, 15.0)
    forward, inverse = pair_transforms(
        phi, guess, study_to(fixed), study_to(moving), fixed, moving, spacing_mm=2.0
    )
    assert forward.field.grid.contains(fixed.points()).all()
    assert inverse.field.grid.contains(moving.points()).all()
    assert inverse_consistency_error(forward, inverse, fixed, moving)["max_voxels"] < 0.5


def test_the_closing_error_of_two_shifts_is_their_sum():
    grid = Grid((20, 20, 1), (0.5, 0.5, 1.0))
    shift = np.eye(4)
    shift[0, 3] = 1.0
    still = DisplacementField(grid, np.zeros((20, 20, 3)))
    error = inverse_consistency_error(SpatialTransform(still, shift), SpatialTransform(still), grid, grid)
    assert error["mean_mm"] == pytest.approx(1.0)
    assert error["max_voxels"] == pytest.approx(2.0)
    assert error["share"] == pytest.approx(18 / 20)


def test_a_faded_field_ends_at_nothing_and_keeps_its_middle():
    values = np.ones((20, 30, 3))
    faded = fade_to_border(values, 5)
    assert faded[0].max() == faded[:, -1].max() == 0
    assert (faded[5:-5, 5:-5] == 1).all()


def test_fields_of_wrong_shape_or_with_nan_are_refused():
    grid = Grid((4, 5, 1))
    with pytest.raises(FieldError, match="shape"):
        DisplacementField(grid, np.zeros((4, 5, 3)))
    with pytest.raises(FieldError, match="finite"):
        DisplacementField(grid, np.full((5, 4, 3), np.nan))
    with pytest.raises(FieldError, match="invertible"):
        SpatialTransform(DisplacementField(grid, np.zeros((5, 4, 3))), np.diag([0.0, 1.0, 1.0, 1.0]))


def test_warped_labels_keep_their_values():
    grid = GRIDS["oblique slice"]
    labels = Image((smooth_image_array(grid.shape) > 0).astype(np.uint8) * 7, grid)
    warped = SpatialTransform(smooth_displacement(grid, 3.0, 5.0)).warp_labels(labels, grid)
    assert warped.array.dtype == np.uint8
    assert set(np.unique(warped.array)) == {0, 7}
