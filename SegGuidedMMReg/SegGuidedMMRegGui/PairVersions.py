"""Versions of a registered pair: a folder each in `versions/` of the pair's folder; none is ever overwritten.

The pair's result is what lies in its folder itself. Making a version the result puts its files there, the
report last, after the present result was kept as a version too: whatever is cut off, nothing is lost.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.files import atomic_path, write_text_atomically
from SegGuidedMMRegLib.reviews import REPORT, result_of

VERSIONS, NOTE = "versions", "correction.json"
_FIRST = 1
"""Number that waits for the result that was there before any correction."""


@dataclass(frozen=True)
class Version:
    """A version of a pair.

    Attributes:
        name: its number; "" for the result where it is no version yet.
        folder: where it lies.
        result: digest of its report.
        is_result: whether it is the pair's result.
        made: when, ISO 8601.
        note: what it was made from: `from` (a digest), `edited` (fixed, moving), `points`.
        dice: mean after registration, or None.
        landmarks_mm: mean error of landmarks after registration, or None.
    """

    name: str
    folder: Path
    result: str
    is_result: bool
    made: str
    note: dict[str, Any]
    dice: float | None
    landmarks_mm: float | None


def pair_folder(folder: Path) -> Path:
    """The folder of the pair that a result belongs to, be it a version of it."""
    return folder.parent.parent if folder.parent.name == VERSIONS else folder


def versions(pair: Path) -> list[Version]:
    """All versions in the order in which they were made; the result is one of them."""
    present = result_of(pair)
    found = [_read(path, present) for path in _numbered(pair) if result_of(path)]
    if present and all(version.result != present for version in found):
        found.insert(0, _read(pair, present))
    return sorted(found, key=lambda version: version.made)


def new_version(pair: Path) -> Path:
    """The folder for the next version, from 2 on; it is there, and empty."""
    number = max((int(path.name) for path in _numbered(pair)), default=_FIRST) + 1
    while True:
        folder = pair / VERSIONS / f"{number:03}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def write_note(version: Path, made_from: str, edited: Iterable[str], points: int) -> None:
    """Keep what a version was made from."""
    record = {"from": made_from, "edited": sorted(edited), "points": points}
    write_text_atomically(version / NOTE, json.dumps(record) + "\n")


def keep_result(pair: Path) -> Path | None:
    """Keep the present result as a version, if it is none yet.

    Returns:
        the folder of that version; None if the pair has no result.
    """
    present = result_of(pair)
    if not present:
        return None
    for path in _numbered(pair):
        if result_of(path) == present:
            return path
    folder = pair / VERSIONS / f"{_FIRST:03}"
    if folder.exists():
        folder = new_version(pair)
    folder.mkdir(parents=True, exist_ok=True)
    _put(pair, folder)
    return folder


def use(version: Path) -> None:
    """Make a version the result of its pair; the present result is kept.

    Raises:
        OSError: naming the file, if one cannot be written; the version is whole then.
    """
    pair = pair_folder(version)
    if version == pair or result_of(version) == result_of(pair):
        return
    keep_result(pair)
    (pair / REPORT).unlink(missing_ok=True)
    for old in _files(pair):
        if not (version / old.name).is_file():
            old.unlink()
    _put(version, pair)


def _put(source: Path, target: Path) -> None:
    """Give `target` the files of `source`, the report last: without it a folder is no result."""
    for path in sorted(_files(source), key=lambda p: p.name == REPORT):
        with atomic_path(target / path.name) as temporary:
            shutil.copy2(path, temporary)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]


def _numbered(pair: Path) -> list[Path]:
    folder = pair / VERSIONS
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def _read(folder: Path, present: str) -> Version:
    report, note = _record(folder / REPORT), _record(folder / NOTE)
    made = datetime.fromtimestamp((folder / REPORT).stat().st_mtime).astimezone()
    result = result_of(folder)
    return Version(
        folder.name if folder.parent.name == VERSIONS else "",
        folder,
        result,
        result == present,
        made.isoformat(timespec="microseconds"),
        note,
        _number(report, "mean", "after", "dice"),
        _number(report, "landmarks", "mean_after_mm"),
    )


def _record(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(record: Any, *keys: str) -> float | None:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return float(record) if isinstance(record, int | float) else None
