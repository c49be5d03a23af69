"""A stand-in for Slicer's embedded Segment Editor: no effects, but its nodes, undo and order of calls."""

from __future__ import annotations

from typing import Any

from slicer_harness.pythonqt import QtCore, QtWidgets, like_cpp
from slicer_harness.widgets import qMRMLWidget


def _put(item: QtCore.QObject, **values: Any) -> None:
    item.__dict__.update(values)


def _flag(name: str, default: bool) -> Any:
    return QtCore.Property(
        bool,
        lambda self: self._flags.get(name, default),
        lambda self, value: self._flags.__setitem__(name, value),
    )


@like_cpp
class qMRMLSegmentEditorWidget(qMRMLWidget):
    """As in Slicer 5.12; what Slicer would only complain of in its log, raises."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        _put(self, _flags={}, _node=None, _history=_history(), _effects=(), keys=False, views=False)
        place = QtWidgets.QLabel("(Slicer's Segment Editor)")  # nothing that could be taken for the real one
        place.setFrameShape(QtWidgets.QFrame.StyledPanel)
        place.setAlignment(QtCore.Qt.AlignCenter)
        place.setMinimumHeight(60)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(place)

    def setMRMLScene(self, scene: Any) -> None:
        if self._node is None:
            raise ValueError("qMRMLSegmentEditorWidget: set the parameter node before the scene")
        super().setMRMLScene(scene)

    def mrmlSegmentEditorNode(self) -> Any:
        return self._node

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        _check(node, "vtkMRMLSegmentEditorNode")
        if node is self._node:
            return
        _put(self, _node=node)
        found = None if node is None else node.GetSegmentationNode()
        self._history.SetSegmentation(None if found is None else found.GetSegmentation())

    def segmentationNode(self) -> Any:
        return None if self._node is None else self._node.GetSegmentationNode()

    def sourceVolumeNode(self) -> Any:
        return None if self._node is None else self._node.GetSourceVolumeNode()

    def setSegmentationNode(self, node: Any) -> None:
        _check(node, "vtkMRMLSegmentationNode")
        if self._node is None:
            if node is not None:
                raise ValueError("need to set segment editor node first")
            return
        if node is self.segmentationNode():
            return
        self._node.SetAndObserveSegmentationNode(node)
        self._history.RemoveAllStates()
        self._history.SetSegmentation(None if node is None else node.GetSegmentation())

    def setSourceVolumeNode(self, node: Any) -> None:
        _check(node, "vtkMRMLScalarVolumeNode")
        if self.segmentationNode() is None and node is not None:
            raise ValueError("need to set segment editor and segmentation nodes first")
        self._node.SetAndObserveSourceVolumeNode(node)

    def currentSegmentID(self) -> str:
        return "" if self._node is None else self._node.GetSelectedSegmentID() or ""

    def setCurrentSegmentID(self, identity: str) -> None:
        node = self.segmentationNode()
        if node is None or node.GetSegmentation().GetSegment(identity) is None:
            raise ValueError(f"there is no segment {identity!r} to select")
        self._node.SetSelectedSegmentID(identity)

    def setEffectNameOrder(self, names: Any) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ValueError("setEffectNameOrder takes names, not a name")
        _put(self, _effects=tuple(names))

    def effectNameOrder(self) -> Any:
        return list(self._effects)

    def setActiveEffect(self, effect: Any) -> None:
        if effect is not None:
            raise ValueError("the stand-in has no effects")

    def setMaximumNumberOfUndoStates(self, number: int) -> None:
        self._history.SetMaximumNumberOfStates(number)

    def setupViewObservations(self) -> None:
        if self.mrmlScene() is None:
            raise ValueError("set the scene before the views are observed")
        _put(self, views=True)

    def removeViewObservations(self) -> None:
        _put(self, views=False)

    def installKeyboardShortcuts(self, parent: Any = None) -> None:
        _put(self, keys=True)

    def uninstallKeyboardShortcuts(self) -> None:
        _put(self, keys=False)

    def saveStateForUndo(self) -> None:
        if self.segmentationNode() is None:
            raise ValueError("there is no segmentation whose state could be kept")
        self._history.SaveState()

    def undo(self) -> None:
        if self._history.IsRestorePreviousStateAvailable():
            self._history.RestorePreviousState()

    def redo(self) -> None:
        if self._history.IsRestoreNextStateAvailable():
            self._history.RestoreNextState()

    segmentationNodeSelectorVisible = _flag("segmentationNodeSelectorVisible", True)
    sourceVolumeNodeSelectorVisible = _flag("sourceVolumeNodeSelectorVisible", True)
    switchToSegmentationsButtonVisible = _flag("switchToSegmentationsButtonVisible", True)
    addRemoveSegmentButtonsVisible = _flag("addRemoveSegmentButtonsVisible", True)
    specifyGeometryButtonVisible = _flag("specifyGeometryButtonVisible", True)
    autoShowSourceVolumeNode = _flag("autoShowSourceVolumeNode", True)
    unorderedEffectsVisible = _flag("unorderedEffectsVisible", True)


def _history() -> Any:
    import slicer

    return slicer.vtkSegmentationHistory()


def _check(node: Any, kind: str) -> None:
    if node is not None and not node.IsA(kind):
        raise TypeError(f"{node!r} is no {kind}")


def add_to(slicer: Any) -> None:
    """`slicer.qMRMLSegmentEditorWidget`."""
    slicer.qMRMLSegmentEditorWidget = qMRMLSegmentEditorWidget


def draw(node: Any, identity: str, place: tuple[slice, ...]) -> None:
    """As the effect Paint: fill a box of voxels, (k, j, i), of the reference image with a segment."""
    import numpy as np
    import slicer
    from vtk.util.numpy_support import numpy_to_vtk

    data = slicer.vtkOrientedImageData()
    text = node.GetSegmentation().GetConversionParameter("Reference image geometry")
    assert slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, data, False)
    array = np.zeros(data.GetDimensions()[::-1], np.uint8)
    array[place] = 1
    data.GetPointData().SetScalars(numpy_to_vtk(array.ravel(), deep=True))
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.SetBinaryLabelmapToSegment(data, node, identity, logic.MODE_MERGE_MAX, data.GetExtent())
