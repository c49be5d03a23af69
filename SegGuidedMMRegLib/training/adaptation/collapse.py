"""Judging a network on target images without labels: has a structure vanished, is it worse?

What can be known without labels: how large each structure is usually (from the source training labels), and
that a prediction should move with the image and not change when the image gets a little noisier or unevenly
lit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from SegGuidedMMRegLib.deformation import identity_voxels, soft_dice, warp
from SegGuidedMMRegLib.training.appearance import AppearanceMix, degrade

_MOST_IMAGES = 64
_PLAUSIBLE_FACTOR = 1.5
_TOLERANCE = 0.01
_WORST_SHARE, _FEWEST_WORST = 0.1, 5


@dataclass(frozen=True)
class UsualSizes:
    """Voxels of each structure in the source training labels; one entry a structure.

    Attributes:
        smallest: over the labels that show the structure.
        median: over the same.
        largest: over the same.
        absent: share of the labels that do not show it.
    """

    smallest: tuple[float, ...]
    median: tuple[float, ...]
    largest: tuple[float, ...]
    absent: tuple[float, ...]

    @staticmethod
    def of(labels: Tensor, structures: int) -> UsualSizes:
        """From class indices [N, *shape].

        Raises:
            ValueError: if no label shows one of the structures.
        """
        sizes = structure_sizes(labels, structures)
        shown = [column[column > 0] for column in sizes.T]
        for index, column in enumerate(shown):
            if not len(column):
                raise ValueError(
                    f"None of the {len(labels)} source label maps for training shows structure {index + 1} "
                    f"of {structures}. Label it in one of them, or leave it out of the study."
                )
        return UsualSizes(
            tuple(float(column.min()) for column in shown),
            tuple(float(column.median()) for column in shown),
            tuple(float(column.max()) for column in shown),
            tuple(float((column == 0).float().mean()) for column in sizes.T),
        )


@dataclass(frozen=True)
class Quality:
    """A segmentation network on target images, judged without labels.

    Attributes:
        vanished: share of the images in which a structure is far smaller than usual, one entry a structure.
        collapsed: indices, from 0, of the structures that have vanished.
        plausible: share of predicted structures with a size as in the source labels, within a factor of 1.5.
        agreement: mean Dice of a prediction with that on the turned, noisier, unevenly lit image.
        worst_agreement: the same over the tenth of the images where it is lowest, five at least: over one
            or two it says little.
        confidence: mean probability of the winning structure where one wins.
    """

    vanished: tuple[float, ...]
    collapsed: tuple[int, ...]
    plausible: float
    agreement: float
    worst_agreement: float
    confidence: float

    def is_no_worse_than(self, other: Quality) -> bool:
        """Whether nothing vanished that was there, and sizes and agreement hold, also for the worst images.

        Confidence does not count: training on one's own predictions raises it, right or wrong.
        """
        return (
            set(self.collapsed) <= set(other.collapsed)
            and max(a - b for a, b in zip(self.vanished, other.vanished, strict=True)) <= 2 * _TOLERANCE
            and self.plausible >= other.plausible - _TOLERANCE
            and self.agreement >= other.agreement - _TOLERANCE
            and self.worst_agreement >= other.worst_agreement - 2 * _TOLERANCE
        )

    def as_record(self) -> dict[str, object]:
        """For JSON, rounded."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def structure_sizes(labels: Tensor, structures: int) -> Tensor:
    """Voxels of each structure in class indices [N, *shape]: [N, structures], float32 on the CPU."""
    flat = labels.flatten(1)
    counts = torch.zeros(len(flat), structures + 1, device=flat.device)
    ones = torch.ones((), device=flat.device).expand(flat.shape)
    return counts.scatter_add_(1, flat, ones)[:, 1:].cpu()


