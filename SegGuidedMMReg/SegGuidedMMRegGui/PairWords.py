"""What a user reads of a registered pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slicer.i18n import tr as _


def number(value: Any, digits: int = 2) -> str:
    """A number for people; – where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def arrow(pair: str) -> str:
    """The name of a pair, as people read it: moving → fixed."""
    return pair.replace("--", " → ")


def needs_for_registering(study: Mapping[str, Any] | None) -> list[str]:
    """What is missing of the study before anything can be registered, in words."""
    if study is None:
        return [_("an open study (step 1)")]
    untrained = study.get("untrained", ())
    return [_("a trained study: {stages} (step 3)").format(stages=", ".join(untrained))] if untrained else []


def summary(status: str, reasons: Sequence[str], report: Mapping[str, Any]) -> str:
    """How good a registration is, a sentence a line: its state, why, overlap, folds, inverse, time."""
    lines = [
        _("Registered well.")
        if status == "ok"
        else _("Not to be trusted: {why}.").format(
            why="; ".join(reason.rstrip(".") for reason in reasons) or _("no reason is given")
        )
    ]
    lines += [warning(text) for text in report.get("warnings", ())]
    means = report.get("mean") or {}
    before, after = (_of(means.get(state), "dice") for state in ("before", "after"))
    if after is not None:
        lines.append(
            _("Overlap of the structures (Dice): {before} before, {after} after{against}.").format(
                before=number(before), after=number(after), against=_against(report.get("labels"))
            )
        )
    folds = _of(report.get("folds"), "total")
    if folds is not None:
        lines.append(_("No folds.") if folds == 0 else _("{count} folded voxels.").format(count=folds))
    mean, largest = (_of(report.get("inverse_consistency"), f"{w}_voxels") for w in ("mean", "max"))
    if mean is not None:
        lines.append(
            _("There and back misses the start by {mean} voxels, {largest} at most.").format(
                mean=number(mean, 3), largest=number(largest)
            )
        )
    for name, text in (
        ("landmarks", _("Landmarks: {a} mm apart before, {b} after.")),
        ("guiding_landmarks", _("Your landmarks: {a} mm apart before, {b} after.")),
    ):
        found = report.get(name)
        if found:
            a, b = found.get("mean_before_mm"), found.get("mean_after_mm")
            lines.append(text.format(a=number(a, 1), b=number(b, 1)))
    if report.get("seconds"):
        lines.append(_("Computed in {seconds} s.").format(seconds=number(report["seconds"], 1)))
    return "\n".join(lines)


def warning(text: str) -> str:
    """What a report warns of, as a sentence."""
    return _("Note: {warning}.").format(warning=str(text).rstrip("."))


def _against(labels: Mapping[str, str] | None) -> str:
    """By which segmentations that was measured."""
    if not labels:
        return ""
    kinds = set(labels.values())
    if kinds == {"truth"}:
        return _(", by hand-made labels")
    return _(", by given segmentations") if "given" in kinds else _(", by predictions")


def _of(record: Any, key: str) -> Any:
    return record.get(key) if record else None
