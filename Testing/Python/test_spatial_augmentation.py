"""Random deformations and grey values for training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from SegGuidedMMRegLib.deformation import corner_jacobians, identity_voxels
from SegGuidedMMRegLib.training.appearance import quantile_table
from SegGuidedMMRegLib.training.intensity import IntensityAugmentation
from SegGuidedMMRegLib.training.spatial import SpatialAugmentation, upsample_smoothly


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def jacobian_mm(field: torch.Tensor, spacing: tuple[float, ...]) -> np.ndarray:
    """[d, d] of p + u(p) in mm at the first voxel, for an affine field [1, d, *shape]."""
    position = (identity_voxels(tuple(field.shape[2:])) + field)[0].numpy()
    corner = (slice(None), *[0] * len(spacing))
    columns = []
    for axis, step in enumerate(spacing):
        ahead = (slice(None), *[1 if a == axis else 0 for a in range(len(spacing))])
        columns.append((position[ahead] - position[corner]) * np.array(spacing) / step)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(("shape", "spacing"), [((24, 40), (2.0, 0.5)), ((12, 16, 20), (3.0, 1.0, 0.7))])
def test_turns_are_turns_in_millimetres_and_as_wide_as_said(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    turning = SpatialAugmentation(spacing, scale=0, stretch=0, shift=0, elastic=0, rotation_degrees=20)
    angles = []
    for seed in range(60):
        matrix = jacobian_mm(turning.displacement(1, shape, generator(seed)), spacing)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(shape)), atol=2e-4)
        assert np.linalg.det(matrix) > 0
        cosine = matrix[0, 0] if len(shape) == 2 else (np.trace(matrix) - 1) / 2
        angles.append(math.degrees(math.acos(min(1, cosine))))
    assert 10 < max(angles) <= 20.1


def test_scale_shift_and_stretch_stay_in_their_limits_and_never_mirror() -> None:
    moving = SpatialAugmentation((1.0, 1.0), rotation_degrees=0, elastic=0)
    field = moving.displacement(300, (33, 65), generator())
    centre = field[:, :, 16, 32]
    assert centre[:, 0].abs().max() <= 0.12 * 33
    assert centre[:, 1].abs().max() <= 0.12 * 65
    slope = 1 + field[:, 0, 17, 32] - field[:, 0, 16, 32]
    assert slope.min() >= 1 / (1.2 * 1.1) - 1e-4
    assert slope.max() <= 1.2 * 1.1 + 1e-4
    assert slope.max() - slope.min() > 0.3


def test_the_elastic_part_hardly_ever_folds() -> None:
    elastic = SpatialAugmentation((1.0, 1.0), rotation_degrees=0, scale=0, stretch=0, shift=0)
    field = elastic.displacement(50, (64, 64), generator())
    assert field.abs().amax() > 2
    assert (corner_jacobians(field) <= 0).float().mean() < 1e-4


def test_image_and_labels_move_together_and_leave_zero_behind() -> None:
    image = torch.zeros(8, 1, 64, 64)
    image[:, :, 20:44, 24:40] = 1
    labels = (image[:, 0] * 3).long()
    moved, indices = SpatialAugmentation((1.0, 1.0))(image, labels, generator())
    assert indices.dtype == torch.int64
    assert set(indices.unique().tolist()) == {0, 3}
    assert ((moved[:, 0] > 0.5) == (indices == 3)).float().mean() > 0.995
    assert not torch.equal(moved, image)


def test_a_spline_of_control_points_is_the_cubic_b_spline() -> None:
    control = torch.randn(1, 1, 7, generator=generator(), dtype=torch.float64)
    found = upsample_smoothly(control, (25,))[0, 0]  # a knot at every fourth voxel
    c = control[0, 0]
    at_knots = (c[:-2] + 4 * c[1:-1] + c[2:]) / 6
    between = (c[:-3] + 23 * c[1:-2] + 23 * c[2:-1] + c[3:]) / 48
    torch.testing.assert_close(found[4:-4:4], at_knots)
    torch.testing.assert_close(found[6:-6:4], between)
    straight = torch.arange(7, dtype=torch.float64).expand(1, 1, 7)
    torch.testing.assert_close(
        upsample_smoothly(straight, (25,))[0, 0, 4:-4], torch.arange(4, 21) / 4.0, check_dtype=False
    )


def test_intensity_changes_differ_from_image_to_image_and_keep_the_order_of_grey_values() -> None:
    ramp = torch.linspace(0.05, 0.95, 64).expand(6, 1, 64, 64).clone()
    changed = IntensityAugmentation(noise=0.0, shading=0.0)(ramp, generator())
    assert (changed.diff(dim=-1) >= -1e-6).all()
    assert len({round(float(x.mean()), 4) for x in changed}) == 6
    assert changed.min() > -0.3
    assert changed.max() < 1.3


def test_histograms_are_borrowed_from_the_references() -> None:
    ramp = torch.linspace(0, 1, 64).expand(40, 1, 64, 64).clone()
    dark = quantile_table(ramp[:1] ** 3)
    plain = {
        "shading": 0.0,
        "gamma": 1.0,
        "contrast": 0.0,
        "brightness": 0.0,
        "noise": 0.0,
        "blur_sigma": 0.0,
    }
    changed = IntensityAugmentation(dark, **plain)(ramp, generator())
    borrowed = changed.mean((1, 2, 3)) < 0.4
    assert 5 < int(borrowed.sum()) < 35
    torch.testing.assert_close(changed[borrowed][0], ramp[0] ** 3, atol=0.02, rtol=0)
    torch.testing.assert_close(changed[~borrowed][0], ramp[0], atol=0.01, rtol=0)


def test_shading_is_smooth_and_differs_from_image_to_image() -> None:
    flat = torch.full((4, 1, 32, 32), 0.5)
    plain = {"gamma": 1.0, "contrast": 0.0, "brightness": 0.0, "noise": 0.0}
    shaded = IntensityAugmentation(**plain)(flat, generator())
    assert shaded.std((1, 2, 3)).min() > 0.01
    assert shaded.diff(dim=-1).abs().max() < 0.15