@torch.no_grad()
def assess(
    network: nn.Module,
    target_images: Tensor,
    usual: UsualSizes,
    *,
    vanished_share: float,
    collapsed_images: float,
    generator: torch.Generator,
    batch_size: int = 4,
) -> Quality:
    """Judge `network` (logits) on up to 64 target images.

    Hand generators of the same seed to compare two networks on the same perturbed images.

    Args:
        network: on any device; put into evaluation mode.
        target_images: [M, 1, *shape] in [0, 1].
        usual: sizes in the source labels.
        vanished_share: a structure smaller than this share of its median source size has vanished from the
            image.
        collapsed_images: a structure has collapsed if it vanished from a share of the images that is larger
            than that of source labels without it by more than this.
        generator: on the CPU, for the perturbations.
        batch_size: images at a time.
    """
    network.eval()
    device = next(network.parameters()).device
    chosen = torch.linspace(0, len(target_images) - 1, min(len(target_images), _MOST_IMAGES)).round().long()
    sizes, agreements, confidences = [], [], []
    for rows in chosen.split(batch_size):
        images = target_images[rows.to(target_images.device)].to(device)
        probabilities = network(images).float().softmax(1)
        sizes.append(structure_sizes(probabilities.argmax(1), len(usual.median)))
        agreements.append(_agreement(network, images, probabilities, generator))
        confidences.append(confidence(probabilities).cpu())
    vanished = (torch.cat(sizes) < vanished_share * torch.tensor(usual.median)).float().mean(0).tolist()
    ordered = torch.cat(agreements).sort().values
    return Quality(
        vanished=tuple(vanished),
        collapsed=tuple(
            index
            for index, (share, absent) in enumerate(zip(vanished, usual.absent, strict=True))
            if share - absent > collapsed_images
        ),
        plausible=_plausible(torch.cat(sizes), usual),
        agreement=float(ordered.mean()),
        worst_agreement=float(ordered[: max(_FEWEST_WORST, round(_WORST_SHARE * len(ordered)))].mean()),
        confidence=float(torch.cat(confidences).mean()),
    )


def confidence(probabilities: Tensor) -> Tensor:
    """Mean probability of the winning class over the voxels that a structure wins, [N]; 0 where none does.

    Args:
        probabilities: [N, 1 + structures, *shape].
    """
    best, winner = probabilities.flatten(2).max(1)
    inside = (winner > 0).to(best.dtype)
    return (best * inside).sum(1) / inside.sum(1).clamp(min=1)


def _agreement(
    network: nn.Module, images: Tensor, probabilities: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean Dice [N] of the moved prediction with the prediction on the moved, degraded image."""
    displacement = _small_turns(images, generator)
    moved = warp(images, displacement)
    changed = degrade(moved, AppearanceMix(bias=0.15, noise=0.04, blur_voxels=0.7), generator)
    predicted = network(changed).float().softmax(1)
    return soft_dice(warp(probabilities, displacement)[:, 1:], predicted[:, 1:]).mean(1).cpu()


def _small_turns(images: Tensor, generator: torch.Generator) -> Tensor:
    """Displacements [N, d, *shape] of random affine maps near the identity, about the centre of the image."""
    dimension, shape = images.dim() - 2, tuple(images.shape[2:])
    linear = 0.06 * torch.randn(len(images), dimension, dimension, generator=generator)
    shift = 0.03 * torch.randn(len(images), dimension, generator=generator) * torch.tensor(shape)
    from_centre = identity_voxels(shape) - (torch.tensor(shape).view(1, -1, *[1] * dimension) - 1) / 2
    turned = torch.einsum("nij,j...->ni...", linear, from_centre[0])
    return (turned + shift.view(len(images), dimension, *[1] * dimension)).to(images.device)


def _plausible(sizes: Tensor, usual: UsualSizes) -> float:
    low = torch.tensor(usual.smallest) / _PLAUSIBLE_FACTOR
    high = torch.tensor(usual.largest) * _PLAUSIBLE_FACTOR
    return float(((sizes >= low) & (sizes <= high)).float().mean())


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(item) for item in value] if isinstance(value, tuple) else value
