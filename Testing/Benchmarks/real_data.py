"""The main job on real images, with its figures: knee radiographs, spine MR, prostate MR and ultrasound.

    python Testing/Benchmarks/real_data.py prepare knee --data DATA --out OUT
    python Testing/Benchmarks/real_data.py run knee --data DATA --out OUT --preset quick

`prepare` writes images, labels and a list (see `real_data_inputs`), `run` also makes the study of them,
trains, segments, registers, evaluates and reports, and writes `figures.md`. A second `run` goes on where the
first was cut off; with other settings it trains again what depends on them.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from real_data_inputs import DATA_SETS, prepare

from SegGuidedMMRegLib.commands.bring import Files, New, Settings
from SegGuidedMMRegLib.console import reporting
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.study import Study

_T = TypeVar("_T")
_STAGES = ("prealign", "augmentation", "segmentation", "adaptation", "registration")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do it."""
    options = _parser().parse_args(arguments)
    title = options.name if options.name != "spine" else f"spine-{options.contrast}"
    folder: Path = options.out / title
    if options.action == "prepare" or not (folder / "input" / "list.csv").is_file():
        listed = prepare(
            options.name,
            options.data,
            folder / "input",
            seed=options.seed,
            unlabelled=options.unlabelled,
            contrast=options.contrast,
        )
        what = DATA_SETS[options.name]
        print(
            f"segmmreg new {folder / 'study'} --list {listed} --source {what.source} "
            f"--target {what.target} --structures {' '.join(what.structures)}"
        )
    if options.action == "run":
        _run(options, folder, title)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The main job on real images, with its figures.")
    parser.add_argument("action", choices=("prepare", "run"))
    parser.add_argument("name", choices=tuple(DATA_SETS))
    parser.add_argument("--data", type=Path, required=True, help="folder that holds knee_xray, spine_mr_...")
    parser.add_argument("--out", type=Path, required=True, help="a folder for each study is made in it")
    parser.add_argument("--seed", type=int, default=0, help="of draws and training")
    parser.add_argument("--unlabelled", type=int, default=40, help="knees without labels, of each look")
    parser.add_argument(
        "--contrast", choices=("monotone", "nonmonotone"), default="nonmonotone", help="spine"
    )
    parser.add_argument("--preset", choices=("default", "quick", "paper"), default="quick")
    parser.add_argument("--set", nargs="*", default=[], help="settings, such as segmentation.steps=500")
    parser.add_argument("--pairs", type=int, default=20, help="pairs to register at most, spread evenly")
    return parser


# -- the run --------------------------------------------------------------------------------------------
def _run(options: argparse.Namespace, folder: Path, title: str) -> None:
    from SegGuidedMMRegLib import jobs
    from SegGuidedMMRegLib.evaluation import evaluate
    from SegGuidedMMRegLib.pipeline import train
    from SegGuidedMMRegLib.report import write_report

    seconds = _Seconds(folder / "seconds.json")
    with reporting() as reporter:
        study = _study(options, folder, reporter)
        seconds.measure("prealign", lambda: train(study, ["prealign"], reporter), _affines(study))
        train(study, reporter=reporter)
        seconds.measure("segment", lambda: jobs.segment_study(study, reporter))
        tests = [(study.cases_of(study.source, "test")), (study.cases_of(study.target, "test"))]
        pairs = [(moving, fixed) for moving in tests[0] for fixed in tests[1]]
        if DATA_SETS[options.name].paired:
            pairs = [(m, f) for m, f in pairs if m.subject == f.subject][: options.pairs]
        else:
            pairs = spread(pairs, options.pairs, options.seed)
        chosen = jobs.pairs_of_cases(study, pairs)
        shutil.rmtree(study.folder / "registrations", ignore_errors=True)  # those of an earlier choice
        seconds.measure("register", lambda: jobs.register_study(study, chosen, reporter=reporter))
        found = seconds.measure("evaluate", lambda: evaluate(study, reporter))
        seconds.measure("report", lambda: write_report(study, reporter, found))
    table = figures(study, title, seconds.known)
    (folder / "figures.md").write_text(table, encoding="utf-8")
    print(table)


def _study(options: argparse.Namespace, folder: Path, reporter: Reporter) -> Study:
    """The study as it lies there, with the settings asked for; else a new one."""
    from dataclasses import replace

    from SegGuidedMMRegLib.config import fitted_to_dimension, override

    path = folder / "study"
    wanted = (f"training.seed={options.seed}", *options.set)
    if not (path / "study.yaml").is_file():
        what = DATA_SETS[options.name]
        New(
            path,
            source=what.source,
            target=what.target,
            files=Files(lists=(folder / "input" / "list.csv",)),
            structures=what.structures,
            settings=Settings(preset=options.preset, set=wanted),
        ).run(reporter)
    study = Study.open(path)
    config = fitted_to_dimension(override(study.config, options.preset, None, wanted), study.dimension)
    if config != study.config:
        study = replace(study, config=config)
        study.save()
    return study


def _affines(study: Study) -> Path:
    return study.stage_folder("prealign") / "affines.json"


