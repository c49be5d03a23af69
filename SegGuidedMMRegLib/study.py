"""The study folder: which cases there are, what is known of them, and who may see it.

`Study` is everything, for importing, inference and evaluation. `TrainingView` is what training gets: it knows
no test image and no label that is meant for evaluation, not even where such a file lies.

A study of two modalities, `source` (the one with the few segmentations) and `target`, is a folder of plain
files::

    study.yaml  config.yaml  images/<modality>/<case>.nrrd  labels/<modality>/<case>.seg.nrrd
    landmarks/<modality>/<case>.csv  models/<stage>/  predictions/<modality>/
    registrations/<moving>--<fixed>/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from SegGuidedMMRegLib.cases import Case, Role, Structure, values_to_indices
from SegGuidedMMRegLib.documents import shortened
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.space import FloatArray, Grid
from SegGuidedMMRegLib.study_affines import study_to_case, write_affines
from SegGuidedMMRegLib.study_file import (
    StudyError,
    check_links,
    check_name,
    read_record,
    require_inside,
    resolve_inside,
    write_record,
)
from SegGuidedMMRegLib.study_record import check_study, parts_from_record, to_record

if TYPE_CHECKING:
    from SegGuidedMMRegLib.config import Config
    from SegGuidedMMRegLib.images import Image
    from SegGuidedMMRegLib.points import PointList

__all__ = ["Case", "Role", "Structure", "Study", "StudyError", "TrainingView"]


@dataclass(frozen=True)
class Study:
    """A study as it stands in its folder; change it with `dataclasses.replace` or `with_cases`, then `save`.

    Attributes:
        folder: where it lies.
        name: for titles.
        dimension: 2 or 3, of all images.
        source, target: names of the modality with the few segmentations and of the other.
        structures: label classes; class index c is `structures[c - 1]`, 0 is background.
        grid: the study grid, centred on 0 and axis-parallel; None until images are there.
        cases: all images.
        config: the settings of its stages (`config.yaml`).

    Raises:
        StudyError: for anything that contradicts itself: double names or values, a subject with two roles, a
            label for training of a test or target case, a grid of another dimension.
    """

    folder: Path
    name: str
    dimension: int
    source: str
    target: str
    structures: tuple[Structure, ...]
    grid: Grid | None
    cases: tuple[Case, ...]
    config: Config

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        object.__setattr__(self, "structures", tuple(self.structures))
        object.__setattr__(self, "cases", tuple(self.cases))
        check_study(self)

    # -- making, opening, saving ------------------------------------------------------------------------
    @staticmethod
    def create(
        folder: str | Path,
        *,
        name: str,
        dimension: int,
        source: str,
        target: str,
        structures: Sequence[Structure],
        grid: Grid | None = None,
        cases: Sequence[Case] = (),
        config: Config | None = None,
    ) -> Study:
        """Make a new study folder and save the study in it.

        Raises:
            FileExistsError: if `folder` exists and is not empty: nothing is overwritten.
            StudyError: if the parts contradict each other.
        """
        folder = Path(folder)
        check_new_folder(folder)
        if config is None:
            from SegGuidedMMRegLib.config import preset

            config = preset("default")
        parts = (name, dimension, source, target, tuple(structures), grid, tuple(cases), config)
        study = Study(folder, *parts)
        study.save()
        return study

    @staticmethod
    def open(folder: str | Path) -> Study:
        """Read the study in `folder`.

        Raises:
            FileNotFoundError: if there is no study.
            StudyError: naming file, entry and remedy, where the study does not hold together.
        """
        from SegGuidedMMRegLib.config import load_config, preset

        folder = Path(folder)
        path = require_inside(folder, folder / "study.yaml")
        record = read_record(path)
        check_links(folder)
        settings = require_inside(folder, folder / "config.yaml")
        config = load_config(settings) if settings.is_file() else preset("default")
        try:
            return Study(folder, config=config, **parts_from_record(record))
        except StudyError as error:
            raise StudyError(f"{path}: {shortened(error, 2000)}") from None

    def save(self) -> None:
        """Write `study.yaml` and `config.yaml`, each whole or not at all."""
        self.save_settings()
        self.save_record()

    def save_settings(self) -> None:
        """Write `config.yaml` alone."""
        from SegGuidedMMRegLib.config import save_config

        save_config(self.config, self.folder / "config.yaml")

    def save_record(self) -> None:
        """Write `study.yaml` alone."""
        write_text_atomically(self.folder / "study.yaml", write_record(to_record(self)))

    def with_cases(self, cases: Sequence[Case]) -> Study:
        """The same study with these cases; not saved yet."""
        return replace(self, cases=tuple(cases))

    # -- asking -----------------------------------------------------------------------------------------
    def cases_of(self, modality: str | None = None, role: Role | str | None = None) -> tuple[Case, ...]:
        """The cases of a modality (None: both) and role (None: all), in the order of the study."""
        wanted = None if role is None else Role(role)
        return tuple(
            c for c in self.cases if modality in (None, c.modality) and (wanted is None or c.role == wanted)
        )

    def case(self, name: str, modality: str | None = None) -> Case:
        """The case called `name` (or `modality/name`).

        Raises:
            StudyError: if there is none, or one in each modality and `modality` is not given.
        """
        found = [c for c in self.cases if name in (c.name, c.key) and modality in (None, c.modality)]
        if len(found) == 1:
            return found[0]
        if found:
            raise StudyError(
                f"Both modalities have a case {name!r}: say {' or '.join(c.key for c in found)}."
            )
        raise StudyError(
            f"The study {self.name!r} has no case {name!r}; `segmmreg info {self.folder}` lists them."
        )

    def require_grid(self) -> Grid:
        """The study grid.

        Raises:
            StudyError: if it is not chosen yet.
        """
        if self.grid is None:
            raise StudyError(
                f"{self.folder}: the study has no grid yet; `segmmreg add` images, it is chosen then."
            )
        return self.grid

    # -- reading ----------------------------------------------------------------------------------------
    def read_image(self, case: Case) -> Image:
        """The image in its own geometry and intensities."""
        return _read_image(self.folder, case)

    def read_evaluation_labels(self, case: Case) -> Image:
        """The label map of `case`, of either use, with the VALUES of the file. Never called by training code.

        Raises:
            StudyError: if the case has no labels, or values that are no structure of the study.
        """
        from SegGuidedMMRegLib.images import read_labels

        if case.label is None:
            raise StudyError(f"The case {case.key} has no labels.")
        labels = read_labels(_one_file(self.folder, case.label))
        values_to_indices(labels.array, self.structures, case.label)
        return labels

    def read_landmarks(self, case: Case) -> PointList:
        """The landmarks of `case`, physical LPS mm of its image.

        Raises:
            StudyError: if it has none.
        """
        from SegGuidedMMRegLib.points import read_points

        if case.landmarks is None:
            raise StudyError(f"The case {case.key} has no landmarks.")
        return read_points(resolve_inside(self.folder, case.landmarks))

    def training_view(self) -> TrainingView:
        """What training code may see, and nothing else."""
        return TrainingView.of(self)

    # -- where files lie --------------------------------------------------------------------------------
    def stage_folder(self, stage: str) -> Path:
        """Folder of a stage's weights, settings and logs."""
        return require_inside(self.folder, self.folder / "models" / check_name(stage, "stage"))

    def label_path(self, case: Case) -> Path:
        """Where the hand segmentation of `case` lies, or will."""
        relative = case.label or f"labels/{case.modality}/{case.name}.seg.nrrd"
        return require_inside(self.folder, self.folder / relative)

    def prediction_path(self, case: Case, *, adapted: bool = True) -> Path:
        """Where the predicted segmentation of `case` lies, with or without adaptation."""
        place = "predictions" if adapted else "predictions_without_adaptation"
        return require_inside(self.folder, self.folder / place / case.modality / f"{case.name}.seg.nrrd")

    def registration_folder(self, moving: Case | str, fixed: Case | str) -> Path:
        """Where the registration of `moving` to `fixed` lies; a name is an image outside the study."""
        name = f"{self.file_name(moving)}--{self.file_name(fixed)}"
        return require_inside(self.folder, self.folder / "registrations" / name)

    def file_name(self, case: Case | str) -> str:
        """The name of the case; with its modality, where both modalities have a case of this name."""
        if isinstance(case, str):
            return check_name(case, "case")
        shared = case.name.casefold() in self._shared_names
        return f"{case.modality}_{case.name}" if shared else case.name

    @cached_property
    def _shared_names(self) -> frozenset[str]:
        counts = Counter(c.name.casefold() for c in self.cases)
        return frozenset(name for name, count in counts.items() if count > 1)

    # -- pre-alignment ----------------------------------------------------------------------------------
    @property
    def affines_path(self) -> Path:
        """`models/prealign/affines.json`: 4x4 study LPS mm → case LPS mm by `modality/name`."""
        return self.stage_folder("prealign") / "affines.json"

    def save_affines(self, affines: Mapping[str, ArrayLike]) -> None:
        """Keep the `study_to_case` matrices of all cases, by `Case.key`."""
        write_affines(self.affines_path, affines)

    def study_to_case(self, case: Case) -> FloatArray:
        """4x4 from study LPS mm to `case`'s physical LPS mm.

        Raises:
            StudyError: if the case has not been pre-aligned.
        """
        return study_to_case(self.affines_path, case)


