"""The segmentation network of the source modality, from few labels and augmented samples (paper, 3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from SegGuidedMMRegLib.config import Config, SegmentationConfig
from SegGuidedMMRegLib.deformation import soft_dice
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.fragments import fragment_limits
from SegGuidedMMRegLib.losses import segmentation_loss
from SegGuidedMMRegLib.networks.segmentation import build_segmentation_network, describe_network
from SegGuidedMMRegLib.training.appearance import quantile_table
from SegGuidedMMRegLib.training.augmentation import AugmentedSamples
from SegGuidedMMRegLib.training.data import StudyTensors, checksum
from SegGuidedMMRegLib.training.devices import by_first, device_of
from SegGuidedMMRegLib.training.intensity import IntensityAugmentation
from SegGuidedMMRegLib.training.loop import (
    FitResult,
    Run,
    TrainableStage,
    constant,
    fit,
    one_cycle,
    seed_of,
)
from SegGuidedMMRegLib.training.spatial import SpatialAugmentation

NAME = "segmentation"


class LabelledPool:
    """Labelled and augmented samples on one device, from which batches are drawn.

    Augmented samples are drawn with probability `augmented_share`, where there are any, else labelled ones.
    """

    def __init__(
        self, tensors: StudyTensors, augmented: AugmentedSamples | None, augmented_share: float
    ) -> None:
        images, labels = [tensors.labelled_images], [tensors.labelled_labels]
        if augmented is not None and len(augmented.images):
            images.append(augmented.images.to(images[0].device))
            labels = [labels[0].to(torch.uint8), augmented.labels.to(labels[0].device)]
        self.images = torch.cat(images)
        self.labels = torch.cat(labels)
        self._labelled = len(images[0])
        self._share = augmented_share if len(images) > 1 else 0.0

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images [count, 1, *shape] and class indices [count, *shape]."""
        drawn = torch.rand((3, count), generator=generator, device=generator.device)
        labelled = (drawn[0] * self._labelled).long()
        others = self._labelled + (drawn[1] * (len(self.images) - self._labelled)).long()
        rows = torch.where(drawn[2] < self._share, others, labelled)
        return self.images[rows], self.labels[rows].long()


class SourceSegmentation(TrainableStage):
    """Supervised training on labelled and augmented source samples."""

    def __init__(
        self,
        tensors: StudyTensors,
        augmented: AugmentedSamples | None,
        config: SegmentationConfig,
        *,
        steps: int,
        network: nn.Module,
    ) -> None:
        super().__init__()
        self._config = config
        self._pool = LabelledPool(tensors, augmented, config.augmented_share)
        self._tensors = tensors
        self._spatial = (
            SpatialAugmentation(tensors.grid.axis_spacing) if config.spatial_augmentation else None
        )
        self._intensity: IntensityAugmentation | None = None
        if config.intensity_augmentation:
            self._intensity = IntensityAugmentation(quantile_table(tensors.source_images))
        self.networks = {"network": network}
        self.optimizers = {"network": torch.optim.Adam(network.parameters(), lr=config.learning_rate)}
        self.ema_decay = config.ema_decay
        self.schedule = one_cycle if config.schedule == "one_cycle" else constant
        self.settings = {**config.model_dump(mode="json"), "data": _identity(tensors, self._pool)}
        self.validations = min(20, max(1, steps // 25))
        self.memory_remedy = (
            f"segmentation.batch_size (now {config.batch_size}) or segmentation.channels "
            f"(now {list(config.channels)})"
        )

    def training_step(self, run: Run) -> dict[str, Tensor]:
        image, labels = self._pool.draw(self._config.batch_size, run.generator)
        if self._spatial:
            image, labels = self._spatial(image, labels, run.generator)
        if self._intensity:
            image = self._intensity(image, run.generator)
        loss = segmentation_loss(run.networks["network"](image), labels, self._config.loss)
        run.update(loss)
        return {"loss": loss}

    def validate(self, network: nn.Module) -> float | None:
        """Mean Dice of all structures over the validation images."""
        return validation_dice(network, self._tensors)


def train_source(
    tensors: StudyTensors,
    augmented: AugmentedSamples | None,
    config: Config,
    folder: Path,
    reporter: Reporter,
) -> FitResult:
    """Train the source network and write it into `folder` (`load_segmentation_network` reads it).

    Args:
        tensors: the study, on any device.
        augmented: more labelled samples, or None.
        config: `segmentation` and `training` are used.
        folder: of the stage.
        reporter: hears about progress.
    """
    settings = config.segmentation
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(config.training.seed, NAME, "first weights"))
        network = build_segmentation_network(tensors.grid.dimension, len(tensors.structures), settings)
    tensors = tensors.to(device_of(config.training))
    stage = SourceSegmentation(tensors, augmented, settings, steps=settings.steps, network=network)
    by_first(lambda: _describe(tensors, settings, folder))
    return fit(
        stage, name=NAME, steps=settings.steps, folder=folder, config=config.training, reporter=reporter
    )


def _describe(tensors: StudyTensors, settings: SegmentationConfig, folder: Path) -> None:
    names = list(tensors.structures)
    limits = (0.0,) * len(names)
    if settings.drop_fragments:
        limits = fragment_limits((labels.cpu().numpy() for labels in tensors.labelled_labels), len(names))
    describe_network(folder, tensors.grid.dimension, names, settings, fragment_limits=limits)


@torch.no_grad()
def validation_dice(network: nn.Module, tensors: StudyTensors) -> float | None:
    """Mean Dice over structures and validation images that show them; None without validation labels."""
    scores = []
    for image, labels in zip(tensors.validation_images, tensors.validation_labels, strict=True):
        predicted = network(image[None]).argmax(1)
        truth, found = (_one_hot(x, tensors.classes)[:, 1:] for x in (labels[None], predicted))
        shown = truth.flatten(2).any(-1)
        scores.append(soft_dice(found, truth)[shown])
    values = torch.cat(scores) if scores else torch.empty(0)
    return float(values.mean()) if len(values) else None


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def _identity(tensors: StudyTensors, pool: LabelledPool) -> dict[str, Any]:
    """Enough to notice that a checkpoint was made with other data."""
    return {
        "grid": repr(tensors.grid),
        "labelled": [tensors.source_names[row] for row in tensors.labelled_rows],
        "validation": list(tensors.validation_names),
        "samples": len(pool.images),
        "sums": [checksum(pool.images), checksum(pool.labels)],
    }
