"""Transforms of a pair as nodes, and what is shown of them: warped image, grid or arrows, change of volume.

A transform maps fixed points to moving points: Slicer's “from parent”. A volume under such a node appears
where its points come to lie in the fixed image. Nothing of the user's is put under it; a second volume node
is, which shares the voxels of the first.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike, NDArray

from SegGuidedMMRegGui import VolumeNodes
from SegGuidedMMRegGui.NodeTags import PREFIX, BridgeError, Tag, node_for, nodes_of
from SegGuidedMMRegGui.PairFiles import vectors_ras_mm
from SegGuidedMMRegGui.Places import filling, to_vtk, voxel_to_ras
from SegGuidedMMRegGui.Steps import Steps, at_once, slabs
from SegGuidedMMRegGui.VolumeNodes import VOLUME, WorldImage
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.folds import corner_jacobians_minimum
from SegGuidedMMRegLib.sampling import Image, thickened
from SegGuidedMMRegLib.space import LPS_TO_RAS, Grid

TRANSFORM = "vtkMRMLTransformNode"
COLOURS = "vtkMRMLColorTableNode"
Look = Literal["grid", "arrows", "off"]

_COLOURS, _FOLDED = 256, 51
"""Colours of a map of the change of volume, and how many of them, the first ones, are those of folds."""
_STEP = 0.5 / _FOLDED
"""Of a colour: the first begins at a Jacobian of -0.5, that after those of folds at 0, the last at 2."""
_LABELS = 6
"""Of the legend: from -0.5 to 2."""
_FOLD = (1.0, 0.0, 1.0)
_LOW, _MIDDLE, _HIGH = (0.02, 0.19, 0.58), (0.97, 0.97, 0.97), (0.65, 0.0, 0.15)


def show_transform(
    scene: Any,
    transform: SpatialTransform,
    tag: Tag,
    name: str,
    *,
    vectors: NDArray[np.float32] | None = None,
    fixed: Any = None,
    moving: Any = None,
) -> Any:
    """`showing_transform` at one go."""
    steps = showing_transform(scene, transform, tag, name, vectors=vectors, fixed=fixed, moving=moving)
    return at_once(steps)


def showing_transform(
    scene: Any,
    transform: SpatialTransform,
    tag: Tag,
    name: str,
    *,
    vectors: NDArray[np.float32] | None = None,
    fixed: Any = None,
    moving: Any = None,
) -> Steps[Any]:
    """A transform as a node that remembers its volumes: the one with this tag, or a new one, in short steps.

    Args:
        scene: where.
        transform: from points of the fixed to points of the moving image, LPS mm.
        tag, name: of the node.
        vectors: of its field, as `vectors_ras_mm` gives them, where they are known already.
        fixed, moving: volume nodes, kept in Slicer's own references for them; None if not in the scene.
    """
    vectors = vectors_ras_mm(transform.field) if vectors is None else vectors
    bending = yield from _grid_transform(transform.field.grid, vectors, name)
    node = node_for(scene, TRANSFORM, tag, name)
    general = vtk.vtkGeneralTransform()
    general.PostMultiply()
    general.Concatenate(bending)
    general.Concatenate(_affine(transform.affine_lps))
    node.SetAndObserveTransformFromParent(general)
    for role, volume in (
        (node.GetFixedNodeReferenceRole(), fixed),
        (node.GetMovingNodeReferenceRole(), moving),
    ):
        is_there = volume is not None and scene.IsNodePresent(volume)
        node.SetNodeReferenceID(role, volume.GetID() if is_there else None)
    return node


def make_linear(scene: Any) -> None:
    """Let our transform nodes interpolate linearly, as ITK does; those of a loaded scene do so cubically."""
    for node in nodes_of(scene):
        if node.IsA(TRANSFORM):
            parts = _parts(node.GetTransformFromParent()) + _parts(node.GetTransformToParent())
            for part in parts:
                if part.IsA("vtkGridTransform"):
                    part.SetInterpolationModeToLinear()


def _parts(transform: Any) -> list[Any]:
    if transform is None or not transform.IsA("vtkGeneralTransform"):
        return [] if transform is None else [transform]
    inner = (
        transform.GetConcatenatedTransform(n) for n in range(transform.GetNumberOfConcatenatedTransforms())
    )
    return [part for one in inner for part in _parts(one)]


def _affine(matrix_lps: ArrayLike) -> Any:
    affine = vtk.vtkTransform()
    affine.SetMatrix(to_vtk(LPS_TO_RAS @ np.asarray(matrix_lps) @ LPS_TO_RAS))
    return affine


def _grid_transform(grid: Grid, vectors: NDArray[np.float32], name: str) -> Steps[Any]:
    """A field as Slicer's grid transform; three equal slices in 2D, as in files."""
    if grid.dimension == 2:
        grid, vectors = thickened(grid, 3), np.tile(vectors, (3, 1))
    to_ras = voxel_to_ras(grid)
    image = vtk.vtkImageData()
    image.SetDimensions(*grid.size)
    image.SetSpacing(*grid.spacing)
    image.SetOrigin(*to_ras[:3, 3])
    values = vectors.reshape(-1)
    image.GetPointData().SetScalars((yield from filling(values, np.float32, name, components=3)))
    direction = np.eye(4)
    direction[:3, :3] = to_ras[:3, :3] / np.asarray(grid.spacing)
    found = slicer.vtkOrientedGridTransform()
    found.SetDisplacementGridData(image)
    found.SetGridDirectionMatrix(to_vtk(direction))
    found.SetInterpolationModeToLinear()
    return found


