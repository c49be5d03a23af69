"""An open case in Slicer's own views: one upright view for 2D, four for 3D; its brightness."""

from __future__ import annotations

from typing import Any

import slicer

from SegGuidedMMRegGui import Views

_SLICES = {2: {"Red": ""}, 3: {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}}
_HALF_RANGE = 100


def arrange(scene: Any, dimension: int) -> None:
    """Choose Slicer's layout: the red view alone for 2D, four views for 3D."""
    node = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    if node is not None:  # else Slicer runs without a main window
        kind = slicer.vtkMRMLLayoutNode
        node.SetViewArrangement(
            kind.SlicerLayoutOneUpRedSliceView if dimension == 2 else kind.SlicerLayoutFourUpView
        )


def look_at(volume: Any, dimension: int) -> None:
    """Show a volume alone, upright and as large as fits."""
    for view, orientation in _SLICES[dimension].items():
        if Views.slice_logic(view) is not None:
            Views.show_volumes(view, volume)
            Views.look_at(view, volume, orientation)


def range_shown(volume: Any) -> tuple[float, float]:
    """The values that are black and white."""
    display = volume.GetDisplayNode()
    return display.GetWindowLevelMin(), display.GetWindowLevelMax()


def show_range(volume: Any, low: float, high: float) -> None:
    """Make `low` black and `high` white."""
    display = volume.GetDisplayNode()
    was_modifying = display.StartModify()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(low, high)
    display.EndModify(was_modifying)


def adjusted(fitting: tuple[float, float], brightness: int, contrast: int) -> tuple[float, float]:
    """The fitting values of black and white, made brighter and richer in contrast, each -100 to 100."""
    low, high = fitting
    half = (high - low) / 2 * 2 ** (-2 * contrast / _HALF_RANGE)
    middle = (low + high) / 2 - (high - low) * brightness / _HALF_RANGE
    return middle - half, middle + half
