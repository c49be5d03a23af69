"""Label maps as segmentation nodes with the study's structures, and segmentation nodes as label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk

from SegGuidedMMRegGui.MergedSegments import Mask, merging
from SegGuidedMMRegGui.NodeTags import BridgeError, Tag, node_for, tag_of
from SegGuidedMMRegGui.Places import Way, filling, from_vtk, grid_of_matrix, to_vtk, voxel_to_ras
from SegGuidedMMRegGui.Steps import Steps, at_once, slabs
from SegGuidedMMRegGui.Unchanged import Unchanged, place_stamp
from SegGuidedMMRegLib.cases import Structure, check_values
from SegGuidedMMRegLib.images import LabelMap, Segment
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.terminology import is_terminology

SEGMENTATION = "vtkMRMLSegmentationNode"
_LABELS, _GEOMETRY, _TERMS = "Binary labelmap", "Reference image geometry", "TerminologyEntry"


@dataclass(frozen=True)
class SegmentsRead:
    """What a segmentation node holds for a study.

    Attributes:
        labels: values of the study's structures; its `segments` have the terms of the node's.
        missing: structures without a segment.
        extra: segments that are no structure, left out.
        empty: structures whose segment has no voxel here.
    """

    labels: LabelMap
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    empty: tuple[str, ...]

    def problems(self) -> tuple[str, ...]:
        """In words, a sentence each."""
        told = []
        if self.extra:
            told.append(f"left out, since they are no structure of the study: {', '.join(self.extra)}.")
        if self.missing:
            told.append(f"no segment for the structures {', '.join(self.missing)}.")
        if self.empty:
            told.append(f"nothing drawn for {', '.join(self.empty)}.")
        return tuple(told)


# -- into the scene ---------------------------------------------------------------------------------------


def segment_id(structure: Structure) -> str:
    """The id of a structure's segment, in nodes as in files."""
    return f"Segment_{structure.value}"


def show_labels(
    scene: Any,
    labels: Image,
    structures: Sequence[Structure],
    tag: Tag,
    name: str,
    *,
    terms: Mapping[str, str] | None = None,
    volume: Any | None = None,
) -> Any:
    """`showing_labels` at one go."""
    steps = showing_labels(scene, labels, structures, tag, name, terms=terms, volume=volume)
    return at_once(steps)


def showing_labels(
    scene: Any,
    labels: Image,
    structures: Sequence[Structure],
    tag: Tag,
    name: str,
    *,
    terms: Mapping[str, str] | None = None,
    volume: Any | None = None,
) -> Steps[Any]:
    """Labels as a segmentation node: the one with this tag, filled anew, or a new one, in short steps.

    The scene hears of it in the last one: what is given up before leaves it as it was.

    Args:
        scene: where.
        labels: values of `structures`, LPS mm.
        structures: a segment each, in this order, also where it has no voxel.
        tag, name: of the node.
        terms: by name of structure, where the study has none.
        volume: whose geometry new segments get in the Segment Editor; that of `labels` without it.

    Raises:
        StudyError: if the labels hold a value that is no structure.
    """
    values, highest = np.ascontiguousarray(labels.array).reshape(-1), 0
    for part in slabs(values):
        check_values(values[part], structures, name)
        highest = max(highest, int(values[part].max()))
        yield None
    scalars = yield from filling(values, np.uint8 if highest < 256 else np.uint16, name)
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*labels.grid.size)
    image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(to_vtk(voxel_to_ras(labels.grid)))
    node = node_for(scene, SEGMENTATION, tag, name)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    segmentation = node.GetSegmentation()
    _empty(segmentation)
    segmentation.SetSourceRepresentationName(_LABELS)
    if volume is None or not scene.IsNodePresent(volume):
        geometry = slicer.vtkSegmentationConverter.SerializeImageGeometry(image)
        segmentation.SetConversionParameter(_GEOMETRY, geometry)
    else:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for structure in structures:
        segment = slicer.vtkSegment()
        segment.SetName(structure.name)
        segment.SetColor(*(c / 255 for c in structure.color))
        segment.SetLabelValue(structure.value)
        if entry := structure.terminology or (terms or {}).get(structure.name):
            segment.SetTag(_TERMS, entry)
        segment.AddRepresentation(_LABELS, image)
        segmentation.AddSegment(segment, segment_id(structure))
    return node


def nothing_on(grid: Grid) -> Image:
    """Labels without any structure."""
    return Image(np.zeros(grid.shape, dtype=np.uint8), grid)


