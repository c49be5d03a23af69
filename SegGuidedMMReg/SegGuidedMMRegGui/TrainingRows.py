"""The stages of training in words: a row each, from the study's status and what a job tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slicer.i18n import tr as _

from SegGuidedMMRegGui.JobEvents import Data
from SegGuidedMMRegGui.TrainingTold import TrainingTold

_GB = 1e9


@dataclass(frozen=True)
class StageRow:
    """A stage: its name, also for people; how it stands and why; seconds it took; bytes that it needs."""

    name: str
    title: str
    state: str
    why: str
    seconds: float | None
    bytes: int | None


def rows_of(status: Data | None, stages: Sequence[str], source: str, target: str) -> list[StageRow]:
    """A row a stage; without a status nothing is known yet."""
    titles = {
        "prealign": _("Align roughly"),
        "augmentation": _("Augment {source}").format(source=source),
        "segmentation": _("Segment {source}").format(source=source),
        "adaptation": _("Adapt to {target}").format(target=target),
        "registration": _("Register"),
    }
    known = {} if status is None else {stage["name"]: stage for stage in status["stages"]}
    training = {} if status is None else {s["name"]: s for s in status["training"]["stages"]}
    found = []
    for name in stages:
        stage, memory = known.get(name, {}), training.get(name, {}).get("memory") or {}
        state, why = stage.get("state", ""), stage.get("why", "")
        seconds = stage.get("seconds")
        found.append(StageRow(name, titles.get(name, name), state, why, seconds, memory.get("bytes")))
    return found


def row_of(row: StageRow, told: TrainingTold | None) -> tuple[str, ...]:
    """The texts of a row: stage, state, time, memory."""
    needed = "" if row.bytes is None else f"{row.bytes / _GB:.1f} GB"
    took = "" if row.seconds is None else duration(row.seconds)
    if told is not None and told.stage == row.name:
        words = _("▶ running, {percent} %").format(percent=round(100 * told.share))
        return row.title, words, time_left(told).removeprefix(", "), needed
    if told is not None and row.name in told.done:
        return row.title, _("✓ done"), took, needed
    states = {
        "up to date": _("✓ done"),
        "out of date": _("↻ out of date"),
        "missing": _("○ missing"),
        "waits": _("○ waits"),
        "cut off": _("◐ begun, goes on where it was"),
        "running": _("▶ running"),
        "damaged": _("✗ damaged"),
        "": "…",
    }
    state = states.get(row.state, row.state)
    return row.title, f"{state}: {row.why}" if row.why else state, took, needed


def time_left(told: TrainingTold) -> str:
    """What a run still takes, after a comma; "" where it is not known."""
    if told.seconds_left is None:
        return ""
    return _(", {time} left").format(time=duration(told.seconds_left))


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 90:
        return _("{count} s").format(count=round(seconds))
    if seconds < 5400:
        return _("{count} min").format(count=round(seconds / 60))
    return _("{count} h").format(count=f"{seconds / 3600:.1f}")


def memory_line(training: Data) -> str:
    """Which device trains, what the greediest stage needs there, and what to do where that is too much."""
    needs = [(stage["memory"], stage["name"]) for stage in training["stages"] if stage["memory"]]
    if not needs:
        return _("Trains on {device}.").format(device=training["device"])
    most, name = max(needs, key=lambda need: need[0]["bytes"])
    free = (
        "" if most["free_bytes"] is None else _(", {free:.1f} GB free").format(free=most["free_bytes"] / _GB)
    )
    line = _("Trains on {device}; needs up to {most:.1f} GB of memory ({stage}{free}).").format(
        device=training["device"], most=most["bytes"] / _GB, stage=name, free=free
    )
    return "\n".join([line, *dict.fromkeys(need["advice"] for need, _name in needs if need["advice"])])
