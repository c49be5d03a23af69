"""Parts of one image over another in a slice view: in squares, or in a circle around a point.

Slicer blends layers by one opacity for a whole image. Here the foreground is a volume node in the plane of
the view that holds the pixels of the moving image where it is to be seen, and elsewhere a value that its
display node leaves transparent. Slicer's own slice layer makes the pixels, through all transforms, so place
and brightness are those of the moving image; the work is bounded by the size of the view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SegGuidedMMRegGui.Places import from_vtk, to_vtk
from SegGuidedMMRegGui.VolumeNodes import VOLUME

Mask = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]
"""From two coordinates in the plane, mm, that broadcast, to whether the moving image is seen there."""

_NOTHING = np.float32(-3e38)
_LOWEST, _HIGHEST = -1e38, 3e38


def squares(side_mm: float) -> Mask:
    """Every other square of a checkerboard; it stays in place when the view is moved."""

    def mask(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
        return (np.floor(u / side_mm) + np.floor(v / side_mm)) % 2 == 0

    return mask


def circle(centre: tuple[float, float], radius_mm: float) -> Mask:
    """What is within this radius."""

    def mask(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
        return (u - centre[0]) ** 2 + (v - centre[1]) ** 2 <= radius_mm**2

    return mask


class MixedSlice:
    """The volume node for one slice view and one moving image; `close` removes it.

    Args:
        scene: where.
        slice_node: of the view.
        moving: volume node, under whatever transforms.
        changed: called when view, image, transform or brightness have changed, so that `update` is due.
    """

    def __init__(self, scene: Any, slice_node: Any, moving: Any, changed: Callable[[], None]) -> None:
        self._scene, self._slice_node, self._moving = scene, slice_node, moving
        self._changed = changed
        self._layer = slicer.vtkMRMLSliceLayerLogic()
        self._layer.SetMRMLScene(scene)
        self._layer.SetSliceNode(slice_node)
        self._layer.SetVolumeNode(moving)
        self.node = self._new_node()
        self._same_look()
        self._observed = [
            (self._layer, self._layer.AddObserver("ModifiedEvent", self._on_change)),
            (
                moving.GetDisplayNode(),
                moving.GetDisplayNode().AddObserver("ModifiedEvent", self._on_display),
            ),
        ]

    def close(self) -> None:
        """Leave nothing behind."""
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._observed = []
        self._layer.SetVolumeNode(None)
        self._layer.SetSliceNode(None)
        self._layer.SetMRMLScene(None)
        if self._scene.IsNodePresent(self.node):
            display = self.node.GetDisplayNode()
            self._scene.RemoveNode(self.node)
            if display is not None:
                self._scene.RemoveNode(display)

    def plane_position(self, ras: Any) -> tuple[float, float]:
        """A point of the world in the coordinates of the plane, mm."""
        axes = self._axes()
        return float(np.dot(axes[0], ras)), float(np.dot(axes[1], ras))

    def update(self, mask: Mask) -> None:
        """Show the moving image where the mask says."""
        if not all(self._scene.IsNodePresent(node) for node in (self.node, self._moving)):
            return
        if self._moving.GetImageData() is None or 0 in self._slice_node.GetDimensions():
            return  # its pixels were unloaded, or the view has no size yet
        pixels, inside = self._pixels()
        to_ras = from_vtk(self._slice_node.GetXYToRAS())
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        if rows.size == 0:
            pixels, first = np.full((1, 1), _NOTHING), (0, 0)
        else:
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            u, v = self._coordinates(to_ras, box)
            pixels = np.where(inside[box] & mask(u, v), pixels[box], _NOTHING).astype(np.float32)
            first = int(columns[0]), int(rows[0])
        to_ras[:3, 3] += to_ras[:3, 0] * first[0] + to_ras[:3, 1] * first[1]
        self._put(pixels, to_ras)

    def _pixels(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The moving image on the pixels of the view, the lowest row first, and where it is.

        Of several slices in one view, as Slicer's light box has them, it is the first.
        """
        reslice = self._layer.GetReslice()
        reslice.Update()
        image = reslice.GetOutput()
        shape = image.GetDimensions()[::-1]
        values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)[0]
        where = vtk.vtkImageStencilToImage()
        where.SetInputConnection(reslice.GetStencilOutputPort())
        where.SetInsideValue(1)
        where.SetOutsideValue(0)
        where.SetOutputScalarTypeToUnsignedChar()
        where.Update()
        inside = vtk_to_numpy(where.GetOutput().GetPointData().GetScalars()).reshape(shape)[0]
        return values, inside > 0

    def _axes(self) -> NDArray[np.float64]:
        directions = from_vtk(self._slice_node.GetSliceToRAS())[:3, :2].T
        return directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def _coordinates(self, to_ras: NDArray[np.float64], box: tuple[slice, slice]) -> tuple[Any, Any]:
        """Of the pixels in a box, in the plane; a row and a column."""
        axes = self._axes()
        start = axes @ to_ras[:3, 3]
        u = start[0] + np.arange(box[1].start, box[1].stop) * (axes[0] @ to_ras[:3, 0])
        v = start[1] + np.arange(box[0].start, box[0].stop) * (axes[1] @ to_ras[:3, 1])
        return u[None, :], v[:, None]

    def _put(self, pixels: NDArray[np.float32], to_ras: NDArray[np.float64]) -> None:
        image = vtk.vtkImageData()
        image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
        image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(pixels).ravel(), deep=True))
        was_modifying = self.node.StartModify()
        self.node.SetAndObserveImageData(image)
        self.node.SetIJKToRASMatrix(to_vtk(to_ras))
        self.node.EndModify(was_modifying)

    def _new_node(self) -> Any:
        node = self._scene.CreateNodeByClass(VOLUME)
        node.UnRegister(None)
        node.SetName("Mixed slice")
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        node = self._scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetInterpolate(False)
        display.SetAutoWindowLevel(False)
        display.SetAutoThreshold(False)
        display.SetThreshold(_LOWEST, _HIGHEST)
        display.SetApplyThreshold(True)
        return node

    def _same_look(self) -> None:
        theirs, ours = self._moving.GetDisplayNode(), self.node.GetDisplayNode()
        was_modifying = ours.StartModify()
        ours.SetWindowLevel(theirs.GetWindow(), theirs.GetLevel())
        if theirs.GetColorNodeID() is not None:
            ours.SetAndObserveColorNodeID(theirs.GetColorNodeID())
        ours.EndModify(was_modifying)

    def _on_change(self, *_: Any) -> None:
        self._changed()

    def _on_display(self, *_: Any) -> None:
        if self._scene.IsNodePresent(self.node):
            self._same_look()
