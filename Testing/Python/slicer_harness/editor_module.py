"""Slicer's own module Segment Editor as scripts reach it, and the views' layers: noted, not shown.

`slicer.modules.segmenteditor.widgetRepresentation().self().editor`, `slicer.util.selectModule`,
`slicer.util.setSliceViewerLayers`.
"""

from __future__ import annotations

from typing import Any

selected: list[str] = []
"""Modules that were chosen."""
edited: list[tuple[Any, Any]] = []
"""What was given to the editor: segmentation and volume."""
layers: list[Any] = []
"""Backgrounds that were chosen."""


class _Editor:
    def setSegmentationNode(self, node: Any) -> None:
        if not node.IsA("vtkMRMLSegmentationNode"):
            raise TypeError(f"{node!r} is no segmentation")
        edited.append((node, None))

    def setSourceVolumeNode(self, node: Any) -> None:
        if not node.IsA("vtkMRMLScalarVolumeNode"):
            raise TypeError(f"{node!r} is no volume")
        edited[-1] = (edited[-1][0], node)


class _Widget:
    editor = _Editor()

    def self(self) -> _Widget:
        return self


class _Module:
    def widgetRepresentation(self) -> _Widget:
        return _Widget()


def start(slicer: Any) -> None:
    """Make them known to `slicer`."""
    slicer.modules.segmenteditor = _Module()
    slicer.util.selectModule = selected.append

    def set_layers(
        background: Any = None, foreground: Any = None, label: Any = None, fit: bool = False
    ) -> None:
        layers.append(background)

    slicer.util.setSliceViewerLayers = set_layers
