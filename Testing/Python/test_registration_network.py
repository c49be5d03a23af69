"""The adapter around icon_registration, against its own identity map and against warping by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from SegGuidedMMRegLib.networks.registration import (
    add_second_stage,
    both_ways,
    build_registration_network,
    gradient_inverse_consistency,
)


def _shake(network: torch.nn.Module, amount: float) -> None:
    """Random weights instead of the zeros of the last layers, so that there is a displacement at all."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=amount)


@pytest.mark.parametrize("shape", [(8, 9), (17, 33), (64, 48), (8, 20, 12)])
@pytest.mark.parametrize("stages", [1, 2])
def test_an_untrained_network_is_the_identity_on_grids_of_any_size(
    shape: tuple[int, ...], stages: int
) -> None:
    network = build_registration_network(len(shape), 3, shape, stages)
    moving, fixed = torch.rand(2, 2, 3, *shape)
    displacement = network(moving, fixed)
    assert displacement.shape == (2, len(shape), *shape)
    assert displacement.abs().max() == 0


def test_the_displacement_is_in_voxels_and_agrees_with_the_packages_own_warp() -> None:
    shape = (24, 40)
    network = build_registration_network(2, 1, shape).eval()
    _shake(network, 0.05)
    rows = torch.arange(24.0).view(1, 1, 24, 1).expand(1, 1, 24, 40)
    columns = torch.arange(40.0).view(1, 1, 1, 40).expand(1, 1, 24, 40)
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    phi = network.core(noise, noise.flip(2))(network.core.identity_map)
    displacement = network(noise, noise.flip(2))
    assert displacement.abs().max() > 0.1
    inside = ((phi > 0) & (phi < 1)).all(1, keepdim=True)
    # The package's own warp of the images "row index" and "column index" says where each voxel comes from.
    for axis, index in enumerate((rows, columns)):
        warped = network.core.as_function(index)(phi)
        error = (warped - index - displacement[:, axis : axis + 1])[inside]
        assert error.abs().max() < 1e-3


def test_both_ways_equals_two_calls_when_statistics_are_fixed() -> None:
    network = build_registration_network(2, 2, (32, 32)).eval()
    _shake(network, 0.05)
    a, b = torch.rand(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    forward, backward = both_ways(network, a, b)
    torch.testing.assert_close(forward, network(a, b))
    torch.testing.assert_close(backward, network(b, a))


def test_building_a_network_writes_nothing_into_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = build_registration_network(2, 1, (16, 16))
    network(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16))
    assert list(tmp_path.iterdir()) == []


def test_wrong_images_and_impossible_networks_are_refused() -> None:
    network = build_registration_network(2, 2, (16, 16))
    with pytest.raises(ValueError, match="2 channels on \\(16, 16\\)"):
        network(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="8 voxels"):
        build_registration_network(2, 1, (7, 16))
    with pytest.raises(ValueError, match="2 or 3 axes"):
        build_registration_network(2, 1, (16, 16, 16))
    with pytest.raises(ValueError, match="1 or 2 stages"):
        build_registration_network(2, 1, (16, 16), 3)


def test_a_second_stage_starts_where_the_first_ended() -> None:
    first = build_registration_network(2, 1, (32, 32)).eval()
    _shake(first, 0.05)
    a, b = torch.rand(2, 1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(add_second_stage(first).eval()(a, b), first(a, b), atol=1e-4, rtol=0)


def test_gradient_inverse_consistency_is_that_of_the_package() -> None:
    from icon_registration import GradientICON

    torch.manual_seed(0)
    size = 64
    a, b = (
        torch.nn.functional.interpolate(3 * torch.randn(1, 2, 5, 5), size, mode="bicubic") for _ in range(2)
    )
    theirs = GradientICON(torch.nn.Module(), None, 1.0)
    theirs.assign_identity_map([1, 1, size, size])
    phi_a, phi_b = (
        lambda x, u=u: x + theirs.as_function(u / (size - 1))(x)  # a map of coordinates in [0, 1]
        for u in (a, b)
    )
    ours = gradient_inverse_consistency(a, b)
    assert ours == pytest.approx(float(theirs.compute_gradient_icon_loss(phi_a, phi_b)), rel=0.1)


def test_gradient_inverse_consistency_of_a_shift_is_zero_and_of_a_stretch_its_square() -> None:
    shift = torch.full((1, 2, 16, 16), 1.5)
    assert gradient_inverse_consistency(shift, shift) < 1e-10
    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1, 16, 16)
    stretch = torch.cat([0.1 * (rows - 8), torch.zeros(1, 1, 16, 16)], dim=1)
    assert gradient_inverse_consistency(torch.zeros(1, 2, 16, 16), stretch) == pytest.approx(0.1**2 / 2)
