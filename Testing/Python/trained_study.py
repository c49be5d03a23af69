"""A tiny study of phantom knees that trains in seconds: what the tests of the whole line share.

The images are the phantom's files, so a test can compare a result with what the phantom knows, read by
other means than the library's.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from SegGuidedMMRegLib.cases import LabelUse, Role, Structure
from SegGuidedMMRegLib.config import Config, config_from_dict
from SegGuidedMMRegLib.evaluation import Evaluation, evaluate
from SegGuidedMMRegLib.events import Event, Reporter
from SegGuidedMMRegLib.importing import new_study
from SegGuidedMMRegLib.importing.sources import Candidate
from SegGuidedMMRegLib.jobs import register_study, segment_study
from SegGuidedMMRegLib.pair_report_file import Report, pair_reports
from SegGuidedMMRegLib.phantom import MODALITIES, PhantomCase, phantom_structures, write_phantom_files
from SegGuidedMMRegLib.pipeline import train
from SegGuidedMMRegLib.report import write_report
from SegGuidedMMRegLib.study import Study

SOURCE, TARGET = MODALITIES
LABELLED = 3
TESTED = 2
_SUBJECTS = {2: 10, 3: 5}
_SIZE = {2: 64, 3: 32}

_SETTINGS: dict[int, dict[str, Any]] = {
    2: {
        "prealign": {"method": "moments"},
        "augmentation": {"samples": 24, "iterations": 40},
        "segmentation": {
            "channels": (8, 16, 32, 64),
            "strides": (2, 2, 2),
            "residual_units": 1,
            "steps": 300,
        },
        "adaptation": {"randomised_steps": 500, "teacher_steps": 100},
        "registration": {"steps": 4, "batch_size": 2},
    },
    3: {
        "prealign": {"working_size": 48},
        "augmentation": {"samples": 6, "iterations": 20},
        "segmentation": {
            "channels": (8, 16, 32),
            "strides": (2, 2),
            "residual_units": 0,
            "steps": 30,
            "batch_size": 2,
        },
        "adaptation": {"randomised_steps": 20, "teacher_steps": 5, "batch_size": 2},
        "registration": {"steps": 2, "batch_size": 2},
    },
}
_HURRIED: dict[str, dict[str, Any]] = {
    "augmentation": {"samples": 4, "iterations": 2},
    "segmentation": {"steps": 6, "batch_size": 2},
    "adaptation": {"randomised_steps": 3, "teacher_steps": 2, "batch_size": 2},
    "registration": {"steps": 1, "refinement_steps": 3},
}
"""Settings for those who ask what is run, not how well."""


class Listener(Reporter):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def messages(self) -> list[str]:
        return [e.data["message"] for e in self.events if e.kind == "log"]


@dataclass(frozen=True)
class Finished:
    """A study with which everything has been done.

    Attributes:
        study: trained, segmented and registered.
        input: the phantom's files.
        heard: what was told meanwhile.
        reports: of the test pairs.
        evaluation: of the whole.
        page: `report.html`.
    """

    study: Study
    input: Path
    heard: Listener
    reports: list[Report]
    evaluation: Evaluation
    page: Path

    def file(self, what: str, modality: str, name: str) -> Path:
        """One of the phantom's files: `what` is images, labels or landmarks."""
        return input_file(self.input, what, modality, name)


def input_file(folder: Path, what: str, modality: str, name: str) -> Path:
    suffix = {"images": ".nrrd", "labels": ".seg.nrrd", "landmarks": ".csv"}[what]
    return folder / what / modality / f"{name}{suffix}"


def tiny_config(dimension: int = 2, *, hurried: bool = False, **sections: dict[str, Any]) -> Config:
    """Settings that train in seconds; `sections` change some of them."""
    layers = [_SETTINGS[dimension], _HURRIED if hurried else {}, sections]
    record: dict[str, Any] = {"preset": "quick", "training": {"device": "cpu"}}
    for layer in layers:
        for section, values in layer.items():
            record[section] = {**record.get(section, {}), **values}
    return config_from_dict(record)


def make_study(folder: Path, dimension: int = 2, *, config: Config | None = None) -> Study:
    """Untrained; the last two subjects of a modality are tested, the last of them a left knee."""
    cases = write_phantom_files(
        folder / "input",
        dimension=dimension,
        subjects=_SUBJECTS[dimension],
        size=_SIZE[dimension],
        seed=3,
        mirrored_every=5,
    )
    study, _ = new_study(
        folder / "study",
        [_candidate(case, cases) for case in cases],
        name=f"Tiny knees {dimension}D",
        source=SOURCE,
        target=TARGET,
        structures=[Structure(s.value, s.name, s.color) for s in phantom_structures(dimension)],
        grid_size=[_SIZE[dimension]] * dimension,
        config=config or tiny_config(dimension),
    )
    return study


def finish(folder: Path, dimension: int) -> Finished:
    """Make a study and do everything with it."""
    study, heard = make_study(folder, dimension), Listener()
    train(study, reporter=heard)
    segment_study(study, heard)
    register_study(study, reporter=heard)
    reports = list(pair_reports(study.folder / "registrations"))
    evaluation = evaluate(study, heard)
    return Finished(
        study, folder / "input", heard, reports, evaluation, write_report(study, heard, evaluation)
    )


def copy_of(study: Study, folder: Path, config: Config | None = None) -> Study:
    """A copy of a study with the settings it has, or others."""
    shutil.copytree(study.folder, folder)
    copied = Study.open(folder)
    if config is not None:
        copied = replace(copied, config=config)
        copied.save()
    return copied


def _candidate(case: PhantomCase, cases: list[PhantomCase]) -> Candidate:
    same = [c for c in cases if c.modality == case.modality]
    number = same.index(case)
    tested = number >= len(same) - TESTED
    for_training = case.modality == SOURCE and number < LABELLED
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


# -- independent means ----------------------------------------------------------------------------------


def values(image: sitk.Image | Path) -> np.ndarray:
    """Voxel values as SimpleITK reads them."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(image)) if isinstance(image, Path) else image)


def three_dimensional(path: Path) -> sitk.Image:
    """An image as 3D Slicer would have it: one slice where the file has two dimensions."""
    image = sitk.ReadImage(str(path))
    return image if image.GetDimension() == 3 else sitk.JoinSeries(image)


def mean_dice(a: np.ndarray, b: np.ndarray, structures: int) -> float:
    """Mean over the structures 1 to `structures`."""
    overlap = [
        2 * ((a == n) & (b == n)).sum() / ((a == n).sum() + (b == n).sum()) for n in range(1, structures + 1)
    ]
    return float(np.mean(overlap))


def moved_by(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(p) for p in np.asarray(points, float).reshape(-1, 3).tolist()])


def landmarks(path: Path) -> dict[str, np.ndarray]:
    """Name to LPS mm of a CSV of the phantom."""
    rows = [line.split(",") for line in path.read_text().splitlines() if line and not line.startswith("#")]
    header = rows[0]
    columns = [header.index(c) for c in ("x", "y", "z")]
    return {row[header.index("name")]: np.array([float(row[c]) for c in columns]) for row in rows[1:]}


def voxel_centres(image: sitk.Image) -> np.ndarray:
    """LPS mm of all voxels, (n, 3), i fastest."""
    i, j, k = (np.arange(n) for n in image.GetSize())
    index = np.stack([a.ravel() for a in np.meshgrid(k, j, i, indexing="ij")][::-1], axis=1)
    matrix = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    return index @ matrix.T + np.asarray(image.GetOrigin())
