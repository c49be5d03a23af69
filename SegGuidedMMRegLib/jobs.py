"""Segmenting and registering many images: what the command line and the Slicer module ask for.

Each image is segmented once; its probability maps on the study grid are kept in `models/cache` for every pair
that needs them. What is written where: `Study.prediction_path`, `Study.registration_folder`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from SegGuidedMMRegLib import provenance
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.images import Image, spacing_is_known, write_image, write_labels
from SegGuidedMMRegLib.inference import (
    Registrar,
    Registration,
    Sample,
    Segmenter,
    check_modality,
    file_stem,
    label_probabilities,
)
from SegGuidedMMRegLib.pair_report import (
    REPORT_NAME,
    PairSide,
    Report,
    failed_report,
    pair_report,
    write_pair_report,
)
from SegGuidedMMRegLib.study import Case, Role, Study, StudyError
from SegGuidedMMRegLib.transform_files import write_transform

SOURCE_ONLY_FOLDER = "predictions_without_adaptation"
_WARPED_IMAGE, _WARPED_LABELS = "warped_image.nrrd", "warped_labels.seg.nrrd"
_TRANSFORMS = (".h5", ".tfm", ".nrrd", ".nii.gz", ".mha")

Pair = tuple[Case, Case]
"""Moving and fixed."""


class SegmentedStudy:
    """Probability maps of the cases of a study, made once and kept while the networks stay the same."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.segmenter = Segmenter(study)
        self._networks = [
            provenance.digest_of(study.stage_folder(stage) / "weights.safetensors")
            for stage in ("segmentation", "adaptation")
        ]
        self._folder = study.folder / "models" / "cache" / "probabilities"

    def probabilities(self, sample: Sample) -> Tensor:
        """What `Segmenter.probabilities` gives for this sample."""
        if sample.case is None:
            return self.segmenter.probabilities(sample)
        path = self._folder / f"{sample.case.modality}--{sample.case.name}.safetensors"
        key = self._key(sample)
        if path.is_file():
            kept = load_file(path)
            if key in kept:
                return kept[key].float()
        found = self.segmenter.probabilities(sample)
        with atomic_path(path) as temporary:
            save_file({key: found.half()}, temporary)
        return found.half().float()

    def _key(self, sample: Sample) -> str:
        image = sample.image
        return provenance.digest_of(
            self._networks,
            str(image.grid),
            image.array.tobytes(),
            sample.study_to_case.round(9).tolist(),
            str(self.study.grid),
        )


def segment_study(study: Study, reporter: Reporter | None = None) -> list[Path]:
    """Predict a segmentation of every case; of the target's test cases also without adaptation, to compare.

    Returns:
        The files under `predictions/`.
    """
    reporter = reporter or Reporter()
    segmented = SegmentedStudy(study)
    unadapted = Segmenter(study, adapted=False)
    written = []
    reporter.started("segment", len(study.cases))
    for done, case in enumerate(study.cases, start=1):
        sample = Sample.of_case(study, case)
        labels = segmented.segmenter.labels(sample, segmented.probabilities(sample))
        path = study.prediction_path(case)
        write_labels(labels, study.structures, path)
        written.append(path)
        if case.modality == study.target and case.role == Role.TEST:
            plain = unadapted.labels(sample, unadapted.probabilities(sample))
            write_labels(plain, study.structures, unadapted_path(study, case))
        reporter.progress("segment", done, len(study.cases))
    return written


def unadapted_path(study: Study, case: Case) -> Path:
    """Where the prediction of the source network for a target case lies."""
    return study.folder / SOURCE_ONLY_FOLDER / case.modality / f"{case.name}.seg.nrrd"


