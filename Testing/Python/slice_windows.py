"""Slice views drawn without the desktop, as Slicer draws them.

The volumes are what the slice logics blend; contours, grids and points are drawn by Slicer's own displayable
managers. Needs offscreen OpenGL (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer_harness
import vtk
from slicer_harness import layouts
from vtk.util.numpy_support import vtk_to_numpy

_GAP = 4
_MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLTransformsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)


class SliceWindow:
    """One slice view of `slicer`, by its layout name, as a square of `side` pixels."""

    def __init__(self, slicer: Any, view: str, side: int) -> None:
        logic = slicer.app.applicationLogic().GetSliceLogicByLayoutName(view)
        layouts.resize(slicer, view, side, side)
        self._window, renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._window.SetSize(side, side)
        self._window.AddRenderer(renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        mapper, image = vtk.vtkImageMapper(), vtk.vtkActor2D()
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        mapper.SetInputConnection(logic.GetImageDataConnection())
        image.SetMapper(mapper)
        image.SetLayerNumber(0)
        renderer.AddViewProp(image)
        self._managers = _factory(slicer).InstantiateDisplayableManagers(renderer)
        self._managers.SetMRMLDisplayableNode(logic.GetSliceNode())

    def picture(self) -> np.ndarray:
        """What the view shows, (height, width, RGB), the upper row first."""
        slicer_harness.process_until(lambda: True)
        self._window.Render()
        taken = vtk.vtkWindowToImageFilter()
        taken.SetInput(self._window)
        taken.ReadFrontBufferOff()
        taken.Update()
        image = taken.GetOutput()
        width, height, _ = image.GetDimensions()
        return np.flipud(vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)).copy()


def _factory(slicer: Any) -> Any:
    factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
    for name in _MANAGERS:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    return factory


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one height in a row, with a white gap."""
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)]
    return np.hstack(parts[:-1])
