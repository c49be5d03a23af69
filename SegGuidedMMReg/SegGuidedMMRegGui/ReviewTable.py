"""What `report.json` says of a pair, as rows of a table and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from SegGuidedMMRegGui.PairWords import warning

Report = Mapping[str, Any]
_NONE = "–"


def rows(report: Report) -> list[tuple[str, ...]]:
    """A row a structure: name; Dice and HD95, before and after; folds; size, before and after."""
    return [_row(structure) for structure in report.get("structures") or ()]


def sentences(report: Report, dimension: int) -> list[str]:
    """What is not of one structure: means, folds, going there and back, landmarks, what was compared."""
    found = [*_compared(report), *_folds(report), *_consistency(report)]
    kinds = (("landmarks", _("Landmarks")), ("guiding_landmarks", _("Landmarks that guided it")))
    for key, name in kinds:
        if (marks := report.get(key)) is not None:
            text = _("{name}: {before} mm before, {after} mm after (mean of {count})")
            values = {
                "before": _number(marks.get("mean_before_mm"), 2),
                "after": _number(marks.get("mean_after_mm"), 2),
            }
            found.append(text.format(name=name, count=len(marks.get("names") or ()), **values))
    unit = "mm²" if dimension == 2 else "mm³"
    found.append(_("Sizes in {unit}: moving before → after registration (fixed).").format(unit=unit))
    return [*found, *map(warning, report.get("warnings") or ())]


def _row(structure: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = structure.get("before") or {}, structure.get("after") or {}
    folds = structure.get("folds") or {}
    size = _arrow(before.get("size"), after.get("size"), 0)
    if structure.get("fixed_size") is not None:
        size = f"{size} ({_number(structure['fixed_size'], 0)})"
    return (
        str(structure.get("name", "")),
        _arrow(before.get("dice"), after.get("dice"), 3),
        _arrow(before.get("hd95_mm"), after.get("hd95_mm"), 1),
        _number(folds.get("folded"), 0),
        size,
    )


def _arrow(before: Any, after: Any, digits: int) -> str:
    return f"{_number(before, digits)} → {_number(after, digits)}"


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else _NONE


def _compared(report: Report) -> list[str]:
    labels = report.get("labels")
    if not labels:
        return [_("There are no labels to compare.")]
    words = {"truth": _("hand segmentation"), "prediction": _("prediction"), "given": _("given segmentation")}
    text = _("Compared: moving {moving}, fixed {fixed}.")
    return [text.format(**{side: words.get(labels.get(side), _NONE) for side in ("moving", "fixed")})]


def _folds(report: Report) -> list[str]:
    folds = report.get("folds")
    if not folds:
        return []
    text = _("Folded voxels: {total}; smallest Jacobian {smallest}.")
    return [text.format(total=folds.get("total"), smallest=_number(folds.get("smallest_jacobian"), 3))]


def _consistency(report: Report) -> list[str]:
    found = report.get("inverse_consistency")
    if not found:
        return []
    text = _("Forward then inverse misses the start by {mean} mm on average, {max} mm at most.")
    return [text.format(mean=_number(found.get("mean_mm"), 3), max=_number(found.get("max_mm"), 3))]
