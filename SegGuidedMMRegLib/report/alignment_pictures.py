"""Pictures of pre-alignment: the mean of some images of each modality in study space, before and after.

Where the images lie on each other the mean is sharp; outlines are those of the hand segmentations among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from SegGuidedMMRegLib.report import pictures
from SegGuidedMMRegLib.report.pictures import Outline
from SegGuidedMMRegLib.space import FloatArray, Grid
from SegGuidedMMRegLib.study import Case, Study, TrainingView
from SegGuidedMMRegLib.training.alignment import Coarse, Subject, align_coarse, average, coarse, spread
from SegGuidedMMRegLib.training.data import study_labels

_EACH = 4
"""How many images with labels, and how many without, the mean of a modality is made of."""


def draw_means(study: Study) -> Iterator[tuple[Figure, str]]:
    """Source, then target: as the headers place the images, and as pre-alignment does, with a caption.

    Only images for training, and labels that training may see.
    """
    view, config = study.training_view(), study.config.prealign
    focus: NDArray[np.bool_] | None = None
    for modality, cases in ((study.source, view.source_cases), (study.target, view.target_cases)):
        chosen = _chosen(cases)
        if not chosen:
            continue
        images = [_coarse(study, view, case) for case in chosen]
        placed = [view.study_to_case(case) for case in chosen]
        by_header = [align_coarse(image, None, view.grid, config).study_to_case for image in images]
        after = average(images, placed, view.grid, config)
        labels = _labels(view, chosen, placed, after.grid)
        focus = np.any([each > 0 for each in labels], axis=0) if labels else focus
        shown = pictures.fullest_view(after.grid, focus)
        drawn = f", labels of {len(labels)} of them" if labels else ""
        if config.method != "none":
            before = average(images, by_header, view.grid, config)
            outlines = [Outline(each) for each in _labels(view, chosen, by_header, before.grid)]
            caption = f"{modality}, mean of {len(chosen)} images as their headers place them{drawn}"
            yield pictures.overlay(before.array, shown, outlines, study.structures), caption
        caption = f"{modality}, mean of {len(chosen)} images, pre-aligned{drawn}"
        outlines = [Outline(each) for each in labels]
        yield pictures.overlay(after.array, shown, outlines, study.structures), caption


def _chosen(cases: Sequence[Case]) -> list[Case]:
    labelled = [case for case in cases if case.label is not None]
    return [*spread(labelled, _EACH), *spread([case for case in cases if case.label is None], _EACH)]


def _coarse(study: Study, view: TrainingView, case: Case) -> Coarse:
    subject = Subject(view.image(case), case.modality, case.mirrored)
    return coarse(subject, view.grid, study.config.prealign)


def _labels(
    view: TrainingView, cases: Sequence[Case], maps: Sequence[FloatArray], onto: Grid
) -> list[NDArray[np.int64]]:
    """Label maps (class values) of the labelled cases on a grid in study space."""
    values = np.array([0, *(s.value for s in view.structures)])
    found = []
    for case, matrix in zip(cases, maps, strict=True):
        if case.label is not None:
            labels = view.labels(case)
            indices = study_labels(labels.array, labels.grid, onto, matrix, len(values))
            found.append(values[indices])
    return found
