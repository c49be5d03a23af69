"""Images as scalar volume nodes, and volume nodes as images of the world; the user's nodes are only read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import slicer
import vtk

from SegGuidedMMRegGui.NodeTags import CONTENT, BridgeError, Tag, node_for
from SegGuidedMMRegGui.Places import (
    Way,
    filling,
    finding_grid_around,
    flipped,
    from_vtk,
    grid_of_matrix,
    to_vtk,
    voxel_to_ras,
)
from SegGuidedMMRegGui.Resampling import resampling
from SegGuidedMMRegGui.Steps import Progress, Steps, at_once, slabs
from SegGuidedMMRegGui.Unchanged import Unchanged, place_stamp
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
    """`showing_image` at one go."""
    return at_once(showing_image(scene, image, tag, name, shown))


def showing_image(
    scene: Any, image: Image, tag: Tag, name: str, shown: tuple[float, float] | None = None
) -> Steps[Any]:
    """The image as a scalar volume node at its place: the one with this tag, or a new one, in short steps.

    The scene hears of it in the last one: what is given up before leaves it as it was.

    Args:
        scene: where.
        image: of LPS mm.
        tag, name: of the node.
        shown: values that are black and white in a new node. Without them Slicer looks at all voxels, which
            for a large image takes longer than all the rest.
    """
    values = np.ascontiguousarray(image.array).ravel()
    kind = yield from _slicers_type(values)
    matrix = voxel_to_ras(image.grid)
    digest = _digest(image.grid.size[::-1], kind, matrix)
    scalars = yield from filling(values, kind, name, hear=digest.update)
    data = vtk.vtkImageData()
    data.SetDimensions(*image.grid.size)
    data.GetPointData().SetScalars(scalars)
    node = node_for(scene, VOLUME, tag, name)
    if shown is not None and node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevelMinMax(*shown)
    node.SetAndObserveImageData(data)
    node.SetIJKToRASMatrix(to_vtk(matrix))
    node.SetAttribute(CONTENT, digest.hexdigest())
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAutoWindowLevel(True)
    return node


def is_as_shown(node: Any) -> bool:
    """`comparing_with_shown` at one go."""
    return at_once(comparing_with_shown(node))


def comparing_with_shown(node: Any) -> Steps[bool]:
    """Whether `node` still holds what `show_image` put there, at the same place."""
    if node.GetParentTransformNode() is not None or node.GetImageData() is None:
        return False
    shown = node.GetAttribute(CONTENT)
    return shown is not None and shown == (yield from digesting(node))


def content_of(node: Any) -> str:
    """`digesting` at one go."""
    return at_once(digesting(node))


def digesting(node: Any) -> Steps[str]:
    """A digest of values and place of a volume node, without its parent transform.

    Raises:
        BridgeError: naming the node, if it is removed or changed meanwhile.
    """
    guard = Unchanged(node, stamp_of)
    array = slicer.util.arrayFromVolume(node)
    digest = _digest(array.shape, array.dtype, _own_matrix(node))
    for part in slabs(array):
        digest.update(np.ascontiguousarray(slicer.util.arrayFromVolume(node)).ravel()[part].data)
        yield None
        guard.check()
    return digest.hexdigest()


def _digest(shape: tuple[int, ...], kind: np.dtype[Any], matrix: np.ndarray) -> Any:
    digest = hashlib.blake2b(repr((tuple(shape), kind.str)).encode(), digest_size=16)
    digest.update(np.round(matrix, 9).tobytes())
    return digest


def state_of(node: Any) -> str:
    """`stating` at one go."""
    return at_once(stating(node))


def stating(node: Any) -> Steps[str]:
    """Changes when values or place of a volume node change, its parent transforms included."""
    above = place_stamp(node)
    return f"{(yield from digesting(node))} {above}"


def stamp_of(node: Any) -> tuple[object, ...]:
    """The same as far as Slicer was told of it, found in no time; only for comparing within a scene."""
    data, matrix = node.GetImageData(), to_vtk(np.eye(4))
    node.GetIJKToRASMatrix(matrix)
    changed = 0 if data is None else data.GetMTime()
    return (changed, from_vtk(matrix).tobytes(), *place_stamp(node))


def read_volume(node: Any) -> WorldImage:
    """`reading_volume` at one go."""
    return at_once(reading_volume(node))


def reading_volume(node: Any) -> Steps[WorldImage]:
    """The volume as it lies in the world, with all its parent transforms, in short steps.

    The node is not changed. A parent transform of rotation, scaling, reflection and translation changes the
    place alone. One that bends or skews makes new voxels, of the same spacing, by linear interpolation;
    beyond the image they have its smallest value (for CT that is air, not 0). Memory: 4 bytes for each of
    these, and a block (`Resampling.py`); without them a copy of the node's values.

    Raises:
        BridgeError: naming the node and the remedy, if it holds no grey image, is a single slice under a
            transform that bends or skews, or is removed or changed meanwhile.
    """
    size, matrix = _size(node), _own_matrix(node)
    name, parent = f"The volume {node.GetName()!r}", node.GetParentTransformNode()
    own = grid_of_matrix(size, matrix)
    if own is None:
        raise BridgeError(
            f"{name} has axes that are not at right angles. Resample it (module Resample Image)."
        )
    guard = Unchanged(node, stamp_of)
    to_world = Way.between(parent, None)
    if to_world.matrix_lps is not None:
        placed = grid_of_matrix(size, _ras(to_world) @ matrix)
        if placed is not None:
            array = yield from _copying(node, guard)
            return WorldImage(Image(array.reshape(placed.shape), placed), resampled=False)
    if own.dimension == 2 or min(size) == 1:
        raise BridgeError(
            f"{name} is a single slice under the transform {parent.GetName()!r}, "
            "which bends or skews it. Take it out of the transform, or use one that only moves, turns and "
            "scales."
        )
    world = yield from finding_grid_around(own, to_world, name)
    lowest = yield from _finding_lowest(node, guard)
    image = yield from resampling(
        Way.between(None, parent),
        own,
        partial(_checked, node, guard),
        world,
        outside=lowest,
        what=node.GetName(),
    )
    return WorldImage(image, resampled=True)


def placed_grid(node: Any) -> Grid | None:
    """The grid of a volume node in the world; None where a parent transform makes new voxels necessary.

    Raises:
        BridgeError: as `read_volume`.
    """
    way, size = Way.between(node.GetParentTransformNode(), None), _size(node)
    return None if way.matrix_lps is None else grid_of_matrix(size, _ras(way) @ _own_matrix(node))


def read_own_grid(node: Any) -> Grid:
    """The grid of a volume node without its parent transforms.

    Raises:
        BridgeError: as `read_volume`.
    """
    grid = grid_of_matrix(_size(node), _own_matrix(node))
    if grid is None:
        raise BridgeError(
            f"The volume {node.GetName()!r} has axes that are not at right angles. Resample it."
        )
    return grid


def _slicers_type(values: np.ndarray) -> Steps[np.dtype[Any]]:
    """A type that Slicer shows and that holds these values: no bool, no half, and no integers of 64 bits."""
    kind = values.dtype.newbyteorder("=")
    if kind == np.bool_:
        return np.dtype(np.uint8)
    if kind == np.float16:
        return np.dtype(np.float32)
    if kind.kind not in "iu" or kind.itemsize < 8:
        return kind
    bounds = np.iinfo(np.int32)
    for part in slabs(values):
        if values[part].min() < bounds.min or values[part].max() > bounds.max:
            return np.dtype(np.float64)
        yield None
    return np.dtype(np.int32)


def _copying(node: Any, guard: Unchanged) -> Steps[np.ndarray]:
    source = slicer.util.arrayFromVolume(node)
    copy = np.empty_like(source)
    flat = copy.reshape(-1)
    for part in slabs(flat):
        flat[part] = _checked(node, guard).reshape(-1)[part]
        yield Progress(node.GetName(), part.stop, flat.size)
    guard.check()
    return copy


def _finding_lowest(node: Any, guard: Unchanged) -> Steps[float]:
    lowest = []
    for part in slabs(slicer.util.arrayFromVolume(node)):
        lowest.append(_checked(node, guard).reshape(-1)[part].min())
        yield None
    return float(np.min(lowest))


def _checked(node: Any, guard: Unchanged) -> np.ndarray:
    """The values of a node, (k, j, i), not copied; it is what it was."""
    guard.check()
    return slicer.util.arrayFromVolume(node)


def _size(node: Any) -> tuple[int, int, int]:
    """Of the grey image of a node, along i, j, k; refuses what is none."""
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
    return tuple(data.GetDimensions())


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
