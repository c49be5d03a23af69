"""`Sample`: an image and where it lies in study space, be it a case of the study or one from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from SegGuidedMMRegLib.images import Image, check_image, read_image
from SegGuidedMMRegLib.space import FloatArray
from SegGuidedMMRegLib.study import Case, Study, StudyError


@dataclass(frozen=True)
class Sample:
    """An image and where it lies in study space.

    Attributes:
        name: of the case, or of the file.
        modality: name of its modality.
        image: in its own space.
        study_to_case: 4x4, study LPS mm to the image's LPS mm; holds the reflection of a mirrored case.
        case: the case of the study, if it is one.
    """

    name: str
    modality: str
    image: Image
    study_to_case: FloatArray
    case: Case | None = None

    @staticmethod
    def of(study: Study, image: AnyImage, modality: str | None = None, *, mirrored: bool = False) -> Sample:
        """Whatever stands for an image.

        Args:
            study: pre-aligned at least.
            image: a sample (returned as it is), a case or its name, the path of a file, an image in memory.
            modality: its name, needed for files and images in memory, and where both modalities have a case
                of this name.
            mirrored: whether a file or an image in memory shows the other side of the body.

        Raises:
            ValueError: naming the image or the modality, if it cannot be used.
        """
        if isinstance(image, Sample):
            return image
        named = [case for case in study.cases if image in (case.name, case.key)]
        if named:
            image = study.case(str(image), modality if len(named) > 1 else None)
        if isinstance(image, Case):
            return Sample.of_case(study, image)
        if modality is None:
            what = "the image in memory" if isinstance(image, Image) else f"{image} (no case of the study)"
            raise StudyError(f"Say of which modality {what} is: {study.source!r} or {study.target!r}.")
        if isinstance(image, Image):
            return Sample.of_image(study, image, modality, mirrored=mirrored)
        return Sample.of_file(study, Path(image), modality, mirrored=mirrored)

    @staticmethod
    def of_case(study: Study, case: Case) -> Sample:
        """A case of the study.

        Raises:
            StudyError: if it is not pre-aligned yet.
        """
        return Sample(case.name, case.modality, study.read_image(case), study.study_to_case(case), case)

    @staticmethod
    def of_file(
        study: Study,
        path: Path,
        modality: str,
        *,
        mirrored: bool = False,
        spacing_mm: Sequence[float] = (),
        study_to_case: FloatArray | None = None,
    ) -> Sample:
        """An image from outside the study, pre-aligned now.

        Args:
            study: pre-aligned at least.
            path: image file.
            modality: name of the image's modality.
            mirrored: whether it shows the other side of the body.
            spacing_mm: for a file that does not know its own: one number, or one an axis; empty: 1 mm.
            study_to_case: what pre-aligning it gave before, if it has been.

        Raises:
            ValueError: naming the file or the modality, if it cannot be used.
        """
        check_modality(study, modality)
        image = read_image(path, spacing_mm=tuple(spacing_mm) or None)
        _check(study, image, path)
        if study_to_case is None:
            study_to_case = _prealigned(study, image, modality, mirrored)
        return Sample(file_stem(path), modality, image, study_to_case)

    @staticmethod
    def of_image(
        study: Study, image: Image, modality: str, *, mirrored: bool = False, name: str = "image"
    ) -> Sample:
        """An image in memory, pre-aligned now.

        Args:
            study: pre-aligned at least.
            image: in its own space.
            modality: name of its modality.
            mirrored: whether it shows the other side of the body.
            name: what to call it in messages.

        Raises:
            ValueError: naming the image or the modality, if it cannot be used.
        """
        check_modality(study, modality)
        _check(study, image, name)
        return Sample(name, modality, image, _prealigned(study, image, modality, mirrored))


AnyImage = Sample | Case | Image | Path | str
"""What `Sample.of` understands."""


def _check(study: Study, image: Image, path: Path | str) -> None:
    check_image(image, path)
    if image.grid.dimension != study.dimension:
        raise StudyError(
            f"{path}: has {image.grid.dimension} dimensions, the study {study.name!r} {study.dimension}."
        )


def _prealigned(study: Study, image: Image, modality: str, mirrored: bool) -> FloatArray:
    from SegGuidedMMRegLib.training.prealign import prealign_file

    return prealign_file(study, image, modality, mirrored=mirrored)


def check_modality(study: Study, modality: str) -> None:
    """Raise StudyError if `modality` is neither the source nor the target of the study."""
    if modality not in (study.source, study.target):
        raise StudyError(
            f"Modalities of the study are {study.source!r} and {study.target!r}, not {modality!r}."
        )


def file_stem(path: Path) -> str:
    """File name without its suffixes: `knee.nii.gz` gives `knee`."""
    name = path.name
    for suffix in (".nii.gz", ".seg.nrrd"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem
