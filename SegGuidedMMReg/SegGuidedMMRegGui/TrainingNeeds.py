"""What training needs before it can start, in words."""

from __future__ import annotations

from collections.abc import Sequence

from slicer.i18n import tr as _

from SegGuidedMMRegGui.JobEvents import Data


def study_needs(study: Data) -> list[str]:
    """What a study lacks, as `segmmreg info STUDY` tells it."""
    cases = [case for case in study["cases"] if case["role"] == "train"]
    needs = [
        _("an image of {modality} for training").format(modality=study[which])
        for which in ("source", "target")
        if not any(case["modality"] == study[which] for case in cases)
    ]
    if not any(case["label_use"] == "training" for case in cases):
        needs.append(_("a segmentation of {modality} for training").format(modality=study["source"]))
    return needs


def status_needs(status: Data, stages: Sequence[Data]) -> list[str]:
    """What stands against training, as `segmmreg status STUDY` tells it of these stages."""
    if who_trains(status):
        return [_("the other training to end")]
    if stages and all(stage["state"] == "up to date" for stage in stages):
        return [_("a stage that is missing or out of date; all are done")]
    return []


def who_trains(status: Data | None) -> str:
    """Who trained the study when it was looked at, and since when; "" for nobody."""
    jobs = [] if status is None else status["jobs"]
    holder = next((job for job in jobs if job["kind"] == "train"), None)
    if holder is None:
        return ""
    return _("{user} on {host} trains this study since {since}").format(
        user=holder["user"], host=holder["host"], since=holder["since"].replace("T", " ")[:16]
    )
