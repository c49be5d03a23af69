"""Making labelled source images look like anything, and like the target images in particular.

The anatomy of a labelled image stays, its contrast changes: random intensity curves for each structure and
for each cluster of the background, the histogram of a random target image, a bias field, blur and noise. A
network trained on such images reads the target modality without having seen a target label. All functions
work on batches [N, 1, *shape] in 2D and 3D with intensities in [0, 1], on any device, without a loop over
voxels, and draw their random numbers from the generator that is handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth
from SegGuidedMMRegLib.training.spatial import upsample_smoothly

QUANTILES = 256
"""Points of the quantile tables that histograms are matched with."""

_QUANTILE_SAMPLE = 65_536
_CURVE_POINTS = 64


@dataclass(frozen=True)
class AppearanceMix:
    """How often each way of changing an image is used, and how strongly.

    Attributes:
        regions: share of images with a random curve for each region, then a target histogram.
        curves: share with one random curve, which need not be monotone, on the whole image.
        histogram: share that only takes over the histogram of a target image.
        clusters: number of intensity clusters of the background, each with its own curve.
        shared_curve: share of the region-wise images whose structures all follow one curve, as tissue of
            one kind does.
        bias: standard deviation of the logarithm of the bias field.
        noise: largest standard deviation of the added noise.
        blur_voxels: standard deviation of the blur that is mixed in.
        veil: share of all images that are laid under or into tissue of the target images' layout (`veil`),
            if the source shows nothing around the structures (`veil.emptiness`).

    Raises:
        ValueError: if the first three shares do not add up to 1.
    """

    regions: float = 0.4
    curves: float = 0.3
    histogram: float = 0.3
    clusters: int = 4
    shared_curve: float = 0.5
    bias: float = 0.2
    noise: float = 0.05
    blur_voxels: float = 1.0
    veil: float = 0.8

    def __post_init__(self) -> None:
        total = self.regions + self.curves + self.histogram
        if min(self.regions, self.curves, self.histogram) < 0 or abs(total - 1) > 1e-6:
            msg = f"The shares of an appearance mix must be positive and add up to 1, got {total:.3f}."
            raise ValueError(msg)

    def milder(self) -> AppearanceMix:
        """A mix that changes less: for a second try where the first lost a structure."""
        return AppearanceMix(0.2, 0.1, 0.7, self.clusters, 0.8, self.bias / 2, self.noise / 2, 0.5, 0.4)


def recolour(
    images: Tensor,
    labels: Tensor,
    target_quantiles: Tensor,
    mix: AppearanceMix,
    *,
    views: Tensor | None = None,
    structures: int,
    generator: torch.Generator,
) -> Tensor:
    """Change the contrast of each image of a batch in one of the ways of `mix`; `degrade` does the rest.

    Args:
        images: [N, 1, *shape] in [0, 1].
        labels: class indices [N, *shape]; 0 is background.
        target_quantiles: [N, QUANTILES] of a target image for each, from `quantile_table`.
        mix: how.
        views: the voxels whose histogram is matched, [N, 1, *shape] of bool; None for all.
        structures: number of structures of the study.
        generator: of the device of `images`, or of the CPU.

    Returns:
        Images [N, 1, *shape] in [0, 1].
    """
    count, device, ones = images.shape[0], images.device, [1] * (images.ndim - 2)
    style = _uniform((count,), generator, device)
    by_region, by_histogram = style < mix.regions, style >= mix.regions + mix.curves
    clusters = background_clusters(images, labels, mix.clusters)
    regions = torch.where(labels > 0, mix.clusters + labels - 1, clusters)
    regions = torch.where(by_region.view(count, *ones), regions, 0)
    curves = _region_curves(count, mix, structures, generator, device)
    unchanged = torch.linspace(0, 1, _CURVE_POINTS, device=device)
    curves[:, 0] = torch.where(by_histogram[:, None], unchanged, curves[:, 0])
    coloured = apply_region_curves(images, regions, curves)
    matched = match_histogram(coloured, target_quantiles, views)
    return torch.where((by_region | by_histogram).view(count, 1, *ones), matched, stretch(coloured, views))


def _region_curves(
    count: int, mix: AppearanceMix, structures: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Curves [count, clusters + structures, points]; in some images all structures have the same one."""
    total = mix.clusters + structures
    curves = random_curves(count * total, generator, device).view(count, total, -1)
    shared = _uniform((count,), generator, device) < mix.shared_curve
    of_structures = curves[:, mix.clusters :]
    alike = torch.where(shared.view(count, 1, 1), of_structures[:, :1], of_structures)
    return torch.cat([curves[:, : mix.clusters], alike], dim=1)


