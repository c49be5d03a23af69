"""What is written of a registered pair: a folder that appears whole, or changes file by file, report last."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from SegGuidedMMRegLib.files import put_in_place
from SegGuidedMMRegLib.images import Image, write_image, write_labels
from SegGuidedMMRegLib.origin import origin
from SegGuidedMMRegLib.pair_report import PairSide, pair_report
from SegGuidedMMRegLib.pair_report_file import REPORT_NAME, Report, failed_report, write_pair_report
from SegGuidedMMRegLib.points import MatchedLandmarks
from SegGuidedMMRegLib.sampling import value_outside
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.transform_files import write_transform

if TYPE_CHECKING:
    from SegGuidedMMRegLib.registrar import Registration

TRANSFORMS, IMAGE, LABELS = "transforms", "image", "labels"
_WARPED_IMAGE, _WARPED_LABELS = "warped_image.nrrd", "warped_labels.seg.nrrd"
_SUFFIXES = (".h5", ".tfm", ".nrrd", ".nii.gz", ".mha")
_UNFINISHED = ".unfinished--"
_ABANDONED_S = 24 * 3600.0
_CAN_ASK = os.name == "posix"
"""Whether a process can be asked if it lives: on Windows `os.kill(…, 0)` is Ctrl-C."""


@dataclass(frozen=True)
class Output:
    """What is written of a pair beside `report.json`.

    Attributes:
        formats: suffixes of the transform files beside `.h5`, such as ".nrrd" or ".nii.gz".
        spacing_mm: of the fields in the files; None for that of the images.
        files: which of "transforms", "image" (the moving one, warped) and "labels" (its labels, warped).
    """

    formats: tuple[str, ...] = ()
    spacing_mm: float | None = None
    files: tuple[str, ...] = (TRANSFORMS, IMAGE, LABELS)


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


def write_pair(
    study: Study,
    folder: Path,
    found: Registration,
    moving: PairSide,
    fixed: PairSide,
    *,
    output: Output,
    seconds: float,
    given: Given | None = None,
    made_from: dict[str, str] | None = None,
) -> Report:
    """Measure a registered pair and write it into `folder`.

    Args:
        study: knows the structures.
        folder: of the pair.
        found: the registration.
        moving, fixed: the two images.
        output: what is written.
        seconds: that the registration took.
        given: what a person gave for the pair.
        made_from: digests to keep in the report, so that the pair need not be done again.
    """
    given = given or Given()
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
    with _replacing(folder) as new:
        if TRANSFORMS in output.files:
            for name, transform in (("forward", found.forward), ("inverse", found.inverse)):
                for suffix in (".h5", *output.formats):
                    write_transform(transform, new / f"{name}{suffix}")
        grid, labels = fixed.image.grid, given.moving_labels or moving.truth or moving.prediction
        if IMAGE in output.files:
            outside = value_outside(moving.image)
            write_image(found.forward.warp_image(moving.image, grid, outside=outside), new / _WARPED_IMAGE)
        if LABELS in output.files and labels is not None:
            write_labels(found.forward.warp_labels(labels, grid), study.structures, new / _WARPED_LABELS)
        return _write_report(study, report, new, made_from)


def write_failure(
    study: Study,
    folder: Path,
    moving: str,
    fixed: str,
    reason: str,
    *,
    made_from: dict[str, str] | None = None,
) -> Report:
    """Write why a pair could not be registered; what an earlier run left of it goes."""
    with _replacing(folder) as new:
        return _write_report(study, failed_report(moving, fixed, reason), new, made_from)


def _write_report(study: Study, report: Report, folder: Path, made_from: dict[str, str] | None) -> Report:
    from SegGuidedMMRegLib.training.devices import device_of

    report = {**report, "origin": origin(study.config, str(device_of(study.config.training)))}
    report = report if made_from is None else {**report, "made_from": made_from}
    write_pair_report(report, folder)
    return report


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which becomes `folder` when the block ends well.

    Where `folder` exists, its files of an earlier run are removed, the report first, and those of this one
    moved there, the report last: a folder without report is none that counts. Other files in it stay.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().replace("--", "-") or "host"
    new = folder.with_name(f"{_UNFINISHED}{host}--{os.getpid()}--{uuid.uuid4().hex[:8]}")
    new.mkdir()
    try:
        yield new
        if folder.exists():
            _clear(folder)
            for path in sorted(new.iterdir(), key=lambda p: p.name == REPORT_NAME):
                put_in_place(path, folder / path.name)
        else:
            put_in_place(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove what an earlier registration of the same pair left, so that all files are of one run."""
    transforms = (f"{name}{suffix}" for name in ("forward", "inverse") for suffix in _SUFFIXES)
    for name in (REPORT_NAME, _WARPED_IMAGE, _WARPED_LABELS, *transforms):
        (folder / name).unlink(missing_ok=True)


def remove_unfinished(registrations: Path) -> None:
    """Remove what killed processes left: of this machine at once, of others, and on Windows, after a day."""
    for path in registrations.glob(f"{_UNFINISHED}*"):
        _, host, process, _ = path.name.split("--")
        with contextlib.suppress(FileNotFoundError):
            if host == socket.gethostname().replace("--", "-") and _CAN_ASK:
                abandoned = not _is_alive(int(process))
            else:
                abandoned = time.time() - path.stat().st_mtime > _ABANDONED_S
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
