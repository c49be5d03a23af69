"""What a study is made of: structures, roles and cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegLib.study_file import StudyError, check_inside, check_name
from SegGuidedMMRegLib.terminology import is_terminology

LabelUse = Literal["training", "evaluation"]

_AT_ONCE = 1 << 18


class Role(str, Enum):
    """What a subject is for. All images of a subject have the same role."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class Structure:
    """A label class.

    Attributes:
        value: in label files, 1 to 65535.
        name: of it.
        color: RGB, 0 to 255.
        terminology: its standard term, as 3D Slicer writes it (`terminology.py`); "" without one.
    """

    value: int
    name: str
    color: tuple[int, int, int]
    terminology: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "structure")
        if type(self.value) is not int or not 1 <= self.value <= 65535:
            raise StudyError(
                f"structure {self.name!r}: the value must be 1 to 65535, 0 is background; got {self.value!r}."
            )
        color = tuple(self.color)
        if len(color) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in color):
            raise StudyError(
                f"structure {self.name!r}: the colour must be three numbers of 0 to 255, got {self.color!r}."
            )
        object.__setattr__(self, "color", color)
        if self.terminology != "" and not is_terminology(self.terminology):
            raise StudyError(
                f"structure {self.name!r}: {str(self.terminology)[:99]!r} is no term as 3D Slicer writes it: "
                "seven parts with ~, such as LIST~SCT^123037004^Anatomical Structure~SCT^71341001^Femur~^^~"
                "REGIONS~^^~^^."
            )


@dataclass(frozen=True)
class Case:
    """One image of one subject.

    Attributes:
        name: unique within its modality.
        modality: the modality's own name, such as "dxa".
        subject: whom it shows; roles are given by subject.
        role: train, validation or test.
        mirrored: the other side of the body (left instead of right): study space sees it reflected.
        image, label, landmarks: paths relative to the study folder; label and landmarks may be absent.
        label_use: who may read the label: training, or evaluation alone.
        original: where the image was imported from, for the record.
    """

    name: str
    modality: str
    subject: str
    role: Role
    mirrored: bool
    image: str
    label: str | None = None
    label_use: LabelUse | None = None
    landmarks: str | None = None
    original: str = ""

    def __post_init__(self) -> None:
        where = f"case {self.modality}/{self.name}"
        check_name(self.name, where)
        check_name(self.modality, where)
        if not isinstance(self.subject, str) or not self.subject.strip():
            raise StudyError(f"{where}: the subject must be a text, got {self.subject!r}.")
        if type(self.mirrored) is not bool:
            raise StudyError(f"{where}: mirrored must be true or false, got {self.mirrored!r}.")
        try:
            object.__setattr__(self, "role", Role(self.role))
        except ValueError:
            raise StudyError(
                f"{where}: the role must be train, validation or test, got {self.role!r}."
            ) from None
        for path in (self.image, self.label, self.landmarks):
            if path is not None:
                check_inside(path, where)
        if self.label_use not in (None, "training", "evaluation"):
            raise StudyError(f"{where}: label_use must be training or evaluation, got {self.label_use!r}.")
        if (self.label is None) != (self.label_use is None):
            raise StudyError(
                f"{where}: label and label_use go together, got {self.label!r}, {self.label_use!r}."
            )
        if not isinstance(self.original, str):
            raise StudyError(f"{where}: original must be a text, got {self.original!r}.")

    @property
    def key(self) -> str:
        """`modality/name`: unique in the study."""
        return f"{self.modality}/{self.name}"


def values_to_indices(values: NDArray[Any], structures: Sequence[Structure], where: str) -> NDArray[Any]:
    """Label values of a file to class indices (0 background, c = position in `structures` + 1).

    Raises:
        StudyError: listing the values found and the structures known, if a value is no structure.
    """
    check_values(values, structures, where)
    known = [0, *(s.value for s in structures)]
    order = np.argsort(known)
    dtype = np.uint8 if len(known) <= 256 else np.uint16
    return order[np.searchsorted(np.asarray(known)[order], values)].astype(dtype)


def check_values(values: NDArray[Any], structures: Sequence[Structure], where: str) -> None:
    """Raise StudyError, as `values_to_indices` does, if a value is no structure."""
    found = _different(values)
    known = [0, *(s.value for s in structures)]
    if unknown := [v for v in found.tolist() if v not in known]:
        listed = ", ".join(f"{s.value} {s.name}" for s in structures)
        raise StudyError(
            f"{where}: the values {_short(unknown)} are no structure of this study. "
            f"Found: {_short(found.tolist())}; known: 0 background, {listed}. "
            "Correct the file, or name the structures with --structures."
        )


def _different(values: NDArray[Any]) -> NDArray[Any]:
    """The different values, sorted; small numbers are counted, which for a volume is much faster."""
    if values.dtype not in (np.uint8, np.uint16):
        return np.unique(values)
    flat, most = values.ravel(), np.iinfo(values.dtype).max + 1
    there = np.zeros(most, dtype=bool)
    for start in range(0, flat.size, _AT_ONCE):
        there |= np.bincount(flat[start : start + _AT_ONCE], minlength=most) > 0
    return np.flatnonzero(there)


def _short(values: Sequence[object], most: int = 20) -> str:
    text = ", ".join(str(v) for v in values[:most])
    return text if len(values) <= most else f"{text} and {len(values) - most} more"
