"""Registering pairs of images: transforms, warped image and labels, and a report a pair."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import Image, write_image, write_labels
from SegGuidedMMRegLib.inference import Registrar, Registration, Sample, label_probabilities
from SegGuidedMMRegLib.jobs.maps import SegmentedStudy
from SegGuidedMMRegLib.pair_report import (
    REPORT_NAME,
    PairSide,
    Report,
    failed_report,
    pair_report,
    write_pair_report,
)
from SegGuidedMMRegLib.points import MatchedLandmarks
from SegGuidedMMRegLib.study import Case, Role, Study, StudyError
from SegGuidedMMRegLib.transform_files import write_transform

_WARPED_IMAGE, _WARPED_LABELS = "warped_image.nrrd", "warped_labels.seg.nrrd"
_TRANSFORMS = (".h5", ".tfm", ".nrrd", ".nii.gz", ".mha")

Pair = tuple[Case, Case]
"""Moving and fixed."""


@dataclass(frozen=True)
class Output:
    """What is written of a pair.

    Attributes:
        formats: suffixes of the transform files beside `.h5`, such as ".nrrd" or ".nii.gz".
        spacing_mm: of the fields in the files; None for that of the images.
    """

    formats: tuple[str, ...] = ()
    spacing_mm: float | None = None


@dataclass(frozen=True)
class Given:
    """What a person gives for a pair.

    Attributes:
        moving_labels, fixed_labels: structure values in the space of the image, instead of the prediction.
        landmarks: that shall come to lie on each other.
    """

    moving_labels: Image | None = None
    fixed_labels: Image | None = None
    landmarks: MatchedLandmarks | None = None


def register_study(
    study: Study,
    pairs: Iterable[Pair] | None = None,
    *,
    output: Output | None = None,
    reporter: Reporter | None = None,
) -> list[Report]:
    """Register pairs of cases, by default every source test case to every target one, and report each.

    A pair that cannot be registered gets a report that says why; the others go on.
    """
    reporter = reporter or Reporter()
    chosen = list(test_pairs(study) if pairs is None else pairs)
    if not chosen:
        raise StudyError(
            f"{study.folder}: no pairs to register; give test cases to both modalities, or pairs."
        )
    segmented, registrar = SegmentedStudy(study), Registrar(study)
    reports = []
    reporter.started("register", len(chosen))
    for done, (moving, fixed) in enumerate(chosen, start=1):
        report = _register_cases(segmented, registrar, moving, fixed, output or Output())
        reports.append(report)
        if report["status"] != "ok":
            reporter.log(f"{moving.key} to {fixed.key}: failed: {'; '.join(report['reasons'])}")
        reporter.progress("register", done, len(chosen))
    return reports


def test_pairs(study: Study) -> list[Pair]:
    """Every test case of the source to every one of the target: moving source, fixed target."""
    return [
        (moving, fixed)
        for moving in study.cases_of(study.source, Role.TEST)
        for fixed in study.cases_of(study.target, Role.TEST)
    ]


def _register_cases(
    segmented: SegmentedStudy, registrar: Registrar, moving: Case, fixed: Case, output: Output
) -> Report:
    study = segmented.study
    folder = study.registration_folder(moving, fixed)
    start = time.process_time()
    try:
        samples = Sample.of_case(study, moving), Sample.of_case(study, fixed)
        maps = segmented.probabilities(samples[0]), segmented.probabilities(samples[1])
        found = registrar.register(*samples, *maps, spacing_mm=output.spacing_mm)
    except ValueError as error:
        _clear(folder)
        report = failed_report(moving.name, fixed.name, str(error))
        write_pair_report(report, folder)
        return report
    seconds = time.process_time() - start
    predictions = [segmented.segmenter.labels(s, m) for s, m in zip(samples, maps, strict=True)]
    sides = [_side_of_case(study, s, p) for s, p in zip(samples, predictions, strict=True)]
    return _deliver(study, folder, found, *sides, output=output, seconds=seconds)


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
        sides.append(_side_of_case(study, sample, found_labels))
    found = registrar.register(
        moving, fixed, *maps, landmarks=given.landmarks, spacing_mm=output.spacing_mm, reporter=reporter
    )
    seconds = time.process_time() - start
    return _deliver(study, out, found, *sides, output=output, seconds=seconds, given=given)


def _side_of_case(study: Study, sample: Sample, prediction: Image) -> PairSide:
    case = sample.case
    truth = study.read_evaluation_labels(case) if case is not None and case.label else None
    landmarks = study.read_landmarks(case) if case is not None and case.landmarks else None
    return PairSide(sample.name, sample.modality, sample.image, truth, prediction, landmarks)


def _deliver(
    study: Study,
    folder: Path,
    found: Registration,
    moving: PairSide,
    fixed: PairSide,
    *,
    output: Output,
    seconds: float,
    given: Given | None = None,
) -> Report:
    _clear(folder)
    for name, transform in (("forward", found.forward), ("inverse", found.inverse)):
        for suffix in (".h5", *output.formats):
            write_transform(transform, folder / f"{name}{suffix}")
    grid = fixed.image.grid
    write_image(found.forward.warp_image(moving.image, grid), folder / _WARPED_IMAGE)
    given = given or Given()
    labels = given.moving_labels or moving.truth or moving.prediction
    if labels is not None:
        warped = found.forward.warp_labels(labels, grid)
        write_labels(warped, study.structures, folder / _WARPED_LABELS)
    report = pair_report(
        moving,
        fixed,
        found.forward,
        found.inverse,
        study.structures,
        prealignment_lps=found.prealignment_lps,
        seconds=seconds,
        problems=found.problems,
        warnings=found.warnings,
        guides=given.landmarks,
    )
    write_pair_report(report, folder)
    return report


def _clear(folder: Path) -> None:
    """Remove what an earlier registration of the same pair left, so that all files are of one run."""
    transforms = (f"{name}{suffix}" for name in ("forward", "inverse") for suffix in _TRANSFORMS)
    for name in (REPORT_NAME, _WARPED_IMAGE, _WARPED_LABELS, *transforms):
        (folder / name).unlink(missing_ok=True)
