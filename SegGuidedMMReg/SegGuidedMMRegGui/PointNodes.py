"""Landmarks as point lists of the scene, in world coordinates, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer

from SegGuidedMMRegGui.NodeTags import BridgeError, Tag, node_for
from SegGuidedMMRegGui.Places import flipped
from SegGuidedMMRegLib.points import PointList

POINTS = "vtkMRMLMarkupsFiducialNode"


@dataclass(frozen=True)
class PointsRead:
    """A point list of the scene.

    Attributes:
        points: world, LPS mm.
        unplaced: names of points that have no position yet, left out.
    """

    points: PointList
    unplaced: tuple[str, ...]


def show_points(scene: Any, points: PointList, tag: Tag, name: str) -> Any:
    """Points as a point list: the one with this tag, filled anew, or a new one."""
    node = node_for(scene, POINTS, tag, name)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    node.RemoveAllControlPoints()
    for label, position in zip(points.names, flipped(points.points_lps_mm).tolist(), strict=True):
        node.AddControlPointWorld(position, label)
    return node


def read_points(node: Any) -> PointsRead:
    """A point list in world coordinates, with all its parent transforms; the node is not changed.

    Raises:
        BridgeError: naming the node, if it is no point list or has no placed point.
    """
    if not node.IsA("vtkMRMLMarkupsNode"):
        raise BridgeError(
            f"The node {node.GetName()!r} is a {node.GetClassName()}, and a point list is needed."
        )
    defined = slicer.vtkMRMLMarkupsNode.PositionDefined
    names, positions, unplaced = [], [], []
    for number in range(node.GetNumberOfControlPoints()):
        label = node.GetNthControlPointLabel(number)
        if node.GetNthControlPointPositionStatus(number) != defined:
            unplaced.append(label)
            continue
        names.append(label)
        positions.append(node.GetNthControlPointPositionWorld(number))
    if not names:
        raise BridgeError(f"The point list {node.GetName()!r} has no point. Place some, or leave it out.")
    return PointsRead(PointList(tuple(names), flipped(np.array(positions, dtype=float))), tuple(unplaced))
