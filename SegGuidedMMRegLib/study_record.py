"""A study and its `study.yaml`: what must hold, and the form in the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from SegGuidedMMRegLib.cases import Case, Role, Structure
from SegGuidedMMRegLib.space import LARGEST_GRID, Grid
from SegGuidedMMRegLib.study_file import FORMAT, StudyError, check_keys, check_name, mapping, sequence

if TYPE_CHECKING:
    from SegGuidedMMRegLib.study import Study


def check_study(study: Study) -> None:
    """Raise StudyError where the parts of a study contradict each other."""
    check_name(study.name, "study")
    if study.dimension not in (2, 3):
        raise StudyError(f"the dimension must be 2 or 3, got {study.dimension!r}.")
    check_name(study.source, "source modality")
    check_name(study.target, "target modality")
    if study.source.casefold() == study.target.casefold():
        raise StudyError(f"source and target need two names, got {study.source!r} twice.")
    if not study.structures:
        raise StudyError("a study needs at least one structure.")
    _refuse_doubles([str(s.value) for s in study.structures], "structure value")
    _refuse_doubles([s.name for s in study.structures], "structure name")
    if study.grid is not None:
        _check_grid(study.grid, study.dimension)
    _refuse_doubles([c.key for c in study.cases], "case")
    for case in study.cases:
        _check_case(case, study)
    _check_subjects(study.cases)


def _refuse_doubles(names: Sequence[str], what: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if (first := seen.setdefault(name.casefold(), name)) is not name:
            raise StudyError(
                f"{what} {name!r} is there twice{'' if first == name else f' (also as {first!r})'}."
            )


def _check_grid(grid: Grid, dimension: int) -> None:
    if math.prod(grid.size) > LARGEST_GRID:
        raise StudyError(
            f"the study grid has {' x '.join(map(str, grid.size))} voxels, more than {LARGEST_GRID}. Choose "
            "a coarser one."
        )
    if grid.dimension != dimension:
        raise StudyError(f"the grid has {grid.dimension} dimensions, the study {dimension}.")
    if not grid.is_close(Grid.centred(grid.size, grid.spacing)):
        raise StudyError("the study grid must be axis-parallel and centred on 0.")


def _check_case(case: Case, study: Study) -> None:
    if case.modality not in (study.source, study.target):
        raise StudyError(
            f"case {case.key}: the modality must be {study.source} or {study.target}, got {case.modality!r}."
        )
    if case.label_use == "training" and (case.role == Role.TEST or case.modality == study.target):
        raise StudyError(
            f"case {case.key}: labels of test cases and of the target modality are for evaluation only."
        )


def _check_subjects(cases: Sequence[Case]) -> None:
    roles: dict[str, Case] = {}
    for case in cases:
        first = roles.setdefault(case.subject, case)
        if first.role != case.role:
            raise StudyError(
                f"subject {case.subject!r} is in two splits: {first.key} is {first.role.value}, "
                f"{case.key} is {case.role.value}. Give all images of a subject one role."
            )


def to_record(study: Study) -> dict[str, Any]:
    """The study as the plain values of `study.yaml`."""
    d = study.dimension
    grid = study.grid and {"size": list(study.grid.size[:d]), "spacing_mm": list(study.grid.spacing[:d])}
    return {
        "format": FORMAT,
        "name": study.name,
        "dimension": d,
        "modalities": {"source": study.source, "target": study.target},
        "structures": [_structure_record(s) for s in study.structures],
        "grid": grid,
        "cases": [{**asdict(c), "role": c.role.value} for c in study.cases],
    }


def _structure_record(structure: Structure) -> dict[str, Any]:
    record = {"value": structure.value, "name": structure.name, "color": list(structure.color)}
    return {**record, "terminology": structure.terminology} if structure.terminology else record


def parts_from_record(record: dict[str, Any]) -> dict[str, Any]:
    """What `study.yaml` holds, as the arguments of `Study` that it names.

    Raises:
        StudyError: naming the entry that is missing, unknown or of the wrong kind.
    """
    check_keys(
        record, ("format", "name", "dimension", "modalities", "structures", "cases"), ("grid",), "study"
    )
    modalities = mapping(record["modalities"], "modalities")
    check_keys(modalities, ("source", "target"), (), "modalities")
    structures = [
        _structure(entry, n) for n, entry in enumerate(sequence(record["structures"], "structures"), 1)
    ]
    cases = [_case(entry, n) for n, entry in enumerate(sequence(record["cases"], "cases"), 1)]
    grid = None if record.get("grid") is None else grid_from_record(record["grid"], record["dimension"])
    return {
        "name": record["name"],
        "dimension": record["dimension"],
        "source": modalities["source"],
        "target": modalities["target"],
        "structures": tuple(structures),
        "grid": grid,
        "cases": tuple(cases),
    }


def _structure(entry: object, number: int) -> Structure:
    where = f"structure {number}"
    entries = mapping(entry, where)
    check_keys(entries, ("value", "name", "color"), ("terminology",), where)
    color = tuple(sequence(entries["color"], f"{where}, color"))
    return Structure(entries["value"], entries["name"], color, entries.get("terminology", ""))


def _case(entry: object, number: int) -> Case:
    required = ("name", "modality", "subject", "role", "image")
    optional = ("mirrored", "label", "label_use", "landmarks", "original")
    check_keys(mapping(entry, f"case {number}"), required, optional, f"case {number}")
    return Case(**{"mirrored": False, **mapping(entry, f"case {number}")})


def grid_from_record(record: object, dimension: int) -> Grid:
    """The study grid from `size` and `spacing_mm`, a number an axis each, x first."""
    entries = mapping(record, "grid")
    check_keys(entries, ("size", "spacing_mm"), (), "grid")
    size, spacing = sequence(entries["size"], "grid size"), sequence(entries["spacing_mm"], "grid spacing_mm")
    if len(size) != dimension or len(spacing) != dimension:
        raise StudyError(
            f"grid: size and spacing_mm need {dimension} numbers each, got {size} and {spacing}."
        )
    if not all(type(n) is int for n in size) or not all(type(s) in (int, float) for s in spacing):
        raise StudyError(f"grid: size and spacing_mm must be numbers, got {size} and {spacing}.")
    missing = 3 - dimension
    try:
        return Grid.centred((*size, *[1] * missing), (*spacing, *[1.0] * missing))
    except ValueError as error:
        raise StudyError(f"grid: {error}") from None
