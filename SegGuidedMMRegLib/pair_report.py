"""What is known of one registered pair: `report.json` beside its transforms.

Overlaps and distances are measured on the fixed grid, between fixed labels and moving ones taken there

* `identity`: as the files lie in physical space; only where the two images overlap there,
* `before`: by the pre-alignment alone, A_moving · A_fixed⁻¹,
* `after`: by the whole forward transform,
* `in_view`: the same, looking only where the moving image reaches. Where it ends earlier than the fixed one,
  the rest of a structure counts as missing in `after`, however good the transform; `in_view` is free of that,
  and `covered` says how much of each fixed structure it has seen.

`size` of a structure is that of the moving one on the fixed grid, mm² in 2D and mm³ in 3D; `fixed_size` is
that of the fixed one. True labels are compared where both sides have them, else predictions; `labels` in the
report says which. A pair fails if a voxel of either direction folds or if going there and back misses the
start by more than the limits below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegLib import __version__, metrics
from SegGuidedMMRegLib.fields import SpatialTransform, corner_jacobians_minimum, inverse_consistency_error
from SegGuidedMMRegLib.images import Image, resample
from SegGuidedMMRegLib.pair_report_file import STATES, Report
from SegGuidedMMRegLib.points import MatchedLandmarks, PointList, match_points
from SegGuidedMMRegLib.space import FloatArray, Grid, apply_affine

if TYPE_CHECKING:
    from SegGuidedMMRegLib.study import Structure

MEASURES = ("dice", "hd95_mm", "assd_mm")
MEAN_LIMIT_VOXELS = 0.1
"""Largest mean forward∘inverse error, in voxels, of a pair that counts as registered."""
MAX_LIMIT_VOXELS = 0.5
"""Largest single forward∘inverse error, in voxels, of a pair that counts as registered."""

LabelKind = Literal["truth", "prediction", "given"]


@dataclass(frozen=True)
class PairSide:
    """The moving or the fixed image of a pair and what is known of it.

    Attributes:
        name: of the case.
        modality: of the case, "" if the image is from outside the study.
        image: in its own physical space.
        truth: hand-made labels (class values), if any.
        prediction: labels (class values) that the registration went by, if any.
        landmarks: named points, LPS mm of the image, if any.
        given: whether the labels in `prediction` were given with the pair, not predicted.
    """

    name: str
    modality: str
    image: Image
    truth: Image | None = None
    prediction: Image | None = None
    landmarks: PointList | None = None
    given: bool = False

    def labels(self, *, truth_first: bool) -> tuple[Image, LabelKind] | None:
        """The truth or what was registered by, the wanted one if it is there, with the kind it is."""
        kind: LabelKind = "given" if self.given else "prediction"
        found: list[tuple[Image | None, LabelKind]] = [(self.truth, "truth"), (self.prediction, kind)]
        for labels, name in found if truth_first else reversed(found):
            if labels is not None:
                return labels, name
        return None


def pair_report(
    moving: PairSide,
    fixed: PairSide,
    forward: SpatialTransform,
    inverse: SpatialTransform,
    structures: Sequence[Structure],
    *,
    prealignment_lps: FloatArray,
    seconds: float,
    problems: Iterable[str] = (),
    warnings: Iterable[str] = (),
    guides: MatchedLandmarks | None = None,
) -> Report:
    """Measure a registered pair.

    Args:
        moving: the image that is warped.
        fixed: the image it is warped to.
        forward: fixed points to moving points, LPS mm.
        inverse: moving points to fixed points.
        structures: the label classes.
        prealignment_lps: 4x4, fixed points to moving points by the pre-alignment alone, LPS mm.
        seconds: how long the registration took.
        problems: reasons to call the pair failed that the caller knows already.
        warnings: what else the caller wants to be read.
        guides: landmarks that the registration was given; reported apart from those for evaluation.

    Returns:
        Plain values for `write_pair_report`: no NaN, no numpy; what is undefined is `None` with a reason.
    """
    labels = _choose_labels(moving, fixed)
    moved = (
        {}
        if labels is None
        else _moved_labels(labels.moving, moving.image.grid, fixed.image.grid, forward, prealignment_lps)
    )
    folds = _folds(forward, inverse, structures, None if labels is None else labels.fixed)
    consistency = inverse_consistency_error(forward, inverse, fixed.image.grid, moving.image.grid)
    per_structure = [] if labels is None else _structures(labels, moved, fixed.image.grid, structures, folds)
    reasons = [*problems, *_why_failed(folds, consistency)]
    report = {
        "format": 1,
        "version": __version__,
        "moving": moving.name,
        "fixed": fixed.name,
        "moving_modality": moving.modality,
        "fixed_modality": fixed.modality,
        "status": "failed" if reasons else "ok",
        "reasons": reasons,
        "warnings": [*warnings, *_warnings(per_structure)],
        "seconds": seconds,
        "labels": None if labels is None else {"moving": labels.moving_kind, "fixed": labels.fixed_kind},
        "structures": per_structure,
        "mean": {state: _mean_over(per_structure, state) for state in STATES},
        "folds": {key: folds[key] for key in ("forward", "inverse", "total", "smallest_jacobian")},
        "inverse_consistency": consistency,
        "landmarks": _landmarks(_common_landmarks(moving, fixed), forward, prealignment_lps),
        "guiding_landmarks": _landmarks(guides, forward, prealignment_lps),
    }
    return _plain(report)


# -- labels -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _PairLabels:
    moving: Image
    fixed: Image
    moving_kind: LabelKind
    fixed_kind: LabelKind


def _choose_labels(moving: PairSide, fixed: PairSide) -> _PairLabels | None:
    both_true = moving.truth is not None and fixed.truth is not None
    left, right = moving.labels(truth_first=both_true), fixed.labels(truth_first=both_true)
    if left is None or right is None:
        return None
    return _PairLabels(left[0], right[0], left[1], right[1])


def on_grid(labels: Image, grid: Grid) -> Image:
    """A label map on `grid`, by nearest neighbours where it lies on another one."""
    return labels if labels.grid.is_close(grid) else resample(labels, grid, None, interpolation="nearest")


def _moved_labels(
    moving: Image, moving_grid: Grid, grid: Grid, forward: SpatialTransform, prealignment_lps: FloatArray
) -> dict[str, NDArray[Any]]:
    """The moving labels on the fixed grid in each state that applies; `view` is where the moving image is."""
    found = {}
    if share_frame(moving_grid, grid):
        found["identity"] = resample(moving, grid, None, interpolation="nearest").array
    found["before"] = resample(moving, grid, prealignment_lps, interpolation="nearest").array
    found["after"] = forward.warp_labels(moving, grid).array
    everywhere = Image(np.ones(moving_grid.shape, dtype=np.uint8), moving_grid)
    found["view"] = forward.warp_labels(everywhere, grid).array > 0
    return found


def share_frame(a: Grid, b: Grid) -> bool:
    """Whether two images overlap as they lie: each holds the centre of the other."""
    return bool(a.contains(b.centre_lps_mm) and b.contains(a.centre_lps_mm))


# -- structures ---------------------------------------------------------------------------------------------
def _structures(
    labels: _PairLabels,
    moved: Mapping[str, NDArray[Any]],
    grid: Grid,
    structures: Sequence[Structure],
    folds: Mapping[str, Any],
) -> list[dict[str, Any]]:
    values = [s.value for s in structures]
    fixed = on_grid(labels.fixed, grid).array
    names = {
        "a_name": f"the moving {_spoken(labels.moving_kind)}",
        "b_name": f"the fixed {_spoken(labels.fixed_kind)}",
    }
    view = moved["view"]
    states = {
        state: metrics.compare(moved[state], fixed, values, grid.axis_spacing, **names)
        for state in ("identity", "before", "after")
        if state in moved
    }
    seen = np.where(view, moved["after"], 0), np.where(view, fixed, 0)
    whole = (seen[0] == moved["after"]).all() and (seen[1] == fixed).all()
    states["in_view"] = (
        states["after"] if whole else metrics.compare(*seen, values, grid.axis_spacing, **names)
    )
    rows = []
    for n, structure in enumerate(structures):
        row: dict[str, Any] = {"value": structure.value, "name": structure.name}
        for state in STATES:
            row[state] = _measures(states[state][n]) if state in states else None
        row["fixed_size"] = states["after"][n].volume_b
        within = fixed == structure.value
        row["covered"] = float(view[within].mean()) if within.any() else None
        row["folds"] = folds["structures"][n]
        rows.append(row)
    return rows


def _spoken(kind: LabelKind) -> str:
    return "prediction" if kind == "prediction" else "labels"


def _measures(found: metrics.Comparison) -> dict[str, Any]:
    record = asdict(found)
    return {**{key: record[key] for key in (*MEASURES, "reason")}, "size": found.volume_a}


def _mean_over(rows: Sequence[Mapping[str, Any]], state: str) -> dict[str, float | None] | None:
    """Means over the structures for which a measure is defined; `None` if the state does not apply."""
    found = [row[state] for row in rows if row[state] is not None]
    if not found:
        return None
    return {measure: mean_or_none(f[measure] for f in found) for measure in MEASURES}


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; `None` without any."""
    there = [v for v in values if v is not None]
    return fmean(there) if there else None