# -- what is shown ----------------------------------------------------------------------------------------


def showing_through(
    scene: Any, moving: Any, tag: Tag, name: str, *, world: WorldImage | None, transform: Any
) -> Steps[Any]:
    """The moving image, warped: a volume node under `transform`, in short steps.

    It shares the voxels of the user's node, unless `world` has others.

    Args:
        scene: where.
        moving: the user's volume node.
        tag, name: of the new node.
        world: what is to be shown instead of `moving` as it is now.
        transform: the node of the forward transform.

    Raises:
        BridgeError: if `moving` is removed or changed while it is read.
    """
    placed = VolumeNodes.placed_grid(moving) if world is None else None
    if placed is None:
        image = (yield from VolumeNodes.reading_volume(moving)).image if world is None else world.image
        shown = VolumeNodes.range_of(image.array)
        node = yield from VolumeNodes.showing_image(scene, image, tag, name, shown)
    else:
        node = node_for(scene, VOLUME, tag, name)
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()
            node.GetDisplayNode().SetAutoWindowLevel(False)  # which would look at all voxels, for nothing
        node.SetAndObserveImageData(moving.GetImageData())
        node.SetIJKToRASMatrix(to_vtk(_placed(moving, placed)))
    _same_brightness(moving, node)
    node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def _placed(moving: Any, grid: Grid) -> np.ndarray:
    """Voxel to RAS of the shared voxels, whose extent may not begin at 0."""
    matrix = voxel_to_ras(grid)
    start = np.asarray(moving.GetImageData().GetExtent()[::2])
    matrix[:3, 3] -= matrix[:3, :3] @ start
    return matrix


def _same_brightness(moving: Any, node: Any) -> None:
    theirs, ours = moving.GetDisplayNode(), node.GetDisplayNode()
    if theirs is None or not hasattr(theirs, "GetWindow"):
        ours.SetWindowLevelMinMax(*VolumeNodes.range_of(slicer.util.arrayFromVolume(node)))
        return
    ours.SetAutoWindowLevel(False)
    ours.SetWindowLevel(theirs.GetWindow(), theirs.GetLevel())
    if theirs.GetColorNodeID() is not None:
        ours.SetAndObserveColorNodeID(theirs.GetColorNodeID())


