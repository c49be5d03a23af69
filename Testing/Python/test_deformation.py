"""Maps on the study grid against SimpleITK, closed forms and each other."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from SegGuidedMMRegLib.deformation import (
    border_fade,
    compose,
    corner_jacobians,
    exponential,
    gaussian_smooth,
    identity_voxels,
    lncc,
    resize_field,
    soft_dice,
    warp,
)

SHAPES = [(24, 30), (14, 18, 16)]


def smooth_field(shape, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    field = gaussian_smooth(torch.randn(1, len(shape), *shape, generator=generator), 4.0)
    return size * field / field.abs().max() * border_fade(shape, 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_warp_equals_simpleitk_resampling(shape):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 1, *shape, generator=generator)
    field = smooth_field(shape, 3.0)
    vectors = np.moveaxis(field[0].double().numpy()[::-1], 0, -1)  # ITK orders components x first
    transform = sitk.DisplacementFieldTransform(
        sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)
    )
    itk_image = sitk.GetImageFromArray(image[0, 0].numpy())
    expected = sitk.GetArrayFromImage(sitk.Resample(itk_image, itk_image, transform, sitk.sitkLinear, 0.0))
    inside = (slice(3, -3),) * len(shape)
    np.testing.assert_allclose(warp(image, field)[0, 0].numpy()[inside], expected[inside], atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_exponential_of_the_negative_velocity_is_the_inverse(shape):
    velocity = smooth_field(shape, 3.0)
    there_and_back = compose(exponential(-velocity, 7), exponential(velocity, 7))
    assert there_and_back.abs().mean() < 0.02
    assert there_and_back.abs().max() < 0.2


def test_exponential_of_a_rotation_velocity_is_the_rotation():
    shape, angle = (65, 65), 0.3
    centred = identity_voxels(shape) - 32
    velocity = angle * torch.stack([-centred[:, 1], centred[:, 0]], 1)
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    expected = torch.einsum("ab,nbij->naij", rotation, centred) - centred
    found = exponential(velocity, 8)
    inside = (..., slice(20, 45), slice(20, 45))
    assert (found - expected)[inside].abs().max() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_corner_jacobians_of_an_affine_map_are_its_determinant(shape):
    matrix = (
        torch.eye(len(shape)) + 0.2 * torch.arange(len(shape) ** 2).view(len(shape), -1) / len(shape) ** 2
    )
    grid = identity_voxels(shape)
    displacement = torch.einsum("ab,nb...->na...", matrix, grid) - grid
    found = corner_jacobians(displacement)
    assert found.shape[1] == {2: 4, 3: 10}[len(shape)]
    torch.testing.assert_close(found, torch.linalg.det(matrix).expand_as(found), atol=1e-3, rtol=0)


def test_a_swap_of_two_neighbours_is_seen_as_a_fold_although_central_differences_miss_it():
    displacement = torch.zeros(1, 2, 9, 9)
    displacement[0, 1, :, 4] = 1.2  # one column jumps past its neighbour
    central = 1 + (displacement[0, 1, :, 2:] - displacement[0, 1, :, :-2]) / 2
    assert central[:, 3].min() > 0
    assert corner_jacobians(displacement).min() < 0


def test_resized_field_moves_the_same_points_in_new_voxels():
    coarse = smooth_field((16, 16), 2.0)
    fine = resize_field(coarse, (31, 31))
    torch.testing.assert_close(fine[..., ::2, ::2], coarse * 2, atol=1e-5, rtol=0)


def test_lncc_is_one_for_linearly_related_images_and_low_for_unrelated_ones():
    generator = torch.Generator().manual_seed(0)
    a, b = (gaussian_smooth(torch.rand(2, 1, 32, 32, generator=generator), 1.0) * 5 for _ in range(2))
    assert lncc(a, 3 * a + 1, 3.0).min() > 0.98
    assert lncc(a, b, 3.0).max() < 0.3


def test_soft_dice_of_hard_maps_is_the_dice_and_of_empty_maps_one():
    p, q = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    p[0, 0, :4], q[0, 0, 2:6] = 1, 1
    torch.testing.assert_close(soft_dice(p, q), torch.tensor([[0.5, 1.0]]), atol=1e-4, rtol=0)