# -- folds, consistency, landmarks --------------------------------------------------------------------------
def _folds(
    forward: SpatialTransform,
    inverse: SpatialTransform,
    structures: Sequence[Structure],
    labels: Image | None,
) -> dict[str, Any]:
    """Folds of x + u(x) in both directions, by the smallest of all corner Jacobians of a voxel."""
    there, back = corner_jacobians_minimum(forward.field), corner_jacobians_minimum(inverse.field)
    mask = there <= 0
    on_field = None if labels is None else on_grid(labels, forward.field.grid).array
    counts = {"forward": metrics.count_folds(mask), "inverse": metrics.count_folds(back <= 0)}
    return {
        **{name: _fold_record(count) for name, count in counts.items()},
        "total": sum(count.folded for count in counts.values()),
        "smallest_jacobian": float(min(there.min(), back.min())),
        "structures": []
        if on_field is None
        else [_fold_record(metrics.count_folds(mask, on_field == s.value)) for s in structures],
    }


def _fold_record(count: metrics.FoldCount) -> dict[str, Any]:
    return {"folded": count.folded, "voxels": count.voxels, "share": count.share}


def _why_failed(folds: Mapping[str, Any], consistency: Mapping[str, float]) -> list[str]:
    reasons = []
    if folds["total"]:
        parts = (f"{folds[way]['folded']} {way}" for way in ("forward", "inverse"))
        reasons.append(f"the transform folds in {folds['total']} voxels ({', '.join(parts)}); none may fold")
    mean, largest = consistency["mean_voxels"], consistency["max_voxels"]
    if not (math.isfinite(mean) and math.isfinite(largest)):
        reasons.append("no voxel of the fixed image lands inside the moving image")
        return reasons
    if mean > MEAN_LIMIT_VOXELS:
        reasons.append(
            f"forward then inverse misses the start by {mean:.3f} voxel on average, "
            f"above {MEAN_LIMIT_VOXELS:g}"
        )
    if largest > MAX_LIMIT_VOXELS:
        reasons.append(
            f"forward then inverse misses the start by {largest:.2f} voxel at worst, "
            f"above {MAX_LIMIT_VOXELS:g}"
        )
    return reasons


