"""Slicer's DICOM database: its series of images, and where their files lie, asked for a little at a time."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from SegGuidedMMRegGui.Steps import Progress, Steps, beside

_NO_IMAGES = {"DOC", "KO", "PLAN", "PR", "REG", "RTPLAN", "RTRECORD", "RTSTRUCT", "SEG", "SR"}
"""Values of the element Modality that stand for other things than images."""
_COPIED_AT_ONCE = 20
_COLUMNS = ("image", "modality", "case", "series", "original")


@dataclass(frozen=True)
class Series:
    """A series of the database, by its SeriesInstanceUID, with what the database says of it."""

    uid: str
    patient: str
    description: str
    kind: str
    study: str
    date: str

    @property
    def name(self) -> str:
        """What its case may be called, as of folders of DICOM files."""
        return " ".join(filter(None, (self.patient, self.description))) or self.kind or _("series")


def database() -> Any:
    """The database, or None where none is open."""
    found = getattr(slicer, "dicomDatabase", None)
    return found if found is not None and found.isOpen else None


def listing(source: Any) -> Steps[list[Series]]:
    """All series of images, patient by patient."""
    found: list[Series] = []
    patients = source.patients()
    for number, patient in enumerate(patients):
        identity = source.fieldForPatient("PatientID", patient)
        for study in source.studiesForPatient(patient):
            what = source.fieldForStudy("StudyDescription", study)
            date = source.fieldForStudy("StudyDate", study)
            for uid in source.seriesForStudy(study):
                kind = source.fieldForSeries("Modality", uid)
                description = source.fieldForSeries("SeriesDescription", uid)
                if kind not in _NO_IMAGES:
                    found.append(Series(uid, identity, description, kind, what, date))
                yield Progress(_("patients"), number, len(patients))
    return found


def listing_files(source: Any, chosen: Sequence[tuple[Series, str]], path: Path) -> Steps[Path]:
    """Write the list of these series and their modalities for `segmmreg new --list`.

    The files of a series that lie in several folders are gathered beside the list.

    Raises:
        ValueError: naming a series whose files are gone.
    """
    names = _numbered(series.name for series, _modality in chosen)
    rows = []
    for number, ((series, modality), name) in enumerate(zip(chosen, names, strict=True)):
        files = [Path(file) for file in source.filesForSeries(series.uid) if file]  # "" of one on a server
        if not files or not files[0].is_file():
            raise ValueError(
                _(
                    "The files of the series {name} are gone. Load it with Slicer's module DICOM, and tick "
                    "the volume instead."
                ).format(name=series.name)
            )
        folder, original = files[0].parent, ""
        if any(file.parent != folder for file in files):
            folder, original = path.parent / str(number), str(folder)
            yield from _gathering(files, folder, series.name)
        rows.append((str(folder), modality, name, series.uid, original))
        yield Progress(series.name, number, len(chosen))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([_COLUMNS, *rows])
    return path


def _gathering(files: Sequence[Path], folder: Path, what: str) -> Steps[None]:
    """Copies of the files in one folder. No links: Windows removes none of a read-only file, as CDs have."""
    folder.mkdir()
    for first in range(0, len(files), _COPIED_AT_ONCE):
        yield from beside(partial(_copy, files[first : first + _COPIED_AT_ONCE], folder, first))
        yield Progress(what, first, len(files))


def _copy(files: Sequence[Path], folder: Path, first: int) -> None:
    for number, file in enumerate(files, first):
        shutil.copyfile(file, folder / f"{number:06d}.dcm")


def _numbered(names: Iterable[str]) -> list[str]:
    """The same, with a number where a name comes again."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen[name.casefold()] = seen.get(name.casefold(), 0) + 1
        found.append(name if count == 1 else f"{name} {count}")
    return found
