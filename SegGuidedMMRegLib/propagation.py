"""A first draft of an image's labels: those of the labelled case that resembles it most, warped onto it.

Between images of the source modality this needs pre-alignment alone: the labelled image is registered to the
other by the velocity fields of the augmentation. An image of the target modality is reached by segmentations,
so the study must be trained. Labels that are meant for evaluation are never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from SegGuidedMMRegLib.config import AugmentationConfig
from SegGuidedMMRegLib.deformation import soft_dice, warp
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.fields import SpatialTransform, field_from_study
from SegGuidedMMRegLib.images import Image, normalised_study_image
from SegGuidedMMRegLib.inversion import forward_transform
from SegGuidedMMRegLib.jobs import SegmentedStudy
from SegGuidedMMRegLib.registrar import Registrar
from SegGuidedMMRegLib.samples import Sample
from SegGuidedMMRegLib.segmenter import label_probabilities, on_study_grid
from SegGuidedMMRegLib.study import Case, Study, StudyError
from SegGuidedMMRegLib.training.augmentation import similarity
from SegGuidedMMRegLib.training.augmentation.resolution import shrink, shrunk_shape
from SegGuidedMMRegLib.training.augmentation.velocity import VelocityRegistration


@dataclass(frozen=True)
class Propagation:
    """Labels for an image.

    Attributes:
        labels: structure values on the image's own grid.
        source: the labelled case that they come from.
        similarity_before: of the two as pre-aligned, at most about 1; of the images (local correlation) or of
            the segmentations (Dice).
        similarity_after: after registration.
        warnings: in words.
    """

    labels: Image
    source: Case
    similarity_before: float
    similarity_after: float
    warnings: tuple[str, ...] = ()


def propagate(
    study: Study,
    sample: Sample,
    *,
    source: Case | None = None,
    networks: Callable[[], tuple[SegmentedStudy, Registrar]] | None = None,
    reporter: Reporter | None = None,
) -> Propagation:
    """Labels for an image: by images within the source modality, by segmentations across.

    Args:
        study: pre-aligned; trained, for an image of the target modality.
        sample: the image.
        source: the case to take the labels of, instead of the most similar one.
        networks: gives those that are in memory, where they are.
        reporter: hears about progress.

    Raises:
        StudyError: if no other case has labels for training, or `source` has none.
    """
    if sample.modality == study.source:
        return propagate_by_images(study, sample, source=source, reporter=reporter)
    segmented, registrar = networks() if networks else (SegmentedStudy(study), Registrar(study))
    return propagate_by_segmentations(segmented, registrar, sample, source=source, reporter=reporter)


def propagate_by_images(
    study: Study, sample: Sample, *, source: Case | None = None, reporter: Reporter | None = None
) -> Propagation:
    """Labels for an image of the source modality, by its likeness to labelled ones; see `propagate`."""
    reporter = reporter or Reporter()
    settings = _settings(study)
    fixed = _study_image(study, sample)
    working = shrunk_shape(tuple(fixed.shape[2:]), settings.working_downsampling)

    def alike(moving: Tensor) -> float:
        return float(similarity(shrink(moving, working), shrink(fixed, working), settings.lncc_sigma))

    def compared(other: Sample) -> tuple[float, Tensor]:
        moving = _study_image(study, other)
        return alike(moving), moving

    before, nearest, moving = _nearest(study, sample, source, compared, reporter)
    method = VelocityRegistration(
        downsampling=settings.working_downsampling,
        iterations=settings.iterations,
        smoothness=settings.smoothness,
        lncc_sigma=settings.lncc_sigma,
        learning_rate=settings.learning_rate,
        reporter=reporter,
    )
    displacement = method.displacement(moving, fixed, torch.Generator())
    after = alike(warp(moving, displacement, padding="zeros"))
    warnings: tuple[str, ...] = ()
    if after <= before:
        displacement, after = torch.zeros_like(displacement), before
        warnings = ("registering gained nothing: the labels are placed by the pre-alignment alone",)
    phi = field_from_study(displacement[0].numpy(), study.require_grid())
    forward = forward_transform(phi, sample.study_to_case, nearest.study_to_case, sample.image.grid)
    labels = _carried(study, sample, nearest, forward)
    return Propagation(labels, _case(nearest), before, after, warnings)


def propagate_by_segmentations(
    segmented: SegmentedStudy,
    registrar: Registrar,
    sample: Sample,
    *,
    source: Case | None = None,
    reporter: Reporter | None = None,
) -> Propagation:
    """Labels for an image of either modality, by the likeness of predicted structures; see `propagate`."""
    study, reporter = segmented.study, reporter or Reporter()
    fixed = segmented.probabilities(sample)
    goal = on_study_grid(fixed, study.require_grid())[None, 1:]

    def compared(other: Sample) -> tuple[float, Tensor]:
        moving = label_probabilities(study, other, _labels(study, _case(other)))
        return float(soft_dice(moving[None, 1:], goal).mean()), moving

    before, nearest, moving = _nearest(study, sample, source, compared, reporter)
    found = registrar.register(nearest, sample, moving, fixed, reporter=reporter)
    labels = _carried(study, sample, nearest, found.forward)
    after = float(soft_dice(label_probabilities(study, sample, labels)[None, 1:], goal).mean())
    return Propagation(labels, _case(nearest), before, after, found.warnings + found.problems)


def _settings(study: Study) -> AugmentationConfig:
    """How velocity fields are found; the defaults where the study augments by another method."""
    settings = study.config.augmentation
    return settings if settings.method == "velocity" else AugmentationConfig()


# -- the labelled cases ---------------------------------------------------------------------------------
def _nearest(
    study: Study,
    sample: Sample,
    source: Case | None,
    compared: Callable[[Sample], tuple[float, Tensor]],
    reporter: Reporter,
) -> tuple[float, Sample, Tensor]:
    """The labelled case with the highest score, that score, and what it was compared by."""
    cases = _labelled(study, sample, source)
    best: tuple[float, Sample, Tensor] | None = None
    reporter.started("comparing images", len(cases))
    for done, case in enumerate(cases, start=1):
        other = Sample.of_case(study, case)
        score, tensor = compared(other)
        if best is None or score > best[0]:
            best = score, other, tensor
        reporter.progress("comparing images", done, len(cases))
    assert best is not None
    return best


def _labelled(study: Study, sample: Sample, source: Case | None) -> Sequence[Case]:
    """The cases that labels may be taken from: at least one."""
    own = None if sample.case is None else sample.case.key
    labelled = [case for case in study.training_view().labelled_cases if case.key != own]
    if not labelled:
        raise StudyError(
            f"{study.folder}: no other training image of {study.source!r} has labels. Label one first; "
            f"`segmmreg suggest {study.folder}` says which."
        )
    if source is None:
        return labelled
    chosen = [case for case in labelled if case.key == source.key]
    if not chosen:
        raise StudyError(
            f"The case {source.key} has no labels that may be carried to {sample.name}. These have: "
            f"{', '.join(case.key for case in labelled)}."
        )
    return chosen


def _labels(study: Study, case: Case) -> Image:
    """Structure values of a case that training may see."""
    indices = study.training_view().labels(case)
    values = np.array([0, *(s.value for s in study.structures)], dtype=np.uint16)
    return Image(values[indices.array], indices.grid)


def _case(sample: Sample) -> Case:
    assert sample.case is not None
    return sample.case


# -- images and labels ----------------------------------------------------------------------------------
def _study_image(study: Study, sample: Sample) -> Tensor:
    """[1, 1, *shape] in study space."""
    seen = normalised_study_image(sample.image, study.require_grid(), sample.study_to_case)
    return torch.from_numpy(seen)[None, None]


def _carried(study: Study, sample: Sample, nearest: Sample, forward: SpatialTransform) -> Image:
    """The labels of the nearest case on the image's own grid; the largest share of a voxel wins."""
    labels, grid = _labels(study, _case(nearest)), sample.image.grid
    found = np.zeros(grid.shape, dtype=np.uint16)
    best = np.zeros(grid.shape, dtype=np.float32)
    rest = np.ones(grid.shape, dtype=np.float32)
    for structure in study.structures:
        mask = Image((labels.array == structure.value).astype(np.float32), labels.grid)
        share = forward.warp_image(mask, grid).array
        rest -= share
        found[share > best] = structure.value
        best = np.maximum(best, share)
    found[rest > best] = 0
    return Image(found, grid)