def segment_files(
    study: Study,
    paths: Sequence[Path],
    modality: str,
    out: Path,
    *,
    mirrored: bool = False,
    spacing_mm: Sequence[float] = (),
    probabilities: bool = False,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Segment images from outside the study into `out/<name>.seg.nrrd`.

    Args:
        study: a trained one.
        paths: image files.
        modality: name of the images' modality.
        out: folder for the results; existing files are replaced.
        mirrored: whether they show the other side of the body.
        spacing_mm: for files that do not know theirs: one number, or one an axis; empty: 1 mm is assumed.
        probabilities: also write a volume a structure, `<name>.<structure>.nrrd`, float32.
        reporter: hears about progress.

    Raises:
        ValueError: naming the file, if one cannot be used; those before it are written.
    """
    reporter = reporter or Reporter()
    check_modality(study, modality)
    names = [file_stem(path) for path in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StudyError(
            f"Several images are called {sorted(twice)[0]!r}, and so would their results in {out}. Segment "
            "them in two calls, with two --out folders."
        )
    segmenter = Segmenter(study)
    written, told = [], False
    for done, path in enumerate(paths, start=1):
        sample = Sample.of_file(study, path, modality, mirrored=mirrored, spacing_mm=spacing_mm)
        if not (told or spacing_mm or spacing_is_known(path)):
            reporter.log(spacing_note(path))
            told = True
        found = segmenter.probabilities(sample)
        written.append(out / f"{sample.name}.seg.nrrd")
        write_labels(segmenter.labels(sample, found), study.structures, written[-1])
        if probabilities:
            shares = list(segmenter.on_own_grid(sample, found))[1:]
            for structure, share in zip(study.structures, shares, strict=True):
                written.append(out / f"{sample.name}.{structure.name}.nrrd")
                write_image(share, written[-1])
        reporter.progress("segment", done, len(paths))
    return written


def spacing_note(path: Path) -> str:
    """What a person is told of an image file that holds no spacing where none is given."""
    return (
        f"{path} does not say how large its pixels are: 1 mm is assumed. Give the spacing if it is another."
    )


@dataclass(frozen=True)
class Output:
    """What is written of a pair.

    Attributes:
        formats: suffixes of the transform files beside `.h5`, such as ".nrrd" or ".nii.gz".
        spacing_mm: of the fields in the files; None for that of the images.
    """

    formats: tuple[str, ...] = ()
    spacing_mm: float | None = None


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
    moving_labels: Image | None = None,
    fixed_labels: Image | None = None,
    output: Output | None = None,
) -> Report:
    """Register two images, of the study or from outside, with predicted or given segmentations.

    Args:
        study: a trained one.
        moving, fixed: the images.
        out: folder for transforms, warped image and labels, and report.
        moving_labels, fixed_labels: structure values in the space of the image, instead of the prediction.
        output: formats and spacing.
    """
    segmented, registrar = SegmentedStudy(study), Registrar(study)
    start = time.process_time()
    maps: list[Tensor] = []
    sides: list[PairSide] = []
    for sample, given in ((moving, moving_labels), (fixed, fixed_labels)):
        if given is None:
            maps.append(segmented.probabilities(sample))
            labels = segmented.segmenter.labels(sample, maps[-1])
        else:
            maps.append(label_probabilities(study, sample, given))
            labels = given
        sides.append(_side_of_case(study, sample, labels))
    spacing_mm = (output or Output()).spacing_mm
    found = registrar.register(moving, fixed, maps[0], maps[1], spacing_mm=spacing_mm)
    seconds = time.process_time() - start
    return _deliver(study, out, found, *sides, output=output or Output(), seconds=seconds)


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
) -> Report:
    _clear(folder)
    for name, transform in (("forward", found.forward), ("inverse", found.inverse)):
        for suffix in (".h5", *output.formats):
            write_transform(transform, folder / f"{name}{suffix}")
    grid = fixed.image.grid
    write_image(found.forward.warp_image(moving.image, grid), folder / _WARPED_IMAGE)
    labels = moving.truth or moving.prediction
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
    )
    write_pair_report(report, folder)
    return report


def _clear(folder: Path) -> None:
    """Remove what an earlier registration of the same pair left, so that all files are of one run."""
    transforms = (f"{name}{suffix}" for name in ("forward", "inverse") for suffix in _TRANSFORMS)
    for name in (REPORT_NAME, _WARPED_IMAGE, _WARPED_LABELS, *transforms):
        (folder / name).unlink(missing_ok=True)
