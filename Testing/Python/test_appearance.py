"""Changing the contrast of labelled images."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from SegGuidedMMRegLib.training.appearance import (
    AppearanceMix,
    apply_curves,
    apply_region_curves,
    background_clusters,
    bias_field,
    degrade,
    match_histogram,
    quantile_table,
    random_curves,
    recolour,
    stretch,
)

SHAPES = [(24, 30), (10, 12, 14)]


def random_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matched_image_has_the_quantiles_of_its_reference(shape):
    generator = random_generator()
    images = torch.rand(3, 1, *shape, generator=generator)
    references = torch.rand(3, 1, *shape, generator=generator) ** torch.tensor([2.0, 3.0, 0.5]).view(
        3, *[1] * (len(shape) + 1)
    )
    matched = match_histogram(images, quantile_table(references))
    expected = torch.quantile(references.flatten(1), torch.tensor([0.1, 0.5, 0.9]), dim=1)
    found = torch.quantile(matched.flatten(1), torch.tensor([0.1, 0.5, 0.9]), dim=1)
    assert torch.allclose(found, expected, atol=0.01)


def test_matching_agrees_with_simpleitk():
    rng = np.random.default_rng(0)
    image, reference = rng.random((64, 64)) ** 2, 0.2 + 0.6 * rng.random((64, 64))
    theirs = sitk.HistogramMatching(
        sitk.GetImageFromArray(image),
        sitk.GetImageFromArray(reference),
        numberOfHistogramLevels=512,
        numberOfMatchPoints=200,
        thresholdAtMeanIntensity=False,
    )
    quantiles = quantile_table(torch.from_numpy(reference)[None, None])
    ours = match_histogram(torch.from_numpy(image)[None, None], quantiles)[0, 0]
    assert np.abs(ours.numpy() - sitk.GetArrayFromImage(theirs)).mean() < 0.01


def test_matching_keeps_the_order_of_intensities_and_equal_ones_equal():
    images = (torch.rand(1, 1, 40, 40, generator=random_generator()) * 5).round() / 5
    matched = match_histogram(images, quantile_table(torch.rand(1, 1, 40, 40, generator=random_generator(1))))
    means = [matched[images == value].unique() for value in images.unique()]
    assert all(len(mean) == 1 for mean in means)
    assert torch.cat(means).diff().gt(0).all()


def test_matching_an_image_with_itself_changes_nothing():
    images = torch.rand(2, 1, 32, 32, generator=random_generator())
    assert torch.allclose(match_histogram(images, quantile_table(images)), images, atol=1e-3)


def test_the_histogram_of_a_part_is_matched_to_that_of_a_part():
    generator = random_generator()
    images, references = torch.rand(2, 2, 1, 40, 40, generator=generator)
    seen, shown = torch.zeros(2, 2, 1, 40, 40, dtype=torch.bool)
    seen[..., :20], shown[..., 10:15, :] = True, True
    references = torch.where(shown, 0.2 + 0.6 * references**2, 0.0)
    matched = match_histogram(images, quantile_table(references, shown), seen)
    at = torch.tensor([0.05, 0.5, 0.95])
    found, wanted = torch.quantile(matched[seen], at), torch.quantile(references[shown], at)
    assert torch.allclose(found, wanted, atol=0.02)


def test_all_voxels_count_where_none_would():
    images = torch.rand(2, 1, 12, 12, generator=random_generator())
    nothing = torch.zeros(2, 1, 12, 12, dtype=torch.bool)
    assert torch.equal(quantile_table(images, nothing), quantile_table(images))


def test_a_curve_is_interpolated_linearly():
    images = torch.rand(2, 1, 9, 9, generator=random_generator())
    curves = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.25, 1.0]])
    expected = [np.interp(images[n].numpy(), [0, 0.5, 1], curves[n].numpy()) for n in range(2)]
    assert np.allclose(apply_curves(images, curves).numpy(), np.stack(expected), atol=1e-6)


def test_random_curves_differ_stay_in_range_and_are_not_all_monotone():
    curves = random_curves(100, random_generator(), torch.device("cpu"))
    assert 0 <= float(curves.min()) <= float(curves.max()) <= 1
    steps = curves.diff()
    monotone = (steps >= -1e-6).all(1) | (steps <= 1e-6).all(1)
    assert 0 < int(monotone.sum()) < 60


@pytest.mark.parametrize("shape", SHAPES)
def test_every_region_follows_its_own_curve(shape):
    images = torch.rand(2, 1, *shape, generator=random_generator())
    regions = torch.randint(3, (2, *shape), generator=random_generator(1))
    curves = random_curves(6, random_generator(2), torch.device("cpu")).view(2, 3, -1)
    coloured = apply_region_curves(images, regions, curves)
    for region in range(3):
        inside = (regions == region)[:, None]
        assert torch.allclose(coloured[inside], apply_curves(images, curves[:, region])[inside], atol=1e-6)


def test_clusters_separate_the_tissues_of_the_background():
    images = torch.full((1, 1, 30, 30), 0.1)
    images[..., 10:20] = 0.5
    images[..., 20:] = 0.9
    clusters = background_clusters(images, torch.zeros(1, 30, 30, dtype=torch.long), 3)
    assert [clusters[0, 0, column].item() for column in (3, 15, 26)] == [0, 1, 2]


def test_structures_of_equal_intensity_can_be_told_apart_after_recolouring():
    images = torch.full((8, 1, 20, 20), 0.5)
    labels = torch.zeros(8, 20, 20, dtype=torch.long)
    labels[:, :8], labels[:, 12:] = 1, 2
    quantiles = quantile_table(torch.rand(1, 1, 20, 20, generator=random_generator(4))).expand(8, -1)

    def recoloured(shared_curve: float) -> torch.Tensor:
        mix = AppearanceMix(1.0, 0.0, 0.0, shared_curve=shared_curve)
        return recolour(images, labels, quantiles, mix, structures=2, generator=random_generator())

    apart, alike = recoloured(0.0), recoloured(1.0)
    assert (apart[:, 0, 2, 2] != apart[:, 0, 15, 2]).any()
    assert torch.equal(alike[:, 0, 2, 2], alike[:, 0, 15, 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_changed_images_stay_images_and_are_repeatable(shape):
    images = torch.rand(6, 1, *shape, generator=random_generator())
    labels = torch.randint(4, (6, *shape), generator=random_generator(1))
    quantiles = quantile_table(torch.rand(6, 1, *shape, generator=random_generator(2)))

    def changed() -> torch.Tensor:
        generator = random_generator(3)
        changed = recolour(images, labels, quantiles, AppearanceMix(), structures=3, generator=generator)
        return degrade(changed, AppearanceMix(), generator)

    first = changed()
    assert first.shape == images.shape
    assert torch.isfinite(first).all()
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert torch.equal(first, changed())
    assert not torch.allclose(first, images, atol=0.05)


def test_a_mix_of_histograms_alone_is_a_monotone_change():
    images = torch.rand(2, 1, 32, 32, generator=random_generator())
    labels = torch.randint(3, (2, 32, 32), generator=random_generator(1))
    quantiles = quantile_table(torch.rand(2, 1, 32, 32, generator=random_generator(2)) ** 3)
    mix = AppearanceMix(regions=0, curves=0, histogram=1)
    changed = recolour(images, labels, quantiles, mix, structures=2, generator=random_generator())
    for before, after in zip(images.flatten(1), changed.flatten(1), strict=True):
        assert after[before.argsort()].diff().min() >= -1e-5


def test_a_bias_field_is_positive_and_smooth():
    field = bias_field(torch.zeros(4, 1, 64, 64), 0.25, random_generator())
    assert float(field.min()) > 0
    assert float(field.diff(dim=-1).abs().max()) < 0.1


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 1"):
        AppearanceMix(regions=0.9, curves=0.9, histogram=0.0)


def test_a_pale_image_is_stretched_to_full_contrast():
    pale = 0.4 + 0.1 * torch.rand(2, 1, 50, 50, generator=random_generator())
    found = torch.quantile(stretch(pale).flatten(1), torch.tensor([0.005, 0.5, 0.995]), dim=1)
    expected = torch.tensor([0.0, 0.5, 1.0])[:, None].expand(3, 2)
    assert torch.allclose(found, expected, atol=0.03)
