"""`slicer.util.loadUI`: a real `.ui` file, with an error for what Qt's loader would drop."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from slicer_harness.pythonqt import QtCore, QtUiTools, loading
from slicer_harness.widgets import CTK, QMRML, qMRMLWidget

_SCENE = ("mrmlSceneChanged(vtkMRMLScene*)", "setMRMLScene(vtkMRMLScene*)")


def load(path: str) -> Any:
    """The widget that the file describes.

    Raises:
        ValueError: if a class in it is unknown, two widgets share a name, or a connection is wrong.
    """
    tree = ET.fromstring(Path(path).read_text(encoding="utf-8"))
    loader = QtUiTools.QUiLoader()
    for cls in (*QMRML, *CTK):
        loader.registerCustomWidget(cls)
    _check(path, tree, set(loader.availableWidgets()))
    scene_links = _take_scene_connections(path, tree)
    data = QtCore.QBuffer()
    data.setData(ET.tostring(tree))
    data.open(QtCore.QIODevice.ReadOnly)
    with loading():
        widget = loader.load(data)
    if widget is None:
        raise ValueError(f"{path}: {loader.errorString()}")
    for sender, receiver in scene_links:
        source = widget if widget.objectName == sender else widget.findChild(qMRMLWidget, sender)
        source._receivers.append(widget.findChild(QtCore.QObject, receiver))
    return widget


def _check(path: str, tree: ET.Element, known: set[str]) -> None:
    names = [element.get("name") for element in tree.iter("widget")]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path}: several widgets are named {', '.join(sorted(map(str, twice)))}")
    unknown = {element.get("class") for element in tree.iter("widget")} - known - {"Line"}
    if unknown:
        raise ValueError(f"{path}: unknown classes {', '.join(sorted(map(str, unknown)))}")
    declared = {element.findtext("class") for element in tree.iter("customwidget")}
    used = {element.get("class") for element in tree.iter("widget") if element.get("class", "")[0] in "qc"}
    if used - declared:
        raise ValueError(
            f"{path}: not declared as <customwidget>: {', '.join(sorted(map(str, used - declared)))}"
        )


def _take_scene_connections(path: str, tree: ET.Element) -> list[tuple[str, str]]:
    names = {element.get("name") for element in tree.iter("widget")}
    found, connections = [], tree.find("connections")
    for connection in list(connections if connections is not None else ()):
        texts = [connection.findtext(tag) for tag in ("sender", "signal", "receiver", "slot")]
        if not {texts[0], texts[2]} <= names:
            raise ValueError(f"{path}: a connection names an unknown widget: {texts}")
        if (texts[1], texts[3]) == _SCENE:
            found.append((str(texts[0]), str(texts[2])))
            connections.remove(connection)
        elif "vtk" in f"{texts[1]}{texts[3]}":
            raise ValueError(f"{path}: a connection that the harness does not know: {texts}")
    return found
