"""Adaptation without image translation: contrast-randomised source images, then a mean teacher on target
images.

First the network learns the labelled anatomy under any contrast, and under those of the target images in
particular (`appearance`). Then an average of its weights over time, the teacher, labels target images; the
network learns these soft labels on noisier versions of the images (Tarvainen and Valpola, Mean teachers,
2017), beside source images that keep it from drifting. An image counts only if the teacher is confident and
no structure is missing from it. After each phase structures get back the sizes of the source (`sizes`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SegGuidedMMRegLib.deformation import soft_dice, warp
from SegGuidedMMRegLib.losses import segmentation_loss
from SegGuidedMMRegLib.networks.segmentation import SegmentationNetwork, build_segmentation_network
from SegGuidedMMRegLib.training.adaptation.collapse import confidence, structure_sizes
from SegGuidedMMRegLib.training.adaptation.position import position_prior, with_prior
from SegGuidedMMRegLib.training.adaptation.sizes import expected_sizes, size_shift
from SegGuidedMMRegLib.training.adaptation.task import (
    EXAMPLES,
    AdaptationTask,
    Snapshot,
    predict_labels,
    rarity_weights,
)
from SegGuidedMMRegLib.training.appearance import (
    AppearanceMix,
    degrade,
    match_histogram,
    quantile_table,
    recolour,
)
from SegGuidedMMRegLib.training.augmentation import AugmentedSamples
from SegGuidedMMRegLib.training.data import checksum
from SegGuidedMMRegLib.training.devices import by_first
from SegGuidedMMRegLib.training.field_of_view import cut_to_views
from SegGuidedMMRegLib.training.loop import Run, TrainableStage, fit, one_cycle, seed_of
from SegGuidedMMRegLib.training.spatial import SpatialAugmentation
from SegGuidedMMRegLib.training.veil import embedded, emptiness, veiled

_TEACHER_RATE = 0.3
"""Learning rate of the mean teacher phase, as a share of `adaptation.learning_rate`."""

_WHOLE_SHARE = 0.5
"""Of the histograms, those of whole target images and not of what they show alone: the black around it then
darkens tissue, as shadows do. In 3D neither kind alone did as well (docs/results.md, prostate)."""


class RandomisedSource:
    """Source samples that look different each time, many of them like target images.

    Args:
        task: the samples to draw from, and the target images whose histograms are taken over.
        mix: ways to change the appearance.
    """

    def __init__(self, task: AdaptationTask, mix: AppearanceMix) -> None:
        self._samples = task.samples
        self._structures = len(task.usual.median)
        self._target_images = task.target_images
        self._veil_share = mix.veil * emptiness(task.samples.images, task.samples.labels)
        self._target_views = task.target_views
        self._quantiles = quantile_table(task.target_images)
        self._quantiles_in_view = quantile_table(task.target_images, self._target_views)
        self._spatial = SpatialAugmentation(task.spacing)
        self._mix = mix

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images [count, 1, *shape] and class indices [count, *shape], recoloured, moved, and most cut to the
        field of view of a target image.

        Moved after recolouring, so that what comes from outside the image is black, as in study space.
        """
        rows = self._samples.rows(count, generator)
        labels = self._samples.labels[rows]
        images = self._recoloured(self._samples.images[rows], labels, self._samples.views[rows], generator)
        images, labels = self._spatial(self._some_in_tissue(images, labels, generator), labels, generator)
        images, labels = cut_to_views(images, labels, self._target_views, generator)
        return degrade(images, self._mix, generator), labels

    def _recoloured(
        self, images: Tensor, labels: Tensor, views: Tensor, generator: torch.Generator
    ) -> Tensor:
        """In other contrasts, with the histograms of random target images: of all, or of what they show."""
        rows = self._target_rows(len(images), generator)
        whole = torch.rand(len(images), generator=generator, device=generator.device) < _WHOLE_SHARE
        whole = whole.to(images.device).view(-1, *[1] * (images.ndim - 1))
        quantiles = torch.where(whole.flatten(1), self._quantiles[rows], self._quantiles_in_view[rows])
        recoloured = recolour(
            images,
            labels,
            quantiles,
            self._mix,
            views=views | whole,
            structures=self._structures,
            generator=generator,
        )
        return recoloured * views

    def _some_in_tissue(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """A share of the images under or in tissue, half of them each, with the histogram of a random target
        image."""
        if not self._veil_share:
            return images
        drawn = torch.rand(len(images), generator=generator, device=generator.device) / self._veil_share
        drawn = drawn.to(images.device).view(-1, *[1] * (images.ndim - 1))
        under = veiled(images, self._target_images, generator)
        within = embedded(images, labels, self._target_images, generator)
        rows = self._target_rows(len(images), generator)
        tissue = match_histogram(torch.where(drawn < 0.5, under, within), self._quantiles[rows])
        return torch.where(drawn < 1, tissue, images)

    def _target_rows(self, count: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(self._quantiles), (count,), generator=generator, device=generator.device)
        return rows.to(self._quantiles.device)


class RandomisedStage(TrainableStage):
    """Supervised training on `RandomisedSource`."""

    def __init__(self, network: nn.Module, source: RandomisedSource, task: AdaptationTask) -> None:
        super().__init__()
        self._source, self._config = source, task.config
        _prepare(self, network, task.config.adaptation.learning_rate, task)

    def training_step(self, run: Run) -> dict[str, Tensor]:
        images, labels = self._source.draw(self._config.adaptation.batch_size, run.generator)
        loss = segmentation_loss(run.networks["network"](images), labels, self._config.segmentation.loss)
        run.update(loss)
        return {"loss": loss}


class MeanTeacherStage(TrainableStage):
    """Half of the loss on randomised source images, half on target images with the teacher's soft labels."""

    def __init__(
        self,
        network: nn.Module,
        source: RandomisedSource,
        task: AdaptationTask,
    ) -> None:
        super().__init__()
        config, target_images, usual = task.config, task.target_images, task.usual
        self._source, self._config, self._target_images = source, config, target_images
        self._smallest = config.adaptation.vanished_share * torch.tensor(
            usual.median, device=target_images.device
        )
        sizes = by_first(lambda: structure_sizes(predict_labels(network, target_images), len(usual.median)))
        self._weights = rarity_weights(sizes).to(target_images.device)
        self._spatial = SpatialAugmentation(task.spacing)
        generator = torch.Generator(target_images.device)
        generator.manual_seed(seed_of(config.training.seed, "adaptation", "position"))
        self._prior: Tensor | None = None
        if task.is_volume:
            self._prior = position_prior(task.samples, len(usual.median), self._spatial, generator)
        self._noise = AppearanceMix(bias=0.2, noise=0.06, blur_voxels=1.0)
        rate = _TEACHER_RATE * config.adaptation.learning_rate
        _prepare(self, network, rate, task)

    def training_step(self, run: Run) -> dict[str, Tensor]:
        settings = self._config.adaptation
        images, labels = self._source.draw(settings.batch_size, run.generator)
        on_source = segmentation_loss(run.networks["network"](images), labels, self._config.segmentation.loss)
        target, soft_labels, counts = self._pseudo_labelled(run)
        logits = run.networks["network"](degrade(target, self._noise, run.generator))
        on_target = (counts * soft_label_loss(logits, soft_labels)).mean()
        run.update(on_source + on_target)
        return {"source": on_source, "target": on_target, "confident": counts.mean()}

    def _pseudo_labelled(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """Target images [N, 1, *shape], moved, the teacher's probabilities of them where structures can lie,
        and which of them count, [N]."""
        teacher = run.averaged if run.averaged is not None else run.networks["network"]
        count, shape = self._config.adaptation.batch_size, tuple(self._target_images.shape[2:])
        rows = torch.multinomial(self._weights, count, replacement=True, generator=run.generator)
        displacement = self._spatial.displacement(count, shape, run.generator)
        images = warp(self._target_images[rows], displacement, padding="zeros")
        with torch.no_grad(), run.fabric.autocast():
            found = teacher(images).float().softmax(1)
        counts = self._counts(found)
        if self._prior is not None:
            found = with_prior(found, warp(self._prior.expand(count, *self._prior.shape), displacement))
        return images, found, counts

    def _counts(self, probabilities: Tensor) -> Tensor:
        """1 for images [N] that the teacher is sure of and where nothing is missing, else 0."""
        sure = confidence(probabilities) >= self._config.adaptation.teacher_confidence
        found = F.one_hot(probabilities.argmax(1).flatten(1), probabilities.shape[1]).sum(1)[:, 1:]
        return (sure & (found >= self._smallest).all(1)).float()


def soft_label_loss(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy plus 1 - Dice of the structures, against soft labels, image by image: [N]."""
    cross_entropy = F.cross_entropy(logits, probabilities, reduction="none").flatten(1).mean(1)
    return cross_entropy + 1 - soft_dice(logits.softmax(1)[:, 1:], probabilities[:, 1:]).mean(1)


@dataclass(frozen=True)
class SelfTraining:
    """Both phases, or only the first with a milder mix as a second try.

    Attributes:
        second_try: after a collapse: other random numbers, milder changes of appearance, no teacher.
    """

    second_try: bool = False

    def snapshots(self, task: AdaptationTask) -> list[Snapshot]:
        """Train the phases that have steps."""
        settings = task.config.adaptation
        found: list[Snapshot] = []
        if settings.randomised_steps:
            found.append(self._randomised(task))
        if settings.teacher_steps and not self.second_try:
            network = found[-1].network if found else task.source_network
            found.append(self._taught(task, network))
        return found

    def _randomised(self, task: AdaptationTask) -> Snapshot:
        name = "second_try" if self.second_try else "randomised"
        source = self._source(task)
        _keep_examples(source, task)
        stage = RandomisedStage(self._start(task), source, task)
        _fit(stage, name, task.config.adaptation.randomised_steps, task)
        return task.judged(name, _with_usual_sizes(stage.networks["network"], task))

    def _taught(self, task: AdaptationTask, network: nn.Module) -> Snapshot:
        start = copy.deepcopy(network).requires_grad_(True)
        stage = MeanTeacherStage(start, self._source(task), task)
        _fit(stage, "teacher", task.config.adaptation.teacher_steps, task)
        network = _with_usual_sizes(stage.networks["network"], task)
        return task.judged("teacher", network, must_not_worsen=True)

    def _source(self, task: AdaptationTask) -> RandomisedSource:
        mix = AppearanceMix().milder() if self.second_try else AppearanceMix()
        return RandomisedSource(task, mix)

    def _start(self, task: AdaptationTask) -> nn.Module:
        if task.config.adaptation.randomised_from == "source":
            return copy.deepcopy(task.source_network).requires_grad_(True)
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(task.config.training.seed, "adaptation", "first weights"))
            return build_segmentation_network(
                len(task.spacing), len(task.usual.median), task.config.segmentation
            )


def _with_usual_sizes(network: nn.Module, task: AdaptationTask) -> nn.Module:
    """`network`, changed so that structures in target volumes are as large on average as the source's."""
    if not task.is_volume:
        return network
    expected = expected_sizes(task.samples.labels, task.target_views, len(task.usual.median))
    shift = by_first(lambda: size_shift(network, task.target_images, expected))
    cast(SegmentationNetwork, network).shift_logits(torch.tensor([0.0, *shift]))
    return network


def _keep_examples(source: RandomisedSource, task: AdaptationTask) -> None:
    """Write a few of the images that are learned from, for people to look at."""
    generator = torch.Generator(task.target_images.device)
    generator.manual_seed(seed_of(task.config.training.seed, "adaptation", "examples"))
    by_first(lambda: AugmentedSamples(*source.draw(EXAMPLES, generator)).save(task.folder))


def _prepare(stage: TrainableStage, network: nn.Module, rate: float, task: AdaptationTask) -> None:
    settings = task.config.adaptation
    stage.networks = {"network": network}
    stage.optimizers = {"network": torch.optim.AdamW(network.parameters(), lr=rate)}
    stage.ema_decay = settings.teacher_decay
    stage.schedule = one_cycle
    stage.settings = {**settings.model_dump(mode="json"), "data": _sums(task)}
    stage.memory_remedy = f"adaptation.batch_size (now {settings.batch_size})"


def _fit(stage: TrainableStage, name: str, steps: int, task: AdaptationTask) -> None:
    fit(
        stage,
        name=f"adaptation/{name}",
        steps=steps,
        folder=task.folder / name,
        config=task.config.training,
        reporter=task.reporter,
    )


def _sums(task: AdaptationTask) -> list[float]:
    """Enough to notice that a checkpoint was made with other data."""
    parts = (task.samples.images, task.samples.labels, task.samples.weights, task.target_images)
    return [checksum(part) for part in parts]
