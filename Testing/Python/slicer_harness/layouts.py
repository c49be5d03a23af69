"""What the desktop's layout manager does with MRML: from a layout's description views and their logics.

As `qMRMLLayoutManager` and `qMRMLLayoutSliceViewFactory` of Slicer: views are made by the real
vtkMRMLLayoutLogic; each slice node that comes into the scene gets a real vtkMRMLSliceLogic, and those of
`slicer.app.applicationLogic()` are all of them. Nothing is drawn: `picture` is what the slice logic blends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

_kept: list[Any] = []


def start(slicer: Any, size: tuple[int, int] = (256, 256)) -> Any:
    """Manage the layouts of `slicer.mrmlScene`, once; the vtkMRMLLayoutNode."""
    scene, application = slicer.mrmlScene, slicer.app.applicationLogic()
    if _kept:
        return scene.GetFirstNodeByClass("vtkMRMLLayoutNode")

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def added(_caller: Any, _event: str, node: Any) -> None:
        if (
            node.IsA("vtkMRMLSliceNode")
            and application.GetSliceLogicByLayoutName(node.GetLayoutName()) is None
        ):
            logic = slicer.vtkMRMLSliceLogic()
            application.GetSliceLogics().AddItem(logic)
            logic.SetMRMLApplicationLogic(application)
            logic.SetSliceNode(node)
            logic.SetMRMLScene(scene)
            node.SetDimensions(*size, 1)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def removed(_caller: Any, _event: str, node: Any) -> None:
        if node.IsA("vtkMRMLSliceNode"):
            logic = application.GetSliceLogicByLayoutName(node.GetLayoutName())
            application.GetSliceLogics().RemoveItem(logic)

    scene.AddObserver(scene.NodeAddedEvent, added)
    scene.AddObserver(scene.NodeRemovedEvent, removed)
    logic = slicer.vtkMRMLLayoutLogic()
    logic.SetMRMLApplicationLogic(application)
    logic.SetMRMLScene(scene)
    links = slicer.vtkMRMLSliceLinkLogic()
    links.SetMRMLScene(scene)
    node = logic.GetLayoutNode()
    node.SetViewArrangement(node.SlicerLayoutConventionalView)
    if _crosshair(scene) is None:
        scene.AddNewNodeByClass("vtkMRMLCrosshairNode")
    _kept.extend((logic, links, added, removed))
    return node


def _crosshair(scene: Any) -> Any:
    return scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")


def resize(slicer: Any, view: str, width: int, height: int) -> None:
    """The window of a view gets another size, as `qMRMLSliceView` tells its logic."""
    slicer.app.applicationLogic().GetSliceLogicByLayoutName(view).ResizeSliceNode(width, height)


def hover(slicer: Any, view: str, x: float, y: float) -> None:
    """The mouse is at this pixel of a view, counted from its lower left corner."""
    node = slicer.app.applicationLogic().GetSliceLogicByLayoutName(view).GetSliceNode()
    _crosshair(slicer.mrmlScene).SetCursorPositionXYZ([x, y, 0.0], node)


def picture(slicer: Any, view: str) -> np.ndarray:
    """What a view shows of its volumes, (height, width, RGBA), the upper row first."""
    blend = slicer.app.applicationLogic().GetSliceLogicByLayoutName(view).GetBlend()
    blend.Update()
    image = blend.GetOutput()
    width, height, _ = image.GetDimensions()
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    values = np.flipud(values).copy()
    if values.shape[2] < 4:
        values = np.dstack([values[..., :1]] * 3 + [np.full(values.shape[:2], 255, values.dtype)])
    values[..., :3] = values[..., :3] * (values[..., 3:] / 255.0)
    return values
