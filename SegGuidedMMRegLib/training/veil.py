"""Tissue that only the target modality shows, laid over source images.

A bone image has nothing where a radiograph has muscle and skin, so no change of its contrast can show a
network what those look like. Their coarse layout is taken from unlabelled target images, blurred until no
structure can be told, and cut at a few random levels, so that there are outlines too. It is added to the
source image as projected tissue would be (`veiled`), or fills what lies around the structures, which then may
be darker than it, and have a rim as cortical bone has in MR (`embedded`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth

_LEVELS = 3
_BLUR = (0.03, 0.08)
"""Standard deviation of the blur, as a share of the shortest side."""

_BAND = 0.04
"""Width of the surroundings of structures, as a share of the shortest side."""

_RIM = (0.7, 1.2)
"""Standard deviation, in voxels, of the blur whose steepest part is the rim of structures."""

_RIM_SHARE = 0.6
"""Of the embedded images, those with a rim."""

_DARK = 0.1
"""Intensity below which a voxel shows nothing."""


def emptiness(images: Tensor, labels: Tensor) -> float:
    """How much of the surroundings of the structures shows nothing: 0 (less than half) to 1 (nearly all).

    Where it is high, as in a bone image, training needs the tissue that the other modality shows there; where
    it is low, as between two MR contrasts, a veil would only make the task harder.

    Args:
        images: [N, 1, *shape] in [0, 1].
        labels: class indices [N, *shape].
    """
    inside = (labels > 0)[:, None].float()
    near = gaussian_smooth(inside, max(_BAND * min(images.shape[2:]), 1.5)) > 0.05
    near &= gaussian_smooth(inside, 1.0) < 0.1  # coarse voxels at the edge of a structure show part of it
    if not bool(near.any()):
        return 0.0
    empty = float((images[near] < _DARK).float().mean())
    return min(max((empty - 0.5) / 0.4, 0.0), 1.0)


def veiled(images: Tensor, target_images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image under a veil of a strength that is drawn for it, stretched to a maximum of 1.

    Args:
        images: [N, 1, *shape] in [0, 1].
        target_images: [M, 1, *shape] in study space, from which the veils are drawn.
        generator: of the device of `images`, or of the CPU.

    Returns:
        [N, 1, *shape] in [0, 1].
    """
    count = len(images)
    rows = torch.randint(len(target_images), (count,), generator=generator, device=generator.device)
    veil = envelopes(target_images[rows.to(target_images.device)], generator)
    strength, gain = _per_image(images, generator), 0.2 + 0.8 * _per_image(images, generator)
    return _stretched((1 - strength) * gain * images + strength * veil)


def embedded(images: Tensor, labels: Tensor, target_images: Tensor, generator: torch.Generator) -> Tensor:
    """The structures of each image in another range of grey, within tissue, many with a rim of its own grey.

    Args:
        images, target_images, generator: as for `veiled`.
        labels: class indices [N, *shape].

    Returns:
        [N, 1, *shape] in [0, 1].
    """
    rows = torch.randint(len(target_images), (len(images),), generator=generator, device=generator.device)
    tissue = envelopes(target_images[rows.to(target_images.device)], generator)
    structures = (labels > 0)[:, None].to(images.dtype)
    low, high = _per_image(images, generator), _per_image(images, generator)
    brightness = 0.3 + 0.7 * _per_image(images, generator)
    made = torch.lerp(brightness * tissue, low + (high - low) * images, gaussian_smooth(structures, 0.5))

    width = _RIM[0] + (_RIM[1] - _RIM[0]) * float(_per_image(images[:1], generator))
    soft = gaussian_smooth(structures, width)
    has_rim = (_per_image(images, generator) < _RIM_SHARE).to(images.dtype)
    strength = has_rim * _per_image(images, generator).sqrt()
    grey = _per_image(images, generator) ** 2  # dark ones more often than bright ones
    return _stretched(torch.lerp(made, grey.expand_as(made), strength * 4 * soft * (1 - soft)))


def envelopes(images: Tensor, generator: torch.Generator) -> Tensor:
    """The coarse layout of images [N, 1, *shape], with soft outlines at random levels, in [0, 1]."""
    share = _BLUR[0] + (_BLUR[1] - _BLUR[0]) * float(_per_image(images[:1], generator))
    coarse = gaussian_smooth(images, share * min(images.shape[2:]))
    values = coarse.flatten(1).sort(1).values
    layers = _per_image(images, generator) * coarse
    for _ in range(_LEVELS):
        rank = 0.85 * _per_image(images, generator).flatten(1) * (values.shape[1] - 1)
        level = values.gather(1, rank.long()).view(-1, *[1] * (images.ndim - 1))
        width = 0.01 + 0.08 * _per_image(images, generator)
        layers = layers + _per_image(images, generator) * torch.sigmoid((coarse - level) / width)
    return _stretched(layers)


def _per_image(images: Tensor, generator: torch.Generator) -> Tensor:
    """A number of [0, 1] an image, [N, 1, 1, …]."""
    shape = (len(images), *[1] * (images.ndim - 1))
    return torch.rand(shape, generator=generator, device=generator.device).to(images.device)


def _stretched(images: Tensor) -> Tensor:
    """Divided by the largest value of each image; dark ones stay dark."""
    largest = images.flatten(1).amax(1).view(-1, *[1] * (images.ndim - 1))
    return images / largest.clamp(min=1e-3)
