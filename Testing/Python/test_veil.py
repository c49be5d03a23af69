"""Tissue of the target's layout over source images."""

import torch

from SegGuidedMMRegLib.deformation import gaussian_smooth
from SegGuidedMMRegLib.training.veil import embedded, emptiness, envelopes, veiled


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bone(size=64):
    """A bright bar on black, and its labels."""
    labels = torch.zeros(1, size, size, dtype=torch.int64)
    labels[:, :, size // 2 - 6 : size // 2 + 6] = 1
    return labels[:, None].float() * 0.9, labels


def test_a_bone_on_black_is_surrounded_by_nothing_and_one_in_tissue_is_not():
    image, labels = bone()
    assert emptiness(image, labels) == 1.0
    assert emptiness(image + 0.4 * (image == 0), labels) == 0.0


def test_an_image_without_structures_counts_as_not_empty():
    image, labels = bone()
    assert emptiness(image, torch.zeros_like(labels)) == 0.0


def test_a_veil_puts_tissue_where_the_target_has_some_and_leaves_the_rest_dark():
    image, labels = bone()
    target = torch.zeros(4, 1, 64, 64)
    target[..., 12:52] = 0.7
    under = torch.stack([veiled(image, target, generator(seed)) for seed in range(20)]).mean(0)
    beside_bone = (labels[:, None] == 0) & (target[:1] > 0)
    assert under[beside_bone].mean() > 0.2
    assert under[..., :4].mean() < 0.5 * under[beside_bone].mean()
    assert under.min() >= 0
    assert under.max() <= 1


def test_a_veil_is_too_coarse_to_show_small_structures_of_the_target():
    target = (gaussian_smooth(torch.rand(1, 1, 64, 64, generator=generator()), 0.5) > 0.5).float()
    fine = lambda x: (x - gaussian_smooth(x, 2.0)).std()  # noqa: E731
    assert fine(envelopes(target, generator(1))) < 0.2 * fine(target)


def test_a_blurred_edge_is_no_tissue():
    image, labels = bone(48)
    assert emptiness(gaussian_smooth(image, 0.6), labels) == 1.0


def test_bones_in_tissue_are_brighter_or_darker_than_it_and_some_have_a_dark_rim():
    image, labels = bone()
    target = torch.full((2, 1, 64, 64), 0.7) + 0.05 * torch.rand(2, 1, 64, 64, generator=generator())
    made = torch.cat([embedded(image, labels, target, generator(seed)) for seed in range(100)])
    assert made.min() >= 0
    assert made.max() <= 1
    inside = made[:, :, 16:48, 30:34].flatten(1).mean(1)
    rim = made[:, :, 16:48, 25:27].flatten(1).mean(1)
    beside = made[:, :, 16:48, 18:22].flatten(1).mean(1)
    assert (inside > beside + 0.1).sum() > 5
    assert (inside < beside - 0.1).sum() > 5
    assert (rim < torch.minimum(inside, beside) - 0.05).sum() > 5


def test_tissue_works_on_volumes_and_is_seeded():
    images, targets = torch.rand(2, 1, 16, 18, 20), torch.rand(3, 1, 16, 18, 20)
    labels = (images[:, 0] > 0.5).long()
    for make in (veiled, lambda i, t, g: embedded(i, labels, t, g)):
        first, again = (make(images, targets, generator(3)) for _ in range(2))
        assert first.shape == images.shape
        torch.testing.assert_close(first, again, rtol=0, atol=0)
