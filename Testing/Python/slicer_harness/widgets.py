"""Stand-ins for the qMRML and ctk widgets that the module uses: strict, and no more than it uses."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

from shiboken6 import Shiboken
from slicer_harness.looks import combo_height, draw_combo, draw_heading, heading_height
from slicer_harness.pythonqt import QtCore, QtGui, QtWidgets, like_cpp, make_qt, native

make_qt()
_ON_PURPOSE = QtCore.Qt.WA_WState_ExplicitShowHide
_FOLDED_MORE = 10
"""Pixels below the heading of a folded section, unless `collapsedHeight` says otherwise."""


def _put(item: QtCore.QObject, **values: Any) -> None:
    item.__dict__.update(values)


@like_cpp
class qMRMLWidget(QtWidgets.QWidget):
    """The root of a `.ui` file: hands the scene on to those whom the file connects."""

    mrmlSceneChanged = QtCore.Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        _put(self, _scene=None, _receivers=[])

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not None and not scene.IsA("vtkMRMLScene"):
            raise TypeError(f"{scene!r} is no scene")
        _put(self, _scene=scene)
        for receiver in self._receivers:
            receiver.setMRMLScene(scene)


def _flag(name: str, default: bool) -> Any:
    return QtCore.Property(
        bool,
        lambda self: self._flags.get(name, default),
        lambda self, value: self._flags.__setitem__(name, value),
    )


@like_cpp
class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Chooses a node of the scene, of the classes in `nodeTypes`.

    As Slicer's, it tells its current node again when that gets another name: what it follows is the text of a
    QComboBox (`qMRMLNodeComboBox::setComboBox`).
    """

    currentNodeChanged = QtCore.Signal(object)
    currentNodeIDChanged = QtCore.Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        _put(self, _scene=None, _types=[], _id="", _none="None", _flags={}, _tag=0)
        self.setMinimumSize(60, combo_height())
        self.setSizePolicy(QtWidgets.QSizePolicy.MinimumExpanding, QtWidgets.QSizePolicy.Fixed)

    def setMRMLScene(self, scene: Any) -> None:
        if not self._types:
            raise ValueError("qMRMLNodeComboBox: nodeTypes must be set before the scene")
        _put(self, _scene=scene, _id="")

    def mrmlScene(self) -> Any:
        return self._scene

    def currentNode(self) -> Any:
        return None if self._scene is None or not self._id else self._scene.GetNodeByID(self._id)

    def setCurrentNode(self, node: Any) -> None:
        if self._scene is None:
            raise ValueError("qMRMLNodeComboBox: setCurrentNode before setMRMLScene")
        if node is not None and not any(node.IsA(kind) for kind in self._types):
            raise ValueError(f"qMRMLNodeComboBox: {node.GetClassName()} is not one of {self._types}")
        found = "" if node is None else node.GetID()
        if found != self._id:
            former = self.currentNode()
            if former is not None:
                former.RemoveObserver(self._tag)
            _put(self, _id=found)
            if node is not None:
                _put(self, _tag=node.AddObserver("ModifiedEvent", _renamed(self, node.GetName())))
            self._tell()

    def _tell(self) -> None:
        self.update()
        self.currentNodeChanged.emit(self.currentNode())
        self.currentNodeIDChanged.emit(self._id)

    def _get_types(self) -> list[str]:
        return self._types

    def _set_types(self, names: list[str]) -> None:
        if isinstance(names, str) or not all(name.startswith("vtkMRML") for name in names):
            raise ValueError(f"nodeTypes must be a tuple of class names, got {names!r}")
        _put(self, _types=list(names))

    def _get_id(self) -> str:
        return self._id

    def _get_none(self) -> str:
        return self._none

    def _set_none(self, text: str) -> None:
        _put(self, _none=text)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        node = self.currentNode()
        draw_combo(self, self._none if node is None else node.GetName())

    nodeTypes = QtCore.Property("QStringList", _get_types, _set_types)
    noneDisplay = QtCore.Property(str, _get_none, _set_none)
    currentNodeID = QtCore.Property(str, _get_id)
    noneEnabled = _flag("noneEnabled", False)
    addEnabled = _flag("addEnabled", True)
    removeEnabled = _flag("removeEnabled", True)
    renameEnabled = _flag("renameEnabled", False)
    showHidden = _flag("showHidden", False)


def _renamed(selector: qMRMLNodeComboBox, name: str) -> Callable[..., None]:
    """An observer of the node that a selector shows; it holds neither."""
    shown, mine = [name], weakref.ref(selector)

    def hear(node: Any, _event: str) -> None:
        selector = mine()
        if selector is not None and Shiboken.isValid(selector) and node.GetName() != shown[0]:
            shown[0] = node.GetName()
            selector._tell()

    return hear


