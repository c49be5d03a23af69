"""What a study achieved, in one tidy table (`evaluation.csv`) and one summary (`evaluation.json`).

Segmentations are compared with every hand-made label map that exists, registrations are read from their
`report.json`. Target test images may have been segmented twice, by the source network as it was (`without
adaptation`) and by the adapted one (`with adaptation`), so that the gain is known.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from SegGuidedMMRegLib import metrics
from SegGuidedMMRegLib.digests import FileDigests
from SegGuidedMMRegLib.documents import read_json, spreadsheet_text
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import atomic_path, write_text_atomically
from SegGuidedMMRegLib.freshness import Freshness
from SegGuidedMMRegLib.images import read_labels
from SegGuidedMMRegLib.origin import origin
from SegGuidedMMRegLib.pair_report import MEASURES, PairSide, mean_or_none, on_grid, pair_report
from SegGuidedMMRegLib.pair_report_file import (
    STATES,
    Report,
    against_of,
    failed_report,
    pair_reports,
    write_pair_report,
)
from SegGuidedMMRegLib.study import Role
from SegGuidedMMRegLib.study_file import require_inside

if TYPE_CHECKING:
    from SegGuidedMMRegLib.study import Case, Study

__all__ = [
    "Evaluation",
    "PairSide",
    "Row",
    "evaluate",
    "failed_report",
    "pair_report",
    "predictions_of",
    "read_evaluation",
    "write_pair_report",
]

CSV_NAME = "evaluation.csv"
JSON_NAME = "evaluation.json"
WITHOUT = "without adaptation"
WITH = "with adaptation"
PLAIN = "prediction"
SEEN = "seen in training"
"""Group of the cases whose labels trained the network; every other group is the role of its cases."""

_SHOWN_PROBLEMS = 20

_UNITS = {"dice": "", "hd95_mm": "mm", "assd_mm": "mm", "landmark_error_mm": "mm", "seconds": "s"}


@dataclass(frozen=True)
class Row:
    """One number: a measure of one structure in one case or pair.

    Attributes:
        kind: "segmentation" or "registration".
        case: name of the case, or `moving--fixed`.
        modality: of the case, or `moving modality--fixed modality`.
        group: role of the case or "seen in training"; status of the pair.
        state: "prediction", "with adaptation", "without adaptation"; "identity", "before", "after".
        against: what it was measured against: "truth", "prediction", "given", or both as "moving/fixed".
        structure: name, "" for measures of the whole.
        measure: "dice", "hd95_mm", "assd_mm", "folded_voxels", "landmark_error_mm", ...
        unit: "mm", "s", "voxel" or "".
        value: the number; `None` where the measure is undefined.
        reason: why it is undefined.
    """

    kind: str
    case: str
    modality: str
    group: str
    state: str
    against: str
    structure: str
    measure: str
    unit: str
    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        rows: of the segmentations. Those of the registrations are in the file alone: there may be millions.
        summary: of all rows, and what is missing and why.
        pairs: the registered pairs, as `outline` gives them.
    """

    rows: tuple[Row, ...]
    summary: dict[str, Any]
    pairs: tuple[Report, ...]


