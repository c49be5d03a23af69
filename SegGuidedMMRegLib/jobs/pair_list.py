"""A CSV of pairs to register, read and written: a row a pair."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.importing.rows import file_of, read_rows, spacing_of, text_of, truth_of
from SegGuidedMMRegLib.jobs.pairs import Pair, Pairs, Side, listed
from SegGuidedMMRegLib.samples import check_modality, file_stem
from SegGuidedMMRegLib.study import Case, Study, StudyError
from SegGuidedMMRegLib.study_file import check_keys, check_name

_OF_A_SIDE = ("modality", "mirrored", "spacing", "labels", "landmarks")
_OPTIONAL = ("name", *(f"{side}_{what}" for side in ("moving", "fixed") for what in _OF_A_SIDE))
_SHOWN_PROBLEMS = 10


def pairs_from_csv(study: Study, path: Path) -> Pairs:
    """The pairs of a CSV (comma or semicolon).

    Columns: `moving` and `fixed`, each a case of the study (`case7`, `dxa/case7`) or an image file; as
    wanted `name` (of the folder in registrations/), and for either side, such as `moving_labels`:
    `labels` (a segmentation to use instead of the predicted one), `landmarks` (points that shall meet those
    of the other side, given for both or none), and for image files `modality` (the source for moving, the
    target for fixed without it), `mirrored` (yes, no), `spacing` (mm, one number or one an axis with spaces
    between). Files are relative to the CSV.

    Raises:
        FileNotFoundError: if there is no such CSV.
        StudyError: naming CSV, rows and columns of all that is wrong.
    """
    reader = _Reader(study, path.parent)
    pairs: list[Pair] = []
    problems: list[str] = []
    places: dict[str, str] = {}
    for where, row in read_rows(path):
        try:
            check_keys(row, ("moving", "fixed"), _OPTIONAL, where)
            pair = reader.pair(row, where)
            other = places.setdefault(pair.folder_name.casefold(), where)
            if other is not where:
                raise StudyError(
                    f"{where}: its result would lie in {pair.folder_name!r}, as that of {other}. Give the "
                    "pairs different names in a column `name`."
                )
            pairs.append(pair)
        except (StudyError, ValueError) as error:
            problems.append(str(error))
            if len(problems) == _SHOWN_PROBLEMS:
                problems.append("There may be more.")
                break
    if problems:
        raise StudyError("\n".join(problems))
    if not pairs:
        raise StudyError(
            f"{path}: holds no pair. Columns are moving, fixed, and as wanted {', '.join(_OPTIONAL)}."
        )
    return listed(pairs)


def pairs_to_csv(pairs: Pairs, path: Path) -> None:
    """Write a list that `pairs_from_csv` reads, wherever it lies; all columns, `name` always given."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, ("moving", "fixed", *_OPTIONAL), lineterminator="\n")
        rows.writeheader()
        for pair in pairs:
            sides = {"moving": pair.moving, "fixed": pair.fixed}
            told = {key: value for name, side in sides.items() for key, value in _told(name, side).items()}
            for name, path_of_points in zip(sides, pair.landmarks or (), strict=False):
                told[f"{name}_landmarks"] = str(path_of_points.absolute())
            rows.writerow({**told, "name": pair.folder_name})


def _told(name: str, side: Side) -> dict[str, str]:
    """What a row says of the moving or fixed image."""
    told = {name: side.key if side.path is None else str(side.path.absolute())}
    if side.labels is not None:
        told[f"{name}_labels"] = str(side.labels.absolute())
    if side.path is not None:
        told[f"{name}_modality"] = side.modality
        told[f"{name}_mirrored"] = "yes" if side.mirrored else ""
        told[f"{name}_spacing"] = " ".join(f"{mm:.17g}" for mm in side.spacing_mm)
    return told


