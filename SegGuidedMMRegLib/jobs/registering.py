"""Registering two images: transforms, warped image and labels, and a report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.jobs.maps import SegmentedStudy
from SegGuidedMMRegLib.jobs.results import Given, Output, write_pair
from SegGuidedMMRegLib.pair_report import PairSide
from SegGuidedMMRegLib.pair_report_file import Report
from SegGuidedMMRegLib.registrar import Registrar
from SegGuidedMMRegLib.samples import Sample
from SegGuidedMMRegLib.segmenter import label_probabilities
from SegGuidedMMRegLib.study import Study


def register_files(
    study: Study,
    moving: Sample,
    fixed: Sample,
    out: Path,
    *,
    given: Given | None = None,
    output: Output | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Register two images, of the study or from outside, with predicted or given segmentations.

    Args:
        study: a trained one.
        moving, fixed: the images.
        out: folder for transforms, warped image and labels, and report.
        given: segmentations instead of the predicted ones, and landmarks.
        output: formats and spacing.
        reporter: hears about progress.
    """
    return register_images(
        SegmentedStudy(study),
        Registrar(study),
        moving,
        fixed,
        out,
        given=given,
        output=output,
        reporter=reporter,
    )


def register_images(
    segmented: SegmentedStudy,
    registrar: Registrar,
    moving: Sample,
    fixed: Sample,
    out: Path,
    *,
    given: Given | None = None,
    output: Output | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """`register_files` with networks that are in memory."""
    study, given, output = segmented.study, given or Given(), output or Output()
    start = time.process_time()
    maps: list[Tensor] = []
    sides: list[PairSide] = []
    for sample, labels in ((moving, given.moving_labels), (fixed, given.fixed_labels)):
        if labels is None:
            maps.append(segmented.probabilities(sample))
            found_labels = segmented.segmenter.labels(sample, maps[-1])
        else:
            maps.append(label_probabilities(study, sample, labels))
            found_labels = labels
        sides.append(replace(_side_of_case(study, sample, found_labels), given=labels is not None))
    found = registrar.register(
        moving,
        fixed,
        *maps,
        landmarks=given.landmarks,
        given=(given.moving_labels is not None, given.fixed_labels is not None),
        spacing_mm=output.spacing_mm,
        reporter=reporter,
    )
    seconds = time.process_time() - start
    return write_pair(study, out, found, *sides, output=output, seconds=seconds, given=given)


def _side_of_case(study: Study, sample: Sample, prediction: Image) -> PairSide:
    case = sample.case
    truth = study.read_evaluation_labels(case) if case is not None and case.label else None
    landmarks = study.read_landmarks(case) if case is not None and case.landmarks else None
    return PairSide(sample.name, sample.modality, sample.image, truth, prediction, landmarks)