def evaluate(study: Study, reporter: Reporter | None = None) -> Evaluation:
    """Measure all predictions, collect all registrations; write `evaluation.csv` and `evaluation.json`.

    Raises:
        StudyError: if a label map holds values that are no structure of the study.
    """
    digests = FileDigests.of_study(study.folder)
    made_from = Freshness(study, digests).evaluation()
    reporter = reporter or Reporter()
    rows, missing = _all_segmentation_rows(study, reporter)
    pairs: list[Report] = []
    unreadable: list[str] = []
    with _table(study.folder / CSV_NAME) as write:
        write(rows)
        for report in pair_reports(study.folder / "registrations", unreadable):
            write(_registration_rows(report))
            pairs.append(outline(report))
    summary: dict[str, Any] = {
        "format": 1,
        "study": study.name,
        "segmentation": _segmentation_summary(study, rows),
        "registration": _registration_summary(pairs),
        "problems": [*missing, *unreadable],
        "made_from": made_from,
        "origin": origin(study.config),
    }
    summary["headline"] = _headline(study, summary)
    write_text_atomically(study.folder / JSON_NAME, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    digests.save()
    for problem in summary["problems"][:_SHOWN_PROBLEMS]:
        reporter.log(problem)
    if len(summary["problems"]) > _SHOWN_PROBLEMS:
        reporter.log(f"{len(summary['problems']) - _SHOWN_PROBLEMS} more problems are listed in {JSON_NAME}")
    reporter.result("evaluate", **summary["headline"], csv=CSV_NAME, json=JSON_NAME)
    return Evaluation(tuple(rows), summary, tuple(pairs))


def _all_segmentation_rows(study: Study, reporter: Reporter) -> tuple[list[Row], list[str]]:
    """Rows of all labelled cases, and a sentence for each that has no prediction."""
    labelled = [case for case in study.cases if case.label is not None]
    reporter.started("evaluate", len(labelled))
    rows: list[Row] = []
    missing: list[str] = []
    for n, case in enumerate(labelled, start=1):
        found = _segmentation_rows(study, case)
        rows += found
        if not found:
            missing.append(f"{case.key} has labels but no prediction yet; `segmmreg segment` makes one")
        reporter.progress("evaluate", n, len(labelled))
    return rows, missing


def outline(report: Report) -> Report:
    """A report without what it says of each structure and landmark: what the summaries of all pairs need."""
    landmarks = report["landmarks"] and {
        key: report["landmarks"][key] for key in ("mean_before_mm", "mean_after_mm")
    }
    folds = report["folds"] and {key: report["folds"][key] for key in ("total", "smallest_jacobian")}
    return {**report, "structures": bool(report["structures"]), "landmarks": landmarks, "folds": folds}


def predictions_of(study: Study, case: Case) -> dict[str, Path]:
    """The predicted label maps of a case that exist, by state (with or without adaptation)."""
    adapted = case.modality == study.target and study.config.adaptation.method != "none"
    usual = study.prediction_path(case)
    unadapted = study.folder / "predictions_without_adaptation" / case.modality / usual.name
    candidates = {WITHOUT: unadapted, WITH if adapted else PLAIN: usual}
    return {s: require_inside(study.folder, path) for s, path in candidates.items() if path.is_file()}


def group_of(case: Case) -> str:
    """The role of a case, or that its labels were seen in training."""
    return SEEN if case.label_use == "training" and case.role == Role.TRAIN else case.role.value


# -- segmentation -------------------------------------------------------------------------------------------
def _segmentation_rows(study: Study, case: Case) -> list[Row]:
    predictions = predictions_of(study, case)
    if not predictions:
        return []
    truth = study.read_evaluation_labels(case)
    rows = []
    for state, path in predictions.items():
        predicted = read_labels(path)  # on the whole image; hand-made labels may cover a part of it only
        compared = metrics.compare(
            predicted.array,
            on_grid(truth, predicted.grid).array,
            [s.value for s in study.structures],
            predicted.grid.axis_spacing,
            a_name="the prediction",
            b_name="the truth",
        )
        for structure, found in zip(study.structures, compared, strict=True):
            for measure in MEASURES:
                value = getattr(found, measure)
                reason = "" if value is not None else (found.reason or "")
                key = ("segmentation", case.name, case.modality, group_of(case), state, "truth")
                rows.append(Row(*key, structure.name, measure, _UNITS[measure], value, reason))
    return rows


def _segmentation_summary(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """modality → state → group → measures, each over cases of the mean over structures, and per structure."""
    ours = [row for row in rows if row.kind == "segmentation"]

    def of(key: Callable[[Row], str], some: Sequence[Row]) -> dict[str, list[Row]]:
        split: dict[str, list[Row]] = {}
        for row in some:
            split.setdefault(key(row), []).append(row)
        return split

    return {
        modality: {
            state: {
                group: _group_summary(study, members)
                for group, members in of(lambda r: r.group, in_state).items()
            }
            for state, in_state in of(lambda r: r.state, in_modality).items()
        }
        for modality, in_modality in of(lambda r: r.modality, ours).items()
    }


def _group_summary(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    summary: dict[str, Any] = {"cases": len({row.case for row in rows})}
    for measure in MEASURES:
        members = [row for row in rows if row.measure == measure]
        by_case: dict[str, list[float | None]] = {}
        for row in members:
            by_case.setdefault(row.case, []).append(row.value)
        summary[measure] = _spread([mean_or_none(values) for values in by_case.values()], measure)
        summary[measure]["structures"] = {
            s.name: mean_or_none(row.value for row in members if row.structure == s.name)
            for s in study.structures
        }
    return summary


def _spread(values: Iterable[float | None], measure: str) -> dict[str, Any]:
    there = [v for v in values if v is not None]
    if not there:
        return {"mean": None, "median": None, "worst": None}
    worst = min(there) if measure == "dice" else max(there)
    return {"mean": fmean(there), "median": median(there), "worst": worst}


# -- registration -------------------------------------------------------------------------------------------
def _registration_rows(report: Report) -> list[Row]:
    pair = f"{report['moving']}--{report['fixed']}"
    modality = f"{report['moving_modality']}--{report['fixed_modality']}"
    rows = []

    def add(state: str, structure: str, measure: str, value: float | None, reason: str = "") -> None:
        key = ("registration", pair, modality, report["status"], state, against_of(report))
        rows.append(Row(*key, structure, measure, _unit(measure), value, reason))

    for structure in report["structures"]:
        for state in STATES:
            measured = structure[state]
            for measure in MEASURES if measured else ():
                value = measured[measure]
                add(
                    state,
                    structure["name"],
                    measure,
                    value,
                    "" if value is not None else measured["reason"] or "",
                )
        if structure.get("covered") is not None:
            add("after", structure["name"], "covered_share", structure["covered"])
        if structure.get("folds"):
            add("after", structure["name"], "folded_voxels", structure["folds"]["folded"])
    if report["folds"]:
        add("after", "", "folded_voxels", report["folds"]["total"])
    for measure, value in (report["inverse_consistency"] or {}).items():
        add("after", "", f"inverse_consistency_{measure}", value)
    if report["landmarks"]:
        add("before", "", "landmark_error_mm", report["landmarks"]["mean_before_mm"])
        add("after", "", "landmark_error_mm", report["landmarks"]["mean_after_mm"])
    add("after", "", "seconds", report["seconds"], "; ".join(report["reasons"]))
    return rows


def _unit(measure: str) -> str:
    if measure.endswith(("_voxels", "_voxel")):
        return "voxel"
    return "mm" if measure.endswith("_mm") else _UNITS.get(measure, "")


def _registration_summary(reports: Sequence[Report]) -> dict[str, Any]:
    """Over all pairs; overlaps over those measured against truth, if there are any, else over all."""
    true_pairs = [r for r in reports if against_of(r) == "truth"]
    measured = true_pairs or [r for r in reports if r["structures"]]
    against = {against_of(r) for r in measured}
    states = {}
    for state in STATES:
        found = [r["mean"][state] for r in measured if r["mean"].get(state)]
        states[state] = {m: _spread([f[m] for f in found], m) for m in MEASURES} if found else None
    with_folds = [r for r in reports if r["folds"]]
    consistent = [r["inverse_consistency"] for r in reports if r["inverse_consistency"]]
    landmarks = [r["landmarks"] for r in reports if r["landmarks"]]
    return {
        "pairs": len(reports),
        "failed": sum(r["status"] != "ok" for r in reports),
        "measured_against": (against.pop() if len(against) == 1 else "mixed") if against else None,
        "measured_pairs": len(measured),
        **states,
        "folded_voxels": sum(r["folds"]["total"] for r in with_folds),
        "pairs_with_folds": sum(r["folds"]["total"] > 0 for r in with_folds),
        "inverse_consistency": {
            "mean_voxels": mean_or_none(c["mean_voxels"] for c in consistent),
            "max_voxels": max(
                (c["max_voxels"] for c in consistent if c["max_voxels"] is not None), default=None
            ),
        },
        "landmarks": {
            "pairs": len(landmarks),
            "mean_before_mm": mean_or_none(m["mean_before_mm"] for m in landmarks),
            "mean_after_mm": mean_or_none(m["mean_after_mm"] for m in landmarks),
        },
        "median_seconds": median(r["seconds"] for r in reports) if reports else None,
    }


# -- the few numbers that matter ----------------------------------------------------------------------------
def _headline(study: Study, summary: dict[str, Any]) -> dict[str, Any]:
    target = summary["segmentation"].get(study.target, {})
    source = summary["segmentation"].get(study.source, {})
    pairs = summary["registration"]

    def test_dice(states: dict[str, Any], *names: str) -> float | None:
        for name in names:
            if Role.TEST.value in states.get(name, {}):
                return states[name][Role.TEST.value]["dice"]["mean"]
        return None

    return {
        "source_dice": test_dice(source, PLAIN),
        "target_dice_without_adaptation": test_dice(target, WITHOUT, PLAIN),
        "target_dice_with_adaptation": test_dice(target, WITH),
        "registration_dice_before": pairs["before"] and pairs["before"]["dice"]["mean"],
        "registration_dice_after": pairs["after"] and pairs["after"]["dice"]["mean"],
        "measured_against": pairs["measured_against"],
        "pairs": pairs["pairs"],
        "failed_pairs": pairs["failed"],
        "folded_voxels": pairs["folded_voxels"],
        "landmark_error_before_mm": pairs["landmarks"]["mean_before_mm"],
        "landmark_error_after_mm": pairs["landmarks"]["mean_after_mm"],
    }


@contextmanager
def _table(path: Path) -> Iterator[Callable[[Iterable[Row]], None]]:
    """A CSV that takes rows as they come, and is there, whole, when the block ends."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])

        def write(rows: Iterable[Row]) -> None:
            writer.writerows([_cell(entry) for entry in astuple(row)] for row in rows)

        yield write


def _cell(entry: object) -> object:
    if entry is None:
        return ""
    return spreadsheet_text(entry) if isinstance(entry, str) else entry


def read_evaluation(study: Study) -> dict[str, Any] | None:
    """The summary in `evaluation.json`; `None` if the study has not been evaluated."""
    path = study.folder / JSON_NAME
    if not path.is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path}: is no evaluation; `segmmreg evaluate {study.folder}` makes it anew.")
    return record
