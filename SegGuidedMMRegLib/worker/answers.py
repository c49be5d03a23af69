"""What the worker does for each kind of request; what it returns is said in the `result` event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import Image, write_labels
from SegGuidedMMRegLib.importing.labels import read_matching_labels
from SegGuidedMMRegLib.jobs import Given, Output, register_images
from SegGuidedMMRegLib.points import MatchedLandmarks, read_matched_landmarks
from SegGuidedMMRegLib.propagation import propagate
from SegGuidedMMRegLib.samples import Sample
from SegGuidedMMRegLib.study import StudyError
from SegGuidedMMRegLib.suggestion import suggest
from SegGuidedMMRegLib.worker.requests import Propagate, Register, Segment, SideRef, Suggest, Work
from SegGuidedMMRegLib.worker.warm import WarmStudy


def answer(request: Work, warm: WarmStudy, reporter: Reporter) -> dict[str, Any]:
    """Do what is asked.

    Args:
        request: what is asked.
        warm: the study.
        reporter: hears about progress; raises where the request is cancelled.

    Raises:
        ValueError: naming what cannot be used.
    """
    if isinstance(request, Segment):
        return _segment(request, warm, reporter)
    if isinstance(request, Register):
        return _register(request, warm, reporter)
    if isinstance(request, Propagate):
        return _propagate(request, warm, reporter)
    return _suggest(request, warm, reporter)


def _segment(request: Segment, warm: WarmStudy, reporter: Reporter) -> dict[str, Any]:
    segmented, out = warm.segmented, Path(request.out)
    files: list[Path] = []
    for ref in request.images:
        reporter.progress("segment", len(files), len(request.images))
        sample = warm.sample(ref, reporter)
        path = _labels_path(out, sample)
        if path in files:
            raise StudyError(f"Two of the images would be written to {path}: ask for them one by one.")
        labels = segmented.segmenter.labels(sample, segmented.probabilities(sample))
        write_labels(labels, warm.study.structures, path)
        files.append(path)
    reporter.progress("segment", len(files), len(files))
    return {"files": files}


def _register(request: Register, warm: WarmStudy, reporter: Reporter) -> dict[str, Any]:
    segmented, registrar = warm.segmented, warm.registrar
    samples: list[Sample] = []
    labels: list[Image | None] = []
    reporter.started("segment", 2)
    for done, ref in enumerate((request.moving, request.fixed)):
        reporter.progress("segment", done, 2)
        samples.append(warm.sample(ref, reporter))
        labels.append(_given_labels(ref, samples[-1], warm))
        if labels[-1] is None:
            segmented.probabilities(samples[-1])
    reporter.progress("segment", 2, 2)
    given = Given(labels[0], labels[1], _landmarks(request.moving, request.fixed))
    output = Output(tuple(request.formats), request.field_spacing)
    out = Path(request.out)
    report = register_images(
        segmented, registrar, samples[0], samples[1], out, given=given, output=output, reporter=reporter
    )
    return {
        "folder": out,
        "files": sorted(path.name for path in out.iterdir() if path.is_file()),
        "status": report["status"],
        "reasons": report["reasons"],
        "warnings": report["warnings"],
        "dice_before": (report["mean"]["before"] or {}).get("dice"),
        "dice_after": (report["mean"]["after"] or {}).get("dice"),
    }


def _given_labels(ref: SideRef, sample: Sample, warm: WarmStudy) -> Image | None:
    if ref.labels is None:
        return None
    return read_matching_labels(Path(ref.labels), sample.image, warm.study.structures)


def _landmarks(moving: SideRef, fixed: SideRef) -> MatchedLandmarks | None:
    if moving.landmarks is None or fixed.landmarks is None:
        return None
    return read_matched_landmarks(moving.landmarks, fixed.landmarks)


def _propagate(request: Propagate, warm: WarmStudy, reporter: Reporter) -> dict[str, Any]:
    study, sample = warm.study, warm.sample(request.image, reporter)
    source = None if request.source is None else study.case(request.source)
    found = propagate(study, sample, source=source, networks=warm.networks, reporter=reporter)
    path = _labels_path(Path(request.out), sample)
    write_labels(found.labels, study.structures, path)
    return {
        "file": path,
        "source": found.source.key,
        "similarity_before": found.similarity_before,
        "similarity_after": found.similarity_after,
        "warnings": list(found.warnings),
    }


def _suggest(request: Suggest, warm: WarmStudy, reporter: Reporter) -> dict[str, Any]:
    return {"cases": [one.to_record() for one in suggest(warm.study, request.count, reporter)]}


def _labels_path(out: Path, sample: Sample) -> Path:
    return out / f"{sample.name}.seg.nrrd"
