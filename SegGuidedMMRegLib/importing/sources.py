"""What there is to import: images with the labels and landmarks that belong to them, from folders or from a
list.

Files belong together by name: `knee 7.png`, `knee 7.seg.nrrd`, `knee 7_label.nii.gz` and `knee
7_landmarks.csv` are one case, "knee 7". Nothing is opened here but lists and tables.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.cases import LabelUse, Role
from SegGuidedMMRegLib.dicom_bytes import is_dicom
from SegGuidedMMRegLib.image_bytes import ImageError
from SegGuidedMMRegLib.importing.dicom import Source, dicom_in, holds_slices, others_in, patient_of, series_in
from SegGuidedMMRegLib.importing.rows import file_of, read_rows, spacing_of, text_of, truth_of
from SegGuidedMMRegLib.study_file import FORBIDDEN_IN_NAMES, StudyError, check_keys, is_reserved

_IMAGE_SUFFIXES = [
    ".nii.gz",
    ".nii",
    ".seg.nrrd",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".bmp",
    ".dcm",
    ".dicom",
    ".ima",
    ".hdr",
    ".gipl",
    ".gipl.gz",
]
_HEADER_SUFFIXES = (".mhd", ".nhdr", ".hdr")
_VOXEL_ENDINGS = ("raw", "zraw", "img")
_POINT_SUFFIXES = [".mrk.json", ".json", ".fcsv", ".csv"]
_IMAGE_ENDING = re.compile(r"_0000$")
_LABEL_ENDING = re.compile(r"[-_. ](seg|segm|segmentation|labels?|labelmap|mask|gt)$", re.IGNORECASE)
_POINT_ENDING = re.compile(r"[-_. ](landmarks?|points|fiducials|f)$", re.IGNORECASE)
_NAMED = 4
_COLUMNS = (
    *("case", "subject", "role", "mirrored", "label", "label_use", "landmarks", "spacing", "original"),
    "series",
)


@dataclass(frozen=True)
class Candidate:
    """An image that may become a case; None is "not said".

    Attributes:
        image: file, or folder of DICOM files.
        modality: its modality's name.
        name: what the case will be called.
        label, landmarks: the files that belong to it.
        subject, role, mirrored, label_use: what a list or table says.
        spacing_mm: a spacing for files that know none.
        original: where the image came from, for the record; its path without it.
        series: which DICOM series of the folder; "" for the only one.
        patient: PatientID of a DICOM image, the subject if nothing else is said; "" without.
    """

    image: Path
    modality: str
    name: str
    label: Path | None = None
    landmarks: Path | None = None
    subject: str | None = None
    role: Role | None = None
    mirrored: bool | None = None
    label_use: LabelUse | None = None
    spacing_mm: tuple[float, ...] | None = None
    original: str | None = None
    series: str = ""
    patient: str = ""


@dataclass(frozen=True)
class Found:
    """Candidates, and the files that were left aside with the reason."""

    candidates: tuple[Candidate, ...]
    aside: tuple[tuple[Path, str], ...] = ()


def plain_name(path: Path, suffixes: Iterable[str] = _IMAGE_SUFFIXES) -> str:
    """The file name without its format suffix (also `.nii.gz`, `.seg.nrrd`), in composed Unicode (NFC)."""
    name = unicodedata.normalize("NFC", path.name)
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def clean_name(name: str) -> str:
    """`name` with what no file system or this study can hold replaced by `_`."""
    kept = "".join("_" if c in FORBIDDEN_IN_NAMES or not c.isprintable() else c for c in name)
    name = re.sub("-{2,}", "-", kept).strip(" .")[:119].strip(" .") or "case"
    return f"_{name}" if is_reserved(name) else name


# -- folders --------------------------------------------------------------------------------------------
def from_folders(
    modality: str, images: Sequence[Path], labels: Sequence[Path] = (), landmarks: Sequence[Path] = ()
) -> Found:
    """The images of some folders (or single files) with the labels and landmarks of the same names.

    Each series of DICOM files in a folder or its subfolders is one image. Where labels lie beside the images,
    an ending such as `_seg` or `_label` tells them apart.

    Raises:
        FileNotFoundError: for a path that does not exist.
        StudyError: if two label (or landmark) files fit one image.
    """
    sources, aside = _listed(images, _IMAGE_SUFFIXES)
    label_paths, label_aside = _files(labels, _IMAGE_SUFFIXES)
    both = {s.path.resolve() for s in sources} & {p.resolve() for p in label_paths}
    beside = {p for p in both if _LABEL_ENDING.search(plain_name(p)) or p.name.lower().endswith(".seg.nrrd")}
    sources = [s for s in sources if s.path.resolve() not in beside]
    label_paths = [p for p in label_paths if p.resolve() not in both - beside]
    point_paths, point_aside = _files(landmarks, _POINT_SUFFIXES)
    by_label = _by_name(label_paths, _IMAGE_SUFFIXES, _LABEL_ENDING)
    by_point = _by_name(point_paths, _POINT_SUFFIXES, _POINT_ENDING)
    candidates = []
    for source in sources:
        plain = source.name or plain_name(source.path)
        names = (plain, _IMAGE_ENDING.sub("", plain))
        label = next((by_label.pop(n.casefold()) for n in names if n.casefold() in by_label), None)
        points = next((by_point.pop(n.casefold()) for n in names if n.casefold() in by_point), None)
        name, series, patient = clean_name(names[1]), source.series, source.patient
        files = (source.path, modality, name, label, points)
        candidates.append(Candidate(*files, series=series, patient=patient))
    lonely = [(p, "there is no image of this name") for p in (*by_label.values(), *by_point.values())]
    return Found(tuple(candidates), (*aside, *label_aside, *point_aside, *lonely))


def labels_by_name(labels: Sequence[Path]) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Label files by the (casefolded) name of the image they belong to, and what was left aside."""
    paths, aside = _files(labels, _IMAGE_SUFFIXES)
    return _by_name(paths, _IMAGE_SUFFIXES, _LABEL_ENDING), aside


