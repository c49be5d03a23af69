"""Named points as files: CSV, and 3D Slicer's `.mrk.json` and `.fcsv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SegGuidedMMRegLib.documents import DocumentError, csv_rows, parse_json, read_text
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.space import FloatArray

_SUFFIXES = (".csv", ".mrk.json", ".fcsv")
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_RAS = np.array([-1.0, -1.0, 1.0])
_LONGEST_NUMBER, _LONGEST_NAME = 400, 1000


class PointsError(ValueError):
    """A points file that cannot be used; the message names the file, the place and the remedy."""


@dataclass(frozen=True)
class PointList:
    """Named points.

    Attributes:
        names: one a point.
        points_lps_mm: shape (n, 3).

    Raises:
        ValueError: where the counts differ or a coordinate is not finite.
    """

    names: tuple[str, ...]
    points_lps_mm: FloatArray

    def __post_init__(self) -> None:
        points = np.asarray(self.points_lps_mm, dtype=float).reshape(-1, 3)
        if len(points) != len(self.names):
            raise PointsError(f"{len(self.names)} names were given for {len(points)} points.")
        if not np.isfinite(points).all():
            raise PointsError("Points need finite coordinates.")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "points_lps_mm", points)


@dataclass(frozen=True)
class MatchedLandmarks:
    """Points of two images that belong together, by name.

    Attributes:
        names: of the points that both images have.
        moving_lps_mm: shape (n, 3), of the moving image.
        fixed_lps_mm: shape (n, 3), of the fixed image.
        unmatched: names that only one image has.
    """

    names: tuple[str, ...]
    moving_lps_mm: FloatArray
    fixed_lps_mm: FloatArray
    unmatched: tuple[str, ...] = ()


def match_points(moving: PointList, fixed: PointList) -> MatchedLandmarks:
    """The points of the same names, in the order of the fixed image; none where no name is common."""
    theirs = {name: n for n, name in enumerate(moving.names)}
    rows = [(theirs[name], n) for n, name in enumerate(fixed.names) if name in theirs]
    names = tuple(fixed.names[n] for _, n in rows)
    unmatched = tuple(name for name in (*moving.names, *fixed.names) if name not in names)
    return MatchedLandmarks(
        names,
        moving.points_lps_mm[[m for m, _ in rows]],
        fixed.points_lps_mm[[n for _, n in rows]],
        unmatched,
    )


def read_matched_landmarks(moving: Path | str, fixed: Path | str) -> MatchedLandmarks:
    """The points of two files that belong together by their names.

    Raises:
        PointsError: naming the file where a name stands twice, and both where no name is common.
    """
    lists = []
    for path in (moving, fixed):
        points = read_points(path)
        twice = sorted({name for name in points.names if points.names.count(name) > 1})
        if twice:
            raise PointsError(
                f"{path}: the name {twice[0]!r} stands there twice. Landmarks are matched by their names: "
                "give each its own."
            )
        lists.append(points)
    matched = match_points(*lists)
    if not matched.names:
        raise PointsError(
            f"{moving} and {fixed} have no landmark name in common ({_listed(lists[0].names)}; "
            f"{_listed(lists[1].names)}). Landmarks are matched by their names: give those that belong "
            "together the same one."
        )
    return matched


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "") if names else "none"


def read_points(path: Path | str) -> PointList:
    """Read points.

    * CSV: a header with `name` (or `label`), `x`, `y`, `z` in mm, and, where they are not LPS, a column
      `coordinate_system` with LPS or RAS or a line `# coordinate system: RAS` before the header;
    * `.mrk.json`: the points of all lists in the file, undefined ones left out;
    * `.fcsv`: its header says LPS or RAS.

    Raises:
        PointsError: naming the file and what is wrong there.
    """
    path = Path(path)
    if not path.exists():
        raise PointsError(f"{path}: no such file.")
    reader = {".csv": _from_csv, ".mrk.json": _from_json, ".fcsv": _from_fcsv}[_suffix(path)]
    try:
        return reader(read_text(path), path)
    except DocumentError as error:
        raise PointsError(str(error)) from None


def write_points(points: PointList, path: Path | str) -> None:
    """Write points in LPS mm, whole or not at all; the suffix names the format.

    Raises:
        PointsError: for another suffix than `.csv`, `.mrk.json`, `.fcsv`.
    """
    path = Path(path)
    writer = {".csv": _to_csv, ".mrk.json": _to_json, ".fcsv": _to_fcsv}[_suffix(path)]
    write_text_atomically(path, writer(points))


def _suffix(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise PointsError(f"{path}: points end in one of {', '.join(_SUFFIXES)}.")


# -- the common parts -----------------------------------------------------------------------------------


def _number(text: object, where: str) -> float:
    try:
        value = float(str(text)[:_LONGEST_NUMBER])
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise PointsError(f"{where}: {str(text)[:80]!r} is no coordinate in mm.")
    return value


def _to_lps(points: Sequence[Sequence[float]], system: str, where: str) -> FloatArray:
    array = np.asarray(points, dtype=float).reshape(-1, 3)
    known = system.strip().upper()
    if known in ("LPS", "1"):
        return array
    if known in ("RAS", "0"):
        return array * _RAS
    raise PointsError(f"{where}: the coordinate system must be LPS or RAS, got {system[:80]!r}.")


# -- CSV ------------------------------------------------------------------------------------------------


def _from_csv(text: str, path: Path) -> PointList:
    lines = text.splitlines()
    notes = [line.lower() for line in lines if line.startswith("#")]
    body = "\n".join(line for line in lines if line.strip() and not line.startswith("#"))
    delimiter = ";" if body.partition("\n")[0].count(";") >= 3 else ","
    header, *table = csv_rows(body, str(path), delimiter) or [[]]
    columns = {name.strip().lower(): n for n, name in enumerate(header) if name}
    name_column = columns.get("name", columns.get("label"))
    if name_column is None or not {"x", "y", "z"} <= columns.keys():
        found = ", ".join(name[:40] for name in list(columns)[:20])
        raise PointsError(f"{path}: needs the columns name, x, y, z, found {found or 'none'}.")
    stated = next((n.rsplit(":", 1)[-1] for n in notes if "coordinate" in n and ":" in n), "LPS")
    names, points = [], []
    for number, row in enumerate(table, start=1):
        where = f"{path}, point {number}"
        cells = dict(zip(range(len(header)), row, strict=False))
        names.append(cells.get(name_column, "").strip() or str(number))
        xyz = [_number(cells.get(columns[axis]), where) for axis in "xyz"]
        system = cells.get(columns.get("coordinate_system", -1)) or stated
        points.append(_to_lps([xyz], system, where)[0])
    return PointList(tuple(names), np.asarray(points))


def _to_csv(points: PointList) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "x", "y", "z", "coordinate_system"])
    for name, xyz in zip(points.names, points.points_lps_mm.tolist(), strict=True):
        writer.writerow([name, *xyz, "LPS"])
    return out.getvalue()


# -- .mrk.json ------------------------------------------------------------------------------------------


def _from_json(text: str, path: Path) -> PointList:
    record = parse_json(text, str(path))
    lists = record.get("markups") if isinstance(record, dict) else None
    if not isinstance(lists, list) or not all(_is_markup(part) for part in lists):
        raise PointsError(f"{path}: is no markups file of 3D Slicer.")
    names: list[str] = []
    points: list[FloatArray] = []
    for part in lists:
        if part.get("coordinateUnits", "mm") not in ("mm", ["mm", "mm", "mm"]):
            raise PointsError(f"{path}: coordinates must be in mm, got {part['coordinateUnits']!r}.")
        for point in part.get("controlPoints", []):
            if point.get("positionStatus", "defined") != "defined":
                continue
            names.append(str(point.get("label") or len(names) + 1)[:_LONGEST_NAME])
            points.append(_json_position(point, part, f"{path}, point {names[-1]!r}"))
    return PointList(tuple(names), np.asarray(points))


def _is_markup(part: object) -> bool:
    points = part.get("controlPoints", []) if isinstance(part, dict) else None
    return isinstance(points, list) and all(isinstance(point, dict) for point in points)


def _json_position(point: dict[str, Any], part: dict[str, Any], where: str) -> FloatArray:
    position = point.get("position")
    if not isinstance(position, list) or len(position) != 3:
        raise PointsError(f"{where}: needs a position of three coordinates, got {position!r}.")
    xyz = [_number(value, where) for value in position]
    return _to_lps([xyz], str(part.get("coordinateSystem", "LPS")), where)[0]


def _to_json(points: PointList) -> str:
    control = [
        {"id": str(number), "label": name, "position": xyz, "positionStatus": "defined"}
        for number, (name, xyz) in enumerate(
            zip(points.names, points.points_lps_mm.tolist(), strict=True), start=1
        )
    ]
    fiducial = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": control,
    }
    return json.dumps({"@schema": _SCHEMA, "markups": [fiducial]}, indent=1, ensure_ascii=False) + "\n"


# -- .fcsv ----------------------------------------------------------------------------------------------


def _from_fcsv(text: str, path: Path) -> PointList:
    system, columns = "RAS", _FCSV_COLUMNS.split(",")
    names: list[str] = []
    points: list[list[float]] = []
    for row in csv_rows(text, str(path)):
        if row[0].startswith("#"):
            key, _, value = ",".join(row)[1:].partition("=")
            if key.strip().lower() == "coordinatesystem":
                system = value
            elif key.strip().lower() == "columns":
                columns = [column.strip() for column in value.split(",")]
            continue
        where = f"{path}, point {len(names) + 1}"
        cells = dict(zip(columns, row, strict=False))
        points.append([_number(cells.get(axis), where) for axis in "xyz"])
        names.append(cells.get("label") or str(len(names) + 1))
    return PointList(tuple(names), _to_lps(points, system, str(path)))


def _to_fcsv(points: PointList) -> str:
    out = io.StringIO()
    out.write(
        f"# Markups fiducial file version = 5.0\n# CoordinateSystem = LPS\n# columns = {_FCSV_COLUMNS}\n"
    )
    writer = csv.writer(out, lineterminator="\n")
    for number, (name, xyz) in enumerate(
        zip(points.names, points.points_lps_mm.tolist(), strict=True), start=1
    ):
        writer.writerow([number, *xyz, 0, 0, 0, 1, 1, 1, 0, name, "", ""])
    return out.getvalue()
