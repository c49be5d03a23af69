"""Which image to label next: the one that best stands for those that no labelled image resembles yet.

The source images of role train are compared where pre-alignment puts them, coarsely, so this needs no
training. The next case is the one after whose labelling the mean distance from an image to the nearest
labelled image is least (a greedy k-median; Minoux, Accelerated greedy algorithms for maximizing submodular
set functions, 1978). So the middle of a crowd comes before an odd one out, and no image comes twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.images import normalised_study_image
from SegGuidedMMRegLib.provenance import digest_of
from SegGuidedMMRegLib.space import FloatArray, Grid
from SegGuidedMMRegLib.study import Case, Study, StudyError, TrainingView
from SegGuidedMMRegLib.study_file import resolve_inside

FEATURE_SIZE = {2: 32, 3: 16}
"""Voxels of the longest axis at which images are compared, by dimension."""

_CACHE = "suggestion/features.safetensors"
_ALIKE = 1e-6


@dataclass(frozen=True)
class Suggestion:
    """A case to label.

    Attributes:
        case: of the source modality, role train, without labels for training.
        stands_for: how many images would be nearer to it than to any labelled one, itself included.
        gain: by which share the mean distance to the nearest labelled image would fall, 0 to 1.
        reason: in words.
    """

    case: Case
    stands_for: int
    gain: float
    reason: str

    def to_record(self) -> dict[str, Any]:
        """Plain values, for an event."""
        return {
            "case": self.case.key,
            "stands_for": self.stands_for,
            "gain": round(self.gain, 4),
            "reason": self.reason,
        }


def suggest(study: Study, count: int = 5, reporter: Reporter | None = None) -> list[Suggestion]:
    """The next cases to label, the most useful first; each as if those before it were labelled already.

    Args:
        study: pre-aligned at least.
        count: how many, at most.
        reporter: hears about progress while images are read for the first time.

    Raises:
        StudyError: if there is no image to suggest, or one is not pre-aligned.
    """
    view = study.training_view()
    cases = view.source_cases
    labelled = [n for n, case in enumerate(cases) if case.label is not None]
    if len(labelled) == len(cases):
        raise StudyError(
            f"{study.folder}: no image of {study.source!r} is left to label: all {len(cases)} training "
            "images have labels. `segmmreg add` adds images."
        )
    distances = _distances(_features(view, cases, reporter or Reporter()))
    found: list[Suggestion] = []
    for row, nearest_before, nearest_after in greedy(distances, labelled, count):
        nearer = int((nearest_after < nearest_before - _ALIKE).sum())
        gain = 1 - nearest_after.sum() / max(nearest_before.sum(), _ALIKE)
        reason = _reason(len(cases), nearer, gain, first=not labelled and not found)
        found.append(Suggestion(cases[row], nearer, float(gain), reason))
    return found


def greedy(
    distances: FloatArray, labelled: Sequence[int], count: int
) -> list[tuple[int, FloatArray, FloatArray]]:
    """Rows to label, best first, with every row's distance to the nearest labelled one before and after.

    Args:
        distances: between all rows, (n, n), symmetric.
        labelled: rows that are labelled.
        count: rows wanted, at most.
    """
    nearest = distances[:, list(labelled)].min(1) if labelled else np.full(len(distances), distances.max())
    left = set(range(len(distances))) - set(labelled)
    found: list[tuple[int, FloatArray, FloatArray]] = []
    while left and len(found) < count:
        candidates = sorted(left)
        after = np.minimum(nearest[:, None], distances[:, candidates])
        best = int(after.sum(0).argmin())
        found.append((candidates[best], nearest, after[:, best]))
        nearest = after[:, best]
        left.discard(candidates[best])
    return found


def _reason(images: int, nearer: int, gain: float, *, first: bool) -> str:
    if first:
        return f"resembles the other {images - 1} images most; none is labelled yet"
    if nearer <= 1:
        return "differs from every labelled image, and no other image resembles it more than those"
    return (
        f"stands for {nearer} of {images} images better than any labelled one; the distance to the nearest "
        f"labelled image falls by {gain:.0%}"
    )


# -- features -------------------------------------------------------------------------------------------
def _distances(features: FloatArray) -> FloatArray:
    """Euclidean distances between all rows, (n, n)."""
    square = (features**2).sum(1)
    return np.sqrt(np.maximum(square[:, None] + square - 2 * features @ features.T, 0))


def _features(view: TrainingView, cases: Sequence[Case], reporter: Reporter) -> FloatArray:
    """Each image, coarse and in study space, with mean 0 and length 1: (n, voxels)."""
    grid = view.grid.with_spacing(max(view.grid.extent_mm[: view.dimension]) / FEATURE_SIZE[view.dimension])
    path = view.folder / "models" / "cache" / _CACHE
    kept = _read(path)
    keys, rows = [], []
    reporter.started("comparing images", len(cases))
    for done, case in enumerate(cases, start=1):
        keys.append(_key(view, case, grid))
        rows.append(kept[keys[-1]] if keys[-1] in kept else _feature(view, case, grid))
        reporter.progress("comparing images", done, len(cases))
    if set(keys) != set(kept):
        with atomic_path(path) as temporary:
            save_file(dict(zip(keys, rows, strict=True)), temporary)
    return np.stack(rows).astype(float)


def _feature(view: TrainingView, case: Case, grid: Grid) -> FloatArray:
    seen = normalised_study_image(view.image(case), grid, view.study_to_case(case)).ravel()
    centred = seen - seen.mean()
    return (centred / max(float(np.linalg.norm(centred)), 1e-6)).astype(np.float32)


def _key(view: TrainingView, case: Case, grid: Grid) -> str:
    """Changes with the file, its place in study space and the grid."""
    state = resolve_inside(view.folder, case.image).stat()
    place = view.study_to_case(case).round(6).tolist()
    return digest_of(case.key, state.st_size, state.st_mtime_ns, place, str(grid))[:32]


def _read(path: Path) -> dict[str, FloatArray]:
    """What is kept; nothing if it is damaged or not there."""
    try:
        kept: dict[str, FloatArray] = load_file(path)
    except (OSError, SafetensorError):
        return {}
    return kept
