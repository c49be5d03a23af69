"""Generators and discriminators of the paper's CycleGAN."""

from __future__ import annotations

import pytest
import torch

from SegGuidedMMRegLib.networks.translation import Discriminator, Generator


@pytest.mark.parametrize("shape", [(32, 32), (33, 38), (8, 9, 11)])
def test_a_translated_image_has_the_shape_and_range_of_the_original(shape):
    images = torch.rand(2, 1, *shape)
    translated = Generator(len(shape), filters=4, blocks=1)(images).detach()
    assert translated.shape == images.shape
    assert 0 <= float(translated.min()) <= float(translated.max()) <= 1


def test_the_generator_of_the_paper_has_9_blocks_64_filters_and_11_4_million_weights():
    generator = Generator(2)
    count = sum(weight.numel() for weight in generator.parameters())
    assert count == pytest.approx(11.4e6, rel=0.01)


def test_a_score_of_the_discriminator_sees_70_voxels_each_way():
    judge = Discriminator((128, 128), filters=4).double()
    for module in judge.modules():  # instance normalisation would let every voxel see all others
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: x
    images = torch.rand(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    scores = judge(images)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows = images.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_the_discriminator_takes_thin_volumes():
    assert Discriminator((16, 20, 18), filters=4)(torch.rand(1, 1, 16, 20, 18)).shape[:2] == (1, 1)


def test_each_image_is_translated_by_itself():
    generator = Generator(2, filters=4, blocks=1)
    images = torch.rand(3, 1, 16, 16)
    together = generator(images)
    assert torch.allclose(together[1:2], generator(images[1:2]), atol=1e-5)