def random_curves(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random piecewise linear intensity curves, not monotone in general.

    Each has between 2 and 7 knots at random heights in [0, 1].

    Returns:
        [count, points]: values at equidistant intensities from 0 to 1.
    """
    most = 7
    heights = _uniform((count, most), generator, device)
    pieces = 1 + _integers(most - 1, count, generator, device)
    position = torch.linspace(0, 1, _CURVE_POINTS, device=device)[None] * pieces[:, None]
    return _interpolate_rows(heights, position)


def apply_curves(images: Tensor, curves: Tensor) -> Tensor:
    """Send the intensities of image n, [N, 1, *shape], through curve n of [N, points]."""
    position = images.flatten(1).clamp(0, 1) * (curves.shape[1] - 1)
    return _interpolate_rows(curves, position).view_as(images)


def apply_region_curves(images: Tensor, regions: Tensor, curves: Tensor) -> Tensor:
    """Send the voxels of region r of image n through the curve [n, r].

    Args:
        images: [N, 1, *shape] in [0, 1].
        regions: [N, *shape] indices of regions.
        curves: [N, number of regions, points].
    """
    points = curves.shape[2]
    position = images.flatten(1).clamp(0, 1) * (points - 1)
    low = position.long().clamp(max=points - 2)
    index = regions.flatten(1) * points + low
    table = curves.flatten(1)
    left, right = table.gather(1, index), table.gather(1, index + 1)
    return torch.lerp(left, right, position - low).view_as(images)


def background_clusters(images: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Cluster the slightly blurred background of each image by intensity: k-means in one dimension.

    Args:
        images: [N, 1, *shape] in [0, 1].
        labels: class indices [N, *shape].
        clusters: number of clusters.

    Returns:
        Index of the nearest cluster for every voxel, [N, *shape].
    """
    smooth = gaussian_smooth(images, 1.0).flatten(1)
    centres = _one_dimensional_means(smooth, (labels.flatten(1) == 0).to(smooth.dtype), clusters)
    borders = (centres[:, 1:] + centres[:, :-1]) / 2
    return torch.searchsorted(borders.contiguous(), smooth.contiguous()).view_as(labels)


def _one_dimensional_means(values: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """Centres [N, clusters], ascending, by Lloyd's algorithm on weighted histograms of rows [N, voxels]."""
    bins = 64
    index = (values.clamp(0, 1) * (bins - 1)).round().long()
    histogram = torch.zeros(values.shape[0], bins, device=values.device, dtype=values.dtype)
    histogram.scatter_add_(1, index, weights)
    at = torch.linspace(0, 1, bins, device=values.device)
    centres = (
        ((torch.arange(clusters, device=values.device) + 0.5) / clusters).expand(len(values), -1).clone()
    )
    for _ in range(10):
        nearest = (at[None, :, None] - centres[:, None]).abs().argmin(-1)
        mass = torch.zeros_like(centres).scatter_add_(1, nearest, histogram)
        moment = torch.zeros_like(centres).scatter_add_(1, nearest, histogram * at)
        centres = torch.where(mass > 0, moment / mass.clamp(min=1e-6), centres)
    return centres.sort(dim=1).values


def quantile_table(images: Tensor, views: Tensor | None = None) -> Tensor:
    """Intensities [N, QUANTILES] of images [N, 1, *shape] at equidistant ranks from darkest to brightest.

    Args:
        images: [N, 1, *shape].
        views: the voxels that count, [N, 1, *shape] of bool; None for all. All count where none would.
    """
    flat = images.flatten(1)
    stride = max(1, flat.shape[1] // _QUANTILE_SAMPLE)
    values = flat[:, ::stride]
    seen = torch.ones_like(values, dtype=torch.bool) if views is None else views.flatten(1)[:, ::stride]
    seen = seen | ~seen.any(1, keepdim=True)
    ordered = torch.where(seen, values, math.inf).sort(dim=1).values
    last = seen.sum(1, keepdim=True) - 1
    ordered = ordered.minimum(ordered.gather(1, last))  # no infinity to interpolate with
    return _interpolate_rows(ordered, torch.linspace(0, 1, QUANTILES, device=images.device) * last)


def stretch(images: Tensor, views: Tensor | None = None) -> Tensor:
    """Bring the darkest and brightest 0.5 % of images [N, 1, *shape], or of their `views`, to 0 and 1, as in
    study space."""
    quantiles = quantile_table(images, views)
    low, high = (quantiles[:, column].view(-1, *[1] * (images.ndim - 1)) for column in (1, -2))
    return ((images - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)


def match_histogram(images: Tensor, reference_quantiles: Tensor, views: Tensor | None = None) -> Tensor:
    """Give image n the histogram of reference n: a monotone map of its intensities.

    Equal intensities stay equal (each takes the middle of its ranks).

    Args:
        images: [N, 1, *shape].
        reference_quantiles: [N, QUANTILES], from `quantile_table`.
        views: the voxels whose histogram it is to be, [N, 1, *shape] of bool; None for all.
    """
    own = quantile_table(images, views)
    flat = images.flatten(1).contiguous()
    knots, heights = _monotone_map(own, reference_quantiles)
    right = torch.searchsorted(knots, flat).clamp(1, QUANTILES - 1)
    left_at, right_at = knots.gather(1, right - 1), knots.gather(1, right)
    share = ((flat - left_at) / (right_at - left_at).clamp(min=1e-6)).clamp(0, 1)
    return torch.lerp(heights.gather(1, right - 1), heights.gather(1, right), share).view_as(images)


def _monotone_map(own: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Knots and heights of the map from `own` to `reference`; equal knots get that of their middle rank."""
    own = own.contiguous()
    first = torch.searchsorted(own, own)
    last = torch.searchsorted(own, own, right=True) - 1
    return own, _interpolate_rows(reference, (first + last) / 2)


def degrade(images: Tensor, mix: AppearanceMix, generator: torch.Generator) -> Tensor:
    """Blur, bias field and noise of random strength; the result is clipped to [0, 1]."""
    count, ones = images.shape[0], [1] * (images.ndim - 1)
    blurred = gaussian_smooth(images, mix.blur_voxels)
    smooth = torch.lerp(images, blurred, _uniform((count,), generator, images.device).view(count, *ones))
    biased = smooth * bias_field(images, mix.bias, generator)
    level = mix.noise * _uniform((count,), generator, images.device).view(count, *ones)
    return (biased + level * _normal(images.shape, generator, images.device)).clamp(0, 1)


def bias_field(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Smooth positive random fields [N, 1, *shape]; `strength` is about the deviation of their logarithm."""
    control = _normal((images.shape[0], 1, *[4] * (images.ndim - 2)), generator, images.device)
    return torch.exp(1.5 * strength * upsample_smoothly(control, tuple(images.shape[2:])))


def _interpolate_rows(table: Tensor, position: Tensor) -> Tensor:
    """Linear interpolation in each row of `table` [N, K] at fractional columns `position` [N, P]."""
    low = position.long().clamp(0, table.shape[1] - 2)
    return torch.lerp(table.gather(1, low), table.gather(1, low + 1), (position - low).to(table.dtype))


def _uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def _normal(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(device)


def _integers(high: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(high, (count,), generator=generator, device=generator.device).to(device)
