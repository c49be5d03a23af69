"""Segmenting all images of a study, or image files from outside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import spacing_is_known, write_image, write_labels
from SegGuidedMMRegLib.inference import Sample, Segmenter, check_modality, file_stem
from SegGuidedMMRegLib.jobs.maps import SegmentedStudy
from SegGuidedMMRegLib.study import Case, Role, Study, StudyError

SOURCE_ONLY_FOLDER = "predictions_without_adaptation"


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
    reporter.started("segment", len(paths))
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
