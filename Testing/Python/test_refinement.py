"""Registering pairs of segmentations: drawn ellipses, known affine maps, SimpleITK as the judge of a warp."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from SegGuidedMMRegLib import refinement
from SegGuidedMMRegLib.config import RegistrationConfig
from SegGuidedMMRegLib.deformation import compose, exponential, gaussian_smooth, resize_field
from SegGuidedMMRegLib.inverse_pair import JACOBIAN_MARGIN, fold_free_pair
from SegGuidedMMRegLib.networks.registration import build_registration_network
from SegGuidedMMRegLib.pair_affine import shrink
from SegGuidedMMRegLib.refinement import PairResult, register_batch, register_maps

QUICK = RegistrationConfig(refinement_steps=40)


def _one_hot(labels: Tensor, channels: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, channels).movedim(-1, 0).float()


def _blobs(shape: tuple[int, ...], blobs: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> Tensor:
    """One-hot map [1 + blobs, *shape] of ellipses, each (centre, radii) in parts of the extent."""
    axes = [torch.linspace(0, 1, n) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    labels = torch.zeros(shape, dtype=torch.int64)
    for value, (centre, radii) in enumerate(blobs, start=1):
        inside = (((points - torch.tensor(centre)) / torch.tensor(radii)) ** 2).sum(-1) < 1
        labels[inside] = value
    return _one_hot(labels, len(blobs) + 1)


def _two_legs(shape: tuple[int, int] = (96, 80), bend: float = 0.0) -> Tensor:
    return _blobs(
        shape,
        [((0.3 + bend, 0.45), (0.16, 0.2 + bend)), ((0.7, 0.5 + bend), (0.18 - bend, 0.12))],
    )


def _dice(a: Tensor, b: Tensor) -> float:
    a, b = a.bool(), b.bool()
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def _warped_by_simpleitk(mask: Tensor, displacement: Tensor) -> Tensor:
    """`mask` [*shape] at p + u(p), nearest voxel; the ITK vector runs along (x, y, z)."""
    image = sitk.GetImageFromArray(mask.numpy().astype(np.uint8))
    vectors = displacement.flip(0).movedim(0, -1).double().numpy()
    field = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(vectors, isVector=True))
    return torch.from_numpy(sitk.GetArrayFromImage(sitk.Resample(image, field, sitk.sitkNearestNeighbor)))


def _smallest_corner_jacobian(displacement: Tensor) -> float:
    """Over all corners of all cells, written out for 2D in numpy."""
    u = displacement.numpy().astype(float)
    rows, columns = np.meshgrid(*(np.arange(n) for n in u.shape[1:]), indexing="ij")
    y, x = u[0] + rows, u[1] + columns
    smallest = math.inf
    for rows_at in (slice(None, -1), slice(1, None)):
        for columns_at in (slice(None, -1), slice(1, None)):
            dy_dr, dx_dr = (np.diff(v, axis=0)[:, columns_at] for v in (y, x))
            dy_dc, dx_dc = (np.diff(v, axis=1)[rows_at] for v in (y, x))
            smallest = min(smallest, float((dy_dr * dx_dc - dy_dc * dx_dr).min()))
    return smallest


def _assert_regular(result: PairResult) -> None:
    assert result.diagnostics.failure is None
    forward, inverse = result.displacement[None], result.inverse_displacement[None]
    for both in (compose(forward, inverse), compose(inverse, forward)):
        error = both.norm(dim=1)
        assert error.mean() < refinement.MEAN_INVERSE_ERROR
        assert error.max() < refinement.MAX_INVERSE_ERROR


def test_a_pair_is_aligned_without_folds_and_simpleitk_agrees() -> None:
    moving, fixed = _two_legs(), _two_legs(bend=0.06)
    result = register_maps(
        moving, fixed, None, QUICK.model_copy(update={"affine": False}), spacing_mm=(1.0, 1.0)
    )
    _assert_regular(result)
    assert np.array_equal(result.affine_lps, np.eye(4))
    for c in (1, 2):
        warped = _warped_by_simpleitk(moving[c], result.displacement)
        assert _dice(moving[c], fixed[c]) < 0.85
        assert _dice(warped, fixed[c]) > 0.96
        back = _warped_by_simpleitk(fixed[c], result.inverse_displacement)
        assert _dice(back, moving[c]) > 0.96
        assert result.diagnostics.dice_after[c - 1] == pytest.approx(_dice(warped, fixed[c]), abs=0.02)
    for displacement in (result.displacement, result.inverse_displacement):
        assert _smallest_corner_jacobian(displacement) >= JACOBIAN_MARGIN - 1e-3


def test_the_displacement_ends_at_the_border_of_the_study_grid() -> None:
    result = register_maps(_two_legs(), _two_legs(bend=0.06), None, QUICK, spacing_mm=(1.0, 1.0))
    for displacement in (result.displacement, result.inverse_displacement):
        edge = torch.cat([displacement[:, 0].flatten(), displacement[:, :, -1].flatten()])
        assert edge.abs().max() == 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_a_known_affine_map_is_found_in_study_millimetres(spacing: tuple[float, float]) -> None:
    shape = (96, 96) if spacing[0] == spacing[1] else (160, 40)
    angle, scale, shift = math.radians(14), 1.12, np.array([6.0, -4.0])  # LPS x, y
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    y, x = np.meshgrid(*axes, indexing="ij")
    points = np.stack([x, y], axis=-1)

    def draw(where: np.ndarray) -> Tensor:
        labels = np.zeros(shape, dtype=np.int64)
        labels[((where - [-4, -17]) ** 2 / [12**2, 9**2]).sum(-1) < 1] = 1
        labels[((where - [5, 12]) ** 2 / [8**2, 14**2]).sum(-1) < 1] = 2
        return _one_hot(torch.from_numpy(labels), 3)

    moving, fixed = draw(points), draw(points @ linear.T + shift)
    found = register_maps(
        moving, fixed, None, QUICK.model_copy(update={"refinement_steps": 0}), spacing_mm=spacing
    )
    assert np.abs(found.affine_lps[:2, :2] - linear).max() < 0.05
    assert np.abs(found.affine_lps[:2, 3] - shift).max() < 1.0
    assert np.array_equal(found.affine_lps[2], [0, 0, 1, 0])
    assert min(found.diagnostics.dice_affine) > 0.93 > max(found.diagnostics.dice_before)


def test_pairs_with_uncertain_maps_go_part_of_the_way_and_are_as_sound() -> None:
    moving = torch.stack([_two_legs()] * 4)
    fixed = _two_legs(bend=0.05).roll(6, dims=1)[None].expand(4, -1, -1, -1)
    whole = register_batch(moving, fixed, None, QUICK, spacing_mm=(1.0, 1.0))[0]
    misfit = 1 - np.mean(whole.diagnostics.dice_before)
    doubts = [0.0, misfit * 0.5**0.5, misfit, 2 * misfit]
    found = register_batch(moving, fixed, None, QUICK, spacing_mm=(1.0, 1.0), uncertainty=doubts)
    assert [pair.diagnostics.followed for pair in found] == pytest.approx([1, 0.5, 0, 0], abs=1e-5)
    np.testing.assert_allclose(found[0].affine_lps, whole.affine_lps, atol=1e-5)
    torch.testing.assert_close(found[0].displacement, whole.displacement, rtol=0, atol=1e-3)
    half = found[1]
    np.testing.assert_allclose(half.affine_lps @ half.affine_lps, whole.affine_lps, atol=1e-3)
    twice = compose(half.displacement[None], half.displacement[None])[0]
    torch.testing.assert_close(twice, whole.displacement, rtol=0, atol=0.15)
    before, after = (np.mean(d) for d in (half.diagnostics.dice_before, half.diagnostics.dice_after))
    assert before < after < np.mean(whole.diagnostics.dice_after)
    assert half.diagnostics.smallest_jacobian > 0
    for pair in found[2:]:
        np.testing.assert_allclose(pair.affine_lps, np.eye(4), atol=1e-6)
        assert pair.displacement.abs().max() == 0
        assert pair.diagnostics.dice_after == pytest.approx(pair.diagnostics.dice_before, abs=1e-6)
    assert all(pair.diagnostics.failure is None for pair in found)


def test_an_affine_map_that_gains_nothing_is_not_used() -> None:
    moving = _two_legs()
    result = register_maps(moving, moving, None, QUICK, spacing_mm=(1.0, 1.0))
    assert np.array_equal(result.affine_lps, np.eye(4))
    assert result.displacement.abs().max() < 0.5


def test_pairs_are_registered_in_batches_as_they_are_alone() -> None:
    moving = torch.stack([_two_legs(), _two_legs(bend=0.03)])
    fixed = torch.stack([_two_legs(bend=0.06), _two_legs(bend=-0.02)])
    together = register_batch(moving, fixed, None, QUICK, spacing_mm=(1.0, 1.0))
    for n, result in enumerate(together):
        alone = register_maps(moving[n], fixed[n], None, QUICK, spacing_mm=(1.0, 1.0))
        assert (alone.displacement - result.displacement).abs().max() < 0.1


def test_a_structure_that_one_image_lacks_takes_no_part_and_is_reported() -> None:
    moving, fixed = _two_legs(), _two_legs(bend=0.05)
    fixed[0] += fixed[2]
    fixed[2] = 0
    diagnostics = register_maps(moving, fixed, None, QUICK, spacing_mm=(1.0, 1.0)).diagnostics
    assert diagnostics.absent == [2]
    assert math.isnan(diagnostics.dice_after[1])
    assert diagnostics.dice_after[0] > 0.95
    assert diagnostics.failure is None


def test_a_pair_without_a_shared_structure_has_failed() -> None:
    moving, fixed = _two_legs(), _two_legs()
    moving[1] = 0
    fixed[2] = 0
    moving[0], fixed[0] = 1 - moving[1:].sum(0), 1 - fixed[1:].sum(0)
    result = register_maps(moving, fixed, None, QUICK, spacing_mm=(1.0, 1.0))
    assert result.diagnostics.failure == "the two segmentations share no structure"
    assert result.displacement.abs().max() == 0


def test_what_lies_outside_the_field_of_view_does_not_pull() -> None:
    whole = _blobs((96, 96), [((0.5, 0.5), (0.35, 0.12))])
    cut, inside = whole.clone(), torch.ones(96, 96, dtype=torch.bool)
    inside[60:] = False
    cut[1, 60:], cut[0, 60:] = 0, 1
    seen = register_maps(whole, cut, None, QUICK, spacing_mm=(1.0, 1.0), fixed_inside=inside)
    pulled = register_maps(whole, cut, None, QUICK, spacing_mm=(1.0, 1.0))
    assert seen.displacement.abs().max() < 1
    assert np.allclose(seen.affine_lps, np.eye(4), atol=0.05)
    moved = np.abs(pulled.affine_lps - np.eye(4)).max() + float(pulled.displacement.abs().max())
    assert moved > 3


@pytest.mark.parametrize("seed", range(3))
def test_a_velocity_that_would_fold_is_repaired(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    velocity = 3 * gaussian_smooth(4 * torch.randn(1, 2, 20, 24, generator=generator), 1.0)
    wild = exponential(resize_field(velocity, (80, 96)), 7)
    assert _smallest_corner_jacobian(wild[0]) < 0
    solution, repairs = fold_free_pair(velocity, (80, 96))
    assert repairs[0] > 0
    assert _smallest_corner_jacobian(solution.forward[0]) >= JACOBIAN_MARGIN - 1e-3
    assert _smallest_corner_jacobian(solution.inverse[0]) >= JACOBIAN_MARGIN - 1e-3
    assert solution.error_max[0] < refinement.MAX_INVERSE_ERROR


def test_volumes_of_unequal_spacing_are_registered_too() -> None:
    moving = _blobs(
        (14, 40, 36), [((0.5, 0.45, 0.4), (0.25, 0.2, 0.16)), ((0.5, 0.7, 0.7), (0.2, 0.15, 0.12))]
    )
    fixed = _blobs(
        (14, 40, 36), [((0.5, 0.5, 0.45), (0.22, 0.17, 0.22)), ((0.45, 0.72, 0.75), (0.2, 0.16, 0.1))]
    )
    result = register_maps(moving, fixed, None, QUICK, spacing_mm=(3.0, 1.0, 1.0))
    _assert_regular(result)
    assert result.displacement.shape == (3, 14, 40, 36)
    assert min(result.diagnostics.dice_after) > 0.9 > min(result.diagnostics.dice_before) + 0.1


def test_the_networks_map_is_what_is_left_when_nothing_is_refined() -> None:
    moving, fixed = _two_legs((64, 64)), _two_legs((64, 64), bend=0.06)
    network = build_registration_network(2, 3, (32, 32))
    true_velocity = torch.zeros(1, 2, 32, 32)
    true_velocity[:, 0, 8:24, 8:24] = 2.0
    true_velocity = gaussian_smooth(true_velocity, 3.0)
    maps = {True: exponential(true_velocity), False: exponential(-true_velocity)}
    first = shrink(fixed[None], (32, 32))

    def oracle(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([maps[bool(torch.equal(x[None], first))] for x in b])

    network.forward = oracle  # type: ignore[method-assign]
    config = RegistrationConfig(affine=False, refinement_steps=0)
    result = register_maps(moving, fixed, network, config, spacing_mm=(1.0, 1.0))
    wanted = resize_field(maps[True], (64, 64))[0]
    assert wanted.abs().max() > 2.5
    assert (result.displacement - wanted).abs().mean() < 0.1
    assert (result.displacement - wanted).abs().max() < 0.6
    assert len(result.diagnostics.dice_network) == 2


def test_maps_made_in_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        moving, fixed = _two_legs((48, 48)), _two_legs((48, 48), bend=0.05)
    result = register_maps(moving, fixed, None, QUICK, spacing_mm=(1.0, 1.0))
    assert result.diagnostics.failure is None
    assert not result.displacement.is_inference()


def test_maps_that_do_not_fit_are_refused() -> None:
    moving = _two_legs()
    with pytest.raises(ValueError, match="of one shape"):
        register_maps(moving, moving[:, :-1], None, QUICK, spacing_mm=(1.0, 1.0))
    with pytest.raises(ValueError, match="spacing"):
        register_maps(moving, moving, None, QUICK, spacing_mm=(1.0,))
    network = build_registration_network(2, 5, (48, 40))
    with pytest.raises(ValueError, match="4 structures, the maps have 2"):
        register_maps(moving, moving, network, QUICK, spacing_mm=(1.0, 1.0))
