"""What the user reads of an export: the plan, its files, the result (as `segmmreg export` tells them)."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

from SegGuidedMMRegGui.JobEvents import Data

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_NAMED = 3


def of_plan(plan: Data) -> str:
    """What would be written, what is in the way, what is missing."""
    existing, more = sum(file["exists"] for file in plan["files"]), len(plan["missing"]) - _NAMED
    sentences = [
        _("Files: {files}, of pairs: {pairs}, at most {size} ({free} are free).").format(
            files=len(plan["files"]),
            pairs=len(plan["pairs"]),
            size=size_of(plan["bytes"]),
            free=size_of(plan["free_bytes"]),
        )
    ]
    if plan["bytes"] > plan["free_bytes"]:
        sentences.append(_("That may not fit: choose a coarser grid, fewer files or another disk."))
    if existing:
        sentences.append(_("Files that exist: {count}.").format(count=existing))
    if plan["missing"]:
        sentences.append("; ".join(plan["missing"][:_NAMED]) + (f" … (+{more})" if more > 0 else "") + ".")
    return " ".join(sentences)


def of_result(found: Data, out: str) -> str:
    """What was written where."""
    sentences = [
        _("Written to {folder}. Files: {files}, of pairs: {pairs}; older files replaced: {replaced}.").format(
            folder=out, files=found["files"], pairs=len(found["folders"]), replaced=found["replaced"]
        )
    ]
    if found["left_out"]:
        sentences.append(_("Left out: {names}.").format(names=", ".join(found["left_out"])))
    return " ".join(sentences)


def of_file(file: Data, out: str) -> tuple[str, str, str]:
    """The row of a planned file: its place in `out`, its size, whether it exists."""
    path = Path(file["path"])
    inside = path.relative_to(out) if path.is_relative_to(out) else path
    size = "–" if file["bytes"] is None else size_of(file["bytes"])
    return inside.as_posix(), size, _("exists") if file["exists"] else _("new")


def size_of(count: float) -> str:
    """A number of bytes, short."""
    unit, name = next((each for each in _UNITS if count >= each[0]), _UNITS[-1])
    return f"{count / unit:.{0 if count / unit >= 100 else 1}f} {name}"
