"""How far landmarks of the moving image are from where a transform node takes those of the fixed image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk

from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.Places import flipped
from SegGuidedMMRegGui.PointNodes import read_points
from SegGuidedMMRegLib.points import match_points
from SegGuidedMMRegLib.space import FloatArray


@dataclass(frozen=True)
class LandmarkErrors:
    """Of the points that both lists name.

    Attributes:
        names: of the points.
        before_mm: by the affine part alone; None where the transform has no such part.
        after_mm: by the whole transform.
        unmatched: names that only one list has.
    """

    names: tuple[str, ...]
    before_mm: FloatArray | None
    after_mm: FloatArray
    unmatched: tuple[str, ...]


def landmark_errors(forward: Any, fixed: Any, moving: Any) -> LandmarkErrors:
    """Compare two point lists of the scene, in mm of the moving image.

    Args:
        forward: transform node, from fixed to moving points.
        fixed, moving: point lists.

    Raises:
        BridgeError: naming the lists, if they have no point of the same name.
    """
    matched = match_points(read_points(moving).points, read_points(fixed).points)
    if not matched.names:
        raise BridgeError(
            f"{fixed.GetName()!r} and {moving.GetName()!r} have no point of the same name. Give points that "
            "belong together the same name."
        )
    transform = forward.GetTransformFromParent()
    affine = _affine(transform)
    goal = matched.moving_lps_mm
    before = None if affine is None else _distances(affine, matched.fixed_lps_mm, goal)
    return LandmarkErrors(
        matched.names, before, _distances(transform, matched.fixed_lps_mm, goal), matched.unmatched
    )


def _affine(transform: Any) -> Any:
    """What is applied last, if that is linear."""
    if not transform.IsA("vtkGeneralTransform") or transform.GetNumberOfConcatenatedTransforms() < 2:
        return None
    last = transform.GetConcatenatedTransform(transform.GetNumberOfConcatenatedTransforms() - 1)
    return last if vtk.vtkLinearTransform.SafeDownCast(last) is not None else None


def _distances(transform: Any, start: FloatArray, goal: FloatArray) -> FloatArray:
    moved = np.array([transform.TransformPoint(point) for point in flipped(start).tolist()])
    found: FloatArray = np.linalg.norm(flipped(moved) - goal, axis=1)
    return found
