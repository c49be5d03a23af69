"""`segmmreg new` and `segmmreg add`: images into a study."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done

if TYPE_CHECKING:
    from SegGuidedMMRegLib.editing import Change
    from SegGuidedMMRegLib.events import Reporter
    from SegGuidedMMRegLib.importing import ImportReport, ImportRules
    from SegGuidedMMRegLib.importing.sources import Candidate

Aside = list[tuple[Path, str]]


@dataclass(frozen=True)
class Files:
    """Where the images are. Files of one name, whatever their suffix, belong together."""

    source_images: tuple[Path, ...] = ()
    """Folders or files of the modality that has the few segmentations."""
    source_labels: tuple[Path, ...] = ()
    """Folders or files of its label maps, named like the images (also NAME_seg, NAME_label, NAME_mask)."""
    source_landmarks: tuple[Path, ...] = ()
    """Folders or files of its landmarks: .csv, .mrk.json, .fcsv."""
    target_images: tuple[Path, ...] = ()
    """Folders or files of the other modality."""
    target_labels: tuple[Path, ...] = ()
    """Label maps of the other modality: for evaluation only, training never sees them."""
    target_landmarks: tuple[Path, ...] = ()
    """Landmarks of the other modality."""
    lists: Annotated[tuple[Path, ...], tyro.conf.arg(name="list")] = ()
    """CSV or YAML instead of folders: a row an image, columns image and modality, and as wanted case,
    subject, role, mirrored, label, label_use, landmarks, spacing, original, series (of a DICOM folder)."""
    table: Path | None = None
    """CSV that says more of the images in the folders: a column file, and as wanted subject, role, mirrored,
    label_use, spacing."""

    def sources(self, modality: Literal["source", "target"]) -> tuple[tuple[Path, ...], ...]:
        """Images, labels and landmarks of a modality."""
        if modality == "source":
            return self.source_images, self.source_labels, self.source_landmarks
        return self.target_images, self.target_labels, self.target_landmarks

    def candidates(self, source: str, target: str) -> tuple[list[Candidate], Aside]:
        """All images of lists and folders, and the files that were left aside."""
        from SegGuidedMMRegLib.importing.sources import from_folders, from_list, with_table

        found: list[Candidate] = []
        aside: Aside = []
        words = {"source": source, "target": target, source: source, target: target}
        for path in self.lists:
            found += from_list(path, words).candidates
        for which, modality in (("source", source), ("target", target)):
            images, labels, landmarks = self.sources(which)  # type: ignore[arg-type]
            if images:
                part = from_folders(modality, images, labels, landmarks)
                found += part.candidates
                aside += part.aside
        return (list(with_table(found, self.table)) if self.table else found), aside


@dataclass(frozen=True)
class Rules:
    """What is known of the images, and who trains and who tests."""

    subject_pattern: str | None = None
    """Regular expression that finds the subject in a file name, such as '^s[0-9]+'. Without it each name is a
    subject."""
    mirrored_pattern: str | None = None
    """Regular expression for the names of mirrored images (the other side of the body), such as 'L$'."""
    spacing: tuple[float, ...] = ()
    """Pixel size in mm, for files that do not know theirs (PNG, JPEG): one number, or one an axis."""
    dimension: Literal[2, 3] | None = None
    """Leave images of the other dimension out; without it all must have the same."""
    role: Literal["train", "validation", "test"] | None = None
    """Give all these images one role."""
    test_subjects: tuple[str, ...] = ()
    """Subjects to test with, by name; where some are named, all others train."""
    validation_subjects: tuple[str, ...] = ()
    """Subjects to validate with, by name."""
    test_share: float = 0.2
    """Share of the subjects that is drawn for testing, first those whose labels training does not need."""
    validation_share: float = 0.0
    """Share of the subjects that is drawn for validation."""
    training_labels: int | None = None
    """How many labelled source images training may use, the others are for evaluation; all without it."""
    split_seed: int = 0
    """Seed of the draw."""

    def to_rules(self) -> ImportRules:
        """The same for the importing functions."""
        from SegGuidedMMRegLib.cases import Role
        from SegGuidedMMRegLib.importing import ImportRules
        from SegGuidedMMRegLib.importing.rows import check_spacing
        from SegGuidedMMRegLib.importing.splits import SplitRules

        splits = SplitRules(
            role=None if self.role is None else Role(self.role),
            validation_subjects=self.validation_subjects,
            test_subjects=self.test_subjects,
            validation_share=self.validation_share,
            test_share=self.test_share,
            training_labels=self.training_labels,
            seed=self.split_seed,
        )
        spacing = check_spacing(self.spacing, "--spacing") if self.spacing else ()
        return ImportRules(splits, self.subject_pattern, self.mirrored_pattern, spacing, self.dimension)


@dataclass(frozen=True)
class Settings:
    """The settings of all stages."""

    preset: Literal["default", "quick", "paper"] | None = None
    """default: recommended. quick: minutes on a CPU. paper: every setting of the paper's appendix B."""
    config: Path | None = None
    """YAML file of settings: a preset and what differs from it."""
    set: tuple[str, ...] = ()
    """Single settings, such as segmentation.steps=500."""