@dataclass(frozen=True)
class TrainingView:
    """What training may see of a study: images of train and validation cases, and labels meant for training.

    Its cases carry no landmarks, and a label only where training may read it (`case.label is not None` says
    so). A case from elsewhere is looked up here by its key, so a changed copy of a case opens nothing more.
    """

    folder: Path
    dimension: int
    source: str
    target: str
    structures: tuple[Structure, ...]
    grid: Grid
    cases: tuple[Case, ...]

    @staticmethod
    def of(study: Study) -> TrainingView:
        """The view of `study`."""
        cases = tuple(_for_training(c, study.source) for c in study.cases if c.role != Role.TEST)
        parts = (study.dimension, study.source, study.target, study.structures, study.require_grid())
        return TrainingView(study.folder, *parts, cases)

    @property
    def source_cases(self) -> tuple[Case, ...]:
        """Source images of role train, with and without labels."""
        return self._of_role(Role.TRAIN, self.source)

    @property
    def target_cases(self) -> tuple[Case, ...]:
        """Target images of role train, never with labels."""
        return self._of_role(Role.TRAIN, self.target)

    @property
    def labelled_cases(self) -> tuple[Case, ...]:
        """Source images of role train with labels."""
        return tuple(c for c in self.source_cases if c.label is not None)

    @property
    def validation_cases(self) -> tuple[Case, ...]:
        """Images of role validation, of both modalities, with and without labels."""
        return tuple(c for c in self.cases if c.role == Role.VALIDATION)

    @property
    def validation_labelled_cases(self) -> tuple[Case, ...]:
        """Source images of role validation with labels."""
        return tuple(c for c in self.validation_cases if c.label is not None)

    def image(self, case: Case) -> Image:
        """The image of `case` in its own geometry and intensities.

        Raises:
            PermissionError: for test cases and cases that are not of this study.
        """
        return _read_image(self.folder, self._allowed(case))

    def labels(self, case: Case) -> Image:
        """Class INDICES (0 background, c = position in `structures` + 1; uint8, uint16) on the image's grid.

        Raises:
            PermissionError: if there are none that training may read.
            StudyError: if the file holds a value that is no structure.
        """
        from SegGuidedMMRegLib.images import Image, read_labels

        allowed = self._allowed(case)
        if allowed.label is None:
            raise PermissionError(
                f"The case {case.key} has no labels for training; labels of test cases, of target cases and "
                "those marked for evaluation are never shown to training."
            )
        labels = read_labels(_one_file(self.folder, allowed.label))
        return Image(values_to_indices(labels.array, self.structures, allowed.label), labels.grid)

    def study_to_case(self, case: Case) -> FloatArray:
        """4x4 from study LPS mm to the case's physical LPS mm.

        Raises:
            PermissionError: for test cases and cases that are not of this study.
            StudyError: if the case has not been pre-aligned.
        """
        return study_to_case(self.folder / "models" / "prealign" / "affines.json", self._allowed(case))

    def _of_role(self, role: Role, modality: str) -> tuple[Case, ...]:
        return tuple(c for c in self.cases if c.role == role and c.modality == modality)

    def _allowed(self, case: Case) -> Case:
        try:
            return self._by_key[case.key]
        except KeyError:
            words = f"Training may not read {case.key}: it is a test case, or not of this study."
            raise PermissionError(words) from None

    @cached_property
    def _by_key(self) -> dict[str, Case]:
        return {case.key: case for case in self.cases}


def check_new_folder(folder: Path) -> None:
    """Raise FileExistsError if `folder` is a file, a study, or a folder with anything in it."""
    if (folder / "study.yaml").exists():
        raise FileExistsError(
            f"{folder} is a study already: `segmmreg add` adds to it, or choose another folder."
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: choose a new folder for the study.")


def _for_training(case: Case, source: str) -> Case:
    if case.label_use == "training" and case.modality == source:
        return replace(case, landmarks=None)
    return replace(case, label=None, label_use=None, landmarks=None)


def _read_image(folder: Path, case: Case) -> Image:
    from SegGuidedMMRegLib.images import read_image

    return read_image(_one_file(folder, case.image))


def _one_file(folder: Path, relative: str) -> Path:
    """The image or label map `relative`: one file, which holds its voxels itself."""
    path = resolve_inside(folder, relative)
    if path.is_dir() or path.suffix.lower() in (".nhdr", ".mhd", ".hdr", ".img"):
        raise StudyError(f"{path}: images of a study are one file each; add it anew with `segmmreg add`.")
    return path
