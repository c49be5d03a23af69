"""One case into the study folder: read, checked, written, and its files remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from SegGuidedMMRegLib.cases import Case, Role, Structure
from SegGuidedMMRegLib.documents import read_text
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import append_line
from SegGuidedMMRegLib.images import (
    Image,
    check_image,
    read_image,
    spacing_is_known,
    write_image,
    write_labels,
)
from SegGuidedMMRegLib.importing.labels import read_matching_labels
from SegGuidedMMRegLib.importing.sources import Candidate
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study_file import StudyError, resolve_inside

_STAGE = "import"
UNFINISHED = "import-unfinished.txt"
"""What an import has written so far, a path a line; only there while one is under way, or after a kill."""
_IMPORTED = ("images/", "labels/", "landmarks/")


@dataclass(frozen=True)
class Entry:
    """What became of one file: `outcome` is imported, skipped or note."""

    outcome: str
    file: str
    case: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Stored:
    """A case whose files lie in the study folder. Its role and label use are not decided yet."""

    case: Case
    grid: Grid
    candidate: Candidate
    spacing_assumed: bool


@dataclass
class Progress:
    """An import under way: where to, by which rules, and what has become of each file so far."""

    folder: Path
    structures: Sequence[Structure]
    spacing_mm: tuple[float, ...] = ()
    dimension: int | None = None
    stored: list[Stored] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    def skip(self, path: Path, error: Exception) -> None:
        """Remember that `path` was left out, and why."""
        self.entries.append(Entry("skipped", str(path), "", " ".join(str(error).split())))

    def new_path(self, relative: str) -> Path:
        """Where to write `relative`; it is taken away again if the import fails."""
        path = self.folder / relative
        if path.exists():
            raise StudyError(f"{path} exists already, though no case of the study uses it: move it away.")
        append_line(self.folder / UNFINISHED, relative)
        self.written.append(path)
        return path


def undo_unfinished(folder: Path, cases: Sequence[Case]) -> None:
    """Take away what an import that was killed has written and no case uses."""
    path = folder / UNFINISHED
    if not path.is_file():
        return
    used = {name for case in cases for name in (case.image, case.label, case.landmarks)}
    for relative in read_text(path).splitlines():
        if relative not in used and relative.startswith(_IMPORTED):
            resolve_inside(folder, relative).unlink(missing_ok=True)
    path.unlink()


def store_all(candidates: Sequence[Candidate], progress: Progress, reporter: Reporter) -> None:
    """Store each candidate, or remember why not."""
    reporter.started(_STAGE, len(candidates))
    for step, candidate in enumerate(candidates, 1):
        before = len(progress.written)
        try:
            stored = _store(candidate, progress)
        except (ValueError, OSError) as error:
            for path in progress.written[before:]:
                path.unlink(missing_ok=True)
            progress.skip(candidate.image, error)
        else:
            progress.stored.append(stored)
            progress.entries.append(Entry("imported", str(candidate.image), stored.case.key, _what(stored)))
        reporter.progress(_STAGE, step, len(candidates))


def store_labels(case: Case, path: Path, image: Image, progress: Progress) -> str:
    """Check the label map against its image and write it; the path in the study."""
    labels = read_matching_labels(path, image, progress.structures)
    relative = f"labels/{case.modality}/{case.name}.seg.nrrd"
    write_labels(labels, progress.structures, progress.new_path(relative))
    return relative


def store_landmarks(case: Case, path: Path, grid: Grid, progress: Progress) -> str:
    """Check that the points lie in the image and write them; the path in the study."""
    from SegGuidedMMRegLib.points import read_points, write_points

    points = read_points(path)
    if not len(points.points_lps_mm):
        raise StudyError(f"{path}: holds no points.")
    if not grid.padded(max(grid.size)).contains(points.points_lps_mm).any():
        raise StudyError(
            f"{path}: no point lies near the image; its coordinates are millimetres, LPS or RAS as the "
            "file must say."
        )
    relative = f"landmarks/{case.modality}/{case.name}.csv"
    write_points(points, progress.new_path(relative))
    return relative


def _store(candidate: Candidate, progress: Progress) -> Stored:
    spacing = candidate.spacing_mm or progress.spacing_mm
    image = read_image(candidate.image, spacing_mm=spacing or None, series=candidate.series)
    check_image(image, candidate.image)
    if progress.dimension not in (None, image.grid.dimension):
        raise StudyError(
            f"{candidate.image}: has {image.grid.dimension} dimensions, the study {progress.dimension}."
        )
    relative = f"images/{candidate.modality}/{candidate.name}.nrrd"
    case = Case(
        name=candidate.name,
        modality=candidate.modality,
        subject=candidate.subject or candidate.name,
        role=candidate.role or Role.TRAIN,
        mirrored=bool(candidate.mirrored),
        image=relative,
        original=candidate.original or str(candidate.image.resolve()),
    )
    label = landmarks = None
    if candidate.label is not None:
        label = store_labels(case, candidate.label, image, progress)
    if candidate.landmarks is not None:
        landmarks = store_landmarks(case, candidate.landmarks, image.grid, progress)
    write_image(image, progress.new_path(relative))
    case = replace(case, label=label, label_use="evaluation" if label else None, landmarks=landmarks)
    assumed = not spacing and not spacing_is_known(candidate.image)
    return Stored(case, image.grid, candidate, assumed)


def _what(stored: Stored) -> str:
    case = stored.case
    parts = ("image", "labels" if case.label else "", "landmarks" if case.landmarks else "")
    return " + ".join(p for p in parts if p) + (", mirrored" if case.mirrored else "")
