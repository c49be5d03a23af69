"""How a study stands: what is done, what is out of date and why, and who works on it. Only reads.

What is compared are digests (`freshness.py`), so nothing is said by dates alone. Registrations are compared
by the code that makes them, which needs torch; all the rest does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.digests import FileDigests
from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.files import WriteError
from SegGuidedMMRegLib.freshness import TRAINED_STAGES, Found, Freshness
from SegGuidedMMRegLib.locks import Holder, holders
from SegGuidedMMRegLib.provenance import StageRecord, differences
from SegGuidedMMRegLib.study import Case, Study, StudyError
from SegGuidedMMRegLib.training import prealign

_MADE_FROM = {
    "segmentations": ("segmentation", "adaptation"),
    "registrations": ("segmentation", "adaptation", "registration"),
    "evaluation": ("segmentations", "registrations"),
    "report": ("evaluation",),
}
_PAGE_DIGEST = re.compile(r'<meta name="segmmreg-made-from" content="([0-9a-f]+)">')
_HEAD_CHARACTERS = 4096


@dataclass(frozen=True)
class Status:
    """How a study stands.

    Attributes:
        found: of each stage and each kind of result, in the order in which they are made.
        holders: the jobs that work on it now.
        cases: number of images by modality, role and use of labels.
    """

    found: tuple[Found, ...]
    holders: tuple[Holder, ...]
    cases: Mapping[str, Mapping[str, int]]

    def record(self) -> dict[str, Any]:
        """As plain values, for programs."""
        rows = [{"name": f.name, "state": f.state, "why": f.why, **_about(f)} for f in self.found]
        return {"stages": rows, "jobs": [vars(h) for h in self.holders], "cases": self.cases}

    def lines(self) -> list[str]:
        """As a table, for people."""
        rows = [("stage", "state", "finished", "seconds", "device", "why")]
        for f in self.found:
            about = _about(f)
            finished = str(about.get("finished", "")).replace("T", " ")[:16]
            seconds, device = (str(about.get(key, "")) for key in ("seconds", "device"))
            rows.append((f.name, f.state, finished, seconds, device, f.why))
        widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
        table = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        counts = [
            f"{modality}: {', '.join(f'{count} {what}' for what, count in of.items())}"
            for modality, of in self.cases.items()
        ]
        jobs = [f"at work: {holder}" for holder in self.holders] or ["at work: nobody"]
        return [*counts, *jobs, "", *table]


def status_of(study: Study) -> Status:
    """How `study` stands on disk."""
    digests = FileDigests.of_study(study.folder)
    found = _stages(study, digests)
    if found[0].state == "up to date":
        found += [_predictions(study, digests), _registrations(study), *_pages(study, digests)]
        found = _with_waiting(found)
    at_work = holders(study.folder)
    if any(holder.kind == "train" for holder in at_work):
        found = [replace(f, state="running", why="") if f.state == "cut off" else f for f in found]
    with suppress(WriteError):  # a study that is read-only is read all the same, only slower next time
        digests.save()
    return Status(tuple(found), tuple(at_work), _counts(study))


# -- stages ---------------------------------------------------------------------------------------------
def _stages(study: Study, digests: FileDigests) -> list[Found]:
    aligned = _prealign(study, digests)
    if aligned.state != "up to date":
        return [aligned, *(_after_prealign(study, stage) for stage in TRAINED_STAGES)]
    return [aligned, *Freshness(study, digests).stages()]


def _prealign(study: Study, digests: FileDigests) -> Found:
    if study.grid is None or not study.cases:
        return Found("prealign", "missing", "there are no images")
    pending = len(prealign.pending(study, digests))
    if not study.affines_path.is_file():
        return Found("prealign", "missing", f"{pending} images to align")
    finished = datetime.fromtimestamp(study.affines_path.stat().st_mtime).astimezone()
    about: dict[str, object] = {"finished": finished.isoformat(timespec="seconds")}
    if pending:
        return Found("prealign", "out of date", f"{pending} of {len(study.cases)} images to align", about)
    return Found("prealign", "up to date", "", about)


def _after_prealign(study: Study, stage: str) -> Found:
    record = StageRecord.read(study.stage_folder(stage))
    if record is None:
        return Found(stage, "missing", "after prealign")
    return Found(stage, "waits", "prealign may change", dict(record.about))


def _with_waiting(found: Sequence[Found]) -> list[Found]:
    """What is up to date by itself waits for what it is made from, where that is not."""
    known: dict[str, Found] = {}
    for f in found:
        before = [name for name in _MADE_FROM.get(f.name, ()) if known[name].state != "up to date"]
        waits = f.state == "up to date" and before
        known[f.name] = replace(f, state="waits", why=f"{' and '.join(before)} may change") if waits else f
    return list(known.values())


# -- results --------------------------------------------------------------------------------------------
def _predictions(study: Study, digests: FileDigests) -> Found:
    wanted = Freshness(study, digests).predictions()
    there = [p for p in wanted if p.path.is_file()]
    return _counted("segmentations", len(wanted), len(there), sum(not p.is_fresh() for p in there))


def _registrations(study: Study) -> Found:
    paths = sorted((study.folder / "registrations").glob("*/report.json"))
    if not paths:
        return Found("registrations", "missing")
    from SegGuidedMMRegLib.jobs import Output
    from SegGuidedMMRegLib.jobs.cohort import pair_digests
    from SegGuidedMMRegLib.jobs.pairs import Pair, Side
    from SegGuidedMMRegLib.jobs.sides import GIVEN

    try:
        digests = pair_digests(study, Output())
    except StudyError:
        return Found("registrations", "out of date", f"{len(paths)} pairs, the networks are not trained")
    cases = {study.file_name(case): case for case in study.cases}
    reasons: Counter[str] = Counter()
    for path in paths:
        report = _json(path)
        moving, fixed = (_case(cases, report.get(which)) for which in ("moving", "fixed"))
        was = report.get("made_from")
        if not isinstance(was, dict) or moving is None or fixed is None or GIVEN & was.keys():
            continue  # what came from outside, only whoever gave it knows
        now = digests(Pair(Side.of_case(study, moving), Side.of_case(study, fixed)))
        changed = [name for name in differences(now, was) if name != "output"]
        reasons[", ".join(changed)] += bool(changed)
    stale = sum(reasons.values())
    why = "; ".join(f"{count} of {len(paths)}: {name} changed" for name, count in reasons.items() if count)
    return Found("registrations", "out of date" if stale else "up to date", why or f"{len(paths)} pairs")


def _case(cases: Mapping[str, Case], name: object) -> Case | None:
    return cases.get(name) if isinstance(name, str) else None


def _pages(study: Study, digests: FileDigests) -> list[Found]:
    """The evaluation and the report."""
    freshness = Freshness(study, digests)
    evaluation = study.folder / "evaluation.json"
    if not evaluation.is_file():
        first = Found("evaluation", "missing")
    else:
        was = _json(evaluation).get("made_from")
        changed = differences(freshness.evaluation(), was if isinstance(was, dict) else {})
        why = f"{', '.join(changed)} changed" if changed else ""
        first = Found("evaluation", "out of date" if changed else "up to date", why, _dated(evaluation))
    page = study.folder / "report.html"
    if not page.is_file():
        return [first, Found("report", "missing")]
    with page.open(encoding="utf-8", errors="replace") as file:
        made_from = _PAGE_DIGEST.search(file.read(_HEAD_CHARACTERS))
    if made_from is None or made_from[1] != freshness.page():
        return [first, Found("report", "out of date", "evaluation or stages changed", _dated(page))]
    return [first, Found("report", "up to date", "", _dated(page))]


def _counted(name: str, wanted: int, there: int, stale: int) -> Found:
    missing = wanted - there
    parts = [
        f"{stale} of {wanted} out of date" if stale else "",
        f"{missing} of {wanted} missing" if missing else "",
    ]
    why = ", ".join(part for part in parts if part)
    if there == 0:
        return Found(name, "missing", f"{wanted} to make")
    return Found(name, "out of date" if why else "up to date", why or f"{wanted} files")


def _dated(path: Path) -> dict[str, object]:
    when = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    return {"finished": when.isoformat(timespec="seconds")}


def _json(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _counts(study: Study) -> dict[str, dict[str, int]]:
    """Images by modality, with their roles and the uses of their labels."""
    found = {}
    for modality in (study.source, study.target):
        cases = study.cases_of(modality)
        roles = Counter(f"to {'validate' if c.role.value == 'validation' else c.role.value}" for c in cases)
        labels = Counter(f"labelled for {c.label_use}" for c in cases if c.label_use)
        found[modality] = {
            "images": len(cases),
            **dict(sorted(roles.items())),
            **dict(sorted(labels.items())),
        }
    return found


def _about(found: Found) -> dict[str, object]:
    known = ("finished", "seconds", "device", "version", "seed")
    return {key: value for key, value in (found.about or {}).items() if key in known}
