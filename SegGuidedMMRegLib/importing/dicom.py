"""DICOM among the files to import: which series there are in a folder, of whom, and what they are called."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from SegGuidedMMRegLib.dicom_bytes import is_dicom
from SegGuidedMMRegLib.image_bytes import ImageError

_PATIENT_ID, _DESCRIPTION, _SERIES_UID, _POSITION = "0010|0020", "0008|103e", "0020|000e", "0020|0032"
_NOBODY = re.compile(r"(anon\w*|unknown|none|0*)", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """An image to import.

    Attributes:
        path: file, or folder of DICOM files.
        series: which series of a folder that holds several; "" for the only one.
        name: what the case may be called; "" for the name of the path.
        patient: PatientID of a DICOM image; "" where it has none, or a stand-in for one.
    """

    path: Path
    series: str = ""
    name: str = ""
    patient: str = ""


def dicom_in(folder: Path) -> list[Source]:
    """The DICOM images in a folder, and in folders in it at any depth: one a series.

    A folder of one series is called by its own name, others by patient and description. Files of a series
    that do not say where they lie, such as radiographs, are an image each.

    Raises:
        ImageError: naming the file, if one is damaged.
    """
    found: list[Source] = []
    for place, below, _ in os.walk(folder):
        below.sort()
        found += _named_by_folder(_series_in(Path(place)), Path(place), folder)
    return _numbered(found)


def series_in(folder: Path, uid: str) -> list[Source]:
    """The images of the series `uid` in a folder: one, or one a file where these do not say where they lie.

    Raises:
        ImageError: if the folder holds no such series, or a file is damaged.
    """
    from SegGuidedMMRegLib.image_files import dicom_series

    for names in dicom_series(folder):
        if _says(Path(names[0]), _SERIES_UID) == uid:
            if len(names) > 1 and not _says(Path(names[0]), _POSITION):
                return [Source(Path(name), patient=patient_of(Path(name))) for name in names]
            return [Source(folder, uid, patient=patient_of(Path(names[0])))]
    raise ImageError(f"{folder}: holds no DICOM series {uid}. Look whether its files were moved.")


def others_in(folder: Path) -> list[Path]:
    """The files in a folder, and in folders in it at any depth, that are no DICOM; hidden ones left out."""
    found = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        paths = (Path(place) / name for name in sorted(names) if not name.startswith("."))
        found += [path for path in paths if not (path.is_file() and is_dicom(path))]
    return found


def holds_slices(folder: Path) -> bool:
    """Whether files of a folder are slices of DICOM volumes, not images each.

    Raises:
        ImageError: naming the file, if one is damaged.
    """
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    if len(files) < 2 or not any(is_dicom(p) for p in files):
        return False
    from SegGuidedMMRegLib.image_files import dicom_series

    return any(len(names) > 1 and _says(Path(names[0]), _POSITION) for names in dicom_series(folder))


def patient_of(path: Path) -> str:
    """PatientID of a DICOM file; "" for other files, unreadable ones, and stand-ins such as "anonymous"."""
    try:
        patient = _says(path, _PATIENT_ID) if path.is_file() and is_dicom(path) else ""
    except (ImageError, OSError):
        return ""
    return "" if _NOBODY.fullmatch(patient) else patient


def _series_in(folder: Path) -> list[Source]:
    """The series of a folder itself."""
    from SegGuidedMMRegLib.image_files import dicom_series

    if not any(is_dicom(p) for p in folder.iterdir() if p.is_file()):
        return []
    found = []
    for names in dicom_series(folder):
        first = Path(names[0])
        patient = patient_of(first)
        if len(names) > 1 and not _says(first, _POSITION):
            found += [Source(Path(name), "", "", patient) for name in names]
            continue
        words = [word for word in (patient, _says(first, _DESCRIPTION)) if word]
        found.append(Source(folder, _says(first, _SERIES_UID), " ".join(words) or folder.name, patient))
    return found


def _named_by_folder(sources: list[Source], place: Path, top: Path) -> list[Source]:
    """The only series of a folder next to the top is called as the folder is."""
    if len(sources) == 1 and sources[0].path == place and place in (top, *top.iterdir()):
        return [replace(sources[0], series="", name="")]
    return sources


def _numbered(sources: Sequence[Source]) -> list[Source]:
    """Names that several series have get a number."""
    count = Counter(s.name.casefold() for s in sources if s.name)
    seen: Counter[str] = Counter()
    found = []
    for source in sources:
        name = source.name.casefold()
        seen[name] += 1
        is_shared = bool(name) and count[name] > 1
        found.append(replace(source, name=f"{source.name} {seen[name]}") if is_shared else source)
    return found


def _says(path: Path, tag: str) -> str:
    from SegGuidedMMRegLib.image_headers import read_header

    header = read_header(path)
    return header.GetMetaData(tag).strip(" \0") if header.HasMetaDataKey(tag) else ""
