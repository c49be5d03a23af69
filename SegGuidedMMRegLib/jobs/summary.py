"""`registrations/summary.csv`: a line a pair, to be read while pairs are registered, by anyone.

A line is added, whole, when its pair is done. The reports of the pairs are the truth: a run makes the table
from them when it begins and when it ends, so no pair has two lines, however often a run was cut off.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.documents import spreadsheet_text
from SegGuidedMMRegLib.files import append_line, atomic_path
from SegGuidedMMRegLib.pair_report_file import Report, against_of, pair_reports, report_paths
from SegGuidedMMRegLib.study import Structure, Study

SUMMARY = "summary.csv"

_MEASURES = ("dice", "hd95_mm")
_STATES = ("before", "after")


def summary_path(study: Study, part: tuple[int, int] | None = None) -> Path:
    """Of all pairs, or of those of a part while it runs."""
    name = SUMMARY if part is None else f"summary.part-{part[0]}-of-{part[1]}.csv"
    return study.folder / "registrations" / name


class SummaryFile:
    """A summary that lines are added to."""

    def __init__(self, study: Study, path: Path) -> None:
        self._study, self._path = study, path

    def begin(self, holds: Callable[[str], bool]) -> None:
        """Write the lines of pairs that are done already, of those whose folder name `holds`."""
        reports = pair_reports(self._study.folder / "registrations")
        write_table(self._path, self._study.structures, (r for r in reports if holds(r["pair"])))

    def add(self, report: Report) -> None:
        """Add the line of a pair, all of it at once."""
        append_line(self._path, _text(report, self._study.structures))


def write_summary(study: Study) -> Path:
    """Make `summary.csv` anew from all reports, sorted by folder.

    Several processes may end at the same time: whoever finds, after writing, that reports came since, writes
    again; so the last table has all.
    """
    path, registrations = summary_path(study), study.folder / "registrations"
    summary = SummaryFile(study, path)
    written = -1
    while written != (there := len(report_paths(registrations))):
        summary.begin(lambda _: True)
        written = there
    return path


def write_table(
    path: Path,
    structures: Sequence[Structure],
    reports: Iterable[Report],
    more: Mapping[str, Callable[[Report], Any]] | None = None,
) -> None:
    """Write a table of these pairs (reports that know their folder), whole or not at all.

    Args:
        path: of the table.
        structures: of the study.
        reports: a line each.
        more: columns at the end, by name.
    """
    more = more or {}
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(_line([*columns(structures), *more]) + "\n")
        for report in reports:
            values = row(report, structures) | {name: tell(report) for name, tell in more.items()}
            file.write(_line([values[name] for name in (*columns(structures), *more)]) + "\n")


def _text(report: Report, structures: Sequence[Structure]) -> str:
    values = row(report, structures)
    return _line([values[column] for column in columns(structures)])


def columns(structures: Sequence[Structure]) -> list[str]:
    """The names of the columns, in order."""
    measured = [f"{m}_{s}" for m in _MEASURES for s in _STATES]
    return [
        *("pair", "moving", "fixed", "moving_modality", "fixed_modality", "status", "reason"),
        "measured_against",
        *measured,
        *("folded_voxels", "smallest_jacobian", "inverse_error_mean_voxels", "inverse_error_max_voxels"),
        *("landmark_error_before_mm", "landmark_error_after_mm", "seconds"),
        *(f"{column}_{s.name}" for s in structures for column in measured),
        "warnings",
    ]


def row(report: Report, structures: Sequence[Structure]) -> dict[str, Any]:
    """What the table says of a pair (a report that knows its folder); None where a measure is not defined."""
    said = ("pair", "moving", "fixed", "moving_modality", "fixed_modality", "status")
    found: dict[str, Any] = {
        **{key: report[key] for key in said},
        "reason": "; ".join(report["reasons"]),
        "measured_against": against_of(report),
        "folded_voxels": _of(report["folds"], "total"),
        "smallest_jacobian": _of(report["folds"], "smallest_jacobian"),
        "inverse_error_mean_voxels": _of(report["inverse_consistency"], "mean_voxels"),
        "inverse_error_max_voxels": _of(report["inverse_consistency"], "max_voxels"),
        "landmark_error_before_mm": _of(report["landmarks"], "mean_before_mm"),
        "landmark_error_after_mm": _of(report["landmarks"], "mean_after_mm"),
        "seconds": report["seconds"],
        "warnings": "; ".join(report["warnings"]),
    }
    by_name = {entry["name"]: entry for entry in report["structures"]}
    for measure in _MEASURES:
        for state in _STATES:
            found[f"{measure}_{state}"] = _of(report["mean"].get(state), measure)
            for s in structures:
                of_structure = _of(by_name.get(s.name), state)
                found[f"{measure}_{state}_{s.name}"] = _of(of_structure, measure)
    return found


def _of(record: Any, key: str) -> Any:
    return record.get(key) if record else None


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([_cell(v) for v in values])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Numbers short, texts in one line and no formula."""
    if value is None:
        return ""
    if isinstance(value, float | int):
        return f"{value:.6g}" if isinstance(value, float) else value
    return spreadsheet_text(" ".join(str(value).split()))
