"""A study's report: one self-contained HTML page for the clinician who has to trust it or not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SegGuidedMMRegLib.digests import FileDigests
from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.evaluation import (
    CSV_NAME,
    JSON_NAME,
    PLAIN,
    SEEN,
    WITH,
    WITHOUT,
    Evaluation,
    evaluate,
    predictions_of,
)
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.freshness import Freshness
from SegGuidedMMRegLib.origin import origin
from SegGuidedMMRegLib.pair_report import MAX_LIMIT_VOXELS, MEAN_LIMIT_VOXELS, mean_or_none
from SegGuidedMMRegLib.pair_report_file import Report, read_pair_report
from SegGuidedMMRegLib.report import charts
from SegGuidedMMRegLib.report.figures import (
    PairEntry,
    Strip,
    drawn_strip,
    pair_entry,
    prediction_strip,
    sample_strip,
    worst_median_best,
)
from SegGuidedMMRegLib.report.page import page_template
from SegGuidedMMRegLib.study import Role

if TYPE_CHECKING:
    from SegGuidedMMRegLib.study import Case, Study

PAGE_NAME = "report.html"
_SHOWN_CASES_EACH = 2
_SHOWN_PAIRS_EACH = 3
_CURVES_A_RUN = 4
_MOST_ROWS, _MOST_LINES = 200, 50
"""Of tables and lists on the page, so that a browser opens it however many cases and pairs there are."""


def write_report(
    study: Study, reporter: Reporter | None = None, evaluation: Evaluation | None = None
) -> Path:
    """Write `report.html` into the study folder.

    Args:
        study: to report on; what is not there yet is left out of the page.
        reporter: hears about progress.
        evaluation: of this study as it stands; made now if not given.

    Returns:
        The path of the page.
    """
    reporter = reporter or Reporter()
    evaluation = evaluation or evaluate(study, reporter)
    reports = sorted(evaluation.pairs, key=_badness)
    chosen = worst_median_best(reports, _pair_score, _SHOWN_PAIRS_EACH)
    predicted = [case for case in study.cases if predictions_of(study, case)]
    shown = {m: _chosen_cases(evaluation, m, predicted) for m in (study.target, study.source)}
    total = len(chosen) + sum(len(cases) for cases in shown.values())
    reporter.started("report", total)
    done = 0
    galleries: dict[str, list[Strip]] = {}
    for modality, cases in shown.items():
        galleries[modality] = []
        for case in cases:
            galleries[modality].append(prediction_strip(study, case, _dice_by_state(evaluation, case)))
            done += 1
            reporter.progress("report", done, total)
    pairs = []
    for report in chosen:
        folder = study.folder / "registrations" / report["pair"]
        pairs.append(pair_entry(study, read_pair_report(folder), folder, study.folder))
        done += 1
        reporter.progress("report", done, total)
    page = _render(study, evaluation, reports, pairs, galleries)
    path = study.folder / PAGE_NAME
    write_text_atomically(path, page)
    reporter.result("report", page=PAGE_NAME, megabytes=round(path.stat().st_size / 1e6, 2))
    return path


# -- what is shown ------------------------------------------------------------------------------------------
def _pair_score(report: Report) -> float | None:
    if report["status"] != "ok" or not report["mean"]["after"]:
        return None
    return report["mean"]["after"]["dice"]


def _badness(report: Report) -> float:
    """Failed pairs first, then by Dice."""
    score = _pair_score(report)
    return -1.0 if score is None else score


def _chosen_cases(evaluation: Evaluation, modality: str, predicted: Sequence[Case]) -> list[Case]:
    """Test cases before others, those with a truth before those without; worst, middle and best of them."""
    candidates = [case for case in predicted if case.modality == modality]
    tested = [case for case in candidates if case.role == Role.TEST] or candidates
    with_truth = [case for case in tested if case.label is not None] or tested

    def score(case: Case) -> float | None:
        found = _dice_by_state(evaluation, case)
        return found.get(WITH, next(iter(found.values()), None))

    return worst_median_best(with_truth, score, _SHOWN_CASES_EACH)


def _dice_by_state(evaluation: Evaluation, case: Case) -> dict[str, float | None]:
    rows = [
        row
        for row in evaluation.rows
        if (row.kind, row.case, row.modality, row.measure)
        == ("segmentation", case.name, case.modality, "dice")
    ]
    return {
        state: mean_or_none(r.value for r in rows if r.state == state) for state in {r.state for r in rows}
    }


# -- the page -----------------------------------------------------------------------------------------------
def _render(
    study: Study,
    evaluation: Evaluation,
    reports: Sequence[Report],
    pairs: Sequence[PairEntry],
    galleries: dict[str, list[Strip]],
) -> str:
    adaptation = _record(study.stage_folder("adaptation") / "adaptation.json")
    return page_template("report.html").render(
        study=study,
        summary=evaluation.summary,
        headline=evaluation.summary["headline"],
        roles=_roles(study),
        states=(WITHOUT, PLAIN, WITH),
        groups=(Role.TEST.value, Role.VALIDATION.value, Role.TRAIN.value, SEEN),
        galleries=galleries,
        reports=reports,
        pairs=pairs,
        failures=[r for r in reports if r["status"] != "ok"],
        most_rows=_MOST_ROWS,
        most_lines=_MOST_LINES,
        adaptation=adaptation,
        curves=_curves(study),
        samples=_samples(study),
        draw=charts.draw,
        limits=(MEAN_LIMIT_VOXELS, MAX_LIMIT_VOXELS),
        stages=_stages(study),
        versions=_versions(study),
        made_from=Freshness(study, FileDigests.of_study(study.folder)).page(),
        names={"csv": CSV_NAME, "json": JSON_NAME},
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def _versions(study: Study) -> dict[str, str]:
    made = origin(study.config)
    found = {"SegGuidedMMReg": made["version"], "Python": made["python"], "torch": made["torch"] or "unknown"}
    if made["git"]:
        found["Sources"] = made["git"]["commit"] + (", changed since" if made["git"]["changed"] else "")
    return {**found, "System": made["system"], "Digest of all settings": made["settings"]}


def _roles(study: Study) -> list[dict[str, Any]]:
    """Images, and labels by use, of each modality and role."""
    rows = []
    for modality in (study.source, study.target):
        for role in Role:
            cases = study.cases_of(modality, role)
            if cases:
                rows.append(
                    {
                        "modality": modality,
                        "role": role.value,
                        "images": len(cases),
                        "subjects": len({case.subject for case in cases}),
                        "training_labels": sum(case.label_use == "training" for case in cases),
                        "evaluation_labels": sum(case.label_use == "evaluation" for case in cases),
                        "landmarks": sum(case.landmarks is not None for case in cases),
                        "mirrored": sum(case.mirrored for case in cases),
                    }
                )
    return rows


def _curves(study: Study) -> dict[str, list[charts.Curve]]:
    """The first metrics of every training run under `models/`, by the run's place there."""
    models = study.folder / "models"
    found = {}
    for path in sorted(models.rglob("metrics.jsonl"), key=lambda p: p.stat().st_mtime):
        run = path.parent.relative_to(models).as_posix()
        curves = charts.read_curves(path, run)
        validation = [c for c in curves if c.metric == "validation"]
        others = [c for c in curves if c.metric != "validation"]
        if curves:
            found[run] = [*others[: _CURVES_A_RUN - len(validation)], *validation]
    return found


def _samples(study: Study) -> list[Strip]:
    source, target = study.source, study.target
    asked = (
        (
            "augmentation",
            f"Augmented {source} samples",
            "Hand-segmented images, warped with their labels to the shapes of other images, to learn from.",
        ),
        (
            "adaptation",
            f"{source} samples made to look like {target}",
            f"The adapted network learned {target} from such images; their labels are known.",
        ),
    )
    aligned = drawn_strip(
        study,
        "prealign",
        "Pre-alignment",
        "Means of some images of each modality: sharp where the images lie on each other.",
    )
    strips = [aligned, *(sample_strip(study, *words) for words in asked)]
    return [strip for strip in strips if strip is not None]


def _stages(study: Study) -> list[dict[str, Any]]:
    """What each stage noted when it ended: seconds, versions, seed, device."""
    found = []
    for path in sorted((study.folder / "models").glob("*/stage.json"), key=lambda p: p.stat().st_mtime):
        record = _record(path) or {}
        found.append({"name": path.parent.name, **{k: v for k, v in record.items() if k != "made_from"}})
    return found


def _record(path: Path) -> dict[str, Any] | None:
    """A JSON object of a stage; `None` where there is none or it is damaged."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
