"""The main job end to end on generated knees: `segmmreg demo`.

DXA-like images of which five have labels, radiograph-like images without any: all stages, pairs registered,
the report written. The phantom knows all the truth; it is used for measuring only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.cases import LabelUse, Role, Structure
from SegGuidedMMRegLib.config import Config, PresetName, config_from_dict
from SegGuidedMMRegLib.evaluation import evaluate
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.importing import new_study
from SegGuidedMMRegLib.importing.sources import Candidate
from SegGuidedMMRegLib.jobs import register_study, segment_study
from SegGuidedMMRegLib.phantom import MODALITIES, PhantomCase, phantom_structures, write_phantom_files
from SegGuidedMMRegLib.pipeline import train
from SegGuidedMMRegLib.report import write_report
from SegGuidedMMRegLib.study import Study

LABELLED = 5
"""Source images whose labels training may see."""


@dataclass(frozen=True)
class Scale:
    """How much is drawn.

    Attributes:
        subjects: a modality.
        tested: of these.
        size: of an image, voxels a side.
    """

    subjects: int
    tested: int
    size: int


_FULL = {2: Scale(28, 5, 256), 3: Scale(14, 3, 64)}
_SMALL = {2: Scale(12, 3, 64), 3: Scale(8, 2, 32)}
_HURRY: dict[str, dict[str, Any]] = {
    "augmentation": {"samples": 24, "iterations": 40},
    "segmentation": {"channels": (8, 16, 32, 64), "strides": (2, 2, 2), "residual_units": 1, "steps": 500},
    "adaptation": {"randomised_steps": 600, "teacher_steps": 100},
    "registration": {"steps": 10},
}
"""Settings of the small demo, over those of its preset."""


@dataclass(frozen=True)
class Demo:
    """What the demo ended with.

    Attributes:
        study: of the knees.
        headline: the figures of `evaluation.json`.
        report: the page.
        seconds: wall time of this run.
    """

    study: Study
    headline: dict[str, Any]
    report: Path
    seconds: float


def run_demo(
    folder: Path,
    *,
    dimension: int = 2,
    preset_name: PresetName = "quick",
    seed: int = 0,
    small: bool = False,
    reporter: Reporter | None = None,
) -> Demo:
    """Make knees in `folder/input`, a study of them in `folder/study`, and do everything with it.

    A second run goes on where the first was cut off.

    Args:
        folder: made if absent.
        dimension: 2 or 3.
        preset_name: of the settings.
        seed: of knees and training.
        small: fewer and smaller knees and a short training, to see that all works.
        reporter: hears about progress.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    study_folder = folder / "study"
    if (study_folder / "study.yaml").is_file():
        study = Study.open(study_folder)
        reporter.log(f"Going on with the study in {study_folder}")
    else:
        scale = (_SMALL if small else _FULL)[dimension]
        config = _config(preset_name, seed, _HURRY if small else {})
        study = _new_study(folder, dimension, scale, config, reporter)
    train(study, reporter=reporter)
    segment_study(study, reporter)
    register_study(study, reporter=reporter)
    found = evaluate(study, reporter)
    report = write_report(study, reporter, found)
    return Demo(study, found.summary["headline"], report, time.monotonic() - start)


def _config(preset_name: PresetName, seed: int, changes: dict[str, dict[str, Any]]) -> Config:
    return config_from_dict({"preset": preset_name, "training": {"seed": seed}, **changes}, "the demo")


def _new_study(folder: Path, dimension: int, scale: Scale, config: Config, reporter: Reporter) -> Study:
    reporter.log(f"Drawing {2 * scale.subjects} knees into {folder / 'input'}")
    cases = write_phantom_files(
        folder / "input",
        dimension=dimension,
        subjects=scale.subjects,
        size=scale.size,
        seed=config.training.seed,
    )
    study, _ = new_study(
        folder / "study",
        [_candidate(case, cases, scale) for case in cases],
        name=f"Phantom knees {dimension}D",
        source=MODALITIES[0],
        target=MODALITIES[1],
        structures=[Structure(s.value, s.name, s.color) for s in phantom_structures(dimension)],
        config=config,
        reporter=reporter,
    )
    return study


def _candidate(case: PhantomCase, cases: list[PhantomCase], scale: Scale) -> Candidate:
    """The last subjects of a modality are tested; the first few of the source bring labels for training."""
    number = [c for c in cases if c.modality == case.modality].index(case)
    tested = number >= scale.subjects - scale.tested
    for_training = case.modality == MODALITIES[0] and number < LABELLED
    use: LabelUse | None = "training" if for_training else "evaluation" if tested else None
    return Candidate(
        image=case.image,
        modality=case.modality,
        name=case.name,
        label=case.labels if use else None,
        landmarks=case.landmarks if tested else None,
        subject=case.subject,
        role=Role.TEST if tested else Role.TRAIN,
        mirrored=case.mirrored,
        label_use=use,
    )


def demo_lines(demo: Demo) -> list[str]:
    """What was gained and where it lies, a line each."""
    h = demo.headline
    minutes = demo.seconds / 60
    folds = h["folded_voxels"]
    return [
        f"Done in {minutes:.1f} minutes from {LABELLED} labelled {demo.study.source} images, "
        f"no {demo.study.target} label.",
        f"{demo.study.target} Dice: {_number(h['target_dice_without_adaptation'])} without adaptation, "
        f"{_number(h['target_dice_with_adaptation'])} with.",
        f"Registration Dice ({h['pairs']} pairs, {h['failed_pairs']} failed): "
        f"{_number(h['registration_dice_before'])} before, {_number(h['registration_dice_after'])} after; "
        f"folded voxels: {folds}.",
        f"Landmark error: {_number(h['landmark_error_before_mm'])} mm before, "
        f"{_number(h['landmark_error_after_mm'])} mm after.",
        f"Report:      {demo.report}",
        f"Transforms:  {demo.study.folder / 'registrations'}",
    ]


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
