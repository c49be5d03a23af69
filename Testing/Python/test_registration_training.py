"""Training the registration network on drawn segmentations (paper, Eq. 4)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from SegGuidedMMRegLib.config import Config, RegistrationConfig, TrainingConfig
from SegGuidedMMRegLib.deformation import soft_dice, warp
from SegGuidedMMRegLib.events import RecordingReporter, Reporter
from SegGuidedMMRegLib.networks.registration import (
    RegistrationNetwork,
    build_registration_network,
    describe_registration_network,
    load_registration_network,
)
from SegGuidedMMRegLib.training.loop import fit
from SegGuidedMMRegLib.training.registration import (
    SegmentationRegistration,
    registration_misfit,
    train_registration,
    working_shape,
)

CPU = TrainingConfig(device="cpu")


def _maps(count: int, size: int, seed: int) -> Tensor:
    """[count, 3, size, size]: two ellipses of random place and radii."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    maps = []
    for _ in range(count):
        a, b, c, d, e, f = (0.3 * (torch.rand(6, generator=generator) - 0.5)).tolist()
        first = ((y + 0.4 + a) / (0.3 + e)) ** 2 + ((x + b) / 0.4) ** 2 < 1
        second = (((y - 0.4 + c) / 0.3) ** 2 + ((x + d) / (0.35 + f)) ** 2 < 1) & ~first
        maps.append(torch.stack([~(first | second), first, second]).float())
    return torch.stack(maps)


def _mean_dice(network: RegistrationNetwork, moving: Tensor, fixed: Tensor) -> float:
    with torch.no_grad():
        warped = warp(moving, network.eval()(moving, fixed))
    return float(soft_dice(warped[:, 1:], fixed[:, 1:]).mean())


@pytest.fixture
def trained(tmp_path: Path) -> tuple[RegistrationNetwork, list[dict[str, float]], Path]:
    torch.manual_seed(0)
    config = RegistrationConfig(steps=60, batch_size=4, learning_rate=1e-3)
    network = build_registration_network(2, 3, (32, 32))
    stage = SegmentationRegistration(_maps(8, 32, 1), _maps(6, 32, 2), (1.0, 1.0), config, network)
    reporter = RecordingReporter()
    fit(stage, name="registration", steps=60, folder=tmp_path, config=CPU, reporter=reporter)
    describe_registration_network(tmp_path, network)
    seen = [event.data["metrics"] for event in reporter.events if event.kind == "progress"]
    return network, seen, tmp_path


def test_a_short_training_aligns_maps_it_has_not_seen(
    trained: tuple[RegistrationNetwork, list[dict[str, float]], Path],
) -> None:
    network, metrics, folder = trained
    moving, fixed = _maps(6, 32, 8), _maps(6, 32, 9)
    before = float(soft_dice(moving[:, 1:], fixed[:, 1:]).mean())
    after = _mean_dice(network, moving, fixed)
    assert after > before + 0.1
    assert set(metrics[-1]) >= {"loss", "dice", "inconsistency"}
    again = load_registration_network(folder)
    assert _mean_dice(again, moving, fixed) == pytest.approx(after)


def test_the_loss_of_aligned_maps_is_zero_and_of_disjoint_ones_two() -> None:
    still = torch.zeros(1, 2, 32, 32)
    maps = _maps(1, 32, 1)
    assert registration_misfit(maps, maps, still, still) == pytest.approx(0, abs=1e-4)
    away = torch.full((1, 2, 32, 32), 1000.0)
    assert registration_misfit(maps, maps, away, away) == pytest.approx(2, abs=1e-3)


def test_the_loss_counts_both_directions_and_each_structure_alike() -> None:
    a, b = _maps(1, 32, 1), _maps(1, 32, 2)
    still = torch.zeros(1, 2, 32, 32)
    dice = [float(2 * (a[0, c] * b[0, c]).sum() / (a[0, c].sum() + b[0, c].sum())) for c in (1, 2)]
    assert registration_misfit(a, b, still, still) == pytest.approx(2 - sum(dice), abs=1e-3)


def test_a_structure_absent_from_one_map_is_left_out_of_the_loss() -> None:
    a, b = _maps(1, 32, 1), _maps(1, 32, 2)
    still = torch.zeros(1, 2, 32, 32)
    only_first = float(2 * (a[0, 1] * b[0, 1]).sum() / (a[0, 1].sum() + b[0, 1].sum()))
    b[:, 2] = 0
    assert registration_misfit(a, b, still, still) == pytest.approx(2 - 2 * only_first, abs=1e-3)
    b[:, 1] = 0
    assert registration_misfit(a, b, still, still) == pytest.approx(2)


def test_pairs_hold_both_modalities_in_every_order() -> None:
    source, target = torch.zeros(3, 2, 8, 8), torch.ones(5, 2, 8, 8)
    config = RegistrationConfig(batch_size=64, perturbed=False)
    stage = SegmentationRegistration(
        source, target, (1.0, 1.0), config, build_registration_network(2, 2, (8, 8))
    )
    moving, fixed = stage._draw(torch.Generator().manual_seed(0))
    orders = {(int(m), int(f)) for m, f in zip(moving[:, 0, 0, 0], fixed[:, 0, 0, 0], strict=True)}
    assert orders == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_moved_maps_stay_probabilities() -> None:
    maps = _maps(4, 32, 1)
    stage = SegmentationRegistration(
        maps, maps, (1.0, 1.0), RegistrationConfig(batch_size=4), build_registration_network(2, 3, (32, 32))
    )
    moving, _ = stage._draw(torch.Generator().manual_seed(0))
    assert not any(torch.equal(moving[0], m) for m in maps)
    torch.testing.assert_close(moving.sum(1), torch.ones(4, 32, 32))
    assert moving.min() >= 0


def test_zero_steps_leave_the_network_out(tmp_path: Path) -> None:
    config = Config(registration=RegistrationConfig(steps=0))
    nothing: object = None
    result = train_registration(
        nothing, config, tmp_path, tmp_path, tmp_path / "registration", reporter=Reporter()
    )
    assert result is None
    assert not (tmp_path / "registration").exists()


def test_the_working_grid_is_never_too_small_for_the_network() -> None:
    assert working_shape((256, 191), 2) == (128, 96)
    assert working_shape((64, 64, 12), 2) == (32, 32, 8)
    with pytest.raises(ValueError, match="finer grid"):
        working_shape((64, 64, 5), 2)


def test_loading_from_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Train this stage first"):
        load_registration_network(tmp_path)