def landmarks_by_name(landmarks: Sequence[Path]) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Landmark files by the (casefolded) name of the image they belong to, and what was left aside."""
    paths, aside = _files(landmarks, _POINT_SUFFIXES)
    return _by_name(paths, _POINT_SUFFIXES, _POINT_ENDING), aside


def _files(places: Sequence[Path], suffixes: Sequence[str]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Files that belong to images: one each, so not several series of a folder."""
    found, aside = _listed(places, suffixes)
    several = [
        (s.path, "one of several DICOM series: save it as a file of its own") for s in found if s.series
    ]
    return [s.path for s in found if not s.series], [*aside, *several]


def _listed(places: Sequence[Path], suffixes: Sequence[str]) -> tuple[list[Source], list[tuple[Path, str]]]:
    found: list[Source] = []
    aside: list[tuple[Path, str]] = []
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"{place}: there is no such file or folder.")
        if place.is_file():
            found.append(Source(place, patient=patient_of(place)))
        elif holds_slices(place):
            found += dicom_in(place)
            aside += _beside_dicom(place)
        else:
            for path in sorted(p for p in place.iterdir() if not p.name.startswith(".")):
                _list(path, suffixes, found, aside)
    return found, aside


def _list(path: Path, suffixes: Sequence[str], found: list[Source], aside: list[tuple[Path, str]]) -> None:
    """Add what lies in a folder to what was found, or to what is left aside."""
    try:
        if path.is_dir():
            series = dicom_in(path)
            found += series
            aside += _beside_dicom(path) if series else []
            why = "" if series else "a folder without DICOM files; name it by itself"
        elif not path.is_file():
            why = "no file: a link to nothing, or a device"
        else:
            fits = path.name.lower().endswith(tuple(suffixes)) or is_dicom(path)
            found += [Source(path, patient=patient_of(path))] if fits else []
            why = "" if fits or _belongs_to_a_header(path) else "no known kind of file"
    except OSError as error:
        why = f"can't be opened ({error.strerror})"
    except ImageError as error:
        why = str(error)
    if why:
        aside.append((path, why))


def _belongs_to_a_header(path: Path) -> bool:
    """Whether this file holds the voxels of an image whose header lies beside it: `a.raw` of `a.mhd`."""
    name = path.name.removesuffix(".gz")
    stem, dot, ending = name.rpartition(".")
    return (
        bool(dot)
        and ending.lower() in _VOXEL_ENDINGS
        and any(path.with_name(stem + header).is_file() for header in _HEADER_SUFFIXES)
    )


def _beside_dicom(folder: Path) -> list[tuple[Path, str]]:
    """What a folder of DICOM files holds beside these, in one line."""
    others = [path.relative_to(folder).as_posix() for path in others_in(folder)]
    if not others:
        return []
    names = ", ".join(others[:_NAMED]) + (" …" if len(others) > _NAMED else "")
    count = "1 file" if len(others) == 1 else f"{len(others)} files"
    return [(folder, f"{count} beside its DICOM ({names}); put images among them into a folder of their own")]


