"""Images, labels and landmarks into a study: read, checked, copied, and accounted for.

A file that can't be used leaves its whole case out, with the reason; what contradicts the study as such (two
cases of one name, a subject in two splits, images of two dimensions) stops the import, and nothing is left
behind. What became of each file is kept in `import.csv` of the study.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from SegGuidedMMRegLib.cases import Case, LabelUse, Role, Structure
from SegGuidedMMRegLib.documents import read_text, spreadsheet_text
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import put_in_place, write_text_atomically
from SegGuidedMMRegLib.importing.labels import find_structures
from SegGuidedMMRegLib.importing.sources import Candidate, clean_name, plain_name
from SegGuidedMMRegLib.importing.splits import SplitRules, SubjectImage, split
from SegGuidedMMRegLib.importing.store import (
    UNFINISHED,
    Entry,
    Progress,
    Stored,
    store_all,
    store_labels,
    store_landmarks,
    undo_unfinished,
)
from SegGuidedMMRegLib.locks import LOCKS, working_on
from SegGuidedMMRegLib.study import Study, StudyError, check_new_folder
from SegGuidedMMRegLib.study_grid import grid_from, longest_axis

if TYPE_CHECKING:
    from SegGuidedMMRegLib.config import Config

_LOG_COLUMNS = ("when", "outcome", "file", "case", "reason")
_TO_REPLACE = {"label": "`segmmreg label` replaces it", "landmarks": "replace the file in the study"}


@dataclass(frozen=True)
class ImportRules:
    """How files become cases.

    Attributes:
        splits: how subjects get their roles.
        subject_pattern: regular expression, searched in the file name without suffix; its group (`subject`,
        else the
            first, else the whole match) is the subject. None: the name of the case is its subject.
        mirrored_pattern: regular expression; images whose name it fits are mirrored.
        spacing_mm: for files that know none; empty: 1 mm is assumed, and said.
        dimension: 2 or 3; images of the other are left out. None: all must have the same.
    """

    splits: SplitRules = field(default_factory=SplitRules)
    subject_pattern: str | None = None
    mirrored_pattern: str | None = None
    spacing_mm: tuple[float, ...] = ()
    dimension: int | None = None


@dataclass(frozen=True)
class ImportReport:
    """What became of all files."""

    entries: tuple[Entry, ...] = ()

    def lines(self) -> list[str]:
        """For people: how many came in, and what did not with its reason."""
        imported = [e for e in self.entries if e.outcome == "imported"]
        skipped = [e for e in self.entries if e.outcome == "skipped"]
        notes = [e.reason for e in self.entries if e.outcome == "note"]
        return [
            f"{len(imported)} images or labels imported, {len(skipped)} files left out.",
            *("left out: " + (e.reason if e.file in e.reason else f"{e.file}: {e.reason}") for e in skipped),
            *(f"note: {n}" for n in notes),
        ]


def new_study(
    folder: Path,
    candidates: Sequence[Candidate],
    *,
    name: str,
    source: str,
    target: str,
    structures: Sequence[Structure] = (),
    rules: ImportRules | None = None,
    grid_size: Sequence[int] = (),
    grid_spacing_mm: Sequence[float] = (),
    config: Config,
    aside: Sequence[tuple[Path, str]] = (),
    reporter: Reporter | None = None,
) -> tuple[Study, ImportReport]:
    """Make a study of these images.

    Args:
        folder: of the study; must not exist, or be empty.
        candidates: the images.
        name: of the study.
        source, target: names of the modalities.
        structures: label classes; empty: as found in the label files.
        rules: how files become cases.
        grid_size, grid_spacing_mm: of the study grid, x first; empty: chosen from the images.
        config: the settings of its stages.
        aside: files that were left aside while looking for images, for the record.
        reporter: told of progress.

    Raises:
        FileExistsError: if the folder is in use.
        BusyError: if another `new` makes this study.
        ValueError: if no image can be used, or the images contradict each other; nothing is left behind.
    """
    from SegGuidedMMRegLib.config import fitted_to_dimension

    rules, reporter = rules or ImportRules(), reporter or Reporter()
    check_new_folder(folder)
    structures = tuple(structures) or find_structures([c.label for c in candidates if c.label is not None])
    Study(
        folder, name, rules.dimension or 2, source, target, structures, None, (), config
    )  # names and values fit
    building = folder.with_name(f".{folder.name}.new")
    with working_on(building, "cases"):
        try:
            _clear(building)
            progress = Progress(building, structures, rules.spacing_mm, rules.dimension)
            store_all(_prepared(candidates, (), rules), progress, reporter)
            dimension = rules.dimension or _one_dimension(progress.stored)
            _require_some(progress, candidates, source)
            longest = longest_axis(dimension, quick=config.preset == "quick")
            grid = grid_from(
                [s.grid for s in progress.stored], dimension, grid_size, grid_spacing_mm, longest
            )
            cases = _with_roles(progress.stored, (), source, rules.splits)
            config = fitted_to_dimension(config, dimension)
            study = Study(building, name, dimension, source, target, structures, grid, tuple(cases), config)
            study.save()
            report = _kept(study, progress, aside)
            (building / UNFINISHED).unlink()
            if folder.is_dir():
                folder.rmdir()
            put_in_place(building, folder)
            shutil.rmtree(folder / LOCKS)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return replace(study, folder=folder), report


def add_to_study(
    study: Study,
    candidates: Sequence[Candidate],
    *,
    rules: ImportRules | None = None,
    labels: Mapping[str, Mapping[str, Path]] | None = None,
    landmarks: Mapping[str, Mapping[str, Path]] | None = None,
    aside: Sequence[tuple[Path, str]] = (),
    reporter: Reporter | None = None,
) -> tuple[Study, ImportReport]:
    """Add images to a study, and labels or landmarks to cases that have none yet.

    Args:
        study: to be added to; its grid, structures and roles stay.
        candidates: new images.
        rules: how files become cases.
        labels: by modality and casefolded case name, label files for cases that are in the study already.
        landmarks: the same for landmark files.
        aside: files that were left aside, for the record.
        reporter: told of progress.

    Raises:
        BusyError: if another `add` works on the study.
        ValueError: if nothing can be used, or something contradicts the study, which then stays as it was.
    """
    rules, reporter = rules or ImportRules(), reporter or Reporter()
    with working_on(study.folder, "cases"):
        study = replace(study, cases=Study.open(study.folder).cases)  # another `add` may have come before
        undo_unfinished(study.folder, study.cases)
        progress = Progress(study.folder, study.structures, rules.spacing_mm, study.dimension)
        try:
            store_all(_prepared(candidates, study.cases, rules), progress, reporter)
            cases = _with_roles(progress.stored, study.cases, study.source, rules.splits)
            kept = _attached(study, study.cases, labels or {}, "label", progress)
            kept = _attached(study, kept, landmarks or {}, "landmarks", progress)
            if not any(e.outcome == "imported" for e in progress.entries):
                raise StudyError(_nothing(progress.entries))
            study = study.with_cases([*kept, *cases])
            study.save_record()
        except BaseException:
            for path in progress.written:
                path.unlink(missing_ok=True)
            (study.folder / UNFINISHED).unlink(missing_ok=True)
            raise
        report = _kept(study, progress, aside)
        (study.folder / UNFINISHED).unlink(missing_ok=True)
    return study, report


def _clear(building: Path) -> None:
    """Take away what an import that was killed has left of a study that was not there yet."""
    for path in building.iterdir():
        if path.name == LOCKS:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


# -- names and subjects ---------------------------------------------------------------------------------
def _prepared(candidates: Sequence[Candidate], cases: Sequence[Case], rules: ImportRules) -> list[Candidate]:
    """The candidates with subject and side, under names that no other case of the study has."""
    subject = _pattern(rules.subject_pattern, "subject")
    mirrored = _pattern(rules.mirrored_pattern, "mirrored")
    known = [_with_subject(c, subject, mirrored) for c in candidates]
    return _named(known, cases)


def _pattern(text: str | None, what: str) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise StudyError(f"The {what} pattern {text!r} is no regular expression: {error}.") from None


def _with_subject(
    c: Candidate, subject: re.Pattern[str] | None, mirrored: re.Pattern[str] | None
) -> Candidate:
    stem = c.name if c.series else plain_name(c.image)
    flip = c.mirrored if c.mirrored is not None else bool(mirrored and mirrored.search(stem))
    if c.subject is not None or subject is None:
        return replace(c, subject=c.subject or c.patient or c.name, mirrored=flip)
    match = subject.search(stem)
    if match is None:
        raise StudyError(
            f"{c.image}: the subject pattern {subject.pattern!r} does not fit the name {stem!r}. Change "
            "the pattern, "
            "or give the subjects in a table (--table) or list (--list)."
        )
    named = match.groupdict().get("subject")
    return replace(c, subject=named or (match.group(1) if match.groups() else match.group()), mirrored=flip)


def _named(candidates: Sequence[Candidate], cases: Sequence[Case]) -> list[Candidate]:
    """Unique names; one that both modalities have gets the modality appended."""
    taken = {c.name.casefold(): c for c in cases}
    modalities: dict[str, set[str]] = {}
    for name, modality in [(c.name, c.modality) for c in cases] + [(c.name, c.modality) for c in candidates]:
        modalities.setdefault(name.casefold(), set()).add(modality)
    named: dict[str, Candidate] = {}
    for c in candidates:
        name = f"{c.name}_{c.modality}" if len(modalities[c.name.casefold()]) > 1 else c.name
        if (there := taken.get(name.casefold())) is not None:
            raise StudyError(
                f"{c.image}: the study has a case {there.key} already (from {there.original}). To add "
                "labels to it, "
                "give the labels without the image."
            )
        if (twin := named.get(name.casefold())) is not None:
            raise StudyError(
                f"{twin.image} and {c.image} would both be the case {name!r}: rename one, or leave one out."
            )
        named[name.casefold()] = replace(c, name=name)
    return list(named.values())


def _with_roles(
    stored: Sequence[Stored], cases: Sequence[Case], source: str, rules: SplitRules
) -> list[Case]:
    """The cases with the role of their subject, and the use that it allows of their labels."""
    images = [
        SubjectImage(
            s.case.subject,
            s.case.modality == source,
            s.case.label is not None and s.candidate.label_use != "evaluation",
            s.candidate.role,
        )
        for s in stored
    ]
    given = split(images, rules, {c.subject: c.role for c in cases})
    found = []
    for n, s in enumerate(stored):
        use: LabelUse | None = "training" if n in given.training_labels else "evaluation"
        use = None if s.case.label is None else use
        found.append(replace(s.case, role=given.roles[s.case.subject], label_use=use))
        if s.candidate.label_use == "training" and use == "evaluation":
            raise StudyError(
                f"{s.candidate.image}: its labels can't be for training, since the case is of the target "
                "modality, a "
                "test case, or beyond the number of training labels."
            )
    return found


# -- checks of the whole --------------------------------------------------------------------------------
def _one_dimension(stored: Sequence[Stored]) -> int:
    count = Counter(s.grid.dimension for s in stored)
    if len(count) == 2:
        example = {s.grid.dimension: s.candidate.image for s in stored}
        raise StudyError(
            f"The images have mixed dimensions: {count[2]} are 2D (such as {example[2]}), {count[3]} are "
            "3D (such as "
            f"{example[3]}). A study holds one kind: give --dimension 2 or 3 to leave the others out."
        )
    return next(iter(count), 2)


def _require_some(progress: Progress, candidates: Sequence[Candidate], source: str) -> None:
    if not progress.stored:
        raise StudyError(_nothing(progress.entries))
    offered = any(c.modality == source and c.label is not None for c in candidates)
    if offered and not any(s.case.modality == source and s.case.label for s in progress.stored):
        raise StudyError(
            "No labelled image of the source modality can be used.\n" + _nothing(progress.entries)
        )


def _nothing(entries: Sequence[Entry], most: int = 10) -> str:
    reasons = [e.reason for e in entries if e.outcome == "skipped"]
    more = [f"... and {len(reasons) - most} more"] if len(reasons) > most else []
    return "\n".join(
        ["Nothing could be imported:" if reasons else "There is nothing to import.", *reasons[:most], *more]
    )


# -- labels and landmarks for cases that are there ------------------------------------------------------
def _attached(
    study: Study,
    cases: Sequence[Case],
    files: Mapping[str, Mapping[str, Path]],
    kind: Literal["label", "landmarks"],
    progress: Progress,
) -> list[Case]:
    by_name = {(c.modality, name): c for c in cases for name in _names_of(c)}
    changed: dict[str, Case] = {}
    for modality, name, path in [(m, n, p) for m, named in files.items() for n, p in named.items()]:
        case = by_name.get((modality, name))
        try:
            if case is None:
                raise StudyError(f"{path}: the study has no {modality} image called {name!r}.")
            if getattr(case, kind) is not None or case.key in changed:
                raise StudyError(f"{path}: the case {case.key} has {kind} already: {_TO_REPLACE[kind]}.")
            changed[case.key] = _attach(study, case, path, kind, progress)
        except (ValueError, OSError) as error:
            progress.skip(path, error)
        else:
            progress.entries.append(Entry("imported", str(path), case.key, kind))
    return [changed.get(c.key, c) for c in cases]


def _names_of(case: Case) -> set[str]:
    """What a file of `case` may be called: the case's name, or that of the image it came from."""
    return {n.casefold() for n in (case.name, clean_name(plain_name(Path(case.original))))}


