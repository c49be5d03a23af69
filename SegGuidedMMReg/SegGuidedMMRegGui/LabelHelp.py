"""Help from the warm worker: which case to label next, and drafts; images are pre-aligned before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.cases import Case
from SegGuidedMMRegLib.study import Study

SUGGESTED = 5
_LITTLE = 0.05


class LabelHelp:
    """Asks for one thing at a time; `done` gets the result, `failed` a message ("" if it was cancelled)."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._job: Job | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is being asked."""
        return self._job is not None and self._job.is_running

    def suggest(self, done: Callable[[Data], None], failed: Callable[[str], None]) -> None:
        """Ask which cases to label next (`suggest` of docs/worker.md)."""
        request = {"do": "suggest", "count": SUGGESTED}
        self._ask(_("Looking for the next image to label"), request, done, failed)

    def draft(
        self, case: Case, out: Path, done: Callable[[Data], None], failed: Callable[[str], None]
    ) -> None:
        """Ask for a draft of the labels of a case, into the folder `out` (`propagate`)."""
        request = {"do": "propagate", "image": {"case": case.key}, "out": str(out)}
        self._ask(_("Drafting labels of {name}").format(name=case.name), request, done, failed)

    def _ask(
        self,
        title: str,
        request: Mapping[str, Any],
        done: Callable[[Data], None],
        failed: Callable[[str], None],
    ) -> None:
        workplace, folder = self._workplace, self._workplace.folder

        def finished(end: JobEnd) -> None:
            if end.is_done and end.result is not None:
                done(end.result)
            else:
                failed("" if end.cancelled else end.message)

        def ask(end: JobEnd | None = None) -> None:
            if end is not None and not end.is_done:
                finished(end)
            elif workplace.folder != folder:
                failed("")
            else:
                self._job = workplace.worker.ask(title, request, JobListener(finished=finished))

        try:
            if workplace.bridge is not None and is_prealigned(workplace.bridge.study):
                ask()
            else:
                arguments = ("train", folder, "--stage", "prealign")
                self._job = workplace.runner.start(
                    _("Pre-aligning the images"), arguments, JobListener(finished=ask)
                )
        except RuntimeError as error:
            failed(str(error))


def is_prealigned(study: Study) -> bool:
    """Whether all images are pre-aligned, as far as their names tell."""
    try:
        known = json.loads(study.affines_path.read_text(encoding="utf-8"))["study_to_case_lps"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(known, dict) and all(case.key in known for case in study.cases)


def draft_needs(study: Study, case: Case | None) -> list[str]:
    """What a draft of the labels of a case still needs, in words."""
    if case is None:
        return [_("an open case")]
    others = [c for c in study.cases if c.label_use == "training" and c.key != case.key]
    needs = [] if others else [_("another case of {source} with labels").format(source=study.source)]
    trained = study.stage_folder("registration") / "stage.json"
    if case.modality == study.target and not trained.is_file():
        needs.append(_("a trained study (step 3), to reach images of {target}").format(target=study.target))
    return needs


def how_many(study: Data, counts: Mapping[str, int]) -> str:
    """How many labels there are; `counts` as of `CaseList`."""
    source = [c for c in study["cases"] if c["modality"] == study["source"] and c["role"] != "test"]
    told = [
        _("{labelled} of {count} images of {source} for training are labelled.").format(
            labelled=sum(case["label_use"] == "training" for case in source),
            count=len(source),
            source=study["source"],
        )
    ]
    if counts["evaluation"]:
        told.append(_("For evaluation: {count}.").format(count=counts["evaluation"]))
    if counts["draft"]:
        told.append(_("Drafts to correct: {count}.").format(count=counts["draft"]))
    return " ".join(told)


def what_more(study: Data, suggested: list[Data] | None) -> str:
    """What more labels would help."""
    source = [c for c in study["cases"] if c["modality"] == study["source"] and c["role"] != "test"]
    labelled = sum(case["label_use"] == "training" for case in source)
    if not source:
        return _("There is no image of {source} for training yet: add some in step 1.").format(
            source=study["source"]
        )
    if labelled == len(source):
        return _("No more can be labelled for training.")
    if not suggested:
        first = _("One label is the least that training needs. ") if labelled == 0 else ""
        return first + _("“Suggest the next” says what one more would help.")
    best = suggested[0]
    name, gain = best["case"].partition("/")[2], best["gain"]
    if labelled and gain < _LITTLE:
        return _(
            "More labels would help little: with {name} the images come only {gain:.0%} nearer to a labelled "
            "one."
        ).format(name=name, gain=gain)
    return _("Most helpful next: {name}, which {reason}.").format(name=name, reason=best["reason"])
