"""Segmenting all images of a study, or image files from outside it; what is up to date is left alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from SegGuidedMMRegLib.digests import FileDigests, digest_of
from SegGuidedMMRegLib.documents import parse_json
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import WriteError
from SegGuidedMMRegLib.freshness import Freshness, Prediction
from SegGuidedMMRegLib.image_files import nrrd_key
from SegGuidedMMRegLib.images import write_image, write_labels
from SegGuidedMMRegLib.jobs.cores import default_workers
from SegGuidedMMRegLib.jobs.maps import SEGMENTING_STAGES, SegmentedStudy, networks_digest
from SegGuidedMMRegLib.jobs.pairs import Side
from SegGuidedMMRegLib.jobs.results import Output
from SegGuidedMMRegLib.jobs.sides import Digests, sample_of
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.origin import origin
from SegGuidedMMRegLib.pool import Died, work_off
from SegGuidedMMRegLib.samples import Sample, check_modality, file_stem
from SegGuidedMMRegLib.segmenter import Segmenter, on_cpu, trained_folder
from SegGuidedMMRegLib.study import Case, Study, StudyError
from SegGuidedMMRegLib.training.devices import device_of

SOURCE_ONLY_FOLDER = "predictions_without_adaptation"
_HEADER_KEY = "SegGuidedMMReg"

Task = TypeVar("Task")


@dataclass
class Segmented:
    """What became of images to segment.

    Attributes:
        written: the files of this run.
        skipped: segmentations that were up to date.
        failures: name of an image and why it could not be segmented.
    """

    written: list[Path] = field(default_factory=list)
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def segment_study(
    study: Study, reporter: Reporter | None = None, *, again: bool = False, workers: int = 1
) -> Segmented:
    """Predict a segmentation of every case; of the target's test cases also without adaptation, to compare.

    Predictions that are there and were made from just what they would be made from now are left alone.

    Args:
        study: a trained one.
        reporter: hears about progress.
        again: segment also what is up to date.
        workers: processes; 0 is one a physical core, fewer for few images, one on a GPU.

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
        pending = [prediction for prediction in wanted if again or not prediction.is_fresh()]
        outcome = Segmented(skipped=len(wanted) - len(pending))
        processes = _processes(study, workers, pending)
        make = partial(_Predictor, study)
        _work_off(make, pending, _key, outcome=outcome, processes=processes, reporter=reporter)
        digests.save()
    return outcome


def _key(prediction: Prediction) -> str:
    return prediction.case.key


