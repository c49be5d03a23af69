"""Volumes of the scene that shall become cases: which, of which modality, with which segmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.NodeTags import tag_of
from SegGuidedMMRegGui.SceneFiles import SceneVolume
from SegGuidedMMRegGui.SegmentationNodes import SEGMENTATION
from SegGuidedMMRegGui.VolumeNodes import VOLUME
from SegGuidedMMRegGui.Widgets import connect, load_ui

_NAME, _MODALITY, _SEGMENTATION, _SUBJECT, _ROLE, _MIRRORED = range(6)
_MODALITIES = ("source", "target")
_ROLES = ("", "train", "validation", "test")


@dataclass
class _Row:
    """A volume by its node's ID, and the widgets that say what becomes of it."""

    node_id: str
    name: Any
    modality: Any
    segmentation: Any
    subject: Any
    role: Any
    mirrored: Any


class SceneImport:
    """The list.

    Attributes:
        widget: to be put somewhere.
    """

    def __init__(self, scene: Any, changed: Callable[[], None]) -> None:
        """
        Args:
            scene: the vtkMRMLScene.
            changed: called when other volumes are ticked.
        """
        self.widget, self._ui = load_ui("SceneImport")
        self._scene, self._changed = scene, changed
        self._rows: list[_Row] = []
        self._modalities = (_("source"), _("target"))
        self._ui.volumesTable.visible = False
        connect(self._ui.lookButton, "clicked(bool)", self.look)
        connect(self._ui.volumesTable, "itemChanged(QTableWidgetItem*)", self.onChanged)

    def look(self) -> None:
        """List the volumes that are in the scene now; what was chosen of those that were there stays."""
        former = {row.node_id: row for row in self._rows}
        table, volumes = self._ui.volumesTable, _volumes(self._scene)
        if [node.GetID() for node in volumes] == list(former) and not self._stale():
            return
        kept = {identity: _said(row) for identity, row in former.items()}
        was_blocked = table.blockSignals(True)
        table.setRowCount(0)
        self._rows = []
        segmentations = _nodes(self._scene, SEGMENTATION)
        for node in volumes:
            self._add(node, segmentations, kept.get(node.GetID()))
        table.blockSignals(was_blocked)
        table.resizeColumnsToContents()
        table.visible = bool(volumes)
        self._changed()

    def name_modalities(self, source: str, target: str) -> None:
        """Call the modalities as the study does."""
        self._modalities = (source or _("source"), target or _("target"))
        for row in self._rows:
            for index, name in enumerate(self._modalities):
                row.modality.setItemText(index, name)

    def chosen(self) -> list[SceneVolume]:
        """The ticked volumes that are still there."""
        found = []
        for row in self._rows:
            node = self._scene.GetNodeByID(row.node_id)
            if node is None or row.name.checkState() != qt.Qt.Checked:
                continue
            segmentation = row.segmentation.itemData(row.segmentation.currentIndex)
            found.append(
                SceneVolume(
                    node,
                    _MODALITIES[row.modality.currentIndex],
                    self._scene.GetNodeByID(segmentation) if segmentation else None,
                    row.subject.text().strip(),
                    _ROLES[row.role.currentIndex],
                    row.mirrored.checkState() == qt.Qt.Checked,
                )
            )
        return found

    def untick(self) -> None:
        """The ticked volumes are cases now."""
        for row in self._rows:
            row.name.setCheckState(qt.Qt.Unchecked)

    def onChanged(self) -> None:
        self._changed()

    def _stale(self) -> bool:
        """Whether a name or the segmentations have changed since the list was made."""
        if not self._rows:
            return False
        there = [node.GetID() for node in _nodes(self._scene, SEGMENTATION)]
        box = self._rows[0].segmentation
        names = [self._scene.GetNodeByID(row.node_id).GetName() for row in self._rows]
        listed = [box.itemData(n) for n in range(1, box.count)]
        return listed != there or names != [row.name.text() for row in self._rows]

    def _add(self, node: Any, segmentations: list[Any], said: tuple[Any, ...] | None) -> None:
        table = self._ui.volumesTable
        number = table.rowCount
        table.setRowCount(number + 1)
        row = _Row(
            node.GetID(),
            _tick(node.GetName()),
            _box(self._modalities),
            qt.QComboBox(),
            qt.QTableWidgetItem(""),
            _box((_("as drawn"), *_ROLES[1:])),
            _tick(""),
        )
        row.segmentation.addItem(_("none"), "")
        for segmentation in segmentations:
            row.segmentation.addItem(segmentation.GetName(), segmentation.GetID())
        row.segmentation.toolTip = _(
            "Drawn on this volume; its segments are structures of the study, by name"
        )
        row.subject.setToolTip(_("Whom it shows; empty: a subject of its own"))
        row.role.toolTip = _("What it is for; as drawn: by the study's own draw")
        if said is not None:
            _say(row, said)
        for column, item in ((_NAME, row.name), (_SUBJECT, row.subject), (_MIRRORED, row.mirrored)):
            table.setItem(number, column, item)
        for column, box in (
            (_MODALITY, row.modality),
            (_SEGMENTATION, row.segmentation),
            (_ROLE, row.role),
        ):
            table.setCellWidget(number, column, box)
        connect(row.modality, "currentIndexChanged(int)", self.onChanged)
        connect(row.segmentation, "currentIndexChanged(int)", self.onChanged)
        self._rows.append(row)


def _volumes(scene: Any) -> list[Any]:
    """Grey volumes that a user sees: no label maps, and none that this module shows of a study already."""
    return [
        node
        for node in _nodes(scene, VOLUME)
        if not node.IsA("vtkMRMLLabelMapVolumeNode") and tag_of(node) is None
    ]


def _nodes(scene: Any, kind: str) -> list[Any]:
    nodes = [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]
    return [node for node in nodes if not node.GetHideFromEditors()]


def _tick(text: str) -> Any:
    item = qt.QTableWidgetItem(text)
    item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
    item.setCheckState(qt.Qt.Unchecked)
    return item


def _box(texts: tuple[str, ...]) -> Any:
    box = qt.QComboBox()
    box.addItems(list(texts))
    return box


def _said(row: _Row) -> tuple[Any, ...]:
    segmentation = row.segmentation.itemData(row.segmentation.currentIndex)
    boxes = (row.modality.currentIndex, segmentation, row.role.currentIndex)
    return row.name.checkState(), row.mirrored.checkState(), row.subject.text(), *boxes


def _say(row: _Row, said: tuple[Any, ...]) -> None:
    ticked, mirrored, subject, modality, segmentation, role = said
    row.name.setCheckState(ticked)
    row.mirrored.setCheckState(mirrored)
    row.subject.setText(subject)
    row.modality.currentIndex, row.role.currentIndex = modality, role
    row.segmentation.currentIndex = max(0, row.segmentation.findData(segmentation))
