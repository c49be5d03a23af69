"""What a `report.json` must hold for evaluation and report page to read it: names, types and nesting."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

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
    moving: Literal["truth", "prediction"]
    fixed: Literal["truth", "prediction"]


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
