"""What a person gives to correct a pair: edited copies of its segmentations, and points that belong together.

They are nodes of the scene, known by their tags, so they outlive a saved scene and stay until `discard`. The
points of the moving image are set where it is seen warped; they lie under the forward transform, so that
their own coordinates are those of the moving image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import slicer
from slicer.i18n import tr as _

from SegGuidedMMRegGui import NodeTags, SegmentationNodes
from SegGuidedMMRegGui.NodeTags import BridgeError, Tag
from SegGuidedMMRegGui.PairRegistration import Side
from SegGuidedMMRegGui.PointNodes import POINTS
from SegGuidedMMRegGui.ReviewViews import Shown
from SegGuidedMMRegGui.SceneBridge import PairNodes, SceneBridge
from SegGuidedMMRegGui.Steps import Steps, beside
from SegGuidedMMRegLib.images import read_labels

SideName = Literal["fixed", "moving"]
SIDES: tuple[SideName, ...] = ("fixed", "moving")
_EDITED, _POINTS, _PLACED = "edited", "correction_points", "placed_points"
KINDS = tuple(f"{side}_{what}" for side in SIDES for what in (_EDITED, _POINTS))
"""Of the nodes that a person's work is in."""


class Correction:
    """What is given for one pair.

    Args:
        bridge: to the scene.
        pair: the pair that is looked at.
        subject: name of the pair.
    """

    def __init__(self, bridge: SceneBridge, pair: PairNodes, subject: str) -> None:
        self._bridge, self._pair, self._subject = bridge, pair, subject
        self._scene, self._shown = bridge.scene, Shown.of(pair)

    # -- segmentations ----------------------------------------------------------------------------------
    def edited(self, side: SideName) -> Any:
        """The segmentation to edit, or None if it was not asked for yet."""
        return NodeTags.find_node(self._scene, SegmentationNodes.SEGMENTATION, self._tag(side, _EDITED))

    def editing(self, side: SideName) -> Steps[Any]:
        """A copy of the structures by which the pair was registered, made in short steps.

        What was drawn in it before stays.

        Raises:
            BridgeError: if the image is not in the scene any more.
        """
        if (found := self.edited(side)) is not None:
            return found
        volume = self.volume(side)
        name = f"{volume.GetName()} corrected"
        source = self._pair.fixed_labels if side == "fixed" else self._pair.moving_labels
        tag, scene, structures = self._tag(side, _EDITED), self._scene, self._bridge.study.structures
        if source is not None and scene.IsNodePresent(source):
            node = NodeTags.node_for(scene, SegmentationNodes.SEGMENTATION, tag, name)
            node.CreateDefaultDisplayNodes()
            node.GetSegmentation().DeepCopy(source.GetSegmentation())
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
            node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
            return node
        case = self._bridge.case_of(volume)
        path = None if case is None else self._bridge.study.prediction_path(case)
        if path is None or not path.is_file():
            raise BridgeError(
                _(
                    "There is no segmentation of {name} to begin with. Register the pair again (step 4)."
                ).format(name=volume.GetName())
            )
        labels = yield from beside(lambda: read_labels(path))
        return (
            yield from SegmentationNodes.showing_labels(scene, labels, structures, tag, name, volume=volume)
        )

    def volume(self, side: SideName) -> Any:
        """The image of a side.

        Raises:
            BridgeError: if it is not in the scene any more.
        """
        node = self._shown.fixed if side == "fixed" else self._shown.moving
        if node is None or not self._scene.IsNodePresent(node):
            raise BridgeError(
                _("The {side} image is not in the scene any more. Choose the pair again.").format(side=side)
            )
        return node

    # -- points -----------------------------------------------------------------------------------------
    def points(self, side: SideName) -> Any:
        """The point list of a side, or None if there is none yet."""
        return NodeTags.find_node(self._scene, POINTS, self._tag(side, _POINTS))

    def ready_points(self, side: SideName) -> Any:
        """The point list of a side, made if there is none yet."""
        node = self.points(side)
        if node is None:
            node = NodeTags.node_for(self._scene, POINTS, self._tag(side, _POINTS), f"{side} points")
            node.SetControlPointLabelFormat("%d")
            if node.GetDisplayNode() is None:
                node.CreateDefaultDisplayNodes()
        if side == "moving" and self._shown.forward is not None:
            node.SetAndObserveTransformNodeID(self._shown.forward.GetID())
        return node

    def pairs_of_points(self) -> int:
        """How many points are set in both images."""
        names = [self._names(side) for side in SIDES]
        return len(names[0] & names[1])

    def _names(self, side: SideName) -> set[str]:
        node = self.points(side)
        return set() if node is None else {label for label, _place in _placed(node)}

    def discard(self) -> None:
        """Remove what was given."""
        nodes = [
            n for n in self._bridge.nodes(self._subject) if (t := NodeTags.tag_of(n)) and t.kind in KINDS
        ]
        NodeTags.remove_nodes(self._scene, nodes)

    # -- registering ------------------------------------------------------------------------------------
    @property
    def is_empty(self) -> bool:
        """Whether nothing is given."""
        return not self.pairs_of_points() and all(self.edited(side) is None for side in SIDES)

    def sides(self, then: Callable[[Side, Side], None]) -> None:
        """Call `then` with fixed and moving as `PairRegistration` takes them.

        Raises:
            BridgeError: if an image is not in the scene any more.
        """
        copies = {side: self._copied_points(side) for side in SIDES} if self.pairs_of_points() else {}
        try:
            given = {
                side: Side(self.volume(side), self.edited(side), points=copies.get(side)) for side in SIDES
            }
            then(given["fixed"], given["moving"])
        finally:
            NodeTags.remove_nodes(self._scene, copies.values())

    def _copied_points(self, side: SideName) -> Any:
        """The points in the coordinates of their image, those that both images have."""
        common = self._names("fixed") & self._names("moving")
        node = NodeTags.node_for(self._scene, POINTS, self._tag(side, _PLACED), f"{side} points given")
        node.RemoveAllControlPoints()
        for label, position in _placed(self.points(side)):
            if label in common:
                node.AddControlPointWorld(position, label)
        return node

    def _tag(self, side: SideName, what: str) -> Tag:
        return Tag(f"{side}_{what}", str(self._bridge.study.folder.resolve()), self._subject)


def _placed(node: Any) -> list[tuple[str, list[float]]]:
    """Label and own coordinates of the points that have a place."""
    defined = slicer.vtkMRMLMarkupsNode.PositionDefined
    found = []
    for n in range(node.GetNumberOfControlPoints()):
        if node.GetNthControlPointPositionStatus(n) == defined:
            position = [0.0, 0.0, 0.0]
            node.GetNthControlPointPosition(n, position)
            found.append((node.GetNthControlPointLabel(n), position))
    return found
