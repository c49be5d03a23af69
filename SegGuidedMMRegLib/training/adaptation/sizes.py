"""Structures in target images as large, on average, as source labels say.

Learning from one's own predictions lets structures shrink or grow little by little, and nothing in it pulls
them back. The two modalities show the same anatomy in study space, so the mean size of each structure is
known: the network's logits are shifted until predictions on target images have it (prior shift: Saerens et
al., Adjusting the outputs of a classifier to new a priori probabilities, Neural Computation 2002; sizes as
knowledge for adaptation: Bateson et al., Constrained domain adaptation for segmentation, MICCAI 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST_SHIFT = 2.0
"""Of a logit: where a network is sure this moves a boundary by less than a voxel."""

_ROUNDS = 24
"""Of the search, which halves its step whenever it has gone too far."""

_MOST_IMAGES = 64
_MOST_VOXELS = 65_536
"""Of each image that are looked at."""


def expected_sizes(labels: Tensor, target_views: Tensor, structures: int) -> Tensor:
    """Mean number of voxels of each structure in the fields of view of the target, [structures].

    Args:
        labels: class indices [N, *shape] of source images.
        target_views: [M, 1, *shape] of bool.
        structures: number of structures.
    """
    seen = target_views.float().mean((0, 1)).flatten()
    sizes = torch.zeros(structures + 1, device=labels.device)
    for image in labels:
        sizes.scatter_add_(0, image.flatten(), seen)
    return sizes[1:] / len(labels)


@torch.no_grad()
def size_shift(network: nn.Module, images: Tensor, expected: Tensor) -> tuple[float, ...]:
    """The shift of each structure's logit with which predictions have the `expected` mean sizes, or nearly.

    Args:
        network: to logits [N, 1 + structures, *shape]; put into evaluation mode.
        images: of the target, [M, 1, *shape], on the device of the network.
        expected: mean voxels of each structure, [structures].

    Returns:
        [structures], between -2 and 2.
    """
    network.eval()
    chosen = torch.linspace(0, len(images) - 1, min(len(images), _MOST_IMAGES)).round().long()
    stride = max(1, images[0].numel() // _MOST_VOXELS)
    logits = torch.cat(
        [network(images[row][None]).float().flatten(2)[..., ::stride].cpu() for row in chosen.tolist()]
    )
    wanted = expected.cpu() / stride
    shift, step, last = torch.zeros_like(wanted), torch.ones_like(wanted), torch.zeros_like(wanted)
    for _ in range(_ROUNDS):
        winner = (logits + F.pad(shift, (1, 0)).view(1, -1, 1)).argmax(1)
        found = torch.bincount(winner.flatten(), minlength=len(wanted) + 1)[1:] / len(logits)
        way = (wanted - found).sign()
        step = torch.where(way * last < 0, step / 2, step)
        shift, last = (shift + step * way).clamp(-_LARGEST_SHIFT, _LARGEST_SHIFT), way
    return tuple(shift.tolist())
