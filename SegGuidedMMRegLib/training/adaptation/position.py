"""Where structures can lie: what the pre-aligned labels say before an image is looked at.

In study space each structure has its place. A network that meets a modality for the first time does not know
that well: it also takes what merely looks alike elsewhere. The labels of the source, moved about as in
training, give the probability of each class at each voxel; a teacher finds less of a structure where that is
low (an atlas as prior; Ashburner and Friston, Unified segmentation, NeuroImage 2005).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth
from SegGuidedMMRegLib.training.adaptation.task import SourceSamples
from SegGuidedMMRegLib.training.spatial import SpatialAugmentation

_DRAWS, _AT_ONCE = 160, 8
_LEAST = 1e-3
"""Probability left to every class everywhere: labels are few, anatomy varies more than they do."""

_USUAL = 0.1
"""Where a structure lies in more than this share of the draws, it is usual."""


@torch.no_grad()
def position_prior(
    samples: SourceSamples, structures: int, spatial: SpatialAugmentation, generator: torch.Generator
) -> Tensor:
    """Probability of each class at each voxel of the study grid, [1 + structures, *shape].

    Args:
        samples: labelled images in study space.
        structures: number of structures of the study.
        spatial: how far training moves them.
        generator: of the device of the samples.
    """
    total = torch.zeros(1 + structures, *samples.labels.shape[1:], device=samples.labels.device)
    for _ in range(_DRAWS // _AT_ONCE):
        _, labels = spatial(*samples.draw(_AT_ONCE, generator), generator)
        total += F.one_hot(labels, 1 + structures).movedim(-1, 1).sum(0)
    prior = gaussian_smooth(total[None] / _DRAWS, 1.0)[0] + _LEAST
    return prior / prior.sum(0)


def with_prior(probabilities: Tensor, prior: Tensor) -> Tensor:
    """Class probabilities with less of a structure where it is unusual; both are [N, C, *shape].

    Where it is usual nothing changes: the network has learned the positions of the source itself, and to
    count them twice would make structures shrink.
    """
    weights = (prior / _USUAL).clamp(max=1)
    weights[:, 0] = 1
    found = probabilities * weights
    return found / found.sum(1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