def _attach(
    study: Study, case: Case, path: Path, kind: Literal["label", "landmarks"], progress: Progress
) -> Case:
    image = study.read_image(case)
    if kind == "landmarks":
        return replace(case, landmarks=store_landmarks(case, path, image.grid, progress))
    label = store_labels(case, path, image, progress)
    training = case.modality == study.source and case.role != Role.TEST
    return replace(case, label=label, label_use="training" if training else "evaluation")


# -- the record -----------------------------------------------------------------------------------------
def _kept(study: Study, progress: Progress, aside: Sequence[tuple[Path, str]]) -> ImportReport:
    """Complete the report and add it to the study's `import.csv`."""
    entries = [*progress.entries, *(Entry("skipped", str(path), "", reason) for path, reason in aside)]
    entries += [Entry("note", "", "", text) for text in _notes(study, progress)]
    path = study.folder / "import.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if path.is_file():
        text.write(read_text(path))
    else:
        writer.writerow(_LOG_COLUMNS)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    lines = ((e.outcome, e.file, e.case, e.reason) for e in entries)
    writer.writerows([now, *map(spreadsheet_text, line)] for line in lines)
    write_text_atomically(path, text.getvalue())
    return ImportReport(tuple(entries))


def _notes(study: Study, progress: Progress) -> list[str]:
    notes = []
    if assumed := sum(s.spacing_assumed for s in progress.stored):
        notes.append(
            f"{assumed} images do not say how large their pixels are: 1 mm is assumed. Give --spacing if "
            "it is another."
        )
    if by_patient := sum(s.case.subject == s.candidate.patient for s in progress.stored):
        notes.append(f"{by_patient} DICOM images have their PatientID as subject.")
    view = study.cases_of(study.source, Role.TRAIN)
    if not any(c.label_use == "training" for c in view):
        notes.append(
            f"no {study.source} image has labels for training yet: add some before `segmmreg train`."
        )
    for modality in (study.source, study.target):
        if not study.cases_of(modality, Role.TRAIN):
            notes.append(f"no {modality} image is for training yet: add some before `segmmreg train`.")
    return notes