class _Seconds:
    """Wall time of what has no stage.json, kept over runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def measure(self, name: str, work: Callable[[], _T], cached: Path | None = None) -> _T:
        """Do it and note the time; a time that is known stays if `work` did not touch its `cached` result."""
        before = cached.stat().st_mtime_ns if cached is not None and cached.is_file() else None
        start = time.monotonic()
        found = work()
        if before is None or cached is None or cached.stat().st_mtime_ns != before:
            self.known[name] = time.monotonic() - start
            self._path.write_text(json.dumps(self.known), encoding="utf-8")
        return found


def spread(pairs: Sequence[Any], most: int, seed: int) -> list[Any]:
    """At most this many of the pairs, so that every image comes up about as often as any other.

    Args:
        pairs: moving and fixed.
        most: how many.
        seed: of the order among equals.
    """
    left = [pairs[n] for n in np.random.default_rng(seed).permutation(len(pairs))]
    used: dict[str, int] = {}
    chosen: list[Any] = []
    while left and len(chosen) < most:
        counts = [sorted((used.get(m.key, 0), used.get(f.key, 0)), reverse=True) for m, f in left]
        pair = left.pop(min(range(len(left)), key=lambda n: (sum(counts[n]), counts[n])))
        chosen.append(pair)
        for case in pair:
            used[case.key] = used.get(case.key, 0) + 1
    return chosen


# -- the figures ----------------------------------------------------------------------------------------
def figures(study: Study, title: str, seconds: dict[str, float]) -> str:
    """A Markdown table of what `evaluation.json` and the stages say, with wall time and memory."""
    summary = json.loads((study.folder / "evaluation.json").read_text(encoding="utf-8"))
    headline, pairs = summary["headline"], summary["registration"]
    minutes = _minutes(study, seconds)
    rows = [
        ("settings", f"{study.config.preset}, seed {study.config.training.seed}"),
        ("images", _counts(study)),
        ("source test Dice", _text(headline["source_dice"])),
        ("target test Dice without adaptation", _text(headline["target_dice_without_adaptation"])),
        ("target test Dice with adaptation", _text(headline["target_dice_with_adaptation"])),
        *_segmentation_hd95(study, summary),
        ("registered pairs", f"{pairs['pairs']}, {pairs['failed']} failed"),
        ("measured against", str(pairs["measured_against"])),
        ("registration Dice", _states(pairs, "dice", 3)),
        ("registration HD95 (mm)", _states(pairs, "hd95_mm", 2)),
        ("registration ASSD (mm)", _states(pairs, "assd_mm", 2)),
        ("folded voxels", f"{pairs['folded_voxels']} in {pairs['pairs_with_folds']} pairs"),
        ("forward∘inverse, mean (voxels)", _text(pairs["inverse_consistency"]["mean_voxels"], 4)),
        ("forward∘inverse, largest (voxels)", _text(pairs["inverse_consistency"]["max_voxels"])),
        *_landmarks(pairs["landmarks"]),
        ("a pair, median (processor s)", _text(pairs["median_seconds"], 1)),
        ("wall time (min)", ", ".join(f"{k} {v:.1f}" for k, v in minutes.items())),
        ("wall time in all (min)", f"{sum(minutes.values()):.1f}"),
        ("peak memory of the last run (MB)", f"{_peak_megabytes():.0f}"),
    ]
    return "\n".join([f"| | {title} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), ""])


def _counts(study: Study) -> str:
    cases = study.cases
    parts = []
    for modality in (study.source, study.target):
        ours = [c for c in cases if c.modality == modality]
        labelled = sum(c.label_use == "training" for c in ours)
        tested = sum(c.role.value == "test" for c in ours)
        parts.append(
            f"{modality}: {labelled} labelled + {len(ours) - labelled - tested} unlabelled, {tested} tested"
        )
    return "; ".join(parts)


def _segmentation_hd95(study: Study, summary: dict[str, Any]) -> list[tuple[str, str]]:
    states = summary["segmentation"].get(study.target, {})
    return [
        (f"target test HD95 {state} (mm)", _text(groups["test"]["hd95_mm"]["mean"], 2))
        for state, groups in states.items()
        if "test" in groups
    ]


def _states(pairs: dict[str, Any], measure: str, digits: int) -> str:
    found = {s: pairs[s][measure]["mean"] for s in ("before", "after", "identity") if pairs.get(s)}
    text = f"{_text(found.get('before'), digits)} → {_text(found.get('after'), digits)}"
    return text + (f" (identity {_text(found['identity'], digits)})" if "identity" in found else "")


def _landmarks(found: dict[str, Any]) -> list[tuple[str, str]]:
    if not found["pairs"]:
        return []
    before, after = _text(found["mean_before_mm"], 2), _text(found["mean_after_mm"], 2)
    return [(f"landmark error, {found['pairs']} pairs (mm)", f"{before} → {after}")]


def _minutes(study: Study, seconds: dict[str, float]) -> dict[str, float]:
    found = dict(seconds)
    for stage in _STAGES:
        path = study.stage_folder(stage) / "stage.json"
        if path.is_file() and "seconds" in (record := json.loads(path.read_text(encoding="utf-8"))):
            found[stage] = float(record["seconds"])
    order = (*_STAGES, "segment", "register", "evaluate", "report")
    return {stage: found[stage] / 60 for stage in order if stage in found}


def _peak_megabytes() -> float:
    """Largest resident memory of this process or a child."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def _text(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
