"""Predictions on target images with the mean sizes of the source."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from SegGuidedMMRegLib.config import SegmentationConfig
from SegGuidedMMRegLib.networks.segmentation import build_segmentation_network
from SegGuidedMMRegLib.training.adaptation.collapse import structure_sizes
from SegGuidedMMRegLib.training.adaptation.sizes import expected_sizes, size_shift


class Ramps(nn.Module):
    """Logits that fall with the distance from the middles of two discs, the slower the darker the image."""

    def forward(self, images):
        height, width = images.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        discs = [20 - ((y - height / 2) ** 2 + (x - c * width) ** 2).sqrt() for c in (0.25, 0.75)]
        background = torch.zeros(height, width)
        return (
            torch.stack([background, *discs]).expand(len(images), -1, -1, -1)
            * images.amax((2, 3))[..., None, None]
        )


def mean_sizes(logits, shift):
    moved = logits + torch.tensor([0.0, *shift]).view(1, -1, 1, 1)
    return structure_sizes(moved.argmax(1), 2).mean(0)


@pytest.mark.parametrize("factors", [(0.8, 1.3), (1.0, 1.0), (1.4, 0.7)])
def test_the_shift_gives_the_mean_sizes_that_are_expected(factors):
    images = torch.rand(6, 1, 160, 200, generator=torch.Generator().manual_seed(0)) * 0.5
    network = Ramps()
    wanted = mean_sizes(network(images), (0.0, 0.0)) * torch.tensor(factors)
    shift = size_shift(network, images, wanted)
    found = mean_sizes(network(images), shift)
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0)
    assert [value > 0.05 for value in shift] == [factor > 1 for factor in factors]


def test_a_structure_that_is_nowhere_is_not_conjured_up():
    images = torch.ones(2, 1, 160, 200)
    shift = size_shift(Ramps(), images, torch.tensor([32000.0, 0.0]))
    assert shift == (2.0, -2.0)


def test_what_is_expected_is_what_the_views_show():
    labels = torch.zeros(2, 10, 10, dtype=torch.int64)
    labels[0, 2:4], labels[1, 6:9] = 1, 2
    whole = torch.ones(3, 1, 10, 10, dtype=torch.bool)
    torch.testing.assert_close(expected_sizes(labels, whole, 2), torch.tensor([10.0, 15.0]))
    half = whole.clone()
    half[..., 5:] = False
    torch.testing.assert_close(expected_sizes(labels, half, 2), torch.tensor([5.0, 7.5]))
    torch.testing.assert_close(
        expected_sizes(labels, torch.cat([whole, half]), 2), torch.tensor([7.5, 11.25])
    )


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("residual_units", [0, 1, 2])
def test_logits_are_shifted_by_the_network_itself(dimension, residual_units):
    config = SegmentationConfig(channels=(4, 8), strides=(2,), residual_units=residual_units)
    network = build_segmentation_network(dimension, 2, config).eval()
    images = torch.rand(1, 1, *[12] * dimension)
    before, shift = network(images), torch.tensor([0.0, 1.0, -2.0])
    network.shift_logits(shift)
    torch.testing.assert_close(network(images), before + shift.view(1, -1, *[1] * dimension))