def as_outlines(node: Any) -> None:
    """Show a segmentation as contours, without filling."""
    display = node.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetSliceIntersectionThickness(2)


def _empty(segmentation: Any) -> None:
    """Remove all segments; of a label map that they share Slicer would erase each one's voxels first."""
    for number in range(segmentation.GetNumberOfSegments()):
        segmentation.GetNthSegment(number).RemoveAllRepresentations()
    segmentation.RemoveAllSegments()


# -- out of the scene -------------------------------------------------------------------------------------


def read_segments(
    node: Any,
    structures: Sequence[Structure],
    grid: Grid | None = None,
    *,
    parent: Any | None = None,
    chosen: Mapping[str, str] | None = None,
) -> SegmentsRead:
    """`reading_segments` at one go."""
    return at_once(reading_segments(node, structures, grid, parent=parent, chosen=chosen))


def reading_segments(
    node: Any,
    structures: Sequence[Structure],
    grid: Grid | None = None,
    *,
    parent: Any | None = None,
    chosen: Mapping[str, str] | None = None,
) -> Steps[SegmentsRead]:
    """A segmentation as labels on a grid, by nearest neighbour, in short steps; the node is not changed.

    Args:
        node: with binary label maps, surfaces or contours, under any parent transform.
        structures: of the study. Segments are known by their names; those of our own nodes also by their ids.
        grid: where labels are wanted; None for the segmentation's own grid.
        parent: the transform node under which `grid` lies; None is the world. Left out of account for the
            segmentation's own grid.
        chosen: name of structure → id or name of the segment to use; all other segments are left out.

    Raises:
        BridgeError: naming the node and the remedy, where no segment fits, names are double, segments
            overlap, or the node is removed or changed meanwhile.
    """
    segmentation = _with_label_maps(node, grid)
    found, extra = _assigned(node, segmentation, structures, chosen)
    if grid is None:
        grid, parent = _own_grid(node, segmentation), node.GetParentTransformNode()
    way = Way.between(parent, node.GetParentTransformNode())
    guard = Unchanged(
        node, lambda each: (stamp_of(each.GetSegmentation()), place_stamp(each), _above(parent))
    )
    masks = {s: mask for s in structures if (mask := _mask(segmentation, found.get(s.name))) is not None}
    merged = yield from merging(node, guard, masks, way, grid)
    terms = {name: term_of(segmentation.GetSegment(identity)) for name, identity in found.items()}
    named = tuple(Segment(s.value, s.name, s.color, terms.get(s.name) or s.terminology) for s in structures)
    return SegmentsRead(
        LabelMap(merged.values(grid), grid, named),
        tuple(s.name for s in structures if s.name not in found),
        extra,
        tuple(s.name for s in structures if s.name in found and s not in merged.there),
    )


def stamp_of(segmentation: Any) -> tuple[int, ...]:
    """Changes with every stroke."""
    segments = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
    data = [segment.GetRepresentation(_LABELS) for segment in segments]
    return (len(segments), *(0 if each is None else each.GetMTime() for each in data))


def stamp_of_node(node: Any) -> tuple[object, ...]:
    """Changes with every stroke, and with the parent transforms."""
    return stamp_of(node.GetSegmentation()), place_stamp(node)


def _above(parent: Any | None) -> int:
    return 0 if parent is None else parent.GetTransformToWorldMTime()


def refuse_others(node: Any) -> None:
    """Raise BridgeError, naming the node and the remedy, if it is no segmentation or has no segment."""
    if not node.IsA(SEGMENTATION):
        raise BridgeError(
            f"The node {node.GetName()!r} is a {node.GetClassName()}, and a segmentation is needed. A label "
            "map becomes one by a right click in the Data module."
        )
    if node.GetSegmentation().GetNumberOfSegments() == 0:
        raise BridgeError(f"The segmentation {node.GetName()!r} has no segment. Draw one, or take another.")


def _with_label_maps(node: Any, grid: Grid | None) -> Any:
    """The segmentation of `node`, or a copy of it with label maps where it has none."""
    refuse_others(node)
    segmentation = node.GetSegmentation()
    if segmentation.ContainsRepresentation(_LABELS):
        return segmentation
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    if grid is not None:
        place = slicer.vtkSegmentationConverter.SerializeImageGeometry(
            to_vtk(voxel_to_ras(grid)), [0, grid.size[0] - 1, 0, grid.size[1] - 1, 0, grid.size[2] - 1]
        )
        copy.SetConversionParameter(_GEOMETRY, place)
    if not copy.CreateRepresentation(_LABELS):
        raise BridgeError(
            f"The segmentation {node.GetName()!r} cannot be turned into label maps. In the module "
            "Segmentations create the representation “Binary labelmap” and look at the message there."
        )
    return copy


