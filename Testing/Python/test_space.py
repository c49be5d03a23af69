"""Grids: where voxels lie, against SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spatial_cases import left_handed_grid, oblique_grid, rotation

from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.space import Grid

GRIDS = {
    "oblique": oblique_grid(),
    "left-handed": left_handed_grid(),
    "oblique slice": oblique_grid((40, 30, 1), (0.7, 1.2, 3.0)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_voxels_lie_where_simpleitk_puts_them(name):
    grid = GRIDS[name]
    image = Image(np.zeros(grid.shape), grid).to_sitk()
    voxels = np.random.default_rng(0).uniform(-5, 30, (50, 3))
    expected = [image.TransformContinuousIndexToPhysicalPoint(v) for v in voxels.tolist()]
    np.testing.assert_allclose(grid.voxels_to_points(voxels), expected, atol=1e-9)
    np.testing.assert_allclose(grid.points_to_voxels(expected), voxels, atol=1e-9)
    points = grid.points()
    assert points.shape == (*grid.shape, 3)
    corner = tuple(n - 1 for n in grid.size)
    np.testing.assert_allclose(points[(-1,) * grid.dimension], image.TransformIndexToPhysicalPoint(corner))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40), st.sampled_from([1, 2, 17])),
    spacing=st.tuples(*[st.floats(0.1, 5)] * 3),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    flip=st.booleans(),
)
def test_every_space_leads_back_to_the_voxel(size, spacing, angles, flip):
    direction = rotation(*angles) @ np.diag([1.0, 1.0, -1.0 if flip else 1.0])
    grid = Grid(size, spacing, (3.0, -2.0, 50.0), tuple(direction.ravel()))
    voxels = np.random.default_rng(1).uniform(0, np.asarray(size) - 1, (10, 3))
    np.testing.assert_allclose(grid.points_to_voxels(grid.voxels_to_points(voxels)), voxels, atol=1e-6)
    np.testing.assert_allclose(grid.unit_to_voxels(grid.voxels_to_unit(voxels)), voxels, atol=1e-9)
    assert grid.contains(grid.voxels_to_points(voxels)).all()
    assert not grid.contains(grid.voxels_to_points(voxels + np.asarray(size))).any()


@pytest.mark.parametrize("name", GRIDS)
def test_resized_and_respaced_grids_keep_the_box_or_its_centre(name):
    grid = GRIDS[name]
    halved = grid.resized((grid.size[0] // 2, grid.size[1] // 2, max(grid.size[2] // 2, 1)))
    np.testing.assert_allclose(halved.extent_mm, grid.extent_mm)
    np.testing.assert_allclose(halved.centre_lps_mm, grid.centre_lps_mm)
    coarse = grid.with_spacing(2.5)
    np.testing.assert_allclose(coarse.centre_lps_mm, grid.centre_lps_mm, atol=1e-9)
    assert coarse.dimension == grid.dimension
    assert (np.asarray(coarse.extent_mm) >= np.asarray(grid.extent_mm) - 1e-6).all()


def test_a_padded_grid_keeps_its_voxels_in_place():
    grid = GRIDS["oblique"]
    padded = grid.padded(3)
    np.testing.assert_allclose(padded.points()[3:-3, 3:-3, 3:-3], grid.points(), atol=1e-9)
    assert GRIDS["oblique slice"].padded(3).dimension == 2


def test_grids_a_tenth_of_a_voxel_apart_are_not_close():
    grid = GRIDS["oblique"]
    shift = grid.voxels_to_points([0.1, 0, 0])
    assert grid.is_close(Grid(grid.size, grid.spacing, grid.origin, grid.direction))
    assert not grid.is_close(Grid(grid.size, grid.spacing, tuple(shift), grid.direction))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (0, 4, 4)}, "sizes"),
        ({"spacing": (1.0, -1.0, 1.0)}, "spacings"),
        ({"origin": (np.nan, 0.0, 0.0)}, "origin"),
        ({"direction": (1, 0, 0, 1, 1, 0, 0, 0, 1)}, "right angles"),
    ],
)
def test_impossible_grids_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Grid(**{"size": (4, 4, 4), **change})