@like_cpp
class ctkCollapsibleButton(QtWidgets.QWidget):
    """A heading that folds what is under it; what was hidden by itself stays hidden when it unfolds."""

    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, parent: Any = None, more: Any = None) -> None:
        text, parent = (parent, more) if isinstance(parent, str) else ("", parent)
        _put(self, _text=text, _collapsed=False, _more=_FOLDED_MORE, _highest=16777215)
        super().__init__(parent)
        _put(self, _hidden=set(), _is_ours=False)
        self.setSizePolicy(QtWidgets.QSizePolicy.Minimum, QtWidgets.QSizePolicy.Preferred)
        self.setContentsMargins(0, heading_height(self), 0, 0)

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        child = event.child()
        if event.added() and child.isWidgetType() and hasattr(self, "_hidden"):
            QtCore.QObject.installEventFilter(child, self)
            is_set = native(child, "testAttribute")(_ON_PURPOSE)
            if is_set and QtWidgets.QWidget.isHidden(child):
                self._hidden.add(child)
            if self._collapsed:
                self._show_child(child)

    def eventFilter(self, child: QtCore.QObject, event: QtCore.QEvent) -> bool:
        if not self._is_ours and event.type() == QtCore.QEvent.ShowToParent:
            self._hidden.discard(child)
            self._show_child(child)
        elif not self._is_ours and event.type() == QtCore.QEvent.HideToParent:
            self._hidden.add(child)
        return False

    def _show_child(self, child: QtWidgets.QWidget) -> None:
        _put(self, _is_ours=True)
        QtWidgets.QWidget.setVisible(child, not self._collapsed and child not in self._hidden)
        if child not in self._hidden:  # it was not done on purpose
            child.setAttribute(_ON_PURPOSE, False)
        _put(self, _is_ours=False)

    def _get_text(self) -> str:
        return self._text

    def _set_text(self, text: str) -> None:
        _put(self, _text=text)
        self.update()

    def _get_more(self) -> int:
        return self._more

    def _set_more(self, height: int) -> None:
        _put(self, _more=height)
        if self._collapsed:
            self.setFixedHeight(heading_height(self) + height)

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        _put(self, _collapsed=collapsed)
        if collapsed:
            _put(self, _highest=native(self, "maximumHeight")())
            self.setFixedHeight(heading_height(self) + self._more)
        else:
            self.setMinimumHeight(0)
            self.setMaximumHeight(self._highest)
        for child in QtCore.QObject.children(self):
            if child.isWidgetType():
                self._show_child(child)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        draw_heading(self, self._text, self._collapsed)

    text = QtCore.Property(str, _get_text, _set_text)
    collapsed = QtCore.Property(bool, _get_collapsed, _set_collapsed)
    collapsedHeight = QtCore.Property(int, _get_more, _set_more)


@like_cpp
class ctkPathLineEdit(QtWidgets.QWidget):
    """A line for a path, with a button that browses; an empty path is no valid input, and not told as one."""

    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)
    Dirs, Files, Executable, Readable = 0x001, 0x002, 0x040, 0x010

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        line = QtWidgets.QLineEdit()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(line)
        _put(self, _filters=self.Dirs | self.Files, _line=line, _is_valid=False)
        line.textChanged.connect(self._changed)

    def _changed(self, path: str) -> None:
        was_valid = self._is_valid
        _put(self, _is_valid=bool(path))
        if path:
            self.currentPathChanged.emit(path)
        if was_valid != bool(path):
            self.validInputChanged.emit(bool(path))

    def _get_path(self) -> str:
        return self._line.text

    def _set_path(self, path: str) -> None:
        QtWidgets.QLineEdit.setText(self._line, path)

    def _get_filters(self) -> int:
        return self._filters

    def _set_filters(self, filters: int) -> None:
        _put(self, _filters=filters)

    currentPath = QtCore.Property(str, _get_path, _set_path)
    filters = QtCore.Property(int, _get_filters, _set_filters)


@like_cpp
class ctkColorPickerButton(QtWidgets.QPushButton):
    """A button that shows a colour, and lets the user choose another one."""

    colorChanged = QtCore.Signal(QtGui.QColor)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        _put(self, _color=QtGui.QColor(0, 0, 0), _shows_name=True)

    def _get_color(self) -> QtGui.QColor:
        return self._color

    def _set_color(self, color: QtGui.QColor) -> None:
        if color == self._color:
            return
        _put(self, _color=color)
        picture = QtGui.QPixmap(16, 16)
        picture.fill(color)
        self.setIcon(QtGui.QIcon(picture))
        self.colorChanged.emit(color)

    def _get_shows_name(self) -> bool:
        return self._shows_name

    def _set_shows_name(self, shows: bool) -> None:
        _put(self, _shows_name=shows)

    color = QtCore.Property(QtGui.QColor, _get_color, _set_color)
    displayColorName = QtCore.Property(bool, _get_shows_name, _set_shows_name)


@like_cpp
class ModuleManager(QtCore.QObject):
    """`slicer.app.moduleManager()`."""

    moduleAboutToBeUnloaded = QtCore.Signal(str)


class ModuleParent:
    """The C++ side of a scripted module, as its constructor finds it."""

    _TEXTS = ("title", "helpText", "acknowledgementText", "categories", "dependencies", "contributors")
    _KNOWN = (*_TEXTS, "icon", "hidden", "index", "widgetRepresentationCreationEnabled")

    def __init__(self, path: str) -> None:
        object.__setattr__(self, "path", path)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._KNOWN:
            raise AttributeError(
                f"qSlicerScriptedLoadableModule.{name}: creating new attributes is not allowed"
            )
        object.__setattr__(self, name, value)


QMRML = (qMRMLWidget, qMRMLNodeComboBox)
CTK = (ctkCollapsibleButton, ctkColorPickerButton, ctkPathLineEdit)


def make_ctk() -> types.ModuleType:
    """The module `ctk`."""
    module = types.ModuleType("ctk")
    for cls in CTK:
        setattr(module, cls.__name__, cls)
    return module


def add_to(slicer: Any) -> None:
    """The qMRML widgets, as `slicer.q…`."""
    for cls in QMRML:
        setattr(slicer, cls.__name__, cls)
