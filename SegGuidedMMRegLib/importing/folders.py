"""A study from folders of images in one call: what `segmmreg new` does, for Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from SegGuidedMMRegLib.config import PresetName, override
from SegGuidedMMRegLib.config import preset as settings_of
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.importing import ImportRules, new_study
from SegGuidedMMRegLib.importing.labels import parse_structures
from SegGuidedMMRegLib.importing.sources import Candidate, clean_name, from_folders
from SegGuidedMMRegLib.importing.splits import SplitRules
from SegGuidedMMRegLib.study import Study

Places = Path | str | Sequence[Path | str]
"""A folder or a file, or several."""


def study_from_folders(
    folder: Path | str,
    *,
    source_images: Places,
    source_labels: Places,
    target_images: Places,
    target_labels: Places = (),
    source_landmarks: Places = (),
    target_landmarks: Places = (),
    source: str = "source",
    target: str = "target",
    structures: Sequence[str] = (),
    subject_pattern: str | None = None,
    mirrored_pattern: str | None = None,
    spacing_mm: Sequence[float] = (),
    splits: SplitRules | None = None,
    preset: PresetName = "default",
    settings: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Study:
    """Make a study. Files of one name, whatever their suffix, belong together.

    Args:
        folder: of the study; must not exist, or be empty.
        source_images, source_labels, source_landmarks: of the modality that has the few segmentations.
        target_images, target_labels, target_landmarks: of the other; its labels are for evaluation alone.
        source, target: names of the modalities.
        structures: label classes, "1=femur" or "2=tibia:#56b4e9"; empty: as found in the label files.
        subject_pattern: regular expression that finds the subject in a file's name; None: each is one.
        mirrored_pattern: regular expression for the names of images of the other side of the body.
        spacing_mm: for files that do not know theirs: one number, or one an axis; empty: 1 mm.
        splits: who trains and who tests; a fifth of the subjects tests without it.
        preset: default, quick or paper.
        settings: what differs from it, such as "segmentation.steps=500".
        reporter: hears about progress, what was left out, and why.

    Raises:
        FileExistsError: if the folder is in use.
        ValueError: if no image can be used, or something contradicts itself; nothing is left behind.
    """
    reporter = reporter or Reporter()
    candidates: list[Candidate] = []
    aside: list[tuple[Path, str]] = []
    for modality, *places in (
        (source, source_images, source_labels, source_landmarks),
        (target, target_images, target_labels, target_landmarks),
    ):
        found = from_folders(modality, *(_paths(place) for place in places))
        candidates += found.candidates
        aside += found.aside
    folder = Path(folder)
    study, report = new_study(
        folder,
        candidates,
        name=clean_name(folder.resolve().name),
        source=source,
        target=target,
        structures=parse_structures(structures),
        rules=ImportRules(splits or SplitRules(), subject_pattern, mirrored_pattern, tuple(spacing_mm)),
        config=override(settings_of(preset), settings=settings),
        aside=aside,
        reporter=reporter,
    )
    for line in report.lines():
        reporter.log(line)
    return study


def _paths(places: Places) -> list[Path]:
    return [Path(places)] if isinstance(places, (Path, str)) else [Path(place) for place in places]
