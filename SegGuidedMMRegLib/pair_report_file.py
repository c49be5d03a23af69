"""The file `report.json` of a pair: writing, finding and reading it, and what it must hold to be read.

`pair_report.py` says what its entries mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from SegGuidedMMRegLib import __version__
from SegGuidedMMRegLib.documents import DocumentError, read_json
from SegGuidedMMRegLib.files import write_text_atomically

REPORT_NAME = "report.json"
STATES = ("identity", "before", "after", "in_view")

Report = dict[str, Any]

Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=10_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Overlap(_Part):
    dice: Number | None
    hd95_mm: Number | None
    assd_mm: Number | None


class _Measured(_Overlap):
    reason: Text | None
    size: Number | None = None


class _Folded(_Part):
    folded: int


class _Structure(_Part):
    name: Text
    identity: _Measured | None
    before: _Measured | None
    after: _Measured | None
    in_view: _Measured | None = None
    covered: Number | None = None
    fixed_size: Number | None = None
    folds: _Folded | None = None


class _Folds(_Part):
    total: int
    smallest_jacobian: Number | None


class _Consistency(_Part):
    mean_mm: Number | None
    mean_voxels: Number | None
    max_voxels: Number | None


class _Landmarks(_Part):
    mean_before_mm: Number | None
    mean_after_mm: Number | None


class _Labels(_Part):
    moving: Literal["truth", "prediction", "given"]
    fixed: Literal["truth", "prediction", "given"]


class _Means(_Part):
    identity: _Overlap | None = None
    before: _Overlap | None = None
    after: _Overlap | None = None
    in_view: _Overlap | None = None

    @model_validator(mode="after")
    def _is_of_one_pair(self) -> Self:
        if (self.before is None) != (self.after is None):
            raise ValueError("before and after go together")
        return self


class PairReportFile(_Part):
    """A report as `pair_report` and `failed_report` make it; entries that are not named here may be there."""

    moving: Text
    fixed: Text
    status: Literal["ok", "failed"]
    moving_modality: Text = ""
    fixed_modality: Text = ""
    reasons: list[Text] = []
    warnings: list[Text] = []
    seconds: Number = 0.0
    labels: _Labels | None = None
    structures: list[_Structure] = []
    mean: _Means = _Means()
    folds: _Folds | None = None
    inverse_consistency: _Consistency | None = None
    landmarks: _Landmarks | None = None
    guiding_landmarks: _Landmarks | None = None


def failed_report(moving: str, fixed: str, reason: str, *, seconds: float = 0.0) -> Report:
    """The report of a pair that could not be registered at all."""
    return {
        "format": 1,
        "version": __version__,
        "moving": moving,
        "fixed": fixed,
        "moving_modality": "",
        "fixed_modality": "",
        "status": "failed",
        "reasons": [reason],
        "warnings": [],
        "seconds": seconds,
        "labels": None,
        "structures": [],
        "mean": dict.fromkeys(STATES),
        "folds": None,
        "inverse_consistency": None,
        "landmarks": None,
        "guiding_landmarks": None,
    }


def against_of(report: Report) -> str:
    """What a pair was measured against: "truth", "prediction" or "given", both as "moving/fixed" where
    they differ, or "" for nothing."""
    labels = report["labels"]
    if not labels:
        return ""
    moving, fixed = labels["moving"], labels["fixed"]
    return moving if moving == fixed else f"{moving}/{fixed}"


def write_pair_report(report: Report, folder: Path) -> Path:
    """Write `report.json` into the folder of a registration, whole or not at all."""
    path = folder / REPORT_NAME
    write_text_atomically(path, json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return path


def pair_reports(folder: Path, unreadable: list[str] | None = None) -> Iterator[Report]:
    """The reports under `registrations/`, one at a time, in order of their folders.

    Args:
        folder: that of all pairs.
        unreadable: takes a sentence for each report that cannot be read.

    Yields:
        Reports as `read_pair_report` gives them.
    """
    for path in report_paths(folder):
        try:
            yield read_pair_report(path.parent)
        except ValueError as error:
            if unreadable is not None:
                unreadable.append(str(error))


def report_paths(folder: Path) -> list[Path]:
    """The `report.json` of each registered pair under `folder`; those that are being written do not count."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    paths = (folder / name / REPORT_NAME for name in found if not name.startswith("."))
    return [path for path in paths if path.is_file()]


def read_pair_report(folder: Path) -> Report:
    """The report in the folder of a pair, with the folder's name as `pair`.

    What it does not say is as in `failed_report`, without reasons.

    Raises:
        ValueError: naming file, entry and remedy, if it cannot be read.
    """
    path, where = folder / REPORT_NAME, f"{folder.name}/{REPORT_NAME}"
    if path.is_symlink():
        raise ValueError(f"{where} is a link: register the pair again.")
    try:
        record = read_json(path)
        PairReportFile.model_validate(record, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ValueError(f"{where} is damaged ({entry}: {first['msg']}): register the pair again.") from None
    except (DocumentError, OSError) as error:
        raise ValueError(f"{where} is damaged ({error}): register the pair again.") from None
    return {**failed_report("", "", ""), "reasons": [], **record, "pair": folder.name}
