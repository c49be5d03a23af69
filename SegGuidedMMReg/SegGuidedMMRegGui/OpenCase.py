"""A case that is open for annotation: its image, the segmentation that is drawn, and what of it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from vtk.util.numpy_support import vtk_to_numpy

from SegGuidedMMRegGui import NodeTags
from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.SceneBridge import SceneBridge
from SegGuidedMMRegGui.SegmentationNodes import SegmentsRead, reading_segments, stamp_of
from SegGuidedMMRegGui.Steps import Steps, at_once, beside, slabs
from SegGuidedMMRegGui.VolumeNodes import range_of
from SegGuidedMMRegLib.cases import Case, Role
from SegGuidedMMRegLib.images import Image, write_labels

_LABELS = "Binary labelmap"
_OWN_HELPERS = ("Display", "Storage", "Slice", "Selection", "SegmentEditor", "SubjectHierarchy")


@dataclass(frozen=True)
class Saved:
    """What came of saving a drawing.

    Attributes:
        stamp: of the drawing.
        drawn: what was written; None if nothing was.
        problem: why it could not be; "" where nothing was drawn.
    """

    stamp: tuple[int, ...]
    drawn: SegmentsRead | None
    problem: str = ""


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
    """The case in the scene (`opening` brings it there).

    Attributes:
        bridge: shows it; of the study to which it belongs, also when another one is open later.
        case: which.
        grid: of its image.
        volume, segmentation: its nodes.
        use: of its labels: training, evaluation, or none for a draft.
        told_use: what the study says of it.
        was_found: whether the scene has a drawing of it that is not the one of the study.
        is_new: whether its image was not in the scene before.
    """

    def __init__(
        self, bridge: SceneBridge, case: Case, files: CaseFiles, nodes: tuple[Any, Any], was_found: bool
    ) -> None:
        self.bridge, self.case = bridge, case
        self.grid = files.image.grid
        self.volume, self.segmentation = nodes
        self.was_found, self.is_new = was_found, False
        self._made: list[Any] = []
        self.told_use = case.label_use or "none"
        self.use = self.told_use if files.labels is not None else usual_use(bridge, case)
        self._saved = None if self.was_found else self.stamp

    @staticmethod
    def opening(bridge: SceneBridge, case: Case, files: CaseFiles) -> Steps[OpenCase]:
        """Bring a case into the scene in short steps; given up, nothing that was made is left there.

        Raises:
            BridgeError, StudyError: naming the case and the remedy.
        """
        former = {node.GetID() for node in bridge.nodes(case.key)}
        try:
            drawn = bridge.labels_node(case)
            volume = yield from bridge.showing_case(case, files.image, files.range)
            was_found = drawn is not None and not (yield from _comparing(bridge, drawn, files))
            if was_found:
                segmentation = drawn
            elif files.labels is not None:
                segmentation = yield from bridge.showing_labels(case, files.labels)
            else:
                segmentation = yield from bridge.showing_new_labels(case)
        except BaseException:
            left = [node for node in bridge.nodes(case.key) if node.GetID() not in former]
            NodeTags.remove_nodes(bridge.scene, left)
            raise
        opened = OpenCase(bridge, case, files, (volume, segmentation), was_found)
        opened.is_new = volume.GetID() not in former
        opened._made = [node for node in (volume, segmentation) if node.GetID() not in former]
        return opened

    @property
    def is_there(self) -> bool:
        """Whether the scene still has its nodes."""
        scene = self.bridge.scene
        return all(scene.IsNodePresent(node) for node in (self.volume, self.segmentation))

    @property
    def stamp(self) -> tuple[int, ...]:
        """Changes with every stroke."""
        return stamp_of(self.segmentation.GetSegmentation())

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
        return at_once(looking_for_voxels(self.segmentation))

    def settled(self) -> None:
        """What is there now is what is saved; the Segment Editor may have rearranged it when it took it."""
        if not self.was_found:
            self._saved = self.stamp

    def drawn(self) -> SegmentsRead:
        """`drawing` at one go."""
        return at_once(self.drawing())

    def drawing(self) -> Steps[SegmentsRead]:
        """What is drawn, on the grid of the image, in short steps.

        Raises:
            BridgeError: naming the node and the remedy.
        """
        parent, structures = self.volume.GetParentTransformNode(), self.bridge.study.structures
        return reading_segments(self.segmentation, structures, self.grid, parent=parent)

    def saving(self) -> Steps[Saved]:
        """Write what is drawn into the study, in short steps; what is drawn meanwhile is waited for.

        Raises:
            OSError, ImageError: naming the file; the earlier one is whole then.
        """
        while True:
            stamp = self.stamp
            try:
                if not (yield from looking_for_voxels(self.segmentation)):
                    return Saved(stamp, None)
                drawn = yield from self.drawing()
            except BridgeError as error:
                if self.is_there and self.stamp != stamp:
                    continue
                return Saved(stamp, None, str(error))
            yield from beside(lambda: self.write(drawn))  # noqa: B023
            return Saved(stamp, drawn)

    def write(self, drawn: SegmentsRead) -> None:
        """Write it into the study; no node is asked, so any thread may.

        Raises:
            OSError, ImageError: naming the file; the earlier one is whole then.
        """
        write_labels(drawn.labels, drawn.labels.segments, self.bridge.label_path(self.case))

    def saved(self, stamp: tuple[int, ...]) -> None:
        """What had this stamp is on the disk."""
        self._saved, self.was_found = stamp, False

    def showing(self, labels: Image) -> Steps[Any]:
        """Put other labels in the place of what is drawn, in short steps."""
        return self.bridge.showing_labels(self.case, labels)

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


def _comparing(bridge: SceneBridge, node: Any, files: CaseFiles) -> Steps[bool]:
    """Whether a node of the scene holds what the study has."""
    if not (yield from looking_for_voxels(node)):
        return True
    try:
        read = yield from reading_segments(node, bridge.study.structures, files.image.grid)
    except BridgeError:  # such as an overlap, which is for the user to see to
        return False
    found = read.labels.array.reshape(-1)
    wanted = None if files.labels is None else files.labels.array.reshape(-1)
    for part in slabs(found):
        if (found[part] != (0 if wanted is None else wanted[part])).any():
            return False
        yield None
    return True


def _refers(node: Any, to: Any) -> bool:
    roles = (node.GetNthNodeReferenceRole(n) for n in range(node.GetNumberOfNodeReferenceRoles()))
    return any(node.HasNodeReferenceID(role, to.GetID()) for role in roles)


def looking_for_voxels(node: Any) -> Steps[bool]:
    """Whether any segment has a voxel."""
    segmentation = node.GetSegmentation()
    for number in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(number)
        values = None if segment is None else _values(segment)
        for part in () if values is None else slabs(values):
            if (values[part] == segment.GetLabelValue()).any():
                return True
            yield None
            values = _values(segment)
            if values is None:
                break
    return False


def _values(segment: Any) -> np.ndarray | None:
    data = segment.GetRepresentation(_LABELS)
    if data is None or data.GetPointData().GetScalars() is None or data.GetNumberOfPoints() == 0:
        return None
    return vtk_to_numpy(data.GetPointData().GetScalars())
