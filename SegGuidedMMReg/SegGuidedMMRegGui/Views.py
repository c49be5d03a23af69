"""Slice views of our own: a layout of them, upright on an image, fitted, linked.

They are nodes of the scene (MRML), so nothing of the desktop's widgets is asked. Slicer makes a view, its
slice logic and its composite node from a layout's description when the layout is chosen; they stay in the
scene, as those of Slicer's own layouts do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import slicer
import vtk

from SegGuidedMMRegGui.NodeTags import BridgeError

ORIENTATIONS = ("Axial", "Coronal", "Sagittal")
"""Slicer's names of them."""


@dataclass(frozen=True)
class View:
    """A slice view.

    Attributes:
        name: by which Slicer knows it; unique, letters and digits.
        label: shown in its corner, a letter or two.
        colour: of its bar, such as `#6EB04B`.
    """

    name: str
    label: str
    colour: str


class Layout:
    """Slice views side by side; `show` puts them in the place of what the user had, `leave` gives that back.

    Args:
        scene: the vtkMRMLScene.
        number: by which Slicer knows the layout; above 1000, and no other module's.
        views: from left to right.
    """

    def __init__(self, scene: Any, number: int, views: Sequence[View]) -> None:
        self.scene, self.views = scene, tuple(views)
        self._number = number
        self._former: int | None = None

    @property
    def is_shown(self) -> bool:
        """Whether it is the layout that is seen."""
        node = self._layout_node()
        return node is not None and node.GetViewArrangement() == self._number

    def register(self) -> None:
        """Let Slicer know it, so that a scene that was saved while it was shown can be loaded."""
        node = self._layout_node()
        if node is not None:
            if not node.IsLayoutDescription(self._number):
                node.AddLayoutDescription(self._number, self._description())
            node.SetLayoutDescription(self._number, self._description())
            if self.is_shown:  # since a scene was loaded, and with nothing in it
                node.SetViewArrangement(self._number)

    def show(self) -> None:
        """Show it, and remember what was shown.

        Raises:
            BridgeError: if Slicer makes no views (it runs without a main window).
        """
        node = self._layout_node()
        if node is None:
            raise BridgeError("This Slicer has no layout: it runs without a main window.")
        self.register()
        if not self.is_shown:
            self._former = node.GetViewArrangement()
            node.SetViewArrangement(self._number)
        for view in self.views:
            if slice_logic(view.name) is None:
                self.leave()
                raise BridgeError(f"Slicer made no slice view {view.name!r}. Choose another layout first.")
            composite = composite_node(view.name)
            composite.SetDoPropagateVolumeSelection(False)
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)

    def leave(self) -> None:
        """Show again what was shown before; what the user has chosen meanwhile stays."""
        node, former = self._layout_node(), self._former
        self._former = None
        if former is not None and self.is_shown:
            node.SetViewArrangement(former)

    def look_at(self, volume: Any, orientation: str = "") -> None:
        """Turn all views to `volume` and fit it into them (as `look_at`)."""
        for view in self.views:
            look_at(view.name, volume, orientation)

    def empty(self) -> None:
        """Take all volumes out of the views."""
        for view in self.views:
            if composite_node(view.name) is not None:
                show_volumes(view.name, None)

    def _layout_node(self) -> Any:
        return self.scene.GetFirstNodeByClass("vtkMRMLLayoutNode")

    def _description(self) -> str:
        items = (
            f'<item><view class="vtkMRMLSliceNode" singletontag={quoteattr(view.name)}>'
            '<property name="orientation" action="default">Axial</property>'
            f'<property name="viewlabel" action="default">{escape(view.label)}</property>'
            f'<property name="viewcolor" action="default">{escape(view.colour)}</property>'
            f'<property name="viewgroup" action="default">{self._number}</property>'
            "</view></item>"
            for view in self.views
        )
        return f'<layout type="horizontal" split="true">{"".join(items)}</layout>'


def slice_logic(view: str) -> Any:
    """The vtkMRMLSliceLogic of the view with this name; None if it was never shown."""
    return slicer.app.applicationLogic().GetSliceLogicByLayoutName(view)


def slice_node(view: str) -> Any:
    """Its vtkMRMLSliceNode, or None."""
    logic = slice_logic(view)
    return None if logic is None else logic.GetSliceNode()


def composite_node(view: str) -> Any:
    """Its vtkMRMLSliceCompositeNode, or None."""
    logic = slice_logic(view)
    return None if logic is None else logic.GetSliceCompositeNode()


def show_volumes(view: str, background: Any, foreground: Any = None, opacity: float = 0.0) -> None:
    """Show these volume nodes in a view; `opacity` (0 to 1) is that of the foreground."""
    node = composite_node(view)
    was_modifying = node.StartModify()
    node.SetBackgroundVolumeID(None if background is None else background.GetID())
    node.SetForegroundVolumeID(None if foreground is None else foreground.GetID())
    node.SetForegroundOpacity(opacity)
    node.EndModify(was_modifying)


def look_at(view: str, volume: Any, orientation: str = "") -> None:
    """Turn a view to an image, upright, and fit the image into it.

    Args:
        view: its name.
        volume: volume node. One of a single slice is seen in its plane.
        orientation: one of `ORIENTATIONS`, along the axes of the volume that are nearest to it; without it
            that of the image's plane, which for a volume is the one with the finest voxels.
    """
    node, logic = slice_node(view), slice_logic(view)
    node.SetOrientation(orientation or natural_orientation(volume))
    if not _is_bent(volume):
        node.RotateToVolumePlane(volume)
    width, height, _ = node.GetDimensions()
    logic.FitSliceToVolume(volume, max(width, 1), max(height, 1))
    logic.SnapSliceOffsetToIJK()


def natural_orientation(volume: Any) -> str:
    """The orientation in which the slices of a volume lie, or the plane of a single slice."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    image = volume.GetImageData()
    sizes, spacing = image.GetDimensions(), volume.GetSpacing()
    flat = next((axis for axis in range(3) if sizes[axis] == 1), None)
    coarse = max(range(3), key=lambda axis: (spacing[axis], axis)) if flat is None else flat
    normal = [abs(matrix.GetElement(row, coarse)) for row in range(3)]
    return ("Sagittal", "Coronal", "Axial")[normal.index(max(normal))]


def _is_bent(volume: Any) -> bool:
    parent = volume.GetParentTransformNode()
    return parent is not None and not parent.IsTransformToWorldLinear()