@dataclass(frozen=True)
class New(Command):
    """Make a study from folders of images, or from a list.

    Example: segmmreg new knees --source dxa --source-images dxa --source-labels dxa_labels --target
    radiograph --target-images radiographs --structures 1=femur 2=tibia --subject-pattern '^[0-9]+'
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder to make; it must not exist yet, or be empty."""
    source: str = "source"
    """Name of the modality that has the few segmentations."""
    target: str = "target"
    """Name of the other modality."""
    files: OmitArgPrefixes[Files] = field(default_factory=Files)
    structures: tuple[str, ...] = ()
    """Label values, names and colours: 1=femur 2=tibia:#56b4e9, and :TERM after it for a standard term as 3D
    Slicer writes it. Without it: as found in the label files."""
    rules: OmitArgPrefixes[Rules] = field(default_factory=Rules)
    grid_size: tuple[int, ...] = ()
    """Voxels of the study grid, x first; chosen from the images without it."""
    grid_spacing: tuple[float, ...] = ()
    """Spacing of the study grid in mm; chosen from the images without it."""
    name: str | None = None
    """Title of the study; the folder's name without it."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.config import override, preset
        from SegGuidedMMRegLib.importing import new_study
        from SegGuidedMMRegLib.importing.labels import parse_structures
        from SegGuidedMMRegLib.importing.sources import clean_name

        wanted = self.settings
        config = override(preset("default"), wanted.preset, wanted.config, wanted.set)
        rules, structures = self.rules.to_rules(), parse_structures(self.structures)
        candidates, aside = self.files.candidates(self.source, self.target)
        if not candidates:
            raise ValueError("There are no images: give --source-images and --target-images, or --list.")
        study, report = new_study(
            self.study,
            candidates,
            name=self.name or clean_name(self.study.resolve().name),
            source=self.source,
            target=self.target,
            structures=structures,
            rules=rules,
            grid_size=self.grid_size,
            grid_spacing_mm=self.grid_spacing,
            config=config,
            aside=aside,
            reporter=reporter,
        )
        for line in (*report.lines(), *summary(study)):
            reporter.log(line)
        return Done({"study": self.study, **_counts(report)})


@dataclass(frozen=True)
class Add(Command):
    """Add images to a study; or labels and landmarks, by name, to images that it has already.

    Example: segmmreg add knees --source-labels more_labels
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    files: OmitArgPrefixes[Files] = field(default_factory=Files)
    rules: OmitArgPrefixes[Rules] = field(default_factory=Rules)

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.importing import add_to_study
        from SegGuidedMMRegLib.importing.sources import labels_by_name, landmarks_by_name
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        candidates, aside = self.files.candidates(study.source, study.target)
        labels: dict[str, dict[str, Path]] = {}
        landmarks: dict[str, dict[str, Path]] = {}
        for which, modality in (("source", study.source), ("target", study.target)):
            images, label_files, point_files = self.files.sources(which)  # type: ignore[arg-type]
            if not images:
                labels[modality], left = labels_by_name(label_files)
                landmarks[modality], left_too = landmarks_by_name(point_files)
                aside += [*left, *left_too]
        study, report = add_to_study(
            study,
            candidates,
            rules=self.rules.to_rules(),
            labels=labels,
            landmarks=landmarks,
            aside=aside,
            reporter=reporter,
        )
        for line in (*report.lines(), *summary(study)):
            reporter.log(line)
        return Done({"study": self.study, **_counts(report)})