def _by_name(paths: Sequence[Path], suffixes: Sequence[str], ending: re.Pattern[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        name = ending.sub("", plain_name(path, suffixes)).casefold()
        if name in found:
            raise StudyError(
                f"{found[name]} and {path} both belong to an image called {name!r}: keep one of them."
            )
        found[name] = path
    return found


# -- lists and tables -----------------------------------------------------------------------------------
def from_list(path: Path, modalities: Mapping[str, str]) -> Found:
    """The cases of a CSV (comma or semicolon) or YAML list: a row an image.

    Columns: `image` and `modality`, and as wanted `case`, `subject`, `role` (train, validation, test),
    `mirrored` (yes, no), `label`, `label_use` (training, evaluation), `landmarks`, `spacing` (mm, one number
    or one an axis with spaces between), `original` (where it came from, for the record), `series` (UID of the
    DICOM series that is meant, where the image is a folder of several). Paths are relative to the list.

    Args:
        path: the list.
        modalities: accepted words and the modality that each means, such as "source" → "dxa", "dxa" → "dxa".

    Raises:
        FileNotFoundError: if there is no such list.
        StudyError: naming list, row and column.
    """
    candidates = []
    for where, row in read_rows(path):
        check_keys(row, ("image", "modality"), _COLUMNS, where)
        word = str(row["modality"]).strip()
        if word not in modalities:
            raise StudyError(f"{where}: modality must be one of {', '.join(modalities)}, got {word!r}.")
        image = file_of(row, "image", path.parent, where)
        if image is None:
            raise StudyError(f"{where}: image is empty.")
        name = text_of(row, "case") or _IMAGE_ENDING.sub("", plain_name(image))
        series = text_of(row, "series")
        sources = series_in(image, series) if series else [Source(image)]
        for number, source in enumerate(sources, 1):
            candidates.append(
                Candidate(
                    source.path,
                    modalities[word],
                    clean_name(name if len(sources) == 1 else f"{name} {number}"),
                    file_of(row, "label", path.parent, where),
                    file_of(row, "landmarks", path.parent, where),
                    original=text_of(row, "original"),
                    series=source.series,
                    patient=source.patient,
                    **_said(row, where),
                )
            )
    if not candidates:
        raise StudyError(f"{path}: the list holds no row.")
    return Found(tuple(candidates))


def with_table(candidates: Sequence[Candidate], table: Path) -> tuple[Candidate, ...]:
    """The candidates with what a table says of them: subject, role, mirrored, label_use, spacing.

    The table's rows are found by the column `file` (or `image`, `case`): a file name, with or without suffix.
    Its further columns are ignored. Images that are not in the table stay as they are.

    Raises:
        StudyError: naming table, row and column; also if the table names none of the images.
    """
    from dataclasses import replace

    rows: dict[str, dict[str, Any]] = {}
    for where, row in read_rows(table):
        key = next((k for k in ("file", "image", "case") if text_of(row, k)), None)
        if key is None:
            raise StudyError(f"{where}: a column `file` with the name of the image is needed.")
        rows[plain_name(Path(text_of(row, key) or "")).casefold()] = _said(row, where)
    said = [rows.get(plain_name(c.image).casefold(), rows.get(c.name.casefold())) for c in candidates]
    if not any(said):
        raise StudyError(
            f"{table}: names none of the images, such as {[c.image.name for c in candidates[:3]]}."
        )
    return tuple(
        replace(c, **{k: v for k, v in (s or {}).items() if v is not None})
        for c, s in zip(candidates, said, strict=True)
    )


def said_of_cases(table: Path) -> dict[str, dict[str, Any]]:
    """What a CSV or YAML says of cases (subject, role, mirrored), by its column `case`.

    Raises:
        StudyError: naming table, row and column.
    """
    found: dict[str, dict[str, Any]] = {}
    for where, row in read_rows(table):
        check_keys(row, ("case",), ("subject", "role", "mirrored"), where)
        case = text_of(row, "case")
        if case is None or case in found:
            raise StudyError(f"{where}: each line needs a case of its own, got {case or 'none'}.")
        said = _said({**row, "mirrored": text_of(row, "mirrored")}, where)
        found[case] = {name: said[name] for name in ("subject", "role", "mirrored")}
    return found


def _said(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    role, use = text_of(row, "role"), text_of(row, "label_use")
    if role is not None and role not in [r.value for r in Role]:
        raise StudyError(f"{where}: role must be train, validation or test, got {role!r}.")
    if use not in (None, "training", "evaluation"):
        raise StudyError(f"{where}: label_use must be training or evaluation, got {use!r}.")
    return {
        "subject": text_of(row, "subject"),
        "role": None if role is None else Role(role),
        "mirrored": truth_of(row.get("mirrored"), "mirrored", where),
        "label_use": use,
        "spacing_mm": spacing_of(row.get("spacing"), where),
    }
