"""Source images cut to the field of view of target images."""

import math

import pytest
import torch

from SegGuidedMMRegLib.deformation import identity_voxels
from SegGuidedMMRegLib.training.field_of_view import cut_to_views, fields_of_view


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sector(shape, degrees=70.0):
    """What a probe at the middle of the first side shows, [1, 1, *shape] of bool."""
    positions = identity_voxels(shape)[0]
    depth, aside = positions[0] - 4, positions[1] - shape[1] / 2
    inside = (torch.atan2(aside.abs(), depth) < math.radians(degrees / 2)) & (depth > 0)
    if len(shape) == 3:
        inside &= (positions[2] > 5) & (positions[2] < shape[2] - 6)
    return inside[None, None]


@pytest.mark.parametrize("shape", [(64, 80), (40, 44, 36)])
def test_a_sector_is_found_though_what_it_shows_is_partly_black(shape):
    truth = sector(shape)
    image = truth.float() * (0.2 + 0.8 * torch.rand((1, 1, *shape), generator=generator()))
    middle = tuple(slice(n // 2 - 4, n // 2 + 4) for n in shape)
    image[(0, 0, *middle)] = 0.0
    found = fields_of_view(image)
    assert (truth & ~found).float().sum() < 0.02 * truth.sum()
    assert (found & ~truth).float().sum() < 0.1 * truth.sum()


@pytest.mark.parametrize("shape", [(30, 40), (20, 24, 28)])
def test_a_box_is_found_to_the_voxel(shape):
    image = torch.zeros(1, 1, *shape)
    image[(0, 0, *[slice(5, 15)] * len(shape))] = 0.5
    assert torch.equal(fields_of_view(image), image > 0)


def test_a_full_image_an_empty_one_and_a_speck_outside():
    images = torch.zeros(3, 1, 32, 32)
    images[0] = 0.4
    images[2, 0, 8:20, 8:20] = 0.6
    images[2, 0, 30, 30] = 1.0
    full, empty, speck = fields_of_view(images)
    assert full.all()
    assert empty.all()
    assert torch.equal(speck, (images[2] > 0) & (identity_voxels((32, 32))[0, :1] < 25))


def test_most_images_are_black_and_without_labels_beyond_the_view_and_some_stay_whole():
    views = sector((32, 32)).expand(3, -1, -1, -1)
    images, labels = torch.full((60, 1, 32, 32), 0.7), torch.ones(60, 32, 32, dtype=torch.int64)
    cut, cut_labels = cut_to_views(images, labels, views, generator(1))
    whole = (cut_labels == 1).flatten(1).all(1)
    assert 2 <= int(whole.sum()) <= 25
    torch.testing.assert_close(cut[whole], images[whole])
    assert torch.equal(cut_labels[~whole] > 0, views[:1, 0].expand(int((~whole).sum()), -1, -1))
    assert cut[~whole][..., :2, :].max() < 1e-3
    assert cut[~whole][..., 20, 16].min() > 0.69


def test_the_same_seed_cuts_alike():
    images, labels = torch.rand(4, 1, 12, 14, 16), torch.ones(4, 12, 14, 16, dtype=torch.int64)
    views = fields_of_view(torch.rand(5, 1, 12, 14, 16) * (torch.rand(5, 1, 12, 14, 16) > 0.5))
    first, again = (cut_to_views(images, labels, views, generator(3)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