class _Predictor:
    """Makes predictions of a study's cases."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._segmented, self._unadapted = SegmentedStudy(study), Segmenter(study, adapted=False)
        self._origin = origin(study.config, str(device_of(study.config.training)))

    def __call__(self, predictions: Sequence[Prediction]) -> list[list[Path] | str]:
        """Make them, and write them: the files of each, or why there are none."""
        return [_outcome(self._written, prediction) for prediction in predictions]

    def _written(self, prediction: Prediction) -> list[Path]:
        sample = Sample.of_case(self._study, prediction.case)
        if prediction.adapted:
            labels = self._segmented.segmenter.labels(sample, self._segmented.probabilities(sample))
        else:
            labels = self._unadapted.labels(sample, self._unadapted.probabilities(sample))
        keys = prediction.header(self._origin)
        write_labels(labels, self._study.structures, prediction.path, keys=keys)
        return [prediction.path]


def unadapted_path(study: Study, case: Case) -> Path:
    """Where the prediction of the source network for a target case lies."""
    return study.prediction_path(case, adapted=False)


# -- image files ----------------------------------------------------------------------------------------
def segment_files(
    study: Study,
    paths: Sequence[Path],
    modality: str,
    out: Path,
    *,
    mirrored: bool = False,
    spacing_mm: Sequence[float] = (),
    probabilities: bool = False,
    again: bool = False,
    workers: int = 1,
    reporter: Reporter | None = None,
) -> Segmented:
    """Segment images from outside the study into `out/<name>.seg.nrrd`.

    Args:
        study: a trained one.
        paths: image files.
        modality: name of the images' modality.
        out: folder for the results; files that are not up to date are replaced.
        mirrored: whether they show the other side of the body.
        spacing_mm: for files that do not know theirs: one number, or one an axis; empty: 1 mm is assumed.
        probabilities: also write a volume a structure, `<name>.<structure>.nrrd`, float32.
        again: segment also what is up to date.
        workers: processes; 0 is one a physical core, fewer for few images, one on a GPU.
        reporter: hears about progress.

    Raises:
        StudyError: if two images would have one result, or the study is not trained.
    """
    reporter = reporter or Reporter()
    check_modality(study, modality)
    names = Counter(file_stem(path) for path in paths)
    if twice := [name for name, count in names.items() if count > 1]:
        raise StudyError(
            f"Several images are called {twice[0]!r}, and so would their results in {out}. Segment "
            "them in two calls, with two --out folders."
        )
    made_from = _Origins(study)
    spacing = tuple(float(s) for s in spacing_mm)
    sides = [Side(file_stem(path), modality, None, path, mirrored, spacing) for path in paths]
    unclear = next((side for side in sides if side.warnings), None)
    if unclear is not None:
        reporter.log(unclear.warnings[0])
    pending = []
    for side in sides:
        task = _FileTask(side, out / f"{side.name}.seg.nrrd", probabilities, made_from(side))
        if again or not task.is_done(study):
            pending.append(task)
    outcome = Segmented(skipped=len(paths) - len(pending))
    processes = _processes(study, workers, pending)
    make = partial(_FileSegmenter, study)
    _work_off(make, pending, _path, outcome=outcome, processes=processes, reporter=reporter)
    return outcome


@dataclass(frozen=True)
class _FileTask:
    """An image file to segment; `made_from` is "" where it cannot be told, as the image is missing."""

    side: Side
    path: Path
    probabilities: bool
    made_from: str

    def volume(self, structure: str) -> Path:
        return self.path.with_name(f"{self.side.name}.{structure}.nrrd")

    def is_done(self, study: Study) -> bool:
        """Whether all its files are there, made from just this."""
        try:
            record = parse_json(nrrd_key(self.path, _HEADER_KEY) or "", str(self.path))
        except (ValueError, OSError):
            return False
        if not self.made_from or not isinstance(record, dict) or record.get("made_from") != self.made_from:
            return False
        return not self.probabilities or all(self.volume(s.name).is_file() for s in study.structures)


class _Origins:
    """Digests of all that the segmentation of an image file is made from."""

    def __init__(self, study: Study) -> None:
        networks = networks_digest(study, SEGMENTING_STAGES)
        self._digests = Digests(study, Output(), networks)
        self._shared = (networks, str(study.grid), [(s.value, s.name, s.color) for s in study.structures])

    def __call__(self, side: Side) -> str:
        try:
            return digest_of(*self._shared, self._digests.of_image(side))[:32]
        except (ValueError, OSError):  # told when the image is segmented
            return ""


def _path(task: _FileTask) -> str:
    return str(task.side.path)


class _FileSegmenter:
    """Segments image files and writes what comes of them."""

    def __init__(self, study: Study) -> None:
        self._study, self._segmenter = study, Segmenter(study)
        self._origin = origin(study.config, str(device_of(study.config.training)))

    def __call__(self, tasks: Sequence[_FileTask]) -> list[list[Path] | str]:
        """The files of each image, or why there are none."""
        return [_outcome(self._written, task) for task in tasks]

    def _written(self, task: _FileTask) -> list[Path]:
        sample = sample_of(self._study, task.side)
        found = self._segmenter.probabilities(sample)
        written = []
        if task.probabilities:
            shares = list(self._segmenter.on_own_grid(sample, found))[1:]
            for structure, share in zip(self._study.structures, shares, strict=True):
                written.append(task.volume(structure.name))
                write_image(share, written[-1])
        keys = {_HEADER_KEY: json.dumps({"made_from": task.made_from, **self._origin})}
        write_labels(self._segmenter.labels(sample, found), self._study.structures, task.path, keys=keys)
        return [*written, task.path]


# -- many of them ---------------------------------------------------------------------------------------
def _outcome(write: Callable[[Task], list[Path]], task: Task) -> list[Path] | str:
    """The files, or why there are none; a disk that takes no files ends the whole."""
    try:
        return write(task)
    except WriteError:
        raise
    except (ValueError, OSError) as error:
        return str(error)


def _processes(study: Study, workers: int, pending: Sequence[object]) -> int:
    return workers or (default_workers(len(pending)) if on_cpu(study) else 1)


def _work_off(
    make: Callable[[], Callable[[Sequence[Task]], list[list[Path] | str]]],
    pending: Sequence[Task],
    name: Callable[[Task], str],
    *,
    outcome: Segmented,
    processes: int,
    reporter: Reporter,
) -> None:
    """Segment what is pending; `outcome` takes the files and the failures."""
    if outcome.skipped:
        reporter.log(f"{outcome.skipped} segmentations are up to date.")
    reporter.started("segment", len(pending))
    with closing(_results(make, pending, processes)) as results:
        for done, (task, found) in enumerate(results, start=1):
            if isinstance(found, str):
                outcome.failures.append((name(task), found))
                reporter.log(f"{name(task)}: failed: {found}")
            else:
                outcome.written += found
            reporter.progress("segment", done, len(pending))


def _results(
    make: Callable[[], Callable[[Sequence[Task]], list[list[Path] | str]]],
    pending: Iterable[Task],
    processes: int,
) -> Generator[tuple[Task, list[Path] | str], None, None]:
    """Each image with its files, or why there are none; from this process or from several."""
    if processes > 1:
        with closing(work_off(make, ([task] for task in pending), processes)) as results:
            for (task,), found in results:
                yield task, f"tried twice, {found.reason}" if isinstance(found, Died) else found[0]
        return
    segmenter = None
    for task in pending:
        segmenter = segmenter or make()
        yield task, segmenter([task])[0]
