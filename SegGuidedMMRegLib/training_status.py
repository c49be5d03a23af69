"""What training a study needs on this machine, and what it has shown so far: memory, curves, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from SegGuidedMMRegLib.config import PresetName
from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.freshness import STAGES
from SegGuidedMMRegLib.setting_list import settings_of
from SegGuidedMMRegLib.study import Study

PICTURES, PICTURES_INDEX = "pictures", "pictures.json"
"""Folder in that of a stage, and what lists its files there."""
_MOST_POINTS = 200


def training_of(study: Study) -> dict[str, Any]:
    """As plain values: `device` that is used, `problem` if that cannot be, `preset`, `presets` that there
    are, all `settings` (`setting_list`), and a record a stage in `stages`.

    A record holds `name`; `memory` (`bytes` needed, `free_bytes`, `device`, `advice` where that is not
    enough), or None; `curves` of its training runs; `pictures` with `path` and `caption`.
    """
    device, needs, problem = "", {}, ""
    try:
        device, needs = _device(study), _needs(study)
    except ValueError as error:
        problem = str(error)
    stages = [
        {
            "name": stage,
            "memory": needs.get(stage),
            "curves": stage_curves(study.stage_folder(stage)),
            "pictures": stage_pictures(study.stage_folder(stage)),
        }
        for stage in STAGES
    ]
    settings = [setting.record() for setting in settings_of(study.config, study.dimension)]
    chosen = {"preset": study.config.preset, "presets": list(get_args(PresetName)), "settings": settings}
    return {"device": device, "problem": problem, **chosen, "stages": stages}


def training_lines(training: dict[str, Any]) -> list[str]:
    """What `training_of` gives, for people; curves are left out."""
    lines = ["", training["problem"] or f"training on {training['device']}"]
    for stage in training["stages"]:
        if need := stage["memory"]:
            free = "" if need["free_bytes"] is None else f", {need['free_bytes'] / 1e9:.1f} GB free"
            lines.append(
                f"{stage['name']}: needs about {need['bytes'] / 1e9:.1f} GB{free}. {need['advice']}".rstrip()
            )
        lines += [f"  {picture['path']}: {picture['caption']}" for picture in stage["pictures"]]
    return lines


def stage_curves(folder: Path) -> list[dict[str, Any]]:
    """The metrics of every run of training in the folder of a stage: `run`, `metric`, `steps`, `values`."""
    from SegGuidedMMRegLib.report.charts import read_curves, reduced

    found = []
    paths = sorted(folder.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    for path in paths:
        run = path.parent.relative_to(folder.parent).as_posix()
        for curve in read_curves(path, run):
            steps, values = reduced(curve.steps, curve.values, _MOST_POINTS)
            found.append(
                {"run": run, "metric": curve.metric, "steps": steps.tolist(), "values": values.tolist()}
            )
    return found


def stage_pictures(folder: Path) -> list[dict[str, str]]:
    """The pictures that were drawn when the stage was done: `path` and `caption`."""
    listed = _index(folder).get("pictures", [])
    return [
        {"path": str(folder / PICTURES / entry["file"]), "caption": str(entry.get("caption", ""))}
        for entry in listed
        if isinstance(entry, dict) and Path(str(entry.get("file", ""))).name == entry.get("file")
    ]


def pictures_made_from(folder: Path) -> str:
    """Digest of what the pictures of a stage show; "" if there are none."""
    return str(_index(folder).get("made_from", ""))


def _index(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / PICTURES / PICTURES_INDEX)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _device(study: Study) -> str:
    import torch

    from SegGuidedMMRegLib.training.devices import device_of

    device = device_of(study.config.training)
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _needs(study: Study) -> dict[str, dict[str, Any]]:
    from SegGuidedMMRegLib.memory import StudySize, advice, memory_needs
    from SegGuidedMMRegLib.pipeline import memory_remedies

    size, remedies = StudySize.of(study), memory_remedies(study.config)
    return {
        stage: {
            "bytes": need.bytes,
            "free_bytes": need.free,
            "device": need.device,
            "advice": advice(need, study.config, size, remedies[stage]) if need.is_too_much else "",
        }
        for stage, need in memory_needs(study).items()
    }
