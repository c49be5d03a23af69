"""The probability of each class at each place, and what it makes of a network's answer."""

from __future__ import annotations

import pytest
import torch

from SegGuidedMMRegLib.training.adaptation.position import position_prior, with_prior
from SegGuidedMMRegLib.training.adaptation.task import SourceSamples
from SegGuidedMMRegLib.training.spatial import SpatialAugmentation


def _samples(dimension: int) -> SourceSamples:
    """Two images with a block of structure 1 left of the middle and one of structure 2 right of it."""
    labels = torch.zeros(2, *[32] * dimension, dtype=torch.long)
    labels[..., 10:22, 4:12] = 1
    labels[0, ..., 10:22, 20:28] = 2
    return SourceSamples(labels[:, None].float() / 2, labels, torch.full((2,), 0.5))


def _prior(dimension: int = 2, seed: int = 0) -> torch.Tensor:
    spatial = SpatialAugmentation((1.0,) * dimension)
    return position_prior(_samples(dimension), 2, spatial, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_structure_is_probable_where_the_labels_have_it_and_nowhere_impossible(dimension: int) -> None:
    prior = _prior(dimension)
    middle = (16,) * (dimension - 1)
    assert prior.shape == (3, *[32] * dimension)
    assert torch.allclose(prior.sum(0), torch.ones(prior.shape[1:]))
    assert float(prior[(1, *middle, 8)]) > 0.9
    assert 0.3 < float(prior[(2, *middle, 24)]) < 0.7, "one of two labels shows it"
    assert float(prior[(2, *middle, 4)]) < 0.02
    assert float(prior.min()) > 0


def test_the_same_seed_gives_the_same_prior() -> None:
    assert torch.equal(_prior(seed=3), _prior(seed=3))


def test_what_a_network_takes_for_a_structure_in_a_wrong_place_is_corrected() -> None:
    found = torch.zeros(1, 3, 32, 32)
    found[:, 0], found[:, 1], found[:, 2] = 0.2, 0.8, 0.0
    found[:, :, 16, 8] = torch.tensor([0.3, 0.3, 0.4])
    sure = with_prior(found, _prior()[None])
    assert torch.allclose(sure.sum(1), torch.ones(1, 32, 32))
    assert int(sure[0, :, 16, 30].argmax()) == 0, "structure 1 does not lie on the right"
    assert int(sure[0, :, 16, 8].argmax()) != 2, "where the network is unsure, the place decides"


def test_a_structure_keeps_its_size_where_it_is_usual() -> None:
    prior = _prior()[None]
    usual = (prior[:, 1] > 0.1) & (prior[:, 1] < 0.5)
    assert usual.any(), "its outskirts"
    found = torch.tensor([0.4, 0.6, 0.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(with_prior(found, prior)[:, 1][usual], found[:, 1][usual])


def test_a_network_that_is_certain_outweighs_the_place() -> None:
    found = torch.full((1, 3, 32, 32), 1e-5)
    found[:, 2] = 1
    sure = with_prior(found / found.sum(1, keepdim=True), _prior()[None])
    assert (sure.argmax(1) == 2).all()
