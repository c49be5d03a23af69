"""A case that is open for annotation: its image, the segmentation that is drawn, and what of it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from vtk.util.numpy_support import vtk_to_numpy

from SegGuidedMMRegGui import NodeTags
from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.SceneBridge import SceneBridge
from SegGuidedMMRegGui.SegmentationNodes import SegmentsRead, read_segments
from SegGuidedMMRegGui.VolumeNodes import range_of
from SegGuidedMMRegLib.cases import Case, Role
from SegGuidedMMRegLib.images import Image, write_labels

_LABELS = "Binary labelmap"
_OWN_HELPERS = ("Display", "Storage", "Slice", "Selection", "SegmentEditor", "SubjectHierarchy")


@dataclass(frozen=True)
class CaseFiles:
    """What lies on the disk of a case: its image, and its segmentation if there is one.

    Attributes:
        range: of most of its values, 1 to 99 %.
    """

    image: Image
    labels: Image | None
    range: tuple[float, float]


def read_files(bridge: SceneBridge, case: Case) -> CaseFiles:
    """Read them; no node is asked, so any thread may.

    Raises:
        StudyError, ImageError, OSError: naming the file.
    """
    image = bridge.study.read_image(case)
    labels = bridge.read_drawn_labels(case) if bridge.label_path(case).is_file() else None
    return CaseFiles(image, labels, range_of(image.array))


def usual_use(bridge: SceneBridge, case: Case) -> str:
    """What labels of the case are for, where the user does not say it."""
    trains = case.modality == bridge.study.source and case.role != Role.TEST
    return "training" if trains else "evaluation"


class OpenCase:
    """The case in the scene.

    Args:
        bridge: shows it; of the study to which it belongs, also when another one is open later.
        case: which.
        files: of it.

    Attributes:
        volume, segmentation: its nodes.
        use: of its labels: training, evaluation, or none for a draft.
        told_use: what the study says of it.
        was_found: whether the scene has a drawing of it that is not the one of the study.
        is_new: whether its image was not in the scene before.
    """

    def __init__(self, bridge: SceneBridge, case: Case, files: CaseFiles) -> None:
        self.bridge, self.case = bridge, case
        self.grid = files.image.grid
        former = {node.GetID() for node in bridge.nodes(case.key)}
        drawn = bridge.labels_node(case)
        self.volume = bridge.show_case(case, files.image, files.range)
        self.was_found = drawn is not None and not self._is_saved(drawn, files.labels)
        if self.was_found:
            self.segmentation = drawn
        elif files.labels is not None:
            self.segmentation = bridge.show_labels(case, files.labels)
        else:
            self.segmentation = bridge.new_labels(case)
        nodes = (self.volume, self.segmentation)
        self.is_new = self.volume.GetID() not in former
        self._made = [node for node in nodes if node.GetID() not in former]
        self.told_use = case.label_use or "none"
        self.use = self.told_use if files.labels is not None else usual_use(bridge, case)
        self._saved = None if self.was_found else self.stamp

    @property
    def is_there(self) -> bool:
        """Whether the scene still has its nodes."""
        scene = self.bridge.scene
        return all(scene.IsNodePresent(node) for node in (self.volume, self.segmentation))

    @property
    def stamp(self) -> tuple[int, ...]:
        """Changes with every stroke."""
        segmentation = self.segmentation.GetSegmentation()
        segments = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
        data = [segment.GetRepresentation(_LABELS) for segment in segments]
        return (len(segments), *(0 if each is None else each.GetMTime() for each in data))

    @property
    def is_changed(self) -> bool:
        """Whether something was drawn since it was saved."""
        return self.is_there and self.stamp != self._saved

    @property
    def is_untold(self) -> bool:
        """Whether the study does not know yet what the labels that lie in it are for."""
        return self.use != self.told_use and self.bridge.label_path(self.case).is_file()

    @property
    def is_drawn(self) -> bool:
        """Whether any structure has a voxel."""
        return _is_drawn(self.segmentation)

    def settled(self) -> None:
        """What is there now is what is saved; the Segment Editor may have rearranged it when it took it."""
        if not self.was_found:
            self._saved = self.stamp

    def drawn(self) -> SegmentsRead:
        """What is drawn, on the grid of the image.

        Raises:
            BridgeError: naming the node and the remedy.
        """
        parent = self.volume.GetParentTransformNode()
        return read_segments(self.segmentation, self.bridge.study.structures, self.grid, parent=parent)

    def write(self, drawn: SegmentsRead) -> None:
        """Write it into the study; no node is asked, so any thread may.

        Raises:
            OSError, ImageError: naming the file; the earlier one is whole then.
        """
        write_labels(drawn.labels, drawn.labels.segments, self.bridge.label_path(self.case))

    def saved(self, stamp: tuple[int, ...]) -> None:
        """What had this stamp is on the disk."""
        self._saved, self.was_found = stamp, False

    def show(self, labels: Image) -> None:
        """Put other labels in the place of what is drawn."""
        self.bridge.show_labels(self.case, labels)

    def close(self) -> None:
        """Take its nodes out of the scene, if they came in with it and nobody else uses them."""
        scene = self.bridge.scene
        for node in (self.segmentation, self.volume):
            is_ours = node in self._made and scene.IsNodePresent(node)
            if is_ours and not self._is_used(node):
                NodeTags.remove_nodes(scene, [node])

    def _is_used(self, node: Any) -> bool:
        if node.GetTransformNodeID() is not None:
            return True
        scene = self.bridge.scene
        nodes = (scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes()))
        others = (other for other in nodes if not any(k in other.GetClassName() for k in _OWN_HELPERS))
        return any(_refers(other, node) for other in others if other is not self.segmentation)

    def _is_saved(self, node: Any, labels: Image | None) -> bool:
        """Whether a node of the scene holds what the study has."""
        if not _is_drawn(node):
            return True
        try:
            found = read_segments(node, self.bridge.study.structures, self.grid).labels.array
        except BridgeError:  # such as an overlap, which is for the user to see to
            return False
        return np.array_equal(found, np.zeros_like(found) if labels is None else labels.array)


def _refers(node: Any, to: Any) -> bool:
    roles = (node.GetNthNodeReferenceRole(n) for n in range(node.GetNumberOfNodeReferenceRoles()))
    return any(node.HasNodeReferenceID(role, to.GetID()) for role in roles)


def _is_drawn(node: Any) -> bool:
    segmentation = node.GetSegmentation()
    segments = (segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments()))
    return any(_holds_something(segment) for segment in segments)


def _holds_something(segment: Any) -> bool:
    data = segment.GetRepresentation(_LABELS)
    if data is None or data.GetPointData().GetScalars() is None or data.GetNumberOfPoints() == 0:
        return False
    return bool((vtk_to_numpy(data.GetPointData().GetScalars()) == segment.GetLabelValue()).any())