def show_displacement(
    node: Any, look: Look, *, region: Any, spacing_mm: float = 10.0, views: tuple[str, ...] = ()
) -> None:
    """Show the grid or the arrows of a transform node in the slice views.

    Args:
        node: the transform.
        look: what.
        region: volume node over which it is shown.
        spacing_mm: distance of lines or arrows.
        views: ids of the view nodes; all without it.

    Raises:
        BridgeError: for a spacing that is not above 0.
    """
    if not spacing_mm > 0:
        raise BridgeError(f"The distance of lines or arrows must be above 0 mm, got {spacing_mm}.")
    display = node.GetDisplayNode()
    if display is None:
        if look == "off":
            return
        display = node.GetScene().CreateNodeByClass("vtkMRMLTransformDisplayNode")
        display.UnRegister(None)
        display.SetViewNodeIDs(list(views)) if views else None
        node.GetScene().AddNode(display)
        node.SetAndObserveDisplayNodeID(display.GetID())
    display.SetVisibility(look != "off")
    display.SetVisibility2D(look != "off")
    display.SetVisibility3D(False)
    if look == "off":
        return
    display.SetAndObserveRegionNode(region)
    if look == "grid":
        display.SetVisualizationMode(display.VIS_MODE_GRID)
        display.SetGridSpacingMm(spacing_mm)
        display.SetGridResolutionMm(spacing_mm / 4)
    else:
        display.SetVisualizationMode(display.VIS_MODE_GLYPH)
        display.SetGlyphSpacingMm(spacing_mm)


def show_volume_change(scene: Any, field: DisplacementField, tag: Tag, name: str) -> Any:
    """The Jacobian determinant of x + u(x) as a volume with a diverging colour table; folds stand out.

    1 (white) keeps the volume, 2 (red) doubles it, towards 0 (blue) it vanishes; where it is not above 0
    (magenta) space folds. The value of a voxel is the smallest of those around it (`folds.py`).
    """
    return show_volume_change_map(scene, Image(corner_jacobians_minimum(field), field.grid), tag, name)


def show_volume_change_map(scene: Any, image: Image, tag: Tag, name: str) -> Any:
    """`showing_volume_change_map` at one go."""
    return at_once(showing_volume_change_map(scene, image, tag, name))


def showing_volume_change_map(scene: Any, image: Image, tag: Tag, name: str) -> Steps[Any]:
    """The same of determinants that are known already (`segmmreg jacobian`), in short steps."""
    values, folds = np.ascontiguousarray(image.array).reshape(-1), 0
    for part in slabs(values):
        folds += int((values[part] <= 0).sum())
        yield None
    node = yield from VolumeNodes.showing_image(scene, image, tag, name, (0.0, 2.0))
    colours = _colours(scene, Tag("jacobian_colours", tag.study, tag.subject))
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(colours.GetID())
    display.SetAutoWindowLevel(False)
    window = (_COLOURS - 1) * _STEP
    display.SetWindowLevel(window, window / 2 - _FOLDED * _STEP)
    display.SetInterpolate(False)
    node.SetAttribute(f"{PREFIX}Folds", str(folds))
    return node


def show_legend(node: Any, title: str, views: tuple[str, ...]) -> None:
    """Slicer's colour legend of such a map, in the views with these ids."""
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(node)
    if legend is None:  # Slicer has written why into its log
        return
    legend.SetTitleText(title)
    legend.SetNumberOfLabels(_LABELS)
    legend.SetViewNodeIDs(list(views))
    legend.SetVisibility(True)


def remove_legend(node: Any) -> None:
    """Remove the legend of a map from the scene, if it has one."""
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    if legend is not None:
        node.GetScene().RemoveNode(legend)


def _colours(scene: Any, tag: Tag) -> Any:
    node = node_for(scene, COLOURS, tag, "Change of volume")
    node.SetTypeToUser()
    node.SetNumberOfColors(_COLOURS)
    node.SetHideFromEditors(True)
    values = [(number - _FOLDED) * _STEP for number in range(_COLOURS)]
    table = np.vstack([_FOLD if number < _FOLDED else _blend(value) for number, value in enumerate(values)])
    for number, (red, green, blue) in enumerate(table.tolist()):
        what = "fold" if number < _FOLDED else f"{values[number]:.2f}"
        node.SetColor(number, what, red, green, blue, 1.0)
    return node


def _blend(t: float) -> np.ndarray:
    """Blue at 0, white at 1, red at 2."""
    ends = np.array([_LOW, _MIDDLE, _HIGH])
    return np.array([np.interp(t, [0, 1, 2], ends[:, c]) for c in range(3)])
