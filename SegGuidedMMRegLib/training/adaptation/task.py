"""What every way of adapting is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from SegGuidedMMRegLib.config import Config
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.networks.segmentation import SegmentationNetwork
from SegGuidedMMRegLib.training.adaptation.collapse import Quality, UsualSizes, assess, structure_sizes
from SegGuidedMMRegLib.training.augmentation.samples import AugmentedSamples
from SegGuidedMMRegLib.training.data import StudyTensors
from SegGuidedMMRegLib.training.devices import by_first
from SegGuidedMMRegLib.training.field_of_view import fields_of_view
from SegGuidedMMRegLib.training.loop import seed_of

EXAMPLES = 6
"""Images that are learned from, kept for people to look at."""


@dataclass(frozen=True)
class SourceSamples:
    """Source images with labels, and how often each is drawn.

    Attributes:
        images: [N, 1, *shape] in [0, 1].
        labels: class indices [N, *shape].
        weights: [N], positive, sum 1.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor

    @cached_property
    def views(self) -> Tensor:
        """The part of study space that each image shows, [N, 1, *shape] of bool."""
        return _views(self.images)

    def rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows of a random batch, [count]."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images [count, 1, *shape] and class indices [count, *shape]."""
        rows = self.rows(count, generator)
        return self.images[rows], self.labels[rows]


@dataclass(frozen=True)
class AdaptationTask:
    """From a trained source network to the target modality.

    Attributes:
        source_network: S_S, trained, on the device; nobody changes it.
        samples: the labelled source images to learn from.
        target_images: [M, 1, *shape], unlabelled.
        usual: sizes of the structures in the source training labels.
        spacing: mm of a voxel along each spatial axis of the tensors.
        config: of the study.
        folder: of the stage; each phase has a folder in it.
        reporter: hears about progress.
    """

    source_network: SegmentationNetwork
    samples: SourceSamples
    target_images: Tensor
    usual: UsualSizes
    spacing: tuple[float, ...]
    config: Config
    folder: Path
    reporter: Reporter

    @property
    def is_volume(self) -> bool:
        """Whether images are 3D. Some knowledge is for them alone: on pictures of bones, which are larger and
        sharper, it cost a little Dice (docs/results.md)."""
        return len(self.spacing) == 3

    @cached_property
    def target_views(self) -> Tensor:
        """The part of study space that each target image shows, [M, 1, *shape] of bool."""
        return _views(self.target_images)

    def judged(self, name: str, network: nn.Module, *, must_not_worsen: bool = False) -> Snapshot:
        """`network` with its quality on the target images; all are judged on the same perturbed images."""
        settings = self.config.adaptation
        seed = seed_of(self.config.training.seed, "adaptation", "assess")
        quality = by_first(
            lambda: assess(
                network,
                self.target_images,
                self.usual,
                vanished_share=settings.vanished_share,
                collapsed_images=settings.collapsed_images,
                generator=torch.Generator().manual_seed(seed),
            )
        )
        return Snapshot(name, network, quality, must_not_worsen)


@dataclass(frozen=True)
class Snapshot:
    """A network on the way to the target modality.

    Attributes:
        name: of the phase it comes from.
        network: itself.
        quality: on the target images, without labels.
        must_not_worsen: taken only if it is no worse than the one before; else unless a structure collapsed.
    """

    name: str
    network: nn.Module
    quality: Quality
    must_not_worsen: bool = False


class AdaptationMethod(Protocol):
    """A way to adapt, picked by `adaptation.method`."""

    def snapshots(self, task: AdaptationTask, /) -> list[Snapshot]:
        """Train; the networks of the phases, in their order, without the source network."""
        ...


def source_samples(
    tensors: StudyTensors, augmented: AugmentedSamples | None, network: nn.Module, config: Config
) -> SourceSamples:
    """The labelled source images that `adaptation.source_labels` names (paper, 4: three ways to make
    D_S^aug).

    `labels` are the given labels alone, `labels_predictions` adds the predictions of the source network on
    the other source images, `labels_augmentation` the augmented samples, which make
    `segmentation.augmented_share` of what is drawn. Images with structures that few images show are drawn
    more often.

    Args:
        tensors: the study, on the device of `network`.
        augmented: registration-augmented samples, or None.
        network: S_S.
        config: of the study.
    """
    choice = config.adaptation.source_labels
    structures = len(tensors.structures)
    images, labels = tensors.labelled_images, tensors.labelled_labels
    own = rarity_weights(structure_sizes(labels, structures)).to(images.device)
    if choice == "labels_predictions" and tensors.unlabelled_rows:
        more = tensors.source_images[tensors.unlabelled_rows]
        more_labels = predict_labels(network, more)
        share = len(more) / (len(more) + len(images))
    elif choice == "labels_augmentation" and augmented is not None and len(augmented.images):
        more, more_labels = augmented.images.to(images.device), augmented.labels.to(images.device).long()
        share = config.segmentation.augmented_share
    else:
        return SourceSamples(images, labels, own)
    others = rarity_weights(structure_sizes(more_labels, structures)).to(images.device)
    weights = torch.cat([own * (1 - share), others * share])
    return SourceSamples(torch.cat([images, more]), torch.cat([labels, more_labels]), weights)


def _views(images: Tensor) -> Tensor:
    """Fields of view of volumes [N, 1, *shape]; everywhere in 2D (`AdaptationTask.is_volume`)."""
    if images.dim() == 5:
        return fields_of_view(images)
    return torch.ones_like(images, dtype=torch.bool)


def rarity_weights(sizes: Tensor) -> Tensor:
    """How often to draw images, [N], sum 1: those that show a structure which few show, more often.

    Args:
        sizes: voxels of each structure in each image, [N, structures].
    """
    shown = (sizes > 0).float()
    rarity = 1 / shown.mean(0).clamp(min=1 / max(len(sizes), 1))
    weights = torch.maximum((shown * rarity).max(1).values, torch.ones(len(sizes)))
    return weights / weights.sum()


@torch.no_grad()
def predict_labels(network: nn.Module, images: Tensor, batch_size: int = 4) -> Tensor:
    """Class indices [N, *shape] that `network` (logits) gives images [N, 1, *shape] of its device."""
    network.eval()
    return torch.cat([network(batch).argmax(1) for batch in images.split(batch_size)])
