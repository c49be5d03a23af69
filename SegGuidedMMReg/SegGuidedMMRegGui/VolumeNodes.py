"""Images as scalar volume nodes, and volume nodes as images of the world; the user's nodes are only read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer

from SegGuidedMMRegGui.NodeTags import CONTENT, BridgeError, Tag, node_for
from SegGuidedMMRegGui.Places import Way, flipped, from_vtk, grid_around, grid_of_matrix, to_vtk, voxel_to_ras
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid

VOLUME = "vtkMRMLScalarVolumeNode"
_ENOUGH = 200_000


@dataclass(frozen=True)
class WorldImage:
    """A volume node as it lies in the world.

    Attributes:
        image: its values in LPS mm.
        resampled: whether a parent transform that bends or skews made new voxels necessary; else the values
            are the node's own.
    """

    image: Image
    resampled: bool


def range_of(values: np.ndarray) -> tuple[float, float]:
    """Between which numbers most values of an image lie, 1 to 99 %; of a large one a part is looked at."""
    some = values.ravel()[:: max(1, values.size // _ENOUGH)]
    low, high = (float(n) for n in np.percentile(some[np.isfinite(some)], (1, 99)))
    return (low, high) if high > low else (float(some.min()), float(some.max()) + 1)


def show_image(
    scene: Any, image: Image, tag: Tag, name: str, shown: tuple[float, float] | None = None
) -> Any:
    """The image as a scalar volume node at its place: the one with this tag, or a new one.

    Args:
        scene: where.
        image: of LPS mm.
        tag, name: of the node.
        shown: values that are black and white in a new node. Without them Slicer looks at all voxels, which
            for a large image takes longer than all the rest.
    """
    node = node_for(scene, VOLUME, tag, name)
    if shown is not None and node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevelMinMax(*shown)
    array = np.ascontiguousarray(_of_slicers_types(image.array)).reshape(image.grid.size[::-1])
    slicer.util.updateVolumeFromArray(node, array)
    node.SetIJKToRASMatrix(to_vtk(voxel_to_ras(image.grid)))
    node.SetAttribute(CONTENT, content_of(node))
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAutoWindowLevel(True)
    return node


def is_as_shown(node: Any) -> bool:
    """Whether `node` still holds what `show_image` put there, at the same place."""
    return (
        node.GetParentTransformNode() is None
        and node.GetImageData() is not None
        and node.GetAttribute(CONTENT) == content_of(node)
    )


def content_of(node: Any) -> str:
    """A digest of values and place of a volume node, without its parent transform."""
    array = np.ascontiguousarray(slicer.util.arrayFromVolume(node))
    digest = hashlib.blake2b(repr((array.shape, array.dtype.str)).encode(), digest_size=16)
    digest.update(np.round(_own_matrix(node), 9).tobytes())
    digest.update(array.data)
    return digest.hexdigest()


def state_of(node: Any) -> str:
    """Changes when values or place of a volume node change, its parent transforms included."""
    parent = node.GetParentTransformNode()
    above = "" if parent is None else f"{parent.GetID()} {parent.GetTransformToWorldMTime()}"
    return f"{content_of(node)} {above}"


def read_volume(node: Any) -> WorldImage:
    """The volume as it lies in the world, with all its parent transforms; the node is not changed.

    A parent transform of rotation, scaling, reflection and translation changes the place alone. One that
    bends or skews makes new voxels, of the same spacing, by linear interpolation; beyond the image they have
    its smallest value (for CT that is air, not 0).

    Raises:
        BridgeError: naming the node and the remedy, if it holds no grey image, or is a single slice under a
            transform that bends or skews.
    """
    array, matrix = _array(node), _own_matrix(node)
    name = f"The volume {node.GetName()!r}"
    size = tuple(array.shape[::-1])
    own = grid_of_matrix(size, matrix)
    if own is None:
        raise BridgeError(
            f"{name} has axes that are not at right angles. Resample it (module Resample Image)."
        )
    to_world = Way.between(node.GetParentTransformNode(), None)
    if to_world.matrix_lps is not None:
        placed = grid_of_matrix(size, _ras(to_world) @ matrix)
        if placed is not None:
            return WorldImage(Image(array.reshape(placed.shape), placed), resampled=False)
    if own.dimension == 2 or min(size) == 1:
        raise BridgeError(
            f"{name} is a single slice under the transform {node.GetParentTransformNode().GetName()!r}, "
            "which bends or skews it. Take it out of the transform, or use one that only moves, turns and "
            "scales."
        )
    world = grid_around(own, to_world, name)
    back = Way.between(None, node.GetParentTransformNode())
    return WorldImage(back.resample(Image(array, own), world, outside=float(array.min())), resampled=True)


def read_own_grid(node: Any) -> Grid:
    """The grid of a volume node without its parent transforms.

    Raises:
        BridgeError: as `read_volume`.
    """
    grid = grid_of_matrix(tuple(_array(node).shape[::-1]), _own_matrix(node))
    if grid is None:
        raise BridgeError(
            f"The volume {node.GetName()!r} has axes that are not at right angles. Resample it."
        )
    return grid


def _of_slicers_types(array: np.ndarray) -> np.ndarray:
    """The same numbers in a type that Slicer shows: no bool, no half, and no integers of 64 bits."""
    kind = array.dtype
    if kind == np.bool_:
        return array.astype(np.uint8)
    if kind == np.float16:
        return array.astype(np.float32)
    if kind.kind in "iu" and kind.itemsize == 8:
        bounds = np.iinfo(np.int32)
        fits = bounds.min <= array.min() and array.max() <= bounds.max
        return array.astype(np.int32 if fits else np.float64)
    return array


def _array(node: Any) -> np.ndarray:
    what = f"The node {node.GetName()!r}"
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise BridgeError(
            f"{what} is a label map, not an image. Turn it into a segmentation (right click in the Data "
            "module)."
        )
    if not node.IsA(VOLUME):
        raise BridgeError(
            f"{what} is a {node.GetClassName()}, and a grey volume is needed. For a colour one use the "
            "module Vector to Scalar Volume."
        )
    data = node.GetImageData()
    if data is None or data.GetPointData().GetScalars() is None or data.GetNumberOfPoints() == 0:
        raise BridgeError(f"{what} holds no image. Load its file again.")
    if data.GetNumberOfScalarComponents() != 1:
        raise BridgeError(f"{what} holds {data.GetNumberOfScalarComponents()} values a voxel; one is needed.")
    return np.array(slicer.util.arrayFromVolume(node))


def _own_matrix(node: Any) -> np.ndarray:
    matrix = to_vtk(np.eye(4))
    node.GetIJKToRASMatrix(matrix)
    found = from_vtk(matrix)
    start = node.GetImageData().GetExtent()[::2]
    found[:3, 3] = (found @ [*start, 1.0])[:3]
    return found


def _ras(way: Way) -> np.ndarray:
    flip = np.diag([*flipped(np.ones(3)), 1.0])
    return flip @ way.matrix_lps @ flip
