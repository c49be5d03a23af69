"""Segmenting all images of a study, or image files from outside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from SegGuidedMMRegLib.digests import FileDigests
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.freshness import Freshness, Prediction
from SegGuidedMMRegLib.images import spacing_is_known, write_image, write_labels
from SegGuidedMMRegLib.inference import Sample, Segmenter, trained_folder
from SegGuidedMMRegLib.jobs.maps import SEGMENTING_STAGES, SegmentedStudy
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.origin import origin
from SegGuidedMMRegLib.samples import check_modality, file_stem
from SegGuidedMMRegLib.study import Case, Study, StudyError
from SegGuidedMMRegLib.training.loop import make_fabric

SOURCE_ONLY_FOLDER = "predictions_without_adaptation"


def segment_study(study: Study, reporter: Reporter | None = None) -> list[Path]:
    """Predict a segmentation of every case; of the target's test cases also without adaptation, to compare.

    Predictions that are there and were made from just what they would be made from now are left alone.

    Returns:
        The files under `predictions/`.

    Raises:
        BusyError: if another process segments the study.
        NotTrainedError: if a network is not trained yet.
    """
    reporter = reporter or Reporter()
    for stage in SEGMENTING_STAGES:
        trained_folder(study, stage)
    digests = FileDigests.of_study(study.folder)
    with working_on(study.folder, "segment"):
        wanted = Freshness(study, digests).predictions()
        pending = [prediction for prediction in wanted if not prediction.is_fresh()]
        if len(pending) < len(wanted):
            reporter.log(f"{len(wanted) - len(pending)} segmentations are up to date.")
        reporter.started("segment", len(pending))
        segment = _Predictor(study) if pending else None
        for done, prediction in enumerate(pending, start=1):
            if segment is not None:
                segment(prediction)
            reporter.progress("segment", done, len(pending))
        digests.save()
    return [study.prediction_path(case) for case in study.cases]


class _Predictor:
    """Makes predictions of a study's cases."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._segmented, self._unadapted = SegmentedStudy(study), Segmenter(study, adapted=False)
        self._origin = origin(study.config, str(make_fabric(study.config.training).device))

    def __call__(self, prediction: Prediction) -> None:
        """Make one, and write it."""
        sample = Sample.of_case(self._study, prediction.case)
        if prediction.adapted:
            labels = self._segmented.segmenter.labels(sample, self._segmented.probabilities(sample))
        else:
            labels = self._unadapted.labels(sample, self._unadapted.probabilities(sample))
        keys = prediction.header(self._origin)
        write_labels(labels, self._study.structures, prediction.path, keys=keys)


def unadapted_path(study: Study, case: Case) -> Path:
    """Where the prediction of the source network for a target case lies."""
    return study.prediction_path(case, adapted=False)


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