def read_side(
    study: Study,
    text: str,
    modality: str,
    *,
    mirrored: bool = False,
    spacing_mm: tuple[float, ...] = (),
    labels: Path | None = None,
) -> Side:
    """The case, or the image file, that `text` names.

    Args:
        study: whose cases come first.
        text: name of a case, `modality/name`, or a file.
        modality: of an image file.
        mirrored: of an image file.
        spacing_mm: of an image file.
        labels: a segmentation to use instead of the predicted one.

    Raises:
        StudyError: if it is neither a case nor a file.
    """
    if any(text in (c.name, c.key) for c in study.cases):
        return Side.of_case(study, study.case(text), labels)
    side = Side(file_stem(Path(text)), modality, None, Path(text), mirrored, spacing_mm, labels)
    return _checked(study, side, text)


def _checked(study: Study, side: Side, text: str) -> Side:
    """The image file `side`, called `text` by whoever asked, if it is there."""
    if side.path is None or not side.path.exists():
        raise StudyError(
            f"{text!r} is neither a case of the study (`segmmreg info {study.folder}` lists them) nor a file."
        )
    check_modality(study, side.modality)
    return side


class _Reader:
    """Sides of rows; the same image is the same `Side`, so that it is prepared once."""

    def __init__(self, study: Study, folder: Path) -> None:
        self._study, self._folder = study, folder
        self._cases: dict[str, list[Case]] = {}
        for case in study.cases:
            for word in (case.name, case.key):
                self._cases.setdefault(word, []).append(case)
        self._sides: dict[Side, Side] = {}

    def pair(self, row: Mapping[str, Any], where: str) -> Pair:
        moving = self._side(row, "moving", self._study.source, where)
        fixed = self._side(row, "fixed", self._study.target, where)
        if (moving.case, moving.path) == (fixed.case, fixed.path):
            raise StudyError(f"{where}: moving and fixed are the same image, {moving.key}.")
        name = text_of(row, "name")
        return Pair(moving, fixed, _folder_name(name, where) if name else "", self._landmarks(row, where))

    def _landmarks(self, row: Mapping[str, Any], where: str) -> tuple[Path, Path] | None:
        columns = ("moving_landmarks", "fixed_landmarks")
        moving, fixed = (file_of(row, column, self._folder, where) for column in columns)
        if moving is not None and fixed is not None:
            return moving, fixed
        if moving is fixed:
            return None
        there, lacking = columns if fixed is None else reversed(columns)
        raise StudyError(f"{where}: {there} is given but {lacking} is not: landmarks come in pairs.")

    def _side(self, row: Mapping[str, Any], side: str, modality: str, where: str) -> Side:
        text = text_of(row, side)
        if text is None:
            raise StudyError(f"{where}: {side} is empty.")
        labels = file_of(row, f"{side}_labels", self._folder, where)
        of_file = {key: text_of(row, f"{side}_{key}") for key in ("modality", "mirrored", "spacing")}
        cases = [c for c in self._cases.get(text, ()) if of_file["modality"] in (None, c.modality)]
        if len(cases) > 1:
            raise StudyError(
                f"{where}: both modalities have a case {text!r}: say {' or '.join(c.key for c in cases)}."
            )
        if cases:
            if extra := [f"{side}_{key}" for key in ("mirrored", "spacing") if of_file[key]]:
                raise StudyError(f"{where}: {extra[0]} is for image files; {text!r} is a case of the study.")
            return self._kept(Side.of_case(self._study, cases[0], labels))
        path = self._folder / Path(text).expanduser()
        said = Side(
            file_stem(path),
            of_file["modality"] or modality,
            path=path,
            mirrored=truth_of(row.get(f"{side}_mirrored"), f"{side}_mirrored", where) or False,
            spacing_mm=spacing_of(row.get(f"{side}_spacing"), where) or (),
            labels=labels,
        )
        try:
            return self._kept(_checked(self._study, said, text))
        except StudyError as error:
            raise StudyError(f"{where}: {side}: {error}") from None

    def _kept(self, side: Side) -> Side:
        return self._sides.setdefault(side, side)


def _folder_name(name: str, where: str) -> str:
    """A name as the folders of pairs have it: `a--b`, or a single name."""
    for part in name.split("--"):
        check_name(part, where)
    return name