def _assigned(
    node: Any, segmentation: Any, structures: Sequence[Structure], chosen: Mapping[str, str] | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Structure name → segment id, and the names of segments that are left out."""
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    names = {identity: segmentation.GetSegment(identity).GetName() for identity in ids}
    if chosen is not None:
        return _as_chosen(node, names, structures, chosen), ()
    twice = [name for name, count in Counter(n.casefold() for n in names.values()).items() if count > 1]
    by_name = {name.casefold(): identity for identity, name in names.items()}
    ours = tag_of(node) is not None
    found: dict[str, str] = {}
    for structure in structures:
        if structure.name.casefold() in twice:
            raise BridgeError(
                f"The segmentation {node.GetName()!r} has two segments named {structure.name!r}. Rename or "
                "remove one."
            )
        identity = by_name.get(structure.name.casefold())
        if identity is None and ours and segment_id(structure) in names:
            identity = segment_id(structure)
        if identity is not None:
            found[structure.name] = identity
    if not found:
        raise BridgeError(
            f"No segment of {node.GetName()!r} ({', '.join(names.values())}) is a structure of the study "
            f"({', '.join(s.name for s in structures)}). Rename the segments, or choose which is which."
        )
    return found, tuple(names[i] for i in ids if i not in found.values())


def _as_chosen(
    node: Any, names: Mapping[str, str], structures: Sequence[Structure], chosen: Mapping[str, str]
) -> dict[str, str]:
    known = {s.name for s in structures}
    found = {}
    for structure, segment in chosen.items():
        if structure not in known:
            raise BridgeError(f"{structure!r} is no structure of the study ({', '.join(sorted(known))}).")
        fitting = [segment] if segment in names else [i for i, name in names.items() if name == segment]
        if len(fitting) != 1:
            raise BridgeError(
                f"{node.GetName()!r} has {len(fitting) or 'no'} segment{'s' * (len(fitting) > 1)} named "
                f"{segment!r}; its segments are {', '.join(names.values())}."
            )
        found[structure] = fitting[0]
    if not found:
        raise BridgeError(f"No segment of {node.GetName()!r} is chosen. Choose one, or leave the choice out.")
    return found


def term_of(segment: Any) -> str:
    """The standard term of a segment, as Slicer writes it; "" without one."""
    entry = vtk.reference("")
    found = str(entry) if segment.GetTag(_TERMS, entry) else ""
    return found if is_terminology(found) else ""


def _mask(segmentation: Any, identity: str | None) -> Mask | None:
    """None if it is empty."""
    segment = None if identity is None else segmentation.GetSegment(identity)
    data = None if segment is None else segment.GetRepresentation(_LABELS)
    if data is None or data.GetPointData().GetScalars() is None or data.GetNumberOfPoints() == 0:
        return None
    return Mask(_grid_of_image(data, segment.GetName()), data, segment.GetLabelValue())


def _grid_of_image(data: Any, name: str) -> Grid:
    matrix = to_vtk(np.eye(4))
    data.GetImageToWorldMatrix(matrix)
    to_ras, extent = from_vtk(matrix), data.GetExtent()
    to_ras[:3, 3] = (to_ras @ [*extent[::2], 1.0])[:3]
    grid = grid_of_matrix(tuple(data.GetDimensions()), to_ras)
    if grid is None:
        raise BridgeError(f"The segment {name!r} has axes that are not at right angles. Resample it.")
    return grid


def _own_grid(node: Any, segmentation: Any) -> Grid:
    """The grid of the image on which the segmentation was drawn, else the box of its label maps."""
    data = slicer.vtkOrientedImageData()
    text = segmentation.GetConversionParameter(_GEOMETRY)
    if not text or not slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, data, False):
        text = segmentation.DetermineCommonLabelmapGeometry()
        slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, data, False)
    if data.GetNumberOfPoints() == 0:
        raise BridgeError(f"The segmentation {node.GetName()!r} is empty. Draw something, or take another.")
    return _grid_of_image(data, node.GetName())
