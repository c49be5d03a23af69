"""Rows of a list that a person wrote (CSV or YAML), and what their cells mean.

Every message names the list and the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.documents import csv_rows, parse_yaml, read_text
from SegGuidedMMRegLib.study_file import StudyError

_YES, _NO = {"true", "yes", "y", "1"}, {"false", "no", "n", "0", ""}


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a list, each with words that say where it stands, for messages.

    Args:
        path: a CSV (comma or semicolon) with names of columns in its first line, or a YAML list of mappings.

    Raises:
        FileNotFoundError: if there is no such list.
        StudyError: naming list and line, if it is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such list.")
    text = read_text(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        record = parse_yaml(text, str(path))
        rows = record.get("cases") if isinstance(record, dict) else record
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise StudyError(f"{path}: expected a list of cases, each with names and values.")
        return [(f"{path}, case {n}", row) for n, row in enumerate(rows, 1)]
    first = text.partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    header, *rest = csv_rows(text, str(path), delimiter) or [[]]
    columns = [name.strip() for name in header]
    if len(set(columns)) < len(columns):
        raise StudyError(f"{path}: a column is there twice: {', '.join(columns)[:200]}.")
    return [(f"{path}, line {n}", _row(columns, row, path, n)) for n, row in enumerate(rest, 2)]


def _row(columns: Sequence[str], values: Sequence[str], path: Path, line: int) -> dict[str, Any]:
    if len(values) > len(columns):
        raise StudyError(f"{path}, line {line}: has more values than the first line has columns.")
    return {name: value.strip() for name, value in zip_longest(columns, values, fillvalue="")}


def text_of(row: Mapping[str, Any], key: str) -> str | None:
    """The text of a cell; None where it is empty or not there."""
    value = row.get(key)
    return None if value is None or str(value).strip() == "" else str(value).strip()


def file_of(row: Mapping[str, Any], key: str, folder: Path, where: str) -> Path | None:
    """The file, relative to `folder`, that a cell names; None where it is empty.

    Raises:
        StudyError: if there is no such file.
    """
    text = text_of(row, key)
    if text is None:
        return None
    try:
        path = folder / Path(text).expanduser()
        there = path.exists()
    except (ValueError, OSError, RuntimeError) as error:  # such as a NUL in it, or no such user after ~
        raise StudyError(f"{where}: {key} {text[:80]!r} is no path ({error}).") from None
    if not there:
        raise StudyError(f"{where}: {key} {text!r} is not there (looked for {path}).")
    return path


def truth_of(value: object, column: str, where: str) -> bool | None:
    """Yes or no; None where nothing is said.

    Raises:
        StudyError: for another word.
    """
    word = None if value is None else str(value).strip().lower()
    if word is not None and word not in _YES | _NO:
        raise StudyError(f"{where}: {column} must be yes or no, got {value!r}.")
    return None if word is None else word in _YES


def spacing_of(value: object, where: str) -> tuple[float, ...] | None:
    """Numbers in mm, one or one an axis, with spaces or x between; None where nothing is said.

    Raises:
        StudyError: if they are none, or not above 0.
    """
    parts = value if isinstance(value, list) else str(value or "").replace("x", " ").split()
    try:
        numbers = tuple(float(p) for p in parts)
    except (ValueError, TypeError):
        raise StudyError(f"{where}: spacing must be numbers in mm, got {str(value)[:80]!r}.") from None
    return check_spacing(numbers, where) if numbers else None


def check_spacing(spacing_mm: Sequence[float], where: str) -> tuple[float, ...]:
    """One number, or one an axis, each above 0 mm.

    Raises:
        StudyError: naming `where` otherwise.
    """
    if len(spacing_mm) not in (1, 2, 3) or not all(0 < s < float("inf") for s in spacing_mm):
        raise StudyError(
            f"{where}: spacing must be one, two or three numbers above 0 mm, got {list(spacing_mm)}."
        )
    return tuple(float(s) for s in spacing_mm)
