"""Slicer's Segment Editor, embedded, each with a parameter node of its own: that of Slicer stays as it is."""

from __future__ import annotations

from typing import Any

import slicer

UNDO_STATES = 20
_NODE = "vtkMRMLSegmentEditorNode"
_EFFECTS = ("Paint", "Draw", "Erase", "Level tracing", "Threshold", "Grow from seeds")
_EFFECTS_3D = ("Fill between slices",)
_MORE_EFFECTS = ("Margin", "Smoothing", "Scissors", "Islands", "Logical operators")
_LOOK = {
    "segmentationNodeSelectorVisible": False,
    "sourceVolumeNodeSelectorVisible": False,
    "switchToSegmentationsButtonVisible": False,
    "addRemoveSegmentButtonsVisible": False,
    "specifyGeometryButtonVisible": False,
    "autoShowSourceVolumeNode": False,
    "unorderedEffectsVisible": False,
}
"""Not every Slicer knows all of them."""


def has_editor() -> bool:
    """Whether this Slicer has a Segment Editor."""
    return hasattr(slicer, "qMRMLSegmentEditorWidget")


class Editor:
    """The editor. Where this Slicer has none, `widget` is None and nothing happens.

    Args:
        scene: where.
        tag: of its parameter node, another one for each editor.

    Attributes:
        widget: to be put somewhere.
    """

    def __init__(self, scene: Any, tag: str) -> None:
        self.scene, self._tag = scene, tag
        self.widget = slicer.qMRMLSegmentEditorWidget() if has_editor() else None
        self._has_keys = False
        if self.widget is None:
            return
        self.widget.setMaximumNumberOfUndoStates(UNDO_STATES)
        for name, value in _LOOK.items():
            if hasattr(self.widget, name):
                setattr(self.widget, name, value)
        self._choose_node()
        self.widget.setMRMLScene(scene)

    def offer(self, dimension: int) -> None:
        """Show the effects that make sense in 2D or 3D."""
        if self.widget is not None:
            between = _EFFECTS_3D if dimension == 3 else ()
            self.widget.setEffectNameOrder((*_EFFECTS, *between, *_MORE_EFFECTS))

    def edit(self, segmentation: Any, volume: Any) -> None:
        """Let the user draw in a segmentation node on a volume node, in its first segment."""
        if self.widget is None:
            return
        self._choose_node()
        self.widget.setSegmentationNode(segmentation)
        self.widget.setSourceVolumeNode(volume)
        structure = segmentation.GetSegmentation().GetNthSegmentID(0)
        if structure:
            self.widget.setCurrentSegmentID(structure)

    def enter(self) -> None:
        """Listen to the views and the keys."""
        if self.widget is None or self._has_keys:
            return
        self.widget.setupViewObservations()
        self.widget.installKeyboardShortcuts()
        self._has_keys = True

    def leave(self) -> None:
        """Listen no longer."""
        if self.widget is None or not self._has_keys:
            return
        self.widget.setActiveEffect(None)
        self.widget.uninstallKeyboardShortcuts()
        self.widget.removeViewObservations()
        self._has_keys = False

    def release(self) -> None:
        """Edit nothing, and hold no node."""
        self.leave()
        if self.widget is not None:
            self.widget.setSegmentationNode(None)

    def remember(self) -> None:
        """Undo comes back to here."""
        if self.widget is not None:
            self.widget.saveStateForUndo()

    def undo(self) -> None:
        """As the key Z."""
        if self.widget is not None:
            self.widget.undo()

    def close(self) -> None:
        """Leave nothing in the scene."""
        self.release()
        if self.widget is not None:
            self.widget.setMRMLSegmentEditorNode(None)
            self.widget.deleteLater()
            self.widget = None
        node = self.scene.GetSingletonNode(self._tag, _NODE)
        if node is not None:
            self.scene.RemoveNode(node)

    def _choose_node(self) -> None:
        """Its parameter node: that of the scene, or a new one, as after the scene was closed."""
        node = self.scene.GetSingletonNode(self._tag, _NODE)
        if node is None:
            node = self.scene.CreateNodeByClass(_NODE)
            node.UnRegister(None)
            node.SetSingletonTag(self._tag)
            node = self.scene.AddNode(node)
        self.widget.setMRMLSegmentEditorNode(node)