def _warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [f"{row['name']} is {row['after']['reason']}" for row in rows if row["after"]["reason"]]
    cut = [f"{row['name']} ({1 - row['covered']:.0%})" for row in rows if (row["covered"] or 1.0) < 0.95]
    if cut:
        verb = "lies" if len(cut) == 1 else "lie"
        found.append(f"{', '.join(cut)} {verb} partly outside the moving image")
    for row in rows:
        before, after = row["before"]["dice"], row["after"]["dice"]
        if before is not None and after is not None and after < before - 0.01:
            found.append(f"the overlap of {row['name']} fell from {before:.2f} to {after:.2f}")
    return found


def _common_landmarks(moving: PairSide, fixed: PairSide) -> MatchedLandmarks | None:
    """The landmarks that both sides name; `None` without any."""
    if moving.landmarks is None or fixed.landmarks is None:
        return None
    matched = match_points(moving.landmarks, fixed.landmarks)
    return matched if matched.names else None


def _landmarks(
    matched: MatchedLandmarks | None, forward: SpatialTransform, prealignment_lps: FloatArray
) -> dict[str, Any] | None:
    """Errors of the landmarks, in the moving image's mm; `None` without any."""
    if matched is None:
        return None
    start, goal = matched.fixed_lps_mm, matched.moving_lps_mm
    before = metrics.landmark_distances(apply_affine(prealignment_lps, start), goal)
    after = metrics.landmark_distances(forward.transform_points(start), goal)
    return {
        "names": list(matched.names),
        "before_mm": before,
        "after_mm": after,
        "mean_before_mm": before.mean(),
        "mean_after_mm": after.mean(),
        "max_after_mm": after.max(),
    }


def _plain(value: Any) -> Any:
    """JSON values only: arrays as lists, numpy numbers as numbers, what is not finite as `None`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