@dataclass(frozen=True)
class Edit(Command):
    """Change what is said of a study: role, subject and side of its cases; names, colours and terms of its
    structures. Images and labels stay as they are.

    Example: segmmreg edit knees --cases dxa/k1 dxa/k2 --role test
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    cases: tuple[str, ...] = ()
    """Cases to change, as modality/name."""
    role: Literal["train", "validation", "test"] | None = None
    """What they are for; all images of a subject get the same role."""
    subject: str | None = None
    """Whom they show."""
    mirrored: Literal["yes", "no"] | None = None
    """Whether they show the other side of the body."""
    table: Path | None = None
    """CSV instead: a column case, and as wanted role, subject, mirrored; what is empty stays as it is."""
    structures: tuple[str, ...] = ()
    """Names, colours and terms by value, as of `segmmreg new`: 1=femur:#e69f00. A new value adds one."""
    remove_structures: tuple[str, ...] = ()
    """Structures to take away, by value or name; refused where labels of the study hold them."""
    name: str | None = None
    """Title of the study."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.editing import edit_study
        from SegGuidedMMRegLib.importing.labels import parse_structures

        changes = self._changes()
        if not (changes or self.structures or self.remove_structures or self.name):
            raise ValueError(
                "There is nothing to change: give --cases, --table, --structures, --remove-structures or "
                "--name."
            )
        structures = parse_structures(self.structures)
        edited = edit_study(
            self.study,
            cases=changes,
            structures=structures,
            remove=self.remove_structures,
            name=self.name,
            reporter=reporter,
        )
        reporter.log(f"said anew: {len(changes)} cases, {len(structures)} structures.")
        for note in edited.notes:
            reporter.log(f"note: {note}")
        return Done({"study": self.study, "cases": len(changes), "structures": len(structures)})

    def _changes(self) -> dict[str, Change]:
        from SegGuidedMMRegLib.cases import Role
        from SegGuidedMMRegLib.editing import Change, changes_in_table

        found = {} if self.table is None else changes_in_table(self.table)
        role = None if self.role is None else Role(self.role)
        mirrored = None if self.mirrored is None else self.mirrored == "yes"
        change = Change(role, self.subject, mirrored)
        if bool(self.cases) != (change != Change()):
            raise ValueError("Give --cases together with --role, --subject or --mirrored.")
        return found | dict.fromkeys(self.cases, change)


def _counts(report: ImportReport) -> dict[str, int]:
    outcomes = [e.outcome for e in report.entries]
    return {"imported": outcomes.count("imported"), "skipped": outcomes.count("skipped")}


def summary(study: object) -> list[str]:
    """What a study holds: structures, grid, and the number of images by modality, role and use of labels."""
    from SegGuidedMMRegLib.study import Role, Study

    assert isinstance(study, Study)
    lines = ["structures: " + ", ".join(f"{s.value} {s.name}" for s in study.structures)]
    if study.grid is not None:
        d = study.dimension
        size = " x ".join(map(str, study.grid.size[:d]))
        lines.append(
            f"study grid: {size} voxels of {' x '.join(f'{s:.4g}' for s in study.grid.spacing[:d])} mm"
        )
    for modality in (study.source, study.target):
        for role in Role:
            cases = study.cases_of(modality, role)
            uses = [c.label_use for c in cases]
            lines.append(
                f"{modality:<14} {role.value:<11} {len(cases):>5} images of "
                f"{len({c.subject for c in cases}):>4} subjects, labels for training: "
                f"{uses.count('training')}, "
                f"for evaluation: {uses.count('evaluation')}"
            )
    return lines
