"""The part of study space that an image shows, and source images cut to that of target images.

An ultrasound probe shows a sector, a small coil a box, a turned film a rectangle; the other modality shows
its own. No change of contrast teaches a network the black around a sector, nor that nothing lies there.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth, identity_voxels

_DARK = 0.03
"""Intensity below which a voxel shows nothing."""

_AROUND, _OVER_SPHERE = 32, 64
"""Directions in the plane of two axes, and over the sphere, in which the outermost voxel is looked for."""

_SHARE = 0.8
"""Of the images that are cut; the others keep their own field of view."""

_EDGE = 0.7
"""Blur of the edges, in voxels: images are interpolated there."""


def fields_of_view(images: Tensor) -> Tensor:
    """Where images show anything: convex, as a field of view is, black inside or not.

    Args:
        images: [N, 1, *shape] in [0, 1], 0 outside of what was imaged.

    Returns:
        [N, 1, *shape] of bool; True everywhere for an image that is all dark.
    """
    return torch.cat([_field_of_view(image[None]) for image in images])


def cut_to_views(
    images: Tensor, labels: Tensor, views: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Most images of a batch with the field of view of a random target image: black and background beyond it.

    Args:
        images: [N, 1, *shape] in [0, 1].
        labels: class indices [N, *shape].
        views: [M, 1, *shape] from `fields_of_view` of the target images.
        generator: of the device of `images`, or of the CPU.

    Returns:
        Images and labels, shaped like those given.
    """
    count, device = len(images), images.device
    rows = torch.randint(len(views), (count,), generator=generator, device=generator.device)
    whole = torch.rand(count, generator=generator, device=generator.device) >= _SHARE
    view = views[rows.to(views.device)] | whole.to(device).view(-1, *[1] * (images.dim() - 1))
    return images * gaussian_smooth(view.to(images.dtype), _EDGE), torch.where(view[:, 0], labels, 0)


def _field_of_view(image: Tensor) -> Tensor:
    """The same for one image [1, 1, *shape]: inside of the planes that touch what is not black."""
    shown = _without_specks(image > _DARK).flatten()
    inside = torch.ones_like(shown)
    positions = identity_voxels(tuple(image.shape[2:]), image.device)[0].flatten(1)
    for along in (direction @ positions for direction in _directions(positions)):
        inside &= along <= torch.where(shown, along, -math.inf).amax() + 0.5
    return (inside | ~shown.any()).view_as(image)


def _without_specks(shown: Tensor) -> Tensor:
    """[1, 1, *shape] of bool, opened by a square or cube of three voxels."""
    pool = F.max_pool2d if shown.dim() == 4 else F.max_pool3d
    core = pool((~shown).float(), 3, stride=1, padding=1) == 0
    return pool(core.float(), 3, stride=1, padding=1) > 0


def _directions(like: Tensor) -> Tensor:
    """Unit vectors [K, d] for positions [d, V]: a circle in the plane of every two axes, and in 3D more that
    are spread evenly over the sphere (a Fibonacci lattice)."""
    dimension = len(like)
    angle = 2 * math.pi * torch.arange(_AROUND, device=like.device, dtype=like.dtype) / _AROUND
    circles = torch.zeros(0, dimension, device=like.device, dtype=like.dtype)
    for first, second in combinations(range(dimension), 2):
        circle = torch.zeros(_AROUND, dimension, device=like.device, dtype=like.dtype)
        circle[:, first], circle[:, second] = torch.cos(angle), torch.sin(angle)
        circles = torch.cat([circles, circle])
    if dimension == 2:
        return circles
    step = torch.arange(_OVER_SPHERE, device=like.device, dtype=like.dtype)
    height = 1 - (2 * step + 1) / _OVER_SPHERE
    radius, turn = (1 - height**2).sqrt(), math.pi * (3 - math.sqrt(5)) * step
    return torch.cat([circles, torch.stack([height, radius * turn.cos(), radius * turn.sin()], dim=1)])
